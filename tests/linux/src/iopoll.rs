//! Direct I/O on a block device whose driver has queues for polling (`nvme.poll_queues=` of the host's
//! kernel): berth looks for completions there, and nobody is interrupted for them.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::control::Control;
use crate::guest::Guest;
use crate::kit::{Kit, Skipped};
use crate::measure::EMULATED;
use crate::scenarios::{LONG, SHORT};

/// Serial number of the outer machine's disk for this.
pub const SERIAL: &str = "polled";

/// How long a thread without work is watched.
const WINDOW: Duration = Duration::from_secs(3);

/// The guest may have something to do on its disk for so long after a load.
const SETTLED: Duration = Duration::from_secs(20);

/// Least requests whose completion was looked for.
const POLLED: u64 = 1000;

/// A guest's checked I/O on such a device, silence after it, removal, and resets beneath I/O.
///
/// # Errors
/// When a guest fails, its I/O was not polled for, or its I/O thread does not rest.
pub fn on_a_polled_device(kit: &Kit) -> Result<()> {
    let disk = polled_disk()?;
    load_rest_and_removal(kit, &disk)?;
    resets(kit, &disk)
}

fn guest(kit: &Kit, task: &'static str, disk: &Path) -> Result<Guest> {
    let guest = Guest::new(kit, task)?.initrd(Some(kit.file("full.cpio")));
    Ok(guest.device("nvme,id=ctrl").device(format!(
        "nvme-ns,id=ns,bus=ctrl,file={},cache=none",
        disk.display()
    )))
}

fn load_rest_and_removal(kit: &Kit, disk: &Path) -> Result<()> {
    let mut guest = guest(kit, "iopoll", disk)?.start()?;
    guest.phase("idle", LONG)?;
    let mut control = guest.connect()?;
    let after = IoThread::read(&mut control, guest.pid())?;
    println!("polled device, after the load: {after:?}");
    ensure!(
        after.iopolled >= POLLED,
        "hardly any I/O was polled for: {after:?}"
    );
    // Flushes are interrupted for: there is nothing to poll about them.
    ensure!(
        after.iopolled < after.completions,
        "no flush came: {after:?}"
    );
    rests(&mut control, guest.pid())?;
    control.ask("device_del ns wait=10")?;
    // Refused as long as anybody else has it open in this way, as berth had.
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(disk)
        .with_context(|| format!("{} after device_del", disk.display()))?;
    guest.go()?;
    guest.succeed(SHORT)?;
    Ok(())
}

/// The controller is reset with commands at the device, which nobody can take back from there.
fn resets(kit: &Kit, disk: &Path) -> Result<()> {
    guest(kit, "reset", disk)?
        .cpus(2)
        .append("berth.how=controller")
        .succeed(LONG)?;
    Ok(())
}

/// Sees to it that the I/O thread neither works nor wakes while the guest has nothing for it.
fn rests(control: &mut Control, pid: i32) -> Result<()> {
    let start = Instant::now();
    loop {
        let before = IoThread::read(control, pid)?;
        // Watching takes time by its nature: this waits for no event.
        std::thread::sleep(WINDOW);
        let after = IoThread::read(control, pid)?;
        if before == after {
            return Ok(());
        }
        ensure!(
            start.elapsed() < SETTLED,
            "the I/O thread does not rest, in {WINDOW:?} it went from {before:?} to {after:?}"
        );
    }
}

/// What the only I/O thread did so far.
#[derive(Debug, PartialEq, Eq)]
struct IoThread {
    completions: u64,
    iopolled: u64,
    enters: u64,
    sleeps: u64,
    /// CPU time in ns.
    cpu_time: u64,
}

impl IoThread {
    fn read(control: &mut Control, pid: i32) -> Result<Self> {
        let info = control.ask("info iothreads")?;
        Self::parse(&info, cpu_time(pid, "io0")?)
    }

    fn parse(info: &Value, cpu_time: u64) -> Result<Self> {
        let Some([thread]) = info["iothreads"].as_array().map(Vec::as_slice) else {
            bail!("not one I/O thread: {info}");
        };
        let counter = |name: &str| {
            let value = thread[name].as_u64();
            value.with_context(|| format!("no counter {name}: {info}"))
        };
        Ok(Self {
            completions: counter("completions")?,
            iopolled: counter("iopolled")?,
            enters: counter("enters")?,
            sleeps: counter("sleeps")?,
            cpu_time,
        })
    }
}

/// CPU time of a thread by its name, the first figure of its schedstat (ns).
fn cpu_time(pid: i32, name: &str) -> Result<u64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // One may end in between.
        let found = fs::read_to_string(task.join("comm")).unwrap_or_default();
        if found.trim() == name {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let first = text.split(' ').next().unwrap_or_default();
            return first.parse().context("schedstat is no number");
        }
    }
    bail!("no thread of process {pid} is called {name}")
}

/// The block device with [`SERIAL`], which must offer polling.
fn polled_disk() -> Result<PathBuf> {
    let Some(name) = find(Path::new("/sys/class/nvme"))? else {
        let why = format!("no NVMe disk here has the serial number {SERIAL}");
        if std::env::var_os(EMULATED).is_some() {
            bail!(why);
        }
        return Err(Skipped(why).into());
    };
    let attribute = format!("/sys/block/{name}/queue/io_poll");
    let offers = fs::read_to_string(&attribute).with_context(|| attribute.clone())?;
    ensure!(
        offers.trim() == "1",
        "{attribute} is {:?}: the driver got no queue for polling",
        offers.trim()
    );
    Ok(Path::new("/dev").join(name))
}

/// The name of the first namespace of the controller with [`SERIAL`].
fn find(controllers: &Path) -> Result<Option<String>> {
    let Ok(entries) = fs::read_dir(controllers) else {
        return Ok(None);
    };
    for controller in entries {
        let controller = controller?.path();
        let serial = fs::read_to_string(controller.join("serial")).unwrap_or_default();
        if serial.trim() != SERIAL {
            continue;
        }
        for entry in fs::read_dir(&controller)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("nvme") && name.ends_with("n1") {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_disk_is_found_by_its_serial_number() {
        let dir = harness::scratch().unwrap();
        let controller = |name: &str, serial: &str, namespace: &str| {
            let controller = dir.path().join(name);
            fs::create_dir_all(controller.join(namespace)).unwrap();
            fs::create_dir(controller.join("power")).unwrap();
            fs::write(controller.join("serial"), format!("{serial}   \n")).unwrap();
        };
        controller("nvme0", "kit", "nvme0n1");
        assert_eq!(find(dir.path()).unwrap(), None);
        controller("nvme1", SERIAL, "nvme2n1");
        assert_eq!(find(dir.path()).unwrap().as_deref(), Some("nvme2n1"));
        assert_eq!(find(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn counters_are_those_of_the_only_thread() {
        let thread = json!({"index": 0, "completions": 5, "iopolled": 4, "enters": 9, "sleeps": 2});
        let found = IoThread::parse(&json!({"iothreads": [thread]}), 7).unwrap();
        assert_eq!((found.completions, found.iopolled), (5, 4));
        assert_eq!((found.enters, found.sleeps, found.cpu_time), (9, 2, 7));
        assert!(IoThread::parse(&json!({"iothreads": [thread, thread]}), 7).is_err());
        assert!(IoThread::parse(&json!({"iothreads": [{"enters": 1}]}), 7).is_err());
    }
}
