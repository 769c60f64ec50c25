//! A guest that does everything wrong: each command is answered, and the controller lives on.

use super::Machine;
use crate::check::{Outcome, Stop, ensure, ensure_eq, fail};
use crate::io;
use crate::memory::{self, Dma, PAGE};
use crate::nvme::{
    Buffer, CANARY, Command, Controller, Namespace, Pair, admin, io as opcode, register, status,
};
use crate::pci::Function;
use crate::random::Random;
use crate::serial::println;

pub fn run(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    let attacks: [(&str, Attack); 11] = [
        ("doorbells", doorbells),
        ("doorbell widths", doorbell_widths),
        ("transfer sizes", transfer_sizes),
        ("data pointers", data_pointers),
        ("log pages", log_pages),
        ("queue memory", queue_memory),
        ("admin queue memory", admin_queue_memory),
        ("aborts", aborts),
        ("event requests", event_requests),
        ("opcodes", opcodes),
        ("shadow doorbells", shadow_doorbells),
    ];
    // All of them, even when one shows a fault: they are independent.
    let mut first = Ok(());
    for (name, attack) in attacks {
        println!("hostile: {name}");
        let mark = memory::mark();
        let outcome = survive(machine, function, attack);
        memory::release(mark);
        match outcome {
            Err(Stop::Failed(why)) => {
                println!("hostile: {name}: {why}");
                if first.is_ok() {
                    first = Err(Stop::Failed(why));
                }
            }
            other => other?,
        }
    }
    first
}

type Attack = fn(&Machine, &mut Controller, Namespace) -> Outcome;

/// One attack on a fresh controller, which must do its work afterwards.
fn survive(machine: &Machine, function: Function, attack: Attack) -> Outcome {
    let mut controller = Controller::start(function)?;
    let namespace = controller.namespace()?;
    controller.request_queues(4)?;
    attack(machine, &mut controller, namespace)?;
    alive(&mut controller)?;
    controller.disable()
}

/// After an attack: Identify works, at once or after a reset if the controller says it is broken.
fn alive(controller: &mut Controller) -> Outcome {
    if controller.fatal() {
        controller.restart()?;
    }
    let page = memory::allocate(PAGE);
    controller.admin_ok(
        "Identify after an attack",
        Command::identify(1, 0, page.address(0)),
    )?;
    Ok(())
}

/// Addresses that DMA must not reach: a hole, the top of the address space, device registers.
fn bad_addresses(machine: &Machine, controller: &Controller) -> [u64; 8] {
    let hole = machine.hole.max(0xc000_0000);
    // QEMU lets DMA through to the interrupt controllers, where data becomes interrupts.
    let (local_apic, io_apic) = if controller.is_qemu() {
        (hole, hole)
    } else {
        (0xfee0_0000, 0xfec0_0000)
    };
    [
        hole,
        machine.ram_end.max(1 << 32).next_multiple_of(1 << 30) + (1 << 40),
        local_apic,
        io_apic,
        controller.bar,
        controller.bar + 0x1000,
        1 << 63,
        !(PAGE - 1),
    ]
}

