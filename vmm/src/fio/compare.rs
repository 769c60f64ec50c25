//! Two sets of runs side by side: what differs by how much, and whether that is more than chance.

use super::chart::Value;
use super::results::{Figures, PERCENTILES, Place, Results, Run};
use super::summary::{Cell, Source};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// I/Os a second, all directions together.
    Iops,
    /// Median latency, the worst direction's.
    Median,
    /// The 99th percentile of it.
    Tail,
    /// CPU time of berth's I/O threads for each command in ns.
    IoTime,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Iops, Self::Median, Self::Tail, Self::IoTime];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::Median => "latency, median",
            Self::Tail => "latency, 99 %",
            Self::IoTime => "I/O threads, CPU time per I/O",
        }
    }

    /// A value of it with its unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Iops => super::chart::short(value),
            _ => super::chart::time(value),
        }
    }

    /// Whether more of it is better.
    fn more_is_better(self) -> bool {
        self == Self::Iops
    }

    fn of(self, figures: &Figures) -> Option<f64> {
        let worst = |percent: f64| {
            let all = figures.directions();
            // Latencies are far below 2^52 ns.
            let all = all.filter_map(|(_, it)| Some(it.percentile(percent)? as f64));
            all.reduce(f64::max)
        };
        match self {
            Self::Iops => Some(figures.directions().map(|(_, it)| it.iops).sum()),
            Self::Median => worst(PERCENTILES[0]),
            Self::Tail => worst(PERCENTILES[2]),
            Self::IoTime => super::summary::per_command(figures, |cost| cost.io_time),
        }
    }

    /// How far a value may be off for the way it is counted, as a part of it.
    fn resolution(self) -> f64 {
        match self {
            // fio's bins of latency are up to 1/64 wide, and rounds that meet in one differ nevertheless.
            Self::Median | Self::Tail => 1.0 / 128.0,
            Self::Iops | Self::IoTime => 0.0,
        }
    }

    /// Second by second, where fio tells it so.
    fn seconds(self, figures: &Figures) -> Vec<f64> {
        if self != Self::Iops {
            return Vec::new();
        }
        let mut sum: Vec<f64> = Vec::new();
        for (_, direction) in figures.directions() {
            sum.resize(sum.len().max(direction.series.len()), 0.0);
            for (sum, second) in sum.iter_mut().zip(&direction.series) {
                *sum += second.iops;
            }
        }
        sum
    }
}

/// One metric of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Which.
    pub metric: Metric,
    /// As it was.
    pub old: Value,
    /// As it is.
    pub new: Value,
    /// How much more it is now, in percent.
    pub percent: f64,
    /// How far that may be off by chance (one standard deviation), in percent points, and how it is
    /// known of the old and of the new.
    pub spread: Option<(f64, [Source; 2])>,
}

/// What to think of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Better by more than two standard deviations.
    Better,
    /// Worse by as much.
    Worse,
    /// Not more than chance.
    Same,
    /// Nobody knows, for there is one figure only.
    Unknown,
}

impl Verdict {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "within the spread",
            Self::Unknown => "",
        }
    }
}

impl Difference {
    /// What to think of it.
    pub fn verdict(&self) -> Verdict {
        match self.spread {
            None => Verdict::Unknown,
            Some((spread, _)) if self.percent.abs() <= 2.0 * spread => Verdict::Same,
            Some(_) if (self.percent > 0.0) == self.metric.more_is_better() => Verdict::Better,
            Some(_) => Verdict::Worse,
        }
    }

    /// `+12.3 % ± 1.5`.
    pub fn text(&self) -> String {
        match self.spread {
            Some((spread, _)) => format!("{:+.1} % ± {spread:.1}", self.percent),
            None => format!("{:+.1} %", self.percent),
        }
    }
}

/// A job in both.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Setting, file, job and depth.
    pub title: String,
    /// What both have figures of.
    pub differences: Vec<Difference>,
}

/// Two sets of runs side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What the old one is called.
    pub old: String,
    /// What the new one is called.
    pub new: String,
    /// Jobs in both.
    pub pairs: Vec<Pair>,
    /// Jobs in the old one alone.
    pub only_old: Vec<String>,
    /// Jobs in the new one alone.
    pub only_new: Vec<String>,
}

