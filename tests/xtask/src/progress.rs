//! Progress lines with the time since start, and tools run under a limit.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use harness::{Finished, Process};

/// The clock of one run of xtask.
pub struct Progress {
    start: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Prints one line with the time since start.
    pub fn step(&self, text: &str) {
        eprintln!("[{:7.1} s] {text}", self.start.elapsed().as_secs_f32());
    }
}

/// A program to run quietly; its output shows only if it fails.
pub struct Tool {
    name: String,
    args: Vec<String>,
    dir: Option<std::path::PathBuf>,
    limit: Duration,
}

impl Tool {
    /// `name` with these arguments, and 60 s to finish.
    #[must_use]
    pub fn new(name: &str, args: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            dir: None,
            limit: Duration::from_secs(60),
        }
    }

    /// Adds a path as argument.
    #[must_use]
    pub fn path(mut self, path: &Path) -> Self {
        self.args.push(path.display().to_string());
        self
    }

    /// Runs it in this folder.
    #[must_use]
    pub fn inside(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Gives it this many seconds.
    #[must_use]
    pub fn seconds(mut self, limit: u64) -> Self {
        self.limit = Duration::from_secs(limit);
        self
    }

    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run, exceeds its limit or fails.
    pub fn run(self) -> Result<String> {
        // Programs that make file systems are in folders that only root's
        // PATH has.
        let path = std::env::var("PATH").unwrap_or_default();
        let mut builder = Process::builder(&self.name)
            .args(&self.args)
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("LC_ALL", "C");
        if let Some(dir) = &self.dir {
            builder = builder.current_dir(dir);
        }
        let Finished {
            exit,
            stdout,
            stderr,
        } = builder.run(self.limit)?;
        if !exit.success() {
            bail!(
                "{} {} ended with {exit}:\n{}{}",
                self.name,
                self.args.join(" "),
                stdout,
                stderr
            );
        }
        Ok(stdout)
    }
}
