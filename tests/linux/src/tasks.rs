//! Guests for people: the demonstration and the shell.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::kit::{Form, Kit, Version};

/// Size of the disk they get.
const DISK_MIB: u64 = 256;

fn guest(kit: &Kit, version: Version, task: &'static str) -> Result<Guest> {
    Guest::with_kernel(kit, version, Form::BzImage, task)?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(2)
        .new_disk(DISK_MIB)
}

/// Boots a guest that lists and checks its disk, shown as it goes.
///
/// # Errors
/// When anything in it failed, or it did not power off.
pub fn demo(kit: &Kit) -> Result<bool> {
    let ended = guest(kit, Version::Newest, "demo")?
        .shown()
        .succeed(Duration::from_secs(120))?;
    println!("\nberth ended with {}: the guest powered off", ended.exit);
    Ok(true)
}

/// Gives the terminal to a guest's shell. `kernel` is `6.1` or `6.12`.
///
/// # Errors
/// When the kernel is not there or berth fails.
pub fn shell(kit: &Kit, kernel: Option<&str>) -> Result<bool> {
    let version = match kernel {
        None => Version::Newest,
        Some("6.1") => Version::V6_1,
        Some("6.12") => Version::V6_12,
        Some(other) => anyhow::bail!("there is no kernel {other:?}: 6.1 or 6.12"),
    };
    let guest = guest(kit, version, "shell")?;
    let berth = harness::berth_binary()?;
    let status = Command::new(&berth)
        .args(guest.arguments())
        .status()
        .with_context(|| format!("cannot start {}", berth.display()))?;
    ensure!(status.success(), "berth ended with {status}");
    Ok(true)
}
