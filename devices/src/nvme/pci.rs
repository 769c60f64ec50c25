//! The PCI function of a controller (NVMe over PCIe Transport 1.0c).

use crate::pci::PciDevice;
use crate::pci::config::{ConfigSpace, Identity, MsixLayout};

use super::controller::Controller;
use super::doorbell::{DOORBELL_BASE, DoorbellId};

/// PCI vendor ID. Assigned to nobody, so that no driver has quirks for it.
pub const VENDOR: u16 = 0xbe27;
const DEVICE: u16 = 0x4e56;
/// Mass storage, non-volatile memory, NVMe I/O controller.
const CLASS: u32 = 0x01_0802;

/// Size of BAR 0: registers, doorbells, MSI-X table and pending bits, a page each or more.
const BAR_SIZE: u64 = 0x4000;
const MSIX_TABLE: u64 = 0x2000;
const MSIX_PBA: u64 = 0x3000;

/// Configuration space with BAR 0 and `vectors` MSI-X vectors.
pub fn config_space(vectors: u16) -> ConfigSpace {
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE,
        subsystem_vendor: VENDOR,
        subsystem: DEVICE,
        revision: 1,
        class: CLASS,
    };
    #[allow(clippy::cast_possible_truncation)] // inside BAR 0
    let msix = MsixLayout {
        vectors,
        table_bar: 0,
        table_offset: MSIX_TABLE as u32,
        pba_bar: 0,
        pba_offset: MSIX_PBA as u32,
    };
    ConfigSpace::endpoint(&identity, &[(0, BAR_SIZE)], &msix)
}

impl PciDevice for Controller {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if self.is_stopped() {
            return data.fill(0xff);
        }
        self.config_space().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        if self.is_stopped() {
            return;
        }
        let mut space = self.config_space();
        let effects = space.write(offset, data);
        if effects.function_level_reset {
            space.reset();
            drop(space);
            self.function_level_reset();
            return;
        }
        let bus_master = space.bus_master();
        drop(space);
        if effects.command.is_some() || effects.power_state.is_some() {
            self.set_bus_master(bus_master);
        }
        if let Some(control) = effects.msix_control {
            self.core()
                .msix
                .set_control(control.enable(), control.function_mask());
        }
    }

    fn bar_window(&self, bar: u8) -> Option<(u64, u64)> {
        self.config_space().bar_window(bar)
    }

    fn bar_moved(&self, _bar: u8, base: Option<u64>) {
        self.core().doorbells.bar_moved(base);
    }

    fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        match offset {
            _ if self.is_stopped() => data.fill(0xff),
            0..DOORBELL_BASE => self.registers().read(offset, data),
            // Reading a doorbell gives nothing of use (3.1.3.16).
            DOORBELL_BASE..MSIX_TABLE => data.fill(0),
            MSIX_TABLE..MSIX_PBA => self.core().msix.read_table(offset - MSIX_TABLE, data),
            _ => self.core().msix.read_pba(offset - MSIX_PBA, data),
        }
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        match offset {
            _ if self.is_stopped() => {}
            0..DOORBELL_BASE => self.write_register(offset, data),
            DOORBELL_BASE..MSIX_TABLE => self.write_doorbell(offset, data),
            MSIX_TABLE..MSIX_PBA => self.core().msix.write_table(offset - MSIX_TABLE, data),
            _ => {}
        }
    }
}

impl Controller {
    fn write_register(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        // Looked at with the lock: a write that was on its way does not come behind the last reset.
        let asks = !self.is_stopped() && registers.write(offset, data);
        drop(registers);
        if asks {
            self.core().wake();
        }
    }

    /// Only whole, aligned dwords are doorbell writes.
    fn write_doorbell(&self, offset: u64, data: &[u8]) {
        if let (Some(id), Ok(value)) = (DoorbellId::at(offset), <[u8; 4]>::try_from(data)) {
            self.ring(id, u32::from_le_bytes(value));
        }
    }

    fn set_bus_master(&self, on: bool) {
        self.core().set_bus_master(on);
        // Commands may have come while it was off.
        self.core().wake();
        self.io_threads().wake_all();
    }

    pub(super) fn function_level_reset(&self) {
        self.core().halt();
        self.core().msix.reset();
        self.registers().function_reset();
        self.core().wake();
    }
}
