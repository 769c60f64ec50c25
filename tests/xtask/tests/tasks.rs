//! `cargo xtask` from the outside.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

/// Without one the guest would wait for ever for what nobody types.
#[test]
fn shell_without_a_terminal_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("shell")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("needs a terminal"), "{error}");
}