/// The results beside older ones. Runs are matched by setting, job and depth; where each has only one
/// machine, the machines' names do not matter.
pub fn with_old(old: &Results, new: &Results) -> Comparison {
    let single = |results: &Results| {
        let guests = results
            .settings
            .iter()
            .filter(|it| it.place == Place::Guest);
        let names: Vec<String> = guests.map(|it| it.name.clone()).collect();
        <[String; 1]>::try_from(names).ok().map(|[name]| name)
    };
    let (one, other) = (single(old), single(new));
    let name = |run: &Run| match (&one, &other) {
        (Some(one), Some(other)) if run.setting == *one || run.setting == *other => String::new(),
        _ => run.setting.clone(),
    };
    // What it is to be called if both are called the same.
    let (old_name, new_name) = if old.name == new.name {
        (format!("{} (old)", old.name), format!("{} (new)", new.name))
    } else {
        (old.name.clone(), new.name.clone())
    };
    compare((&old_name, cells_of(old)), (&new_name, cells_of(new)), name)
}

/// Each setting of the results beside the first one.
pub fn settings(results: &Results) -> Vec<Comparison> {
    let of = |name: &str| {
        let runs = results.runs.iter().filter(|run| run.setting == name);
        cells(runs.collect())
    };
    let Some((first, others)) = results.settings.split_first() else {
        return Vec::new();
    };
    let beside = |other: &super::results::Setting| {
        compare(
            (&first.name, of(&first.name)),
            (&other.name, of(&other.name)),
            |_| String::new(),
        )
    };
    let all = others.iter().map(beside);
    all.filter(|comparison| !comparison.pairs.is_empty())
        .collect()
}

fn cells_of(results: &Results) -> Vec<Cell<'_>> {
    cells(results.runs.iter().collect())
}

/// Rounds of the same job in the same setting together.
fn cells(runs: Vec<&Run>) -> Vec<Cell<'_>> {
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for run in runs.into_iter().filter(|run| run.figures().is_some()) {
        let same = |cell: &&mut Cell<'_>| {
            let other = cell.rounds[0];
            (&other.setting, other.title(), other.depth) == (&run.setting, run.title(), run.depth)
        };
        match cells.iter_mut().find(same) {
            Some(cell) => cell.rounds.push(run),
            None => cells.push(Cell { rounds: vec![run] }),
        }
    }
    cells
}

