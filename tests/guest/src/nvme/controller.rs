//! One controller: registers, admin queue, queue creation.

use super::command::{Command, Completion, admin};
use super::queue::{CompletionQueue, Pair, SubmissionQueue};
use crate::check::{Outcome, Stop, Text, ensure, fail, skip};
use crate::memory::{self, Dma, PAGE};
use crate::pci::{self, Function};
use crate::time::Deadline;
use crate::{io, time};

/// Controller registers (NVMe Base Specification 2.0, 3.1.3).
pub mod register {
    pub const CAP: u64 = 0x00;
    pub const VS: u64 = 0x08;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1c;
    pub const NSSR: u64 = 0x20;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
    pub const DOORBELLS: u64 = 0x1000;
}

/// PCI vendor and device of QEMU's controller, which lacks some of what is tested.
const QEMU: (u16, u16) = (0x1b36, 0x0010);

/// Longest that any command may take: hosts are slow and shared.
const COMMAND_MS: u64 = 20_000;
/// Added to the controller's own limit for becoming ready, for the same reason.
const READY_MS: u64 = 10_000;

const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const ENABLE: u32 = 1;
/// CC with I/O entry sizes of 64 and 16 bytes, 4 KiB pages and no EN.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;

/// A controller.
pub struct Controller {
    /// The PCI function.
    pub function: Function,
    /// Physical address of BAR 0.
    pub bar: u64,
    /// Bytes of BAR 0.
    pub bar_size: u64,
    /// Controller capabilities.
    pub cap: u64,
    admin: Pair,
    shadow: Option<(Dma, Dma)>,
    /// Asynchronous event results that arrived, oldest first.
    pub events: [Option<u32>; 16],
    event_commands: [Option<u16>; 16],
}

/// What is needed to do I/O on a namespace.
#[derive(Clone, Copy)]
pub struct Namespace {
    /// Namespace identifier.
    pub id: u32,
    /// Blocks.
    pub blocks: u64,
    /// Bytes in a block.
    pub block: u64,
    /// Most bytes in one command (1 MiB if the controller sets no limit).
    pub max_transfer: u64,
}

impl Controller {
    /// Maps the function's registers without touching the controller's state.
    ///
    /// # Errors
    /// BAR 0 is missing or too small, or the registers read as all ones.
    pub fn attach(function: Function, admin_entries: u32) -> Outcome<Self> {
        let Some(bar) = function.bar(0) else {
            fail!("BAR 0 is no memory BAR");
        };
        ensure!(bar.size >= 0x2000, "BAR 0 has only {:#x} bytes", bar.size);
        ensure!(bar.base != 0, "BAR 0 has no address");
        memory::map_registers(bar.base, bar.size);
        function.command(pci::MEMORY | pci::MASTER, 0);
        let cap = io::read64(bar.base + register::CAP);
        ensure!(cap != u64::MAX, "CAP reads as all ones");
        let stride = 4 << (cap >> 32 & 0xf);
        Ok(Self {
            function,
            bar: bar.base,
            bar_size: bar.size,
            cap,
            admin: Pair {
                sq: SubmissionQueue::new(0, admin_entries, bar.base + register::DOORBELLS),
                cq: CompletionQueue::new(0, admin_entries, bar.base + register::DOORBELLS + stride),
            },
            shadow: None,
            events: [None; 16],
            event_commands: [None; 16],
        })
    }

    /// Attaches, resets and enables the controller with an admin queue of 32 entries.
    ///
    /// # Errors
    /// It does not become ready, or not at once after a reset.
    pub fn start(function: Function) -> Outcome<Self> {
        let controller = Self::attach(function, 32)?;
        controller.disable()?;
        // The memory may be that of an earlier queue, which lived until now.
        for queue in [controller.admin.sq.memory, controller.admin.cq.memory] {
            queue.fill(0, queue.len(), 0);
        }
        controller.enable()?;
        Ok(controller)
    }

    /// Disables it, forgets all queues, and enables it with a fresh admin queue.
    ///
    /// # Errors
    /// As [`Controller::start`].
    pub fn restart(&mut self) -> Outcome {
        *self = Self::start(self.function)?;
        Ok(())
    }

