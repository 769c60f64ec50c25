//! The emulated outer machine: QEMU's TCG with AMD's SVM, in which a Debian
//! kernel has a true `kvm_amd`.
//!
//! Its initramfs is made anew for each start, with the program to run; the
//! kit is on a disk. Starting it costs seconds, so one machine runs many
//! guests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Process, Stream, TempDir, Tree};

use crate::fio_report;
use crate::iopoll;
use crate::kit::{Kit, Version};
use crate::report::{Report, Verdict, parse};
use crate::scenarios::Scenario;

/// The outer machine's first process.
const INIT: &str = include_str!("../../../resources/outer/init");

/// QEMU's name on Debian.
const QEMU: &str = "qemu-system-x86_64";

/// AMD's, for `kvm_amd`. Its `cmpxchg16b` is not used: interrupted in QEMU 7.2's
/// TCG it corrupts its operand, and newer kernels crash. Nor is XSAVE: a
/// guest's XSETBV is not intercepted, so KVM reports it a wrong state size.
/// The others are what TCG lacks and would warn of.
const CPU: &str = "EPYC,+svm,+npt,-cx16,\
                   -xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-f16c,-fma,\
                   -rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,\
                   -osvw,-topoext,-nrip-save";

/// A timer that goes on by itself. QEMU's TCG clears a bit of the CPU's pending
/// interrupts at each exit from a guest, by a read and a write without a lock:
/// an interrupt that another thread raises in between is lost until the next
/// one. Had the kernel to set its timer anew each time, none might ever come.
const TICK: &str = "highres=off nohz=off";

/// Gives every NVMe disk a queue without interrupts beside the usual ones, for io_uring's polling.
const POLL_QUEUES: &str = "nvme.poll_queues=1";

/// Longest time until its first words.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Longest run of one outer machine.
const RUN_LIMIT: Duration = Duration::from_secs(40 * 60);

/// How long the TSC is compared with the clock.
const CALIBRATION: Duration = Duration::from_millis(100);

/// Where the disk for scratch files is mounted.
pub const SCRATCH: &str = "/scratch";

/// Size of the disk for scratch files.
const SCRATCH_BYTES: u64 = 16 << 30;

/// Size of the disk whose driver polls.
const POLLED_BYTES: u64 = 64 << 20;
/// Environment variable in the outer machine: a folder for what is to be looked at outside.
pub const EXPORT: &str = "BERTH_TEST_EXPORT";

/// Where that folder is, on the disk for scratch files.
const EXPORTED: &str = "export";

/// How many outer machines may break down in one run.
const BREAKDOWNS: u32 = 3;

/// An outer machine to be started.
pub struct Outer {
    dir: TempDir,
    arguments: Vec<String>,
    interactive: bool,
}

/// A program of this host.
fn tool(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin"].map(Path::new);
    let found = folders.map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file())
}

