//! The bare-metal bench guest, on berth and on QEMU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Process, Stdin, Stream};
use serde_json::Value;

use crate::cpu::CpuTime;
use crate::files::Image;
use crate::plan::{Place, Plan};
use crate::sample::Sample;

/// Longest start and warm-up; QEMU's firmware alone takes seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Environment variable that names the guest's ELF image.
const GUEST: &str = "BARE_GUEST";

/// The counters that berth may tell, by their names in `info stats`.
const QUEUE_COUNTERS: [&str; 3] = ["doorbell_exits", "ioeventfd_wakeups", "interrupts"];
const THREAD_COUNTERS: [&str; 4] = ["enters", "inline", "sleeps", "polled"];

type Counters = BTreeMap<&'static str, f64>;

/// The guest's ELF image.
///
/// # Errors
/// `BARE_GUEST` does not name it.
pub fn guest() -> Result<PathBuf> {
    let named = std::env::var_os(GUEST);
    Ok(named
        .with_context(|| format!("{GUEST} must name the bare-metal guest; cargo xtask bench does"))?
        .into())
}

/// The guest's command line; `driver` are the words for its driver.
fn words(plan: &Plan, place: Place, driver: &str) -> String {
    let depths: Vec<String> = plan.depths.iter().map(u32::to_string).collect();
    // Memory that was never written is one page of zeroes for all its addresses.
    let fill = if place == Place::Memory { " fill" } else { "" };
    format!(
        "test=bench rw={} mix={} bs={} qd={} pairs={} ms={} {driver} hold{fill}",
        plan.rw,
        plan.mix,
        plan.block,
        depths.join(","),
        plan.pairs,
        plan.ms,
    )
}

fn shadow_word(shadow: bool) -> &'static str {
    if shadow { "shadow=on" } else { "shadow=off" }
}

/// Figures of a line END.
#[derive(Debug, Clone, Copy, PartialEq)]
struct End {
    commands: f64,
    us: f64,
    doorbells: f64,
}

impl End {
    fn parse(line: &str) -> Result<Self> {
        let field = |key: &str| -> Result<f64> {
            let mut words = line.split_whitespace();
            let word = words.find_map(|it| it.strip_prefix(key));
            word.and_then(|it| it.parse().ok())
                .with_context(|| format!("no figure {key} in {line:?}"))
        };
        let end = Self {
            commands: field("commands=")?,
            us: field("us=")?,
            doorbells: field("doorbells=")?,
        };
        ensure!(
            end.commands > 0.0 && end.us > 0.0,
            "nothing was done: {line:?}"
        );
        Ok(end)
    }
}

/// One sample for each depth.
///
/// # Errors
/// berth or the guest failed.
pub fn on_berth(
    plan: &Plan,
    image: &Image,
    shadow: bool,
    poll_us: Option<u64>,
) -> Result<Vec<Sample>> {
    let scratch = harness::scratch()?;
    let socket = scratch.path().join("control");
    let poll = poll_us.map_or_else(String::new, |it| format!(",poll-us={it}"));
    let disk = match (image.place, &image.path) {
        (Place::Disk, Some(path)) => format!("file={},cache=none", path.display()),
        (_, Some(path)) => format!("file={}", path.display()),
        (Place::Memory, None) => format!("memory={}", image.bytes),
        (_, None) => format!("null={}", image.bytes),
    };
    let affinity = plan.io_affinity.iter();
    let berth = Process::builder(harness::berth_binary()?)
        .args(["run", "-m", "512", "--kernel"])
        .arg(guest()?)
        .args(["--append", &words(plan, image.place, shadow_word(shadow))])
        .args(["--io-threads", &plan.io_threads().to_string()])
        .args(affinity.map(|cpus| format!("--io-affinity={cpus}")))
        .args(["--device", &format!("nvme,id=c{poll}")])
        .args(["--device", &format!("nvme-ns,bus=c,{disk}")])
        .arg("--control-socket")
        .arg(&socket)
        .stdin(Stdin::Held)
        .spawn()?;
    measure(berth, plan, || berth_counters(&socket))
}

/// The device that QEMU shows its guest.
#[derive(Debug, Clone, Copy)]
pub enum QemuDevice {
    /// Its NVMe controller.
    Nvme {
        /// With shadow doorbells.
        shadow: bool,
        /// The device's `ioeventfd`.
        ioeventfd: bool,
    },
    /// Its virtio block device, in an I/O thread with the polling that is QEMU's default.
    Virtio,
}

