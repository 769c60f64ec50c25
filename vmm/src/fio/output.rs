//! Reads what fio writes: its JSON (`json+`) and its logs.
//!
//! A phase may have several jobs; their figures become one. Percentiles are taken from the bins, so that
//! they are right for all jobs together, whatever percentiles a job asks for.

use std::collections::BTreeMap;

use serde_json::Value;

use super::results::{Direction, Figures, Latency, PERCENTILES, Second};

/// No figure of fio's is larger: ns, bytes a second. What a hostile guest tells stays finite with it.
const MOST: f64 = 1e18;

/// What is wrong with fio's output.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// Not JSON, or JSON without jobs.
    #[error("fio's output has no jobs: {0}")]
    NoJobs(String),
    /// A job ended with an error.
    #[error("fio: job {job}: {}", errno(*.error))]
    Job {
        /// Its name.
        job: String,
        /// A number of errno(3).
        error: i32,
    },
    /// Nothing was read or written.
    #[error("fio did no I/O")]
    Idle,
    /// I/Os without a byte.
    #[error("fio's I/Os had no bytes: where the jobs work, the disk or file has ended")]
    Empty,
}

fn errno(error: i32) -> String {
    std::io::Error::from_raw_os_error(error).to_string()
}

/// fio's figures of all jobs of a phase. What fio says before its JSON is left out.
///
/// # Errors
/// There is no JSON, a job failed, or no I/O was done.
pub fn figures(output: &str) -> Result<Figures, OutputError> {
    let start = output.find("{\n").or_else(|| output.find('{'));
    let json = &output[start.unwrap_or(output.len())..];
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(OutputError::NoJobs(error.to_string())),
        None => return Err(OutputError::NoJobs("it is empty".into())),
    };
    let jobs = value["jobs"].as_array().map_or(&[][..], Vec::as_slice);
    if jobs.is_empty() {
        return Err(OutputError::NoJobs("it has none".into()));
    }
    for job in jobs {
        let error = job["error"].as_i64().unwrap_or(0);
        if error != 0 {
            return Err(OutputError::Job {
                job: job["jobname"].as_str().unwrap_or_default().into(),
                error: i32::try_from(error).unwrap_or(libc::EIO),
            });
        }
    }
    let mut figures = Figures {
        read: direction(jobs, "read"),
        write: direction(jobs, "write"),
        trim: direction(jobs, "trim"),
        ..Figures::default()
    };
    if figures.directions().next().is_none() {
        return Err(OutputError::Idle);
    }
    let bytes = |job: &Value, name: &str| {
        number(&job[name]["io_bytes"]).max(number(&job[name]["bw_bytes"]))
    };
    let all = |job: &Value| {
        ["read", "write", "trim"]
            .map(|name| bytes(job, name))
            .iter()
            .sum::<f64>()
    };
    if jobs.iter().all(|job| all(job) == 0.0) {
        return Err(OutputError::Empty);
    }
    let length = jobs.iter().map(length).fold(0.0, f64::max);
    for job in jobs {
        // What fio tells is a mean over all processes that an entry stands for.
        let share = match number(&job["job_runtime"]) / length {
            share if share.is_finite() => share,
            _ => 1.0,
        };
        figures.usr_cpu += number(&job["usr_cpu"]) * share;
        figures.sys_cpu += number(&job["sys_cpu"]) * share;
        let switches = job["ctx"].as_u64().unwrap_or(0);
        figures.context_switches = figures.context_switches.saturating_add(switches);
    }
    Ok(figures)
}

/// How long an entry's I/O took in ms; `job_runtime` is the sum over its processes.
fn length(job: &Value) -> f64 {
    let directions = ["read", "write", "trim"].into_iter();
    let all = directions.map(|name| number(&job[name]["runtime"]));
    all.fold(0.0, f64::max)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0).clamp(0.0, MOST)
}

/// One direction of all jobs, if there were I/Os in it.
fn direction(jobs: &[Value], name: &str) -> Option<Direction> {
    let done = |job: &&Value| job[name]["total_ios"].as_u64().unwrap_or(0) > 0;
    let all: Vec<&Value> = jobs.iter().filter(done).map(|job| &job[name]).collect();
    if all.is_empty() {
        return None;
    }
    let sum = |key: &str| all.iter().map(|it| number(&it[key])).sum::<f64>();
    // A job that counts completion latency alone has its bins there.
    let bins = match bins(&all, "lat_ns") {
        empty if empty.is_empty() => bins(&all, "clat_ns"),
        bins => bins,
    };
    Some(Direction {
        iops: sum("iops"),
        bandwidth: sum("bw_bytes"),
        ios: all
            .iter()
            .filter_map(|it| it["total_ios"].as_u64())
            .fold(0, u64::saturating_add),
        completion: latency(&all, "clat_ns"),
        submission: latency(&all, "slat_ns"),
        total: latency(&all, "lat_ns"),
        percentiles: percentiles(&bins),
        bins,
        series: Vec::new(),
    })
}

