//! What newcomers get wrong: the README's table of mistakes, typed as it stands there, and more.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Guest, Killed, kvm, power_off, print};

const COM1: u16 = 0x3f8;

/// A row: what is typed, and what berth says about it.
struct Mistake {
    typed: String,
    said: String,
}

/// The text between backquotes, one or two of them.
fn code(cell: &str) -> String {
    let cell = cell.trim();
    let ticks = if cell.starts_with("``") { "``" } else { "`" };
    let inside = cell
        .strip_prefix(ticks)
        .and_then(|it| it.strip_suffix(ticks));
    inside
        .unwrap_or_else(|| panic!("no code: {cell}"))
        .to_owned()
}

fn mistakes() -> Vec<Mistake> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let table = readme.split("| mistake | berth says |\n").nth(1).unwrap();
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let mistake = |row: &str| {
        let (typed, said) = row.trim_matches('|').split_once(" | ").unwrap();
        Mistake {
            typed: code(typed),
            said: code(said),
        }
    };
    rows.map(mistake).collect()
}

/// Only what is behind `/dev/kvm` finds these.
fn needs_kvm(typed: &str) -> bool {
    ["odd.img", "busy.img"]
        .iter()
        .any(|name| typed.ends_with(name))
}

/// The header of a bzImage that takes 64 MiB from 32 MiB on, and nothing behind it.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // boot protocol
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1u16.to_le_bytes()); // 64-bit entry
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &(32u64 << 20).to_le_bytes()); // pref_address
    put(0x260, &(64u32 << 20).to_le_bytes()); // init_size
    image
}

/// A directory with the files that the table names, all but `new.img`.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("bzImage", &bzimage());
    put("initrd.img", b"\x1f\x8b\x08\0 a compressed archive");
    fs::copy("/proc/self/exe", dir.path().join("vmlinux")).unwrap();
    put("disk.img", &[0; 4096]);
    put("busy.img", &[0; 4096]);
    put("odd.img", &[0; 1000]);
    put("disk.qcow2", b"QFI\xfb\0\0\0\x03");
    put("job.fio", b"[job]\n");
    fs::create_dir(dir.path().join("folder")).unwrap();
    dir
}

/// Locks an image as another berth does.
fn lock(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: a structure of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap();
    // SAFETY: an open file, and a structure that the kernel only reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(result, 0);
    file
}

