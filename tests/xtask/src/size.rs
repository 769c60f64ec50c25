//! `cargo xtask size`: the figures that keep berth small.

use std::process::ExitCode;

use anyhow::Result;

use crate::{Context, build, images};

/// Most bytes the release binary may have.
const BINARY_LIMIT: u64 = 4 << 20;

/// Prints the binary's size, then has the Linux runner measure an idle guest.
///
/// # Errors
/// When something cannot be built or measured.
pub fn run(context: &Context) -> Result<ExitCode> {
    let binaries = build::release(context)?;
    let bytes = std::fs::metadata(&binaries.berth)?.len();
    let small = bytes <= BINARY_LIMIT;
    println!(
        "release binary: {:.2} MiB (limit {} MiB): {}",
        mebibytes(bytes),
        BINARY_LIMIT >> 20,
        if small { "ok" } else { "FAILED" }
    );
    let kit = images::prepare(context)?;
    let measured = build::linux_guests(&binaries, &kit, &["measure"]).status()?;
    Ok(if small && measured.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn mebibytes(bytes: u64) -> f64 {
    // A file of 2^53 bytes or more would lose digits; a binary never is one.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}
