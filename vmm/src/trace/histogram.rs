//! Latencies of commands, in little memory.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Percentiles that are told, as they are called.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Values in nanoseconds: count, extremes and mean are exact, percentiles to two digits.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
    least: u64,
    most: u64,
    sum: u128,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            // Two digits are always allowed.
            histogram: Histogram::new(2).unwrap_or_else(|_| unreachable!("two digits")),
            least: u64::MAX,
            most: 0,
            sum: 0,
        }
    }
}

impl Latencies {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        // It grows as it needs to, to any value there is.
        let _ = self.histogram.record(value);
        self.least = self.least.min(value);
        self.most = self.most.max(value);
        self.sum += u128::from(value);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// All together.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The mean; 0 if there is none.
    #[allow(clippy::cast_precision_loss)] // a figure for people
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count().max(1) as f64
    }

    /// Minimum, the percentiles, and maximum, with their names.
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        let least = if self.count() == 0 { 0 } else { self.least };
        // What the histogram knows is the upper end of a class.
        let percentile = |(name, quantile)| {
            (
                name,
                self.histogram.value_at_quantile(quantile).min(self.most),
            )
        };
        let mut figures = vec![("min", least)];
        figures.extend(PERCENTILES.map(percentile));
        figures.push(("max", self.most));
        figures
    }

    /// The same as an object.
    pub fn json(&self) -> Value {
        let mut value = json!({ "mean": self.mean() });
        for (name, figure) in self.figures() {
            value[name] = figure.into();
        }
        value
    }
}
