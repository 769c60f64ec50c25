//! Each test of the bare-metal guest on berth's NVMe controller, over an image file.

use bare_tests::Machine;

macro_rules! guest_tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                Machine::with_image("").unwrap().passes(stringify!($name));
            }
        )*
    };
}

guest_tests! {
    hello
    pci
    registers
    identify
    features
    io
    commands
    queues
    shadow
    interrupts
    reset
    shutdown
    flr
    bars
    hostile
}