/// Doorbells of queues that do not exist, and values beyond the ring: an event each, no more.
fn doorbells(_machine: &Machine, controller: &mut Controller, namespace: Namespace) -> Outcome {
    const WRONG_REGISTER: u32 = 0;
    const WRONG_VALUE: u32 = 1;
    let mut pair = controller.create_pair(1, 8)?;
    for (index, value, wanted) in [
        (2 * 2, 1, WRONG_REGISTER),
        (2 * 2 + 1, 1, WRONG_REGISTER),
        (2 * 4 + 1, 0xffff_ffff, WRONG_REGISTER),
        (2, 8, WRONG_VALUE),
        (2, 0xffff, WRONG_VALUE),
        (3, 8, WRONG_VALUE),
        (3, 0xffff, WRONG_VALUE),
        (0, 0xfff0, WRONG_VALUE),
        (1, 0xfff0, WRONG_VALUE),
    ] {
        controller.ask_for_event()?;
        // Answered only after the request before it was fetched.
        alive(controller)?;
        io::write32(controller.doorbell(index), value);
        // Writes are posted: a read behind one brings it to the device.
        controller.read32(register::CSTS);
        let Some(event) = controller.wait_event(5_000) else {
            fail!("no event for {value:#x} in doorbell {index}");
        };
        ensure_eq!(event & 7, 0, "event type of {value:#x} in doorbell {index}");
        ensure_eq!(
            event >> 8 & 0xff,
            wanted,
            "event of {value:#x} in doorbell {index}"
        );
        // Reading the error log lets the next such event through.
        let page = memory::allocate(PAGE);
        controller.admin_ok(
            "Get Log Page 01h",
            Command::log_page(1, u32::MAX, 64, 0, page.address(0)),
        )?;
        let flush = Command::new(opcode::FLUSH).namespace(namespace.id);
        controller.io_ok("Flush after a wrong doorbell", &mut pair, flush)?;
    }
    // The last doorbells of the BAR, beyond all queues. Masked events or none: just no harm.
    for address in (controller.bar + register::DOORBELLS..controller.bar + 0x2000).step_by(4) {
        if address > controller.doorbell(3) {
            io::write32(address, 0xffff_ffff);
        }
    }
    Ok(())
}

/// Writes of every width and alignment to doorbells and to reserved registers.
fn doorbell_widths(_machine: &Machine, controller: &mut Controller, _: Namespace) -> Outcome {
    controller.create_pair(1, 8)?;
    for offset in 0x1008..0x1018 {
        let address = controller.bar + offset;
        io::write8(address, 0);
        io::write16(address, 0);
        io::write64(address, 0);
    }
    // Reserved registers and read-only ones; CC, NSSR and the admin queue's are left alone.
    for offset in (0x48..0xff8).step_by(3) {
        let address = controller.bar + offset;
        io::write8(address, 0xff);
        io::write16(address, 0xffff);
        io::write32(address, u32::MAX);
        io::write64(address, u64::MAX);
    }
    for at in [register::VS, 0x18, register::CSTS] {
        io::write16(controller.bar + at + 1, 0xffff);
        io::write8(controller.bar + at + 3, 0xff);
    }
    controller.restart()
}

/// Transfers beyond MDTS, in both directions and in all commands with data.
fn transfer_sizes(
    _machine: &Machine,
    controller: &mut Controller,
    namespace: Namespace,
) -> Outcome {
    let mut pair = controller.create_pair(1, 8)?;
    let page = memory::allocate(PAGE);
    controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
    if page.read8(77) == 0 {
        return Ok(());
    }
    let buffer = Buffer::new(PAGE);
    let most = namespace.max_transfer / namespace.block;
    for blocks in [most + 1, most * 2, 65_536]
        .into_iter()
        .filter(|it| (most + 1..=65_536).contains(it))
    {
        for code in [opcode::READ, opcode::WRITE] {
            let command = Command::blocks(code, namespace.id, 0, blocks as u32);
            let completion = controller.io(&mut pair, buffer.attach(command))?;
            ensure_eq!(
                completion.code(),
                status::INVALID_FIELD,
                "{blocks} blocks beyond MDTS"
            );
        }
    }
    Ok(())
}

/// PRPs that lead nowhere, into registers, or are not aligned.
fn data_pointers(machine: &Machine, controller: &mut Controller, namespace: Namespace) -> Outcome {
    let watched = [register::CAP, register::CC, register::AQA, register::ASQ];
    let before = watched.map(|it| controller.read64(it));
    let mut pointers = Pointers {
        pair: controller.create_pair(1, 8)?,
        namespace,
        data: memory::allocate(4 * PAGE),
        list: memory::allocate(PAGE),
    };
    for bad in bad_addresses(machine, controller) {
        pointers.lead_to(controller, bad)?;
        admin_pointers(controller, bad)?;
    }
    pointers.unaligned(controller)?;
    let after = watched.map(|it| controller.read64(it));
    ensure_eq!(after, before, "registers after DMA aimed at them");
    Ok(())
}

