//! How long a VMM takes from its start to its guest's: berth beside QEMU's microvm and q35 with the same
//! bare-metal guest, and berth with a kernel of Linux's size.
//!
//! The guest's first output ends the time, which begins before the VMM is spawned. Of a Linux kernel,
//! which software KVM does not run, only berth's own word counts: that it enters the guest.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::{Process, Stdin, Stream};

use crate::guest::guest;
use crate::sample::median;

/// Environment variable that names a bzImage.
const KERNEL: &str = "BENCH_KERNEL";

/// Longest time to the first output.
const LIMIT: Duration = Duration::from_secs(60);

/// What the guest says first.
const FIRST_WORDS: &str = "bare guest";

/// What berth says when it enters the guest.
const ENTERS: &str = "the guest starts after ";

/// How often everything is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// berth.
    pub rounds: usize,
    /// QEMU, in the first so many of them: its firmware may take seconds.
    pub qemu_rounds: usize,
}

impl Plan {
    /// Parses `rounds=20 qemu-rounds=5`.
    ///
    /// # Errors
    /// An unknown key, or no number from 1 to 1000 (0 to 1000 for QEMU).
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut plan = Self {
            rounds: 20,
            qemu_rounds: 5,
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let (place, least) = match key {
                "rounds" => (&mut plan.rounds, 1),
                "qemu-rounds" => (&mut plan.qemu_rounds, 0),
                _ => bail!("boot {word}: unknown key; known: rounds, qemu-rounds"),
            };
            let number = value.parse().ok();
            let number = number.filter(|number| (least..=1000).contains(number));
            *place = number.with_context(|| format!("{word}: must be from {least} to 1000"))?;
        }
        Ok(plan)
    }
}

/// Who starts what.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Contender {
    BerthBare,
    BerthLinux(PathBuf),
    Qemu(&'static str),
}

/// One start.
#[derive(Debug, Clone, PartialEq)]
struct Start {
    /// From before the spawn to the first output, of a guest that has some.
    output_ms: Option<f64>,
    /// From `main` to the first KVM_RUN, by phase in us, as berth tells it.
    own: Option<Own>,
}

#[derive(Debug, Clone, PartialEq)]
struct Own {
    total: f64,
    phases: Vec<(String, f64)>,
}

impl Own {
    /// Parses `the guest starts after N us: NAME N, NAME N…`.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(ENTERS)?;
        let (total, phases) = rest.split_once(" us: ")?;
        let phase = |text: &str| {
            let (name, micros) = text.split_once(' ')?;
            Some((name.to_owned(), micros.parse().ok()?))
        };
        Some(Self {
            total: total.parse().ok()?,
            phases: phases
                .trim()
                .split(", ")
                .map(phase)
                .collect::<Option<_>>()?,
        })
    }
}

/// Measures all and prints a table.
///
/// # Errors
/// When something does not start.
pub fn run(plan: Plan) -> Result<()> {
    let mut rows = vec![(Contender::BerthBare, plan.rounds)];
    match std::env::var_os(KERNEL) {
        Some(kernel) => rows.push((Contender::BerthLinux(kernel.into()), plan.rounds)),
        None => println!("skipped: a Linux kernel: {KERNEL} names none"),
    }
    rows.extend(["microvm", "q35"].map(|machine| (Contender::Qemu(machine), plan.qemu_rounds)));
    let mut results: Vec<(Contender, Vec<Start>)> = rows
        .iter()
        .map(|(contender, _)| (contender.clone(), Vec::new()))
        .collect();
    // The first start of each has its files read from disk.
    for round in 0..=plan.rounds {
        for ((contender, rounds), (_, starts)) in rows.iter().zip(&mut results) {
            if round > *rounds || *rounds == 0 {
                continue;
            }
            let start = contender.start().with_context(|| contender.name())?;
            if round > 0 {
                starts.push(start);
            }
        }
    }
    results.retain(|(_, starts)| !starts.is_empty());
    print!("{}", table(&results));
    Ok(())
}

impl Contender {
    fn name(&self) -> String {
        match self {
            Self::BerthBare => "berth, bare-metal guest".into(),
            Self::BerthLinux(kernel) => {
                let bytes = std::fs::metadata(kernel).map_or(0, |found| found.len());
                format!("berth, bzImage of {:.1} MiB", mebibytes(bytes))
            }
            Self::Qemu(machine) => format!("QEMU {machine}, bare-metal guest"),
        }
    }

