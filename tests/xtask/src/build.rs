//! What cargo builds for the tasks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::Context;

/// The release binaries that the Linux guests' tests use.
pub struct Binaries {
    /// `berth`
    pub berth: PathBuf,
    /// `linux-guests`
    pub runner: PathBuf,
}

/// Cargo as it called us, in the repository.
#[must_use]
pub fn cargo(context: &Context, args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(&context.root)
        .args(args)
        .env("CARGO_TARGET_DIR", &context.target)
        // Set by the cargo that runs us, for us only.
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_PKG_NAME");
    command
}

/// Builds `berth` and `linux-guests` as released.
///
/// # Errors
/// When they do not build.
pub fn release(context: &Context) -> Result<Binaries> {
    context
        .progress
        .step("building berth and its Linux test runner (release)");
    let status = cargo(
        context,
        &["build", "--release", "-p", "vmm", "-p", "linux-guests"],
    )
    .status()
    .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build --release ended with {status}");
    }
    let dir = context.target.join("release");
    context.progress.step("built");
    Ok(Binaries {
        berth: dir.join("berth"),
        runner: dir.join("linux-guests"),
    })
}

/// The Linux test runner, ready to start.
#[must_use]
pub fn linux_guests(binaries: &Binaries, kit: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(&binaries.runner);
    command.args(words).arg("--kit").arg(kit);
    if std::env::var_os(harness::files::BERTH_BIN).is_none() {
        command.env(harness::files::BERTH_BIN, &binaries.berth);
    }
    command
}

/// Builds the bare-metal test guest and returns its ELF.
///
/// # Errors
/// When it does not build.
pub fn bare_guest(context: &Context) -> Result<PathBuf> {
    context.progress.step("building the bare-metal test guest");
    let status = cargo(context, &["build", "--release", "-p", "bare-guest"])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build -p bare-guest ended with {status}");
    }
    Ok(context.target.join("release/bare-guest"))
}
