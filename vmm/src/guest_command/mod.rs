//! `berth run … -- COMMAND`: a command that runs in the guest as if it ran here.
//!
//! berth makes an initramfs in memory whose first process is berth itself (see [`crate::guest`]); that
//! runs the command. Both ends talk over COM2: [`frames`] is how, [`channel`] is this end. What the command reads
//! the guest takes at a port of its own, [`input`].

mod asked;
pub mod channel;
mod cpio;
mod elf;
pub mod frames;
mod initramfs;
pub mod input;
pub mod kernel;
mod libraries;
mod modules;
mod root;
mod streams;
pub mod tail;
pub mod task;

use std::fs::{self, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cli::RunConfig;
use crate::control::plain;
use crate::exit::{ExitReason, Outcome};
use crate::machine::MachineError;
use crate::spec::NamespaceSpec;
use crate::stderr;

use self::channel::{Channel, FromGuest};
use self::initramfs::Initramfs;
use self::libraries::LibraryError;
use self::modules::{ModuleError, ModuleTree};
use self::tail::Tail;
use self::task::{INIT, RootDisk, Task};

/// Exit status of a guest that ended without a word on its command.
pub const NO_REPORT: u8 = 255;
/// Exit status of a command that is not there, as in a shell.
const NOT_FOUND: u8 = 127;
/// Exit status of a command that cannot be executed, as in a shell.
const NOT_EXECUTABLE: u8 = 126;

/// A command for the guest, and what it needs: plain data from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// The command: its name and its arguments, at least one.
    pub words: Vec<String>,
    /// What it has as its root; a small system of berth's own unless given.
    pub rootfs: Option<RootFs>,
    /// Files to bring along, in order.
    pub with: Vec<With>,
    /// Kernel modules to load, in order.
    pub modules: Vec<String>,
}

/// What is to be the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFs {
    /// The argument as given.
    pub argument: String,
    /// What it names.
    pub kind: RootKind,
}

/// Where a root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKind {
    /// A directory, whose content is copied.
    Directory(PathBuf),
    /// An image, which the guest reads and writes.
    Disk(Box<NamespaceSpec>),
}

/// A file or directory to bring along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct With {
    /// On the host.
    pub from: PathBuf,
    /// In the guest, an absolute path; if it is not said, the same path, or in the working directory.
    pub to: Option<String>,
}

impl With {
    /// Parses `FILE[=GUESTPATH]`. A guest path begins with a slash.
    #[must_use]
    pub fn parse(argument: &str) -> Self {
        let (from, to) = match argument.rsplit_once("=/") {
            Some((from, to)) => (from, Some(format!("/{to}"))),
            None => (argument, None),
        };
        Self {
            from: from.into(),
            to,
        }
    }
}

/// Why a command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("{0}: not found: neither a program in this host's PATH nor an applet of busybox")]
    NotFound(String),
    /// There is no such file.
    #[error("{0}: no such file on this host, which the small system of the guest is made of")]
    NoFile(String),
    /// It is there, but no program.
    #[error("{path}: is no program that may be executed; if it is one, chmod +x {path}", path = .0.display())]
    NotExecutable(PathBuf),
    /// There is no busybox on this host.
    #[error(
        "busybox is not in this host's PATH, and the guest's small system is made of it; install it \
         (Debian: busybox-static), or give a root, --rootfs DIR or IMAGE"
    )]
    NoBusybox,
    /// A file cannot be read.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What was to be brought along.
    #[error("--with {0}")]
    With(Box<Error>),
    /// A name that cannot be told to the guest.
    #[error("{}: the name is not UTF-8", .0.display())]
    Name(PathBuf),
    /// Something that is no file where there has to be one.
    #[error("{}: is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// berth's own file is not as it should be.
    #[error("berth's own file does not name its dynamic linker {}", .0.display())]
    Linker(PathBuf),
    /// Libraries of a program.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// Kernel modules.
    #[error("--module: {0}")]
    Module(#[from] ModuleError),
    /// The file system of an image.
    #[error("--rootfs {}: {problem}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It cannot be unpacked in the guest.
    #[error(
        "the initramfs of the command would have {size} bytes, but the guest has {memory}; give it more, \
         --memory SIZE, or bring less along (--rootfs DIR, --with)"
    )]
    TooLarge {
        /// Bytes of what is in it.
        size: u64,
        /// Bytes of the guest's RAM.
        memory: u64,
    },
    /// The archive.
    #[error("cannot make the initramfs: {0}")]
    Archive(io::Error),
}

