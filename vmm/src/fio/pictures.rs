//! Which pictures there are of a load.

use super::chart::{Axis, Bars, Differences, Line, Lines, Point, Unit, Value, short, time};
use super::compare::Comparison;
use super::results::{Direction, Figures, PERCENTILES, Results};
use super::summary::{Cell, Load, Row, cpu_percent, of_direction, per_command};

/// How many bins of an octave a histogram has; fio has up to 64.
const BINS_PER_OCTAVE: f64 = 6.0;

/// What a picture shows of a run.
type Measure<'m> = Box<dyn Fn(&Figures) -> Option<f64> + 'm>;

/// Pictures over depth: IOPS, bandwidth, latency, CPU time, and what the guest and berth tell each other.
pub fn over_depth(load: &Load<'_>, results: &Results) -> Vec<String> {
    let direction = load.direction;
    let of = |of: fn(&Direction) -> f64| -> Measure<'static> {
        Box::new(of_direction(direction, move |it| Some(of(it))))
    };
    let percentile = |percent: f64| -> Measure<'static> {
        // Latencies are far below 2^52 ns.
        Box::new(of_direction(direction, move |it| {
            Some(it.percentile(percent)? as f64)
        }))
    };
    let pictures = [
        Picture {
            title: "I/Os a second",
            axis: Axis::linear("I/Os a second", Unit::Count),
            measures: vec![("IOPS", of(|it| it.iops))],
        },
        Picture {
            title: "Bandwidth",
            axis: Axis::linear("bandwidth", Unit::Bandwidth),
            measures: vec![("bandwidth", of(|it| it.bandwidth))],
        },
        Picture {
            title: "Latency",
            axis: Axis::log("latency", Unit::Time),
            measures: vec![
                ("50 %", percentile(PERCENTILES[0])),
                ("90 %", percentile(PERCENTILES[1])),
                ("99 %", percentile(PERCENTILES[2])),
                ("99.9 %", percentile(PERCENTILES[3])),
            ],
        },
        Picture {
            title: "CPU use: fio's own, and berth's threads",
            axis: Axis::linear("of one CPU", Unit::Percent),
            measures: vec![
                ("fio, user", Box::new(|it: &Figures| Some(it.usr_cpu))),
                ("fio, system", Box::new(|it: &Figures| Some(it.sys_cpu))),
                (
                    "vCPU threads",
                    Box::new(|it: &Figures| cpu_percent(it, |cost| cost.vcpu_time)),
                ),
                (
                    "I/O threads",
                    Box::new(|it: &Figures| cpu_percent(it, |cost| cost.io_time)),
                ),
            ],
        },
        Picture {
            title: "Doorbells and interrupts for each I/O",
            axis: Axis::linear("for each I/O", Unit::Count),
            measures: vec![
                (
                    "doorbell exits",
                    Box::new(|it: &Figures| per_command(it, |cost| cost.doorbell_exits)),
                ),
                (
                    "wake-ups",
                    Box::new(|it: &Figures| per_command(it, |cost| cost.doorbell_wakeups)),
                ),
                (
                    "interrupts",
                    Box::new(|it: &Figures| per_command(it, |cost| cost.interrupts)),
                ),
            ],
        },
    ];
    pictures
        .iter()
        .filter_map(|picture| match load.rows.as_slice() {
            [row] => picture.bars(row, results),
            rows => picture.lines(rows, results),
        })
        .collect()
}

/// One picture over depth.
struct Picture<'m> {
    title: &'static str,
    axis: Axis,
    measures: Vec<(&'static str, Measure<'m>)>,
}

