//! What an idle guest costs: berth's CPU use and its own memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Running};
use crate::kit::Kit;

/// Most of one CPU that berth may use for an idle guest, in percent.
const CPU_LIMIT: f64 = 1.0;

/// The same for the threads that run the guest where the CPU is emulated: the
/// guest's own timer interrupts take there many times what they take on a CPU.
const EMULATED_VCPU_LIMIT: f64 = 5.0;

/// Environment variable that the outer machine sets.
pub const EMULATED: &str = "BERTH_TEST_EMULATED";

/// Most KiB that berth may hold besides the guest's memory.
const MEMORY_LIMIT_KIB: u64 = 8 << 10;

/// How long CPU use is watched.
const WINDOW: Duration = Duration::from_secs(5);

/// A guest that just booted still has things to do; one window must be idle.
const WINDOWS: u32 = 6;

/// CPU use in percent of one CPU.
#[derive(Debug, Clone, Copy)]
struct CpuUse {
    /// Of the threads that run the guest, guest's own execution included.
    vcpus: f64,
    /// Of all others.
    others: f64,
}

/// The figures.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    cpu: CpuUse,
    /// Resident KiB without the guest's memory.
    memory_kib: u64,
}

impl CpuUse {
    fn fits(self) -> bool {
        if std::env::var_os(EMULATED).is_some() {
            self.others < CPU_LIMIT && self.vcpus < EMULATED_VCPU_LIMIT
        } else {
            self.others + self.vcpus < CPU_LIMIT
        }
    }
}

impl Cost {
    /// Do all figures keep their limits?
    pub fn fits(&self) -> bool {
        self.cpu.fits() && self.memory_kib <= MEMORY_LIMIT_KIB
    }

    /// The figures with their limits, for people.
    pub fn tell(&self) -> String {
        let word = |fits| if fits { "ok" } else { "FAILED" };
        let limit = if std::env::var_os(EMULATED).is_some() {
            format!(
                "{CPU_LIMIT} %, and {EMULATED_VCPU_LIMIT} % to run the guest: the CPU is emulated"
            )
        } else {
            format!("{CPU_LIMIT} % in all")
        };
        format!(
            "idle guest, CPU use: {:.2} %, and {:.2} % to run the guest (limit {limit}): {}\n\
             idle guest, berth's own memory: {} KiB (limit {MEMORY_LIMIT_KIB} KiB): {}",
            self.cpu.others,
            self.cpu.vcpus,
            word(self.cpu.fits()),
            self.memory_kib,
            word(self.memory_kib <= MEMORY_LIMIT_KIB)
        )
    }
}

/// Prints the figures; true if all keep their limits.
///
/// # Errors
/// When the guest does not boot or the figures are not to be had.
pub fn run(kit: &Kit) -> Result<bool> {
    let cost = idle(kit)?;
    println!("{}", cost.tell());
    Ok(cost.fits())
}

/// Boots a guest with one controller, leaves it alone, and measures berth.
///
/// # Errors
/// When the guest does not boot or the figures are not to be had.
pub fn idle(kit: &Kit) -> Result<Cost> {
    let mut guest = Guest::new(kit, "idle")?.new_disk(16)?.start()?;
    guest.phase("idle", Duration::ZERO)?;
    let mut cpu = cpu_use(&guest)?;
    for _ in 1..WINDOWS {
        if cpu.fits() {
            break;
        }
        cpu = cpu_use(&guest)?;
    }
    let memory_kib = own_memory(guest.pid())?;
    guest.go()?;
    guest.succeed(Duration::from_secs(30))?;
    Ok(Cost { cpu, memory_kib })
}

/// CPU use over a window. Watching takes time by its nature: this waits for no
/// event.
fn cpu_use(guest: &Running) -> Result<CpuUse> {
    let before = cpu_time(guest.pid())?;
    let start = Instant::now();
    std::thread::sleep(WINDOW);
    let after = cpu_time(guest.pid())?;
    let percent = |after: Duration, before: Duration| {
        after.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
    };
    Ok(CpuUse {
        vcpus: percent(after.0, before.0),
        others: percent(after.1, before.1),
    })
}

/// CPU time of the threads that run the guest and of all others, from the
/// first figure of their schedstat (ns).
fn cpu_time(pid: i32) -> Result<(Duration, Duration)> {
    let (mut vcpus, mut others) = (Duration::ZERO, Duration::ZERO);
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let task = task?.path();
        let text = fs::read_to_string(task.join("schedstat"))?;
        let first = text.split(' ').next().unwrap_or_default();
        let used = Duration::from_nanos(first.parse().context("schedstat is no number")?);
        if fs::read_to_string(task.join("comm"))?.starts_with("vcpu") {
            vcpus += used;
        } else {
            others += used;
        }
    }
    ensure!(!vcpus.is_zero(), "no thread of berth is called vcpu*");
    Ok((vcpus, others))
}

/// Resident KiB of all mappings but the guest's memory, which is a memfd.
fn own_memory(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (own, guest) = resident(&text);
    ensure!(
        guest > 0,
        "berth has no memfd mapped: cannot tell its own memory from the guest's"
    );
    Ok(own)
}

/// Resident KiB outside and inside memfd mappings.
fn resident(smaps: &str) -> (u64, u64) {
    let (mut own, mut guest) = (0, 0);
    let mut in_memfd = false;
    for line in smaps.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kib: u64 = rest
                .split_whitespace()
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            *(if in_memfd { &mut guest } else { &mut own }) += kib;
        } else if line
            .split(' ')
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            in_memfd = line.contains("/memfd:");
        }
    }
    (own, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "55e0-55f0 r-xp 00000000 fe:00 12 /bin/berth\nSize: 64 kB\nRss:  48 kB\n\
                     7f00-7f90 rw-s 00000000 00:01 7 /memfd:guest-ram (deleted)\nRss: 9000 kB\n\
                     7ff0-7ff8 rw-p 00000000 00:00 0 [stack]\nRss: 12 kB\nVmFlags: rd wr\n";
        assert_eq!(resident(smaps), (60, 9000));
    }
}
