//! Instructions that a read of 4 KiB costs an I/O thread from fetch to completion, the null backend
//! behind it: counted by callgrind, so they do not depend on the machine's mood.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::Process;

use crate::{Context, build, packages};

/// Most instructions a read may cost.
const LIMIT: u64 = 1500;

/// Reads that each test of the driver does.
const READS: u64 = 6400;

/// Commands out at a time, as the tests' names have them.
const BATCHES: [u32; 2] = [1, 32];

/// valgrind is some fifty times slower than the machine.
const SECONDS: std::time::Duration = std::time::Duration::from_secs(300);

/// Counts for one and for many commands out at a time; how many of these are above the limit.
///
/// # Errors
/// valgrind or the driver could not be built or run.
pub fn run(context: &Context) -> Result<(u64, u64)> {
    packages::ensure(context)?;
    context.progress.step("building the in-process driver");
    let programs = build::test_programs(context, &["devices", "--lib", "--profile", "named"])?;
    let program = programs.first().context("no driver")?;
    let mut counts = (0, 0);
    for batch in BATCHES {
        let instructions = instructions(program, batch)? / READS;
        let good = instructions <= LIMIT;
        println!(
            "{instructions} instructions a read of 4 KiB, {batch} out at a time: {} (limit {LIMIT})",
            if good { "ok" } else { "FAILED" }
        );
        let count = if good { &mut counts.0 } else { &mut counts.1 };
        *count += 1;
    }
    Ok(counts)
}

fn instructions(program: &Path, batch: u32) -> Result<u64> {
    let test = format!("nvme::io::steady::cost_of_{READS}_reads_in_batches_of_{batch}");
    let out: PathBuf = program.with_extension(format!("callgrind.{batch}"));
    let done = Process::builder("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*steady*serve*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([test.as_str(), "--exact", "--test-threads=1"])
        .run(SECONDS)?;
    let all = format!("{}\n{}", done.stdout, done.stderr);
    ensure!(
        done.exit.success() && done.stdout.contains("1 passed"),
        "{test} ended with {}:\n{all}",
        done.exit
    );
    let count =
        collected(&done.stderr).with_context(|| format!("callgrind: no count in\n{all}"))?;
    ensure!(count > 0, "callgrind met no call that it was to count");
    Ok(count)
}

/// From callgrind's line `==123== Collected : 5014666`.
fn collected(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        let text = "==1== Events    : Ir\n==1== Collected : 5014666\n==1== \n";
        assert_eq!(collected(text), Some(5_014_666));
        assert_eq!(collected("==1== Events    : Ir"), None);
    }
}
