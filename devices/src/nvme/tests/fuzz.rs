//! A guest that does anything at all; afterwards a reset must bring everything back.

use std::sync::Arc;

use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Cdw0, Sqe, Status};
use crate::pci::PciDevice;

const STEPS: usize = 40_000;
/// Pages that rings, lists, data and shadow buffers are chosen from, so that they overlap.
const PAGES: u64 = 24;
/// Entries of submission queues: one page.
const ENTRIES: u32 = 64;

/// xorshift64*: enough for a guest without manners.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Small numbers, numbers around powers of two, and any.
    fn number(&mut self) -> u32 {
        match self.below(4) {
            0 | 1 => self.below(10) as u32,
            2 => (1u32 << self.below(32))
                .wrapping_add(self.below(3) as u32)
                .wrapping_sub(1),
            _ => self.next() as u32,
        }
    }
}

struct Fuzzer {
    machine: Arc<Machine>,
    guest: Guest,
    random: Random,
    // First of the shared pages.
    base: u64,
    // Where the guest believes its submission queues are, and their tails; the admin queue first.
    queues: [(u64, u32); PAIRS as usize + 1],
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        let machine = Machine::new();
        machine.memory_namespace(1 << 20, 512);
        machine.memory_namespace(1 << 20, 4096);
        let base = machine.alloc(PAGES * 4096);
        let mut random = Random(seed);
        for at in (0..PAGES * 4096).step_by(8) {
            machine.ram.write(base + at, &random.next()).unwrap();
        }
        Self {
            guest: machine.controller("c"),
            machine,
            random,
            base,
            queues: [(base, 0); PAIRS as usize + 1],
        }
    }

    fn page(&mut self) -> u64 {
        self.base + self.random.below(PAGES) * 4096
    }

    /// A guest physical address: mostly a shared page, sometimes where there is no RAM.
    fn address(&mut self) -> u64 {
        match self.random.below(16) {
            0 => self.random.next(),
            1 => u64::MAX - self.random.below(8192),
            2 => (64 << 20) - self.random.below(3) * 2048,
            3 => BAR + self.random.below(0x4000),
            4..8 => self.page() + self.random.below(4096),
            _ => self.page(),
        }
    }

    fn command(&mut self) -> Sqe {
        let opcodes = [0, 1, 2, 4, 5, 6, 8, 9, 0x0a, 0x0c, 0x7c];
        let opcode = match self.random.one_in(16) {
            true => self.random.next() as u8,
            false => self.random.pick(&opcodes),
        };
        let flags = match self.random.one_in(32) {
            true => self.random.next() as u32 & 0xc300,
            false => 0,
        };
        let cid = self.random.below(8) as u16;
        let queue = self.random.number() << 16 | self.random.below(10) as u32;
        let cdw10 = match self.random.one_in(2) {
            true => queue,
            false => self.random.number(),
        };
        Sqe {
            cdw0: Cdw0::from_bits(u32::from(opcode) | flags).with_cid(cid),
            nsid: self
                .random
                .pick(&[0, 1, 1, 1, 2, 2, 3, 1024, 1025, u32::MAX]),
            prp1: self.address(),
            prp2: self.address(),
            cdw10,
            cdw11: self
                .random
                .pick(&[1, 3, 1 << 16 | 1, 1 << 16 | 3, 2 << 16 | 1, 4, 0, 7]),
            cdw12: self.random.number(),
            cdw13: self.random.number(),
            cdw14: self.random.number(),
            cdw15: self.random.number(),
            ..Sqe::default()
        }
    }

    /// Sensible admin queues and EN, as what follows would mostly do nothing otherwise.
    fn enable(&mut self) {
        let (asq, acq) = (self.page(), self.page());
        let guest = &self.guest;
        guest.write_config(0x04, &6u16.to_le_bytes());
        guest.write64(ASQ, asq);
        guest.write64(ACQ, acq);
        guest.write32(AQA, 63 << 16 | (ENTRIES - 1));
        guest.write32(CC, CC_ENABLE);
        self.queues[0] = (asq, 0);
    }

    /// A command in its place, and its doorbell.
    fn submit(&mut self, queue: usize, sqe: &Sqe) {
        let (address, tail) = self.queues[queue];
        let at = address + u64::from(tail) * 64;
        self.machine.ram.write(at, sqe).unwrap();
        let tail = (tail + 1) % ENTRIES;
        self.queues[queue].1 = tail;
        self.guest.write32(0x1000 + queue as u64 * 8, tail);
        // All completions are taken at once, as far as that is true.
        let head = self.random.below(u64::from(ENTRIES)) as u32;
        self.guest.write32(0x1004 + queue as u64 * 8, head);
    }

    fn create_queues(&mut self) {
        let id = 1 + self.random.below(4) as u32;
        let cq = Sqe {
            prp1: self.page(),
            cdw10: (ENTRIES - 1) << 16 | id,
            cdw11: id << 16 | 3,
            ..admin(AdminOpcode::CREATE_CQ)
        };
        self.submit(0, &cq);
        let page = self.page();
        let sq = Sqe {
            prp1: page,
            cdw11: id << 16 | 1,
            cdw0: Cdw0::new().with_opc(AdminOpcode::CREATE_SQ.0),
            ..cq
        };
        self.submit(0, &sq);
        self.queues[id as usize] = (page, 0);
    }

    fn start_shadow(&mut self) {
        let sqe = Sqe {
            prp1: self.page(),
            prp2: self.page(),
            ..admin(AdminOpcode::DOORBELL_BUFFER_CONFIG)
        };
        self.submit(0, &sqe);
    }

    fn write_config(&mut self) {
        let offset = self.random.below(0x90) as u16;
        let size = self.random.pick(&[1, 2, 4]);
        let offset = offset & !(size as u16 - 1);
        let value = self.random.number().to_le_bytes();
        self.guest.write_config(offset, &value[..size]);
    }

    fn access_bar(&mut self) {
        let size = self.random.pick(&[1usize, 2, 4, 4, 4, 8]);
        let offset = match self.random.below(3) {
            0 => self.random.below(0x40),
            1 => 0x1000 + self.random.below(0x60),
            _ => self.random.below(0x4000 - 8),
        };
        let value =
            (u64::from(self.random.number()) << 32 | u64::from(self.random.number())).to_le_bytes();
        if self.random.one_in(4) {
            self.guest
                .controller
                .read_bar(0, offset, &mut vec![0; size]);
        } else {
            self.guest.controller.write_bar(0, offset, &value[..size]);
        }
    }

    fn step(&mut self) {
        match self.random.below(256) {
            0..4 => self.enable(),
            4 => self.guest.write32(CC, self.random.number()),
            5 if self.random.one_in(4) => self.guest.function_level_reset(),
            6 => self.write_config(),
            7..12 => self.access_bar(),
            12..32 => self.create_queues(),
            32..34 => self.start_shadow(),
            34..80 => {
                let sqe = self.command();
                self.submit(0, &sqe);
            }
            80..160 => {
                let sqe = self.command();
                let queue = 1 + self.random.below(4) as usize;
                self.submit(queue, &sqe);
            }
            160..190 => {
                // Into rings, lists and shadow buffers.
                let at = self.page() + self.random.below(512) * 8;
                let value = match self.random.one_in(2) {
                    true => self.address(),
                    false => self.random.number().into(),
                };
                self.machine.ram.write(at, &value).unwrap();
            }
            _ => {
                let bell = self.random.below(20);
                let value = self.random.below(u64::from(ENTRIES) + 1) as u32;
                self.guest.write32(0x1000 + bell * 4, value);
            }
        }
        // A guest has more to do; the controller's threads get their turn.
        if self.random.one_in(8) {
            std::thread::yield_now();
        }
    }
}

