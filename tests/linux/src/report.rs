//! Results as they come, and their count.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::kit::{Kit, Skipped};
use crate::scenarios::Scenario;

/// How one scenario went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Passed,
    /// Not so; what was printed says why.
    Failed,
    /// It could not run, and why.
    Skipped(String),
}

/// The count of one run, with each result on the way.
#[derive(Default)]
pub struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
    results: Option<File>,
}

/// The line that tells of a result.
fn line(name: &str, verdict: &Verdict, seconds: f32) -> String {
    match verdict {
        Verdict::Passed => format!("TEST linux::{name} ... ok ({seconds:.1} s)"),
        Verdict::Failed => format!("TEST linux::{name} ... FAILED ({seconds:.1} s)"),
        Verdict::Skipped(why) => format!("TEST linux::{name} ... skipped: {why}"),
    }
}

/// Reads what [`line()`] wrote: name and verdict.
pub fn parse(line: &str) -> Option<(&str, Verdict)> {
    let rest = line.trim().strip_prefix("TEST linux::")?;
    let (name, rest) = rest.split_once(" ... ")?;
    let verdict = if rest.starts_with("ok") {
        Verdict::Passed
    } else if let Some(why) = rest.strip_prefix("skipped: ") {
        Verdict::Skipped(why.to_owned())
    } else {
        Verdict::Failed
    };
    Some((name, verdict))
}

impl Report {
    /// Starts to count; each result also goes to the file `results`.
    ///
    /// # Errors
    /// When that file cannot be opened for writing.
    pub fn new(results: Option<&Path>) -> Result<Self> {
        let results = match results {
            Some(path) => Some(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .with_context(|| path.display().to_string())?,
            ),
            None => None,
        };
        Ok(Self {
            results,
            ..Self::default()
        })
    }

    /// Runs a scenario and counts it.
    pub fn run(&mut self, scenario: &Scenario, kit: &Kit) {
        let start = Instant::now();
        let verdict = match (scenario.run)(kit) {
            Ok(()) => Verdict::Passed,
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(Skipped(why)) => Verdict::Skipped(why.clone()),
                None => {
                    println!("linux::{}: {error:#}", scenario.name);
                    Verdict::Failed
                }
            },
        };
        let text = line(scenario.name, &verdict, start.elapsed().as_secs_f32());
        println!("{text}");
        if let Some(file) = &mut self.results
            && let Err(error) = writeln!(file, "{text}")
        {
            println!("cannot write results: {error}");
        }
        self.count(&verdict);
    }

    /// Counts a result that was printed elsewhere.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed => self.failed += 1,
            Verdict::Skipped(_) => self.skipped += 1,
        }
    }

    /// Prints the closing line.
    pub fn close(&self) {
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        );
    }

    /// Did nothing fail?
    pub fn passed(&self) -> bool {
        self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_read_back() {
        for verdict in [
            Verdict::Passed,
            Verdict::Failed,
            Verdict::Skipped("no kernel".to_owned()),
        ] {
            let text = line("boot", &verdict, 1.25);
            assert_eq!(parse(&format!("{text}\r")), Some(("boot", verdict)));
        }
        assert_eq!(parse("3 passed, 0 failed, 0 skipped"), None);
    }
}
