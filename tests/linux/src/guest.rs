//! One Linux guest of berth: how it is started, talked to and judged.

pub mod qemu;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::{Exit, Process, Stdin, Stream, TempDir};

use crate::control::Control;
use crate::kit::{Form, Kit, Version};

/// Longest time from start to the guest's first task, in the outer machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Environment variable: any value makes guests print their whole boot log.
const VERBOSE: &str = "BERTH_TEST_VERBOSE";

/// A guest to be started.
pub struct Guest {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    append: Vec<String>,
    options: Vec<OsString>,
    cpus: u32,
    memory: &'static str,
    task: &'static str,
    echo: bool,
    dir: TempDir,
}

/// A started guest. Dropping it kills its VMM.
pub struct Running {
    vmm: &'static str,
    process: Process,
    dir: TempDir,
}

/// A guest that ended.
pub struct Ended {
    /// The VMM's exit.
    pub exit: Exit,
    /// What the task printed, and the line `EXIT STATUS`.
    pub results: String,
    /// The console and the VMM's own messages, for errors.
    pub tail: String,
}

impl Guest {
    /// A guest that runs `task` (in resources/guest/tasks) on one vCPU with
    /// 512 MiB, from the small initramfs, without a disk.
    ///
    /// # Errors
    /// When the kernel is not in the kit (as `Skipped`).
    pub fn new(kit: &Kit, task: &'static str) -> Result<Self> {
        Self::with_kernel(kit, Version::Newest, Form::BzImage, task)
    }

    /// The same with a certain kernel.
    ///
    /// # Errors
    /// When the kernel is not in the kit (as `Skipped`).
    pub fn with_kernel(
        kit: &Kit,
        version: Version,
        form: Form,
        task: &'static str,
    ) -> Result<Self> {
        let mut append = vec!["console=ttyS0".to_owned(), "panic=-1".to_owned()];
        if std::env::var_os(VERBOSE).is_none() {
            append.push("quiet".to_owned());
        }
        Ok(Self {
            kernel: kit.kernel(version, form)?,
            initrd: Some(kit.file("small.cpio")),
            append,
            options: Vec::new(),
            cpus: 1,
            memory: "512M",
            task,
            echo: false,
            dir: harness::scratch()?,
        })
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the memory, in berth's own form (`512M`).
    #[must_use]
    pub fn memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    /// Uses another initramfs of the kit, or none.
    #[must_use]
    pub fn initrd(mut self, initrd: Option<PathBuf>) -> Self {
        self.initrd = initrd;
        self
    }

    /// Adds a word to the kernel command line.
    #[must_use]
    pub fn append(mut self, word: impl Into<String>) -> Self {
        self.append.push(word.into());
        self
    }

    /// Adds `--device`.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.options.push("--device".into());
        self.options.push(device.into().into());
        self
    }

    /// Adds `--disk` with an existing image.
    #[must_use]
    pub fn disk(mut self, path: &Path) -> Self {
        self.options.push("--disk".into());
        self.options.push(path.into());
        self
    }

    /// Sets the number of I/O threads, bound to CPUs: all are used then.
    #[must_use]
    pub fn io_threads(mut self, threads: u32) -> Self {
        self.options.push("--io-threads".into());
        self.options.push(threads.to_string().into());
        self.options.push("--io-affinity".into());
        self.options.push(harness::cpus().into());
        self
    }

