//! `berth run` from the outside: how runs end, and what comes out.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use common::{Guest, HALT, Killed, LIMIT, TRIPLE_FAULT, kvm, out, power_off, print};

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;

fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn every_way_to_end_has_its_status_and_line() {
    if !kvm() {
        return;
    }
    let panic = "[    0.5] Kernel panic - not syncing: test\r\n";
    let table: [(&str, Vec<u8>, i32, &str); 8] = [
        ("ACPI S5", power_off(), 0, "berth: guest powered off"),
        ("ACPI reset", out(0x602, 1), 32, "berth: guest reset"),
        ("i8042 reset", out(0x64, 0xfe), 32, "berth: guest reset"),
        (
            "triple fault",
            TRIPLE_FAULT.to_vec(),
            33,
            "berth: guest crashed: triple fault",
        ),
        ("pvpanic", out(0x505, 1), 34, "berth: guest panicked"),
        (
            "panic, reset",
            code(&[&print(COM1, panic), &out(0x64, 0xfe)]),
            34,
            "berth: guest panicked",
        ),
        (
            "panic, triple fault",
            code(&[&print(COM1, panic), &TRIPLE_FAULT]),
            34,
            "berth: guest panicked",
        ),
        (
            "no emulation",
            vec![0xbb, 0, 0, 0, 0xc8, 0x0f, 0xfe, 0x03], // paddd mm0, [0xc8000000]
            33,
            "instruction bytes: 0f fe 03",
        ),
    ];
    for (name, code, status, line) in table {
        let guest = Guest::new(&code);
        let (code, _, err) = guest.run(&[]);
        assert_eq!(code, status, "{name}: {err}");
        assert!(err.contains(line), "{name}: {err}");
    }
}

#[test]
fn console_goes_to_standard_output_and_com2_to_its_file() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&code(&[
        &print(COM1, "hello\n"),
        &print(COM2, "{\"result\":1}\n"),
        &power_off(),
    ]));
    let path = guest.directory.path().join("result");
    fs::write(&path, "what was there before is longer").unwrap();
    let (status, out, err) = guest.run(&["--com2", path.to_str().unwrap()]);
    assert_eq!((status, out.as_str()), (0, "hello\n"), "{err}");
    assert_eq!(err, "berth: guest powered off\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"result\":1}\n");
    let (status, out, _) = guest.run(&[]);
    assert_eq!((status, out.as_str()), (0, "hello\n"));
}

#[test]
fn the_time_to_the_guests_start_is_told_by_phase() {
    if !kvm() {
        return;
    }
    let (status, _, err) = Guest::new(&power_off()).run(&["-v", "--disk", "null=1M"]);
    assert_eq!(status, 0, "{err}");
    let text = "the guest starts after ";
    let line = err.lines().find_map(|line| line.split_once(text));
    let (total, phases) = line
        .unwrap_or_else(|| panic!("{err}"))
        .1
        .split_once(" us: ")
        .unwrap();
    let total: u64 = total.parse().unwrap();
    let mut names = Vec::new();
    let mut sum = 0;
    for phase in phases.split(", ") {
        let (name, micros) = phase.split_once(' ').unwrap();
        names.push(name);
        sum += micros.parse::<u64>().unwrap();
    }
    let expected = [
        "options", "control", "memory", "kvm", "devices", "vcpus", "kernel", "threads",
    ];
    assert_eq!(names, expected);
    // Each is rounded down.
    assert!(sum <= total && total <= sum + 8, "{err}");
}

#[test]
fn vcpus_that_nobody_started_do_not_keep_a_run_alive() {
    if !kvm() {
        return;
    }
    let (status, _, err) = Guest::new(&power_off()).run(&["--cpus", "4"]);
    assert_eq!(status, 0, "{err}");
}

#[test]
fn signals_end_a_sleeping_guest() {
    if !kvm() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let guest = Guest::new(&code(&[&print(COM1, "!"), &HALT]));
        let mut child = Killed(guest.command(&[]).spawn().unwrap());
        let mut byte = [0];
        child
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut byte)
            .unwrap();
        let pid = libc::pid_t::try_from(child.0.id()).unwrap();
        // SAFETY: the child was not waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        let (status, _, err) = child.finish();
        assert_eq!(status, 128 + signal, "{err}");
        assert_eq!(err, format!("berth: ended by signal {signal}\n"));
    }
}

/// Echoes what it receives on COM1, and powers off after a full stop.
const ECHO: [u8; 25] = [
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xfb, // jz to in
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xee, // out dx, al
    0x3c, 0x2e, // cmp al, '.'
    0x75, 0xed, // jne to the start
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, // mov al, 0x34
];

#[test]
fn input_reaches_the_guest_as_it_is_and_in_full() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&code(&[&ECHO, &[0xee], &HALT]));
    let mut child = Killed(guest.command(&[]).stdin(Stdio::piped()).spawn().unwrap());
    // Longer than the FIFO of the port; Ctrl-a x is data where there is no terminal.
    let text = format!("\x01x{}.", "abcdefgh".repeat(400));
    let mut input = child.0.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let (status, out, err) = child.finish();
    assert_eq!((status, out), (0, text), "{err}");
}

