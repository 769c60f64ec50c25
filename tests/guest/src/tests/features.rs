//! Set and Get Features: mandatory ones, honest refusals, defaults after a reset.

use super::Machine;
use crate::check::{Outcome, ensure, ensure_eq};
use crate::memory::{self, PAGE};
use crate::nvme::{Command, Completion, Controller, admin, status};
use crate::serial::println;

const ARBITRATION: u8 = 0x01;
const POWER: u8 = 0x02;
const TEMPERATURE: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const WRITE_CACHE: u8 = 0x06;
const QUEUES: u8 = 0x07;
const COALESCING: u8 = 0x08;
const VECTOR: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0a;
const EVENTS: u8 = 0x0b;

const DEFAULT: u32 = 1;
const CAPABILITIES: u32 = 3;
/// Bits of the capabilities.
const SAVEABLE: u32 = 1;
const CHANGEABLE: u32 = 1 << 2;

fn get(controller: &mut Controller, feature: u8, select: u32, nsid: u32) -> Outcome<Completion> {
    let command = Command::new(admin::GET_FEATURES)
        .namespace(nsid)
        .dword(10, u32::from(feature) | select << 8);
    controller.admin(command)
}

fn value(controller: &mut Controller, feature: u8, select: u32, nsid: u32) -> Outcome<u32> {
    let completion = get(controller, feature, select, nsid)?;
    ensure!(
        completion.success(),
        "Get Features {feature:#x}: status {:#x}",
        completion.status
    );
    Ok(completion.result)
}

fn set(feature: u8, value: u32) -> Command {
    Command::new(admin::SET_FEATURES)
        .dword(10, u32::from(feature))
        .dword(11, value)
}

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    let page = memory::allocate(PAGE);
    controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
    let write_cache = page.read8(525) & 1 != 0;
    let select = page.read16(520) & 1 << 4 != 0;

    for feature in [
        ARBITRATION,
        POWER,
        TEMPERATURE,
        ERROR_RECOVERY,
        QUEUES,
        COALESCING,
        VECTOR,
        WRITE_ATOMICITY,
        EVENTS,
    ] {
        let nsid = if feature == ERROR_RECOVERY {
            namespace.id
        } else {
            0
        };
        let now = value(&mut controller, feature, 0, nsid)?;
        println!("feature {feature:#04x} = {now:#x}");
        if select {
            check_select(&mut controller, feature, nsid, now)?;
        }
    }
    let cache = get(&mut controller, WRITE_CACHE, 0, 0)?;
    ensure!(
        cache.success() || !write_cache,
        "Get Features 06h fails with a write cache"
    );
    check_unknown(&mut controller)?;
    check_queue_count(&mut controller)?;
    check_defaults(&mut controller, write_cache, select)
}

/// The default can be had, and what cannot be saved is not.
fn check_select(controller: &mut Controller, feature: u8, nsid: u32, now: u32) -> Outcome {
    value(controller, feature, DEFAULT, nsid)?;
    if value(controller, feature, CAPABILITIES, nsid)? & SAVEABLE == 0 {
        let save = set(feature, now)
            .namespace(nsid)
            .dword(10, u32::from(feature) | 1 << 31);
        controller.admin_refused("saving", save, &[status::NOT_SAVEABLE])?;
    }
    Ok(())
}

fn check_unknown(controller: &mut Controller) -> Outcome {
    let invalid = [status::INVALID_FIELD];
    for unknown in [0x00, 0x3f, 0xbf, 0xff] {
        let code = get(controller, unknown, 0, 0)?.code();
        ensure_eq!(code, status::INVALID_FIELD, "Get Features {unknown:#x}");
        controller.admin_refused("Set Features", set(unknown, 0), &invalid)?;
    }
    Ok(())
}

fn check_queue_count(controller: &mut Controller) -> Outcome {
    for wrong in [0xffff, 0xffff_0000, 0xffff_ffff] {
        let command = set(QUEUES, wrong);
        controller.admin_refused("65,536 queues", command, &[status::INVALID_FIELD])?;
    }
    let granted = controller.request_queues(4)?;
    ensure!(
        (1..=4).contains(&granted),
        "{granted} queue pairs for a request of 4"
    );
    controller.create_pair(1, 4)?;
    let command = set(QUEUES, 0x0001_0001);
    controller.admin_refused(
        "queue count with queues",
        command,
        &[status::SEQUENCE_ERROR],
    )?;
    controller.delete_pair(1)
}

/// Changed values read back, and are gone after a controller reset.
fn check_defaults(controller: &mut Controller, write_cache: bool, select: bool) -> Outcome {
    // Values that differ from any sane default: burst 4 with weights, 60 degrees Celsius, a
    // threshold with a time, the namespace event. The write cache is toggled instead.
    for (feature, wanted) in [
        (ARBITRATION, 0x0102_0304),
        (TEMPERATURE, 333),
        (COALESCING, 0x0203),
        (WRITE_ATOMICITY, 1),
        (EVENTS, 0x100),
        (WRITE_CACHE, 0),
    ] {
        if feature == WRITE_CACHE && !write_cache {
            continue;
        }
        if select && value(controller, feature, CAPABILITIES, 0)? & CHANGEABLE == 0 {
            continue;
        }
        let before = value(controller, feature, 0, 0)?;
        let wanted = if feature == WRITE_CACHE {
            before ^ 1
        } else {
            wanted
        };
        controller.admin_ok("Set Features", set(feature, wanted))?;
        let now = value(controller, feature, 0, 0)?;
        ensure_eq!(now, wanted, "feature {feature:#x} once set");
        controller.restart()?;
        let now = value(controller, feature, 0, 0)?;
        // QEMU keeps values over a reset, which is known to be wrong.
        ensure!(
            now == before || controller.is_qemu(),
            "feature {feature:#x} after a reset: {now:#x}, not {before:#x}"
        );
    }
    Ok(())
}
