//! What was measured, as `results.json` has it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::job::Options;
use crate::control::plain;

/// What `schema` says in every file.
pub const SCHEMA: &str = "berth-fio";
/// Raised when what is written could not be read as before.
pub const VERSION: u32 = 1;
/// Name of the file.
pub const FILE: &str = "results.json";
/// Larger files are not read.
const MAX_BYTES: u64 = 1 << 30;

/// Percentiles that are told.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Everything of one `berth fio`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`VERSION`].
    pub version: u32,
    /// What the user calls it.
    pub name: String,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// Version of berth.
    pub berth: String,
    /// Version of fio, as it tells it.
    pub fio: String,
    /// Arguments of `berth fio`.
    pub arguments: Vec<String>,
    /// The machine that berth ran on.
    pub host: Host,
    /// What was compared, in order.
    pub settings: Vec<Setting>,
    /// What ran, in order.
    pub runs: Vec<Run>,
}

/// The machine that berth ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Model of its CPUs.
    pub cpu: String,
    /// How many of them this process may use.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Release of its kernel.
    pub kernel: String,
}

/// Where a job ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In a guest of berth's.
    Guest,
    /// On the host.
    Host,
}

/// One of the things that are compared: a machine, or the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name, unique among them.
    pub name: String,
    /// Where jobs run.
    pub place: Place,
    /// The machine as `berth run --dry-run` prints it; the file's path on the host.
    pub description: String,
    /// What the first run told of the system that it ran in.
    pub system: Option<System>,
    /// What to keep in mind.
    pub notes: Vec<String>,
}

/// The system that fio ran in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// Release of its kernel.
    pub kernel: String,
    /// CPUs that it has.
    pub cpus: u32,
    /// The first namespace's device, or the file.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Jobs that ran together, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the [`Setting`].
    pub setting: String,
    /// Name of the job file, without folder and `.fio`.
    pub file: String,
    /// Names of the jobs, joined with `+`.
    pub job: String,
    /// Which repetition, from 1.
    pub round: u32,
    /// I/Os that could be out at a time: `iodepth` times `numjobs`.
    pub depth: u32,
    /// Options of the jobs, those of `[global]` included; where jobs differ, their values joined with `+`.
    pub options: Options,
    /// fio's own output, relative to this file.
    pub raw: Option<PathBuf>,
    /// How it went.
    pub outcome: Outcome,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has figures.
    Done(Box<Figures>),
    /// It has none.
    Failed(Failure),
}

/// Why a run has no figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened.
    pub what: String,
    /// Exit status of fio.
    pub fio: Option<i32>,
    /// Exit status of berth.
    pub berth: Option<i32>,
    /// The last that fio, the guest or berth said.
    pub said: String,
}

/// What fio, berth and the host's kernel counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Reads; none if there were none.
    pub read: Option<Direction>,
    /// Writes.
    pub write: Option<Direction>,
    /// Discards.
    pub trim: Option<Direction>,
    /// fio's CPU time in user mode, in percent of one CPU.
    pub usr_cpu: f64,
    /// The same in kernel mode.
    pub sys_cpu: f64,
    /// fio's context switches.
    pub context_switches: u64,
    /// What it cost berth; none on the host.
    pub cost: Option<Cost>,
}

/// I/Os in one direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// I/Os altogether.
    pub ios: u64,
    /// From submission to completion in ns.
    pub completion: Latency,
    /// From the job's decision to submit until it did, in ns.
    pub submission: Latency,
    /// Both together.
    pub total: Latency,
    /// [`PERCENTILES`] of the total latency in ns.
    pub percentiles: Vec<(f64, u64)>,
    /// The total latency: I/Os in bins, which are named by their middle in ns, ascending.
    pub bins: Vec<(u64, u64)>,
    /// Second by second.
    pub series: Vec<Second>,
}

/// Latency in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub deviation: f64,
    /// Shortest.
    pub min: f64,
    /// Longest.
    pub max: f64,
}

/// One second of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since fio began.
    pub at: f64,
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Mean total latency in ns.
    pub latency: f64,
}

/// What berth and the host did from just before fio started until it had ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// NVMe commands of I/O queues.
    pub commands: u64,
    /// Doorbell writes that left the guest for berth.
    pub doorbell_exits: u64,
    /// Times that a doorbell woke an I/O thread through the kernel, without an exit to berth.
    pub doorbell_wakeups: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Length in ns.
    pub elapsed: u64,
    /// CPU time of the threads that run the guest in ns, the guest's own included.
    pub vcpu_time: u64,
    /// CPU time of the I/O threads in ns.
    pub io_time: u64,
    /// CPU time of berth's other threads in ns.
    pub other_time: u64,
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ResultsError {
    path: PathBuf,
    problem: String,
}

