//! The registers of the PCI capabilities that a function here can have.

use bitfield_struct::{bitenum, bitfield};

use super::bar;

/// What a capability looks like behind its identifier and next pointer.
pub(super) struct Capability {
    /// Capability ID.
    pub(super) id: u8,
    /// Registers from the third byte on, at power-on.
    pub(super) body: Vec<u8>,
    /// The bits of `body` that software can write.
    pub(super) writable: Vec<u8>,
}

impl Capability {
    fn new(id: u8, len: usize) -> Self {
        Self {
            id,
            body: vec![0; len - HEADER],
            writable: vec![0; len - HEADER],
        }
    }

    /// Sets the register at `offset`, counted from the capability's first byte as in the
    /// specification.
    fn set<const N: usize>(mut self, offset: u16, value: [u8; N], writable: [u8; N]) -> Self {
        let start = usize::from(offset) - HEADER;
        self.body[start..start + N].copy_from_slice(&value);
        self.writable[start..start + N].copy_from_slice(&writable);
        self
    }
}

/// Identifier and next pointer.
const HEADER: usize = 2;

/// Power state of a function (PCI Bus Power Management 1.2, 3.2.4). D1 and D2 are not supported.
#[bitenum]
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// Fully on.
    #[fallback]
    D0 = 0,
    /// Not supported.
    D1 = 1,
    /// Not supported.
    D2 = 2,
    /// Only configuration space answers; no DMA, no interrupts.
    D3Hot = 3,
}

/// Power Management Control and Status.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PowerControl {
    /// Power state; software can write it.
    #[bits(2)]
    pub state: PowerState,
    __: bool,
    /// D3hot to D0 loses no state.
    pub no_soft_reset: bool,
    #[bits(12)]
    __: u16,
}

const POWER_MANAGEMENT_ID: u8 = 0x01;
/// Offset of [`PowerControl`] in the capability.
pub(super) const POWER_CONTROL: u16 = 4;

/// Power management with D0 and D3hot, without PME (Power Management 1.2, 3.2).
pub(super) fn power_management() -> Capability {
    const VERSION_1_2: u16 = 3;
    let control = PowerControl::new().with_no_soft_reset(true);
    let writable = PowerControl::new().with_state(PowerState::D3Hot);
    Capability::new(POWER_MANAGEMENT_ID, 8)
        .set(2, VERSION_1_2.to_le_bytes(), [0; 2])
        .set(
            POWER_CONTROL,
            control.into_bits().to_le_bytes(),
            writable.into_bits().to_le_bytes(),
        )
}

/// PCI Express Capabilities.
#[bitfield(u16)]
struct ExpressCapabilities {
    #[bits(4)]
    version: u8,
    #[bits(4)]
    port_type: u8,
    #[bits(8)]
    __: u8,
}

/// Device Capabilities.
#[bitfield(u32)]
struct DeviceCapabilities {
    #[bits(15)]
    __: u16,
    role_based_error_reporting: bool,
    #[bits(12)]
    __: u16,
    function_level_reset: bool,
    #[bits(3)]
    __: u8,
}

/// Device Control. Initiate Function Level Reset (bit 15) always reads 0.
#[bitfield(u16)]
struct DeviceControl {
    #[bits(4)]
    error_reporting: u8,
    relaxed_ordering: bool,
    /// Left at 0, 128 bytes: the only size there is.
    #[bits(3)]
    max_payload_size: u8,
    #[bits(3)]
    __: u8,
    no_snoop: bool,
    #[bits(3)]
    max_read_request_size: u8,
    initiate_function_level_reset: bool,
}

const EXPRESS_ID: u8 = 0x10;
/// Offset in the capability of the byte of Device Control that holds [`INITIATE_FLR`].
pub(super) const DEVICE_CONTROL_HIGH: u16 = 9;
/// Initiate Function Level Reset within that byte.
pub(super) const INITIATE_FLR: u8 = 1 << 7;