/// Memory and a queue for transfers of one, two and four pages.
struct Pointers {
    pair: Pair,
    namespace: Namespace,
    data: Dma,
    list: Dma,
}

impl Pointers {
    /// A transfer of `pages` pages with these PRPs fails, in both directions.
    fn fails(
        &mut self,
        controller: &Controller,
        what: &str,
        pages: u64,
        (first, second): (u64, u64),
    ) -> Outcome {
        let blocks = (PAGE / self.namespace.block).max(1) * pages;
        for code in [opcode::READ, opcode::WRITE] {
            let command = Command::blocks(code, self.namespace.id, 0, blocks as u32);
            let completion = controller.io(&mut self.pair, command.prp(first, second))?;
            // QEMU bounces DMA to holes and forgets it.
            ensure!(
                !completion.success() || controller.is_qemu(),
                "opcode {code:#x} succeeds with {what}: {first:#x} {second:#x}"
            );
        }
        Ok(())
    }

    /// Every kind of pointer leads to `bad`.
    fn lead_to(&mut self, controller: &Controller, bad: u64) -> Outcome {
        let (good, list) = (self.data.address(0), self.list.address(0));
        self.fails(controller, "PRP1", 1, (bad, 0))?;
        self.fails(controller, "PRP2", 2, (good, bad))?;
        self.fails(controller, "a list", 4, (good, bad))?;
        self.list.write64(0, self.data.address(PAGE));
        self.list.write64(8, self.data.address(2 * PAGE));
        self.list.write64(16, bad);
        self.fails(controller, "a list entry", 4, (good, list))
    }

    fn unaligned(&mut self, controller: &Controller) -> Outcome {
        let (good, next) = (self.data.address(0), self.data.address(PAGE));
        self.fails(controller, "PRP2 with an offset", 2, (good, next + 8))?;
        self.list.write64(0, next + 4);
        let list = self.list.address(0);
        self.fails(controller, "a list entry with an offset", 4, (good, list))?;
        // Not dword aligned: allowed to fail, not allowed to hang.
        for low in 1..4 {
            let command = Command::blocks(opcode::READ, self.namespace.id, 0, 1);
            controller.io(&mut self.pair, command.prp(good + low, next))?;
        }
        Ok(())
    }
}

/// Identify with its result going to `bad`, wholly or from its middle on.
fn admin_pointers(controller: &mut Controller, bad: u64) -> Outcome {
    let page = memory::allocate(PAGE);
    for (first, second) in [(bad, 0), (page.address(8), bad)] {
        let command = Command::identify(1, 0, first).prp(first, second);
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success() || controller.is_qemu(),
            "Identify to {first:#x} {second:#x} succeeds"
        );
    }
    Ok(())
}

/// Log pages known and unknown, at offsets and lengths of all kinds.
fn log_pages(_machine: &Machine, controller: &mut Controller, _: Namespace) -> Outcome {
    let pages = memory::allocate(4 * PAGE);
    let list = memory::allocate(PAGE);
    // A list that never ends: all entries are the same page, the last leads back to the start.
    for slot in 0..511 {
        list.write64(slot * 8, pages.address(PAGE));
    }
    list.write64(511 * 8, list.address(0));
    for log in (0..=0x22).chain([0x7f, 0x80, 0x81, 0xbf, 0xc0, 0xff]) {
        for nsid in [0, u32::MAX] {
            for offset in [
                0,
                4,
                60,
                508,
                512,
                516,
                1020,
                4092,
                4096,
                1 << 32,
                u64::MAX - 3,
                u64::MAX - 7,
                1,
                2,
                6,
            ] {
                for bytes in [4, 512, PAGE] {
                    read_log(controller, &pages, log, nsid, bytes, offset)?;
                }
            }
            let huge =
                Command::log_page(log, nsid, 4 << 32, 0, 0).prp(pages.address(0), list.address(0));
            controller.admin(huge)?;
        }
        controller.admin(Command::log_page(log, 0x5555, 512, 0, pages.address(0)))?;
    }
    let unknown = Command::log_page(0xbe, u32::MAX, 512, 0, pages.address(0));
    controller.admin_refused(
        "log page BEh",
        unknown,
        &[status::INVALID_LOG_PAGE, status::INVALID_FIELD],
    )
}

