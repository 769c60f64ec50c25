//! The benchmark's load does what its words ask for, on both devices that it drives.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use bare_tests::{LIMIT, Machine, Report};
use harness::{HostKind, Placement, Process};

/// Bytes of a page, which the load fills when it writes it.
const PAGE: usize = 4096;

fn run(words: &str) -> Option<Report> {
    let machine = Machine::with_image("").expect("an image");
    let machine = machine.io_threads(2);
    machine.run(words).expect("a run to its end")
}

/// The number behind `key` in line `index` of the lines END.
fn figure(report: &Report, index: usize, key: &str) -> u64 {
    let mut lines = report.finished.stdout.lines();
    let mut ends = lines.by_ref().filter(|line| line.starts_with("END bench"));
    let end = ends.nth(index).expect("a line END");
    let value = end.split(' ').find_map(|word| word.strip_prefix(key));
    value.expect(key).parse().expect(end)
}

/// How many pages of a file are all zeroes.
fn empty_pages(path: &Path) -> usize {
    let bytes = fs::read(path).expect("the image");
    let empty = |page: &&[u8]| page.iter().all(|byte| *byte == 0);
    bytes.chunks(PAGE).filter(empty).count()
}

#[test]
fn the_device_is_filled_before_it_is_read() {
    let machine = Machine::with_image("").unwrap();
    let image = machine.folder().join("disk.img");
    assert_eq!(empty_pages(&image), 16 << 10);
    if let Some(report) = machine.run("test=bench fill pairs=3 count=1").unwrap() {
        report.says("END bench commands=1 reads=1 ");
        assert_eq!(empty_pages(&image), 0, "pages that were not written");
    }
}

#[test]
fn one_queue() {
    if let Some(report) = run("test=bench qd=8 count=2000 rw=randwrite") {
        report.says("START bench rw=randwrite bs=4096 qd=8 pairs=1 shadow=true");
        report.says("END bench commands=2000 reads=0 ");
        report.ended_with(0);
    }
}

#[test]
fn reads_and_writes_mixed_on_several_queues() {
    let words = "test=bench rw=randrw mix=70 pairs=4 qd=8,3 count=10000";
    if let Some(report) = run(words) {
        report.says("START bench rw=randrw bs=4096 qd=8 pairs=4 shadow=true");
        report.says("START bench rw=randrw bs=4096 qd=3 pairs=4 shadow=true");
        for index in 0..2 {
            assert_eq!(figure(&report, index, "commands="), 10_000);
            let reads = figure(&report, index, "reads=");
            assert!((6_700..7_300).contains(&reads), "{reads} reads");
        }
        report.ended_with(0);
    }
}

#[test]
fn a_doorbell_for_each_command_without_shadows_at_depth_1() {
    if let Some(report) = run("test=bench qd=1 count=500 shadow=off") {
        // One for the submission queue and one for the completion queue.
        assert_eq!(figure(&report, 0, "doorbells="), 1000);
        report.ended_with(0);
    }
}

#[test]
fn wrong_words_fail() {
    for (words, why) in [
        ("rw=trim", "rw=trim is none of"),
        ("mix=101", "mix=101 is no percentage"),
        ("pairs=5", "pairs=5 is not in 1..=4"),
        ("qd=257", "qd=257 is not in 1..=256"),
        ("driver=scsi", "driver=scsi is neither"),
        ("bs=1000", "bs=1000 is no multiple"),
    ] {
        if let Some(report) = run(&format!("test=bench {words}")) {
            report.says(&format!("TEST bench ... FAILED: {why}"));
        }
    }
}

#[test]
fn berth_has_no_virtio() {
    if let Some(report) = run("test=bench driver=virtio-blk") {
        report.says("TEST bench ... skipped: no virtio block device");
    }
}

#[test]
fn virtio_on_qemu_with_event_index() {
    virtio_writes_reach_the_file("on");
}

#[test]
fn virtio_on_qemu_with_flags() {
    virtio_writes_reach_the_file("off");
}

/// Writes a whole file in order through two queues.
fn virtio_writes_reach_the_file(event_index: &str) {
    if !matches!(HostKind::detect().bare_placement(), Ok(Placement::Direct)) {
        println!("skipped: bare-metal guests do not run here");
        return;
    }
    let scratch = harness::scratch().expect("a folder");
    let image = harness::image(scratch.path(), "disk.img", 4 << 20).expect("an image");
    assert_eq!(empty_pages(&image), 1024);
    let words = "test=bench driver=virtio-blk pairs=2 rw=write bs=128K qd=4 count=32 warmup=0";
    let drive = format!(
        "file={},if=none,id=d,format=raw",
        image.display().to_string().replace(',', ",,")
    );
    let device = format!(
        "virtio-blk-pci,drive=d,iothread=t,disable-legacy=on,num-queues=2,event_idx={event_index}"
    );
    let process = Process::builder("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "qemu64", "-m", "256", "-kernel"])
        .arg(bare_tests::guest().expect("the guest"))
        .args(["-append", words, "-nographic", "-no-reboot"])
        .args(["-net", "none", "-vga", "none", "-object", "iothread,id=t"])
        .args(["-drive", &drive, "-device", &device])
        .spawn();
    let process = match process {
        Err(harness::Error::Spawn { source, .. }) if source.kind() == ErrorKind::NotFound => {
            println!("skipped: no qemu-system-x86_64");
            return;
        }
        started => started.expect("QEMU"),
    };
    let finished = process.finish(LIMIT).expect("QEMU's end");
    let report = Report { finished };
    let index = format!("event-index={}", event_index == "on");
    report.says(&format!("qd=4 pairs=2 {index}"));
    report.says("END bench commands=32 reads=0 ");
    report.says("RESULT passed=1 failed=0 skipped=0");
    assert_eq!(empty_pages(&image), 0, "pages that were not written");
}
