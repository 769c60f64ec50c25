//! The same guest on QEMU, to compare with.

use anyhow::Result;
use harness::process::Builder;
use harness::{Process, Stdin};

use super::{Guest, Running};
use crate::kit::Kit;

/// The kit's QEMU with its own libraries and firmware, without options.
#[must_use]
pub fn command(kit: &Kit) -> Builder {
    let qemu = kit.file("qemu");
    Process::builder(qemu.join("lib/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(qemu.join("lib"))
        .arg(qemu.join("qemu-system-x86_64"))
        .arg("-L")
        .arg(qemu.join("firmware"))
}

impl Guest {
    /// Starts it on QEMU instead, with an NVMe controller that has these drives as its namespaces,
    /// in the words of `-drive`. Doorbells are ioeventfds, as with berth, which QEMU does not do by
    /// itself; all else of the devices is by its defaults. Options for berth are not looked at.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn start_on_qemu(self, kit: &Kit, drives: &[String]) -> Result<Running> {
        let com2 = self.dir.path().join("com2");
        let mut command = command(kit)
            .args(["-accel", "kvm", "-cpu", "host", "-m", self.memory])
            .args(["-smp", &self.cpus.to_string()])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-append", &self.command_line()])
            .args(["-device", "nvme,id=controller,serial=disks,ioeventfd=on"])
            .args(["-display", "none", "-vga", "none", "-net", "none"])
            .args(["-monitor", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-serial", &format!("file:{}", com2.display())]);
        for (drive, nsid) in drives.iter().zip(1..) {
            command = command
                .args([
                    "-drive",
                    &format!("{drive},if=none,id=disk{nsid},format=raw"),
                ])
                .args(["-device", &format!("nvme-ns,drive=disk{nsid},nsid={nsid}")]);
        }
        if let Some(initrd) = &self.initrd {
            command = command.arg("-initrd").arg(initrd);
        }
        Ok(Running {
            vmm: "QEMU",
            process: command.stdin(Stdin::Held).echo(self.echo).spawn()?,
            dir: self.dir,
        })
    }
}