    /// Whether this is QEMU's controller.
    pub fn is_qemu(&self) -> bool {
        (
            self.function.read16(pci::register::VENDOR),
            self.function.read16(pci::register::DEVICE),
        ) == QEMU
    }

    /// Reads a 4-byte register.
    pub fn read32(&self, register: u64) -> u32 {
        io::read32(self.bar + register)
    }

    /// Reads an 8-byte register.
    pub fn read64(&self, register: u64) -> u64 {
        io::read64(self.bar + register)
    }

    /// Writes a 4-byte register.
    pub fn write32(&self, register: u64, value: u32) {
        io::write32(self.bar + register, value);
    }

    /// Writes an 8-byte register.
    pub fn write64(&self, register: u64, value: u64) {
        io::write64(self.bar + register, value);
    }

    /// Largest queue, in entries.
    pub fn max_entries(&self) -> u32 {
        (self.cap as u32 & 0xffff) + 1
    }

    /// Physical address of a doorbell: `2 * queue` for tails, `2 * queue + 1` for heads.
    pub fn doorbell(&self, index: u64) -> u64 {
        self.bar + register::DOORBELLS + index * (4 << (self.cap >> 32 & 0xf))
    }

    fn ready_deadline(&self) -> Deadline {
        Deadline::after_ms((self.cap >> 24 & 0xff) * 500 + READY_MS)
    }

    /// Clears CC.EN and waits for CSTS.RDY to clear.
    ///
    /// # Errors
    /// RDY stays set.
    pub fn disable(&self) -> Outcome {
        self.write32(register::CC, self.read32(register::CC) & !ENABLE);
        let deadline = self.ready_deadline();
        while self.read32(register::CSTS) & READY != 0 {
            if deadline.passed() {
                return Err(self.timeout("CSTS.RDY to clear"));
            }
        }
        Ok(())
    }

    /// Programs the admin queue, sets CC.EN and waits for CSTS.RDY.
    ///
    /// # Errors
    /// RDY stays clear or CFS gets set.
    pub fn enable(&self) -> Outcome {
        let entries = self.admin.sq.entries - 1;
        self.write32(register::AQA, entries << 16 | entries);
        self.write64(register::ASQ, self.admin.sq.memory.address(0));
        self.write64(register::ACQ, self.admin.cq.memory.address(0));
        // All I/O command sets where the controller says so, else the NVM command set.
        let sets = if self.cap >> 43 & 1 != 0 { 6 << 4 } else { 0 };
        self.write32(register::CC, ENTRY_SIZES | sets | ENABLE);
        let deadline = self.ready_deadline();
        loop {
            let status = self.read32(register::CSTS);
            ensure!(status & FATAL == 0, "CSTS.CFS after enabling ({status:#x})");
            if status & READY != 0 {
                return Ok(());
            }
            if deadline.passed() {
                return Err(self.timeout("CSTS.RDY to be set"));
            }
        }
    }

    /// Whether the controller reports a fatal status.
    pub fn fatal(&self) -> bool {
        self.read32(register::CSTS) & FATAL != 0
    }

    /// The failure of a wait, with what the status register says.
    pub fn timeout(&self, what: &str) -> Stop {
        let status = self.read32(register::CSTS);
        Stop::Failed(Text::new(format_args!(
            "gave up waiting for {what} (CSTS {status:#x})"
        )))
    }

    /// Limit for one command.
    pub fn command_deadline() -> Deadline {
        Deadline::after_ms(COMMAND_MS)
    }

    /// The admin queue itself, for tests that put strange things into it.
    pub fn admin_queue(&mut self) -> &mut Pair {
        &mut self.admin
    }

    /// Takes completions of the admin queue; events are kept aside.
    fn poll_admin(&mut self) -> Option<Completion> {
        let completion = self.admin.poll()?;
        let event = self
            .event_commands
            .iter()
            .position(|it| *it == Some(completion.id));
        let Some(slot) = event else {
            return Some(completion);
        };
        self.event_commands[slot] = None;
        if let Some(free) = self.events.iter_mut().find(|it| it.is_none()) {
            *free = Some(completion.result);
        }
        None
    }

