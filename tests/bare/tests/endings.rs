//! How a guest's end shows in berth's exit status.

use bare_tests::{Machine, Report};

fn run(words: &str) -> Option<Report> {
    let machine = Machine::with_image("").expect("an image");
    machine.run(words).expect("a run to its end")
}

#[test]
fn power_off_is_success() {
    if let Some(report) = run("console=ttyS0 panic=-1 list unknown=1") {
        report.says("identify");
        report.ended_with(0);
    }
}

#[test]
fn a_reset_is_told() {
    if let Some(report) = run("test=reboot") {
        report.says("RUN reboot");
        report.ended_with(32);
    }
}

#[test]
fn a_triple_fault_is_told() {
    if let Some(report) = run("test=triplefault") {
        report.says("RUN triplefault");
        report.ended_with(33);
    }
}

#[test]
fn a_failed_test_resets() {
    if let Some(report) = run("test=nonsense,hello") {
        report.says("TEST nonsense ... FAILED");
        report.says("RESULT passed=1 failed=1 skipped=0");
        report.ended_with(32);
    }
}

#[test]
fn the_guest_reports_its_own_faults() {
    if let Some(report) = run("test=pagefault") {
        report.says("exception 14 error 0x4");
        report.says("cr2 0x7ffffffff000");
        report.says("RESULT passed=0 failed=1 skipped=0");
        report.ended_with(32);
    }
}

/// Of a process that ended with its io_uring the kernel lets go later; berth closes its images before.
#[test]
fn an_image_is_free_when_berth_has_ended() {
    let machine = Machine::with(&[]).unwrap();
    let image = harness::image(machine.folder(), "disk.img", 64 << 20).unwrap();
    let disk = format!("{},cache=none", image.display());
    let machine = machine.and(&["--disk", &disk]);
    for round in 1..=40 {
        let Some(report) = machine.run("test=io").unwrap() else {
            return;
        };
        report.ended_with(0);
        if let Err(error) = harness::files::lock(&image) {
            panic!("round {round}: {error}");
        }
    }
}

#[test]
fn no_controller_means_skipped() {
    let machine = Machine::with(&[]).unwrap();
    if let Some(report) = machine.run("test=identify").unwrap() {
        report.says("TEST identify ... skipped: no NVMe controller");
        report.ended_with(0);
    }
}
