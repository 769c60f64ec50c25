//! berth: a minimal virtual machine monitor with NVMe built in.

fn main() {}
