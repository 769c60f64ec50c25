//! Controller registers: sane values, and answers to accesses of every width at every offset.

use super::Machine;
use crate::check::{Outcome, ensure, ensure_eq};
use crate::io;
use crate::memory::{self, PAGE};
use crate::nvme::{Command, register};

/// Most offsets tried in each width; a larger BAR is sampled.
const OFFSETS: u64 = 0x4000;

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    let version = controller.read32(register::VS);
    ensure!((1..=2).contains(&(version >> 16)), "VS is {version:#x}");
    let cap = controller.cap;
    ensure!(cap & 0xffff != 0, "CAP.MQES is 0");
    ensure!(cap >> 24 & 0xff != 0, "CAP.TO is 0");
    ensure!(cap >> 37 & 1 != 0, "CAP.CSS lacks the NVM command set");
    ensure!(cap >> 48 & 0xf == 0, "CAP.MPSMIN excludes pages of 4 KiB");
    ensure!(
        cap >> 52 & 0xf >= cap >> 48 & 0xf,
        "CAP.MPSMAX is below MPSMIN"
    );
    let halves = u64::from(controller.read32(register::CAP + 4)) << 32
        | u64::from(controller.read32(register::CAP));
    ensure_eq!(halves, cap, "CAP in two halves");
    for write in [0, u64::MAX] {
        controller.write64(register::CAP, write);
        ensure_eq!(controller.read64(register::CAP), cap, "CAP after a write");
        controller.write32(register::VS, write as u32);
        ensure_eq!(controller.read32(register::VS), version, "VS after a write");
    }
    ensure_eq!(controller.read32(0x18), 0, "the reserved register 18h");
    ensure_eq!(controller.read32(register::NSSR), 0, "NSSR");
    ensure!(
        controller.read32(register::CC) & 1 == 1,
        "CC.EN does not read back"
    );

    let step = controller.bar_size.div_ceil(OFFSETS) | 1;
    for offset in (0..controller.bar_size).step_by(step as usize) {
        let address = controller.bar + offset;
        let _ = (io::read8(address), io::read16(address));
        let _ = (io::read32(address), io::read64(address));
    }
    ensure!(!controller.fatal(), "CSTS.CFS after reads of the whole BAR");
    let page = memory::allocate(PAGE);
    controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
    Ok(())
}