fn survives(seed: u64) {
    let mut fuzzer = Fuzzer::new(seed);
    for _ in 0..STEPS {
        fuzzer.step();
    }
    let Fuzzer { machine, guest, .. } = fuzzer;
    // Whatever state it is in: a function-level reset, and a driver that knows what it does.
    guest.function_level_reset();
    guest.wait_csts("the reset", 1, 0);
    guest.plug(BAR, PAIRS + 1);
    guest.enable();
    let id = guest.identify(1, 0, 0, 0).unwrap();
    assert_eq!(&id[4..12], b"serial-1", "seed {seed}");
    for queue in 1..=PAIRS {
        let mut pair = guest.create_pair(queue, 16);
        if queue == 4 {
            guest.start_shadow();
            (pair.0.shadowed, pair.1.shadowed) = (true, true);
        }
        for cid in 0..40 {
            let cqe = guest.io(&mut pair, &flush(cid));
            assert_eq!(
                (cqe.cid, cqe.status()),
                (cid, Status::SUCCESS),
                "seed {seed}"
            );
        }
        if queue == 4 {
            break;
        }
    }
    assert_eq!(machine.subsystem.allocated(), [1, 2]);
}

#[test]
fn a_guest_without_manners_harms_nobody() {
    survives(0x5eed_0000_0000_0001);
}

#[test]
fn another_guest_without_manners_harms_nobody() {
    survives(0x1234_5678_9abc_def1);
}
