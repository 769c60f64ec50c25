//! Axes: what they count, where their ticks are, and what these are called.

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Whatever has no unit: I/Os a second, events.
    Count,
    /// Bytes a second.
    Bandwidth,
    /// Nanoseconds.
    Time,
    /// Percent.
    Percent,
}

/// How a value becomes a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// From 0.
    Linear,
    /// By its logarithm; values must be positive.
    Log,
}

/// An axis before it knows its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    title: String,
    unit: Unit,
    kind: Kind,
    /// Ticks that it is to have instead of round ones.
    ticks: Vec<u32>,
}

impl Axis {
    /// From 0.
    pub fn linear(title: &str, unit: Unit) -> Self {
        Self {
            title: title.to_owned(),
            unit,
            kind: Kind::Linear,
            ticks: Vec::new(),
        }
    }

    /// Equal ratios are equally far apart.
    pub fn log(title: &str, unit: Unit) -> Self {
        Self {
            kind: Kind::Log,
            ..Self::linear(title, unit)
        }
    }

    /// Queue depth: logarithmic, with a tick for each of `depths`.
    pub fn depth(depths: &[u32]) -> Self {
        Self {
            ticks: depths.to_vec(),
            ..Self::log("queue depth (I/Os out at a time)", Unit::Count)
        }
    }

    /// What is written along it.
    pub fn label(&self, range: &Range) -> String {
        if range.has_own_units() {
            return self.title.clone();
        }
        match range.divisor().1 {
            "" => self.title.clone(),
            unit => format!("{}, {unit}", self.title),
        }
    }

    /// A value with its unit, for people.
    pub fn label_of(&self, value: f64) -> String {
        match self.unit {
            Unit::Count => short(value),
            Unit::Percent => format!("{} %", short(value)),
            Unit::Bandwidth => format!("{} MB/s", short(value / 1e6)),
            Unit::Time => time(value),
        }
    }

    /// With a range that holds `values`; those that have no place are left out.
    pub fn range(&self, values: impl Iterator<Item = f64>) -> Range {
        let fits = |value: &f64| value.is_finite() && (self.kind == Kind::Linear || *value > 0.0);
        let values = values.chain(self.ticks.iter().map(|tick| f64::from(*tick)));
        let (low, high) = values
            .filter(fits)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let mut range = match self.kind {
            Kind::Linear => linear(low.min(0.0), high.max(0.0)),
            Kind::Log if low > high => log(1.0, 10.0),
            Kind::Log => log(low, high),
        };
        range.unit = self.unit;
        if !self.ticks.is_empty() {
            range.ticks = self.ticks.iter().map(|tick| f64::from(*tick)).collect();
            // Room for the marks at both ends.
            (range.low, range.high) = (low / 1.15, high * 1.15);
        }
        range
    }
}

/// An axis with its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Range {
    low: f64,
    high: f64,
    kind: Kind,
    unit: Unit,
    ticks: Vec<f64>,
}

impl Range {
    /// Where the ticks are.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        self.ticks.iter().copied()
    }

    /// Whether the value has a place on it.
    pub fn has(&self, value: f64) -> bool {
        value.is_finite() && (self.kind == Kind::Linear || value > 0.0)
    }

    /// Where a value is between `from`, where the axis begins, and `to`, where it ends.
    pub fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        let part = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            Kind::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        from + part.clamp(0.0, 1.0) * (to - from)
    }

    /// A tick's label.
    pub fn label(&self, tick: f64) -> String {
        if self.has_own_units() {
            return time(tick);
        }
        let value = tick / self.divisor().0;
        if self.unit == Unit::Count && value.abs() >= 1000.0 {
            return short(value);
        }
        let mut text = format!("{value:.3}");
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        if text == "-0" { "0".into() } else { text }
    }

    /// Whether values are drawn by their logarithm.
    pub fn is_log(&self) -> bool {
        self.kind == Kind::Log
    }

    /// Whether each label has a unit: no one suits both microseconds and seconds.
    fn has_own_units(&self) -> bool {
        self.is_log() && self.unit == Unit::Time
    }

    /// What values are divided by, and what they then count.
    fn divisor(&self) -> (f64, &'static str) {
        let top = self.high.abs().max(self.low.abs());
        match self.unit {
            Unit::Count => (1.0, ""),
            Unit::Percent => (1.0, "%"),
            Unit::Bandwidth if top >= 2e9 => (1e9, "GB/s"),
            Unit::Bandwidth => (1e6, "MB/s"),
            Unit::Time if top >= 2e9 => (1e9, "s"),
            Unit::Time if top >= 2e6 => (1e6, "ms"),
            Unit::Time => (1e3, "µs"),
        }
    }
}

/// A time in ns with the unit that suits it.
pub fn time(nanoseconds: f64) -> String {
    let (divisor, unit) = match nanoseconds.abs() {
        value if value >= 999.5e6 => (1e9, "s"),
        value if value >= 999.5e3 => (1e6, "ms"),
        value if value >= 999.5 => (1e3, "µs"),
        _ => (1.0, "ns"),
    };
    format!("{} {unit}", short(nanoseconds / divisor))
}