#[test]
fn input_from_a_file_works_too() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&code(&[&ECHO, &[0xee], &HALT]));
    let path = guest.directory.path().join("input");
    fs::write(&path, "from a file.").unwrap();
    let input = fs::File::open(&path).unwrap();
    let child = Killed(guest.command(&[]).stdin(input).spawn().unwrap());
    let (status, out, err) = child.finish();
    assert_eq!((status, out.as_str()), (0, "from a file."), "{err}");
}

#[test]
fn a_closed_standard_output_does_not_stop_the_guest() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&code(&[&print(COM1, &"x".repeat(3000)), &power_off()]));
    let mut child = Killed(guest.command(&[]).spawn().unwrap());
    drop(child.0.stdout.take());
    let start = std::time::Instant::now();
    assert_eq!(child.wait().code(), Some(0));
    assert!(start.elapsed() < LIMIT);
}

/// Both ends of a pipe that is full.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let set = |flags: libc::c_int| {
        // SAFETY: changes the flags of an open descriptor.
        let result = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, flags) };
        assert_eq!(result, 0);
    };
    set(libc::O_NONBLOCK);
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    set(0);
    (reader, writer)
}

#[test]
fn standard_error_that_takes_nothing_changes_neither_run_nor_status() {
    if !kvm() {
        return;
    }
    let (_reader, full) = full_pipe();
    let (_, closed) = std::io::pipe().unwrap();
    let device = || fs::File::options().write(true).open("/dev/full").unwrap();
    let sinks: [Stdio; 3] = [full.into(), closed.into(), device().into()];
    // Standard input is a directory, which berth warns of while the guest runs.
    let guest = Guest::new(&code(&[&print(COM1, &"x".repeat(3000)), &power_off()]));
    for sink in sinks {
        let mut command = guest.command(&["-vvv"]);
        command.stdin(fs::File::open("/").unwrap()).stderr(sink);
        let status = Killed(command.spawn().unwrap()).wait();
        assert_eq!(status.code(), Some(0), "{status}");
    }
    let mut command = guest.command(&["--nonsense"]);
    let status = Killed(command.stderr(device()).spawn().unwrap()).wait();
    assert_eq!(status.code(), Some(35), "{status}");
}

/// berth under a limit of the shell.
fn limited(guest: &Guest, limit: &str, arguments: &[&str]) -> Killed {
    let berth = guest.command(arguments);
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("ulimit {limit}; exec \"$@\""))
        .arg("sh")
        .arg(berth.get_program())
        .args(berth.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Killed(shell.spawn().unwrap())
}

#[test]
fn too_few_descriptors_are_named_once_with_a_remedy() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    for limit in [8, 16, 32, 64] {
        let limit = format!("-n {limit}");
        let (status, _, err) = limited(&guest, &limit, &["--device", "nvme,null=1M"]).finish();
        assert_eq!(status, 1, "{limit}: {err}");
        assert_eq!(err.matches("Too many open files").count(), 1, "{err}");
        assert!(err.contains("ulimit -Hn"), "{err}");
    }
}

#[test]
fn a_limit_on_file_sizes_is_reported() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    let (status, _, err) = limited(&guest, "-f 8", &[]).finish();
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("--memory"), "{err}");
    assert!(err.contains("File too large"), "{err}");
}

#[test]
fn wrong_kernels_and_command_lines_name_their_option() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    let long = "x".repeat(3000);
    let (status, _, err) = guest.run(&["--append", &long]);
    assert_eq!(status, 35, "{err}");
    assert!(err.starts_with("berth: --append: "), "{err}");
    let (status, _, err) = guest.run(&["--append", "a\nb"]);
    assert_eq!(status, 35, "{err}");
    assert_eq!(err.matches("only printable ASCII").count(), 1, "{err}");
    let path = guest.directory.path().join("guest.elf");
    fs::write(&path, "not a kernel").unwrap();
    let (status, _, err) = guest.run(&[]);
    assert_eq!(status, 1, "{err}");
    assert!(err.starts_with("berth: --kernel "), "{err}");
}

#[test]
fn what_a_command_lacks_is_named_before_the_guest_starts() {
    let guest = Guest::new(&HALT);
    let root = guest.directory.path().to_str().unwrap();
    let rooted = ["--rootfs", root];
    for (options, command, status, words) in [
        (
            &[][..],
            "no-such-command",
            127,
            "berth: no-such-command: not found: neither",
        ),
        (
            &[],
            "/etc/passwd",
            126,
            "berth: /etc/passwd: is no program that may be executed; if it is one, chmod +x /etc/passwd",
        ),
        (
            &["--with", "/no/file"],
            "true",
            1,
            "berth: --with /no/file: no such file",
        ),
        (
            &["--with", "/no/file", rooted[0], rooted[1]],
            "x",
            1,
            "berth: --with /no/file: ",
        ),
        (
            &["--module", "m", rooted[0], rooted[1]],
            "x",
            1,
            "does not tell its version (a bzImage does)",
        ),
    ] {
        if options.len() < 3 && Command::new("busybox").arg("true").status().is_err() {
            println!("skipped: no busybox");
            continue;
        }
        let (code, out, err) = guest.run(&[options, &["--", command]].concat());
        assert_eq!((code, out.as_str()), (status, ""), "{err}");
        assert!(err.contains(words), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}
