//! What is tried on Linux guests. The guests' side is in resources/guest/tasks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::boot_time;
use crate::command;
use crate::counters::{IoCounters, io_queues};
use crate::fio_report;
use crate::guest::Guest;
use crate::hotplug;
use crate::interrupts;
use crate::iopoll;
use crate::kit::{Form, Kit, Version};
use crate::measure;

/// One thing to try.
pub struct Scenario {
    /// Its name, as results and filters have it.
    pub name: &'static str,
    /// Tries it.
    pub run: fn(&Kit) -> Result<()>,
}

/// A guest's work after booting, in the outer machine.
pub const SHORT: Duration = Duration::from_secs(60);

/// The same with fio.
pub const LONG: Duration = Duration::from_secs(240);

use Form::{BzImage, Elf};
use Version::{V6_1, V6_12};

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "boot_6_1_bzimage_1_cpu",
        run: |kit| boot(kit, V6_1, BzImage, 1),
    },
    Scenario {
        name: "boot_6_1_bzimage_4_cpus",
        run: |kit| boot(kit, V6_1, BzImage, 4),
    },
    Scenario {
        name: "boot_6_1_elf_2_cpus",
        run: |kit| boot(kit, V6_1, Elf, 2),
    },
    Scenario {
        name: "boot_6_12_bzimage_2_cpus",
        run: |kit| boot(kit, V6_12, BzImage, 2),
    },
    Scenario {
        name: "boot_6_12_elf_1_cpu",
        run: |kit| boot(kit, V6_12, Elf, 1),
    },
    Scenario {
        name: "boot_6_12_elf_4_cpus",
        run: |kit| boot(kit, V6_12, Elf, 4),
    },
    Scenario {
        name: "boot_time",
        run: boot_time::beside_qemu,
    },
    Scenario {
        name: "memory_256_mib",
        run: |kit| memory(kit, "256M", 150),
    },
    Scenario {
        name: "memory_5_gib",
        run: |kit| memory(kit, "5G", 4700),
    },
    Scenario {
        name: "root_on_nvme_6_1",
        run: |kit| root_on_nvme(kit, V6_1, BzImage),
    },
    Scenario {
        name: "root_on_nvme_6_12",
        run: |kit| root_on_nvme(kit, V6_12, Elf),
    },
    Scenario {
        name: "reboot_is_32",
        run: |kit| ends(kit, "reboot", &[], 32),
    },
    Scenario {
        name: "triple_fault_is_33",
        // reboot=t: the kernel loads an empty IDT and traps.
        run: |kit| ends(kit, "reboot", &["reboot=t"], 33),
    },
    Scenario {
        name: "panic_is_34",
        run: |kit| ends(kit, "panic", &[], 34),
    },
    Scenario {
        name: "panic_without_root_is_34",
        run: panic_without_root,
    },
    Scenario {
        name: "power_button",
        run: power_button,
    },
    Scenario {
        name: "fio_1_cpu",
        run: |kit| fio(kit, 1),
    },
    Scenario {
        name: "fio_4_cpus",
        run: |kit| fio(kit, 4),
    },
    Scenario {
        name: "fio_with_direct_io",
        run: |kit| one_namespace(kit, "fio", ",cache=none", LONG),
    },
    Scenario {
        name: "fio_loads",
        run: fio_loads,
    },
    Scenario {
        name: "iopoll",
        run: iopoll::on_a_polled_device,
    },
    Scenario {
        name: fio_report::NAME,
        run: fio_report::run,
    },
    Scenario {
        name: "interrupts_per_io",
        run: interrupts::per_io,
    },
    Scenario {
        name: "multipath",
        run: multipath,
    },
    Scenario {
        name: "subsystems_stay_apart",
        run: subsystems_stay_apart,
    },
    Scenario {
        name: "shadow_doorbells",
        run: shadow_doorbells,
    },
    Scenario {
        name: "identifiers",
        run: identifiers,
    },
    Scenario {
        name: "many_namespaces",
        run: many_namespaces,
    },
    Scenario {
        name: "read_only_namespace",
        run: |kit| one_namespace(kit, "readonly", ",ro=on", SHORT),
    },
    Scenario {
        name: "blocks_of_4096_bytes",
        run: |kit| one_namespace(kit, "blocks4k", ",logical_block_size=4096", LONG),
    },
    Scenario {
        name: "flush_and_discard",
        run: |kit| one_namespace(kit, "discard", "", SHORT),
    },
    Scenario {
        name: "controller_reset_under_io",
        run: |kit| reset_under_io(kit, "controller"),
    },
    Scenario {
        name: "function_level_reset_under_io",
        run: |kit| reset_under_io(kit, "flr"),
    },
    Scenario {
        name: "namespaces_come_and_go",
        run: hotplug::namespaces_come_and_go,
    },
    Scenario {
        name: "controller_comes_back",
        run: hotplug::controller_comes_back,
    },
    Scenario {
        name: "multipath_survives_unplugs",
        run: hotplug::multipath_survives_unplugs,
    },
    Scenario {
        name: "paths_are_detached",
        run: hotplug::paths_are_detached,
    },
    Scenario {
        name: "namespaces_change",
        run: hotplug::namespaces_change,
    },
    Scenario {
        name: "command_statuses",
        run: command::statuses,
    },
    Scenario {
        name: "command_streams",
        run: command::streams,
    },
    Scenario {
        name: "command_programs",
        run: command::programs,
    },
    Scenario {
        name: "command_roots",
        run: command::roots,
    },
    Scenario {
        name: "command_file_systems",
        run: command::file_systems,
    },
    Scenario {
        name: "command_without_ports",
        run: command::without_ports,
    },
    Scenario {
        name: "command_modules",
        run: command::modules,
    },
    Scenario {
        name: "idle_guest",
        run: idle_guest,
    },
];

