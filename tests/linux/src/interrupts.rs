//! Interrupts and exits per I/O of a guest with Linux's own driver, on berth and on QEMU's NVMe device:
//! the same kernel, initramfs, reads and host.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::counters::IoCounters;
use crate::guest::{Guest, Running};
use crate::kit::Kit;
use crate::kvmstat::Exits;
use crate::scenarios::SHORT;

/// One load of the guest's task, by its name there.
const LOADS: [&str; 2] = ["depth-1", "depth-32"];

/// The load with interrupt coalescing, which only berth's guest has.
const COALESCED: &str = "coalesced";

/// Interrupt Coalescing (NVMe 2.0, figure 320): up to 16 completions, up to 10 ms.
const COALESCING: u32 = 100 << 8 | (16 - 1);

/// Size of the disk.
const DISK_BYTES: u64 = 8 << 20;

/// Longest time for one load.
const LIMIT: Duration = Duration::from_secs(120);

/// Most doorbell writes per I/O that leave the guest for berth at depth 32.
const DOORBELL_EXITS: f64 = 0.05;

/// What one load did.
struct Sample {
    vmm: &'static str,
    load: &'static str,
    /// I/Os by the guest's count.
    ios: u64,
    /// Interrupts by the guest's count.
    interrupts: u64,
    /// KVM's count.
    exits: Option<Exits>,
    /// berth's count.
    counters: Option<IoCounters>,
}

/// Compares berth with QEMU.
///
/// # Errors
/// When a guest fails, or berth's counts break a limit.
pub fn per_io(kit: &Kit) -> Result<()> {
    let mut samples = on_berth(kit)?;
    let others = on_qemu(kit).map(|others| samples.extend(others));
    println!("\n{}", Table(&samples));
    others?;
    judge(&samples)
}

fn guest(kit: &Kit) -> Result<Guest> {
    Ok(Guest::new(kit, "interrupts")?.initrd(Some(kit.file("full.cpio"))))
}

fn on_berth(kit: &Kit) -> Result<Vec<Sample>> {
    let guest = guest(kit)?.append(format!("berth.coalescing={COALESCING:#x}"));
    let image = guest.image("disk.img", DISK_BYTES)?;
    let running = guest.disk(&image).start()?;
    let loads = [LOADS[0], LOADS[1], COALESCED];
    watch(running, "berth", &loads, |guest| {
        IoCounters::at_rest(guest).map(Some)
    })
}

fn on_qemu(kit: &Kit) -> Result<Vec<Sample>> {
    let guest = guest(kit)?.append("berth.vmm=qemu");
    let image = guest.image("disk.img", DISK_BYTES)?;
    let running = guest.start_on_qemu(kit, &image)?;
    watch(running, "QEMU", &LOADS, |_| Ok(None))
}