    /// Does one admin command and returns how it ended, whatever its status.
    ///
    /// # Errors
    /// No completion, or one of a command that was not sent.
    pub fn admin(&mut self, command: Command) -> Outcome<Completion> {
        let Some(id) = self.admin.sq.push(command) else {
            fail!("the admin queue is full");
        };
        self.admin.sq.ring();
        let deadline = Self::command_deadline();
        loop {
            if let Some(completion) = self.poll_admin() {
                ensure!(
                    completion.id == id && completion.sq_id == 0,
                    "completion of command {} on queue {}, not of {id} on 0",
                    completion.id,
                    completion.sq_id
                );
                return Ok(completion);
            }
            if deadline.passed() {
                return Err(self.timeout("an admin command"));
            }
        }
    }

    /// Does one admin command that must succeed.
    ///
    /// # Errors
    /// As [`Controller::admin`], or another status than success.
    pub fn admin_ok(&mut self, what: &str, command: Command) -> Outcome<Completion> {
        let completion = self.admin(command)?;
        ensure!(
            completion.success(),
            "{what}: status {:#x}",
            completion.status
        );
        Ok(completion)
    }

    /// Does one admin command that must end with one of these status codes.
    ///
    /// # Errors
    /// As [`Controller::admin`], or another status.
    pub fn admin_refused(&mut self, what: &str, command: Command, codes: &[u16]) -> Outcome {
        let completion = self.admin(command)?;
        ensure!(
            codes.contains(&completion.code()),
            "{what}: status {:#x}, not one of {codes:#x?}",
            completion.status
        );
        Ok(())
    }

    /// Leaves one Asynchronous Event Request with the controller.
    ///
    /// # Errors
    /// The admin queue is full or too many are out.
    pub fn ask_for_event(&mut self) -> Outcome {
        let slot = self.event_commands.iter_mut().find(|it| it.is_none());
        let id = self.admin.sq.push(Command::new(admin::ASYNC_EVENT));
        let (Some(slot), Some(id)) = (slot, id) else {
            fail!("no room for an asynchronous event request");
        };
        *slot = Some(id);
        self.admin.sq.ring();
        Ok(())
    }

    /// Waits at most `ms` milliseconds for an event; its result dword.
    pub fn wait_event(&mut self, ms: u64) -> Option<u32> {
        let deadline = Deadline::after_ms(ms);
        loop {
            // No other command is out, so that nothing else can be lost here.
            let _ = self.poll_admin();
            if let Some(event) = self.events[0].take() {
                self.events.rotate_left(1);
                return Some(event);
            }
            if deadline.passed() {
                return None;
            }
        }
    }

    /// Allocates up to `pairs` I/O queue pairs; how many the controller granted.
    ///
    /// # Errors
    /// The command fails.
    pub fn request_queues(&mut self, pairs: u32) -> Outcome<u32> {
        let value = (pairs - 1) << 16 | (pairs - 1);
        let command = Command::new(admin::SET_FEATURES)
            .dword(10, 7)
            .dword(11, value);
        let granted = self.admin_ok("Set Features 07h", command)?.result;
        Ok((granted & 0xffff).min(granted >> 16).min(pairs - 1) + 1)
    }

    /// Create I/O Completion Queue, as a command.
    pub fn create_cq_command(cq: &CompletionQueue, vector: Option<u16>) -> Command {
        let flags = 1 | u32::from(vector.is_some()) << 1;
        Command::new(admin::CREATE_CQ)
            .prp(cq.memory.address(0), 0)
            .dword(10, (cq.entries - 1) << 16 | u32::from(cq.id))
            .dword(11, flags | u32::from(vector.unwrap_or(0)) << 16)
    }

