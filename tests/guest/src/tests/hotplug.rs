//! Controllers that come and go under I/O, on any number of which one namespace is seen.
//!
//! The guest plays the part of ACPI on the hot-plug registers. It tells the host of each controller
//! that it uses (`UP slot`), finds gone (`GONE slot`) and lets go (`EJECTED slot`), and ends when it
//! has none left.

use super::Machine;
use super::flow::Flow;
use crate::check::{Outcome, ensure, ensure_eq};
use crate::memory::{self, Dma};
use crate::nvme::{Command, Controller, Namespace, Pair, io, register};
use crate::pci::{self, Function};
use crate::random::Random;
use crate::serial::println;
use crate::time::Deadline;

/// The hot-plug registers' ports: slots that got a function, slots to let go, slots let go.
const INSERTED: u16 = 0x610;
const REMOVAL: u16 = 0x614;
const EJECT: u16 = 0x618;
const SLOTS: usize = 32;
/// Longest without a change: the host plugs one device at a time.
const QUIET_MS: u64 = 60_000;
/// Looks at a completion queue between two looks at whether the controller is there.
const LOOKS: u32 = 100_000;

/// A controller in use.
struct Path {
    controller: Controller,
    pairs: [Pair; 1],
    namespace: Namespace,
    page: Dma,
    random: Random,
}

/// How a read went.
enum Read {
    Done,
    /// The controller was pulled.
    Gone,
}

impl Path {
    fn open(function: Function) -> Outcome<Self> {
        let mut controller = Controller::start(function)?;
        controller.request_queues(1)?;
        let namespace = controller.namespace()?;
        let mut pairs = [controller.create_pair(1, 16)?];
        Flow::prepare(&controller, &mut pairs[0], namespace)?;
        controller.use_shadow_doorbells(&mut pairs)?;
        println!("UP {}", function.slot);
        Ok(Self {
            controller,
            pairs,
            namespace,
            page: memory::allocate(memory::PAGE),
            random: Random::new(u64::from(function.slot)),
        })
    }

    fn present(&self) -> bool {
        self.controller.read32(register::CSTS) != u32::MAX
    }

    fn tell_gone(&self) {
        println!("GONE {}", self.controller.function.slot);
    }

    /// Reads one block of the prepared area and checks it.
    fn read(&mut self) -> Outcome<Read> {
        let lba = self.random.below(super::flow::AREA);
        self.page.write64(0, 0);
        let command = Command::blocks(io::READ, self.namespace.id, lba, 1);
        let pair = &mut self.pairs[0];
        let id = pair.sq.push(command.prp(self.page.address(0), 0));
        pair.sq.ring();
        let deadline = Controller::command_deadline();
        loop {
            for _ in 0..LOOKS {
                let Some(completion) = self.pairs[0].poll() else {
                    core::hint::spin_loop();
                    continue;
                };
                ensure!(
                    Some(completion.id) == id && completion.success(),
                    "Read of block {lba}: status {:#x}",
                    completion.status
                );
                ensure_eq!(self.page.read64(0), Flow::word(lba), "block {lba}");
                return Ok(Read::Done);
            }
            if !self.present() {
                return Ok(Read::Gone);
            }
            if deadline.passed() {
                return Err(self.controller.timeout("a read"));
            }
        }
    }

    /// Lets go of it as a driver does.
    fn close(self) -> Outcome {
        self.controller.disable()
    }
}

/// The slots in a mask.
fn slots(mask: u32) -> impl Iterator<Item = usize> {
    (0..SLOTS).filter(move |slot| mask >> slot & 1 != 0)
}

/// Slots whose function the host wants back.
pub fn to_remove() -> impl Iterator<Item = usize> {
    slots(crate::io::in32(REMOVAL))
}

/// Gives a slot's function back.
pub fn let_go(slot: usize) {
    crate::io::out32(EJECT, 1 << slot);
    println!("EJECTED {slot}");
}

pub fn run(_machine: &Machine) -> Outcome {
    let mut paths = [const { None::<Path> }; SLOTS];
    for function in pci::controllers() {
        paths[usize::from(function.slot)] = Some(Path::open(function)?);
    }
    let (mut reads, mut gone) = (0u64, 0u64);
    let mut quiet = Deadline::after_ms(QUIET_MS);
    while paths.iter().any(Option::is_some) {
        ensure!(!quiet.passed(), "nothing changed for {QUIET_MS} ms");
        for path in &mut paths {
            let Some(open) = path else { continue };
            match open.read()? {
                Read::Done => reads += 1,
                Read::Gone => {
                    open.tell_gone();
                    *path = None;
                    gone += 1;
                }
            }
        }
        for slot in to_remove() {
            match paths[slot].take() {
                Some(path) if path.present() => path.close()?,
                // Pulled since its last read.
                Some(path) => {
                    path.tell_gone();
                    gone += 1;
                }
                None => {}
            }
            let_go(slot);
            quiet = Deadline::after_ms(QUIET_MS);
        }
        for slot in slots(crate::io::in32(INSERTED)) {
            let function = Function {
                slot: slot as u8,
                number: 0,
            };
            paths[slot] = Some(Path::open(function)?);
            quiet = Deadline::after_ms(QUIET_MS);
        }
    }
    println!("{reads} reads, {gone} controllers pulled");
    Ok(())
}
