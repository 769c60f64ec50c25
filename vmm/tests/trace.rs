//! `berth run --trace` and `berth trace` as programs; what traces hold is tested with guests that do I/O.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};

use common::{Guest, HALT, Killed, kvm, power_off};

fn berth(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_machine_without_io_has_a_trace_with_both_ends() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&power_off());
    let trace = guest.directory.path().join("trace");
    let trace = trace.to_str().unwrap();
    let (status, _, err) = guest.run(&["--disk", "null=1M,id=n", "--trace", trace]);
    assert_eq!(status, 0, "{err}");
    let lines = fs::read_to_string(trace).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["berth"], env!("CARGO_PKG_VERSION"));
    assert_eq!(lines[0]["namespaces"][0]["id"], "n");
    assert_eq!(lines[0]["controllers"][0]["addr"], "0000:00:01.0");
    assert!(lines[0]["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(lines[1]["event"], "end");
    let summary = berth(&["trace", "summary", trace]);
    assert!(summary.status.success() && summary.stderr.is_empty());
    assert!(text(&summary.stdout).contains("0 I/O commands"));
    let plot = berth(&["trace", "plot", trace]);
    let page = format!("{trace}.html");
    assert!(plot.status.success());
    assert_eq!(text(&plot.stderr), format!("berth trace: wrote {page}\n"));
    assert!(fs::read_to_string(page).unwrap().contains("</svg>"));
}

#[test]
fn where_no_trace_can_be_berth_does_not_start() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&power_off());
    let folder = guest.directory.path();
    let fifo = folder.join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for (path, why) in [
        (
            folder.to_path_buf(),
            "is a directory, must be a file, FIFO or device",
        ),
        (folder.join("none/x"), "no such file or directory"),
        (
            fifo,
            "nobody reads this FIFO; start its reader first, for example: ",
        ),
    ] {
        let path = path.to_str().unwrap();
        let (status, _, err) = guest.run(&["--trace", path]);
        assert_eq!(status, 1, "{err}");
        assert!(
            err.starts_with(&format!("berth: --trace {path}: ")),
            "{err}"
        );
        assert!(err.contains(why), "{err}");
    }
    // The trace of another berth is not emptied.
    let busy = folder.join("busy");
    let busy = busy.to_str().unwrap();
    let sleeper = Guest::new(&HALT);
    let _running = Killed(sleeper.command(&["--trace", busy]).spawn().unwrap());
    let start = std::time::Instant::now();
    while fs::read(busy).map_or(0, |bytes| bytes.len()) == 0 {
        assert!(start.elapsed() < common::LIMIT, "no trace begins");
        std::thread::yield_now();
    }
    let (status, _, err) = guest.run(&["--trace", busy]);
    assert_eq!(status, 1);
    assert!(err.contains("is in use by another process"), "{err}");
    assert!(
        fs::read_to_string(busy)
            .unwrap()
            .starts_with("{\"berth_trace\":1,")
    );
}

#[test]
fn what_is_no_trace_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "hello\n").unwrap();
    let file = file.to_str().unwrap();
    let directory = folder.path().to_str().unwrap();
    let absent = format!("{directory}/absent");
    for (path, why) in [
        (file, "is no trace of berth"),
        (directory, "is a directory, must be a trace"),
        (&absent, "no such file or directory"),
    ] {
        for action in ["summary", "plot"] {
            let output = berth(&["trace", action, path]);
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{err}");
            assert!(
                err.starts_with(&format!("berth trace: {path}: {why}")),
                "{err}"
            );
        }
    }
    assert!(!folder.path().join("file.html").exists());
    // A picture does not take the place of its trace.
    let trace = folder.path().join("trace");
    fs::write(&trace, "{\"berth_trace\":1}\n").unwrap();
    let path = trace.to_str().unwrap();
    let output = berth(&["trace", "plot", path, "--out", path]);
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(
        err.contains(&format!(
            "{path}: is the trace; give the picture another name"
        )),
        "{err}"
    );
    assert_eq!(fs::read_to_string(&trace).unwrap(), "{\"berth_trace\":1}\n");
}

/// A command that was fetched and completed, two lines.
fn pair(number: u64) -> String {
    let mut text = String::new();
    let (cid, t) = (number % 64, number * 1000);
    let head = format!(
        "\"ctrl\":\"nvme0\",\"sqid\":1,\"cqid\":1,\"cid\":{cid},\"opc\":2,\"op\":\"read\",\"nsid\":1,\
         \"bytes\":4096"
    );
    let _ = writeln!(
        text,
        "{{\"t\":{t},\"event\":\"fetch\",{head},\"prp1\":\"0x{:x}\",\"prp2\":\"0x0\",\"slba\":{number},\
         \"nlb\":8}}",
        number << 12
    );
    let latency = 500 + number % 977;
    let _ = writeln!(
        text,
        "{{\"t\":{},\"event\":\"complete\",{head},\"latency\":{latency},\"status\":\"success\"}}",
        t + latency
    );
    text
}

/// Feeds a trace of `pairs` commands to `berth trace ACTION -`; its status and most memory in KiB.
#[allow(clippy::zombie_processes)] // wait4 is the wait.
fn feed(arguments: &[&str], pairs: u64) -> (ExitStatus, libc::c_long) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    writeln!(
        input,
        "{{\"berth_trace\":1,\"berth\":\"0\",\"time\":\"T\"}}"
    )
    .unwrap();
    for number in 0..pairs {
        input.write_all(pair(number).as_bytes()).unwrap();
    }
    drop(input);
    let mut status = 0;
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a structure of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: two valid places, and a child of this process that nobody else waits for.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, pid);
    (ExitStatus::from_raw(status), usage.ru_maxrss)
}

#[test]
fn long_traces_need_no_more_memory_than_short_ones() {
    let page = tempfile::NamedTempFile::new().unwrap();
    let page = page.path().to_str().unwrap();
    for arguments in [
        &["trace", "summary", "-"][..],
        &["trace", "plot", "--out", page, "-"],
    ] {
        let (status, short) = feed(arguments, 10_000);
        assert!(status.success());
        // 60 MB.
        let (status, long) = feed(arguments, 200_000);
        assert!(status.success());
        println!("{arguments:?}: {short} and {long} KiB");
        assert!(long < short + 4096, "{short} and {long} KiB");
    }
}

#[test]
fn a_trace_that_was_cut_off_is_read_and_that_is_told() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["trace", "summary", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{{\"berth_trace\":1}}").unwrap();
    let text_of_pair = pair(1);
    // berth was killed within a line.
    input
        .write_all(&text_of_pair.as_bytes()[..text_of_pair.len() - 20])
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let err = text(&output.stderr);
    assert!(
        err.contains("berth trace: -: line 3: is cut off, and was left out"),
        "{err}"
    );
    assert!(text(&output.stdout).contains("1 at the end"));
}
