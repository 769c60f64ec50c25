//! `cargo xtask test`: everything CI runs, with one count at the end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use harness::{HostKind, Placement};

use crate::{Context, build, cost, images, readme, release};

const PARTS: [&str; 9] = [
    "fmt", "clippy", "doc", "unit", "cost", "bare", "linux", "release", "readme",
];

/// Packages whose tests are no unit tests: the part `bare` runs the first, and
/// the second is no program for this host.
const GUEST_PACKAGES: [&str; 2] = ["bare-tests", "bare-guest"];

/// Counts of tests; a check like fmt is one test.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// As they should.
    pub passed: u64,
    /// Not so.
    pub failed: u64,
    /// Not run.
    pub skipped: u64,
}

impl Tally {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What one part did, for the summary.
struct Outcome {
    part: &'static str,
    note: String,
    tally: Tally,
}

/// Runs the named parts, all if none is named.
///
/// # Errors
/// For an unknown part. Failures of tests are in the exit code.
pub fn run(context: &Context, args: &[String]) -> Result<ExitCode> {
    let mut wanted: Vec<&str> = Vec::new();
    let mut filters: Vec<&str> = Vec::new();
    for arg in args {
        match arg.strip_prefix("linux=") {
            Some(filter) => {
                filters.push(filter);
                wanted.push("linux");
            }
            None if PARTS.contains(&arg.as_str()) => wanted.push(arg),
            None => bail!("there is no part {arg:?}; parts are {}", PARTS.join(" ")),
        }
    }
    let host = HostKind::detect();
    context.progress.step(&format!("this host has {host}"));
    let mut outcomes = Vec::new();
    for part in PARTS {
        if !wanted.is_empty() && !wanted.contains(&part) {
            continue;
        }
        context.progress.step(&format!("--- {part}"));
        let outcome = match part {
            "fmt" => check(context, "fmt", &["fmt", "--all", "--check"]),
            "clippy" => check(context, "clippy", &CLIPPY),
            "doc" => doc(context),
            "unit" => unit(context, host),
            "cost" => cost(context),
            "bare" => bare(context, host),
            "linux" => linux(context, host, &filters),
            "release" => counted(part, release::test(context, host)),
            _ => counted(part, readme::run(context, host)),
        };
        // A part that could not even run is one failure, and the rest still run.
        outcomes.push(outcome.unwrap_or_else(|error| Outcome {
            part,
            note: format!("could not run: {error:#}"),
            tally: Tally {
                failed: 1,
                ..Tally::default()
            },
        }));
    }
    Ok(summary(context, host, &outcomes))
}

const CLIPPY: [&str; 6] = [
    "clippy",
    "--workspace",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

fn summary(context: &Context, host: HostKind, outcomes: &[Outcome]) -> ExitCode {
    let mut total = Tally::default();
    println!("\nhost: {host}");
    for Outcome { part, note, tally } in outcomes {
        total.add(*tally);
        println!(
            "{part:>8}: {} passed, {} failed, {} skipped{}{note}",
            tally.passed,
            tally.failed,
            tally.skipped,
            if note.is_empty() { "" } else { "; " }
        );
    }
    context.progress.step("done");
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check(context: &Context, part: &'static str, args: &[&str]) -> Result<Outcome> {
    let status = build::cargo(context, args).status()?;
    Ok(one(part, status.success()))
}

/// The documentation of all crates, for those who work on them, without a warning.
fn doc(context: &Context) -> Result<Outcome> {
    let words = [
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    let mut command = build::cargo(context, &words);
    command.env("RUSTDOCFLAGS", "-D warnings");
    Ok(one("doc", command.status()?.success()))
}

/// A part that is one test.
fn one(part: &'static str, success: bool) -> Outcome {
    Outcome {
        part,
        note: String::new(),
        tally: Tally {
            passed: success.into(),
            failed: (!success).into(),
            skipped: 0,
        },
    }
}

/// A part that counts by itself.
fn counted(part: &'static str, tally: Result<Tally>) -> Result<Outcome> {
    Ok(Outcome {
        part,
        note: String::new(),
        tally: tally?,
    })
}

fn unit(context: &Context, host: HostKind) -> Result<Outcome> {
    let mut args = vec!["test", "--workspace", "--no-fail-fast"];
    for package in GUEST_PACKAGES {
        args.extend(["--exclude", package]);
    }
    let tally = cargo_test(&mut build::cargo(context, &args))?;
    let note = match host {
        HostKind::NoKvm => "those that need /dev/kvm passed without doing anything",
        HostKind::HardwareKvm | HostKind::SoftwareKvm => "",
    };
    Ok(Outcome {
        part: "unit",
        note: note.to_owned(),
        tally,
    })
}

fn cost(context: &Context) -> Result<Outcome> {
    let (passed, failed) = cost::run(context)?;
    Ok(Outcome {
        part: "cost",
        note: String::new(),
        tally: Tally {
            passed,
            failed,
            skipped: 0,
        },
    })
}

fn bare(context: &Context, host: HostKind) -> Result<Outcome> {
    let placement = host.bare_placement()?;
    let note = host.announce("bare-metal guests", &placement);
    context.progress.step(&note);
    let tally = match placement {
        Placement::Direct => bare_here(context)?,
        Placement::Outer => bare_inside(context)?,
        Placement::Skip(_) => Tally {
            skipped: 1,
            ..Tally::default()
        },
    };
    Ok(Outcome {
        part: "bare",
        note,
        tally,
    })
}

/// What the bare-metal tests are told about where things are.
fn bare_environment(command: &mut Command, binaries: &build::Binaries, guest: &Path) {
    command.env("BARE_GUEST", guest);
    if std::env::var_os(harness::files::BERTH_BIN).is_none() {
        command.env(harness::files::BERTH_BIN, &binaries.berth);
    }
}

fn bare_here(context: &Context) -> Result<Tally> {
    let guest = build::bare_guest(context)?;
    let binaries = build::release(context)?;
    let mut command = build::cargo(context, &["test", "-p", "bare-tests", "--no-fail-fast"]);
    bare_environment(&mut command, &binaries, &guest);
    cargo_test(&mut command)
}

/// Each test program runs in an outer machine of its own, which has KVM.
fn bare_inside(context: &Context) -> Result<Tally> {
    let guest = build::bare_guest(context)?;
    let binaries = build::release(context)?;
    let kit = images::prepare(context)?;
    let mut tally = Tally::default();
    for program in build::test_programs(context, &["bare-tests"])? {
        let words = [
            "outer".to_owned(),
            program.display().to_string(),
            guest.display().to_string(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tally.add(cargo_test(&mut build::linux_guests(
            &binaries, &kit, &words,
        ))?);
    }
    Ok(tally)
}

fn linux(context: &Context, host: HostKind, filters: &[&str]) -> Result<Outcome> {
    let placement = host.linux_placement()?;
    let note = host.announce("Linux guests", &placement);
    if let Placement::Skip(_) = placement {
        context.progress.step(&note);
        let tally = Tally {
            skipped: 1,
            ..Tally::default()
        };
        return Ok(Outcome {
            part: "linux",
            note,
            tally,
        });
    }
    let binaries = build::release(context)?;
    let kit = images::prepare(context)?;
    let mut words = vec!["run"];
    words.extend(filters);
    let mut last = None;
    let status = relay(&mut build::linux_guests(&binaries, &kit, &words), |line| {
        last = plain_count(line).or(last);
    })?;
    let mut tally = last.context("linux-guests printed no count")?;
    if !status && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(Outcome {
        part: "linux",
        note,
        tally,
    })
}

/// Runs cargo test and adds up its `test result:` lines.
///
/// # Errors
/// When cargo cannot be run.
pub fn cargo_test(command: &mut Command) -> Result<Tally> {
    let mut tally = Tally::default();
    let success = relay(command, |line| {
        if let Some(counts) = cargo_count(line) {
            tally.add(counts);
        }
    })?;
    if !success && tally.failed == 0 {
        // It did not build, or a test binary died.
        tally.failed = 1;
    }
    Ok(tally)
}

/// Passes on a command's output line by line while `look` sees it too; whether it succeeded.
///
/// # Errors
/// When it cannot be run or read.
pub fn relay(command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{}", line.trim_end_matches('\r'));
        look(line.trim());
    }
    Ok(child.wait()?.success())
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
fn cargo_count(line: &str) -> Option<Tally> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let count = |word: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(word))
            .and_then(|number| number.trim().parse().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

/// `3 passed, 0 failed, 1 skipped`
fn plain_count(line: &str) -> Option<Tally> {
    let mut numbers = ["passed", "failed", "skipped"]
        .into_iter()
        .zip(line.split(", "));
    let mut next = || {
        let (word, part) = numbers.next()?;
        part.strip_suffix(word)?.trim().parse().ok()
    };
    Some(Tally {
        passed: next()?,
        failed: next()?,
        skipped: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Option<Tally> = Some(Tally {
        passed: 3,
        failed: 2,
        skipped: 1,
    });

    #[test]
    fn counts_are_read_from_closing_lines() {
        assert_eq!(
            cargo_count(
                "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.1s"
            ),
            THREE
        );
        assert_eq!(plain_count("3 passed, 2 failed, 1 skipped"), THREE);
    }

    #[test]
    fn other_lines_hold_no_count() {
        assert_eq!(cargo_count("running 3 tests"), None);
        assert_eq!(plain_count("3 passed"), None);
        assert_eq!(plain_count("TEST linux::x ... ok"), None);
    }
}