fn boot(kit: &Kit, version: Version, form: Form, cpus: u32) -> Result<()> {
    Guest::with_kernel(kit, version, form, "boot")?
        .cpus(cpus)
        .append(format!("berth.cpus={cpus}"))
        .append("berth.least=380")
        .new_disk(16)?
        .succeed(SHORT)?;
    Ok(())
}

fn memory(kit: &Kit, memory: &'static str, least_mib: u32) -> Result<()> {
    Guest::new(kit, "boot")?
        .memory(memory)
        .append("berth.cpus=1")
        .append(format!("berth.least={least_mib}"))
        .new_disk(16)?
        .succeed(SHORT)?;
    Ok(())
}

fn root_on_nvme(kit: &Kit, version: Version, form: Form) -> Result<()> {
    let guest = Guest::with_kernel(kit, version, form, "rootfs")?
        .initrd(None)
        .append("root=/dev/nvme0n1 rw rootwait init=/init");
    let image = guest.dir().join("root.img");
    fs::copy(kit.file("root.img"), &image).context("copying root.img")?;
    guest.disk(&image).succeed(SHORT)?;
    Ok(())
}

fn ends(kit: &Kit, task: &'static str, words: &[&str], status: i32) -> Result<()> {
    let mut guest = Guest::new(kit, task)?;
    for word in words {
        guest = guest.append(*word);
    }
    guest.end_with(status, SHORT)?;
    Ok(())
}

/// The kernel finds nothing to run: no initramfs, and an empty disk.
fn panic_without_root(kit: &Kit) -> Result<()> {
    Guest::new(kit, "boot")?
        .initrd(None)
        .append("root=/dev/nvme0n1")
        .new_disk(16)?
        .end_with(34, SHORT)?;
    Ok(())
}

fn power_button(kit: &Kit) -> Result<()> {
    let mut guest = Guest::new(kit, "powerdown")?.start()?;
    guest.phase("ready", SHORT)?;
    guest.go()?;
    guest.control("system_powerdown")?;
    let ended = guest.succeed(SHORT)?;
    ensure!(
        ended.results.contains("ok: the power button was pressed"),
        "the guest powered off, but not for the button:\n{}",
        ended.results
    );
    Ok(())
}

fn fio(kit: &Kit, cpus: u32) -> Result<()> {
    Guest::new(kit, "fio")?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(cpus)
        .new_disk(128)?
        .succeed(LONG)?;
    Ok(())
}

/// Checked loads of every kind on two queue pairs, each with an I/O thread of its own; of the two
/// namespaces, one is on tmpfs, which refuses O_DIRECT, and the other is read and written with it.
fn fio_loads(kit: &Kit) -> Result<()> {
    /// Commands of the loads on one of the namespaces, at least.
    const COMMANDS: u64 = 2 * (5 * 32 + 4 * 1024);
    let memory = harness::scratch_in(Path::new("/dev/shm")).context("a tmpfs is needed")?;
    let buffered = harness::image(memory.path(), "buffered.img", 16 << 20)?;
    let guest = Guest::new(kit, "fio_loads")?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(2)
        .io_threads(2);
    let direct = guest.image("direct.img", 16 << 20)?;
    let mut guest = guest
        .device("nvme,id=ctrl,max_ioqpairs=2")
        .device(format!("nvme-ns,nsid=1,file={}", buffered.display()))
        .device(format!(
            "nvme-ns,nsid=2,file={},cache=none",
            direct.display()
        ))
        .start()?;
    guest.phase("before", SHORT)?;
    guest.go()?;
    guest.phase("after", LONG)?;
    let queues = io_queues(&guest)?;
    guest.go()?;
    guest.succeed(SHORT)?;
    println!("fio's loads: {queues:?}");
    let [one, two] = &queues[..] else {
        bail!("not two I/O queue pairs");
    };
    ensure!(
        one.io_thread != two.io_thread,
        "both queue pairs are on one I/O thread"
    );
    for queue in [one, two] {
        // Linux splits large ones, and may serve some from the other CPU.
        ensure!(
            queue.counters.commands > COMMANDS / 2,
            "queue pair {} was hardly used",
            queue.sqid
        );
    }
    Ok(())
}

