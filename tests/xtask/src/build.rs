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
    build(context, "vmm")?;
    build(context, "linux-guests")?;
    let dir = context.target.join("release");
    context.progress.step("built");
    Ok(Binaries {
        berth: dir.join("berth"),
        runner: dir.join("linux-guests"),
    })
}

/// Builds one package as released. Together with another one it would be built with what both want of
/// their dependencies, and not be what `cargo install` makes.
///
/// # Errors
/// When it does not build.
pub fn build(context: &Context, package: &str) -> Result<()> {
    let status = cargo(context, &["build", "--release", "-p", package])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build --release -p {package} ended with {status}");
    }
    Ok(())
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
    build(context, "bare-guest")?;
    Ok(context.target.join("release/bare-guest"))
}

/// Builds a package's test programs without running them, and returns them. `package` is its name,
/// and what else cargo is to be told.
///
/// # Errors
/// When they do not build, or cargo names none.
pub fn test_programs(context: &Context, package: &[&str]) -> Result<Vec<PathBuf>> {
    let output = cargo(context, &["test", "--no-run", "-p"])
        .args(package)
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("cargo test --no-run ended with {}:\n{text}", output.status);
    }
    let programs = executables(&text, &context.root);
    if programs.is_empty() {
        bail!("cargo names no test program:\n{text}");
    }
    Ok(programs)
}

/// The programs in cargo's lines `Executable tests/x.rs (target/debug/deps/x-…)`.
fn executables(text: &str, root: &Path) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Executable "))
        .filter_map(|rest| rest.rsplit_once('(')?.1.strip_suffix(')'))
        .map(|path| root.join(path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargos_lines() {
        let text = "   Compiling x v0.1.0 (/r/tests/x)\n    Finished `test` profile\n  Executable unittests src/lib.rs (target/debug/deps/x-12)\n  Executable tests/y.rs (/t/debug/deps/y-34)\n";
        assert_eq!(
            executables(text, Path::new("/r")),
            ["/r/target/debug/deps/x-12", "/t/debug/deps/y-34"].map(PathBuf::from)
        );
    }
}