    /// Create I/O Submission Queue, as a command.
    pub fn create_sq_command(sq: &SubmissionQueue, cq: u16) -> Command {
        Command::new(admin::CREATE_SQ)
            .prp(sq.memory.address(0), 0)
            .dword(10, (sq.entries - 1) << 16 | u32::from(sq.id))
            .dword(11, u32::from(cq) << 16 | 1)
    }

    /// A completion queue that the controller does not know yet.
    pub fn new_cq(&self, id: u16, entries: u32) -> CompletionQueue {
        let index = u64::from(id) * 2 + 1;
        let mut cq = CompletionQueue::new(id, entries, self.doorbell(index));
        cq.doorbell.shadow = self.shadow_slot(index);
        cq
    }

    /// A submission queue that the controller does not know yet.
    pub fn new_sq(&self, id: u16, entries: u32) -> SubmissionQueue {
        let index = u64::from(id) * 2;
        let mut sq = SubmissionQueue::new(id, entries, self.doorbell(index));
        sq.doorbell.shadow = self.shadow_slot(index);
        sq
    }

    /// Creates a completion queue, polled if it has no vector.
    ///
    /// # Errors
    /// The command fails.
    pub fn create_cq(
        &mut self,
        id: u16,
        entries: u32,
        vector: Option<u16>,
    ) -> Outcome<CompletionQueue> {
        let cq = self.new_cq(id, entries);
        self.admin_ok("Create CQ", Self::create_cq_command(&cq, vector))?;
        Ok(cq)
    }

    /// Creates a submission queue that completes to `cq`.
    ///
    /// # Errors
    /// The command fails.
    pub fn create_sq(&mut self, id: u16, entries: u32, cq: u16) -> Outcome<SubmissionQueue> {
        let sq = self.new_sq(id, entries);
        self.admin_ok("Create SQ", Self::create_sq_command(&sq, cq))?;
        Ok(sq)
    }

    /// Creates a polled queue pair with both queues of one size.
    ///
    /// # Errors
    /// A command fails.
    pub fn create_pair(&mut self, id: u16, entries: u32) -> Outcome<Pair> {
        let cq = self.create_cq(id, entries, None)?;
        let sq = self.create_sq(id, entries, id)?;
        Ok(Pair { sq, cq })
    }

    /// Deletes a queue pair.
    ///
    /// # Errors
    /// A command fails.
    pub fn delete_pair(&mut self, id: u16) -> Outcome {
        let id = u32::from(id);
        self.admin_ok("Delete SQ", Command::new(admin::DELETE_SQ).dword(10, id))?;
        self.admin_ok("Delete CQ", Command::new(admin::DELETE_CQ).dword(10, id))?;
        Ok(())
    }

    /// Whether the controller supports Doorbell Buffer Config.
    ///
    /// # Errors
    /// Identify fails.
    pub fn has_shadow_doorbells(&mut self) -> Outcome<bool> {
        let page = memory::allocate(PAGE);
        self.admin_ok(
            "Identify controller",
            Command::identify(1, 0, page.address(0)),
        )?;
        Ok(page.read16(256) & 1 << 8 != 0)
    }

