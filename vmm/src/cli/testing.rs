//! Command lines for tests, parsed in this process.

use std::fs;
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::{CliError, Invocation, RunConfig, parse};

/// The start of a line for a guest.
pub const K: &str = "run --kernel DIR/kernel ";

/// A directory with files of all kinds; its path is `DIR` in the tables.
pub fn files() -> TempDir {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["kernel", "a.img", "b,c.img", "base.in", "half.out"] {
        fs::write(path(name), "content").unwrap();
    }
    fs::create_dir(path("dir")).unwrap();
    for name in ["fifo", "good.in", "good.out", "half.in"] {
        crate::control::sys::mkfifo(&path(name)).unwrap();
    }
    drop(UnixListener::bind(path("socket")).unwrap());
    dir
}

/// Parses a line split at blanks, `DIR` replaced, an argument with blanks written with `~`.
pub fn parse_in(dir: &TempDir, line: &str) -> Result<Invocation, CliError> {
    let base = dir.path().to_str().unwrap();
    let words = line.split_whitespace();
    parse(words.map(|word| word.replace("DIR", base).replace('~', " ").into()))
}

pub fn config(line: &str) -> RunConfig {
    let dir = files();
    match parse_in(&dir, &format!("run --kernel DIR/kernel {line}")).unwrap() {
        Invocation::Run(config) => *config,
        other => panic!("{other:?}"),
    }
}

pub fn printed(line: &str) -> String {
    match parse_in(&files(), line).unwrap() {
        Invocation::Print(text) => text,
        other => panic!("{other:?}"),
    }
}

/// Each line is refused with exactly this message and status.
pub fn refused(status: u8, table: &[(&str, &str)]) {
    let dir = files();
    let base = dir.path().to_str().unwrap();
    for (line, expected) in table {
        let error = parse_in(&dir, line).expect_err(line);
        assert_eq!(
            error.to_string(),
            expected.replace("DIR", base),
            "berth {line}"
        );
        assert_eq!(error.status(), status, "berth {line}");
    }
}
