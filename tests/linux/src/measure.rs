//! What an idle guest costs: berth's CPU use and its own memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Running};
use crate::kit::Kit;

/// Most of one CPU that berth may use for an idle guest, in percent.
pub const CPU_LIMIT: f64 = 1.0;

/// Most KiB that berth may hold besides the guest's memory.
pub const MEMORY_LIMIT_KIB: u64 = 8 << 10;

/// How long CPU use is watched.
const WINDOW: Duration = Duration::from_secs(5);

/// A guest that just booted still has things to do; one window must be idle.
const WINDOWS: u32 = 6;

/// The figures.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Percent of one CPU, guest's own execution included.
    pub cpu: f64,
    /// Resident KiB without the guest's memory.
    pub memory_kib: u64,
}

/// Prints the figures; true if both keep their limits.
///
/// # Errors
/// When the guest does not boot or the figures are not to be had.
pub fn run(kit: &Kit) -> Result<bool> {
    let cost = idle(kit)?;
    let cpu_fits = cost.cpu < CPU_LIMIT;
    let memory_fits = cost.memory_kib <= MEMORY_LIMIT_KIB;
    let word = |fits| if fits { "ok" } else { "FAILED" };
    println!(
        "idle guest, CPU use: {:.2} % (limit {CPU_LIMIT} %): {}",
        cost.cpu,
        word(cpu_fits)
    );
    println!(
        "idle guest, berth's own memory: {} KiB (limit {MEMORY_LIMIT_KIB} KiB): {}",
        cost.memory_kib,
        word(memory_fits)
    );
    Ok(cpu_fits && memory_fits)
}

/// Boots a guest with one controller, leaves it alone, and measures berth.
///
/// # Errors
/// When the guest does not boot or the figures are not to be had.
pub fn idle(kit: &Kit) -> Result<Cost> {
    let mut guest = Guest::new(kit, "idle")?.new_disk(16)?.start()?;
    guest.phase("idle", Duration::ZERO)?;
    let mut cpu = f64::INFINITY;
    for _ in 0..WINDOWS {
        cpu = cpu.min(cpu_use(&guest)?);
        if cpu < CPU_LIMIT {
            break;
        }
    }
    let memory_kib = own_memory(guest.pid())?;
    guest.go()?;
    guest.succeed(Duration::from_secs(30))?;
    Ok(Cost { cpu, memory_kib })
}

/// Percent of one CPU over a window. Watching takes time by its nature: this
/// waits for no event.
fn cpu_use(guest: &Running) -> Result<f64> {
    let before = cpu_time(guest.pid())?;
    let start = Instant::now();
    std::thread::sleep(WINDOW);
    let used = cpu_time(guest.pid())?.saturating_sub(before);
    Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// CPU time of all threads, from the first figure of their schedstat (ns).
fn cpu_time(pid: i32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().unwrap_or_default();
        let nanoseconds = first.parse().context("schedstat is no number")?;
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total)
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
