//! Identify: every structure that the specification demands, and honest refusals.

use super::Machine;
use crate::check::{Outcome, ensure, ensure_eq};
use crate::memory::{self, Dma, PAGE};
use crate::nvme::{CANARY, Command, Controller, register, status};
use crate::pci;
use crate::serial::println;

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    let page = memory::allocate(PAGE);
    check_controller(&mut controller, &page)?;
    let namespaces = page.read32(516);
    check_active_list(&mut controller, &page)?;
    check_namespaces(&mut controller, &page, namespaces)?;
    check_descriptors(&mut controller, &page)?;
    check_prp_split(&mut controller, &page)?;
    check_refusals(&mut controller, &page)?;
    if !controller.is_qemu() {
        check_version_2(&mut controller, &page)?;
    }
    Ok(())
}

fn identify(controller: &mut Controller, page: &Dma, cns: u8, nsid: u32) -> Outcome {
    page.fill(0, PAGE, CANARY);
    controller.admin_ok("Identify", Command::identify(cns, nsid, page.address(0)))?;
    Ok(())
}

fn check_controller(controller: &mut Controller, page: &Dma) -> Outcome {
    identify(controller, page, 1, 0)?;
    let vendor = controller.function.read16(pci::register::VENDOR);
    ensure_eq!(page.read16(0), vendor, "VID");
    ensure_eq!(page.read32(80), controller.read32(register::VS), "VER");
    ensure_eq!(page.read8(512), 0x66, "SQES");
    ensure_eq!(page.read8(513), 0x44, "CQES");
    ensure!(page.read32(516) != 0, "NN is 0");
    // Serial number, model and firmware: printable, padded with spaces, left-justified.
    for (name, at, len) in [("SN", 4, 20), ("MN", 24, 40), ("FR", 64, 8)] {
        let text = (at..at + len).map(|it| page.read8(it));
        ensure!(
            text.clone().all(|it| (0x20..0x7f).contains(&it)) || controller.is_qemu(),
            "{name} has bytes that are not printable"
        );
        ensure!(
            page.read8(at) != b' ',
            "{name} is empty or not left-justified"
        );
    }
    let mut name = [0; 256];
    page.copy_to(768, &mut name);
    ensure!(name.starts_with(b"nqn."), "SUBNQN does not start with nqn.");
    let end = name.iter().position(|it| *it == 0).unwrap_or(256);
    ensure!(
        name[end..].iter().all(|it| *it == 0),
        "SUBNQN is not padded with NUL"
    );
    println!(
        "{} MDTS={} CNTLID={} OACS={:#x} ONCS={:#x} OAES={:#x}",
        core::str::from_utf8(&name[..end]).unwrap_or("?"),
        page.read8(77),
        page.read16(78),
        page.read16(256),
        page.read16(520),
        page.read32(92)
    );
    Ok(())
}

fn check_active_list(controller: &mut Controller, page: &Dma) -> Outcome {
    let limit = page.read32(516);
    identify(controller, page, 2, 0)?;
    let mut last = 0;
    let mut ended = false;
    for index in 0..1024 {
        let id = page.read32(index * 4);
        ensure!(!ended || id == 0, "the active list goes on after its end");
        ended |= id == 0;
        ensure!(
            ended || (id > last && id <= limit),
            "{id} follows {last} in the active list"
        );
        last = id.max(last);
    }
    identify(controller, page, 2, last)?;
    ensure_eq!(
        page.find_other(0, PAGE, 0),
        None,
        "the active list from its last entry on"
    );
    for nsid in [0xffff_fffe, 0xffff_ffff] {
        let command = Command::identify(2, nsid, page.address(0));
        controller.admin_refused(
            "active list from FFFFFFFEh",
            command,
            &[status::INVALID_NAMESPACE],
        )?;
    }
    Ok(())
}

