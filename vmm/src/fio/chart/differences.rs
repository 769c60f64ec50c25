//! Differences in percent with their spread, one below the other.

use std::fmt::Write;

use super::scale::{Axis, Unit};
use super::{Escaped, WIDTH, colour, figure, title_element};

/// Height of a row.
const ROW: f64 = 22.0;
/// Where the plot begins; names are to the left.
const BEGIN: f64 = 190.0;
const END: f64 = WIDTH - 22.0;
/// Letters of a name that fit.
const LETTERS: usize = 30;

/// A picture of differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Differences {
    /// What it shows.
    pub title: String,
    /// What the axis is.
    pub axis: String,
    /// Name, difference in percent, and its spread in percent points if that is known.
    pub rows: Vec<(String, f64, Option<f64>)>,
}

impl Differences {
    /// As HTML; `None` if there is none.
    pub fn html(&self) -> Option<String> {
        let rows: Vec<_> = self.rows.iter().filter(|row| row.1.is_finite()).collect();
        if rows.is_empty() {
            return None;
        }
        let count = f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX));
        let axis = Axis::linear(&self.axis, Unit::Percent);
        let range = axis.range(rows.iter().flat_map(|(_, difference, spread)| {
            let spread = spread.unwrap_or(0.0);
            [difference - spread, difference + spread]
        }));
        let bottom = 8.0 + ROW * count;
        let place = |value| range.place(value, BEGIN, END);
        let mut drawing = String::new();
        for tick in range.ticks() {
            let x = place(tick);
            let class = if tick == 0.0 { "frame" } else { "grid" };
            let _ = writeln!(
                drawing,
                "<path class=\"{class}\" d=\"M{x:.1} 4V{bottom:.1}\"/><text class=\"tick\" \
                 text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 16.0,
                range.label(tick)
            );
        }
        let mut y = 8.0 + ROW / 2.0;
        for (name, difference, spread) in rows {
            let x = place(*difference);
            let short: String = name.chars().take(LETTERS).collect();
            let _ = write!(
                drawing,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                BEGIN - 8.0,
                y + 4.0,
                Escaped(&short)
            );
            let mut title = format!("{name}: {difference:+.1} %");
            if let Some(spread) = spread {
                let _ = write!(title, " ± {spread:.1}");
                let (low, high) = (place(difference - spread), place(difference + spread));
                let _ = write!(
                    drawing,
                    "<path class=\"whisker\" stroke=\"#333\" d=\"M{low:.1} {:.1}v6M{low:.1} \
                     {y:.1}H{high:.1}M{high:.1} {:.1}v6\"/>",
                    y - 3.0,
                    y - 3.0
                );
            }
            let _ = writeln!(
                drawing,
                "<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{}\">{}</circle>",
                colour(0),
                title_element(&title)
            );
            y += ROW;
        }
        let _ = writeln!(
            drawing,
            "<text class=\"axis\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            f64::midpoint(BEGIN, END),
            bottom + 34.0,
            Escaped(&axis.label(&range))
        );
        Some(figure(&self.title, &drawing, bottom + 42.0, ""))
    }
}
