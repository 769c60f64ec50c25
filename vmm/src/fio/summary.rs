//! What tables and pictures show of the runs: rounds of one job together, and depths of one load.

use std::collections::BTreeSet;

use super::chart::Value;
use super::job::direction;
use super::results::{Direction, Figures, Results, Run, load_options};

/// All rounds of a job in one setting.
#[derive(Debug, Clone)]
pub struct Cell<'a> {
    /// Its rounds that went well; at least one.
    pub rounds: Vec<&'a Run>,
}

/// A job at one depth, in all settings that have figures of it.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// I/Os out at a time.
    pub depth: u32,
    /// File and job.
    pub title: String,
    /// A cell for each setting of the results, in order.
    pub cells: Vec<Option<Cell<'a>>>,
}

/// Jobs that differ in depth alone, in one direction of their I/Os.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    /// For people, unique among the loads.
    pub title: String,
    /// fio's name of the direction.
    pub direction: &'static str,
    /// By depth, ascending; at least one.
    pub rows: Vec<Row<'a>>,
}

/// Where the spread of a value is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From several rounds.
    Rounds,
    /// From the seconds of one round.
    Seconds,
}

impl Source {
    /// In a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::Rounds => "between rounds",
            Self::Seconds => "between seconds of a round",
        }
    }
}

impl Row<'_> {
    /// Options of its jobs, `bs=4k iodepth=32`.
    pub fn options(&self) -> String {
        let mut runs = self.cells.iter().flatten().flat_map(|cell| &cell.rounds);
        let options = runs.next().into_iter().flat_map(|run| &run.options);
        let words = options.map(|(key, value)| match value.as_str() {
            "" => key.clone(),
            value => format!("{key}={value}"),
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

impl Cell<'_> {
    /// The median of a figure, and its limits if there were several rounds. `None` if a round lacks it.
    pub fn value(&self, of: impl Fn(&Figures) -> Option<f64>) -> Option<Value> {
        let values = self.values(&of)?;
        Some(Value {
            value: median(&values)?,
            limits: limits(&values),
        })
    }

    fn values(&self, of: &impl Fn(&Figures) -> Option<f64>) -> Option<Vec<f64>> {
        let figures = self.rounds.iter().filter_map(|run| run.figures());
        figures.map(of).collect()
    }

    /// How far a figure is spread around its mean, as a part of it: the standard deviation of rounds,
    /// or else of the seconds of the one round, if `seconds` knows it second by second.
    pub fn spread(
        &self,
        of: impl Fn(&Figures) -> Option<f64>,
        seconds: impl Fn(&Figures) -> Vec<f64>,
    ) -> Option<(f64, Source)> {
        let values = self.values(&of)?;
        if let Some(spread) = relative_deviation(&values) {
            return Some((spread, Source::Rounds));
        }
        let figures = self.rounds.first()?.figures()?;
        let spread = relative_deviation(&seconds(figures))?;
        Some((spread, Source::Seconds))
    }
}

/// The middle one, or the mean of both; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(*upper);
    }
    Some(f64::midpoint(values[middle - 1], *upper))
}

fn limits(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let low = values.iter().copied().reduce(f64::min)?;
    let high = values.iter().copied().reduce(f64::max)?;
    Some((low, high))
}

/// The standard deviation of a sample as a part of its mean.
fn relative_deviation(values: &[f64]) -> Option<f64> {
    let count = f64::from(u32::try_from(values.len()).ok()?);
    if count < 2.0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares = values.iter().map(|value| (value - mean).powi(2));
    let deviation = (squares.sum::<f64>() / (count - 1.0)).sqrt();
    (mean > 0.0).then(|| deviation / mean)
}

/// The loads of all runs that went well, in the order in which they ran.
pub fn loads(results: &Results) -> Vec<Load<'_>> {
    let done: Vec<&Run> = results
        .runs
        .iter()
        .filter(|run| run.figures().is_some())
        .collect();
    let mut loads: Vec<(LoadKey<'_>, Load<'_>)> = Vec::new();
    for run in &done {
        let directions = run.figures().into_iter().flat_map(Figures::directions);
        for (name, _) in directions {
            let key = key(run, name, &done);
            let at = loads.iter().position(|(other, _)| *other == key);
            let at = at.unwrap_or_else(|| {
                let load = Load {
                    title: title(run, name),
                    direction: name,
                    rows: Vec::new(),
                };
                loads.push((key, load));
                loads.len() - 1
            });
            add(&mut loads[at].1, run, results);
        }
    }
    let mut loads: Vec<Load<'_>> = loads.into_iter().map(|(_, load)| load).collect();
    for load in &mut loads {
        load.rows.sort_by_key(|row| row.depth);
    }
    let titles: Vec<String> = loads.iter().map(|load| load.title.clone()).collect();
    for load in &mut loads {
        if titles.iter().filter(|title| **title == load.title).count() > 1 {
            load.title = format!("{} ({})", load.title, load.rows[0].title);
        }
    }
    loads
}

/// What runs of one load have in common. Where several jobs of one load have the same depth, each is a
/// load of its own, by its title.
type LoadKey<'a> = (Vec<(&'a str, &'a str)>, &'static str, Option<String>);