/// Three digits with k, M or G.
pub fn short(value: f64) -> String {
    let (divisor, suffix) = match value.abs() {
        value if value >= 999.5e6 => (1e9, "G"),
        value if value >= 999.5e3 => (1e6, "M"),
        value if value >= 999.5 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let value = value / divisor;
    let digits = match value.abs() {
        value if value >= 99.95 || value == 0.0 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + suffix
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `value`, a positive number.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    // A little less, or 1.0000000001 would become 2.
    let found = steps
        .into_iter()
        .find(|step| step * power >= value * 0.999_999);
    found.unwrap_or(10.0) * power
}

fn linear(low: f64, high: f64) -> Range {
    let (low, high) = if high > low { (low, high) } else { (0.0, 1.0) };
    let step = round_up((high - low) / 5.0);
    let (first, last) = ((low / step).floor(), (high / step * 0.999_999).ceil());
    let mut ticks = Vec::new();
    let mut at = first;
    while at <= last {
        ticks.push(at * step);
        at += 1.0;
    }
    Range {
        low: first * step,
        high: last * step,
        kind: Kind::Linear,
        unit: Unit::Count,
        ticks,
    }
}

fn log(low: f64, high: f64) -> Range {
    let bottom = {
        let up = round_up(low);
        // The next one below, unless it is one itself.
        if up > low * 1.000_001 {
            round_up(up / 2.6)
        } else {
            up
        }
    };
    let mut top = round_up(high);
    if top <= bottom * 1.000_001 {
        top = round_up(bottom * 1.5);
    }
    let decades = (top / bottom).log10();
    let mut ticks = Vec::new();
    let mut tick = bottom;
    while tick <= top * 1.000_001 {
        let power = 10f64.powf((tick * 1.000_001).log10().floor());
        let lead = (tick / power).round();
        if decades <= 2.5 || (lead - 1.0).abs() < 0.1 {
            ticks.push(tick);
        }
        tick = round_up(tick * 1.5);
    }
    Range {
        low: bottom,
        high: top,
        kind: Kind::Log,
        unit: Unit::Count,
        ticks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, values: &[f64]) -> Vec<String> {
        let range = axis.range(values.iter().copied());
        for value in values.iter().filter(|value| range.has(**value)) {
            assert!(
                (range.low..=range.high).contains(value),
                "{value} in {range:?}"
            );
        }
        range.ticks().map(|tick| range.label(tick)).collect()
    }

    #[test]
    fn linear_axes_begin_at_0_and_have_round_ticks() {
        let axis = Axis::linear("I/Os a second", Unit::Count);
        assert_eq!(
            labels(&axis, &[120.0, 860.0]),
            ["0", "200", "400", "600", "800", "1k"]
        );
        assert_eq!(labels(&axis, &[0.37]), ["0", "0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(
            labels(&axis, &[250_000.0]),
            ["0", "50k", "100k", "150k", "200k", "250k"]
        );
        assert_eq!(labels(&axis, &[]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(
            labels(&axis, &[-30.0, 10.0, f64::NAN]),
            ["-30", "-20", "-10", "0", "10"]
        );
    }

    #[test]
    fn log_axes_hold_what_is_positive() {
        let axis = Axis::log("latency", Unit::Time);
        let found = labels(&axis, &[0.0, 12_000.0, 900_000.0, f64::INFINITY]);
        let expected = [
            "10 µs", "20 µs", "50 µs", "100 µs", "200 µs", "500 µs", "1 ms",
        ];
        assert_eq!(found, expected);
        let wide = labels(&axis, &[900.0, 7e8]);
        let expected = ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"];
        assert_eq!(wide, expected);
        assert_eq!(
            labels(&axis, &[5000.0]).len(),
            2,
            "one value has a range, too"
        );
        assert_eq!(axis.label(&axis.range([9e5].into_iter())), "latency");
        let linear = Axis::linear("latency", Unit::Time);
        assert_eq!(
            linear.label(&linear.range([9e5].into_iter())),
            "latency, µs"
        );
        assert!(!axis.range([1.0].into_iter()).has(0.0));
    }

    #[test]
    fn depths_are_where_they_are() {
        let axis = Axis::depth(&[1, 4, 16]);
        let range = axis.range([].into_iter());
        let place = |value| range.place(value, 0.0, 1.0);
        assert!((place(4.0) - 0.5).abs() < 1e-9);
        assert!(place(1.0) > 0.02 && place(16.0) < 0.98);
        assert_eq!(labels(&axis, &[4.0]), ["1", "4", "16"]);
    }

    #[test]
    fn short_numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.254, "0.25"),
            (7.0, "7"),
            (999.4, "999"),
            (999.6, "1k"),
            (12_340.0, "12.3k"),
            (651_000.0, "651k"),
            (1_485_000.0, "1.49M"),
            (-5.25, "-5.25"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
