//! What is printed: tables for people, and the same as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::contender::Contender;
use crate::plan::{Place, Plan};
use crate::sample::Series;

/// Width of the names of rows.
const NAME: usize = 30;
/// Width of a cell of figures, counters and ratios.
const FIGURES: usize = 20;
const COUNTER: usize = 11;

/// The counters, all per command, and what they are called.
const COUNTERS: [(&str, &str); 10] = [
    ("doorbells", "doorbells rung by the guest"),
    ("doorbell_exits", "doorbell exits to user space"),
    ("ioeventfd_wakeups", "ioeventfd wake-ups"),
    ("interrupts", "interrupts"),
    ("enters", "io_uring_enter calls"),
    ("inline", "transfers by the I/O thread"),
    ("sleeps", "sleeps of I/O threads"),
    ("polled", "work found by polling"),
    ("cpu_us", "CPU microseconds"),
    ("guest_cpu_us", "of them in guest mode"),
];

/// One contender's figures in one place.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    #[serde(skip)]
    pub contender: Contender,
    /// A series for each depth of the plan.
    pub depths: Vec<Series>,
}

/// berth's speed as a part of another's.
#[derive(Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// What is divided by what.
    pub name: &'static str,
    /// One for each depth of the plan.
    pub depths: Vec<f64>,
}

/// All figures of one place.
#[derive(Debug, Serialize)]
pub struct Results {
    /// `tmpfs`, `disk`, `memory` or `null`.
    pub place: String,
    /// In the order of a round.
    pub rows: Vec<Row>,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(plan: &Plan, place: Place) -> Self {
        let all = Contender::all(plan, place).into_iter();
        let rows = all.map(|contender| Row {
            name: contender.to_string(),
            contender,
            depths: vec![
                Series {
                    samples: Vec::new()
                };
                plan.depths.len()
            ],
        });
        Self {
            place: place.to_string(),
            rows: rows.collect(),
        }
    }

    /// The best median of those that `which` names, at one depth.
    fn best(&self, depth: usize, which: impl Fn(Contender) -> bool) -> Option<f64> {
        let rows = self.rows.iter().filter(|row| which(row.contender));
        rows.map(|row| row.depths[depth].iops()).reduce(f64::max)
    }

    /// berth as its users get it beside the best of each kind of contender that there is.
    pub fn ratios(&self, plan: &Plan) -> Vec<Ratio> {
        use Contender::{Host, Memcpy, QemuNvme, QemuVirtio};
        const DEFAULT: Contender = Contender::DEFAULT;
        const PLAIN: Contender = Contender::PLAIN;
        type Kind = fn(Contender) -> bool;
        let all: [(&str, Contender, Kind); 5] = [
            ("berth / best host engine", DEFAULT, |it| {
                matches!(it, Host(_))
            }),
            ("berth / best QEMU nvme", DEFAULT, |it| {
                matches!(it, QemuNvme { shadow: true, .. })
            }),
            ("berth / best QEMU virtio-blk", DEFAULT, |it| {
                matches!(it, QemuVirtio { .. })
            }),
            ("berth / QEMU nvme, no shadow", PLAIN, |it| {
                matches!(it, QemuNvme { shadow: false, .. })
            }),
            ("berth / host memcpy", DEFAULT, |it| it == Memcpy),
        ];
        let ratio = |(name, own, kind): (&'static str, Contender, Kind)| {
            let depths = (0..plan.depths.len()).map(|depth| {
                let own = self.best(depth, |it| it == own)?;
                Some(own / self.best(depth, kind)?)
            });
            let depths = depths.collect::<Option<_>>()?;
            Some(Ratio { name, depths })
        };
        all.into_iter().filter_map(ratio).collect()
    }

    /// The figures, with ratios and counters behind them.
    pub fn table(&self, plan: &Plan) -> String {
        let mut text = format!(
            "\n{}: {}\nthousand commands a second, GB/s, slowest-fastest round in %; rounds={} ms={}\n\n",
            self.place,
            plan.load(),
            plan.rounds,
            plan.ms
        );
        text += &header("", FIGURES, &plan.depths);
        for row in &self.rows {
            let cells = row.depths.iter();
            let cells = cells.map(|series| figures(series, plan.block));
            text += &line(&row.name, FIGURES, cells);
        }
        let ratios = self.ratios(plan);
        if !ratios.is_empty() {
            text.push('\n');
            text += &header("ratio", FIGURES, &plan.depths);
        }
        for ratio in ratios {
            let cells = ratio.depths.iter();
            // Under the first figure of the cells above.
            let cells = cells.map(|it| format!("{it:.2}{:14}", ""));
            text += &line(ratio.name, FIGURES, cells);
        }
        for (counter, words) in COUNTERS {
            self.counter(counter, words, plan, &mut text);
        }
        text
    }

