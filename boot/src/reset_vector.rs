//! What stands in for firmware when a guest jumps to the reset vector.
//!
//! Linux takes hardware-reduced ACPI for a sign of UEFI: to reboot, it skips the
//! ACPI reset register, tries UEFI's reset service and then goes back to real
//! mode and jumps to F000:FFF0 (arch/x86/kernel/reboot.c, `reboot_init` and
//! `native_machine_emergency_restart`). On a machine without firmware it would
//! run whatever is there.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::{acpi, layout};

/// Writes instructions to [`layout::RESET_VECTOR`] that use the reset register.
pub(crate) fn write(ram: &GuestMemoryMmap, config: &acpi::Config) -> Result<(), Error> {
    ram.write_obj(code(config), GuestAddress(layout::RESET_VECTOR))?;
    Ok(())
}

/// 16-bit code; it does not depend on where it is.
fn code(config: &acpi::Config) -> [u8; 10] {
    let [port_low, port_high] = config.reset_port.to_le_bytes();
    let value = config.reset_value;
    [
        0xBA, port_low, port_high, // mov dx, port
        0xB0, value, // mov al, value
        0xEE,  // out dx, al
        0xFA,  // cli
        0xF4,  // hlt
        0xEB, 0xFD, // jmp to hlt
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_the_vector_and_names_the_register() {
        let config = acpi::Config {
            reset_port: 0xCF9,
            reset_value: 6,
            ..acpi::Config::new(1, 1 << 30)
        };
        let code = code(&config);
        assert_eq!(code[..6], [0xBA, 0xF9, 0x0C, 0xB0, 6, 0xEE]);
        assert!(code.len() <= 16);
    }
}