/// One line of shell, with each word quoted.
fn shell_line(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The line that runs this very program inside with `words`.
fn self_line(words: &[&str]) -> String {
    let mut line = vec!["/bin/program"];
    line.extend(words);
    line.extend(["--here", "--kit", "/kit", "--results", "/dev/ttyS1"]);
    shell_line(&line)
}

impl Outer {
    /// An outer machine that runs this very program with `words`.
    ///
    /// # Errors
    /// When its initramfs cannot be made.
    pub fn for_self(kit: &Kit, words: &[&str]) -> Result<Self> {
        let program = std::env::current_exe()?;
        Self::build(kit, &program, &[], None, &self_line(words))
    }

    /// The same, with `folder` on its scratch disk, where it is `/scratch`, a bash, and its kernel in `/boot`.
    ///
    /// # Errors
    /// When its initramfs or disk cannot be made.
    pub fn with_folder(kit: &Kit, words: &[&str], folder: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        Self::build(kit, &program, &[], Some(folder), &self_line(words))
    }

    /// An outer machine that runs `program`, with `files` beside it.
    ///
    /// # Errors
    /// When its initramfs cannot be made.
    pub fn new(kit: &Kit, program: &Path, files: &[PathBuf]) -> Result<Self> {
        Self::build(kit, program, files, None, "cd /bin && exec /bin/program")
    }

    fn build(
        kit: &Kit,
        program: &Path,
        files: &[PathBuf],
        folder: Option<&Path>,
        line: &str,
    ) -> Result<Self> {
        let dir = harness::scratch()?;
        // Debian 12's kernel: in QEMU's TCG the one most tried.
        let kernel = kit
            .kernel_dir(Version::V6_1)
            .or_else(|_| kit.kernel_dir(Version::Newest))?;
        let mut tree = Tree::new();
        for folder in ["dev", "proc", "sys", "tmp", "kit", "scratch", "root"] {
            tree.folder(folder);
        }
        tree.char_device("dev/console", 5, 1);
        tree.busybox(&kit.file("busybox"))?;
        for module in ["irqbypass", "kvm", "kvm-amd"] {
            let from = kernel.join(format!("modules/{module}.ko"));
            tree.copy(&format!("modules/{module}.ko"), 0o644, &from);
        }
        tree.program("bin/program", program)?;
        tree.program("bin/berth", &harness::berth_binary()?)?;
        // For commands in guests, which berth takes from here with its libraries.
        for (name, path) in [("nvme", "usr/sbin/nvme"), ("fio", "usr/bin/fio")] {
            if let Some(tool) = tool(name) {
                tree.program(path, &tool)?;
            }
        }
        if folder.is_some() {
            tree.program("bin/bash", Path::new("/bin/bash"))?;
            own_kernel(&mut tree, kit, &kernel)?;
        }
        for file in files {
            let name = file.file_name().context("a file without a name")?;
            tree.copy(&format!("bin/{}", name.to_string_lossy()), 0o755, file);
        }
        tree.bytes("init", 0o755, INIT);
        tree.bytes("task", 0o755, format!("{}{line}\n", environment()));
        let initramfs = dir.path().join("outer.cpio");
        tree.write_cpio(&initramfs)?;
        let scratch = scratch_disk(dir.path(), folder)?;
        let polled = harness::image(dir.path(), "polled.img", POLLED_BYTES)?;
        let mut arguments = arguments(&kernel, &initramfs, &kit.image(), &scratch);
        arguments.extend(polled_disk(&polled));
        Ok(Self {
            dir,
            arguments,
            interactive: false,
        })
    }

    /// Gives the terminal to the program inside.
    #[must_use]
    pub fn interactive(mut self, interactive: bool) -> Self {
        self.interactive = interactive;
        self
    }

    /// Runs it to its end; true if the program inside succeeded.
    ///
    /// # Errors
    /// When the machine broke down.
    pub fn run(self) -> Result<bool> {
        self.operate()?;
        let results = self.results();
        let status = results
            .lines()
            .find_map(|line| line.trim().strip_prefix("EXIT "));
        match status {
            Some(status) => Ok(status == "0"),
            None => bail!("the outer machine ended without a word from its program"),
        }
    }

    fn operate(&self) -> Result<()> {
        println!("outer machine: starting (QEMU without KVM; takes some seconds)");
        if self.interactive {
            self.run_on_terminal()
        } else {
            self.run_watched()
        }
    }

    /// What came out of the second serial port.
    fn results(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("results")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Copies what a scenario exported out of the scratch disk into `folder`, anew.
    fn export(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        let copy = folder.join(name);
        if copy.exists() {
            std::fs::remove_dir_all(&copy)?;
        }
        std::fs::create_dir_all(folder)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let done = Process::builder("debugfs")
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .args([
                "-R",
                &format!("rdump /{EXPORTED}/{name} {}", folder.display()),
            ])
            .arg(self.dir.path().join("scratch.img"))
            .run(Duration::from_secs(60))?;
        ensure!(copy.is_dir(), "debugfs copied nothing: {}", done.stderr);
        Ok(copy)
    }

    fn results_option(&self) -> String {
        format!("file:{}", self.dir.path().join("results").display())
    }

    fn run_watched(&self) -> Result<()> {
        let started = Instant::now();
        let machine = Process::builder(QEMU)
            .args(&self.arguments)
            .args(["-serial", "stdio", "-serial", &self.results_option()])
            .stdin(harness::Stdin::Held)
            .echo(true)
            .spawn()?;
        machine.wait_for(Stream::Stdout, "sign of life", START_LIMIT, |line| {
            !line.trim().is_empty()
        })?;
        let exit = machine.wait(RUN_LIMIT)?;
        println!(
            "outer machine: ended with {exit} after {:.1} s",
            started.elapsed().as_secs_f32()
        );
        ensure!(exit.success(), "QEMU ended with {exit}\n{}", machine.tail());
        Ok(())
    }

    /// The terminal is QEMU's; it makes it raw and restores it.
    fn run_on_terminal(&self) -> Result<()> {
        let status = Command::new(QEMU)
            .args(&self.arguments)
            .args(["-chardev", "stdio,id=terminal,signal=off"])
            .args(["-serial", "chardev:terminal"])
            .args(["-serial", &self.results_option()])
            .stdin(Stdio::inherit())
            .status()
            .with_context(|| format!("cannot start {QEMU}"))?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}

/// What the program inside shall know of this one's environment.
fn environment() -> String {
    let mut text =
        "export BERTH_BIN=/bin/berth BARE_GUEST=/bin/bare-guest BERTH_TEST_HOST=direct\n"
            .to_owned();
    text.push_str(&format!("export {}=1\n", crate::measure::EMULATED));
    text.push_str(&format!("export {EXPORT}=/scratch/{EXPORTED}\n"));
    if std::env::var_os("BERTH_TEST_VERBOSE").is_some() {
        text.push_str("export BERTH_TEST_VERBOSE=1\n");
    }
    text
}

/// The machine's kernel and modules where a distribution has them, for commands in guests that name none.
fn own_kernel(tree: &mut Tree, kit: &Kit, kernel: &Path) -> Result<()> {
    let release = std::fs::read_to_string(kernel.join("release"))?;
    let image = format!("boot/vmlinuz-{release}");
    tree.copy(&image, 0o644, &kernel.join("vmlinuz"));
    let list = format!("lib/modules/{release}/modules.builtin");
    tree.copy(&list, 0o644, &kit.file(&list));
    Ok(())
}

/// A disk for what is made inside. Memory would do, but for O_DIRECT, which
/// tmpfs refuses. Sparse: it takes what is written to it. At first it holds what
/// `folder` does.
fn scratch_disk(dir: &Path, folder: Option<&Path>) -> Result<PathBuf> {
    let image = harness::image(dir, "scratch.img", SCRATCH_BYTES)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let done = Process::builder("mke2fs")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal"])
        .args(
            folder
                .into_iter()
                .flat_map(|folder| [Path::new("-d"), folder]),
        )
        .arg(&image)
        .run(Duration::from_secs(60))?;
    ensure!(done.exit.success(), "mke2fs: {}", done.stderr);
    Ok(image)
}

/// This host's TSC rate, which QEMU's TCG passes on as it is. Calibrated inside,
/// on a busy host, it has come out eight times too low, and every clock in
/// there ran eight times too fast.
fn tsc_khz() -> u128 {
    // SAFETY: RDTSC exists on every x86-64 CPU and only reads a counter.
    let ticks = || u128::from(unsafe { core::arch::x86_64::_rdtsc() });
    let (start, from) = (Instant::now(), ticks());
    while start.elapsed() < CALIBRATION {
        std::hint::spin_loop();
    }
    let (nanoseconds, to) = (start.elapsed().as_nanos(), ticks());
    to.saturating_sub(from) * 1_000_000 / nanoseconds
}

fn arguments(kernel: &Path, initramfs: &Path, kit: &Path, scratch: &Path) -> Vec<String> {
    let append = format!(
        "console=ttyS0 panic=-1 mitigations=off nokaslr quiet loglevel=1 \
         tsc_early_khz={} tsc=reliable no_timer_check {TICK} {POLL_QUEUES}",
        tsc_khz()
    );
    let drive = format!(
        "file={},if=none,id=kit,format=raw,readonly=on",
        kit.display()
    );
    // Nothing on it outlives the machine, so nothing needs to reach a disk.
    let scratch = format!(
        "file={},if=none,id=scratch,format=raw,cache=unsafe,discard=unmap",
        scratch.display()
    );
    let kernel = kernel.join("vmlinuz").display().to_string();
    let initramfs = initramfs.display().to_string();
    [
        ["-accel", "tcg,thread=multi"],
        ["-cpu", CPU],
        // With two, guests of several vCPUs crash now and then where their
        // kernel patches its own code: TCG runs on in what it translated.
        ["-smp", "1"],
        ["-m", "4096"],
        ["-kernel", &kernel],
        ["-initrd", &initramfs],
        ["-append", &append],
        ["-drive", &drive],
        ["-device", "nvme,drive=kit,serial=kit"],
        ["-drive", &scratch],
        ["-device", "nvme,drive=scratch,serial=scratch"],
        ["-display", "none"],
        ["-vga", "none"],
        ["-monitor", "none"],
        ["-net", "none"],
    ]
    .iter()
    .flatten()
    .map(|word| (*word).to_owned())
    .chain(["-no-reboot".to_owned()])
    .collect()
}

/// A raw disk for berth to poll, as [`iopoll`] finds it.
fn polled_disk(image: &Path) -> [String; 4] {
    let image = image.display();
    [
        "-drive".to_owned(),
        format!("file={image},if=none,id=polled,format=raw,cache=unsafe"),
        "-device".to_owned(),
        format!("nvme,drive=polled,serial={}", iopoll::SERIAL),
    ]
}

/// The verdict on a scenario, once what it left is looked at where there is a browser.
fn outside(kit: &Kit, outer: &Outer, name: &str, verdict: Verdict) -> Verdict {
    if verdict != Verdict::Passed || name != fio_report::NAME {
        return verdict;
    }
    let folder = kit.image().with_file_name(EXPORTED);
    let checked = outer.export(name, &folder).and_then(|copy| {
        println!("linux::{name}: {}", copy.join("index.html").display());
        fio_report::check(&copy)
    });
    match checked {
        Ok(()) => verdict,
        Err(error) => {
            println!("linux::{name}: {error:#}");
            println!("TEST linux::{name} ... FAILED (as seen from outside)");
            Verdict::Failed
        }
    }
}

/// Runs the scenarios in an outer machine. When it breaks down, the scenario
/// that ran has failed, and the rest run in a new one.
///
/// # Errors
/// When the outer machine cannot be made at all.
pub fn run_scenarios(kit: &Kit, scenarios: &[&'static Scenario]) -> Result<bool> {
    let mut report = Report::default();
    let mut left: Vec<&str> = scenarios.iter().map(|scenario| scenario.name).collect();
    let mut breakdowns = 0;
    while !left.is_empty() {
        let mut words = vec!["run", "--exact"];
        words.extend(&left);
        let outer = Outer::for_self(kit, &words)?;
        let ended = outer.operate();
        let text = outer.results();
        for (name, verdict) in text.lines().filter_map(parse) {
            if left.contains(&name) {
                left.retain(|waiting| *waiting != name);
                report.count(&outside(kit, &outer, name, verdict));
            }
        }
        if left.is_empty() {
            break;
        }
        let why = ended
            .err()
            .map_or_else(String::new, |why| format!("{why:#}"));
        let broken = left.remove(0);
        println!("the outer machine broke down: {why}");
        println!("TEST linux::{broken} ... FAILED (the outer machine broke down)");
        report.count(&Verdict::Failed);
        breakdowns += 1;
        if breakdowns == BREAKDOWNS {
            for name in left.drain(..) {
                println!("TEST linux::{name} ... FAILED (the outer machine broke down too often)");
                report.count(&Verdict::Failed);
            }
        }
    }
    report.close();
    Ok(report.passed())
}
