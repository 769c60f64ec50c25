//! Pictures as inline SVG: lines, bars, and differences with their spread.
//!
//! Colours tell settings apart and are those of Okabe and Ito, which colour-blind people can tell; marks
//! differ too. Dashes tell what is measured. Whoever points at a mark or bar is told its figures.

mod bars;
mod differences;
mod lines;
mod scale;

use std::fmt::{self, Display, Write};

pub use self::bars::Bars;
pub use self::differences::Differences;
pub use self::lines::{Line, Lines, Point};
pub use self::scale::{Axis, Unit, short, time};

/// Colours of settings, in order.
const COLOURS: [&str; 7] = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    // The text's, which is seen on a dark page, too.
    "currentColor",
];
/// Dashes of what is measured, in order.
const DASHES: [&str; 4] = ["none", "7 3", "3 3", "1 3"];

/// Size of a picture's drawing in its own units.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 270.0;
/// Where the plot is in it.
const LEFT: f64 = 62.0;
// Half of a tick's label is behind it.
const RIGHT: f64 = WIDTH - 26.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 42.0;

/// The colour with that number.
pub fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn dash(index: usize) -> &'static str {
    DASHES[index % DASHES.len()]
}

/// Text that is safe between tags and in attributes.
pub struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Others that HTML forbids.
                c if c.is_control() && c != '\n' && c != '\t' => f.write_str("\u{fffd}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// What a value is shown with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Value {
    /// The value.
    pub value: f64,
    /// Lowest and highest of its rounds, if there were several.
    pub limits: Option<(f64, f64)>,
}

/// Names for colours and dashes of one picture.
#[derive(Default)]
struct Legend {
    colours: Vec<(usize, String)>,
    dashes: Vec<(usize, String)>,
}

impl Legend {
    fn add(&mut self, setting: (usize, &str), kind: Option<(usize, &str)>) {
        let add = |list: &mut Vec<(usize, String)>, (index, name): (usize, &str)| {
            if list.iter().all(|(_, other)| other != name) {
                list.push((index, name.to_owned()));
            }
        };
        add(&mut self.colours, setting);
        if let Some(kind) = kind {
            add(&mut self.dashes, kind);
        }
    }

    fn html(&self, marks: bool) -> String {
        let mut text = String::from("<p class=\"legend\">");
        for (index, name) in &self.colours {
            let colour = colour(*index);
            let mark = if marks {
                format!(
                    "<svg width=\"26\" height=\"12\"><path d=\"M1 6H25\" stroke=\"{colour}\" \
                     stroke-width=\"2\"/>{}</svg>",
                    mark(*index, 13.0, 6.0, "")
                )
            } else {
                format!(
                    "<svg width=\"12\" height=\"12\"><rect width=\"12\" height=\"12\" fill=\"{colour}\"/></svg>"
                )
            };
            let _ = write!(text, "<span>{mark} {}</span> ", Escaped(name));
        }
        for (index, name) in &self.dashes {
            let _ = write!(
                text,
                "<span><svg width=\"30\" height=\"12\"><path d=\"M1 6H29\" stroke=\"currentColor\" \
                 stroke-width=\"2\" stroke-dasharray=\"{}\"/></svg> {}</span> ",
                dash(*index),
                Escaped(name)
            );
        }
        text + "</p>"
    }
}

/// A setting's mark, which says `title` when pointed at.
fn mark(index: usize, x: f64, y: f64, title: &str) -> String {
    let shape = match index % 4 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\""),
        1 => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\"",
            x - 3.0,
            y - 3.0
        ),
        2 => format!(
            "<path d=\"M{x:.1} {:.1}L{:.1} {:.1}H{:.1}Z\"",
            y - 4.0,
            x + 4.0,
            y + 3.0,
            x - 4.0
        ),
        _ => format!(
            "<path d=\"M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}Z\"",
            y - 4.2,
            x + 4.2,
            y + 4.2,
            x - 4.2
        ),
    };
    let (tag, _) = shape[1..].split_once(' ').unwrap_or((&shape[1..], ""));
    let title = title_element(title);
    format!(
        "{shape} class=\"mark\" fill=\"{}\">{title}</{tag}>",
        colour(index)
    )
}

fn title_element(title: &str) -> String {
    if title.is_empty() {
        return String::new();
    }
    format!("<title>{}</title>", Escaped(title))
}

/// A vertical line from the lowest to the highest round.
fn whisker(x: f64, low: f64, high: f64, colour: &str) -> String {
    format!(
        "<path class=\"whisker\" stroke=\"{colour}\" d=\"M{:.1} {high:.1}h6M{x:.1} \
         {high:.1}V{low:.1}M{:.1} {low:.1}h6\"/>",
        x - 3.0,
        x - 3.0
    )
}

/// A figure: what it shows, the drawing, and its legend.
fn figure(title: &str, drawing: &str, height: f64, legend: &str) -> String {
    format!(
        "<figure class=\"chart\"><figcaption>{}</figcaption>\n\
         <svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n\
         {drawing}</svg>\n{legend}</figure>\n",
        Escaped(title),
        Escaped(title)
    )
}

/// The grid's lines, the ticks' labels and the axis' title, at the left.
fn left_axis(axis: &Axis, range: &scale::Range) -> String {
    let mut text = String::new();
    for tick in range.ticks() {
        let y = range.place(tick, BOTTOM, TOP);
        let _ = writeln!(
            text,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            range.label(tick)
        );
    }
    let middle = f64::midpoint(TOP, BOTTOM);
    let _ = writeln!(
        text,
        "<text class=\"axis\" text-anchor=\"middle\" transform=\"translate(13 {middle:.1}) \
         rotate(-90)\">{}</text>",
        Escaped(&axis.label(range))
    );
    text
}

fn bottom_title(title: &str) -> String {
    format!(
        "<text class=\"axis\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
        f64::midpoint(LEFT, RIGHT),
        HEIGHT - 6.0,
        Escaped(title)
    )
}

/// The plot's edges.
fn frame() -> String {
    format!("<path class=\"frame\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_becomes_markup() {
        let text = "</title><script>alert('x\"&\u{1}')";
        assert_eq!(
            Escaped(text).to_string(),
            "&lt;/title&gt;&lt;script&gt;alert(&#39;x&quot;&amp;\u{fffd}&#39;)"
        );
    }

    #[test]
    fn every_mark_is_an_element_with_an_end() {
        for index in 0..5 {
            let text = mark(index, 1.0, 2.0, "a<b");
            assert_eq!(text.matches("<title>a&lt;b</title>").count(), 1, "{text}");
            let tag = text[1..].split(' ').next().unwrap();
            assert!(text.ends_with(&format!("</{tag}>")), "{text}");
        }
    }
}