impl Error {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File {
            path,
            problem: plain(&error),
        }
    }

    /// The exit status: that of a shell for a command that cannot be run, else 1.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) | Self::NoFile(_) => NOT_FOUND,
            Self::NotExecutable(_) => NOT_EXECUTABLE,
            _ => 1,
        }
    }
}

/// What a running command has outside of its guest.
pub struct Session {
    /// Its streams and its status.
    pub channel: Channel,
    /// The end of the guest's console, unless that is shown.
    pub tail: Tail,
}

impl Session {
    /// The command's streams on berth's own, and the sink for what the guest sends to COM2.
    ///
    /// # Errors
    /// No thread or no file descriptor left.
    pub fn new(outcome: &Arc<Outcome>) -> io::Result<(Self, FromGuest)> {
        let (channel, from_guest) = Channel::new(outcome)?;
        let tail = Tail::default();
        Ok((Self { channel, tail }, from_guest))
    }

    /// Says what there is to say at the end, and returns the exit status.
    pub fn conclude(&self, reason: &ExitReason) -> u8 {
        let status = status(reason);
        match reason {
            ExitReason::Command(_) => return status,
            ExitReason::NotRun { .. } | ExitReason::Signal(_) | ExitReason::Failure(_) => {
                stderr::say(format_args!("berth: {reason}"));
            }
            _ => stderr::say(format_args!(
                "berth: {reason} before the command reported its status"
            )),
        }
        let lines = self.tail.lines();
        if status == NO_REPORT && !lines.is_empty() {
            let lines = lines.join("\n  ");
            stderr::say(format_args!(
                "berth: the end of the guest's console:\n  {lines}"
            ));
        }
        status
    }
}

/// The exit status of berth for a guest with a command.
fn status(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff
        | ExitReason::Reset
        | ExitReason::Crash(_)
        | ExitReason::Panic
        | ExitReason::Quit => NO_REPORT,
        ExitReason::Command(_)
        | ExitReason::NotRun { .. }
        | ExitReason::Signal(_)
        | ExitReason::Failure(_) => reason.status(),
    }
}

/// What is wrong with a machine, in words that fit an initramfs that nobody named.
#[must_use]
pub fn explained(error: MachineError) -> anyhow::Error {
    match error {
        MachineError::Boot(boot::Error::Initrd { problem, .. }) => {
            anyhow::anyhow!("the initramfs of the command {problem}")
        }
        error => error.into(),
    }
}

/// A command that is ready to be booted.
pub struct Prepared {
    /// The machine with the initramfs and the disk for it.
    pub config: RunConfig,
    /// Keeps the initramfs, which `config` names.
    _initramfs: OwnedFd,
}

/// Makes the initramfs for a command, in memory, and the machine that boots it.
///
/// # Errors
/// Something that the command needs is missing; the message names it.
pub fn prepare(config: &RunConfig, command: &GuestCommand) -> Result<Prepared, Error> {
    let mut config = config.clone();
    let berth = std::env::current_exe().map_err(Error::file(Path::new("/proc/self/exe")))?;
    let mut initramfs = Initramfs::new(&berth)?;
    let mut modules = command.modules.clone();
    let root_kind = command.rootfs.as_ref().map(|root| &root.kind);
    let mut task = Task {
        program: None,
        words: command.words.clone(),
        environment: initramfs::environment(),
        modules: Vec::new(),
        root: None,
    };
    match root_kind {
        None => {
            // Never empty.
            let name = command.words.first().map_or("", String::as_str);
            task.program = Some(initramfs.small_system(name)?);
        }
        Some(RootKind::Directory(path)) => initramfs.root(path)?,
        Some(RootKind::Disk(spec)) => {
            let root = root::attach(spec, &mut config)?;
            modules.insert(0, root.file_system.clone());
            task.root = Some(root);
        }
    }
    for with in &command.with {
        let brought = initramfs.with(with, root_kind.is_none());
        brought.map_err(|error| Error::With(error.into()))?;
    }
    let modules = load_list(&config.kernel, command, &modules, task.root.as_ref())?;
    initramfs.task(task, modules);
    let file = in_memory(&initramfs, config.memory)?;
    config.initrd = Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into());
    config.append = boot_words(&config);
    Ok(Prepared {
        config,
        _initramfs: file,
    })
}

