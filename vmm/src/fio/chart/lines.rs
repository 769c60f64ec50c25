//! Lines with marks: a value over depth, time or latency.

use std::fmt::Write;

use super::scale::{Axis, Range};
use super::{
    BOTTOM, Escaped, HEIGHT, LEFT, Legend, RIGHT, TOP, Value, bottom_title, colour, dash, figure,
    frame, left_axis, mark, whisker,
};

/// One point of a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Along the bottom.
    pub x: f64,
    /// Along the left.
    pub y: Value,
    /// What whoever points at it is told.
    pub title: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Whose figures these are; colour and mark.
    pub setting: (usize, String),
    /// What is measured, if a picture shows several things; the dash.
    pub kind: Option<(usize, String)>,
    /// From left to right.
    pub points: Vec<Point>,
}

/// A picture of lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left.
    pub y: Axis,
    /// What is drawn. Points that have no place, such as 0 on a logarithmic axis, are left out.
    pub lines: Vec<Line>,
    /// Draw the steps of a histogram, without marks.
    pub steps: bool,
}

impl Lines {
    /// As HTML; `None` if no point has a place.
    pub fn html(&self) -> Option<String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = self.x.range(points().map(|point| point.x));
        let y = self.y.range(points().flat_map(|point| {
            let (low, high) = point.y.limits.unwrap_or((point.y.value, point.y.value));
            [point.y.value, low, high]
        }));
        let mut legend = Legend::default();
        let mut lines = String::new();
        for line in &self.lines {
            let drawn = self.line(line, &x, &y);
            if drawn.is_empty() {
                continue;
            }
            lines += &drawn;
            let kind = line
                .kind
                .as_ref()
                .map(|(index, name)| (*index, name.as_str()));
            legend.add((line.setting.0, &line.setting.1), kind);
        }
        if lines.is_empty() {
            return None;
        }
        let mut drawing = left_axis(&self.y, &y);
        drawing += &bottom_ticks(&x);
        drawing += &bottom_title(&self.x.label(&x));
        drawing += &frame();
        drawing += &lines;
        Some(figure(
            &self.title,
            &drawing,
            HEIGHT,
            &legend.html(!self.steps),
        ))
    }

    fn line(&self, line: &Line, x: &Range, y: &Range) -> String {
        let has = |point: &&Point| x.has(point.x) && y.has(point.y.value);
        let points: Vec<&Point> = line.points.iter().filter(has).collect();
        let Some(first) = points.first() else {
            return String::new();
        };
        let place = |point: &Point| {
            (
                x.place(point.x, LEFT, RIGHT),
                y.place(point.y.value, BOTTOM, TOP),
            )
        };
        let (colour, kind) = (colour(line.setting.0), line.kind.as_ref());
        let mut path = {
            let (x, y) = place(first);
            format!("M{x:.1} {y:.1}")
        };
        for point in &points[1..] {
            let (x, y) = place(point);
            let _ = if self.steps {
                write!(path, "H{x:.1}V{y:.1}")
            } else {
                write!(path, "L{x:.1} {y:.1}")
            };
        }
        let mut text = format!(
            "<g><path class=\"line\" stroke=\"{colour}\" stroke-dasharray=\"{}\" d=\"{path}\"/>\n",
            kind.map_or("none", |(index, _)| dash(*index)),
        );
        let (few, single) = (points.len() <= 40, points.len() == 1);
        for point in points {
            let (px, py) = place(point);
            if let Some((low, high)) = point.y.limits.filter(|(low, high)| low < high) {
                let place = |value| y.place(value, BOTTOM, TOP);
                text += &whisker(px, place(low), place(high), colour);
            }
            if single || (few && !self.steps) {
                text += &mark(line.setting.0, px, py, &point.title);
            }
        }
        text + "</g>\n"
    }
}

fn bottom_ticks(range: &Range) -> String {
    let mut text = String::new();
    let mut last = f64::NEG_INFINITY;
    for tick in range.ticks() {
        let x = range.place(tick, LEFT, RIGHT);
        let _ = write!(text, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>");
        let label = range.label(tick);
        // Labels that would touch are left out; a digit is about 7 wide.
        let half = f64::from(u16::try_from(label.chars().count()).unwrap_or(u16::MAX)) * 3.6;
        if x - half > last + 4.0 {
            last = x + half;
            let _ = write!(
                text,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                BOTTOM + 16.0,
                Escaped(&label)
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::WIDTH;
    use super::super::scale::Unit;
    use super::*;

    #[test]
    fn the_last_label_is_inside() {
        for axis in [
            Axis::log("latency", Unit::Time),
            Axis::linear("seconds", Unit::Count),
            Axis::linear("latency", Unit::Time),
        ] {
            for power in 0..12 {
                let range = axis.range([1.0, 7.3 * 10f64.powi(power)].into_iter());
                let last = range.ticks().last().unwrap();
                let half = range.label(last).chars().count() as f64 * 3.6;
                let x = range.place(last, LEFT, RIGHT);
                assert!(x + half <= WIDTH, "{axis:?}: {}", range.label(last));
            }
        }
    }
}