/// One Get Log Page into the second of four pages; nothing beyond the length asked for is written.
fn read_log(
    controller: &mut Controller,
    pages: &Dma,
    log: u8,
    nsid: u32,
    bytes: u64,
    offset: u64,
) -> Outcome {
    pages.fill(0, pages.len(), CANARY);
    let command = Command::log_page(log, nsid, bytes, offset, pages.address(PAGE));
    let completion = controller.admin(command)?;
    ensure_eq!(
        pages.find_other(0, PAGE, CANARY),
        None,
        "memory before log {log:#x}"
    );
    ensure_eq!(
        pages.find_other(PAGE + bytes, 3 * PAGE - bytes, CANARY),
        None,
        "memory behind {bytes} bytes of log {log:#x} at {offset:#x}"
    );
    ensure!(
        !completion.success() || offset.is_multiple_of(4) || controller.is_qemu(),
        "log {log:#x} at the odd offset {offset:#x} succeeds"
    );
    Ok(())
}

/// I/O queues in memory that is not memory: refused, or fatal once used.
fn queue_memory(machine: &Machine, controller: &mut Controller, namespace: Namespace) -> Outcome {
    for bad in bad_addresses(machine, controller) {
        let cq = controller.new_cq(1, 16);
        let command = Controller::create_cq_command(&cq, None).prp(bad, 0);
        let mut made = controller.admin(command)?.success();
        if !made {
            controller.create_cq(1, 16, None)?;
        }
        let mut sq = controller.new_sq(1, 16);
        let mut command = Controller::create_sq_command(&sq, 1);
        if !made {
            command = command.prp(bad, 0);
        }
        let sq_made = controller.admin(command)?.success();
        made = sq_made;
        if made {
            sq.push(Command::new(opcode::FLUSH).namespace(namespace.id));
            sq.ring();
            crate::time::spin_us(5_000);
        }
        alive(controller)?;
        controller.restart()?;
        controller.request_queues(4)?;
    }
    for unaligned in [1, 4, 0x800] {
        let cq = controller.new_cq(1, 16);
        let command = Controller::create_cq_command(&cq, None).prp(cq.memory.address(unaligned), 0);
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success(),
            "CQ memory at offset {unaligned:#x} is accepted"
        );
    }
    // Physically scattered queues need CAP.CQR to be clear.
    if controller.cap >> 16 & 1 == 1 {
        let cq = controller.new_cq(1, 16);
        let command = Controller::create_cq_command(&cq, None).dword(11, 0);
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success(),
            "a scattered CQ is accepted though CAP.CQR is set"
        );
    }
    Ok(())
}

