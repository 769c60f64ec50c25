//! The bare-metal bench guest, on berth and on QEMU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Process, Stdin, Stream};
use serde_json::Value;

use crate::files::Image;
use crate::plan::{Place, Plan};
use crate::sample::Sample;

/// Longest start and warm-up; QEMU's firmware alone takes seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Environment variable that names the guest's ELF image.
const GUEST: &str = "BARE_GUEST";

/// The counters that berth tells, by their names in `info stats`.
const QUEUE_COUNTERS: [&str; 3] = ["doorbell_exits", "ioeventfd_wakeups", "interrupts"];
const THREAD_COUNTERS: [&str; 3] = ["enters", "sleeps", "polled"];

fn guest() -> Result<PathBuf> {
    let named = std::env::var_os(GUEST);
    Ok(named
        .with_context(|| format!("{GUEST} must name the bare-metal guest; cargo xtask bench does"))?
        .into())
}

fn words(plan: &Plan, shadow: bool) -> String {
    let depths: Vec<String> = plan.depths.iter().map(u32::to_string).collect();
    format!(
        "test=bench rw={} bs={} qd={} ms={} shadow={}",
        plan.rw,
        plan.block,
        depths.join(","),
        plan.ms,
        if shadow { "on" } else { "off" }
    )
}

/// Commands and microseconds of a line END.
fn parse_end(line: &str) -> Result<(f64, f64)> {
    let field = |key: &str| -> Option<f64> {
        let word = line
            .split_whitespace()
            .find_map(|it| it.strip_prefix(key))?;
        word.parse().ok()
    };
    let (commands, us) = field("commands=")
        .zip(field("us="))
        .with_context(|| format!("no figures in {line:?}"))?;
    ensure!(commands > 0.0 && us > 0.0, "nothing was done: {line:?}");
    Ok((commands, us))
}

fn limit(plan: &Plan) -> Duration {
    START_LIMIT + Duration::from_millis(plan.ms)
}

/// One sample for each depth.
///
/// # Errors
/// berth or the guest failed.
pub fn on_berth(plan: &Plan, image: &Image, shadow: bool, poll_us: u64) -> Result<Vec<Sample>> {
    let scratch = harness::scratch()?;
    let socket = scratch.path().join("control");
    let disk = match (image.place, &image.path) {
        (Place::Disk, Some(path)) => format!("file={},cache=none", path.display()),
        (_, Some(path)) => format!("file={}", path.display()),
        (Place::Memory, None) => format!("memory={}", image.bytes),
        (_, None) => format!("null={}", image.bytes),
    };
    let mut berth = Process::builder(harness::berth_binary()?)
        .args(["run", "-m", "512", "--kernel"])
        .arg(guest()?)
        .args(["--append", &format!("{} hold", words(plan, shadow))])
        .args(["--device", &format!("nvme,id=c,poll-us={poll_us}")])
        .args(["--device", &format!("nvme-ns,bus=c,{disk}")])
        .arg("--control-socket")
        .arg(&socket)
        .stdin(Stdin::Held)
        .spawn()?;
    let mut samples = Vec::new();
    for _ in &plan.depths {
        let before = counters_at_hold(&mut berth, &socket, plan)?;
        let after = counters_at_hold(&mut berth, &socket, plan)?;
        // It was printed before the guest held.
        let printed = berth.output(Stream::Stdout);
        let end = printed.lines().rfind(|line| line.starts_with("END bench"));
        let (commands, us) = parse_end(end.unwrap_or_default())?;
        let per_io = after
            .into_iter()
            .map(|(name, value)| (name, (value - before[name]) / commands));
        samples.push(Sample {
            iops: commands * 1e6 / us,
            per_io: per_io.collect(),
        });
    }
    let done = berth.finish(START_LIMIT)?;
    ensure!(done.exit.success(), "berth: {}\n{}", done.exit, done.stderr);
    Ok(samples)
}