/// Takes the counters before and after each load; the guest's own are in its results.
fn watch(
    mut guest: Running,
    vmm: &'static str,
    loads: &[&'static str],
    counters: impl Fn(&Running) -> Result<Option<IoCounters>>,
) -> Result<Vec<Sample>> {
    let look =
        |guest: &Running| Ok::<_, anyhow::Error>((counters(guest)?, Exits::read(guest.pid())?));
    let mut seen = Vec::new();
    for load in loads {
        guest.phase(&format!("before-{load}"), LIMIT)?;
        let before = look(&guest)?;
        guest.go()?;
        guest.phase(&format!("after-{load}"), LIMIT)?;
        let after = look(&guest)?;
        guest.go()?;
        seen.push((
            after
                .0
                .zip(before.0)
                .map(|(after, before)| after.since(before)),
            after
                .1
                .zip(before.1)
                .map(|(after, before)| after.since(before)),
        ));
    }
    let results = guest.succeed(SHORT)?.results;
    loads
        .iter()
        .zip(seen)
        .map(|(load, (counters, exits))| {
            let (ios, interrupts) = counted(&results, load)
                .with_context(|| format!("the guest did not count load {load}:\n{results}"))?;
            Ok(Sample {
                vmm,
                load,
                ios,
                interrupts,
                exits,
                counters,
            })
        })
        .collect()
}

/// From the guest's line `LOAD NAME IOS INTERRUPTS`.
fn counted(results: &str, load: &str) -> Option<(u64, u64)> {
    let start = format!("LOAD {load} ");
    let rest = results.lines().find_map(|line| line.strip_prefix(&start))?;
    let (ios, interrupts) = rest.split_once(' ')?;
    Some((ios.parse().ok()?, interrupts.parse().ok()?))
}

impl Sample {
    fn per_io(&self, count: u64) -> f64 {
        // Exact: these counts are far below 2^52.
        count as f64 / self.ios as f64
    }
}

/// What holds by design: an interrupt tells of at least one completion, and with shadow doorbells
/// berth leaves the kernel for next to none of them.
fn judge(samples: &[Sample]) -> Result<()> {
    for sample in samples {
        let Sample {
            vmm,
            load,
            ios,
            interrupts,
            ..
        } = sample;
        ensure!(*interrupts > 0, "{vmm}, {load}: no interrupt was counted");
        let Some(counters) = sample.counters else {
            continue;
        };
        ensure!(
            counters.commands >= *ios,
            "{load}: {ios} I/Os in the guest, and {counters:?}"
        );
        ensure!(
            *interrupts <= counters.interrupts && counters.interrupts <= counters.completions,
            "{load}: {interrupts} interrupts in the guest, and {counters:?}"
        );
        let exits = sample.per_io(counters.doorbell_exits);
        ensure!(
            *load == LOADS[0] || exits <= DOORBELL_EXITS,
            "{load}: {exits:.3} doorbell exits per I/O, limit {DOORBELL_EXITS}"
        );
    }
    Ok(())
}

/// The samples for people.
struct Table<'a>(&'a [Sample]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "4 KiB random reads of a Linux guest, per I/O:")?;
        writeln!(
            f,
            "{:6}{:>10}{:>7}{:>12}{:>12}{:>12}{:>10}{:>12}{:>10}",
            "",
            "",
            "I/Os",
            "interrupts",
            "MMIO exits",
            "all exits",
            "raised",
            "bell exits",
            "wake-ups"
        )?;
        for sample in self.0 {
            let number = |count: Option<u64>| match count {
                Some(count) => format!("{:.3}", sample.per_io(count)),
                None => "-".to_owned(),
            };
            writeln!(
                f,
                "{:6}{:>10}{:>7}{:>12}{:>12}{:>12}{:>10}{:>12}{:>10}",
                sample.vmm,
                sample.load,
                sample.ios,
                number(Some(sample.interrupts)),
                number(sample.exits.map(|exits| exits.mmio)),
                number(sample.exits.map(|exits| exits.all)),
                number(sample.counters.map(|counters| counters.interrupts)),
                number(sample.counters.map(|counters| counters.doorbell_exits)),
                number(sample.counters.map(|counters| counters.wakeups)),
            )?;
        }
        write!(
            f,
            "interrupts: by the guest's count; exits: by KVM's, MMIO are those to the VMM;\n\
             the others by berth's own; -: not available"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(load: &'static str, interrupts: u64, counters: IoCounters) -> Sample {
        Sample {
            vmm: "berth",
            load,
            ios: 100,
            interrupts,
            exits: None,
            counters: Some(counters),
        }
    }

    #[test]
    fn the_guests_count_is_found() {
        let results = "ok: x\nLOAD depth-1 7 8\nLOAD depth-32 4096 311\nEXIT 0\n";
        assert_eq!(counted(results, "depth-32"), Some((4096, 311)));
        assert_eq!(counted(results, "depth-3"), None);
    }

    #[test]
    fn counts_that_cannot_be_are_seen() {
        let counters = IoCounters {
            commands: 100,
            completions: 100,
            doorbell_exits: 5,
            wakeups: 50,
            interrupts: 40,
        };
        let good = |load| judge(&[sample(load, 40, counters)]).is_ok();
        assert!(good(LOADS[0]) && good(LOADS[1]));
        assert!(judge(&[sample(LOADS[1], 41, counters)]).is_err());
        assert!(judge(&[sample(LOADS[1], 0, counters)]).is_err());
        let exits = IoCounters {
            doorbell_exits: 6,
            ..counters
        };
        assert!(judge(&[sample(LOADS[1], 40, exits)]).is_err());
        assert!(judge(&[sample(LOADS[0], 40, exits)]).is_ok());
    }
}