    /// Makes an empty image that lives as long as the guest, and adds it.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn new_disk(self, mebibytes: u64) -> Result<Self> {
        let image = self.image("disk.img", mebibytes << 20)?;
        Ok(self.disk(&image))
    }

    /// Makes an empty image that lives as long as the guest.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn image(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        Ok(harness::image(self.dir.path(), name, bytes)?)
    }

    /// Folder that lives as long as the guest.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Shows console and messages as they come, boot log included.
    #[must_use]
    pub fn shown(mut self) -> Self {
        self.echo = true;
        self.append.retain(|word| word != "quiet");
        self
    }

    fn command_line(&self) -> String {
        format!("{} berth.run={}", self.append.join(" "), self.task)
    }

    /// The arguments after `berth`.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let append = format!("{} berth.run={}", self.append.join(" "), self.task);
        let mut args: Vec<OsString> = vec!["run".into(), "--kernel".into()];
        args.push((&self.kernel).into());
        if let Some(initrd) = &self.initrd {
            args.push("--initrd".into());
            args.push(initrd.into());
        }
        args.extend(["--append".into(), append.into()]);
        args.extend(["-m".into(), self.memory.into()]);
        args.extend(["--cpus".into(), self.cpus.to_string().into()]);
        args.extend(["--com2".into(), self.dir.path().join("com2").into()]);
        let socket = self.dir.path().join("control");
        args.extend(["--control-socket".into(), socket.into()]);
        args.extend(self.options.iter().cloned());
        args
    }

    /// Starts it.
    ///
    /// # Errors
    /// When berth cannot be started.
    pub fn start(self) -> Result<Running> {
        let process = Process::builder(harness::berth_binary()?)
            .args(self.arguments())
            .stdin(Stdin::Held)
            .echo(self.echo)
            .spawn()?;
        Ok(Running {
            vmm: "berth",
            process,
            dir: self.dir,
        })
    }

    /// Starts it, waits for its end, and sees to it that its task succeeded
    /// and it powered off.
    ///
    /// # Errors
    /// When it did not.
    pub fn succeed(self, limit: Duration) -> Result<Ended> {
        self.start()?.succeed(limit)
    }

    /// Starts it and waits until berth ends with `status`.
    ///
    /// # Errors
    /// When it ends with another, or not within `limit`.
    pub fn end_with(self, status: i32, limit: Duration) -> Result<Ended> {
        let ended = self.start()?.end(limit)?;
        ensure!(
            ended.exit.status == Some(status),
            "berth ended with {}, expected status {status}\n{}{}",
            ended.exit,
            ended.results,
            ended.tail
        );
        Ok(ended)
    }
}

impl Running {
    /// The VMM's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits until the task reaches `phase NAME`; it then waits for [`Self::go`].
    ///
    /// # Errors
    /// When it does not get there.
    pub fn phase(&self, name: &str, limit: Duration) -> Result<()> {
        let line = format!("PHASE {name}");
        let found = self
            .process
            .wait_for(Stream::Stdout, &line, BOOT_LIMIT + limit, |seen| {
                seen.contains(&line)
            });
        match found {
            Ok(_) => Ok(()),
            Err(error) => {
                let results = self.results();
                Err(error).context(format!("results so far:\n{results}"))
            }
        }
    }

    /// Lets the task go on after a phase.
    ///
    /// # Errors
    /// When berth no longer takes input.
    pub fn go(&mut self) -> Result<()> {
        Ok(self.process.send(b"\n")?)
    }

    /// Connects to its control socket.
    ///
    /// # Errors
    /// When berth does not listen there.
    pub fn connect(&self) -> Result<Control> {
        Control::connect(&self.dir.path().join("control"))
    }

    /// Sends one control command and returns the reply; null if it says nothing.
    ///
    /// # Errors
    /// When the command fails or the reply is no JSON.
    pub fn control(&self, command: &str) -> Result<serde_json::Value> {
        let done = Process::builder(harness::berth_binary()?)
            .arg("ctl")
            .arg(self.dir.path().join("control"))
            .args(command.split(' '))
            .run(Duration::from_secs(30))?;
        ensure!(
            done.exit.success(),
            "berth ctl {command}: {}\n{}{}",
            done.exit,
            done.stdout,
            done.stderr
        );
        if done.stdout.trim().is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_str(&done.stdout)
            .with_context(|| format!("the reply to {command} is no JSON: {}", done.stdout))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come within `limit` after the time to boot.
    pub fn end(self, limit: Duration) -> Result<Ended> {
        match self.process.wait(BOOT_LIMIT + limit) {
            Ok(exit) => Ok(Ended {
                exit,
                results: self.results(),
                tail: self.process.tail(),
            }),
            Err(error) => {
                let results = self.results();
                Err(error).context(format!("results so far:\n{results}"))
            }
        }
    }

    /// Waits for the end, and sees to it that the task succeeded and the
    /// guest powered off.
    ///
    /// # Errors
    /// When it did not.
    pub fn succeed(self, limit: Duration) -> Result<Ended> {
        let vmm = self.vmm;
        let ended = self.end(limit)?;
        let failed = ended.results.lines().any(|line| line.starts_with("FAILED"));
        let finished = ended.results.lines().any(|line| line == "EXIT 0");
        if ended.exit.status != Some(0) || failed || !finished {
            bail!(
                "{vmm} ended with {}; the task {}\n{}{}",
                ended.exit,
                if failed {
                    "failed"
                } else if finished {
                    "succeeded"
                } else {
                    "did not succeed"
                },
                ended.results,
                ended.tail
            );
        }
        Ok(ended)
    }

    fn results(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("com2")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}