/// One sample for each depth.
///
/// # Errors
/// QEMU or the guest failed.
pub fn on_qemu(plan: &Plan, image: &Image, device: QemuDevice, aio: &str) -> Result<Vec<Sample>> {
    let path = image.path.as_ref().context("QEMU needs a file")?;
    let cache = if image.place == Place::Disk {
        "none"
    } else {
        "writeback"
    };
    let (driver, device) = match device {
        QemuDevice::Nvme { shadow, ioeventfd } => {
            let switch = if ioeventfd { "on" } else { "off" };
            let device = format!("nvme,drive=d,serial=x,ioeventfd={switch}");
            (shadow_word(shadow), device)
        }
        QemuDevice::Virtio => {
            let device = "virtio-blk-pci,drive=d,iothread=t,disable-legacy=on,queue-size=256";
            let device = format!("{device},num-queues={}", plan.pairs);
            ("driver=virtio-blk", device)
        }
    };
    let drive = format!(
        "file={},if=none,id=d,format=raw,cache={cache},aio={aio}",
        path.display()
    );
    let qemu = Process::builder("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "qemu64", "-m", "512", "-kernel"])
        .arg(guest()?)
        .args(["-append", &words(plan, image.place, driver)])
        .args(["-nographic", "-no-reboot", "-net", "none", "-vga", "none"])
        .args(["-object", "iothread,id=t"])
        .args(["-drive", &drive, "-device", &device])
        .stdin(Stdin::Held)
        .spawn()?;
    measure(qemu, plan, || Ok(Counters::new()))
}

/// Takes a VMM through all loads of its guest; `read` reads its counters.
fn measure(
    mut vmm: Process,
    plan: &Plan,
    read: impl Fn() -> Result<Counters>,
) -> Result<Vec<Sample>> {
    let limit = START_LIMIT + Duration::from_millis(plan.ms);
    let mut samples = Vec::new();
    for _ in &plan.depths {
        // The guest holds with its load ahead, and once more right behind it. It spins in both, so
        // that CPU time is read last before and first behind.
        wait_for_hold(&vmm, limit)?;
        let before = read()?;
        let cpu_before = CpuTime::of(vmm.pid())?;
        vmm.send(b"\n")?;
        wait_for_hold(&vmm, limit)?;
        let cpu_after = CpuTime::of(vmm.pid())?;
        let after = read()?;
        vmm.send(b"\n")?;
        let end = wait_for_end(&vmm, limit)?;
        let mut sample = Sample::new(end.commands * 1e6 / end.us);
        for (name, value) in after {
            let change = value - before.get(name).copied().unwrap_or(0.0);
            sample.per_io.insert(name, change / end.commands);
        }
        sample
            .per_io
            .insert("doorbells", end.doorbells / end.commands);
        sample.add_cpu(cpu_before, cpu_after, end.commands);
        samples.push(sample);
    }
    let done = vmm.finish(START_LIMIT)?;
    ensure!(
        done.exit.success(),
        "{}\n{}{}",
        done.exit,
        done.stdout,
        done.stderr
    );
    Ok(samples)
}

fn wait_for_hold(vmm: &Process, limit: Duration) -> Result<()> {
    vmm.wait_for(Stream::Stdout, "HOLD", limit, |line| line.trim() == "HOLD")?;
    Ok(())
}

/// The line END, once a line behind it shows that it is whole.
fn wait_for_end(vmm: &Process, limit: Duration) -> Result<End> {
    vmm.wait_for(Stream::Stdout, "the line behind END", limit, |line| {
        line.starts_with("START bench") || line.starts_with("TEST bench")
    })?;
    let printed = vmm.output(Stream::Stdout);
    let end = printed.lines().rfind(|line| line.starts_with("END bench"));
    End::parse(end.unwrap_or_default())
}

fn berth_counters(socket: &Path) -> Result<Counters> {
    let done = Process::builder(harness::berth_binary()?)
        .arg("ctl")
        .arg(socket)
        .args(["info", "stats"])
        .run(START_LIMIT)?;
    ensure!(done.exit.success(), "berth ctl: {}", done.stderr);
    Ok(counters(&serde_json::from_str(&done.stdout)?))
}

/// Sums over all I/O queues and I/O threads of what any of them tells.
fn counters(stats: &Value) -> Counters {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let queues = list(&stats["controllers"]);
    let queues = queues
        .iter()
        .flat_map(|controller| list(&controller["queues"]));
    let queues: Vec<Value> = queues.filter(|queue| queue["sqid"] != 0).collect();
    let threads = list(&stats["iothreads"]);
    let sum = |rows: &[Value], name: &'static str| {
        let values = rows.iter().filter_map(|row| row[name].as_f64());
        values.reduce(|a, b| a + b).map(|sum| (name, sum))
    };
    let of_queues = QUEUE_COUNTERS.iter().filter_map(|name| sum(&queues, name));
    let of_threads = THREAD_COUNTERS
        .iter()
        .filter_map(|name| sum(&threads, name));
    of_queues.chain(of_threads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_read_from_the_guests_line() {
        let line = "END bench commands=2000 reads=7 us=500 iops=4000000 doorbells=63";
        let expected = End {
            commands: 2000.0,
            us: 500.0,
            doorbells: 63.0,
        };
        assert_eq!(End::parse(line).unwrap(), expected);
        for wrong in [
            "TEST bench ... FAILED: x",
            "END bench commands=0 us=5 doorbells=1",
            "END bench commands=1 us=5 doorbells=",
            "",
        ] {
            assert!(End::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_memory_is_filled_by_the_guest() {
        let plan = Plan {
            depths: vec![1, 32],
            pairs: 2,
            ..Plan::default()
        };
        let expected = "test=bench rw=randread mix=50 bs=4096 qd=1,32 pairs=2 ms=1000 x hold";
        assert_eq!(words(&plan, Place::Tmpfs, "x"), expected);
        let filled = format!("{expected} fill");
        assert_eq!(words(&plan, Place::Memory, "x"), filled);
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
        // Nothing is said of what this berth does not count.
        let expected = [
            ("doorbell_exits", 13.0),
            ("ioeventfd_wakeups", 4.0),
            ("interrupts", 5.0),
            ("enters", 9.0),
            ("sleeps", 2.0),
        ];
        assert_eq!(counters(&stats), Counters::from(expected));
        let thread = json!({ "enters": 7, "inline": 3 });
        let stats = json!({ "iothreads": [thread, thread] });
        let expected = [("enters", 14.0), ("inline", 6.0)];
        assert_eq!(counters(&stats), Counters::from(expected));
    }
}