impl Results {
    /// Reads the results at `path`, a file or a folder that `berth fio` wrote.
    ///
    /// # Errors
    /// It cannot be read, or is not of this kind or version.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let file = if path.is_dir() {
            path.join(FILE)
        } else {
            path.to_owned()
        };
        let error = |problem: String| ResultsError {
            path: file.clone(),
            problem,
        };
        let failed = |problem: io::Error| error(plain(&problem));
        if fs::metadata(&file).map_err(failed)?.len() > MAX_BYTES {
            return Err(error("is too large for results of berth fio".into()));
        }
        let bytes = fs::read(&file).map_err(failed)?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|problem| error(format!("is no JSON: {problem}")))?;
        if value["schema"] != SCHEMA {
            return Err(error("holds no results of berth fio".into()));
        }
        if value["version"] != VERSION {
            let problem = format!(
                "has version {}; this berth reads {VERSION}",
                value["version"]
            );
            return Err(error(problem));
        }
        serde_json::from_value(value).map_err(|problem| error(problem.to_string()))
    }

    /// As [`FILE`] has them.
    ///
    /// # Errors
    /// None that is known.
    pub fn json(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Runs without figures.
    pub fn failures(&self) -> impl Iterator<Item = (&Run, &Failure)> {
        self.runs.iter().filter_map(|run| match &run.outcome {
            Outcome::Failed(failure) => Some((run, failure)),
            Outcome::Done(_) => None,
        })
    }
}

impl Run {
    /// What was measured, if it went well.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.outcome {
            Outcome::Done(figures) => Some(figures),
            Outcome::Failed(_) => None,
        }
    }

    /// File and job, which one name often stands for.
    pub fn title(&self) -> String {
        if self.file == self.job {
            self.job.clone()
        } else {
            format!("{}/{}", self.file, self.job)
        }
    }
}

impl Figures {
    /// The directions that there were I/Os in, with fio's names.
    pub fn directions(&self) -> impl Iterator<Item = (&'static str, &Direction)> {
        let all = [
            ("read", &self.read),
            ("write", &self.write),
            ("trim", &self.trim),
        ];
        all.into_iter()
            .filter_map(|(name, direction)| Some((name, direction.as_ref()?)))
    }

    /// The direction of that name.
    pub fn direction(&self, name: &str) -> Option<&Direction> {
        self.directions()
            .find(|(other, _)| *other == name)
            .map(|(_, direction)| direction)
    }
}

impl Direction {
    /// One of [`PERCENTILES`], in ns.
    pub fn percentile(&self, which: f64) -> Option<u64> {
        let found = self.percentiles.iter();
        let mut found = found.filter(|(percent, _)| (percent - which).abs() < 1e-9);
        found.next().map(|(_, value)| *value)
    }
}

/// Writes a file anew. A reader sees the old one or the new one.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let replaced = fs::write(&new, bytes).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // A disk that is full has better use for its bytes.
        let _ = fs::remove_file(&new);
    }
    replaced
}

/// The host as it is.
pub fn host() -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default();
        line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.trim_end_matches("kB").trim().parse().unwrap_or(0);
    Host {
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: kib << 10,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

/// Options in which two runs differ although they are the same load at another depth.
pub const DEPTH_OPTIONS: [&str; 3] = ["iodepth", "numjobs", "stonewall"];

/// What is done, without how deep: runs that have it in common are points of one line.
pub fn load_options(options: &Options) -> BTreeMap<&str, &str> {
    const NO_LOAD: [&str; 9] = [
        "runtime",
        "ramp_time",
        "time_based",
        "description",
        "group_reporting",
        "percentile_list",
        "filename",
        "iodepth_batch",
        "name",
    ];
    let all = options.iter();
    let all = all.filter(|(key, _)| {
        !DEPTH_OPTIONS.contains(&key.as_str()) && !NO_LOAD.contains(&key.as_str())
    });
    all.map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let dir = TempDir::new().unwrap();
        let results = super::super::samples::results();
        replace(&dir.path().join(FILE), &results.json().unwrap()).unwrap();
        assert_eq!(Results::read(dir.path()).unwrap(), results);
        assert_eq!(Results::read(&dir.path().join(FILE)).unwrap(), results);
        let write = |text: &str| fs::write(dir.path().join(FILE), text).unwrap();
        let refused = || Results::read(dir.path()).unwrap_err().to_string();
        for (text, why) in [
            ("", "is no JSON"),
            ("{}", "holds no results of berth fio"),
            (
                r#"{"schema":"berth-fio","version":99}"#,
                "has version 99; this berth reads 1",
            ),
            (r#"{"schema":"berth-fio","version":1}"#, "missing field"),
        ] {
            write(text);
            assert!(refused().contains(why), "{}", refused());
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(refused().contains("no such file"), "{}", refused());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("index.html");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_host_is_described() {
        let host = host();
        assert!(
            host.cpus > 0 && host.memory > 0 && !host.kernel.is_empty(),
            "{host:?}"
        );
    }

    #[test]
    fn depth_is_no_part_of_a_load() {
        let options = |depth: &str| {
            Options::from([
                ("rw".into(), "read".into()),
                ("iodepth".into(), depth.into()),
                ("runtime".into(), format!("{depth}0")),
                ("stonewall".into(), String::new()),
            ])
        };
        assert_eq!(load_options(&options("1")), load_options(&options("2")));
        assert_eq!(
            load_options(&options("1")),
            BTreeMap::from([("rw", "read")])
        );
    }
}
