//! Controller reset and function-level reset with I/O in flight: afterwards no byte is written.

use super::Machine;
use super::flow::Flow;
use crate::check::{Outcome, ensure, ensure_eq, fail, skip};
use crate::memory::{self, Dma};
use crate::nvme::{Buffer, CANARY, Command, Controller, Namespace, Pair, io, register};
use crate::pci::{self, Function, register as config};
use crate::time;

/// How long memory is watched after a reset.
const WATCH_US: u64 = 50_000;
const DEPTH: u32 = 32;

/// A controller with reads in flight, and everything it was told about.
struct Busy {
    controller: Controller,
    namespace: Namespace,
    pair: Pair,
    data: Dma,
}

/// Starts the controller and sends large reads without waiting for them.
fn busy(function: Function, round: u32) -> Outcome<Busy> {
    let mut controller = Controller::start(function)?;
    let namespace = controller.namespace()?;
    controller.request_queues(1)?;
    let mut pairs = [controller.create_pair(1, DEPTH + 1)?];
    if round % 2 == 1 && controller.has_shadow_doorbells()? {
        controller.use_shadow_doorbells(&mut pairs)?;
    }
    let [mut pair] = pairs;
    let len = namespace.max_transfer.min(128 << 10);
    let mark = memory::mark();
    for index in 0..DEPTH {
        let buffer = Buffer::new(len);
        let blocks = (len / namespace.block) as u32;
        let lba = u64::from(index * blocks) % (namespace.blocks - u64::from(blocks) + 1);
        pair.sq
            .push(buffer.attach(Command::blocks(io::READ, namespace.id, lba, blocks)));
    }
    let data = memory::existing(mark, memory::mark() - mark);
    pair.sq.ring();
    // From no time at all to about when the first reads end.
    time::spin_us(u64::from(round % 5) * 50);
    Ok(Busy {
        controller,
        namespace,
        pair,
        data,
    })
}

impl Busy {
    /// Everything that the controller knew the address of.
    fn memory(&mut self) -> [Option<Dma>; 7] {
        let shadow = self.controller.shadow_pages();
        let admin = self.controller.admin_queue();
        [
            Some(self.data),
            Some(self.pair.sq.memory),
            Some(self.pair.cq.memory),
            Some(admin.sq.memory),
            Some(admin.cq.memory),
            shadow.map(|it| it.0),
            shadow.map(|it| it.1),
        ]
    }

    /// After a reset: nothing of all that changes any more.
    fn watch(&mut self) -> Outcome {
        for memory in self.memory().iter().flatten() {
            memory.fill(0, memory.len(), CANARY);
        }
        time::spin_us(WATCH_US);
        self.check_canary()
    }

    fn check_canary(&mut self) -> Outcome {
        for (index, memory) in self.memory().iter().enumerate() {
            if let Some(memory) = memory {
                let changed = memory.find_other(0, memory.len(), CANARY);
                ensure_eq!(changed, None, "write after a reset into memory {index}");
            }
        }
        Ok(())
    }
}

/// Disable with I/O in flight, then use the controller anew.
pub fn run(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    for round in 0..20 {
        let mark = memory::mark();
        let mut busy = busy(function, round)?;
        let registers = [register::AQA, register::ASQ, register::ACQ];
        let before = registers.map(|it| busy.controller.read64(it));
        busy.controller.disable()?;
        busy.watch()?;
        let after = registers.map(|it| busy.controller.read64(it));
        ensure_eq!(after, before, "admin queue registers after a reset");
        reuse(&mut busy)?;
        memory::release(mark);
    }
    Ok(())
}

/// Fresh queues, plain doorbells; the old memory stays untouched.
fn reuse(busy: &mut Busy) -> Outcome {
    let mut again = Controller::start(busy.controller.function)?;
    again.request_queues(1)?;
    let mut pair = again.create_pair(1, 16)?;
    let mut flow = Flow::prepare(&again, &mut pair, busy.namespace)?;
    flow.read(&again, &mut pair, 50, 8, |_| {})?;
    busy.check_canary()
}

/// Shutdown notification, then a restart.
pub fn shutdown(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    for round in 0..4 {
        let mark = memory::mark();
        let mut busy = busy(function, round)?;
        // Commands in flight are the host's own business at a shutdown: take them first.
        let mut left = DEPTH;
        while left != 0 {
            busy.controller.wait(&mut busy.pair)?;
            left -= 1;
        }
        let value = busy.controller.read32(register::CC);
        busy.controller.write32(register::CC, value | 1 << 14);
        let deadline = Controller::command_deadline();
        while busy.controller.read32(register::CSTS) >> 2 & 3 != 2 {
            if deadline.passed() {
                return Err(busy.controller.timeout("CSTS.SHST to say complete"));
            }
        }
        busy.controller.disable()?;
        busy.watch()?;
        reuse(&mut busy)?;
        memory::release(mark);
    }
    Ok(())
}

/// Function-level reset with I/O in flight.
pub fn function_level(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    if !function.can_reset() {
        if Controller::attach(function, 2)?.is_qemu() {
            skip!("QEMU: no PCI Express capability on this bus");
        }
        fail!("the function has no function-level reset");
    }
    for round in 0..10 {
        let mark = memory::mark();
        let mut busy = busy(function, round)?;
        let saved: [u32; 6] =
            core::array::from_fn(|index| function.read32(config::BAR0 + index as u16 * 4));
        let msix = function.msix()?;
        msix.enable(true, false);
        function.reset();
        let command = function.read16(config::COMMAND);
        ensure_eq!(
            command & (pci::MEMORY | pci::MASTER),
            0,
            "command register after the reset"
        );
        for (index, value) in saved.iter().enumerate() {
            function.write32(config::BAR0 + index as u16 * 4, *value);
        }
        function.command(pci::MEMORY | pci::MASTER, 0);
        ensure_eq!(
            busy.controller.read32(register::CC),
            0,
            "CC after the reset"
        );
        ensure_eq!(
            busy.controller.read32(register::CSTS) & 3,
            0,
            "CSTS after the reset"
        );
        if !busy.controller.is_qemu() {
            let entries = busy.controller.read32(register::AQA);
            ensure_eq!(entries, 0, "AQA after the reset");
            ensure!(!msix.enabled(), "MSI-X is on after the reset");
        }
        busy.watch()?;
        reuse(&mut busy)?;
        memory::release(mark);
    }
    Ok(())
}
