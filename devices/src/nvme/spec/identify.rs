//! Identify data structures (5.17.2; NVM 4.1.5). Fields that berth leaves zero are not named.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::open_enum;

open_enum! {
    /// Which structure Identify returns (CNS).
    Cns: u8 {
        /// Namespace.
        NAMESPACE = 0x00,
        /// Controller.
        CONTROLLER = 0x01,
        /// Active namespace list.
        ACTIVE_NAMESPACES = 0x02,
        /// Namespace identification descriptors.
        NAMESPACE_DESCRIPTORS = 0x03,
        /// Command set specific namespace.
        NAMESPACE_CSI = 0x05,
        /// Command set specific controller.
        CONTROLLER_CSI = 0x06,
        /// Command set specific active namespace list.
        ACTIVE_NAMESPACES_CSI = 0x07,
        /// Command set independent namespace.
        NAMESPACE_INDEPENDENT = 0x08,
        /// Allocated namespace list.
        ALLOCATED_NAMESPACES = 0x10,
        /// Allocated namespace.
        ALLOCATED_NAMESPACE = 0x11,
        /// Controllers that a namespace is attached to.
        NAMESPACE_CONTROLLERS = 0x12,
        /// Controllers of the subsystem.
        CONTROLLERS = 0x13,
        /// I/O command sets.
        IO_COMMAND_SETS = 0x1c,
    }
}

/// Bytes of every Identify data structure.
pub const IDENTIFY_SIZE: usize = 4096;

/// Controller multi-path and namespace sharing (CMIC).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmic {
    /// More than one port.
    pub multiple_ports: bool,
    /// More than one controller.
    pub multiple_controllers: bool,
    /// An SR-IOV virtual function.
    pub virtual_function: bool,
    /// Asymmetric namespace access reporting.
    pub ana: bool,
    #[bits(4)]
    __: u8,
}

/// Optional asynchronous events supported (OAES).
#[bitfield(u32)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oaes {
    __: u8,
    /// Namespace attribute notices.
    pub namespace_attribute: bool,
    #[bits(23)]
    __: u32,
}

/// Optional admin command support (OACS).
#[bitfield(u16)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oacs {
    __: u8,
    /// Doorbell Buffer Config.
    pub doorbell_buffer_config: bool,
    #[bits(7)]
    __: u8,
}

/// Firmware updates (FRMW).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frmw {
    /// Slot 1 is read-only.
    pub slot1_read_only: bool,
    /// Number of slots.
    #[bits(3)]
    pub slots: u8,
    #[bits(4)]
    __: u8,
}

/// Log page attributes (LPA).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lpa {
    /// SMART log for each namespace.
    pub smart_per_namespace: bool,
    /// Commands Supported and Effects log.
    pub command_effects: bool,
    /// Extended data: 32-bit number of dwords and an offset.
    pub extended_data: bool,
    #[bits(2)]
    __: u8,
    /// Supported Log Pages log.
    pub supported_pages: bool,
    #[bits(2)]
    __: u8,
}

/// Sizes of queue entries as powers of two (SQES, CQES).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EntrySizes {
    /// Required.
    #[bits(4)]
    pub required: u8,
    /// Maximum.
    #[bits(4)]
    pub maximum: u8,
}

/// Optional NVM command support (ONCS).
#[bitfield(u16)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oncs {
    #[bits(2)]
    __: u8,
    /// Dataset Management.
    pub dataset_management: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// Save and Select fields of features.
    pub save_select: bool,
    #[bits(11)]
    __: u16,
}

/// Volatile write cache (VWC).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwc {
    /// There is one.
    pub present: bool,
    /// Flush with broadcast NSID: 2 not supported, 3 supported.
    #[bits(2)]
    pub flush_broadcast: u8,
    #[bits(5)]
    __: u8,
}

/// A power state descriptor, its first fields.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerState {
    /// Maximum power in units of 0.01 W.
    pub mp: u16,
    rest: [u8; 30],
}