fn check_namespaces(controller: &mut Controller, page: &Dma, limit: u32) -> Outcome {
    let list = memory::allocate(PAGE);
    identify(controller, &list, 2, 0)?;
    for index in 0..16 {
        let id = list.read32(index * 4);
        if id == 0 {
            break;
        }
        identify(controller, page, 0, id)?;
        let (size, capacity, used) = (page.read64(0), page.read64(8), page.read64(16));
        ensure!(size != 0, "namespace {id}: NSZE is 0");
        ensure!(
            capacity <= size && used <= capacity,
            "namespace {id}: {used} {capacity} {size}"
        );
        ensure!(
            page.read8(26) & 0xf <= page.read8(25),
            "namespace {id}: FLBAS beyond NLBAF"
        );
        println!("namespace {id}: {size} blocks");
    }
    // The lowest identifier that is not active, if NN leaves one: a structure of zeroes.
    let inactive =
        (1..=limit.min(1024)).find(|id| (0..1024).all(|index| list.read32(index * 4) != *id));
    if let Some(id) = inactive {
        identify(controller, page, 0, id)?;
        ensure_eq!(page.find_other(0, PAGE, 0), None, "inactive namespace {id}");
    }
    let beyond = limit.checked_add(1).filter(|it| *it != u32::MAX);
    for id in [Some(0), beyond].into_iter().flatten() {
        let command = Command::identify(0, id, page.address(0));
        controller.admin_refused(
            "Identify of an invalid namespace",
            command,
            &[status::INVALID_NAMESPACE],
        )?;
    }
    Ok(())
}

fn check_descriptors(controller: &mut Controller, page: &Dma) -> Outcome {
    let namespace = controller.namespace()?;
    identify(controller, page, 3, namespace.id)?;
    let (mut at, mut kinds) = (0, 0u32);
    while at + 4 <= PAGE && page.read8(at + 1) != 0 {
        let (kind, len) = (page.read8(at), page.read8(at + 1));
        let right = match kind {
            1 => 8,
            2 | 3 => 16,
            4 => 1,
            _ => len,
        };
        ensure_eq!(len, right, "length of identification descriptor {kind}");
        kinds |= 1 << kind.min(31);
        at += 4 + u64::from(len);
    }
    ensure!(
        kinds & 0xe != 0 || controller.is_qemu(),
        "no EUI64, NGUID or UUID among the descriptors"
    );
    ensure_eq!(
        page.find_other(at, PAGE - at, 0),
        None,
        "the rest of the descriptors"
    );
    Ok(())
}

/// A result that lies half in PRP1's page and half in PRP2's.
fn check_prp_split(controller: &mut Controller, page: &Dma) -> Outcome {
    identify(controller, page, 1, 0)?;
    let halves = memory::allocate(4 * PAGE);
    for offset in [4, 0x800, 0xffc] {
        halves.fill(0, 4 * PAGE, CANARY);
        // The second half goes into the page two before the first.
        let command =
            Command::identify(1, 0, 0).prp(halves.address(2 * PAGE + offset), halves.address(0));
        controller.admin_ok("Identify into two pages", command)?;
        for at in 0..PAGE {
            let place = if at < PAGE - offset {
                2 * PAGE + offset + at
            } else {
                at - (PAGE - offset)
            };
            ensure!(
                halves.read8(place) == page.read8(at),
                "byte {at:#x} at offset {offset:#x}"
            );
        }
        ensure_eq!(
            halves.find_other(offset, 2 * PAGE, CANARY),
            None,
            "memory between the halves"
        );
        ensure_eq!(
            halves.find_other(3 * PAGE, PAGE, CANARY),
            None,
            "memory behind the halves"
        );
    }
    Ok(())
}

fn check_refusals(controller: &mut Controller, page: &Dma) -> Outcome {
    for cns in [0x7f, 0xc0, 0xff] {
        let command = Command::identify(cns, 0, page.address(0));
        let completion = controller.admin(command)?;
        ensure_eq!(completion.code(), status::INVALID_FIELD, "CNS {cns:#x}");
        ensure!(
            completion.do_not_retry(),
            "CNS {cns:#x} is refused without DNR"
        );
    }
    Ok(())
}

/// What a controller of version 2.0 adds.
fn check_version_2(controller: &mut Controller, page: &Dma) -> Outcome {
    let namespace = controller.namespace()?;
    ensure!(
        controller.read32(register::VS) >= 0x2_0000,
        "VS is below 2.0"
    );
    identify(controller, page, 5, namespace.id)?;
    identify(controller, page, 6, 0)?;
    identify(controller, page, 7, 0)?;
    ensure_eq!(
        page.read32(0),
        namespace.id,
        "the active list of the NVM command set"
    );
    identify(controller, page, 8, namespace.id)?;
    ensure!(
        page.read8(14) & 1 == 1,
        "NSTAT.NRDY is 0, so Linux would ignore the namespace"
    );
    identify(controller, page, 0x1c, 0xffff_0000 | 0xffff)?;
    ensure!(
        page.read64(0) & 1 == 1,
        "command set vector 0 lacks the NVM command set"
    );
    for cns in [5, 6, 7] {
        let command = Command::identify(cns, namespace.id, page.address(0)).dword(11, 0x30 << 24);
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success(),
            "CNS {cns} succeeds for an unknown command set"
        );
    }
    Ok(())
}