    /// Turns shadow doorbells on, for the pairs given and all queues created later. After a failure
    /// these pairs are of no more use.
    ///
    /// # Errors
    /// The command fails.
    pub fn use_shadow_doorbells<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = &'a mut Pair>,
    ) -> Outcome {
        let buffers = (memory::allocate(PAGE), memory::allocate(PAGE));
        for pair in pairs {
            let id = u64::from(pair.sq.id);
            let (tail, head) = (id * 2, id * 2 + 1);
            // A driver that changes over in mid-flow puts its own tails and heads in first.
            buffers.0.write32(self.slot(tail), pair.sq.tail());
            buffers.0.write32(self.slot(head), pair.cq.head());
            // Nothing rings them before the controller knows.
            pair.sq.doorbell.shadow = Some(self.slot_parts(buffers, tail));
            pair.cq.doorbell.shadow = Some(self.slot_parts(buffers, head));
        }
        let command =
            Command::new(admin::DOORBELL_BUFFER).prp(buffers.0.address(0), buffers.1.address(0));
        self.admin_ok("Doorbell Buffer Config", command)?;
        self.shadow = Some(buffers);
        Ok(())
    }

    /// The shadow doorbell and event index pages in use.
    pub fn shadow_pages(&self) -> Option<(Dma, Dma)> {
        self.shadow
    }

    fn slot(&self, index: u64) -> u64 {
        index * (4 << (self.cap >> 32 & 0xf))
    }

    fn slot_parts(&self, buffers: (Dma, Dma), index: u64) -> (Dma, Dma) {
        let at = self.slot(index);
        (buffers.0.part(at, 4), buffers.1.part(at, 4))
    }

    /// The shadow of a doorbell of a new queue, zeroed.
    fn shadow_slot(&self, index: u64) -> Option<(Dma, Dma)> {
        let parts = self.slot_parts(self.shadow?, index);
        parts.0.write32(0, 0);
        parts.1.write32(0, 0);
        Some(parts)
    }

    /// Sends one I/O command and waits for it; its completion, whatever the status.
    ///
    /// # Errors
    /// No completion, or one of another command.
    pub fn io(&self, pair: &mut Pair, command: Command) -> Outcome<Completion> {
        let Some(id) = pair.sq.push(command) else {
            fail!("I/O queue {} is full", pair.sq.id);
        };
        pair.sq.ring();
        let completion = self.wait(pair)?;
        ensure!(
            completion.id == id && completion.sq_id == pair.sq.id,
            "completion of command {} on queue {}, not of {id} on {}",
            completion.id,
            completion.sq_id,
            pair.sq.id
        );
        Ok(completion)
    }

    /// Sends one I/O command that must succeed.
    ///
    /// # Errors
    /// As [`Controller::io`], or another status than success.
    pub fn io_ok(&self, what: &str, pair: &mut Pair, command: Command) -> Outcome {
        let completion = self.io(pair, command)?;
        ensure!(
            completion.success(),
            "{what}: status {:#x}",
            completion.status
        );
        Ok(())
    }

    /// Waits for any completion.
    ///
    /// # Errors
    /// None comes.
    pub fn wait(&self, pair: &mut Pair) -> Outcome<Completion> {
        let deadline = Self::command_deadline();
        loop {
            if let Some(completion) = pair.poll() {
                return Ok(completion);
            }
            if deadline.passed() {
                return Err(self.timeout("an I/O command"));
            }
            core::hint::spin_loop();
        }
    }

    /// The first active namespace.
    ///
    /// # Errors
    /// There is none, or Identify fails.
    pub fn namespace(&mut self) -> Outcome<Namespace> {
        let page = memory::allocate(PAGE);
        self.admin_ok(
            "Identify controller",
            Command::identify(1, 0, page.address(0)),
        )?;
        let max_transfer = match page.read8(77) {
            0 => 1 << 20,
            power => PAGE << (self.cap >> 48 & 0xf) << power.min(20),
        };
        self.admin_ok(
            "Identify active list",
            Command::identify(2, 0, page.address(0)),
        )?;
        let id = page.read32(0);
        if id == 0 {
            skip!("no active namespace");
        }
        self.admin_ok(
            "Identify namespace",
            Command::identify(0, id, page.address(0)),
        )?;
        let format = u64::from(page.read8(26) & 0xf);
        let shift = page.read8(128 + format * 4 + 2);
        ensure!(
            (9..=16).contains(&shift),
            "namespace {id}: LBADS is {shift}"
        );
        Ok(Namespace {
            id,
            blocks: page.read64(0),
            block: 1 << shift,
            max_transfer,
        })
    }

    /// Waits `ms` milliseconds, during which no completion may come from `cq`.
    ///
    /// # Errors
    /// One came.
    pub fn expect_silence(&self, cq: &mut CompletionQueue, ms: u64) -> Outcome {
        time::spin_us(ms * 1000);
        if let Some(completion) = cq.take() {
            fail!(
                "a late completion: command {} of queue {}, status {:#x}",
                completion.id,
                completion.sq_id,
                completion.status
            );
        }
        Ok(())
    }
}
