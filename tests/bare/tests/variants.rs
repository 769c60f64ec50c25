//! Guest tests on machines and controllers other than the default.

use bare_tests::Machine;

const SUBSYSTEM: [&str; 2] = ["--device", "nvme-subsys,id=s"];

#[test]
fn blocks_of_4_kib() {
    Machine::with_image(",logical_block_size=4096")
        .unwrap()
        .passes("identify,io,commands,reset");
}

#[test]
fn direct_io() {
    Machine::with_image(",cache=none")
        .unwrap()
        .passes("io,commands,shadow");
}

#[test]
fn synchronous_writes() {
    Machine::with_image(",cache=directsync")
        .unwrap()
        .passes("features,io,commands");
}

#[test]
fn memory_backend() {
    Machine::with(&SUBSYSTEM)
        .unwrap()
        .and(&[
            "--device",
            "nvme,id=c,subsys=s",
            "--device",
            "nvme-ns,bus=s,memory=64M",
        ])
        .passes("io,commands,queues,shadow,reset");
}

#[test]
fn several_io_threads() {
    Machine::with_image("")
        .unwrap()
        .io_threads(3)
        .passes("queues,shadow,interrupts,reset,hostile");
}

#[test]
fn polling_io_threads() {
    Machine::with(&SUBSYSTEM)
        .unwrap()
        .and(&[
            "--device",
            "nvme,id=c,subsys=s,poll-us=1000",
            "--device",
            "nvme-ns,bus=s,memory=64M",
        ])
        .passes("io,queues,shadow,interrupts,reset,hostile");
}

#[test]
fn largest_controller() {
    Machine::with(&SUBSYSTEM)
        .unwrap()
        .and(&[
            "--device",
            "nvme,id=c,subsys=s,max_ioqpairs=128,mqes=65535,mdts=9",
            "--device",
            "nvme-ns,bus=s,memory=64M",
        ])
        .passes("registers,identify,io,queues,interrupts,bars,hostile");
}

#[test]
fn smallest_controller() {
    Machine::with(&SUBSYSTEM)
        .unwrap()
        .and(&[
            "--device",
            "nvme,id=c,subsys=s,max_ioqpairs=1,mqes=63,mdts=1",
            "--device",
            "nvme-ns,bus=s,memory=64M",
        ])
        .passes("registers,identify,io,commands,reset,bars");
}

#[test]
fn ram_beyond_4_gib() {
    Machine::with_image("")
        .unwrap()
        .and(&["-m", "5G"])
        .passes("hello,pci,io,interrupts,bars");
}

#[test]
fn many_processors() {
    Machine::with_image("")
        .unwrap()
        .and(&["--cpus", "4"])
        .passes("hello,io,interrupts");
}