/// Mean, deviation and limits of several jobs' latencies together.
fn latency(all: &[&Value], key: &str) -> Latency {
    let counted = all.iter().map(|it| &it[key]);
    let counted: Vec<&Value> = counted.filter(|it| number(&it["N"]) > 0.0).collect();
    let count: f64 = counted.iter().map(|it| number(&it["N"])).sum();
    if count == 0.0 {
        return Latency::default();
    }
    let weighted = |of: &dyn Fn(&Value) -> f64| {
        counted
            .iter()
            .map(|it| number(&it["N"]) * of(it))
            .sum::<f64>()
            / count
    };
    let mean = weighted(&|it| number(&it["mean"]));
    // Variance within the jobs and between them.
    let variance =
        weighted(&|it| number(&it["stddev"]).powi(2) + (number(&it["mean"]) - mean).powi(2));
    let edge = |key: &str, pick: fn(f64, f64) -> f64| {
        let all = counted.iter().map(|it| number(&it[key]));
        all.reduce(pick).unwrap_or(0.0)
    };
    Latency {
        mean,
        deviation: variance.sqrt(),
        min: edge("min", f64::min),
        max: edge("max", f64::max),
    }
}

fn bins(all: &[&Value], key: &str) -> Vec<(u64, u64)> {
    let mut sum: BTreeMap<u64, u64> = BTreeMap::new();
    for bins in all.iter().filter_map(|it| it[key]["bins"].as_object()) {
        for (bin, count) in bins {
            if let (Ok(bin), Some(count)) = (bin.parse(), count.as_u64()) {
                let entry: &mut u64 = sum.entry(bin).or_default();
                *entry = entry.saturating_add(count);
            }
        }
    }
    sum.into_iter().collect()
}

/// All I/Os in bins. A hostile guest's numbers may be any.
pub fn total(bins: &[(u64, u64)]) -> u64 {
    let counts = bins.iter().map(|(_, count)| *count);
    counts.fold(0, u64::saturating_add)
}

/// As fio counts them: the first bin by which so many percent of the I/Os have ended.
fn percentiles(bins: &[(u64, u64)]) -> Vec<(f64, u64)> {
    let total = total(bins);
    let of = |percent: f64| {
        // Far fewer I/Os than 2^52.
        let wanted = (percent / 100.0 * total as f64).ceil();
        let mut seen: u64 = 0;
        let found = bins.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen as f64 >= wanted
        });
        found.map(|(bin, _)| (percent, *bin))
    };
    PERCENTILES.into_iter().filter_map(of).collect()
}

/// fio's per-second logs of one phase, of all its jobs.
#[derive(Debug, Default)]
pub struct Logs {
    /// `iops`: I/Os a second.
    pub iops: String,
    /// `bw`: KiB a second.
    pub bandwidth: String,
    /// `lat`: ns.
    pub latency: String,
}

/// Sums and counts of one second.
#[derive(Default, Clone, Copy)]
struct Bucket {
    iops: f64,
    /// Jobs that told their `iops`.
    jobs: u32,
    bandwidth: f64,
    latency: f64,
    latencies: f64,
}

impl Logs {
    /// Puts the seconds into the figures' directions. Each job logs for itself, a little before or
    /// after the full second; a last second that not all jobs tell is left out.
    pub fn add_to(&self, figures: &mut Figures) {
        for (code, direction) in [
            (0, &mut figures.read),
            (1, &mut figures.write),
            (2, &mut figures.trim),
        ] {
            if let Some(direction) = direction {
                direction.series = self.seconds(code);
            }
        }
    }

    fn seconds(&self, code: u32) -> Vec<Second> {
        let mut buckets: BTreeMap<u64, Bucket> = BTreeMap::new();
        for (at, value) in lines(&self.iops, code) {
            let bucket = buckets.entry(at).or_default();
            bucket.iops += value;
            bucket.jobs = bucket.jobs.saturating_add(1);
        }
        let mut last = buckets.iter().rev();
        if let (Some((&at, end)), Some((_, before))) = (last.next(), last.next())
            && end.jobs < before.jobs
        {
            buckets.remove(&at);
        }
        for (at, value) in lines(&self.bandwidth, code) {
            if let Some(bucket) = buckets.get_mut(&at) {
                bucket.bandwidth += value * 1024.0;
            }
        }
        for (at, value) in lines(&self.latency, code) {
            if let Some(bucket) = buckets.get_mut(&at) {
                bucket.latency += value;
                bucket.latencies += 1.0;
            }
        }
        let second = |(at, bucket): (u64, Bucket)| Second {
            // Seconds of a run, far below 2^52.
            at: at as f64,
            iops: bucket.iops,
            bandwidth: bucket.bandwidth,
            latency: bucket.latency / bucket.latencies.max(1.0),
        };
        buckets.into_iter().map(second).collect()
    }
}

