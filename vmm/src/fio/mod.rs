//! `berth fio`: runs fio's jobs in guests, beside each other and beside the host, and reports.
//!
//! A job file runs in a guest of its own for each machine, phase by phase (`guest.sh`); every phase is
//! measured from outside too. What is known is on disk after every phase.

mod bench;
mod chart;
mod child;
mod compare;
mod cost;
mod job;
mod machines;
mod output;
mod page;
mod pictures;
mod private;
mod progress;
mod results;
#[cfg(test)]
mod samples;
mod session;
mod store;
mod summary;
mod sys;
mod table;
mod targets;
mod tool;

use std::path::PathBuf;
use std::time::Duration;

use self::bench::Bench;
pub use self::job::{canonical, is_berths};
pub use self::machines::{Machine, Vary, machines};
use crate::stderr;

/// What `berth fio` was asked for: checked, plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FioConfig {
    /// Job files, at least one.
    pub jobs: Vec<PathBuf>,
    /// Folder for the results.
    pub out: PathBuf,
    /// What the guests are; none if only the host is measured.
    pub machines: Vec<Machine>,
    /// Names of the jobs to run; all if empty.
    pub only: Vec<String>,
    /// Options of fio's that replace the job files'.
    pub set: Vec<(String, String)>,
    /// Whether and where jobs run on the host.
    pub host: HostRuns,
    /// Older results to compare with.
    pub compare: Option<PathBuf>,
    /// Rounds, 1 to 100.
    pub repeat: u32,
    /// What the results are called; the folder's name unless given.
    pub name: Option<String>,
    /// Limit of a phase, instead of one that is made from its runtime.
    pub limit: Option<Duration>,
    /// The arguments as they were given.
    pub arguments: Vec<String>,
}

/// Where jobs run on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostRuns {
    /// Nowhere.
    No,
    /// On the files of the machines' disks.
    Disks,
    /// On this file, which jobs may write if so allowed.
    File {
        /// The file or block device.
        path: PathBuf,
        /// Jobs may write it.
        writable: bool,
    },
}

/// Runs everything and returns the exit status: 0 if every job has figures, 1 if one has none, and for a
/// signal 128 plus its number.
pub fn run(config: &FioConfig) -> u8 {
    match Bench::new(config).and_then(|mut bench| bench.run()) {
        Ok(status) => status,
        Err(error) => {
            stderr::say(format_args!("berth fio: {error:#}"));
            1
        }
    }
}