    fn start(&self) -> Result<Start> {
        let words = ["--append", "test=hello"];
        match self {
            Self::BerthBare => {
                let (process, begun) = spawn(berth(&guest()?)?.args(words))?;
                let output_ms = first_output(&process, begun)?;
                Ok(Start {
                    output_ms: Some(output_ms),
                    own: Some(own(&process)?),
                })
            }
            Self::BerthLinux(kernel) => {
                let (process, _) = spawn(berth(kernel)?)?;
                Ok(Start {
                    output_ms: None,
                    own: Some(own(&process)?),
                })
            }
            Self::Qemu(machine) => {
                let qemu = Process::builder("qemu-system-x86_64")
                    .args([
                        "-M", machine, "-accel", "kvm", "-cpu", "qemu64", "-m", "512",
                    ])
                    .args([
                        "-nodefaults",
                        "-no-user-config",
                        "-display",
                        "none",
                        "-no-reboot",
                    ])
                    .args(["-serial", "stdio", "-append", words[1], "-kernel"])
                    .arg(guest()?);
                let (process, begun) = spawn(qemu)?;
                Ok(Start {
                    output_ms: Some(first_output(&process, begun)?),
                    own: None,
                })
            }
        }
    }
}

fn berth(kernel: &Path) -> Result<harness::process::Builder> {
    let berth = Process::builder(harness::berth_binary()?);
    Ok(berth
        .args(["run", "-v", "-m", "512", "--disk", "null=1G", "--kernel"])
        .arg(kernel))
}

fn spawn(builder: harness::process::Builder) -> Result<(Process, Instant)> {
    let builder = builder.stdin(Stdin::Held);
    let begun = Instant::now();
    Ok((builder.spawn()?, begun))
}

/// Milliseconds since `begun` when the guest's first words are there.
fn first_output(process: &Process, begun: Instant) -> Result<f64> {
    process.wait_for(Stream::Stdout, FIRST_WORDS, LIMIT, |line| {
        line.contains(FIRST_WORDS)
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

fn own(process: &Process) -> Result<Own> {
    let line = process.wait_for(Stream::Stderr, ENTERS, LIMIT, |line| {
        Own::parse(line).is_some_and(|own| own.phases.last().is_some_and(|it| it.0 == "threads"))
    })?;
    Own::parse(&line).context("berth's line changed while it was read")
}

fn mebibytes(bytes: u64) -> f64 {
    // No kernel has 2^53 bytes.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

fn table(results: &[(Contender, Vec<Start>)]) -> String {
    let mut text = String::new();
    let mut line = |cells: [String; 5]| {
        let [name, cells @ ..] = cells;
        let cells = cells.map(|cell| format!("{cell:>10}")).concat();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:34}{cells}");
    };
    let row = |name: String, values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        let rounds = values.len().to_string();
        let middle = median(values.into_iter());
        let [middle, low, high] = [middle, low, high].map(|ms| format!("{ms:.2}"));
        [name, middle, low, high, rounds]
    };
    let head = |title: &str| [title, "median", "least", "most", "rounds"].map(str::to_owned);
    line(head("spawn to first output, ms"));
    for (contender, starts) in results {
        let values: Vec<f64> = starts.iter().filter_map(|start| start.output_ms).collect();
        if !values.is_empty() {
            line(row(contender.name(), values));
        }
    }
    line(head("main to first KVM_RUN, ms"));
    for (contender, starts) in results {
        let owns: Vec<&Own> = starts
            .iter()
            .filter_map(|start| start.own.as_ref())
            .collect();
        let Some(first) = owns.first() else { continue };
        let totals = owns.iter().map(|own| own.total / 1e3).collect();
        line(row(contender.name(), totals));
        for (index, (name, _)) in first.phases.iter().enumerate() {
            let phase = |own: &&Own| own.phases.get(index).map(|phase| phase.1 / 1e3);
            line(row(
                format!("  {name}"),
                owns.iter().filter_map(phase).collect(),
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "2026-01-01T00:00:00Z  INFO berth::startup: the guest starts after 9500 us: \
                        options 500, kernel 8000, threads 1000";

    #[test]
    fn berths_line_is_read() {
        let own = Own::parse(LINE).unwrap();
        assert_eq!(own.total.to_string(), "9500");
        assert_eq!(own.phases[1], ("kernel".to_owned(), 8000.0));
        for wrong in [
            "",
            "the guest starts after x us: a 1",
            "the guest starts after 1 us: a",
        ] {
            assert_eq!(Own::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn words_change_the_plan() {
        let parse = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Plan::parse(&words)
        };
        let plan = parse("rounds=3 qemu-rounds=0").unwrap();
        assert_eq!((plan.rounds, plan.qemu_rounds), (3, 0));
        assert_eq!(parse("").unwrap().rounds, 20);
        for wrong in ["rounds=0", "rounds", "qemu-rounds=-1", "x=1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_has_medians_and_phases() {
        let start = |output_ms| Start {
            output_ms: Some(output_ms),
            own: Own::parse(LINE),
        };
        let rows = [(
            Contender::BerthBare,
            vec![start(9.0), start(30.0), start(10.0)],
        )];
        let text = table(&rows);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1][3..], ["10.00", "9.00", "30.00", "3"]);
        assert_eq!(lines[3][3..], ["9.50", "9.50", "9.50", "3"]);
        assert_eq!(lines[5], ["kernel", "8.00", "8.00", "8.00", "3"]);
    }
}
