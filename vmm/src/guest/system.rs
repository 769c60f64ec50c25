//! The guest's system: its mounts, its modules, its root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags as Flags, mount, mount_move, mount_remount};

use super::NotRun;
use crate::guest_command::task::RootDisk;

/// How long a disk may take to be there.
const DISK_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const DISK_INTERVAL: Duration = Duration::from_millis(5);
/// Where the new root is before it is the root.
const NEW_ROOT: &str = "/.berth/root";

/// What is mounted everywhere: type, place, flags, options.
const MOUNTS: [(&str, &str, Flags, &str); 6] = [
    ("devtmpfs", "/dev", Flags::NOSUID, "mode=0755"),
    ("proc", "/proc", Flags::NOSUID, ""),
    ("sysfs", "/sys", Flags::NOSUID, ""),
    (
        "devpts",
        "/dev/pts",
        Flags::NOSUID,
        "mode=0620,ptmxmode=0666",
    ),
    ("tmpfs", "/dev/shm", Flags::NOSUID, "mode=1777"),
    ("tmpfs", "/run", Flags::NOSUID, "mode=0755"),
];

/// What devtmpfs leaves to others.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts the kernel's file systems below `root`.
///
/// # Errors
/// One of the three without which nothing goes is not to be had.
pub fn mount_all(root: &str) -> Result<(), NotRun> {
    for (index, (kind, place, flags, options)) in MOUNTS.into_iter().enumerate() {
        let place = format!("{root}{place}");
        // A root that cannot be written has the directory or goes without.
        let _ = fs::create_dir_all(&place);
        let options = std::ffi::CString::new(options).unwrap_or_default();
        match mount(kind, &place, kind, flags, options.as_c_str()) {
            // Some kernels mount it themselves.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) if index < 3 => return Err(NotRun::unready(&place, error)),
            Err(error) => eprintln!("berth: {place}: {error}"),
        }
    }
    for (target, link) in LINKS {
        // Where it is there already it is right.
        let _ = symlink(target, format!("{root}{link}"));
    }
    Ok(())
}

/// Loads a kernel module from a file.
///
/// # Errors
/// The kernel refused it.
pub fn load(path: &str) -> Result<(), NotRun> {
    let failed = |error: io::Error| NotRun::unready(path, error);
    let file = File::open(path).map_err(failed)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(error.into())),
    }
    // It takes memory that nobody else needs.
    fs::remove_file(path).map_err(failed)
}

/// Makes a disk the root, with the kernel's file systems in it.
///
/// # Errors
/// It does not come up, or cannot be mounted.
pub fn enter(root: &RootDisk) -> Result<(), NotRun> {
    let device = find(&root.uuid)?;
    let name = device.display().to_string();
    let failed = |error: Errno| {
        let hint = match error {
            Errno::NODEV => "; the kernel lacks this file system: name its module with --module",
            _ => "",
        };
        let what = format!("{name} cannot be mounted as {}", root.file_system);
        NotRun::unready(&what, format!("{error}{hint}"))
    };
    fs::create_dir_all(NEW_ROOT).map_err(|error| NotRun::unready(NEW_ROOT, error))?;
    let flags = if root.read_only {
        Flags::RDONLY
    } else {
        Flags::empty()
    };
    mount(&device, NEW_ROOT, root.file_system.as_str(), flags, None).map_err(failed)?;
    mount_all(NEW_ROOT)?;
    if root.read_only {
        let place = format!("{NEW_ROOT}/tmp");
        if let Err(error) = mount("tmpfs", &place, "tmpfs", Flags::NOSUID, c"mode=1777") {
            eprintln!("berth: {place}: {error}");
        }
    }
    std::env::set_current_dir(NEW_ROOT).map_err(|error| NotRun::unready(NEW_ROOT, error))?;
    let moved = mount_move(".", "/").and_then(|()| rustix::process::chroot("."));
    moved.map_err(|error| NotRun::unready("the new root", error))
}

/// Waits for the namespace with this UUID and returns its device.
fn find(uuid: &str) -> Result<PathBuf, NotRun> {
    let start = Instant::now();
    loop {
        let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        for entry in entries {
            let told = fs::read_to_string(entry.path().join("uuid")).unwrap_or_default();
            let device = PathBuf::from("/dev").join(entry.file_name());
            if told.trim() == uuid && device.exists() {
                return Ok(device);
            }
        }
        if start.elapsed() > DISK_LIMIT {
            let seen = fs::read_dir("/sys/block").into_iter().flatten().flatten();
            let seen: Vec<_> = seen.map(|entry| entry.file_name()).collect();
            let problem = format!(
                "did not come up; the kernel has {seen:?}; if it lacks NVMe, name the module: \
                 --module nvme"
            );
            return Err(NotRun::unready("the disk of --rootfs", problem));
        }
        thread::sleep(DISK_INTERVAL);
    }
}

/// Brings everything to the disks, when only this process is left.
pub fn settle() {
    rustix::fs::sync();
    // A journal that need not be replayed. Fails where the root is memory.
    let _ = mount_remount("/", Flags::RDONLY, "");
}
