//! `berth ctl PATH watch`.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{Guest, HALT, Killed, LIMIT, kvm};

#[test]
fn tables_come_until_berth_or_the_reader_ends() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    let socket = guest.directory.path().join("control");
    let socket = socket.to_str().unwrap();
    let mut berth = guest.command(&["--disk", "null=1M", "--control-socket", socket]);
    let berth = Killed(berth.spawn().unwrap());
    let ctl = |words: &[&str]| {
        let mut ctl = Command::new(env!("CARGO_BIN_EXE_berth"));
        ctl.args(["ctl", socket]).args(words);
        ctl.stdout(Stdio::piped()).stderr(Stdio::piped());
        ctl
    };
    let start = Instant::now();
    while !ctl(&["info", "status"]).status().unwrap().success() {
        assert!(start.elapsed() < LIMIT, "berth does not listen");
    }

    // A reader that has seen enough.
    let mut short = Killed(ctl(&["watch"]).spawn().unwrap());
    let mut lines = BufReader::new(short.0.stdout.take().unwrap()).lines();
    let head = lines.next().unwrap().unwrap();
    assert!(
        head.starts_with("controller") && !head.contains('\x1b'),
        "{head:?}"
    );
    drop(lines);
    assert_eq!(short.wait().code(), Some(0));

    let mut long = Killed(ctl(&["watch", "1"]).spawn().unwrap());
    let mut output = BufReader::new(long.0.stdout.take().unwrap());
    let mut heads = 0;
    while heads < 2 {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended");
        heads += usize::from(line.starts_with("I/O thread"));
    }
    assert!(ctl(&["quit"]).status().unwrap().success());
    assert_eq!(berth.finish().0, 0);
    output.read_to_string(&mut String::new()).unwrap();
    assert_eq!(long.wait().code(), Some(1));
    let stderr = std::io::read_to_string(long.0.stderr.take().unwrap()).unwrap();
    assert!(
        stderr.contains("no berth there") || stderr.contains("berth ended"),
        "{stderr}"
    );
}