impl Picture<'_> {
    fn lines(&self, rows: &[Row<'_>], results: &Results) -> Option<String> {
        let depths: Vec<u32> = rows.iter().map(|row| row.depth).collect();
        let mut lines = Vec::new();
        for (index, setting) in results.settings.iter().enumerate() {
            for (kind, (name, measure)) in self.measures.iter().enumerate() {
                let points = rows.iter().filter_map(|row| {
                    let value = row.cells[index].as_ref()?.value(measure)?;
                    Some(Point {
                        x: f64::from(row.depth),
                        y: value,
                        title: self.tell(&setting.name, name, row.depth, value),
                    })
                });
                let several = self.measures.len() > 1;
                lines.push(Line {
                    setting: (index, setting.name.clone()),
                    kind: several.then(|| (kind, (*name).to_owned())),
                    points: points.collect(),
                });
            }
        }
        Lines {
            title: self.title.to_owned(),
            x: Axis::depth(&depths),
            y: self.axis.clone(),
            lines,
            steps: false,
        }
        .html()
    }

    fn bars(&self, row: &Row<'_>, results: &Results) -> Option<String> {
        let value = |cell: &Option<Cell<'_>>, measure: &Measure<'_>| cell.as_ref()?.value(measure);
        // What nobody has is left out.
        let measures: Vec<_> = self
            .measures
            .iter()
            .filter(|(_, measure)| row.cells.iter().any(|cell| value(cell, measure).is_some()))
            .collect();
        let settings = results.settings.iter().zip(&row.cells).enumerate();
        let settings = settings.map(|(index, (setting, cell))| {
            let values = measures.iter().map(|(_, measure)| value(cell, measure));
            (index, setting.name.clone(), values.collect())
        });
        let several = self.measures.len() > 1;
        Bars {
            title: self.title.to_owned(),
            x: format!("at queue depth {}", row.depth),
            y: self.axis.clone(),
            groups: measures
                .iter()
                .map(|(name, _)| {
                    if several {
                        (*name).to_owned()
                    } else {
                        String::new()
                    }
                })
                .collect(),
            settings: settings.collect(),
        }
        .html()
    }

    fn tell(&self, setting: &str, name: &str, depth: u32, value: Value) -> String {
        let of = |value| self.axis.label_of(value);
        let mut text = format!("{setting}, {name}, depth {depth}: {}", of(value.value));
        if let Some((low, high)) = value.limits {
            text += &format!(" ({} to {})", of(low), of(high));
        }
        text
    }
}

