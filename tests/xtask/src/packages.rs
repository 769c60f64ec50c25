//! What the tasks need from the distribution, and getting it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::Context;
use crate::progress::Tool;

/// Debian's names.
const NEEDED: [&str; 14] = [
    "qemu-system-x86",
    "seabios",
    "busybox-static",
    "fio",
    "nvme-cli",
    "e2fsprogs",
    "squashfs-tools",
    "xfsprogs",
    "btrfs-progs",
    "lz4",
    "zstd",
    "xz-utils",
    "valgrind",
    "chromium",
];

/// Sees to it that all needed packages are there.
///
/// # Errors
/// When some are missing and cannot be installed: the message lists them.
pub fn ensure(context: &Context) -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(prefix) = root_prefix() else {
        bail!(
            "these packages are needed, and installing them takes root:\n  apt-get install {}",
            missing.join(" ")
        );
    };
    context.progress.step(&format!(
        "installing from the distribution: {}",
        missing.join(" ")
    ));
    install(prefix, &missing).with_context(|| {
        format!(
            "could not install; needed: apt-get install {}",
            missing.join(" ")
        )
    })
}

/// Full path of a program, also in the folders for system administration.
///
/// # Errors
/// When it is in none of them.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .filter(|dir| !dir.is_empty())
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is in no folder of PATH"))
}

fn installed(package: &str) -> bool {
    Tool::new("dpkg-query", &["-W", "-f", "${db:Status-Status}", package])
        .run()
        .is_ok_and(|status| status == "installed")
}

/// What to put before a command so that it runs as root; `None` if nothing does.
fn root_prefix() -> Option<&'static [&'static str]> {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return Some(&["env"]);
    }
    let sudo = Tool::new("sudo", &["-n", "true"]).seconds(10).run();
    sudo.is_ok().then_some(&["sudo", "-n", "env"])
}

fn install(prefix: &[&str], packages: &[&str]) -> Result<()> {
    let apt = |words: &[&str]| {
        let mut command: Vec<&str> = prefix.to_vec();
        command.push("DEBIAN_FRONTEND=noninteractive");
        command.push("apt-get");
        command.extend(words);
        Tool::new(command[0], &command[1..]).seconds(600).run()
    };
    apt(&["update", "-q"])?;
    let mut words = vec!["install", "-q", "-y", "--no-install-recommends"];
    words.extend(packages);
    apt(&words)?;
    Ok(())
}
