//! linux-guests
fn main() {}
