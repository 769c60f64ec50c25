//! Time from the start of a VMM to the first instructions of its guest, kernel load included, and to the
//! guest's first process: berth beside QEMU's machines, with the same kernel, initramfs and host.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::process::Builder;
use harness::{Process, Stdin, Stream, Tree};

use crate::guest::qemu;
use crate::kit::{Form, Kit, Version};

/// Each VMM starts so often, in turn with the others.
const ROUNDS: usize = 5;

/// Longest time to the first process.
const LIMIT: Duration = Duration::from_secs(180);

/// The parts of the way that are timed, in order.
const STAGES: [Stage; 2] = [
    // What unpacks the kernel says this before it does, a few instructions behind the entry point.
    Stage {
        name: "to the kernel's first line, s",
        line: "KASLR disabled",
    },
    Stage {
        name: "to /init, s",
        line: "the first process runs",
    },
];

/// Gives the kernel a reason for its first line, and a console for it.
const APPEND: &str = "earlyprintk=ttyS0 nokaslr quiet";

/// What berth says when it enters the guest, with its own share of the time.
const ENTERS: &str = "the guest starts after ";

/// Memory of a guest.
const MEMORY: &str = "512M";

/// How far a guest has come when it prints a line.
struct Stage {
    name: &'static str,
    line: &'static str,
}

/// How long a guest took to each stage.
type Times = [Duration; STAGES.len()];

/// The VMMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Berth,
    Microvm,
    Q35,
}

const ALL: [Vmm; 3] = [Vmm::Berth, Vmm::Microvm, Vmm::Q35];

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Berth => "berth",
            Self::Microvm => "QEMU microvm",
            Self::Q35 => "QEMU q35",
        })
    }
}

/// What a guest is made of.
struct Parts {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Starts berth and QEMU's machines in turn and prints their times. Which is first is told and not judged:
/// in an emulated machine one start may take ten times as long as the next.
///
/// # Errors
/// When a guest does not get to one of the stages.
pub fn beside_qemu(kit: &Kit) -> Result<()> {
    let dir = harness::scratch()?;
    let parts = Parts {
        kernel: kit.kernel(Version::Newest, Form::BzImage)?,
        initrd: tiny_initramfs(kit, dir.path())?,
    };
    let mut times: [Vec<Times>; 3] = Default::default();
    for round in 1..=ROUNDS {
        for (vmm, times) in ALL.into_iter().zip(&mut times) {
            let time = start(kit, vmm, &parts).with_context(|| format!("{vmm}, round {round}"))?;
            times.push(time);
        }
    }
    for (index, stage) in STAGES.iter().enumerate() {
        let times = times
            .each_ref()
            .map(|row| row.iter().map(|times| times[index]).collect());
        println!("\n{}", table(stage.name, &times));
    }
    Ok(())
}

/// An initramfs whose only work is a line on the console.
fn tiny_initramfs(kit: &Kit, dir: &Path) -> Result<PathBuf> {
    let mut tree = Tree::new();
    tree.folder("dev");
    tree.char_device("dev/console", 5, 1);
    tree.copy("bin/busybox", 0o755, &kit.file("busybox"));
    let [_, last] = STAGES;
    let words = last.line;
    let init =
        format!("#!/bin/busybox sh\necho '{words}'\nwhile :; do /bin/busybox sleep 1000; done\n");
    tree.bytes("init", 0o755, init);
    let path = dir.join("tiny.cpio");
    tree.write_cpio(&path)?;
    Ok(path)
}

/// Starts a guest, and ends it at its last stage; how long it took to each.
fn start(kit: &Kit, vmm: Vmm, parts: &Parts) -> Result<Times> {
    let builder = match vmm {
        Vmm::Berth => berth(parts)?,
        Vmm::Microvm => machine(kit, "microvm", parts),
        Vmm::Q35 => machine(kit, "q35", parts),
    };
    let builder = builder.stdin(Stdin::Held);
    let mut times = Times::default();
    let begun = Instant::now();
    let process = builder.spawn()?;
    for (stage, time) in STAGES.iter().zip(&mut times) {
        process.wait_for(Stream::Stdout, stage.line, LIMIT, |line| {
            line.contains(stage.line)
        })?;
        *time = begun.elapsed();
    }
    let messages = process.output(Stream::Stderr);
    if let Some(line) = messages.lines().find(|line| line.contains(ENTERS)) {
        println!("{line}");
    }
    Ok(times)
}

fn berth(parts: &Parts) -> Result<Builder> {
    Ok(Process::builder(harness::berth_binary()?)
        .args(["run", "-v", "-m", MEMORY, "--append", APPEND, "--kernel"])
        .arg(&parts.kernel)
        .arg("--initrd")
        .arg(&parts.initrd))
}

/// QEMU with nothing that was not asked for.
fn machine(kit: &Kit, machine: &str, parts: &Parts) -> Builder {
    qemu::command(kit)
        .args(["-M", machine, "-accel", "kvm", "-cpu", "host", "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 {APPEND}"))
        .arg("-kernel")
        .arg(&parts.kernel)
        .arg("-initrd")
        .arg(&parts.initrd)
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn table(name: &str, times: &[Vec<Duration>; 3]) -> String {
    let mut text = format!("{name:31}{:>8}{:>8}  each round", "least", "median");
    for (vmm, times) in ALL.iter().zip(times) {
        let seconds = |time: &Duration| format!("{:.2}", time.as_secs_f64());
        let each: Vec<String> = times.iter().map(seconds).collect();
        let least = times.iter().min().map(seconds).unwrap_or_default();
        let middle = seconds(&median(times));
        text += &format!("\n{vmm:31}{least:>8}{middle:>8}  {}", each.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_each_vmms_median() {
        let times = [[3, 1, 2], [5, 9, 4], [7, 7, 7]];
        let times = times.map(|row| row.map(Duration::from_secs).to_vec());
        let text = table("to /init, s", &times);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("berth") && lines[1].contains("1.00    2.00  3.00 1.00 2.00"));
        assert!(lines[2].starts_with("QEMU microvm") && lines[2].contains("4.00    5.00  5.00"));
    }
}
