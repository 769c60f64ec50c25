//! Controller registers (3.1.3).

use bitfield_struct::bitfield;

/// Controller Capabilities (3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Maximum queue entries supported.
    pub mqes_z: u16,
    /// Contiguous queues required.
    pub cqr: bool,
    /// Arbitration mechanisms supported.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout for CSTS.RDY in units of 500 ms.
    pub to: u8,
    /// Doorbell stride: 2 to the power of (2 + DSTRD) bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM subsystem reset supported.
    pub nssrs: bool,
    /// Command sets: the NVM command set.
    pub css_nvm: bool,
    #[bits(5)]
    __: u8,
    /// Command sets: by command set identifier (CC.CSS = 110b).
    pub css_iocs: bool,
    /// Command sets: admin only.
    pub css_admin: bool,
    /// Boot partition support.
    pub bps: bool,
    /// Controller power scope.
    #[bits(2)]
    pub cps: u8,
    /// Memory page size minimum: 2 to the power of (12 + MPSMIN).
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory page size maximum: 2 to the power of (12 + MPSMAX).
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent memory region supported.
    pub pmrs: bool,
    /// Controller memory buffer supported.
    pub cmbs: bool,
    /// NVM subsystem shutdown supported.
    pub nsss: bool,
    /// Ready modes: with media.
    pub crms_crwms: bool,
    /// Ready modes: independent of media.
    pub crms_crims: bool,
    #[bits(3)]
    __: u8,
}

/// Version (3.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Version {
    /// Tertiary version.
    pub ter: u8,
    /// Minor version.
    pub mnr: u8,
    /// Major version.
    pub mjr: u16,
}

impl Version {
    /// NVMe 2.0.
    pub const V2_0: Self = Self::new().with_mjr(2);
}

/// Controller Configuration (3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cc {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O command set selected.
    #[bits(3)]
    pub css: u8,
    /// Memory page size: 2 to the power of (12 + MPS).
    #[bits(4)]
    pub mps: u8,
    /// Arbitration mechanism selected.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown notification.
    #[bits(2)]
    pub shn: u8,
    /// I/O submission queue entry size as a power of two.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O completion queue entry size as a power of two.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller ready independent of media enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// How far a shutdown is (CSTS.SHST).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ShutdownStatus {
    /// None was asked for.
    Normal = 0,
    /// Going on.
    Occurring = 1,
    /// Done.
    Complete = 2,
    /// Not a status.
    Reserved = 3,
}

impl ShutdownStatus {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Normal,
            1 => Self::Occurring,
            2 => Self::Complete,
            _ => Self::Reserved,
        }
    }
}

/// Controller Status (3.1.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Csts {
    /// Ready.
    pub rdy: bool,
    /// Controller fatal status.
    pub cfs: bool,
    /// Shutdown status.
    #[bits(2)]
    pub shst: ShutdownStatus,
    /// NVM subsystem reset occurred.
    pub nssro: bool,
    /// Processing paused.
    pub pp: bool,
    /// Shutdown type.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// Admin Queue Attributes (3.1.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aqa {
    /// Admin submission queue size.
    #[bits(12)]
    pub asqs_z: u16,
    #[bits(4)]
    __: u8,
    /// Admin completion queue size.
    #[bits(12)]
    pub acqs_z: u16,
    #[bits(4)]
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_has_them() {
        let cap = Cap::new()
            .with_mqes_z(0x7ff)
            .with_cqr(true)
            .with_to(0x0f)
            .with_css_nvm(true)
            .with_css_iocs(true)
            .with_mpsmax(4)
            .with_cmbs(true);
        let expected = 0x7ff | 1 << 16 | 0x0f << 24 | 1u64 << 37 | 1 << 43 | 4 << 52 | 1 << 57;
        assert_eq!(cap.into_bits(), expected);
        assert_eq!(Cap::new().with_crms_crwms(true).into_bits(), 1 << 59);
        assert_eq!(Version::V2_0.into_bits(), 0x0002_0000);
        let cc = Cc::from_bits(0x0046_4061);
        assert_eq!((cc.en(), cc.css(), cc.mps(), cc.shn()), (true, 6, 0, 1));
        assert_eq!((cc.iosqes(), cc.iocqes()), (6, 4));
        let aqa = Aqa::from_bits(0x001f_003f);
        assert_eq!((aqa.asqs_z(), aqa.acqs_z()), (63, 31));
        let csts = Csts::new().with_shst(ShutdownStatus::Complete);
        assert_eq!(csts.into_bits(), 0b1000);
    }
}
