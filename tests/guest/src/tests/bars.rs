//! BAR 0 somewhere else: registers, doorbells and the events behind them follow.

use super::Machine;
use super::flow::Flow;
use crate::check::{Outcome, ensure, ensure_eq, fail};
use crate::io;
use crate::memory::{self, PAGE};
use crate::nvme::{Command, Controller, Pair, io as opcode, register};
use crate::pci::{self, Bar, Function};

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    let function = controller.function;
    let Some(home) = function.bar(0) else {
        fail!("BAR 0 is gone");
    };
    let away = free_place(home)?;
    memory::map_registers(away, home.size);
    controller.request_queues(1)?;
    let namespace = controller.namespace()?;
    let mut pairs = [controller.create_pair(1, 32)?];
    let mut flow = Flow::prepare(&controller, &mut pairs[0], namespace)?;

    let round = |controller: &mut Controller, pair: &mut Pair, flow: &mut Flow| {
        for (base, decoding) in [
            (away, false),
            (home.base, false),
            (away, true),
            (home.base, true),
        ] {
            relocate(controller, pair, home, base, decoding)?;
            flow.read(controller, pair, 200, 8, |_| {})?;
            let page = memory::allocate(PAGE);
            controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
        }
        Ok(())
    };
    round(&mut controller, &mut pairs[0], &mut flow)?;
    decoding_off(&controller, &mut pairs[0], namespace.id)?;
    if controller.has_shadow_doorbells()? {
        controller.delete_pair(1)?;
        pairs = [controller.create_pair(1, 32)?];
        controller.use_shadow_doorbells(&mut pairs)?;
        round(&mut controller, &mut pairs[0], &mut flow)?;
    }
    // Moved while disabled: enabled again at the new place.
    controller.disable()?;
    let [mut pair] = pairs;
    relocate(&mut controller, &mut pair, home, away, false)?;
    controller.restart()?;
    ensure_eq!(controller.bar, away, "BAR 0 after a reset");
    relocate(&mut controller, &mut pair, home, home.base, false)?;
    controller.restart()
}

/// An address of the BAR's size that no other BAR uses, as near to it as can be.
fn free_place(home: Bar) -> Outcome<u64> {
    let taken = |base: u64| {
        pci::functions()
            .flat_map(Function::bars)
            .any(|it| base < it.base + it.size && it.base < base + home.size)
    };
    for steps in 1..64 {
        for base in [
            home.base + steps * home.size,
            home.base.wrapping_sub(steps * home.size),
        ] {
            // Within the same 4 MiB, so inside of the window that the BAR is in.
            if base >> 22 == home.base >> 22 && !taken(base) {
                return Ok(base);
            }
        }
    }
    fail!("no free place near BAR 0 at {:#x}", home.base);
}

fn relocate(
    controller: &mut Controller,
    pair: &mut Pair,
    home: Bar,
    base: u64,
    decoding: bool,
) -> Outcome {
    let (function, old) = (controller.function, controller.bar);
    if !decoding {
        function.command(0, pci::MEMORY);
    }
    function.move_bar(home, base);
    if !decoding {
        function.command(pci::MEMORY, 0);
    }
    let delta = base.wrapping_sub(old);
    let admin = controller.admin_queue();
    for doorbell in [
        &mut admin.sq.doorbell,
        &mut admin.cq.doorbell,
        &mut pair.sq.doorbell,
        &mut pair.cq.doorbell,
    ] {
        doorbell.register = doorbell.register.wrapping_add(delta);
    }
    controller.bar = base;
    ensure_eq!(
        controller.read64(register::CAP),
        controller.cap,
        "CAP at {base:#x}"
    );
    let left = io::read64(old + register::CAP);
    ensure!(left != controller.cap, "CAP still answers at {old:#x}");
    if !controller.is_qemu() {
        ensure_eq!(left, u64::MAX, "what answers at the old place {old:#x}");
    }
    Ok(())
}

/// With memory decoding off, reads give all ones and doorbells ring nothing.
fn decoding_off(controller: &Controller, pair: &mut Pair, nsid: u32) -> Outcome {
    let function = controller.function;
    pair.sq.push(Command::new(opcode::FLUSH).namespace(nsid));
    function.command(0, pci::MEMORY);
    if !controller.is_qemu() {
        ensure_eq!(
            controller.read64(register::CAP),
            u64::MAX,
            "CAP without decoding"
        );
        ensure_eq!(
            controller.read32(register::CSTS),
            u32::MAX,
            "CSTS without decoding"
        );
    }
    pair.sq.ring();
    let silence = controller.expect_silence(&mut pair.cq, 20);
    function.command(pci::MEMORY, 0);
    silence?;
    ensure_eq!(
        controller.read64(register::CAP),
        controller.cap,
        "CAP with decoding again"
    );
    pair.sq.ring();
    let completion = controller.wait(pair)?;
    ensure!(
        completion.success(),
        "Flush: status {:#x}",
        completion.status
    );
    Ok(())
}