/// The modules that the guest has to load: those that were asked for, and those without which it finds
/// no disk or cannot mount it, as far as the kernel is known not to have them built in.
fn load_list(
    kernel: &Path,
    command: &GuestCommand,
    wanted: &[String],
    root: Option<&RootDisk>,
) -> Result<Vec<modules::Module>, Error> {
    let tree = match ModuleTree::of_kernel(kernel) {
        Ok(tree) => tree,
        // A kernel alone can do as long as nothing is asked of it.
        Err(_) if command.modules.is_empty() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut names = Vec::new();
    if tree.must_load("nvme") {
        names.push("nvme".to_owned());
    }
    let implied = |name: &String| root.is_some_and(|root| root.file_system == *name);
    let skipped = |name: &&String| implied(name) && !tree.must_load(name);
    names.extend(wanted.iter().filter(|name| !skipped(name)).cloned());
    Ok(tree.with_dependencies(&names)?)
}

/// The archive as a file in memory, if a guest with so much RAM can have it.
fn in_memory(initramfs: &Initramfs, memory: u64) -> Result<OwnedFd, Error> {
    let size = initramfs.size()?;
    if size > memory {
        return Err(Error::TooLarge { size, memory });
    }
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let made = rustix::fs::memfd_create("initramfs", flags);
    let file = fs::File::from(made.map_err(|error| Error::Archive(error.into()))?);
    let mut out = BufWriter::with_capacity(1 << 18, file);
    initramfs.write(&mut out)?;
    out.flush().map_err(Error::Archive)?;
    let file = out.into_inner();
    Ok(file
        .map_err(|error| Error::Archive(error.into_error()))?
        .into())
}

/// What is behind berth's own words of the kernel's command line. Linux passes words that it does not know
/// on to the first process, those with an equals sign as its environment.
fn boot_words(config: &RunConfig) -> String {
    // Each letter on the hidden console would cost an exit.
    let quiet = if config.verbosity == 0 { "quiet " } else { "" };
    let append = &config.append;
    let libraries = initramfs::LIBRARIES;
    // What is behind " -- " is for the first process.
    format!("{quiet}rdinit={INIT} LD_LIBRARY_PATH={libraries} {append}")
}

/// The program `name` in the directories of `PATH` and those for system administration, where many of
/// the commands for disks are.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .filter(|directory| directory.starts_with('/') && !name.is_empty())
        .map(|directory| Path::new(directory).join(name))
        .find(|path| fs::metadata(path).is_ok_and(|found| is_executable(&found)))
}

/// Opens a regular file to read; anything else could keep whoever opens it waiting.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    fs::File::open(path)
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_the_command_or_tell_that_there_is_none() {
        for (reason, expected) in [
            (ExitReason::Command(0), 0),
            (ExitReason::Command(137), 137),
            (ExitReason::PowerOff, 255),
            (ExitReason::Reset, 255),
            (ExitReason::Crash("x".into()), 255),
            (ExitReason::Panic, 255),
            (ExitReason::Quit, 255),
            (ExitReason::Signal(libc::SIGINT), 130),
            (ExitReason::Failure("x".into()), 1),
        ] {
            assert_eq!(status(&reason), expected, "{reason}");
        }
    }

    #[test]
    fn what_the_guest_cannot_hold_is_not_copied() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 30).unwrap();
        let mut initramfs = Initramfs::new(&std::env::current_exe().unwrap()).unwrap();
        let with = With {
            from: file.path().to_owned(),
            to: Some("/large".into()),
        };
        initramfs.with(&with, false).unwrap();
        let error = in_memory(&initramfs, 512 << 20).unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { size, .. } if size > 3 << 30),
            "{error}"
        );
    }

    #[test]
    fn guest_paths_are_absolute() {
        for (argument, from, to) in [
            ("a", "a", None),
            ("a=b", "a=b", None),
            ("a=/b", "a", Some("/b")),
            ("/a=1=/b", "/a=1", Some("/b")),
        ] {
            let with = With::parse(argument);
            assert_eq!((with.from.to_str(), with.to.as_deref()), (Some(from), to));
        }
    }

    #[test]
    fn programs_for_administration_are_found_without_their_path() {
        let found = on_path("sh").unwrap();
        assert!(found.is_absolute() && found.ends_with("sh"), "{found:?}");
        assert_eq!(on_path(""), None);
        assert_eq!(on_path("no-such-program"), None);
    }
}
