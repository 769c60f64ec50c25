//! Runs the bare-metal guest under berth and judges what it printed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Finished, HostKind, Placement, Process, Stdin, TempDir};

/// Environment variable that names the guest's ELF image.
pub const GUEST: &str = "BARE_GUEST";

/// Far longer than any test takes: its own limits end it first, with a reason.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Bytes of the image that [`Machine::with_image`] makes.
const IMAGE_BYTES: u64 = 64 << 20;

/// Why a guest could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing, or scratch files cannot be made.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// berth did not start or did not end.
    #[error(transparent)]
    Process(#[from] harness::Error),
}

/// A machine to run the guest in: berth's options beside the kernel's.
pub struct Machine {
    options: Vec<String>,
    scratch: TempDir,
}

/// What a guest did.
#[derive(Debug)]
pub struct Report {
    /// berth's exit status and all output.
    pub finished: Finished,
}

impl Machine {
    /// One vCPU, 256 MiB, and these options.
    ///
    /// # Errors
    /// No scratch folder can be made.
    pub fn with(options: &[&str]) -> Result<Self, Error> {
        Ok(Self {
            options: options.iter().map(|&it| it.to_owned()).collect(),
            scratch: harness::scratch()?,
        })
    }

    /// The default controller with a namespace on an image file of 64 MiB; `keys` are further
    /// properties of the namespace, each with a comma before it.
    ///
    /// # Errors
    /// The image cannot be made.
    pub fn with_image(keys: &str) -> Result<Self, Error> {
        let mut machine = Self::with(&[])?;
        let image = harness::image(machine.scratch.path(), "disk.img", IMAGE_BYTES)?;
        // A comma in a path is written twice in berth's grammar.
        let image = image.display().to_string().replace(',', ",,");
        machine.options = vec!["--disk".to_owned(), format!("{image}{keys}")];
        Ok(machine)
    }

    /// Adds options, which win over what was there: the last `-m` counts, say.
    #[must_use]
    pub fn and(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&it| it.to_owned()));
        self
    }

    /// Adds I/O threads that are all used, however few CPUs there are: they are bound.
    #[must_use]
    pub fn io_threads(self, count: u32) -> Self {
        self.and(&[
            "--io-threads",
            &count.to_string(),
            "--io-affinity",
            &harness::cpus(),
        ])
    }

    /// Boots the guest with `words` on its command line and waits for its end; nothing where this
    /// host runs no bare-metal guests, which it says aloud.
    ///
    /// # Errors
    /// berth or the guest is not built, or the guest does not end in time.
    pub fn run(&self, words: &str) -> Result<Option<Report>, Error> {
        let started = self.start(words)?;
        let finished = started.map(|process| process.finish(LIMIT)).transpose()?;
        Ok(finished.map(|finished| Report { finished }))
    }

    /// As [`Machine::run`], without waiting for the end.
    ///
    /// # Errors
    /// berth or the guest is not built.
    pub fn start(&self, words: &str) -> Result<Option<Process>, Error> {
        self.start_with(words, Stdin::Null)
    }

    /// As [`Machine::start`], with something for the guest to read on its console.
    ///
    /// # Errors
    /// berth or the guest is not built.
    pub fn start_with(&self, words: &str, console: Stdin) -> Result<Option<Process>, Error> {
        let Some((berth, arguments)) = self.command_line(words)? else {
            return Ok(None);
        };
        let builder = Process::builder(berth);
        Ok(Some(builder.args(&arguments).stdin(console).spawn()?))
    }

    /// berth, and its arguments with `words` on the guest's command line; nothing where this host runs no
    /// bare-metal guests, which it says aloud.
    ///
    /// # Errors
    /// berth or the guest is not built.
    pub fn command_line(&self, words: &str) -> Result<Option<(PathBuf, Vec<String>)>, Error> {
        let host = HostKind::detect();
        match host.bare_placement()? {
            Placement::Direct => {}
            Placement::Outer => {
                println!("skipped: no /dev/kvm");
                return Ok(None);
            }
            Placement::Skip(why) => {
                println!("skipped: {why}");
                return Ok(None);
            }
        }
        let mut arguments = vec!["run".to_owned(), "--kernel".to_owned()];
        arguments.push(guest()?.display().to_string());
        arguments.extend(["--append".to_owned(), words.to_owned()]);
        if !self.options.iter().any(|it| it == "-m") {
            arguments.extend(["-m".to_owned(), "256".to_owned()]);
        }
        arguments.extend(self.options.iter().cloned());
        Ok(Some((harness::berth_binary()?, arguments)))
    }

    /// A folder that lives as long as the machine.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Runs guest tests, comma-separated, all of which must pass: none skipped, power-off at the end.
    ///
    /// # Panics
    /// When they do not, with the guest's output.
    pub fn passes(&self, tests: &str) {
        let report = match self.run(&format!("test={tests}")) {
            Ok(Some(report)) => report,
            Ok(None) => return,
            Err(error) => panic!("{error}"),
        };
        let count = tests.split(',').count();
        report.says(&format!("RESULT passed={count} failed=0 skipped=0"));
        report.ended_with(0);
    }
}

impl Report {
    /// Checks that the guest printed a line that contains `text`.
    ///
    /// # Panics
    /// When it did not, with its output.
    pub fn says(&self, text: &str) {
        let Finished { stdout, stderr, .. } = &self.finished;
        assert!(
            stdout.lines().any(|line| line.contains(text)),
            "the guest did not print {text:?}\n{stdout}{stderr}"
        );
    }

    /// Checks berth's exit status.
    ///
    /// # Panics
    /// When it is another, with all output.
    pub fn ended_with(&self, status: i32) {
        let Finished {
            exit,
            stdout,
            stderr,
        } = &self.finished;
        assert_eq!(exit.status, Some(status), "{exit}\n{stdout}{stderr}");
    }
}

/// The guest's ELF image: the one `BARE_GUEST` names, else the one of this build profile.
///
/// # Errors
/// `NotFound`, with how to build it.
pub fn guest() -> io::Result<PathBuf> {
    if let Some(named) = std::env::var_os(GUEST) {
        return Ok(named.into());
    }
    let exe = std::env::current_exe()?;
    // The test is target/PROFILE/deps/NAME.
    exe.ancestors()
        .skip(2)
        .take(1)
        .map(|dir| dir.join("bare-guest"))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let how = if cfg!(debug_assertions) {
                ""
            } else {
                " --release"
            };
            let text = format!("no guest: run `cargo build{how} -p bare-guest`, or set {GUEST}");
            io::Error::new(io::ErrorKind::NotFound, text)
        })
}
