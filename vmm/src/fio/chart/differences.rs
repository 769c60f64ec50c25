//! Differences in percent with their spread, one below the other, each under its name.

use std::fmt::Write;

use super::scale::{Axis, Unit};
use super::{Escaped, WIDTH, colour, figure, title_element};

/// Height of a row: its name, and the mark below it.
const ROW: f64 = 34.0;
/// Where the plot is.
const BEGIN: f64 = 20.0;
const END: f64 = WIDTH - 22.0;
/// Letters of a name that fit.
const LETTERS: usize = 62;

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
        let mut y = 8.0 + ROW * 0.7;
        for (name, difference, spread) in rows {
            let x = place(*difference);
            let _ = write!(
                drawing,
                "<text class=\"tick\" x=\"2\" y=\"{:.1}\">{}</text>",
                y - 9.0,
                Escaped(&shortened(name))
            );
            let mut title = format!("{name}: {difference:+.1} %");
            if let Some(spread) = spread {
                let _ = write!(title, " ± {spread:.1}");
                let (low, high) = (place(difference - spread), place(difference + spread));
                let _ = write!(
                    drawing,
                    "<path class=\"whisker\" stroke=\"currentColor\" d=\"M{low:.1} {:.1}v6M{low:.1} \
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

/// Both ends of a long name: settings differ at its begin, jobs at its end.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= LETTERS {
        return name.to_owned();
    }
    let begin: String = name.chars().take(LETTERS / 2 - 1).collect();
    let end: String = name.chars().skip(count - LETTERS / 2).collect();
    format!("{begin}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_look_different() {
        let name = |job: &str| format!("{}: load/{job}, depth 1", "tuned ".repeat(20));
        let (one, other) = (shortened(&name("qd1")), shortened(&name("é")));
        assert!(one != other && one.ends_with("load/qd1, depth 1"), "{one}");
        assert_eq!(one.chars().count(), LETTERS);
        let setting = "tuned poll-us=50 io-threads=2: load/qd32, depth 32";
        assert_eq!(shortened(setting), setting);
    }
}
