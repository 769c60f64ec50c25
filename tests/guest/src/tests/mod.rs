//! The tests, by name, and the loop that runs them.

mod bars;
mod bench;
mod command;
mod features;
mod flow;
mod hostile;
mod hotplug;
mod identify;
mod interrupts;
mod io;
mod machine;
mod moves;
mod queues;
mod registers;
mod reset;
mod shadow;

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::check::{Outcome, Stop, skip};
use crate::cmdline::CommandLine;
use crate::nvme::Controller;
use crate::pci::Function;
use crate::pvh::StartInfo;
use crate::serial::println;
use crate::{acpi, exit, memory, pci};

/// What a test may use.
pub struct Machine {
    /// The kernel command line.
    pub line: CommandLine,
    /// Memory-mapped configuration space of bus 0, if ACPI has it.
    pub ecam: Option<u64>,
    /// First address behind RAM below 4 GiB.
    pub hole: u64,
    /// First address behind all RAM.
    pub ram_end: u64,
}

impl Machine {
    /// The first NVMe controller's function.
    ///
    /// # Errors
    /// There is none.
    pub fn function(&self) -> Outcome<Function> {
        match pci::controllers().next() {
            Some(function) => Ok(function),
            None => skip!("no NVMe controller"),
        }
    }

    /// The first NVMe controller, reset and enabled.
    ///
    /// # Errors
    /// There is none, or it does not get ready.
    pub fn controller(&self) -> Outcome<Controller> {
        Controller::start(self.function()?)
    }
}

struct Test {
    name: &'static str,
    run: fn(&Machine) -> Outcome,
    /// Whether `test=all` includes it.
    all: bool,
}

const fn test(name: &'static str, run: fn(&Machine) -> Outcome) -> Test {
    Test {
        name,
        run,
        all: true,
    }
}

const fn named_only(name: &'static str, run: fn(&Machine) -> Outcome) -> Test {
    Test {
        name,
        run,
        all: false,
    }
}

const TESTS: &[Test] = &[
    test("hello", machine::hello),
    test("pci", machine::pci),
    test("registers", registers::run),
    test("identify", identify::run),
    test("features", features::run),
    test("io", io::run),
    test("commands", io::commands),
    test("queues", queues::run),
    test("shadow", shadow::run),
    test("interrupts", interrupts::run),
    test("reset", reset::run),
    test("shutdown", reset::shutdown),
    test("flr", reset::function_level),
    test("bars", bars::run),
    test("hostile", hostile::run),
    named_only("bench", bench::run),
    named_only("command", command::run),
    named_only("hotplug", hotplug::run),
    named_only("moves", moves::run),
    named_only("reboot", machine::reboot),
    named_only("triplefault", machine::triple_fault),
    named_only("pagefault", machine::page_fault),
    named_only("spin", machine::spin),
    named_only("idle", machine::idle),
];

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);
/// Index of the test that runs, plus one.
static RUNNING: AtomicU32 = AtomicU32::new(0);

fn add(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn print_result() {
    println!(
        "RESULT passed={} failed={} skipped={}",
        PASSED.load(Ordering::Relaxed),
        FAILED.load(Ordering::Relaxed),
        SKIPPED.load(Ordering::Relaxed)
    );
}

/// Runs what the command line asks for; whether nothing failed.
pub fn run(line: &CommandLine, info: &StartInfo) -> bool {
    if line.has("list") {
        for test in TESTS {
            println!(
                "{}{}",
                test.name,
                if test.all { "" } else { " (not in all)" }
            );
        }
        return true;
    }
    let machine = Machine {
        line: *line,
        ecam: acpi::ecam(info.rsdp),
        hole: info.low_ram_end(),
        ram_end: info.ram_end(),
    };
    if let Some(ecam) = machine.ecam {
        memory::map_registers(ecam, 1 << 20);
    }
    for name in line.get("test").unwrap_or("all").split(',') {
        let mut found = false;
        for (index, test) in TESTS.iter().enumerate() {
            if test.name == name || name == "all" && test.all {
                found = true;
                RUNNING.store(index as u32 + 1, Ordering::Relaxed);
                run_one(test, &machine);
            }
        }
        if !found {
            println!("TEST {name} ... FAILED: no such test, see `list`");
            add(&FAILED);
        }
    }
    print_result();
    FAILED.load(Ordering::Relaxed) == 0
}

fn run_one(test: &Test, machine: &Machine) {
    println!("RUN {}", test.name);
    let mark = memory::mark();
    match (test.run)(machine) {
        Ok(()) => {
            println!("TEST {} ... ok", test.name);
            add(&PASSED);
        }
        Err(Stop::Failed(why)) => {
            println!("TEST {} ... FAILED: {why}", test.name);
            add(&FAILED);
        }
        Err(Stop::Skipped(why)) => {
            println!("TEST {} ... skipped: {why}", test.name);
            add(&SKIPPED);
        }
    }
    quiesce();
    memory::release(mark);
}

/// Stops every controller, so that nothing writes into memory that the next test uses.
fn quiesce() {
    for function in pci::controllers() {
        if let Ok(controller) = Controller::attach(function, 2) {
            // A controller that does not stop fails the next test's own reset.
            let _ = controller.disable();
            if let Ok(msix) = function.msix() {
                msix.enable(false, false);
            }
        }
    }
}

/// Ends everything: the guest itself failed.
pub fn abandon(why: fmt::Arguments<'_>) -> ! {
    let running = RUNNING.load(Ordering::Relaxed) as usize;
    let name = match running {
        0 => "start",
        index => TESTS[index - 1].name,
    };
    println!("TEST {name} ... FAILED: {why}");
    add(&FAILED);
    print_result();
    exit::reset();
}