/// Pictures of one job: IOPS and latency second by second, and the histogram of latencies.
pub fn of_job(row: &Row<'_>, direction: &'static str, results: &Results) -> Vec<String> {
    let lines = |points: &dyn Fn(&Direction) -> Vec<Point>| -> Vec<Line> {
        let settings = results.settings.iter().zip(&row.cells).enumerate();
        let lines = settings.filter_map(|(index, (setting, cell))| {
            // Of several rounds the last is shown.
            let figures = cell.as_ref()?.rounds.last()?.figures()?;
            Some(Line {
                setting: (index, setting.name.clone()),
                kind: None,
                points: points(figures.direction(direction)?),
            })
        });
        lines.collect()
    };
    let second = |x: f64, y: f64, text: String| Point {
        x,
        y: Value {
            value: y,
            limits: None,
        },
        title: format!("after {x:.0} s: {text}"),
    };
    let several = row.cells.iter().flatten().any(|cell| cell.rounds.len() > 1);
    let titled = |title: &str| match several {
        true => format!("{title}, in the last round"),
        false => title.to_owned(),
    };
    let seconds = |title: &str, y: Axis, lines: Vec<Line>| {
        Lines {
            title: titled(title),
            x: Axis::linear("seconds", Unit::Count),
            y,
            lines,
            steps: false,
        }
        .html()
    };
    let iops = lines(&|it| {
        let all = it.series.iter();
        all.map(|it| second(it.at, it.iops, short(it.iops)))
            .collect()
    });
    let latency = lines(&|it| {
        // A job may have turned latencies off.
        let all = it.series.iter().filter(|it| it.latency > 0.0);
        all.map(|it| second(it.at, it.latency, time(it.latency)))
            .collect()
    });
    let histogram = Lines {
        title: titled("Histogram of latency"),
        x: Axis::log("latency", Unit::Time),
        y: Axis::linear("of the I/Os", Unit::Percent),
        lines: lines(&histogram),
        steps: true,
    };
    [
        seconds(
            "I/Os a second, over time",
            Axis::linear("I/Os a second", Unit::Count),
            iops,
        ),
        seconds(
            "Mean latency, over time",
            Axis::linear("latency", Unit::Time),
            latency,
        ),
        histogram.html(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The share of I/Os in each bin, as steps that begin and end at 0.
fn histogram(direction: &Direction) -> Vec<Point> {
    let total = super::output::total(&direction.bins);
    // Latencies and counts are far below 2^52.
    let edge = |bin: f64| (bin / BINS_PER_OCTAVE).exp2();
    let mut bins: Vec<(f64, f64)> = Vec::new();
    for (latency, count) in &direction.bins {
        let bin = ((*latency).max(1) as f64).log2() * BINS_PER_OCTAVE;
        let (bin, share) = (bin.floor(), *count as f64 / total.max(1) as f64 * 100.0);
        match bins.last_mut() {
            Some((last, sum)) if *last >= bin => *sum += share,
            _ => bins.push((bin, share)),
        }
    }
    let mut points = Vec::new();
    let mut point = |x: f64, y: f64| {
        points.push(Point {
            x: edge(x),
            y: Value {
                value: y,
                limits: None,
            },
            title: String::new(),
        });
    };
    let mut end = None;
    for (bin, share) in bins {
        match end {
            Some(end) if end < bin => {
                point(end, 0.0);
                point(bin, 0.0);
            }
            None => point(bin, 0.0),
            Some(_) => {}
        }
        // A step is drawn to the right and then up: it has its height from its left edge on.
        point(bin, share);
        end = Some(bin + 1.0);
    }
    if let Some(end) = end {
        point(end, 0.0);
    }
    points
}

/// The differences of a comparison: a picture for each figure.
pub fn of_comparison(comparison: &Comparison) -> Vec<String> {
    let picture = |metric: super::compare::Metric| {
        let rows = comparison.pairs.iter().filter_map(|pair| {
            let all = pair.differences.iter();
            let difference = all.into_iter().find(|it| it.metric == metric)?;
            let spread = difference.spread.map(|(spread, _)| spread);
            Some((pair.title.clone(), difference.percent, spread))
        });
        Differences {
            title: format!(
                "{}: {} beside {}",
                metric.name(),
                comparison.new,
                comparison.old
            ),
            axis: "difference".to_owned(),
            rows: rows.collect(),
        }
        .html()
    };
    super::compare::Metric::ALL
        .into_iter()
        .filter_map(picture)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{compare, samples, summary};
    use super::*;

    #[test]
    fn several_depths_are_lines_and_one_is_bars() {
        let results = samples::results();
        let loads = summary::loads(&results);
        let lines = over_depth(&loads[0], &results);
        assert_eq!(lines.len(), 5);
        // Three settings; the host has no counters.
        let count = |text: &str, what: &str| text.matches(what).count();
        assert_eq!(count(&lines[0], "class=\"line\""), 3);
        assert_eq!(count(&lines[2], "class=\"line\""), 12);
        assert_eq!(count(&lines[4], "class=\"line\""), 6);
        assert_eq!(count(&lines[0], "class=\"whisker\""), 6);
        assert!(
            lines[0].contains("&lt;poll&gt;, IOPS, depth 1: 1.65k (1.5k to 1.8k)"),
            "{}",
            lines[0]
        );
        let bars = over_depth(&loads[1], &results);
        assert_eq!(bars.len(), 5);
        assert_eq!(count(&bars[0], "class=\"bar\""), 3);
        assert_eq!(count(&bars[3], "class=\"bar\""), 2 * 4 + 2);
    }

    #[test]
    fn jobs_have_seconds_and_a_histogram() {
        let results = samples::results();
        let loads = summary::loads(&results);
        let pictures = of_job(&loads[0].rows[0], "read", &results);
        assert_eq!(pictures.len(), 3);
        assert!(pictures[0].contains("after 5 s: 1.21k"), "{}", pictures[0]);
        let last = |picture: &String| picture.contains("in the last round");
        assert!(pictures.iter().all(last));
        assert!(!of_job(&loads[1].rows[0], "read", &results).iter().any(last));
    }

    #[test]
    fn a_histogram_has_all_of_the_ios() {
        let direction = Direction {
            bins: vec![(0, 1), (1000, 50), (1010, 25), (4000, 24)],
            ..Direction::default()
        };
        let points = histogram(&direction);
        let shares: Vec<f64> = points
            .iter()
            .map(|it| it.y.value)
            .filter(|it| *it > 0.0)
            .collect();
        assert_eq!(shares.len(), 3, "two bins are one here: {points:?}");
        assert!((shares.iter().sum::<f64>() - 100.0).abs() < 1e-9);
        assert!((shares[1] - 75.0).abs() < 1e-9);
        assert!(points.windows(2).all(|pair| pair[0].x <= pair[1].x));
        assert_eq!(histogram(&Direction::default()), []);
    }

    #[test]
    fn comparisons_have_a_row_for_each_job() {
        let results = samples::results();
        let all = compare::settings(&results);
        let pictures = of_comparison(&all[0]);
        assert_eq!(pictures.len(), 4);
        assert_eq!(pictures[0].matches("class=\"mark\"").count(), 3);
        assert!(pictures[0].contains("load/mixed, depth 16: +50.0 % ± "));
    }
}
