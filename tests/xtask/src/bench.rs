//! `cargo xtask bench`: builds all that is measured, and measures it.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{Context, build, packages};

/// Hands the terminal to `bench`, which knows the words.
///
/// # Errors
/// When something cannot be built or installed.
pub fn run(context: &Context, words: &[String]) -> Result<ExitCode> {
    packages::ensure(context)?;
    let guest = build::bare_guest(context)?;
    context
        .progress
        .step("building berth and the benchmark (release)");
    build::build(context, "vmm")?;
    build::build(context, "bench")?;
    let release = context.target.join("release");
    let mut command = Command::new(release.join("bench"));
    command
        .args(words)
        .env("BARE_GUEST", guest)
        .env("BERTH_BIN", release.join("berth"));
    for (name, folder) in [("BENCH_OUT", "bench"), ("BENCH_DISK", "")] {
        if std::env::var_os(name).is_none() {
            command.env(name, context.target.join(folder));
        }
    }
    Ok(if command.status()?.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