/// Admin queues in wrong places and of wrong sizes: whatever happens, a reset mends it.
fn admin_queue_memory(machine: &Machine, controller: &mut Controller, _: Namespace) -> Outcome {
    let enable = 6 << 16 | 4 << 20 | 1;
    let bad = bad_addresses(machine, controller);
    for (index, address) in bad.into_iter().enumerate() {
        controller.disable()?;
        let good = memory::allocate(PAGE).address(0);
        controller.write32(register::AQA, 31 << 16 | 31);
        let (sq, cq) = if index % 2 == 0 {
            (address, good)
        } else {
            (good, address)
        };
        controller.write64(register::ASQ, sq);
        controller.write64(register::ACQ, cq);
        controller.write32(register::CC, enable);
        io::write32(controller.doorbell(0), 1);
        crate::time::spin_us(5_000);
        controller.restart()?;
    }
    for size in [0, 0x0fff_0000, 0xffff_ffff] {
        controller.disable()?;
        let memory = memory::allocate(2 * PAGE);
        controller.write32(register::AQA, size);
        controller.write64(register::ASQ, memory.address(0));
        controller.write64(register::ACQ, memory.address(PAGE));
        controller.write32(register::CC, enable);
        io::write32(controller.doorbell(0), 1);
        io::write32(controller.doorbell(0), 0xffff);
        crate::time::spin_us(5_000);
        controller.restart()?;
    }
    // CC with page and entry sizes that do not exist, and doorbells of a disabled controller.
    for value in [u32::MAX, 1, 0xf << 7 | 1, 0xff << 16 | 1] {
        controller.disable()?;
        io::write32(controller.doorbell(0), 1);
        io::write32(controller.doorbell(3), 1);
        controller.write32(register::CC, value & !(3 << 14));
        io::write32(controller.doorbell(0), 1);
        crate::time::spin_us(5_000);
        controller.restart()?;
    }
    Ok(())
}

/// Abort of commands that are not there, in queues that are not there.
fn aborts(_machine: &Machine, controller: &mut Controller, _: Namespace) -> Outcome {
    controller.create_pair(1, 8)?;
    let mut random = Random::new(11);
    for round in 0..300 {
        let (sq, id) = match round {
            0 => (0, 0xffff),
            1 => (1, 0),
            2 => (0xffff, 0xffff),
            _ => (random.below(1 << 16), random.below(1 << 16)),
        };
        let command = Command::new(admin::ABORT).dword(10, (id << 16 | sq) as u32);
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success() || completion.result & 1 == 1,
            "queue {sq:#x} command {id:#x}: said to be aborted"
        );
    }
    Ok(())
}

/// More event requests than the controller keeps: refused, none lost.
fn event_requests(_machine: &Machine, controller: &mut Controller, _: Namespace) -> Outcome {
    const LIMIT_EXCEEDED: u16 = 0x105;
    let page = memory::allocate(PAGE);
    controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
    let kept = u32::from(page.read8(259)) + 1;
    let requests = (kept + 4).min(30);
    let pair = controller.admin_queue();
    for _ in 0..requests {
        pair.sq.push(Command::new(admin::ASYNC_EVENT));
    }
    pair.sq.ring();
    for _ in kept..requests {
        let deadline = Controller::command_deadline();
        let completion = loop {
            if let Some(completion) = controller.admin_queue().poll() {
                break completion;
            }
            if deadline.passed() {
                return Err(controller.timeout("an event request too many to be refused"));
            }
        };
        ensure_eq!(
            completion.code(),
            LIMIT_EXCEEDED,
            "an event request too many"
        );
    }
    Ok(())
}

/// Every opcode that the Commands Supported log does not list is refused.
fn opcodes(_machine: &Machine, controller: &mut Controller, namespace: Namespace) -> Outcome {
    let log = memory::allocate(PAGE);
    let buffer = memory::allocate(PAGE);
    controller.admin_ok(
        "Get Log Page 05h",
        Command::log_page(5, u32::MAX, PAGE, 0, log.address(0)),
    )?;
    let mut pair = controller.create_pair(1, 8)?;
    for code in 0..=255u8 {
        let command = Command::new(code)
            .namespace(namespace.id)
            .prp(buffer.address(0), 0);
        if log.read32(u64::from(code) * 4) & 1 == 0 {
            controller.admin_refused(
                "an unknown admin opcode",
                command,
                &[status::INVALID_OPCODE],
            )?;
        }
        if log.read32(1024 + u64::from(code) * 4) & 1 == 0 {
            let completion = controller.io(&mut pair, command)?;
            ensure_eq!(
                completion.code(),
                status::INVALID_OPCODE,
                "I/O opcode {code:#x}"
            );
        }
    }
    fields(controller, &mut pair, namespace)
}