/// Types a command; its status, and all that it says.
fn type_in(dir: &Path, typed: &str) -> (i32, String) {
    let mut words = typed.split(' ');
    assert_eq!(words.next(), Some("berth"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(words).current_dir(dir).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, out, err) = Killed(command.spawn().unwrap()).finish();
    (status, out + &err)
}

#[test]
fn each_mistake_of_the_readme_gets_its_message() {
    let mistakes = mistakes();
    assert!(mistakes.len() >= 10);
    let dir = files();
    let _busy = lock(&dir.path().join("busy.img"));
    let guests = kvm();
    for Mistake { typed, said } in &mistakes {
        if needs_kvm(typed) && !guests {
            println!("skipped, without KVM: {typed}");
            continue;
        }
        let (status, text) = type_in(dir.path(), typed);
        println!("$ {typed}\n{text}");
        assert!(text.contains(said), "{typed}: {text}\nexpected: {said}");
        // A remark on what may be meant well ends nothing.
        let fine = typed.ends_with("--dry-run");
        assert_eq!(status == 0, fine, "{typed}: status {status}");
    }
}

/// What is typed, and how what is said about it begins.
const MORE: &[(&str, &str)] = &[
    // Of other programs.
    (
        "berth run --kernel bzImage --cmdline quiet",
        "--cmdline: is cloud-hypervisor's; give the kernel's command line with --append TEXT",
    ),
    (
        "berth run --kernel bzImage --initramfs initrd.img",
        "--initramfs: is cloud-hypervisor's; give the initial RAM disk with --initrd FILE",
    ),
    (
        "berth run --kernel bzImage --cpus boot=2",
        "--cpus boot=2: must be a number from 1 to 64",
    ),
    (
        "berth run --kernel bzImage --memory size=1G",
        "--memory size=1G: must be a size: a number of bytes, or a number with K, M, G or T",
    ),
    (
        "berth run --kernel bzImage --exec ls",
        "--exec: is virtme-ng's; a command stands behind all options: -- COMMAND",
    ),
    (
        "berth run --kernel bzImage --rw",
        "--rw: is virtme-ng's; files are brought along with --with FILE, a whole root with --rootfs DIR",
    ),
    (
        "berth run --kernel bzImage -drive file=disk.img,format=raw",
        "--drive file=disk.img,format=raw: id is missing; a device names the drive by it, with drive=; \
         an image alone is given with --disk FILE",
    ),
    (
        "berth run --kernel bzImage -machine q35",
        "--machine q35: no such file or directory; it takes a description in TOML",
    ),
    (
        "berth run --kernel bzImage --device virtio-blk,drive=d",
        "--device virtio-blk,drive=d: unknown driver \"virtio-blk\"; known drivers: nvme,",
    ),
    // No keyboard's layout.
    ("berth run -k bzImage", "-k: unknown option"),
    // In another place or order.
    (
        "berth run --kernel bzImage nvme list",
        "nvme: unexpected argument; a kernel is given with --kernel, an image with --disk, a command \
         behind \"--\"",
    ),
    (
        "berth run --kernel bzImage --",
        "--: the COMMAND is missing; for example \"berth run --disk a.img -- nvme list\"",
    ),
    (
        "berth run --kernel bzImage --with job.fio",
        "--with job.fio: needs a COMMAND behind \"--\"",
    ),
    (
        "berth ctl info status",
        "ctl: info: is a command; PATH, that of --control-socket or --control-pipe, stands before it",
    ),
    (
        "berth ctl disk.img info status",
        "ctl: disk.img: is a regular file, must be a control socket or the base of a FIFO pair",
    ),
    (
        "berth fio job.fio",
        "--out: is missing; name a folder for the results, --out DIR",
    ),
    (
        "berth runn --kernel bzImage",
        "runn: unknown command (did you mean \"run\"?)",
    ),
    // Files that are not there, or are something else.
    (
        "berth run --kernel none",
        "--kernel none: no such file or directory",
    ),
    (
        "berth run --kernel folder",
        "--kernel folder: is a directory, must be a regular file",
    ),
    (
        "berth run --kernel bzImage --disk folder",
        "--disk folder: folder: is a directory, must be an image or a block device",
    ),
    (
        "berth run --machine disk.qcow2",
        "--machine disk.qcow2: is no text; it takes a description in TOML",
    ),
    (
        "berth run --kernel bzImage --rootfs none -- ls",
        "--rootfs none: none: no such file or directory; a root is a directory, or an image that is \
         made of one: mke2fs -t ext4 -d DIR none 1G",
    ),
    (
        "berth run --kernel bzImage --rootfs job.fio -- ls",
        "--rootfs job.fio: has no file system of its own",
    ),
    (
        "berth run --kernel bzImage -- ./job.fio",
        "./job.fio: is no program that may be executed; if it is one, chmod +x ./job.fio",
    ),
    (
        "berth run --kernel bzImage --com2 none/file",
        "--com2 none/file: none: no such file or directory",
    ),
    (
        "berth run --kernel bzImage --control-socket disk.img",
        "--control-socket disk.img: is a regular file, not a socket; remove it or choose another path",
    ),
    (
        "berth trace summary disk.img",
        "trace: disk.img: is no trace of berth",
    ),
];

#[test]
fn more_mistakes_get_their_messages() {
    let dir = files();
    for (typed, said) in MORE {
        let (status, text) = type_in(dir.path(), typed);
        // "berth fio: …" and "berth: …" alike name the program first.
        let text = text
            .trim_start_matches("berth ")
            .trim_start_matches("berth: ");
        assert!(text.starts_with(said), "{typed}: {text}\nexpected: {said}");
        assert_ne!(status, 0, "{typed}");
    }
}

/// Opens a file that takes nothing, as a full disk does.
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// A manual page that is cut off is no success.
#[test]
fn pages_that_cannot_be_stored_are_a_failure() {
    let dir = files();
    for typed in [
        "--help",
        "--version",
        "man",
        "completion bash",
        "run --kernel bzImage --dry-run",
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(typed.split(' ')).current_dir(dir.path());
        command.stdout(full()).stderr(Stdio::piped());
        let (status, text) = told(command);
        assert_eq!(status, Some(1), "{typed}: {text}");
        let said = "berth: standard output: no space left on device\n";
        assert_eq!(text, said, "{typed}");
    }
}

/// Status, and what is said on standard error.
fn told(mut command: Command) -> (Option<i32>, String) {
    let mut child = Killed(command.spawn().unwrap());
    let status = child.wait().code();
    let err = child.0.stderr.take().unwrap();
    (status, std::io::read_to_string(err).unwrap())
}

#[test]
fn output_of_a_guest_that_cannot_be_stored_is_told() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&[print(COM1, "words\n"), power_off()].concat());
    let mut command = guest.command(&[]);
    command.stdout(full());
    let (status, text) = told(command);
    assert_eq!(status, Some(0), "{text}");
    let said = "console: no space left on device; what the guest prints from now on is lost";
    assert!(text.contains(said), "{text}");
}

/// The message names a group or a command that lets the user in.
#[test]
fn who_may_not_open_kvm_is_told_how_to() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 || !kvm() {
        println!("skipped: only root can become somebody who may not");
        return;
    }
    let guest = Guest::new(&power_off());
    let directory = guest.directory.path();
    let berth = directory.join("berth");
    fs::copy(env!("CARGO_BIN_EXE_berth"), &berth).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&berth);
    command.args(guest.command(&[]).get_args());
    command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, _, err) = Killed(command.spawn().unwrap()).finish();
    if status == 0 {
        println!("skipped: here everybody may open /dev/kvm");
        return;
    }
    assert_eq!(status, 1, "{err}");
    assert!(
        err.starts_with("berth: /dev/kvm may not be opened by this user: "),
        "{err}"
    );
    assert!(err.contains("sudo setfacl -m u:$USER:rw /dev/kvm"), "{err}");
}
