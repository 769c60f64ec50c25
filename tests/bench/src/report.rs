//! What is printed: a table for people and the same as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::plan::{Contender, Place, Plan};
use crate::sample::Series;

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
        let rows = plan.contenders(place).into_iter().map(|contender| Row {
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

    /// The table, with ratios and counters behind it.
    pub fn table(&self, plan: &Plan) -> String {
        let mut text = format!(
            "\n{}: {} of {} bytes, thousand commands a second, median of {} rounds of {} ms \
             (slowest to fastest round as parts of it)\n",
            self.place, plan.rw, plan.block, plan.rounds, plan.ms
        );
        text += &header("", &plan.depths);
        for row in &self.rows {
            let cells = row.depths.iter().map(|series| {
                let (low, high) = series.spread();
                format!("{:.1} ({low:.2}-{high:.2})", series.iops() / 1000.0)
            });
            text += &line(&row.name, cells);
        }
        self.ratios(plan, &mut text);
        self.counters(plan, &mut text);
        text
    }

    fn ratios(&self, plan: &Plan, text: &mut String) {
        let is_host = |it| matches!(it, Contender::Host(_));
        let is_qemu = |it| matches!(it, Contender::Qemu { shadow: true, .. });
        let plain_qemu = |it| matches!(it, Contender::Qemu { shadow: false, .. });
        let berth =
            |own: bool| move |it| matches!(it, Contender::Berth { shadow, .. } if shadow == own);
        let mut ratio = |name: &str, own: bool, of: &dyn Fn(Contender) -> bool| {
            let cells: Option<Vec<String>> = (0..plan.depths.len())
                .map(|depth| {
                    let own = self.best(depth, berth(own))?;
                    Some(format!("{:.2}", own / self.best(depth, of)?))
                })
                .collect();
            if let Some(cells) = cells {
                *text += &line(name, cells.into_iter());
            }
        };
        ratio("berth / best host engine", true, &is_host);
        ratio("berth / best QEMU", true, &is_qemu);
        ratio("the same without shadow doorbells", false, &plain_qemu);
    }

    fn counters(&self, plan: &Plan, text: &mut String) {
        let names = [
            ("doorbell_exits", "exits for doorbells"),
            ("ioeventfd_wakeups", "ioeventfd wake-ups"),
            ("interrupts", "interrupts"),
            ("enters", "calls of the kernel for I/O"),
            ("sleeps", "sleeps of the I/O thread"),
            ("polled", "times it found work by looking"),
        ];
        for row in &self.rows {
            let read = |series: &Series| series.per_io(names[0].0).is_some();
            if !row.depths.iter().all(read) {
                continue;
            }
            *text += &header(&format!("{}, per command", row.name), &plan.depths);
            for (name, words) in names {
                let cell = |series: &Series| format!("{:.4}", series.per_io(name).unwrap_or(0.0));
                *text += &line(words, row.depths.iter().map(cell));
            }
        }
    }
}

fn header(name: &str, depths: &[u32]) -> String {
    line(name, depths.iter().map(|depth| format!("qd {depth}")))
}

fn line(name: &str, cells: impl Iterator<Item = String>) -> String {
    let mut text = format!("{name:<48}");
    for cell in cells {
        // Writing to a string does not fail.
        let _ = write!(text, "{cell:>20}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::sample::Sample;

    #[test]
    fn ratios_are_of_the_best() {
        let plan = Plan {
            depths: vec![32],
            rounds: 1,
            ..Plan::default()
        };
        let mut results = Results::new(&plan, Place::Tmpfs);
        for row in &mut results.rows {
            let (iops, per_io) = match row.contender {
                Contender::Berth {
                    shadow: true,
                    poll_us: 0,
                } => (300_000.0, BTreeMap::from([("doorbell_exits", 0.25)])),
                Contender::Berth { .. } => (100_000.0, BTreeMap::new()),
                Contender::Host("psync") => (600_000.0, BTreeMap::new()),
                Contender::Host(_) => (200_000.0, BTreeMap::new()),
                Contender::Qemu { shadow: false, .. } => (50_000.0, BTreeMap::new()),
                Contender::Qemu { ioeventfd, .. } => {
                    (if ioeventfd { 75_000.0 } else { 60_000.0 }, BTreeMap::new())
                }
            };
            row.depths[0].samples.push(Sample { iops, per_io });
        }
        let table = results.table(&plan);
        for (start, end) in [
            ("berth poll-us=0  ", "300.0 (1.00-1.00)"),
            ("berth / best host engine", "0.50"),
            ("berth / best QEMU", "4.00"),
            ("the same without shadow doorbells", "2.00"),
            ("exits for doorbells", "0.2500"),
        ] {
            let found = table
                .lines()
                .any(|line| line.starts_with(start) && line.ends_with(end));
            assert!(found, "{start} {end} in\n{table}");
        }
        assert_eq!(table.matches("per command").count(), 1, "{table}");
    }
}
