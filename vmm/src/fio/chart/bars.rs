//! Bars in groups: one value of each setting beside the others.

use std::fmt::Write;

use super::scale::Axis;
use super::{
    BOTTOM, Escaped, HEIGHT, LEFT, Legend, RIGHT, TOP, Value, bottom_title, colour, figure, frame,
    left_axis, mark, title_element, whisker,
};

/// A picture of bars.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// What the groups are.
    pub x: String,
    /// Along the left.
    pub y: Axis,
    /// The groups' names.
    pub groups: Vec<String>,
    /// For each setting its number, name, and a value for each group.
    pub settings: Vec<(usize, String, Vec<Option<Value>>)>,
}

impl Bars {
    /// As HTML; `None` if there is no value.
    pub fn html(&self) -> Option<String> {
        let all = || {
            self.settings
                .iter()
                .flat_map(|(_, _, values)| values.iter().flatten())
        };
        all().next()?;
        let range = self.y.range(all().flat_map(|value| {
            let (low, high) = value.limits.unwrap_or((value.value, value.value));
            [value.value, low, high]
        }));
        let mut legend = Legend::default();
        let mut drawing = left_axis(&self.y, &range);
        let step = (RIGHT - LEFT) / number(self.groups.len());
        let width = (step * 0.8 / number(self.settings.len())).min(48.0);
        for (group, name) in self.groups.iter().enumerate() {
            let middle = LEFT + step * (number(group) + 0.5);
            let _ = writeln!(
                drawing,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
                BOTTOM + 16.0,
                Escaped(name)
            );
            let mut x = middle - width * number(self.settings.len()) / 2.0;
            for (index, setting, values) in &self.settings {
                if let Some(value) = values.get(group).copied().flatten() {
                    let title = format!("{setting}, {name}: {}", self.y.label_of(value.value));
                    drawing += &if range.is_log() {
                        dot(&range, *index, x + width / 2.0, value, &title)
                    } else {
                        bar(&range, *index, x, width, value, &title)
                    };
                    legend.add((*index, setting), None);
                }
                x += width;
            }
        }
        drawing += &bottom_title(&self.x);
        drawing += &frame();
        let legend = legend.html(range.is_log());
        Some(figure(&self.title, &drawing, HEIGHT, &legend))
    }
}

/// On a logarithmic axis the length of a bar would say nothing: it begins nowhere.
fn dot(range: &super::scale::Range, index: usize, x: f64, value: Value, title: &str) -> String {
    if !range.has(value.value) {
        return String::new();
    }
    let place = |value| range.place(value, BOTTOM, TOP);
    let mut text = String::new();
    if let Some((low, high)) = value.limits.filter(|(low, high)| low < high) {
        text += &whisker(x, place(low), place(high), colour(index));
    }
    text + &mark(index, x, place(value.value), title) + "\n"
}

fn bar(
    range: &super::scale::Range,
    index: usize,
    x: f64,
    width: f64,
    value: Value,
    title: &str,
) -> String {
    let place = |value| range.place(value, BOTTOM, TOP);
    let (foot, head) = (place(0.0), place(value.value));
    let mut text = format!(
        "<rect class=\"bar\" fill=\"{}\" data-value=\"{}\" x=\"{:.1}\" y=\"{:.1}\" \
         width=\"{:.1}\" height=\"{:.1}\">{}</rect>",
        colour(index),
        value.value,
        x + 1.0,
        head.min(foot),
        width - 2.0,
        (foot - head).abs().max(0.8),
        title_element(title)
    );
    if let Some((low, high)) = value.limits.filter(|(low, high)| low < high) {
        text += &whisker(x + width / 2.0, place(low), place(high), "currentColor");
    }
    text.push('\n');
    text
}

/// A count of things in a picture.
fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
