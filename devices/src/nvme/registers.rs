//! Controller registers (NVMe Base 2.0c, 3.1.3).
//!
//! vCPUs read and write them here and nothing else happens on their threads: what a write asks for is
//! done by the admin queue's owner, who reports back in CSTS.

use super::spec::{Aqa, Cap, Cc, Csts, ShutdownStatus, Version};

/// Longest wait for CSTS.RDY to follow CC.EN, in units of 500 ms (CAP.TO).
const READY_TIMEOUT: u8 = 60;

/// Offsets in BAR 0.
mod offset {
    pub const CAP: u64 = 0x00;
    pub const VS_INTMS: u64 = 0x08;
    pub const INTMC_CC: u64 = 0x10;
    pub const RESERVED_CSTS: u64 = 0x18;
    pub const NSSR_AQA: u64 = 0x20;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
    pub const CRTO: u64 = 0x68;
}

/// The register file.
#[derive(Debug, Clone)]
pub struct Registers {
    cap: Cap,
    /// Controller configuration as the guest last wrote it.
    pub cc: Cc,
    /// Controller status as the admin queue's owner last set it.
    pub csts: Csts,
    /// Admin queue attributes.
    pub aqa: Aqa,
    /// Admin submission queue base address.
    pub asq: u64,
    /// Admin completion queue base address.
    pub acq: u64,
    // CC.EN went from 1 to 0 since the owner looked, even if it is 1 again.
    reset_asked: bool,
}

impl Registers {
    /// Registers after power-on, for queues of up to `mqes_z` + 1 entries.
    pub fn new(mqes_z: u16) -> Self {
        let cap = Cap::new()
            .with_mqes_z(mqes_z)
            .with_cqr(true)
            .with_to(READY_TIMEOUT)
            // The NVM command set, and command sets by identifier.
            .with_css_nvm(true)
            .with_css_iocs(true)
            .with_crms_crwms(true);
        Self {
            cap,
            cc: Cc::new(),
            csts: Csts::new(),
            aqa: Aqa::new(),
            asq: 0,
            acq: 0,
            reset_asked: false,
        }
    }