/// Known opcodes with fused bits, SGLs and random dwords: an answer each.
fn fields(controller: &mut Controller, pair: &mut Pair, namespace: Namespace) -> Outcome {
    let mut random = Random::new(5);
    let buffer = memory::allocate(PAGE);
    for bits in [1 << 8, 2 << 8, 3 << 8, 1 << 14, 2 << 14, 3 << 14] {
        let command = Command::blocks(opcode::READ, namespace.id, 0, 1).prp(buffer.address(0), 0);
        controller.io(pair, command.dword(0, command.dwords[0] | bits))?;
    }
    for _ in 0..500 {
        // Flush, Read, Write Zeroes and Dataset Management: those cannot reach beyond the page, for
        // PRP2 leads nowhere.
        let code = [
            opcode::FLUSH,
            opcode::READ,
            opcode::WRITE_ZEROES,
            opcode::DATASET_MANAGEMENT,
        ];
        let mut command = Command::new(code[random.below(4) as usize])
            .namespace([namespace.id, 0, u32::MAX, random.next() as u32][random.below(4) as usize])
            .prp(buffer.address(0), !(PAGE - 1));
        for index in 10..16 {
            command = command.dword(index, random.next() as u32);
        }
        controller.io(pair, command)?;
    }
    Ok(())
}

/// Shadow doorbell pages in wrong places, and wrong values in right ones.
fn shadow_doorbells(
    machine: &Machine,
    controller: &mut Controller,
    namespace: Namespace,
) -> Outcome {
    if !controller.has_shadow_doorbells()? {
        return Ok(());
    }
    let pages = memory::allocate(2 * PAGE);
    let config = Command::new(admin::DOORBELL_BUFFER);
    for (shadow, event) in [(4, PAGE), (0, PAGE + 8), (0x800, PAGE)] {
        let command = config.prp(pages.address(shadow), pages.address(event));
        let completion = controller.admin(command)?;
        ensure!(
            !completion.success(),
            "shadow pages at {shadow:#x} and {event:#x} are accepted"
        );
    }
    // QEMU takes any address, and any tail, at face value.
    if controller.is_qemu() {
        return Ok(());
    }
    for bad in bad_addresses(machine, controller) {
        for command in [
            config.prp(bad, pages.address(0)),
            config.prp(pages.address(0), bad),
        ] {
            let completion = controller.admin(command)?;
            ensure!(
                !completion.success(),
                "a shadow page at {bad:#x} is accepted"
            );
        }
    }
    wrong_shadows(controller, namespace)
}

fn wrong_shadows(controller: &mut Controller, namespace: Namespace) -> Outcome {
    let mut pairs = [controller.create_pair(1, 8)?];
    controller.use_shadow_doorbells(&mut pairs)?;
    let [mut pair] = pairs;
    let flush = Command::new(opcode::FLUSH).namespace(namespace.id);
    for wrong in [8, 9, 0xffff, 0x1_0000, 0x1_0001, u32::MAX] {
        for doorbell in [pair.sq.doorbell, pair.cq.doorbell] {
            if let Some((shadow, _)) = doorbell.shadow {
                shadow.write32(0, wrong);
                io::write32(doorbell.register, wrong);
            }
        }
        controller.expect_silence(&mut pair.cq, 5)?;
        // The right value mends it. What the guest wrote wrongly confused its own event index
        // sums, so this rings unconditionally.
        pair.sq.push(flush);
        pair.sq.ring();
        pair.cq.ring();
        let tail = pair.sq.tail();
        pair.sq.doorbell.write(tail);
        let completion = controller.wait(&mut pair)?;
        ensure!(
            completion.success(),
            "Flush after shadow {wrong:#x}: {:#x}",
            completion.status
        );
    }
    Ok(())
}