fn key<'a>(run: &'a Run, direction: &'static str, all: &[&'a Run]) -> LoadKey<'a> {
    let options = load_options(&run.options);
    let same: Vec<&&Run> = all
        .iter()
        .filter(|other| load_options(&other.options) == options)
        .collect();
    let titles: BTreeSet<(u32, String)> = same.iter().map(|run| (run.depth, run.title())).collect();
    let depths: BTreeSet<u32> = same.iter().map(|run| run.depth).collect();
    let title = (titles.len() > depths.len()).then(|| run.title());
    (options.into_iter().collect(), direction, title)
}

fn add<'a>(load: &mut Load<'a>, run: &'a Run, results: &Results) {
    let setting = results
        .settings
        .iter()
        .position(|it| it.name == run.setting);
    let Some(setting) = setting else { return };
    let at = load.rows.iter().position(|row| row.depth == run.depth);
    let at = at.unwrap_or_else(|| {
        load.rows.push(Row {
            depth: run.depth,
            title: run.title(),
            cells: vec![None; results.settings.len()],
        });
        load.rows.len() - 1
    });
    let cell = load.rows[at].cells[setting].get_or_insert(Cell { rounds: Vec::new() });
    cell.rounds.push(run);
}

/// `randread 4k, io_uring`.
fn title(run: &Run, name: &str) -> String {
    let option = |key: &str| run.options.get(key).map(String::as_str);
    let block = match (option("bssplit"), option("bsrange"), option("bs")) {
        (Some(split), ..) => split,
        (_, Some(range), _) => range,
        (.., Some(block)) => block,
        _ => "4k",
    };
    let mut title = format!("{} {block}", direction(&run.options));
    if run
        .figures()
        .is_some_and(|figures| figures.directions().count() > 1)
    {
        if let Some(mix) = option("rwmixread") {
            title += &format!(" ({mix} % reads)");
        }
        title += &format!(", {name}s");
    }
    title += &format!(", {}", option("ioengine").unwrap_or("psync"));
    for key in ["fsync", "fdatasync", "sync"] {
        if let Some(value) = option(key) {
            title += &format!(", {key}={value}");
        }
    }
    title
}

/// A figure of one direction.
pub fn of_direction<'d>(
    direction: &'static str,
    of: impl Fn(&Direction) -> Option<f64> + 'd,
) -> impl Fn(&Figures) -> Option<f64> + 'd {
    move |figures| of(figures.direction(direction)?)
}

/// A count of berth's for each command; `None` on the host.
pub fn per_command(figures: &Figures, count: impl Fn(&super::results::Cost) -> u64) -> Option<f64> {
    let cost = figures.cost.as_ref()?;
    // Both far below 2^52.
    (cost.commands > 0).then(|| count(cost) as f64 / cost.commands as f64)
}

/// A CPU time of berth's in percent of one CPU; `None` on the host.
pub fn cpu_percent(figures: &Figures, time: impl Fn(&super::results::Cost) -> u64) -> Option<f64> {
    let cost = figures.cost.as_ref()?;
    (cost.elapsed > 0).then(|| time(cost) as f64 / cost.elapsed as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn depths_of_one_load_are_together_and_directions_apart() {
        let results = samples::results();
        let loads = loads(&results);
        let titles: Vec<&str> = loads.iter().map(|load| load.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "randread 4k, io_uring",
                "randrw 4k (70 % reads), reads, io_uring",
                "randrw 4k (70 % reads), writes, io_uring",
            ]
        );
        let depths: Vec<u32> = loads[0].rows.iter().map(|row| row.depth).collect();
        assert_eq!(depths, [1, 32]);
        let cells = &loads[0].rows[0].cells;
        assert_eq!(cells.len(), results.settings.len());
        assert_eq!(cells[0].as_ref().unwrap().rounds.len(), 2);
    }

    #[test]
    fn jobs_of_one_depth_stay_apart() {
        let mut results = samples::results();
        let mut twin = results.runs[0].clone();
        twin.job = "twin".into();
        results.runs.push(twin);
        let loads = loads(&results);
        let titles: Vec<&str> = loads.iter().map(|load| load.title.as_str()).collect();
        assert!(
            titles.contains(&"randread 4k, io_uring (load/twin)"),
            "{titles:?}"
        );
        assert!(
            titles.contains(&"randread 4k, io_uring (load/qd1)"),
            "{titles:?}"
        );
    }

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn rounds_give_a_median_with_limits_and_a_spread() {
        let results = samples::results();
        let loads = loads(&results);
        let cell = loads[0].rows[0].cells[0].as_ref().unwrap();
        let iops = of_direction("read", |it| Some(it.iops));
        let value = cell.value(&iops).unwrap();
        assert_eq!(
            (value.value, value.limits),
            (1100.0, Some((1000.0, 1200.0)))
        );
        let (spread, source) = cell.spread(&iops, |_| vec![1.0, 2.0]).unwrap();
        assert_eq!(source, Source::Rounds);
        assert!((spread - 141.42 / 1100.0).abs() < 1e-4, "{spread}");
        let one = Cell {
            rounds: vec![cell.rounds[0]],
        };
        assert_eq!(one.value(&iops).unwrap().limits, None);
        let (spread, source) = one
            .spread(&iops, |_| vec![90.0, 110.0, 90.0, 110.0])
            .unwrap();
        assert_eq!(source, Source::Seconds);
        assert!((spread - 11.547 / 100.0).abs() < 1e-4, "{spread}");
        assert_eq!(one.spread(&iops, |_| vec![5.0]), None);
    }

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn medians_of_even_counts_are_between() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
