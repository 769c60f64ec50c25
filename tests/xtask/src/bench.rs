//! `cargo xtask bench`: builds all that is measured, and measures it.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{Context, build, packages};

/// Hands the terminal to `bench`, which knows the words.
///
/// # Errors
/// When something cannot be built or installed.
pub fn run(context: &Context, words: &[String]) -> Result<ExitCode> {
    packages::ensure(context)?;
    let guest = build::bare_guest(context)?;
    let step = "building berth and the benchmark (release)";
    context.progress.step(step);
    let args = ["build", "--release", "-p", "vmm", "-p", "bench"];
    let status = build::cargo(context, &args)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{step} ended with {status}");
    }
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
