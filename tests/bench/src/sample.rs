//! Measured figures: one sample, and many of the same thing.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cpu::CpuTime;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Commands a second.
    pub iops: f64,
    /// Counters, each per command.
    pub per_io: BTreeMap<&'static str, f64>,
}

impl Sample {
    /// Without counters.
    pub fn new(iops: f64) -> Self {
        Self {
            iops,
            per_io: BTreeMap::new(),
        }
    }

    /// Adds the CPU time between two looks, in which `commands` commands were done.
    pub fn add_cpu(&mut self, before: CpuTime, after: CpuTime, commands: f64) {
        let all = after.all - before.all;
        // The kernel corrects the ticks of user and system time, but not those of guest mode.
        let guest = (after.guest - before.guest).min(all);
        self.per_io.insert("cpu_us", all / commands);
        self.per_io.insert("guest_cpu_us", guest / commands);
    }
}

/// The same measurement of all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// In the order of the rounds.
    pub samples: Vec<Sample>,
}

impl Series {
    /// Commands a second: the median of all rounds.
    pub fn iops(&self) -> f64 {
        median(self.samples.iter().map(|sample| sample.iops))
    }

    /// Slowest and fastest round, as parts of the median.
    pub fn spread(&self) -> (f64, f64) {
        let iops = self.samples.iter().map(|sample| sample.iops);
        let low = iops.clone().fold(f64::INFINITY, f64::min);
        let high = iops.fold(0.0, f64::max);
        (low / self.iops(), high / self.iops())
    }

    /// Median of a counter per command, if it was read.
    pub fn per_io(&self, counter: &str) -> Option<f64> {
        let values: Vec<f64> = self
            .samples
            .iter()
            .filter_map(|sample| sample.per_io.get(counter).copied())
            .collect();
        (!values.is_empty()).then(|| median(values.into_iter()))
    }

    /// Mean latency in microseconds with `out` commands out at a time, by Little's law.
    pub fn latency(&self, out: u32) -> f64 {
        f64::from(out) * 1e6 / self.iops()
    }
}

/// The middle one, or the middle between two; NaN if there is none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(iops: &[f64]) -> Series {
        let sample = |iops: &f64| Sample {
            iops: *iops,
            per_io: BTreeMap::from([("exits", iops / 100.0)]),
        };
        Series {
            samples: iops.iter().map(sample).collect(),
        }
    }

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn medians_ignore_one_bad_round() {
        let three = series(&[100.0, 900.0, 200.0]);
        assert_eq!(three.iops(), 200.0);
        assert_eq!(three.spread(), (0.5, 4.5));
        assert_eq!(three.per_io("exits"), Some(2.0));
        assert_eq!(three.per_io("entries"), None);
        assert_eq!(three.latency(2), 10_000.0);
        assert_eq!(series(&[100.0, 300.0]).iops(), 200.0);
        assert!(series(&[]).iops().is_nan());
    }
}