/// Identify Controller (5.17.2.1).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor ID.
    pub vid: u16,
    /// PCI subsystem vendor ID.
    pub ssvid: u16,
    /// Serial number.
    pub sn: [u8; 20],
    /// Model number.
    pub mn: [u8; 40],
    /// Firmware revision.
    pub fr: [u8; 8],
    /// Recommended arbitration burst as a power of two.
    pub rab: u8,
    /// IEEE OUI.
    pub ieee: [u8; 3],
    /// Multi-path and sharing.
    pub cmic: Cmic,
    /// Maximum data transfer size as a power of two of minimum memory pages.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: u16,
    /// Version.
    pub ver: u32,
    /// RTD3 resume latency.
    pub rtd3r: u32,
    /// RTD3 entry latency in microseconds.
    pub rtd3e: u32,
    /// Optional asynchronous events.
    pub oaes: Oaes,
    reserved_96: [u8; 15],
    /// Controller type; 1 is an I/O controller.
    pub cntrltype: u8,
    reserved_112: [u8; 144],
    /// Optional admin commands.
    pub oacs: Oacs,
    /// Abort command limit.
    pub acl_z: u8,
    /// Asynchronous event request limit.
    pub aerl_z: u8,
    /// Firmware updates.
    pub frmw: Frmw,
    /// Log page attributes.
    pub lpa: Lpa,
    /// Error log page entries.
    pub elpe_z: u8,
    /// Number of power states.
    pub npss_z: u8,
    reserved_264: [u8; 2],
    /// Warning composite temperature threshold in kelvins.
    pub wctemp: u16,
    /// Critical composite temperature threshold in kelvins.
    pub cctemp: u16,
    reserved_270: [u8; 242],
    /// Submission queue entry sizes.
    pub sqes: EntrySizes,
    /// Completion queue entry sizes.
    pub cqes: EntrySizes,
    /// Maximum outstanding commands; 0 is not reported.
    pub maxcmd: u16,
    /// Highest NSID.
    pub nn: u32,
    /// Optional NVM commands.
    pub oncs: Oncs,
    reserved_522: [u8; 3],
    /// Volatile write cache.
    pub vwc: Vwc,
    reserved_526: [u8; 14],
    /// Most namespaces that can be attached.
    pub mnan: u32,
    reserved_544: [u8; 224],
    /// NVMe qualified name of the subsystem, padded with zeroes.
    pub subnqn: [u8; 256],
    reserved_1024: [u8; 1024],
    /// Power state descriptors.
    pub psd: [PowerState; 32],
    reserved_3072: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_SIZE);

/// A logical block format (NVM 4.1.5.1, figure 98).
#[bitfield(u32)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaFormat {
    /// Metadata size in bytes.
    pub ms: u16,
    /// Data size as a power of two.
    pub lbads: u8,
    /// Relative performance.
    #[bits(2)]
    pub rp: u8,
    #[bits(6)]
    __: u8,
}

/// Namespace multi-path and sharing (NMIC).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nmic {
    /// More than one controller may attach.
    pub shared: bool,
    #[bits(7)]
    __: u8,
}

/// Deallocated blocks (DLFEAT).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dlfeat {
    /// What they read as: 1 is zeroes.
    #[bits(3)]
    pub read_behaviour: u8,
    /// Write Zeroes may deallocate.
    pub write_zeroes_deallocate: bool,
    #[bits(4)]
    __: u8,
}

/// Namespace attributes (NSATTR).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nsattr {
    /// Write protected.
    pub write_protected: bool,
    #[bits(7)]
    __: u8,
}