/// Waits until the guest holds, reads berth's counters, and lets it go on.
fn counters_at_hold(
    berth: &mut Process,
    socket: &Path,
    plan: &Plan,
) -> Result<BTreeMap<&'static str, f64>> {
    berth.wait_for(Stream::Stdout, "HOLD", limit(plan), |line| {
        line.trim() == "HOLD"
    })?;
    let done = Process::builder(harness::berth_binary()?)
        .arg("ctl")
        .arg(socket)
        .args(["info", "stats"])
        .run(START_LIMIT)?;
    ensure!(done.exit.success(), "berth ctl: {}", done.stderr);
    let stats: Value = serde_json::from_str(&done.stdout)?;
    berth.send(b"\n")?;
    Ok(counters(&stats))
}

/// Sums over all I/O queues and I/O threads.
fn counters(stats: &Value) -> BTreeMap<&'static str, f64> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let queues = list(&stats["controllers"]);
    let queues = queues
        .iter()
        .flat_map(|controller| list(&controller["queues"]));
    let queues: Vec<Value> = queues.filter(|queue| queue["sqid"] != 0).collect();
    let threads = list(&stats["iothreads"]);
    let sum = |rows: &[Value], name: &str| rows.iter().filter_map(|row| row[name].as_f64()).sum();
    let of_queues = QUEUE_COUNTERS.map(|name| (name, sum(&queues, name)));
    let of_threads = THREAD_COUNTERS.map(|name| (name, sum(&threads, name)));
    of_queues.into_iter().chain(of_threads).collect()
}

/// One sample for each depth.
///
/// # Errors
/// QEMU or the guest failed.
pub fn on_qemu(
    plan: &Plan,
    image: &Image,
    shadow: bool,
    ioeventfd: bool,
    aio: &str,
) -> Result<Vec<Sample>> {
    let path = image.path.as_ref().context("QEMU needs a file")?;
    let cache = if image.place == Place::Disk {
        "none"
    } else {
        "writeback"
    };
    let switch = if ioeventfd { "on" } else { "off" };
    let runs = u32::try_from(plan.depths.len())?;
    let done = Process::builder("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "qemu64", "-m", "512", "-kernel"])
        .arg(guest()?)
        .args(["-append", &words(plan, shadow)])
        .args(["-nographic", "-no-reboot", "-net", "none", "-vga", "none"])
        .args([
            "-drive",
            &format!(
                "file={},if=none,id=d,format=raw,cache={cache},aio={aio}",
                path.display()
            ),
            "-device",
            &format!("nvme,drive=d,serial=x,ioeventfd={switch}"),
        ])
        .run(limit(plan) + limit(plan) * runs)?;
    let ends = done
        .stdout
        .lines()
        .filter(|line| line.starts_with("END bench"));
    let samples: Result<Vec<Sample>> = ends
        .map(|line| {
            let (commands, us) = parse_end(line)?;
            Ok(Sample {
                iops: commands * 1e6 / us,
                per_io: BTreeMap::new(),
            })
        })
        .collect();
    let samples = samples?;
    if samples.len() != plan.depths.len() {
        bail!("QEMU: {}\n{}{}", done.exit, done.stdout, done.stderr);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn figures_are_read_from_the_guests_line() {
        let line = "END bench commands=2000 us=500 iops=4000000 doorbells=63";
        assert_eq!(parse_end(line).unwrap(), (2000.0, 500.0));
        for wrong in ["TEST bench ... FAILED: x", "END bench commands=0 us=5", ""] {
            assert!(parse_end(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn counters_leave_the_admin_queue_out() {
        let stats = json!({
            "controllers": [{ "queues": [
                { "sqid": 0, "doorbell_exits": 100, "interrupts": 100 },
                { "sqid": 1, "doorbell_exits": 3, "ioeventfd_wakeups": 4, "interrupts": 5 },
                { "sqid": 2, "doorbell_exits": 10 },
            ] }],
            "iothreads": [{ "enters": 7, "sleeps": 1 }, { "enters": 2, "sleeps": 1 }],
        });
        let expected = [
            ("doorbell_exits", 13.0),
            ("ioeventfd_wakeups", 4.0),
            ("interrupts", 5.0),
            ("enters", 9.0),
            ("sleeps", 2.0),
            ("polled", 0.0),
        ];
        assert_eq!(counters(&stats), BTreeMap::from(expected));
    }
}
