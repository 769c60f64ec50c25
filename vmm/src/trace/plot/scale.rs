//! Where times and latencies are in the picture, and the axes that say so.

use super::super::svg::{Anchor, Svg, ticks};
use super::{Plot, ROWS};

/// Left end of the panels.
pub const LEFT: f64 = 110.0;
/// Right end of the panels.
pub const RIGHT: f64 = 1170.0;
/// Upper and lower end of the panel of latencies.
pub const LATENCY: (f64, f64) = (110.0, 430.0);

/// From time and latency to the picture.
pub struct Scale {
    origin: u64,
    length: f64,
    width: f64,
    // Logarithms to base 2.
    low: f64,
    high: f64,
}

impl Scale {
    /// For all of a trace.
    #[allow(clippy::cast_precision_loss)] // a picture
    pub fn new(plot: &Plot) -> Self {
        let origin = plot.origin.unwrap_or(0);
        let rows = || plot.fields.keys().map(|(_, row, _)| *row as f64);
        Self {
            origin,
            length: plot.last.saturating_sub(origin).max(1) as f64,
            width: plot.width as f64,
            low: rows().fold(f64::MAX, f64::min) / ROWS - 0.2,
            high: (rows().fold(0.0, f64::max) + 1.0) / ROWS + 0.2,
        }
    }

    /// Where a time is.
    #[allow(clippy::cast_precision_loss)] // a picture
    pub fn x(&self, t: u64) -> f64 {
        self.at(t.saturating_sub(self.origin) as f64)
    }

    fn at(&self, since: f64) -> f64 {
        (LEFT + since / self.length * (RIGHT - LEFT)).min(RIGHT)
    }

    /// Left end and width of a column.
    #[allow(clippy::cast_precision_loss)] // a picture
    pub fn column(&self, column: usize) -> (f64, f64) {
        let (from, to) = (column as f64 * self.width, (column + 1) as f64 * self.width);
        (self.at(from), (self.at(to) - self.at(from)).max(0.6))
    }

    /// Where a latency is.
    #[allow(clippy::cast_precision_loss)] // a picture
    pub fn y(&self, latency: u64) -> f64 {
        self.height_of((latency.max(1) as f64).log2())
    }

    fn height_of(&self, log: f64) -> f64 {
        let (top, bottom) = LATENCY;
        bottom - (log - self.low) / (self.high - self.low) * (bottom - top)
    }

    /// Upper end and height of a row.
    #[allow(clippy::cast_precision_loss)] // a picture
    pub fn row(&self, row: usize) -> (f64, f64) {
        let (low, high) = (row as f64 / ROWS, (row + 1) as f64 / ROWS);
        let (y, base) = (self.height_of(high), self.height_of(low));
        (y, base - y)
    }

    /// Lines of time through all panels, with their labels.
    pub fn grid(&self, svg: &mut Svg, bottom: f64) {
        let (unit, name) = match self.length {
            short if short < 3e3 => (1.0, "ns"),
            short if short < 3e6 => (1e3, "us"),
            middle if middle < 3e9 => (1e6, "ms"),
            _ => (1e9, "s"),
        };
        for tick in ticks(self.length / unit, 10.0) {
            let x = self.at(tick * unit);
            svg.line((x, LATENCY.0), (x, bottom + 5.0), "#eee");
            svg.text(
                (x, bottom + 20.0),
                Anchor::Middle,
                "small",
                &plain_number(tick),
            );
        }
        let label = format!("time since the first command in {name}");
        svg.text(
            ((LEFT + RIGHT) / 2.0, bottom + 40.0),
            Anchor::Middle,
            "",
            &label,
        );
    }

    /// Lines of latency, with their labels.
    pub fn latency_axis(&self, svg: &mut Svg) {
        let (top, bottom) = LATENCY;
        let head = "Latency from fetch to completion (logarithmic)";
        svg.text((LEFT, top - 10.0), Anchor::Start, "head", head);
        for power in 0..=12 {
            for factor in [1.0, 2.0, 5.0] {
                let value: f64 = factor * 10f64.powi(power);
                let log = value.log2();
                if log < self.low || log > self.high {
                    continue;
                }
                let y = self.height_of(log);
                let colour = if factor > 1.0 { "#f2f2f2" } else { "#ddd" };
                svg.line((LEFT, y), (RIGHT, y), colour);
                let wide = self.high - self.low > 14.0;
                if !wide || factor < 1.5 {
                    svg.text(
                        (LEFT - 8.0, y + 4.0),
                        Anchor::End,
                        "small",
                        &unit_time(value),
                    );
                }
            }
        }
        svg.line((LEFT, bottom), (RIGHT, bottom), "#888");
    }
}

/// A round latency, such as 20 us.
fn unit_time(nanoseconds: f64) -> String {
    match nanoseconds {
        small if small < 1e3 => format!("{small:.0} ns"),
        small if small < 1e6 => format!("{:.0} us", small / 1e3),
        small if small < 1e9 => format!("{:.0} ms", small / 1e6),
        large => format!("{:.0} s", large / 1e9),
    }
}

/// A round number without what rounding leaves behind the point.
pub fn plain_number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}
