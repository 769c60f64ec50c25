//! `cargo xtask bench`: builds all that is measured, and measures it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{Context, build, packages};

/// Environment variable that names a Linux kernel.
const KERNEL: &str = "BENCH_KERNEL";

/// A kernel that `fetch` got.
fn kernel(context: &Context) -> Option<PathBuf> {
    let kit = context.cache().join("kit");
    let kernels = ["debian-6.12", "debian-6.1"].map(|name| kit.join(name).join("vmlinuz"));
    kernels.into_iter().find(|kernel| kernel.is_file())
}

/// Measures how long guests take to start.
///
/// # Errors
/// When something cannot be built or installed.
pub fn boot(context: &Context, words: &[String]) -> Result<ExitCode> {
    let words: Vec<String> = ["boot".to_owned()]
        .into_iter()
        .chain(words.to_vec())
        .collect();
    run(context, &words)
}

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
    if std::env::var_os(KERNEL).is_none()
        && let Some(kernel) = kernel(context)
    {
        command.env(KERNEL, kernel);
    }
    Ok(if command.status()?.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