fn multipath(kit: &Kit) -> Result<()> {
    let guest = Guest::new(kit, "multipath")?.initrd(Some(kit.file("full.cpio")));
    let image = guest.image("shared.img", 64 << 20)?;
    guest
        .cpus(2)
        .device("nvme-subsys,id=sub,shared=on")
        .device("nvme,id=one,subsys=sub,serial=shared")
        .device("nvme,id=two,subsys=sub,serial=shared")
        .device(format!(
            "nvme-ns,id=ns,bus=sub,nsid=1,shared=on,file={}",
            image.display()
        ))
        .succeed(LONG)?;
    Ok(())
}

fn subsystems_stay_apart(kit: &Kit) -> Result<()> {
    let guest = Guest::new(kit, "separate")?;
    let first = guest.image("first.img", 16 << 20)?;
    let second = guest.image("second.img", 24 << 20)?;
    guest
        .device("nvme-subsys,id=left")
        .device("nvme-subsys,id=right")
        .device("nvme,id=a,subsys=left,serial=left")
        .device("nvme,id=b,subsys=right,serial=right")
        .device(format!("nvme-ns,bus=left,nsid=1,file={}", first.display()))
        .device(format!(
            "nvme-ns,bus=right,nsid=1,file={}",
            second.display()
        ))
        .succeed(SHORT)?;
    Ok(())
}

/// Once Linux has configured the doorbell buffer, commands grow and doorbell
/// exits do not.
fn shadow_doorbells(kit: &Kit) -> Result<()> {
    let mut guest = Guest::new(kit, "doorbells")?
        .initrd(Some(kit.file("full.cpio")))
        .new_disk(64)?
        .start()?;
    guest.phase("before", SHORT)?;
    let before = IoCounters::read(&guest)?;
    guest.go()?;
    guest.phase("after", LONG)?;
    let after = IoCounters::read(&guest)?;
    guest.go()?;
    guest.succeed(SHORT)?;
    let during = after.since(before);
    println!("shadow doorbells: {during:?}");
    let (commands, exits) = (during.commands, during.doorbell_exits);
    ensure!(commands > 1000, "only {commands} I/O commands ran");
    ensure!(
        exits == 0,
        "{exits} I/O doorbell exits for {commands} commands: the shadow doorbells are not used"
    );
    ensure!(
        during.interrupts <= commands,
        "more interrupts than commands"
    );
    Ok(())
}

fn identifiers(kit: &Kit) -> Result<()> {
    let uuid = "6f5d3a52-9c1e-4b7a-8f00-0123456789ab";
    let nguid = "00112233445566778899aabbccddeeff";
    let eui = "0011223344556677";
    // sysfs shows the NGUID in the form of a UUID.
    let shown_nguid = "00112233-4455-6677-8899-aabbccddeeff";
    let guest = Guest::new(kit, "identify")?;
    let image = guest.image("disk.img", 16 << 20)?;
    guest
        .device("nvme-subsys,id=sub")
        .device("nvme,id=ctrl,subsys=sub,serial=SN-4711")
        .device(format!(
            "nvme-ns,bus=sub,nsid=1,uuid={uuid},nguid={nguid},eui64=0x{eui},file={}",
            image.display()
        ))
        .append(format!("berth.uuid={uuid}"))
        .append(format!("berth.nguid={shown_nguid}"))
        .append(format!("berth.eui={eui}"))
        .append("berth.serial=SN-4711")
        .succeed(SHORT)?;
    Ok(())
}

fn many_namespaces(kit: &Kit) -> Result<()> {
    const COUNT: u64 = 20;
    let mut guest = Guest::new(kit, "namespaces")?
        .append(format!("berth.count={COUNT}"))
        .device("nvme-subsys,id=sub")
        .device("nvme,id=ctrl,subsys=sub,serial=many");
    for nsid in 1..=COUNT {
        let bytes = (2048 + 8 * nsid) * 512;
        let image: PathBuf = guest.image(&format!("ns{nsid}.img"), bytes)?;
        guest = guest.device(format!(
            "nvme-ns,bus=sub,nsid={nsid},file={}",
            image.display()
        ));
    }
    guest.succeed(SHORT)?;
    Ok(())
}

fn one_namespace(kit: &Kit, task: &'static str, properties: &str, limit: Duration) -> Result<()> {
    let guest = Guest::new(kit, task)?.initrd(Some(kit.file("full.cpio")));
    let image = guest.image("disk.img", 64 << 20)?;
    guest
        .device("nvme,id=ctrl,serial=one")
        .device(format!(
            "nvme-ns,bus=ctrl,nsid=1,file={}{properties}",
            image.display()
        ))
        .succeed(limit)?;
    Ok(())
}

fn reset_under_io(kit: &Kit, how: &str) -> Result<()> {
    Guest::new(kit, "reset")?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(2)
        .append(format!("berth.how={how}"))
        .new_disk(64)?
        .succeed(LONG)?;
    Ok(())
}

fn idle_guest(kit: &Kit) -> Result<()> {
    let cost = measure::idle(kit)?;
    println!("{}", cost.tell());
    ensure!(cost.fits(), "an idle guest costs too much, see above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