    /// Fills `data` from `offset`; bytes of no register read as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let quad = self.quad(at & !7).to_le_bytes();
            *byte = quad[(at % 8) as usize];
        }
    }

    /// The 8 bytes at a multiple of 8.
    fn quad(&self, offset: u64) -> u64 {
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        match offset {
            offset::CAP => self.cap.into_bits(),
            offset::VS_INTMS => pair(Version::V2_0.into_bits(), 0),
            offset::INTMC_CC => pair(0, self.cc.into_bits()),
            offset::RESERVED_CSTS => pair(0, self.csts.into_bits()),
            offset::NSSR_AQA => pair(0, self.aqa.into_bits()),
            offset::ASQ => self.asq,
            offset::ACQ => self.acq,
            offset::CRTO => u64::from(READY_TIMEOUT),
            _ => 0,
        }
    }

    /// Takes a write. Only aligned writes of 4 or 8 bytes count (NVMe Base 2.0c, 3.1.2). `true` means
    /// that the admin queue's owner has something to do.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        if !offset.is_multiple_of(data.len() as u64) {
            return false;
        }
        match *data {
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                let low = self.write_dword(offset, u32::from_le_bytes([a, b, c, d]));
                let high = self.write_dword(offset + 4, u32::from_le_bytes([e, f, g, h]));
                low || high
            }
            _ => false,
        }
    }

    fn write_dword(&mut self, offset: u64, value: u32) -> bool {
        let set_low = |quad: &mut u64| *quad = *quad & !0xffff_ffff | u64::from(value);
        let set_high = |quad: &mut u64| *quad = *quad & 0xffff_ffff | u64::from(value) << 32;
        // The page offset of a queue base is reserved.
        match offset {
            0x14 => return self.write_cc(Cc::from_bits(value)),
            0x24 => self.aqa = Aqa::from_bits(value),
            0x28 => {
                set_low(&mut self.asq);
                self.asq &= !0xfff;
            }
            0x2c => set_high(&mut self.asq),
            0x30 => {
                set_low(&mut self.acq);
                self.acq &= !0xfff;
            }
            0x34 => set_high(&mut self.acq),
            _ => {}
        }
        false
    }

    fn write_cc(&mut self, cc: Cc) -> bool {
        if self.cc.en() && !cc.en() {
            self.reset_asked = true;
            if !self.csts.rdy() {
                // Never enabled: there is nothing that the guest could wait for.
                self.csts.set_cfs(false);
            }
        }
        let changed = self.cc != cc;
        self.cc = cc;
        changed || self.reset_asked
    }

    /// Reports how enabling ended, unless the guest asked for a reset since: then it counts for
    /// nothing, and `false` comes back.
    pub fn enable_done(&mut self, ready: bool) -> bool {
        if self.reset_asked {
            return false;
        }
        self.csts.set_rdy(ready);
        self.csts.set_cfs(!ready);
        true
    }

    /// Whether a controller reset was asked for and not begun.
    pub fn is_reset_asked(&self) -> bool {
        self.reset_asked
    }

    /// Whether a controller reset was asked for since the last call.
    pub fn take_reset_asked(&mut self) -> bool {
        std::mem::take(&mut self.reset_asked)
    }

    /// The controller is disabled: its status is as after power-on.
    pub fn reset_done(&mut self) {
        self.csts = Csts::new();
    }

    /// The function was reset: all registers are as after power-on. CSTS is, too, once the owner has
    /// disabled the controller: until then RDY says that guest memory may be in use.
    pub fn function_reset(&mut self) {
        *self = Self {
            reset_asked: true,
            csts: self.csts,
            ..Self::new(self.cap.mqes_z())
        };
    }

    /// Reports how far a shutdown is.
    pub fn set_shutdown(&mut self, status: ShutdownStatus) {
        self.csts.set_shst(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EN: u32 = 1;
    const CC: u64 = 0x14;

    fn write_cc(registers: &mut Registers, value: u32) -> bool {
        registers.write(CC, &value.to_le_bytes())
    }

    #[test]
    fn a_refused_enable_is_forgotten_with_the_next_reset() {
        let mut registers = Registers::new(63);
        write_cc(&mut registers, EN);
        assert!(registers.enable_done(false));
        assert!(registers.csts.cfs() && !registers.csts.rdy());
        write_cc(&mut registers, 0);
        assert!(!registers.csts.cfs());

        // A reset that comes while the owner enables.
        write_cc(&mut registers, EN);
        registers.take_reset_asked();
        write_cc(&mut registers, 0);
        write_cc(&mut registers, EN);
        for ready in [true, false] {
            assert!(!registers.enable_done(ready));
            assert!(!registers.csts.cfs() && !registers.csts.rdy());
        }
    }

    #[test]
    fn only_a_change_of_cc_asks_for_something() {
        let mut registers = Registers::new(63);
        assert!(!registers.write(0x24, &0x1f_001fu32.to_le_bytes()));
        assert!(!registers.write(0x28, &0x1000u64.to_le_bytes()));
        assert!(!write_cc(&mut registers, 0));
        assert!(write_cc(&mut registers, EN));
        assert!(!write_cc(&mut registers, EN));
        // As one of two registers.
        assert!(registers.write(0x10, &(u64::from(EN | 1 << 14) << 32).to_le_bytes()));
    }

    #[test]
    fn a_reset_is_asked_for_until_it_is_taken() {
        let mut registers = Registers::new(63);
        write_cc(&mut registers, EN);
        assert!(!registers.take_reset_asked());
        write_cc(&mut registers, 0);
        assert!(
            write_cc(&mut registers, EN),
            "EN is as it was, the reset is not done"
        );
        assert!(registers.take_reset_asked());
        assert!(!registers.take_reset_asked());
    }

    #[test]
    fn a_function_reset_keeps_rdy_until_the_owner_is_done() {
        let mut registers = Registers::new(63);
        registers.write(0x28, &0x1000u64.to_le_bytes());
        write_cc(&mut registers, EN);
        registers.csts.set_rdy(true);
        registers.function_reset();
        assert_eq!((registers.cc, registers.asq), (Cc::new(), 0));
        assert!(registers.csts.rdy() && registers.take_reset_asked());
        registers.reset_done();
        assert_eq!(registers.csts, Csts::new());
        let mut cap = [0; 2];
        registers.read(0, &mut cap);
        assert_eq!(cap, [63, 0]);
    }

    #[test]
    fn registers_are_bytes_to_a_reader() {
        let mut registers = Registers::new(0x1234);
        registers.write(0x30, &0x1122_3344_5566_7788u64.to_le_bytes());
        let mut bytes = [0xff; 12];
        registers.read(0x2d, &mut bytes);
        assert_eq!(
            bytes,
            [0, 0, 0, 0, 0x70, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0]
        );
        registers.read(u64::MAX - 20, &mut bytes);
        assert_eq!(bytes, [0; 12]);
        registers.read(8, &mut bytes[..3]);
        assert_eq!(bytes[..3], [0, 0, 2]);
    }
}