/// Second and value of each line of a log, `ms, value, direction, …`, in one direction. One job's lines
/// are behind the other's.
fn lines(log: &str, code: u32) -> impl Iterator<Item = (u64, f64)> {
    let mut last = (0, 0);
    log.lines().filter_map(move |line| {
        let mut fields = line.split(',').map(str::trim);
        let ms: u64 = fields.next()?.parse().ok()?;
        let value: f64 = fields.next()?.parse().ok()?;
        let direction: u32 = fields.next()?.parse().ok()?;
        let value = if value.is_finite() { value } else { 0.0 };
        let value = value.clamp(0.0, MOST);
        if direction != code {
            return None;
        }
        let (before, second) = last;
        let at = ms.saturating_add(500) / 1000;
        last = (ms, at);
        // At its end fio logs the latency of the I/Os that were still out, often one alone.
        let rest = at == second && at > 1 && ms >= before;
        (!rest).then_some((at, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Written by fio 3.33: 30 reads and 12 writes a second, by two processes.
    const MIXED: &str = include_str!("fixtures/mixed.json");
    /// Two jobs of such processes that report each for itself, with completion latencies.
    const UNGROUPED: &str = include_str!("fixtures/ungrouped.json");

    #[test]
    #[allow(clippy::float_cmp)] // As they are written.
    fn figures_are_fios_own() {
        let figures = figures(MIXED).unwrap();
        let read = figures.read.as_ref().unwrap();
        assert_eq!((read.iops, read.ios), (59.980_007, 180));
        assert_eq!(
            (read.total.mean, read.total.deviation),
            (19_998.994_444, 13_948.422_731)
        );
        let own = [
            (50.0, 15_424),
            (90.0, 31_360),
            (99.0, 100_864),
            (99.9, 104_960),
        ];
        assert_eq!(read.percentiles, own);
        let write = figures.write.as_ref().unwrap();
        let own = [
            (50.0, 19_328),
            (90.0, 40_704),
            (99.0, 84_480),
            (99.9, 84_480),
        ];
        assert_eq!(write.percentiles, own);
        assert_eq!(write.bins.iter().map(|(_, count)| count).sum::<u64>(), 72);
        assert_eq!(figures.trim, None);
        // fio tells the mean of the two processes.
        assert!((figures.usr_cpu - 0.183_333 * 2.0).abs() < 0.001);
    }

    #[test]
    fn jobs_of_a_phase_become_one() {
        let figures = figures(UNGROUPED).unwrap();
        let read = figures.read.unwrap();
        assert_eq!(read.ios, 180);
        assert!((read.iops - 59.980_006).abs() < 1e-4, "{}", read.iops);
        assert_eq!(read.bins.iter().map(|(_, count)| count).sum::<u64>(), 180);
        // Between the two jobs' own.
        let tail = read.percentile(99.0).unwrap();
        assert!((132_096..=391_168).contains(&tail), "{tail}");
        assert!(read.completion.deviation > 0.0 && read.completion.max >= read.completion.mean);
    }

    #[test]
    fn seconds_are_summed_over_processes() {
        let logs = Logs {
            iops: include_str!("fixtures/log_iops.log").into(),
            bandwidth: include_str!("fixtures/log_bw.log").into(),
            latency: include_str!("fixtures/log_lat.log").into(),
        };
        let mut figures = figures(MIXED).unwrap();
        logs.add_to(&mut figures);
        let of = |direction: &Option<Direction>| -> Vec<(f64, f64, f64)> {
            let series = &direction.as_ref().unwrap().series;
            series
                .iter()
                .map(|it| (it.at, it.iops, it.latency))
                .collect()
        };
        let mean = f64::midpoint;
        assert_eq!(
            of(&figures.read),
            [
                (1.0, 61.0, mean(28_999.0, 14_181.0)),
                (2.0, 59.0, mean(27_810.0, 12_561.0))
            ]
        );
        assert_eq!(of(&figures.write)[1], (2.0, 23.0, mean(29_427.0, 12_569.0)));
        let bandwidth = figures.read.unwrap().series[0].bandwidth;
        assert!((bandwidth / 4096.0 - 61.0).abs() < 1.0, "{bandwidth}");
    }

    #[test]
    fn cpu_time_is_that_of_all_processes_over_the_whole_phase() {
        // As fio tells of a group of two jobs that ran 2 s each, and one that ran 1 s.
        let job = |ms: u32, all: u32| {
            format!(
                r#"{{"usr_cpu":50,"sys_cpu":10,"job_runtime":{all},"read":{{"total_ios":1,"io_bytes":1,"runtime":{ms}}}}}"#
            )
        };
        let of = |jobs: &[String]| {
            let figures = figures(&format!(r#"{{"jobs":[{}]}}"#, jobs.join(","))).unwrap();
            (figures.usr_cpu, figures.sys_cpu)
        };
        assert_eq!(of(&[job(2000, 4000)]), (100.0, 20.0));
        assert_eq!(of(&[job(2000, 4000), job(1000, 1000)]), (125.0, 25.0));
        assert_eq!(of(&[job(0, 0)]), (50.0, 10.0), "shorter than a millisecond");
    }

    #[test]
    fn rests_of_a_second_are_no_seconds() {
        let logs = Logs {
            // The second job did not get to tell its third second.
            iops: "999,50,0\n2000,50,0\n2999,50,0\n1000,60,0\n2001,60,0\n".into(),
            // The first job's last I/Os come after its third second, the second one's after 2.4 s.
            latency: "1000,7,0\n2000,7,0\n3000,7,0\n3000,900,0\n1000,9,0\n2000,9,0\n2400,900,0\n"
                .into(),
            ..Logs::default()
        };
        let told: Vec<_> = logs
            .seconds(0)
            .iter()
            .map(|it| (it.iops, it.latency))
            .collect();
        assert_eq!(told, [(110.0, 8.0), (110.0, 8.0)]);
        let one = Logs {
            iops: "1000,50,0\n2000,50,0\n3000,50,0\n".into(),
            latency: "1000,7,0\n2000,7,0\n3004,7,0\n3004,900,0\n".into(),
            ..Logs::default()
        };
        assert_eq!(
            one.seconds(0).last().map(|it| (it.at, it.latency)),
            Some((3.0, 7.0))
        );
    }

    #[test]
    fn a_hostile_guests_numbers_are_only_numbers() {
        let max = u64::MAX;
        let job = format!(
            r#"{{"jobname":"a","usr_cpu":1e308,"ctx":{max},"read":{{"total_ios":{max},"iops":1e308,"io_bytes":{max},
            "lat_ns":{{"N":{max},"mean":1e308,"stddev":1e308,"bins":{{"{max}":{max},"7":{max},"x":1}}}}}}}}"#
        );
        let mut figures = figures(&format!(r#"{{"jobs":[{job},{job}]}}"#)).unwrap();
        let logs = Logs {
            iops: format!("{max}, 1e308, 0\n{max}, nan, 0\n-1, 2, 0\nx\n,,\n1, 2, {max}\n"),
            ..Logs::default()
        };
        logs.add_to(&mut figures);
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), figures);
        let read = figures.read.unwrap();
        assert_eq!((read.ios, read.bins.len(), read.series.len()), (max, 2, 1));
        assert_eq!(read.percentile(50.0), Some(7));
    }

    #[test]
    fn what_failed_is_told() {
        let refused = figures(include_str!("fixtures/refused.json")).unwrap_err();
        assert!(matches!(refused, OutputError::NoJobs(_)), "{refused}");
        // fio complains in front of its JSON.
        let short = figures(include_str!("fixtures/short.json")).unwrap_err();
        assert!(
            matches!(short, OutputError::Job { .. } | OutputError::Idle),
            "{short}"
        );
        let cut = figures(&MIXED[..MIXED.len() / 2]).unwrap_err();
        assert!(matches!(cut, OutputError::NoJobs(_)), "{cut}");
        let error = r#"{"jobs":[{"jobname":"a","error":5,"read":{"total_ios":3}}]}"#;
        let error = figures(error).unwrap_err().to_string();
        assert!(
            error.starts_with("fio: job a: Input/output error"),
            "{error}"
        );
        assert_eq!(figures(r#"{"jobs":[{"error":0}]}"#), Err(OutputError::Idle));
        // Reads behind the end of a file are I/Os, but read nothing.
        let empty = r#"{"jobs":[{"read":{"total_ios":9,"io_bytes":0,"iops":0}}]}"#;
        assert_eq!(figures(empty), Err(OutputError::Empty));
        assert!(figures("").is_err() && figures("{}").is_err());
    }
}