/// Identify Namespace of the NVM command set (NVM 4.1.5.1).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size in logical blocks.
    pub nsze: u64,
    /// Capacity in logical blocks.
    pub ncap: u64,
    /// Utilization in logical blocks.
    pub nuse: u64,
    /// Features.
    pub nsfeat: u8,
    /// Number of LBA formats.
    pub nlbaf_z: u8,
    /// LBA format in use.
    pub flbas: u8,
    reserved_27: [u8; 3],
    /// Sharing.
    pub nmic: Nmic,
    reserved_31: [u8; 2],
    /// Deallocated blocks.
    pub dlfeat: Dlfeat,
    reserved_34: [u8; 65],
    /// Attributes.
    pub nsattr: Nsattr,
    reserved_100: [u8; 4],
    /// Namespace globally unique identifier.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    reserved_384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_SIZE);

/// Namespace status (NSTAT).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nstat {
    /// Ready.
    pub nrdy: bool,
    #[bits(7)]
    __: u8,
}

/// Identify Namespace independent of a command set (5.17.2.8).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Features.
    pub nsfeat: u8,
    /// Sharing.
    pub nmic: Nmic,
    reserved_2: [u8; 6],
    /// Attributes.
    pub nsattr: Nsattr,
    reserved_9: [u8; 5],
    /// Status.
    pub nstat: Nstat,
    reserved_15: [u8; 4081],
}

const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == IDENTIFY_SIZE);

open_enum! {
    /// Types of namespace identification descriptors (figure 277).
    DescriptorType: u8 {
        /// EUI-64, 8 bytes.
        EUI64 = 1,
        /// NGUID, 16 bytes.
        NGUID = 2,
        /// UUID, 16 bytes.
        UUID = 3,
        /// Command set identifier, 1 byte.
        CSI = 4,
    }
}

/// Command set identifier of the NVM command set.
pub const CSI_NVM: u8 = 0;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn controller_fields_are_where_the_specification_has_them() {
        let offsets = [
            (offset_of!(IdentifyController, cmic), 76),
            (offset_of!(IdentifyController, cntlid), 78),
            (offset_of!(IdentifyController, oaes), 92),
            (offset_of!(IdentifyController, cntrltype), 111),
            (offset_of!(IdentifyController, oacs), 256),
            (offset_of!(IdentifyController, frmw), 260),
            (offset_of!(IdentifyController, wctemp), 266),
            (offset_of!(IdentifyController, sqes), 512),
            (offset_of!(IdentifyController, nn), 516),
            (offset_of!(IdentifyController, oncs), 520),
            (offset_of!(IdentifyController, vwc), 525),
            (offset_of!(IdentifyController, mnan), 540),
            (offset_of!(IdentifyController, subnqn), 768),
            (offset_of!(IdentifyController, psd), 2048),
        ];
        for (is, should) in offsets {
            assert_eq!(is, should);
        }
        assert_eq!(
            Oacs::new().with_doorbell_buffer_config(true).into_bits(),
            1 << 8
        );
        assert_eq!(
            Oaes::new().with_namespace_attribute(true).into_bits(),
            1 << 8
        );
        assert_eq!(Oncs::new().with_save_select(true).into_bits(), 1 << 4);
        assert_eq!(Lpa::new().with_supported_pages(true).into_bits(), 1 << 5);
        assert_eq!(
            Vwc::new()
                .with_present(true)
                .with_flush_broadcast(3)
                .into_bits(),
            7
        );
    }

    #[test]
    fn namespace_fields_are_where_the_specification_has_them() {
        let offsets = [
            (offset_of!(IdentifyNamespace, flbas), 26),
            (offset_of!(IdentifyNamespace, nmic), 30),
            (offset_of!(IdentifyNamespace, dlfeat), 33),
            (offset_of!(IdentifyNamespace, nsattr), 99),
            (offset_of!(IdentifyNamespace, nguid), 104),
            (offset_of!(IdentifyNamespace, eui64), 120),
            (offset_of!(IdentifyNamespace, lbaf), 128),
            (offset_of!(IdentifyNamespaceIndependent, nsattr), 8),
            (offset_of!(IdentifyNamespaceIndependent, nstat), 14),
        ];
        for (is, should) in offsets {
            assert_eq!(is, should);
        }
        assert_eq!(LbaFormat::new().with_lbads(9).into_bits(), 9 << 16);
    }
}