/// PCI Express capability version 2 of a root complex integrated endpoint with function-level reset
/// (PCI Express Base 5.0, 7.5.3).
///
/// A function on bus 0 without a root port above it has no link, which is what this port type says.
/// QEMU does the same: Windows refuses to start a plain endpoint there.
pub(super) fn express() -> Capability {
    const ROOT_COMPLEX_INTEGRATED_ENDPOINT: u8 = 9;
    const COMPLETION_TIMEOUT_DISABLE: [u8; 2] = [1 << 4, 0];
    let capabilities = ExpressCapabilities::new()
        .with_version(2)
        .with_port_type(ROOT_COMPLEX_INTEGRATED_ENDPOINT);
    let device = DeviceCapabilities::new()
        .with_role_based_error_reporting(true)
        .with_function_level_reset(true);
    let control = DeviceControl::new()
        .with_relaxed_ordering(true)
        .with_no_snoop(true)
        // 512 bytes, the default that the specification asks for.
        .with_max_read_request_size(0b010);
    let writable = DeviceControl::new()
        .with_error_reporting(0b1111)
        .with_relaxed_ordering(true)
        .with_no_snoop(true)
        .with_max_read_request_size(0b111);
    Capability::new(EXPRESS_ID, 0x3c)
        .set(0x02, capabilities.into_bits().to_le_bytes(), [0; 2])
        .set(0x04, device.into_bits().to_le_bytes(), [0; 4])
        .set(
            0x08,
            control.into_bits().to_le_bytes(),
            writable.into_bits().to_le_bytes(),
        )
        // Device Capabilities 2 and Device Control 2: whoever issues requests must let software
        // switch the completion timeout off.
        .set(0x24, COMPLETION_TIMEOUT_DISABLE, [0; 2])
        .set(0x28, [0; 2], COMPLETION_TIMEOUT_DISABLE)
}

/// MSI-X Message Control.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct MsixControl {
    /// Number of table entries minus one.
    #[bits(11)]
    pub table_size: u16,
    #[bits(3)]
    __: u8,
    /// Every vector is masked, whatever its own mask bit says.
    pub function_mask: bool,
    /// MSI-X is on.
    pub enable: bool,
}

/// Where a function keeps its MSI-X table and pending bit array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// Number of vectors, 1 to 2,048.
    pub vectors: u16,
    /// BAR that holds the table.
    pub table_bar: u8,
    /// Offset of the table in its BAR, a multiple of 8.
    pub table_offset: u32,
    /// BAR that holds the pending bit array.
    pub pba_bar: u8,
    /// Offset of the pending bit array in its BAR, a multiple of 8.
    pub pba_offset: u32,
}

const MSIX_ID: u8 = 0x11;
/// Offset of [`MsixControl`] in the capability.
pub(super) const MSIX_CONTROL: u16 = 2;

/// MSI-X (PCI Express Base 5.0, 7.7.2).
pub(super) fn msix(layout: &MsixLayout) -> Capability {
    assert!(
        (1..=super::msix::MAX_VECTORS).contains(&layout.vectors),
        "MSI-X has 1 to 2,048 vectors"
    );
    let place = |bir: u8, offset: u32| {
        assert!(bir < bar::COUNT, "a function has 6 BARs");
        assert!(offset.is_multiple_of(8), "MSI-X offsets count in 8 bytes");
        (offset | u32::from(bir)).to_le_bytes()
    };
    let control = MsixControl::new().with_table_size(layout.vectors - 1);
    let writable = MsixControl::new()
        .with_enable(true)
        .with_function_mask(true);
    Capability::new(MSIX_ID, 12)
        .set(
            MSIX_CONTROL,
            control.into_bits().to_le_bytes(),
            writable.into_bits().to_le_bytes(),
        )
        .set(4, place(layout.table_bar, layout.table_offset), [0; 4])
        .set(8, place(layout.pba_bar, layout.pba_offset), [0; 4])
}
