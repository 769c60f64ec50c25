//! `berth run … -- COMMAND`, with a guest that plays the part of its first process: output, input and status
//! without a system.

#![allow(clippy::unwrap_used)] // All of this file is a test.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bare_tests::Machine;

const LIMIT: Duration = Duration::from_secs(120);

/// berth with a guest that plays `act`, its streams piped; nothing where no guest runs. The root is empty:
/// this guest has no use for one.
fn berth(act: &str, options: &[&str]) -> Option<(Machine, Command)> {
    let machine = Machine::with(options).unwrap();
    let root = machine.folder().join("root");
    std::fs::create_dir(&root).unwrap();
    let machine = machine.and(&["--rootfs", root.to_str().unwrap(), "--", "the-command", "x"]);
    let (berth, arguments) = machine
        .command_line(&format!("test=command act={act}"))
        .unwrap()?;
    let mut command = Command::new(berth);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Some((machine, command))
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Its exit status, when it has ended in time.
    fn status(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| panic!("{status}"));
            }
            assert!(start.elapsed() < LIMIT, "berth does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status, standard output and standard error of a short act.
fn play(act: &str, options: &[&str]) -> Option<(i32, Vec<u8>, String)> {
    let (_machine, mut command) = berth(act, options)?;
    let mut child = Killed::start(&mut command);
    let (mut out, mut err) = (Vec::new(), String::new());
    let status = child.status();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    child
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    Some((status, out, err))
}

#[test]
fn output_and_status_come_back_unchanged_and_apart() {
    let Some((status, out, err)) = play("exit", &[]) else {
        return;
    };
    assert_eq!(out, b"to stdout\n\xff\x00\r\n", "{err}");
    assert_eq!((status, err.as_str()), (7, "to stderr\n"));
}

#[test]
fn the_console_is_shown_on_request_only() {
    let Some((status, out, err)) = play("exit", &["-v"]) else {
        return;
    };
    assert_eq!((status, out.len()), (7, 14), "{err}");
    assert!(
        err.contains("the act is exit") && err.contains("to stderr\n"),
        "{err}"
    );
}

#[test]
fn a_guest_that_dies_without_a_word_is_255_with_the_end_of_its_console() {
    for (act, words) in [
        (
            "dies",
            "berth: guest reset before the command reported its status\n",
        ),
        ("off", "berth: guest powered off before the command"),
        (
            "fault",
            "berth: guest crashed: triple fault on vCPU 0 before",
        ),
        (
            "nonsense",
            "berth: the guest sent nonsense on COM2: no such frame: kind 99",
        ),
    ] {
        let Some((status, out, err)) = play(act, &[]) else {
            return;
        };
        assert_eq!(status, 255, "{act}: {err}");
        assert!(err.starts_with(words), "{act}: {err}");
        assert!(
            err.contains(&format!("\n  the act is {act}\n")),
            "{act}: {err}"
        );
        if act == "dies" {
            assert_eq!(out, b"the last words\n");
            assert!(err.ends_with("  cannot go on\n"), "{err}");
        }
    }
}

/// Sends a control command; whether it was done.
fn control(socket: &Path, words: &[&str]) -> bool {
    let mut command = Command::new(harness::berth_binary().unwrap());
    command.arg("ctl").arg(socket).args(words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn a_guest_that_ignores_its_credit_is_ended() {
    let folder = harness::scratch().unwrap();
    let socket = folder.path().join("control");
    let options = ["--control-socket", socket.to_str().unwrap()];
    let Some((_machine, mut command)) = berth("greedy", &options) else {
        return;
    };
    let mut child = Killed::start(&mut command);
    let mut reader = child.0.stdout.take().unwrap();
    reader.read_exact(&mut [0]).unwrap();
    // Nobody reads on until the run is over.
    let start = Instant::now();
    while control(&socket, &["info", "status"]) {
        assert!(start.elapsed() < LIMIT);
    }
    let (mut out, mut err) = (Vec::new(), String::new());
    reader.read_to_end(&mut out).unwrap();
    child
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!(child.status(), 255, "{err}");
    let words = "berth: the guest sent nonsense on COM2: more output than it had credit for\n";
    assert!(err.starts_with(words), "{err}");
    assert!(out.len() <= (256 + 64 + 64) << 10, "{}", out.len());
}

#[test]
fn a_command_that_cannot_be_run_has_the_status_of_a_shell() {
    let Some((status, out, err)) = play("failed", &[]) else {
        return;
    };
    assert_eq!((status, out.len()), (127, 0), "{err}");
    assert_eq!(err, "berth: nothing: not found\n");
}

/// What `bulk` sends.
fn pattern(bytes: usize) -> Vec<u8> {
    let bytes = 0..bytes;
    bytes.map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn ten_mebibytes_arrive_whole() {
    const BYTES: usize = 10 << 20;
    let Some((machine, mut command)) = berth(&format!("bulk bytes={BYTES}"), &[]) else {
        return;
    };
    let path = machine.folder().join("out");
    let start = Instant::now();
    let mut child = Killed::start(command.stdout(File::create(&path).unwrap()));
    assert_eq!(child.status(), 0);
    println!(
        "10 MiB of output in {:.3} s, with the guest's start",
        start.elapsed().as_secs_f32()
    );
    assert!(std::fs::read(&path).unwrap() == pattern(BYTES));
}

/// A reader that takes nothing for a while loses nothing, though the guest ends meanwhile: berth stays until
/// all is read, or a signal comes.
#[test]
fn a_slow_reader_gets_everything() {
    const BYTES: usize = 300 << 10;
    let Some((_machine, mut command)) = berth(&format!("bulk bytes={BYTES}"), &[]) else {
        return;
    };
    let mut child = Killed::start(&mut command);
    let mut reader = child.0.stdout.take().unwrap();
    let mut out = vec![0; BYTES - (200 << 10)];
    reader.read_exact(&mut out).unwrap();
    // Now the guest can end, but not all of its output fits the pipe.
    thread::sleep(Duration::from_millis(300));
    assert!(child.0.try_wait().unwrap().is_none());
    reader.read_to_end(&mut out).unwrap();
    assert!(out == pattern(BYTES));
    assert_eq!(child.status(), 0);
}

#[test]
fn a_signal_ends_berth_while_a_reader_is_stuck() {
    let Some((_machine, mut command)) = berth("bulk bytes=200K", &[]) else {
        return;
    };
    let mut child = Killed::start(&mut command);
    let mut reader = child.0.stdout.take().unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    // The guest has ended, or will soon; either way berth waits for the reader.
    let pid = child.0.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.status(), 143);
}

#[test]
fn a_reader_that_leaves_ends_the_command() {
    let Some((_machine, mut command)) = berth("yes", &[]) else {
        return;
    };
    let mut child = Killed::start(&mut command);
    let mut reader = child.0.stdout.take().unwrap();
    let mut lines = [0; 6];
    reader.read_exact(&mut lines).unwrap();
    assert_eq!(lines, *b"y\ny\ny\n");
    drop(reader);
    assert_eq!(child.status(), 141);
}

#[test]
fn input_comes_back_whole() {
    comes_back_whole("echo", 50 << 10);
}

#[test]
fn input_at_its_port_comes_back_whole() {
    comes_back_whole("take", 10 << 20);
}

/// Sends so many bytes to a guest that plays `act` and sends them back.
fn comes_back_whole(act: &str, bytes: usize) {
    let Some((_machine, mut command)) = berth(act, &[]) else {
        return;
    };
    let mut child = Killed::start(command.stdin(Stdio::piped()));
    let text = pattern(bytes);
    let mut input = child.0.stdin.take().unwrap();
    let sent = text.clone();
    let writer = thread::spawn(move || input.write_all(&sent).unwrap());
    let mut out = Vec::new();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    writer.join().unwrap();
    assert_eq!(child.status(), 0);
    assert!(out == text, "{} of {} bytes", out.len(), text.len());
}

/// `yes | berth run -- head -1`: the command ends, so berth does, though its input has no end.
#[test]
fn input_without_end_does_not_keep_berth() {
    let Some((_machine, mut command)) = berth("exit", &[]) else {
        return;
    };
    let mut child = Killed::start(command.stdin(Stdio::piped()));
    let mut input = child.0.stdin.take().unwrap();
    let writer = thread::spawn(move || while input.write_all(b"y\n").is_ok() {});
    assert_eq!(child.status(), 7);
    writer.join().unwrap();
}

#[test]
fn control_commands_are_served_while_output_is_stuck() {
    /// What a pipe holds (pipe(7)).
    const PIPE: usize = 64 << 10;
    let folder = harness::scratch().unwrap();
    let socket = folder.path().join("control");
    let options = ["-v", "--control-socket", socket.to_str().unwrap()];
    let Some((_machine, mut command)) = berth("bulk bytes=100M", &options) else {
        return;
    };
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'x'; PIPE]).unwrap();
    let mut child = Killed::start(command.stdout(writer));
    drop(command);
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    let started = lines.find(|line| line.as_ref().unwrap().contains("the act is bulk"));
    assert!(started.is_some());
    assert!(control(&socket, &["info", "status"]));
    assert!(control(&socket, &["quit"]));
    // What was received is still to be written.
    let mut out = Vec::new();
    reader.read_to_end(&mut out).unwrap();
    assert!(
        out.len() >= PIPE && out.len() <= PIPE + (256 << 10),
        "{}",
        out.len()
    );
    assert!(out[PIPE..] == pattern(out.len() - PIPE));
    assert_eq!(child.status(), 255);
    let last = lines
        .map(Result::unwrap)
        .find(|line| line.starts_with("berth: "));
    let words = "berth: left on request before the command reported its status";
    assert_eq!(last.as_deref(), Some(words));
}
