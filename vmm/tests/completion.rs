//! `berth completion SHELL`: the shells themselves are asked.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Guest, HALT, Killed, kvm, print};

const COM1: u16 = 0x3f8;

/// A folder with berth in it, as a shell finds it, and the script for that shell.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(shell: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let berth = env!("CARGO_BIN_EXE_berth");
        std::os::unix::fs::symlink(berth, folder.path().join("berth")).unwrap();
        let script = Command::new(berth)
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(script.status.success());
        fs::write(folder.path().join("script"), script.stdout).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        let old = std::env::var("PATH").unwrap_or_default();
        format!("{}:{old}", self.folder.path().display())
    }

    fn script(&self) -> PathBuf {
        self.folder.path().join("script")
    }

    /// What bash offers at the end of `line`, cut into words as bash does.
    fn bash(&self, line: &str) -> Vec<String> {
        let program = format!(
            "source {}\n\
             COMP_LINE={line:?} COMP_POINT=${{#COMP_LINE}}\n\
             COMP_WORDS=({}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))\n\
             _berth\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            self.script().display(),
            words_of_bash(line)
        );
        self.ask("bash", &["--norc", "-c", &program])
    }

    fn ask(&self, shell: &str, arguments: &[&str]) -> Vec<String> {
        let output = Command::new(shell)
            .args(arguments)
            .env("PATH", self.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(errors, "", "{arguments:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .filter(|it| !it.is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// The words of a line, quoted for a bash array. `=` and `:` are words of their own.
fn words_of_bash(line: &str) -> String {
    let apart = line.replace('=', " = ").replace(':', " : ");
    let mut words: Vec<String> = apart
        .split_whitespace()
        .map(|it| format!("'{it}'"))
        .collect();
    if line.ends_with(' ') {
        words.push("''".into());
    }
    words.join(" ")
}

fn has(shell: &str) -> bool {
    let there = Command::new(shell).arg("--version").output().is_ok();
    if !there {
        println!("skipped: no {shell}");
    }
    there
}

#[test]
fn bash_is_offered_commands_options_and_properties() {
    if !has("bash") {
        return;
    }
    let place = Place::new("bash");
    for (line, offers) in [
        ("berth r", &["run"][..]),
        ("berth run --io-thr", &["--io-threads"]),
        ("berth run --overcommit ", &["mem-lock=on", "mem-lock=off"]),
        // Behind the last = or : bash has its own word.
        ("berth run --overcommit mem-lock=o", &["on", "off"]),
        (
            "berth run --overcommit=mem",
            &["mem-lock=on", "mem-lock=off"],
        ),
        ("berth run --device nvme-s", &["nvme-subsys"]),
        ("berth run --device nvme-subsys,id=s,n", &["s,nqn="]),
        (
            "berth run --device nvme-ns,cache=",
            &["writeback", "none", "writethrough", "directsync", "unsafe"],
        ),
        ("berth run --kernel ", &[]),
        ("berth trace ", &["summary", "plot"]),
        ("berth ctl /nowhere device_del ", &[]),
        ("berth ctl /nowhere info s", &["status", "subsys", "stats"]),
    ] {
        assert_eq!(place.bash(line), offers, "{line}");
    }
    // As a shell that knows no line has it.
    let words = "COMP_WORDS=(berth run --io-thr); COMP_CWORD=2; _berth; echo \"${COMPREPLY[@]}\"";
    let script = format!("source {}; {words}", place.script().display());
    assert_eq!(
        place.ask("bash", &["--norc", "-c", &script]),
        ["--io-threads"]
    );
}

/// A guest that sleeps, with two controllers on a subsystem, on a control socket and a pipe.
fn machine(folder: &Path) -> (Guest, Killed) {
    let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
    let mut command = guest.command(&[
        "--device",
        "nvme-subsys,id=s",
        "--device",
        "nvme,id=left,subsys=s",
        "--device",
        "nvme,id=right,subsys=s",
        "--device",
        "nvme-ns,id=disk,bus=s,null=1M",
    ]);
    // Known by its id only: no device uses it, so nothing opens its file.
    command.args(["--drive", "file=spare.img,if=none,id=spare"]);
    command.arg("--control-socket").arg(folder.join("socket"));
    command.arg("--control-pipe").arg(folder.join("pipe"));
    let mut child = Killed(command.spawn().unwrap());
    let mut byte = [0];
    if child
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .is_err()
    {
        panic!("{:?}", child.finish());
    }
    (guest, child)
}

#[test]
fn bash_is_offered_the_ids_of_a_machine_that_runs() {
    if !has("bash") || !kvm() {
        return;
    }
    let place = Place::new("bash");
    let folder = place.folder.path();
    let (_guest, _child) = machine(folder);
    for end in ["socket", "pipe"] {
        let path = folder.join(end).display().to_string();
        for (line, offers) in [
            ("device_del ", &["s", "left", "right", "disk"][..]),
            ("device_del r", &["right"]),
            ("ns_attach disk ", &["left", "right"]),
            ("device_add nvme-ns,bus=", &["s", "left", "right"]),
            ("device_add nvme,id=x,subsys=", &["s"]),
            ("wait device_deleted d", &["disk"]),
            ("drive_del ", &["spare"]),
            ("device_add nvme,drive=", &["spare"]),
        ] {
            let line = format!("berth ctl {path} {line}");
            let mut offered = place.bash(&line);
            offered.sort_by_key(|it| offers.iter().position(|offer| offer == it));
            assert_eq!(offered, offers, "{line}");
        }
    }
}

#[test]
fn fish_is_offered_the_same() {
    if !has("fish") {
        return;
    }
    let place = Place::new("fish");
    let ask = |line: &str| {
        let program = format!("source {}; complete -C {line:?}", place.script().display());
        let lines = place.ask("fish", &["--no-config", "-c", &program]);
        let word = |line: String| line.split('\t').next().unwrap().to_owned();
        lines.into_iter().map(word).collect::<Vec<_>>()
    };
    assert_eq!(ask("berth run --io-thr"), ["--io-threads"]);
    assert_eq!(ask("berth ctl /nowhere ns_r"), ["ns_resize"]);
}

#[test]
fn zsh_takes_its_script() {
    if !has("zsh") {
        return;
    }
    let place = Place::new("zsh");
    // compadd works inside of completion only; here it prints what it was given.
    let program = format!(
        "autoload -Uz compinit; compinit -D -u; source {}\n\
         compadd() {{ while [[ $1 == -* ]]; do [[ $1 == -[dS] ]] && shift; shift; done; print -l -- ${{(P)1}} }}\n\
         words=(berth run --io-thr); CURRENT=3; _berth",
        place.script().display()
    );
    assert_eq!(place.ask("zsh", &["-f", "-c", &program]), ["--io-threads"]);
}