fn compare(
    (old_name, old): (&str, Vec<Cell<'_>>),
    (new_name, new): (&str, Vec<Cell<'_>>),
    setting: impl Fn(&Run) -> String,
) -> Comparison {
    let title = |cell: &Cell<'_>| {
        let run = cell.rounds[0];
        let setting = setting(run);
        let job = format!("{}, depth {}", run.title(), run.depth);
        if setting.is_empty() {
            job
        } else {
            format!("{setting}: {job}")
        }
    };
    let mut comparison = Comparison {
        old: old_name.to_owned(),
        new: new_name.to_owned(),
        pairs: Vec::new(),
        only_old: Vec::new(),
        only_new: Vec::new(),
    };
    for cell in &new {
        let name = title(cell);
        match old.iter().find(|other| title(other) == name) {
            Some(other) => comparison.pairs.push(Pair {
                title: name,
                differences: differences(other, cell),
            }),
            None => comparison.only_new.push(name),
        }
    }
    let missing = old.iter().map(title);
    let missing = missing.filter(|name| comparison.pairs.iter().all(|pair| pair.title != *name));
    comparison.only_old = missing.collect();
    comparison
}

fn differences(old: &Cell<'_>, new: &Cell<'_>) -> Vec<Difference> {
    let difference = |metric: Metric| {
        let of = |figures: &Figures| metric.of(figures);
        let (before, now) = (old.value(of)?, new.value(of)?);
        if before.value == 0.0 {
            return None;
        }
        let ratio = now.value / before.value;
        let spread = |cell: &Cell<'_>| {
            let (spread, source) = cell.spread(of, |figures| metric.seconds(figures))?;
            Some((spread.max(metric.resolution()), source))
        };
        // Of a ratio, the relative deviations add by their squares.
        let spread = spread(old)
            .zip(spread(new))
            .map(|((a, first), (b, second))| (ratio * a.hypot(b) * 100.0, [first, second]));
        Some(Difference {
            metric,
            old: before,
            new: now,
            percent: (ratio - 1.0) * 100.0,
            spread,
        })
    };
    Metric::ALL.into_iter().filter_map(difference).collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::Outcome;
    use super::super::samples;
    use super::*;

    fn of<'a>(comparison: &'a Comparison, title: &str) -> &'a Difference {
        let pair = comparison.pairs.iter().find(|pair| pair.title == title);
        let pair = pair.unwrap_or_else(|| panic!("{title} in {comparison:?}"));
        &pair.differences[0]
    }

    #[test]
    fn settings_are_compared_with_the_first() {
        let all = settings(&samples::results());
        let names: Vec<_> = all
            .iter()
            .map(|it| (it.old.as_str(), it.new.as_str()))
            .collect();
        assert_eq!(names, [("poll-us=0", "<poll>"), ("poll-us=0", "host")]);
        let iops = of(&all[0], "load/qd1, depth 1");
        assert!((iops.percent - 50.0).abs() < 1e-6);
        let (spread, source) = iops.spread.unwrap();
        assert_eq!(source, [Source::TwoRounds; 2]);
        // Both vary by 12.86 %.
        assert!(
            (spread - 1.5 * 12.856 * 2f64.sqrt()).abs() < 0.01,
            "{spread}"
        );
        assert_eq!(iops.verdict(), Verdict::Same, "50 is less than twice 27.3");
        let mixed = of(&all[0], "load/mixed, depth 16");
        assert_eq!(mixed.spread.unwrap().1, [Source::Seconds; 2]);
        assert_eq!(mixed.verdict(), Verdict::Better);
        assert!(mixed.text().starts_with("+50.0 % ± 0."), "{}", mixed.text());
        // One round has no spread of its percentiles.
        let pair = all[0]
            .pairs
            .iter()
            .find(|pair| pair.title.contains("mixed"))
            .unwrap();
        assert_eq!(pair.differences[2].verdict(), Verdict::Unknown);
        assert_eq!(pair.differences[2].text(), "+0.0 %");
        assert_eq!(pair.differences.len(), 4);
        assert_eq!(
            all[1].pairs[0].differences.len(),
            3,
            "no berth, no I/O threads"
        );
    }

    #[test]
    fn less_latency_is_better() {
        let (old, mut new) = (samples::results(), samples::results());
        for run in &mut new.runs {
            if let Outcome::Done(figures) = &mut run.outcome {
                for direction in [&mut figures.read, &mut figures.write]
                    .into_iter()
                    .flatten()
                {
                    direction.percentiles[0].1 /= 2;
                }
            }
        }
        let comparison = with_old(&old, &new);
        assert_eq!(
            (comparison.old.as_str(), comparison.new.as_str()),
            ("a & b (old)", "a & b (new)")
        );
        let pair = &comparison.pairs[0];
        assert_eq!(pair.title, "poll-us=0: load/qd1, depth 1");
        assert_eq!(pair.differences[1].verdict(), Verdict::Better);
        assert_eq!(pair.differences[0].verdict(), Verdict::Same);
        assert!(comparison.only_old.is_empty() && comparison.only_new.is_empty());
    }

    #[test]
    fn the_next_bin_of_latency_is_no_difference() {
        let (old, mut new) = (samples::results(), samples::results());
        let mut verdict = |part: u64| {
            for run in &mut new.runs {
                if let Outcome::Done(figures) = &mut run.outcome {
                    let read = figures.read.as_mut().unwrap();
                    read.percentiles[0].1 = 20_000 + 20_000 / part;
                }
            }
            with_old(&old, &new).pairs[0].differences[1].verdict()
        };
        // Both rounds of both are in one bin each, so that they do not differ at all.
        assert_eq!(verdict(64), Verdict::Same);
        assert_eq!(verdict(32), Verdict::Worse);
    }

    #[test]
    fn what_has_no_partner_is_listed() {
        let (mut old, mut new) = (samples::results(), samples::results());
        old.runs.retain(|run| run.job != "qd1");
        new.runs
            .retain(|run| run.job != "mixed" || run.setting == "host");
        let comparison = with_old(&old, &new);
        assert_eq!(
            comparison.only_old,
            [
                "poll-us=0: load/mixed, depth 16",
                "<poll>: load/mixed, depth 16"
            ]
        );
        assert_eq!(comparison.only_new.len(), 3, "{:?}", comparison.only_new);
    }

    #[test]
    fn single_machines_are_matched_whatever_their_names() {
        let only = |keep: &str| {
            let mut results = samples::results();
            results
                .settings
                .retain(|it| it.name == keep || it.name == "host");
            results
                .runs
                .retain(|it| it.setting == keep || it.setting == "host");
            results
        };
        let comparison = with_old(&only("poll-us=0"), &only("<poll>"));
        assert!((of(&comparison, "load/qd32, depth 32").percent - 50.0).abs() < 1e-6);
        assert!(of(&comparison, "host: load/qd32, depth 32").percent.abs() < 1e-6);
    }
}
