//! Legacy PC devices: serial ports, keyboard controller, ACPI power and event registers.
