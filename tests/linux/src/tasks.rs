//! Guests for people: the demonstration and the shell.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, Running};
use crate::hotplug::NO_PREEMPTION;
use crate::kit::{Form, Kit, Version};

/// Size of the disk they get.
const DISK_MIB: u64 = 256;

/// Longest time for one part of the demonstration.
const DEMO_LIMIT: Duration = Duration::from_secs(120);

fn guest(kit: &Kit, version: Version, task: &'static str) -> Result<Guest> {
    Guest::with_kernel(kit, version, Form::BzImage, task)?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(2)
        .new_disk(DISK_MIB)
}

/// Boots a guest that lists and checks its disk, shown as it goes, and then
/// plugs and unplugs beneath it.
///
/// # Errors
/// When anything in it failed, or it did not power off.
pub fn demo(kit: &Kit) -> Result<bool> {
    let guest = guest(kit, Version::Newest, "demo")?
        .cpus(1)
        .append(NO_PREEMPTION)
        .shown();
    let image = guest.image("shelf.img", DISK_MIB << 20)?;
    let mut guest = guest.start()?;
    guest.phase("plugged", DEMO_LIMIT)?;
    hot_plug(&mut guest, &image)?;
    let ended = guest.succeed(DEMO_LIMIT)?;
    println!("\nberth ended with {}: the guest powered off", ended.exit);
    Ok(true)
}

/// The scene of the demonstration in which controllers come and go.
fn hot_plug(guest: &mut Running, image: &Path) -> Result<()> {
    let mut control = guest.connect()?;
    let mut step = |command: &str| -> Result<()> {
        println!("\n$ berth ctl control.sock {command}");
        match control.ask(command)? {
            Value::String(text) => print!("{text}"),
            value => println!("{value}"),
        }
        Ok(())
    };
    println!(
        "\n=== Hot-plug\n\
         In berth a namespace (the disk) belongs to a subsystem, not to a controller (the card that\n\
         leads to it). So a controller can go and come back while the disk stays and is in use.\n\
         \n--- The running guest gets a subsystem with one disk, and two controllers that lead to it."
    );
    step("device_add nvme-subsys,id=shelf")?;
    step(&format!(
        "device_add nvme-ns,id=disk,bus=shelf,file={}",
        image.display()
    ))?;
    step("device_add nvme,id=one,subsys=shelf")?;
    step("device_add nvme,id=two,subsys=shelf")?;
    guest.go()?;

    guest.phase("pulled", DEMO_LIMIT)?;
    println!(
        "\n--- fio now writes to the disk and checks it without a pause. Controller `one` is torn out\n\
         beneath it, without asking the guest: the commands that it had are tried again over `two`."
    );
    step("device_del one surprise wait=30")?;
    println!(
        "\n--- The controller is gone. The disk is not: it is still in the device tree, on `shelf`."
    );
    step("info qtree")?;
    guest.go()?;

    guest.phase("returned", DEMO_LIMIT)?;
    println!(
        "\n--- A new controller `one` for the same subsystem: the guest finds that it leads to the disk\n\
         that it knows, and has two ways to it again."
    );
    step("device_add nvme,id=one,subsys=shelf")?;
    guest.go()
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