    /// One counter of all who have it.
    fn counter(&self, counter: &str, words: &str, plan: &Plan, text: &mut String) {
        let rows: Vec<(&str, Vec<f64>)> = self
            .rows
            .iter()
            .filter_map(|row| {
                let values = row.depths.iter().map(|series| series.per_io(counter));
                Some((row.name.as_str(), values.collect::<Option<_>>()?))
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        // Writing to a string does not fail.
        let _ = write!(text, "\n{words}, per command");
        if rows
            .iter()
            .all(|(_, values)| values.iter().all(|it| *it == 0.0))
        {
            text.push_str(": none\n");
            return;
        }
        text.push('\n');
        *text += &header("", COUNTER, &plan.depths);
        for (name, values) in rows {
            let cells = values.iter().map(|it| count(*it));
            *text += &line(name, COUNTER, cells);
        }
    }
}

/// Thousand commands a second, GB/s and spread, in [`FIGURES`] columns less a gap.
fn figures(series: &Series, block: u64) -> String {
    // A block is far smaller than 2^32 bytes.
    let bytes = f64::from(u32::try_from(block).unwrap_or(u32::MAX));
    let (low, high) = series.spread();
    let spread = if series.samples.len() == 1 {
        String::new()
    } else {
        format!("{:.0}-{:.0}", low * 100.0, high * 100.0)
    };
    format!(
        "{} {} {spread:>7}",
        short(series.iops() / 1e3),
        short(series.iops() * bytes / 1e9)
    )
}

/// Three digits or more, in five columns.
fn short(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:5.2}"),
        value if value < 100.0 => format!("{value:5.1}"),
        value => format!("{value:5.0}"),
    }
}

/// A counter per command, which may be far below one.
fn count(value: f64) -> String {
    let digits = match value {
        value if value < 1.0 => 4,
        value if value < 100.0 => 2,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn header(name: &str, width: usize, depths: &[u32]) -> String {
    let cells = depths.iter();
    line(
        name,
        width,
        cells.map(|depth| {
            let word = format!("qd {depth}");
            // Over the first figure of wide cells.
            if width == FIGURES {
                format!("{word:<19}")
            } else {
                word
            }
        }),
    )
}

fn line(name: &str, width: usize, cells: impl Iterator<Item = String>) -> String {
    let mut text = format!("{name:<NAME$}");
    for cell in cells {
        // Writing to a string does not fail.
        let _ = write!(text, "{cell:>width$}");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    /// Figures that differ for each kind of contender.
    fn results(plan: &Plan, place: Place) -> Results {
        let mut results = Results::new(plan, place);
        for row in &mut results.rows {
            let iops = match row.contender {
                Contender::DEFAULT => 300_000.0,
                // Faster than the default, which must not show in ratios.
                Contender::Berth { shadow: true, .. } => 450_000.0,
                Contender::Berth { .. } => 100_000.0,
                Contender::Host("psync") => 600_000.0,
                Contender::Host(_) | Contender::HostBatch(_) => 200_000.0,
                Contender::Memcpy => 1_200_000.0,
                Contender::QemuNvme { shadow: false, .. } => 50_000.0,
                Contender::QemuNvme { ioeventfd, .. } => {
                    if ioeventfd {
                        75_000.0
                    } else {
                        60_000.0
                    }
                }
                Contender::QemuVirtio { aio } => {
                    if aio == "io_uring" {
                        100_000.0
                    } else {
                        90_000.0
                    }
                }
            };
            let mut sample = Sample::new(iops);
            if row.contender == Contender::DEFAULT {
                sample.per_io.insert("doorbell_exits", 0.25);
                sample.per_io.insert("interrupts", 0.0);
            }
            for series in &mut row.depths {
                series.samples.push(sample.clone());
            }
        }
        results
    }

    fn plan() -> Plan {
        Plan {
            depths: vec![32],
            rounds: 1,
            ..Plan::default()
        }
    }

    fn assert_lines(table: &str, lines: &[&[&str]]) {
        for words in lines {
            let found = table
                .lines()
                .any(|line| line.split_whitespace().eq(words.iter().copied()));
            assert!(found, "{words:?} in\n{table}");
        }
    }

    #[test]
    fn ratios_are_of_berths_default_and_the_best_of_others() {
        let plan = plan();
        let table = results(&plan, Place::Tmpfs).table(&plan);
        assert_lines(
            &table,
            &[
                &["berth", "300", "1.23"],
                &["berth", "/", "best", "host", "engine", "0.50"],
                &["berth", "/", "best", "QEMU", "nvme", "4.00"],
                &["berth", "/", "best", "QEMU", "virtio-blk", "3.00"],
                &["berth", "/", "QEMU", "nvme,", "no", "shadow", "2.00"],
                &["berth", "0.2500"],
                &["interrupts,", "per", "command:", "none"],
            ],
        );
        assert_eq!(table.matches("per command").count(), 2, "{table}");
    }

    #[test]
    fn memory_is_compared_with_memcpy_alone() {
        let plan = plan();
        let ratios = results(&plan, Place::Memory).ratios(&plan);
        let expected = Ratio {
            name: "berth / host memcpy",
            depths: vec![0.25],
        };
        assert_eq!(ratios, [expected]);
        assert_eq!(results(&plan, Place::Null).ratios(&plan), []);
    }

    #[test]
    fn six_depths_fit_and_nothing_runs_together() {
        let plan = Plan {
            block: 128 << 10,
            poll_us: Some(1000),
            ..Plan::default()
        };
        let mut results = results(&plan, Place::Disk);
        for row in &mut results.rows {
            assert!(row.name.len() < NAME, "{}", row.name);
            for series in &mut row.depths {
                for iops in [10_000.0, 12_345_678.0] {
                    series.samples.push(Sample::new(iops));
                }
            }
        }
        let table = results.table(&plan);
        let widest = table.lines().map(str::len).max().unwrap();
        assert!(widest <= 160, "{widest} columns\n{table}");
        let row = table.lines().find(|it| it.starts_with("berth  ")).unwrap();
        assert_eq!(row.split_whitespace().count(), 1 + 6 * 3, "{row}");
    }
}
