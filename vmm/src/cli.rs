//! The command line: what may be typed, and the plain data that comes of it.

mod command;
mod complete;
mod files;
mod fio;
mod machine_file;
mod normalize;
mod pages;
mod qemu;
mod resolved;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use argh::{ArgsInfo, EarlyExit, FromArgs};
use devices::nvme::MemoryLock;

use self::machine_file::MachineFile;
use self::normalize::{Normalized, normalize};
use crate::affinity;
use crate::control::client::{Action, CtlConfig, Output};
use crate::control::{ControlError, pipe};
use crate::fio::FioConfig;
use crate::grammar::{SpecError, did_you_mean, format_size, parse_number, parse_size};
use crate::guest_command::{self, GuestCommand};
use crate::spec::{DeviceSpec, DiskSpec, DriveSpec, Drives, Form, NamespaceSpec, Parsed as Spec};
use crate::trace::command::{TraceAction, TraceConfig, default_out};

const MIN_MEMORY: u64 = 64 << 20;
const MAX_MEMORY: u64 = 1 << 40;
const MEMORY_UNIT: u64 = 2 << 20;
const DEFAULT_MEMORY: u64 = 512 << 20;
const MAX_CPUS: u8 = 64;
const MAX_IO_THREADS: u32 = 64;
const DEFAULT_TIMEOUT: u64 = 10;
const MAX_TIMEOUT: u64 = 3600;

/// Everything `berth run` was asked for: checked, plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    /// Kernel image; a readable regular file when it was checked.
    pub kernel: PathBuf,
    /// Initial RAM disk, likewise.
    pub initrd: Option<PathBuf>,
    /// The guest's command line, empty unless given.
    pub append: String,
    /// Guest memory in bytes: 64 MiB to 1 TiB, a multiple of 2 MiB.
    pub memory: u64,
    /// vCPUs, 1 to 64.
    pub cpus: u8,
    /// `--disk`, in order: namespaces without a bus, for the default subsystem.
    pub disks: Vec<NamespaceSpec>,
    /// `--object`, in order.
    pub objects: Vec<DeviceSpec>,
    /// `--device`, in order. No two of these, of `objects` and of `disks` have the same id.
    pub devices: Vec<DeviceSpec>,
    /// `--drive`, for devices that come later; in `objects` and `devices` their files stand already.
    pub drives: Drives,
    /// What of the arguments was left out, and why.
    pub warnings: Vec<String>,
    /// Base path of the FIFO pair.
    pub control_pipe: Option<PathBuf>,
    /// Path of the control socket.
    pub control_socket: Option<PathBuf>,
    /// I/O threads of the machine, 1 to 64.
    pub io_threads: u32,
    /// Whether guest memory is registered with the I/O threads' rings, and so stays in memory.
    pub memory_lock: MemoryLock,
    /// CPUs that these are bound to in turn; none if they run anywhere.
    pub io_affinity: Vec<usize>,
    /// Where COM2's output goes: a file to be made or truncated, or an existing FIFO or device.
    pub com2: Option<PathBuf>,
    /// What runs in the guest; nothing if the guest is left to itself.
    pub command: Option<GuestCommand>,
    /// Where NVMe commands are written to: a file to be made or emptied, or a FIFO that is read.
    pub trace: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbosity: u8,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Boot a guest.
    Run(Box<RunConfig>),
    /// Talk to a running berth.
    Ctl(CtlConfig),
    /// Read a trace.
    Trace(TraceConfig),
    /// Run fio's jobs.
    Fio(Box<FioConfig>),
    /// Print this on stdout and exit with status 0: help, version.
    Print(String),
    /// No command was given.
    Nothing,
}

/// Why a command line cannot be followed. Starts with the argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The command line is wrong.
    #[error("{argument}: {problem}")]
    Usage {
        /// The argument as given.
        argument: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The command line is right, but the host is not as it says.
    #[error("{argument}: {problem}")]
    Environment {
        /// The argument as given.
        argument: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl CliError {
    /// The command line is wrong: the argument, and what would be right.
    pub fn usage(argument: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Usage {
            argument: argument.into(),
            problem: problem.into(),
        }
    }

    fn environment(argument: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Environment {
            argument: argument.into(),
            problem: problem.into(),
        }
    }

    fn spec(option: &str, error: &SpecError) -> Self {
        Self::usage(
            format!("{option} {}", error.argument),
            error.problem.to_string(),
        )
    }

    /// Names the machine description as well, if that is where the argument is from.
    fn with_source(mut self, file: &Path, machine: &MachineFile) -> Self {
        let (Self::Usage { argument, .. } | Self::Environment { argument, .. }) = &mut self;
        if machine.has(argument) {
            *argument = format!("{}: {argument}", file.display());
        }
        self
    }

    /// The exit status: 35 for usage, 1 for the environment.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage { .. } => 35,
            Self::Environment { .. } => 1,
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        Self::Environment {
            argument: error.argument,
            problem: error.problem,
        }
    }
}

/// Boots Linux guests on KVM, with NVMe built in.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    name = "berth",
    help_triggers("-h", "--help"),
    example = "\
Boot a kernel from a disk:
  berth run --kernel bzImage --append root=/dev/nvme0n1 --disk root.img
Ask it how it is, from elsewhere, if it was given --control-socket /tmp/berth:
  berth ctl /tmp/berth info status"
)]
struct BerthArgs {
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
#[allow(clippy::large_enum_variant)] // There is one of it, for a moment.
enum Subcommand {
    Run(RunArgs),
    Ctl(CtlArgs),
    Trace(TraceArgs),
    Fio(fio::FioArgs),
    Completion(CompletionArgs),
    Man(ManArgs),
}

/// The names of the subcommands.
const COMMANDS: [&str; 6] = ["run", "ctl", "fio", "trace", "completion", "man"];

/// Boot a guest and stay until it ends. Its console is on stdin and stdout; Ctrl-a x leaves.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    usage = "--kernel FILE [OPTION...] [-- COMMAND [ARG...]]",
    note = "\
With a COMMAND, berth runs that in the guest: its output, its input and its exit status are those of
berth, and the guest's console is hidden (-v shows it on stderr; its end is shown if the guest dies).
The guest is busybox and what the COMMAND's program needs, or has the root that --rootfs names. A
terminal stays as it is: Ctrl-c ends berth, Ctrl-d the input. Without --kernel the host's own kernel
is used.

Every device argument is DRIVER,key=value,flag (a flag is key=on, \",,\" is a comma in a value). Sizes
take K, M, G and T. The drivers and their properties:
  nvme-subsys  a subsystem: id (must be given), nqn, shared=on|off
  nvme         a controller: id, subsys (id of a subsystem), addr (PCI slot), serial, model, firmware,
               max_ioqpairs (1-128), mqes (1-65535), mdts (1-9), io-threads (1-64), io-affinity (CPUs
               for these threads in turn, such as 2-3:5), poll-us (0-1000; 50), cntlid (0-65519);
               with a disk of its own: file (or drive), memory, null, cache, ro, logical_block_size,
               format
  nvme-ns      a namespace: id, bus (a subsystem, or a controller for its subsystem), nsid (1-1024),
               file=PATH, memory=SIZE or null=SIZE, cache (writeback, none, writethrough, directsync,
               unsafe), ro, logical_block_size (512, 4096), shared=on|off, detached, ctrl (the one
               controller, with shared=off), uuid, eui64, nguid, format=raw (for a file that looks
               like another format)",
    example = "\
berth run --kernel bzImage --initrd initrd.img -m 1G --cpus 2 --disk a.img
berth run --disk a.img -- nvme list
berth run --with job.fio --disk a.img -- fio job.fio
berth run --kernel vmlinux --device nvme-subsys,id=s --device nvme,id=c0,subsys=s \\
    --device nvme,id=c1,subsys=s --device nvme-ns,bus=s,file=a.img --control-pipe /tmp/berth",
    error_code(0, "the guest powered off"),
    error_code(1, "berth failed: a file, KVM, memory"),
    error_code(32, "the guest reset"),
    error_code(33, "the guest crashed (triple fault)"),
    error_code(34, "the guest's kernel panicked"),
    error_code(35, "the command line is wrong"),
    error_code(126, "the COMMAND cannot be executed"),
    error_code(127, "the COMMAND is not found"),
    error_code(255, "the guest ended before its COMMAND did")
)]
#[allow(rustdoc::broken_intra_doc_links)] // These are help texts: brackets are for the user.
struct RunArgs {
    /// machine description in TOML: keys named as these options are, and tables [[device]],
    /// [[disk]], [[object]], [[drive]]; options given beside it win, or come behind
    #[argh(option, arg_name = "FILE")]
    machine: Option<String>,
    /// print the machine as it is understood, as a description for --machine, and boot nothing
    #[argh(switch)]
    dry_run: bool,
    /// kernel: a bzImage, or an ELF with a PVH entry
    #[argh(option, arg_name = "FILE")]
    kernel: Option<String>,
    /// initial RAM disk
    #[argh(option, arg_name = "FILE")]
    initrd: Option<String>,
    /// command line of the guest's kernel, put behind "console=ttyS0 panic=-1"
    #[argh(option, arg_name = "TEXT")]
    append: Option<String>,
    /// guest memory, 64M to 1T, a multiple of 2M; a number alone means MiB (512M)
    #[argh(option, short = 'm', arg_name = "SIZE")]
    memory: Option<String>,
    /// vCPUs, 1 to 64 (1)
    #[argh(option, arg_name = "NUMBER")]
    cpus: Option<String>,
    /// namespace on the default controller: FILE[,key=value...], keys as for nvme-ns; repeatable
    #[argh(option, arg_name = "FILE")]
    disk: Vec<String>,
    /// device: DRIVER[,key=value...], see below; repeatable
    #[argh(option, arg_name = "DEVICE")]
    device: Vec<String>,
    /// subsystem or namespace in the form of QEMU's objects; means the same as --device; repeatable
    #[argh(option, arg_name = "OBJECT")]
    object: Vec<String>,
    /// raw image for a device with drive=ID: file=PATH,if=none,id=ID[,cache=...][,readonly=on];
    /// repeatable
    #[argh(option, arg_name = "DRIVE")]
    drive: Vec<String>,
    /// threads that do the guest's I/O, 1 to 64 (1)
    #[argh(option, arg_name = "NUMBER")]
    io_threads: Option<String>,
    /// mem-lock=on keeps guest memory in the host's memory, registered with io_uring: less work for
    /// each direct I/O (cache=none); mem-lock=off
    #[argh(option, arg_name = "POLICY")]
    overcommit: Option<String>,
    /// CPUs for these threads in turn, such as 2,3 or 4-7 (any)
    #[argh(option, arg_name = "CPUS")]
    io_affinity: Option<String>,
    /// write what the guest sends to COM2 into a file
    #[argh(option, arg_name = "FILE")]
    com2: Option<String>,
    /// what a COMMAND has as its root: the content of a directory, or an image, which it writes, with keys
    /// as for --disk
    #[argh(option, arg_name = "DIR|IMAGE")]
    rootfs: Option<String>,
    /// bring a file or directory along for a COMMAND, with its libraries: FILE[=GUESTPATH]; a relative
    /// FILE stands in its working directory; a program can be named alone; repeatable
    #[argh(option, arg_name = "FILE")]
    with: Vec<String>,
    /// load a module of the kernel, and those that it needs, before a COMMAND; repeatable
    #[argh(option, arg_name = "NAME")]
    module: Vec<String>,
    /// write every NVMe command and completion into a file or FIFO, a line of JSON each; "berth
    /// trace" reads them
    #[argh(option, arg_name = "FILE")]
    trace: Option<String>,
    /// take commands from the FIFO PATH.in, reply on PATH.out; made unless they are there
    #[argh(option, arg_name = "PATH")]
    control_pipe: Option<String>,
    /// take commands on a unix socket
    #[argh(option, arg_name = "PATH")]
    control_socket: Option<String>,
    /// log more on stderr; repeatable
    #[argh(switch, short = 'v')]
    verbose: u8,
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Send one command to a running berth and print its reply. PATH is what it was given as
/// --control-socket or --control-pipe; "berth ctl PATH help" lists the commands. One is berth ctl's
/// own: "watch [SECONDS]" prints a table of queues and I/O threads again and again.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "ctl",
    help_triggers("-h", "--help"),
    usage = "[--timeout SECONDS] [--json] PATH COMMAND...",
    example = "\
berth ctl /tmp/berth info qtree
berth ctl /tmp/berth info stats
berth ctl /tmp/berth watch",
    error_code(0, "the command was done"),
    error_code(1, "it was refused, nobody listens at PATH, or no reply came in time"),
    error_code(35, "the command line is wrong")
)]
#[allow(rustdoc::broken_intra_doc_links)] // These are help texts: brackets are for the user.
struct CtlArgs {
    /// limit for the reply, 1 to 3600 (10); what the command itself waits for is added
    #[argh(option, arg_name = "SECONDS")]
    timeout: Option<String>,
    /// print the reply as one line of JSON, as berth sends it: {"ok":true,"result":...}, or
    /// {"ok":false,"error":...} with status 1; with watch a line of counters each time
    #[argh(switch)]
    json: bool,
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Tell what a trace says that "berth run --trace FILE" wrote: "summary" prints latencies by opcode
/// and by queue, IOPS, depth, sizes and the slowest commands; "plot" draws them over time. FILE may
/// be "-", for standard input.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "trace",
    help_triggers("-h", "--help"),
    usage = "summary [--json] FILE | plot [--out FILE.html|FILE.svg] FILE",
    example = "\
berth trace summary /tmp/trace
berth trace plot /tmp/trace --out trace.html",
    error_code(0, "the trace was read"),
    error_code(1, "it cannot be read, or is no trace"),
    error_code(35, "the command line is wrong")
)]
struct TraceArgs {
    /// print the summary as JSON
    #[argh(switch)]
    json: bool,
    /// where the picture goes: a page, or what ends in .svg; "-" is standard output (FILE.html)
    #[argh(option, arg_name = "FILE")]
    out: Option<String>,
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Print completions of berth's commands and options for a shell: bash, fish, nushell or zsh.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "completion",
    help_triggers("-h", "--help"),
    usage = "SHELL",
    example = "berth completion bash > ~/.local/share/bash-completion/completions/berth"
)]
struct CompletionArgs {
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Print the manual page.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "man",
    help_triggers("-h", "--help"),
    usage = "",
    example = "berth man | man -l -"
)]
struct ManArgs {
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Parses the arguments, without the program's name.
///
/// # Errors
/// The command line is wrong, or a file that it names is not as it should be.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let args = args.into_iter().map(|arg| {
        let lossy = |arg: OsString| CliError::usage(arg.to_string_lossy(), "is not UTF-8");
        arg.into_string().map_err(lossy)
    });
    let args: Vec<String> = args.collect::<Result<_, _>>()?;
    let Some((first, rest)) = args.split_first() else {
        return Ok(Invocation::Nothing);
    };
    let parsed = match first.as_str() {
        "help" => return help(rest),
        // For the scripts of `berth completion` only.
        "complete" => return Ok(Invocation::Print(complete::text(rest))),
        "ctl" => parsed("ctl", 1, rest)?,
        "fio" => parsed("fio", usize::MAX, &fio::split_host(rest))?,
        name if COMMANDS.contains(&name) => parsed(name, usize::MAX, rest)?,
        option if option.starts_with('-') => parsed("", usize::MAX, &args)?,
        other => return Err(unknown_command(other)),
    };
    let (args, command) = match parsed {
        Parsed::Help(text) => return Ok(Invocation::Print(text)),
        Parsed::Args(args, command) => (*args, command),
    };
    match args.command {
        _ if args.version => Ok(Invocation::Print(
            concat!("berth ", env!("CARGO_PKG_VERSION"), "\n").into(),
        )),
        Some(Subcommand::Run(args)) => run_config(args, command),
        Some(Subcommand::Ctl(args)) => ctl_config(&args),
        Some(Subcommand::Trace(args)) => trace_config(args),
        Some(Subcommand::Fio(args)) => fio::config(args, rest),
        Some(Subcommand::Completion(args)) => pages::completion(&args.words).map(Invocation::Print),
        Some(Subcommand::Man(args)) => match args.words.first() {
            Some(extra) => Err(CliError::usage(extra, "unexpected argument of berth man")),
            None => pages::manual().map(Invocation::Print),
        },
        None => Ok(Invocation::Nothing),
    }
}

/// Prints on stdout. That nobody may be left to read it (`berth --help | head -1`) is no failure.
///
/// # Errors
/// It cannot be stored, on a full disk for example.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn unknown_command(given: &str) -> CliError {
    if Path::new(given).is_file() {
        let problem =
            "is a file, not a command; a kernel is booted with \"berth run --kernel FILE\"";
        return CliError::usage(given, problem);
    }
    let known: Vec<&str> = COMMANDS
        .into_iter()
        .chain(["--help", "--version"])
        .collect();
    let near = did_you_mean(given, &known);
    let commands = COMMANDS.join(", ");
    CliError::usage(
        given,
        format!("unknown command{near}; known: {commands}; see \"berth --help\""),
    )
}

fn help(topics: &[String]) -> Result<Invocation, CliError> {
    let topic = topics.first().map_or("", String::as_str);
    if !topic.is_empty() && !COMMANDS.contains(&topic) {
        return Err(unknown_command(topic));
    }
    match parsed(topic, usize::MAX, &["--help".to_owned()])? {
        Parsed::Help(text) => Ok(Invocation::Print(text)),
        Parsed::Args(..) => Ok(Invocation::Nothing),
    }
}

enum Parsed {
    /// And the guest's command, if there is one.
    Args(Box<BerthArgs>, Option<Vec<String>>),
    Help(String),
}

/// Parses the arguments of one subcommand, or berth's own if `name` is empty; from word `verbatim` on
/// nothing is an option.
fn parsed(name: &str, verbatim: usize, args: &[String]) -> Result<Parsed, CliError> {
    let top = BerthArgs::get_args_info();
    let info = top
        .commands
        .iter()
        .find(|it| it.name == name)
        .map_or(&top, |it| &it.command);
    let Normalized {
        options,
        words,
        mut behind,
    } = normalize(info, verbatim, args)?;
    let command = match name {
        "run" => behind.take(),
        _ => None,
    };
    let mut others = words.iter().chain(behind.iter().flatten());
    if let ("", Some(word)) = (name, others.next()) {
        return Err(CliError::usage(
            word,
            "unexpected argument; see \"berth --help\"",
        ));
    }
    let mut args: Vec<&str> = Vec::new();
    if !name.is_empty() {
        args.push(name);
    }
    args.extend(options.iter().map(String::as_str));
    args.push("--");
    args.extend(
        words
            .iter()
            .chain(behind.iter().flatten())
            .map(String::as_str),
    );
    match BerthArgs::from_args(&["berth"], &args) {
        Ok(parsed) => Ok(Parsed::Args(Box::new(parsed), command)),
        Err(EarlyExit {
            output,
            status: Ok(()),
        }) => Ok(Parsed::Help(output)),
        // Not reached while normalize refuses all that argh refuses.
        Err(EarlyExit { output, .. }) => Err(CliError::usage(name, output.trim())),
    }
}

fn run_config(args: RunArgs, command: Option<Vec<String>>) -> Result<Invocation, CliError> {
    let Some(file) = optional_path("--machine", args.machine.clone())? else {
        return configure(args, command);
    };
    let machine = MachineFile::read(&file)?;
    let one = |name, given| machine.single(name, given);
    let many = |name, given| machine.repeated(name, given);
    let merged = RunArgs {
        kernel: one("kernel", args.kernel),
        initrd: one("initrd", args.initrd),
        append: one("append", args.append),
        memory: one("memory", args.memory),
        cpus: one("cpus", args.cpus),
        disk: many("disk", args.disk),
        device: many("device", args.device),
        object: many("object", args.object),
        drive: many("drive", args.drive),
        io_threads: one("io-threads", args.io_threads),
        io_affinity: one("io-affinity", args.io_affinity),
        overcommit: one("overcommit", args.overcommit),
        com2: one("com2", args.com2),
        rootfs: one("rootfs", args.rootfs),
        with: many("with", args.with),
        module: many("module", args.module),
        trace: one("trace", args.trace),
        control_pipe: one("control-pipe", args.control_pipe),
        control_socket: one("control-socket", args.control_socket),
        ..args
    };
    let described = || machine.repeated("command", Vec::new());
    let command = command.or_else(|| Some(described()).filter(|words| !words.is_empty()));
    configure(merged, command).map_err(|error| error.with_source(&file, &machine))
}

fn configure(mut args: RunArgs, command: Option<Vec<String>>) -> Result<Invocation, CliError> {
    if let Some(extra) = args.words.first() {
        return Err(extra_argument(extra));
    }
    let mut warnings = Vec::new();
    let command = command::from_args(&args, command, &mut warnings)?;
    let kernel = match args.kernel.take() {
        Some(kernel) => path("--kernel", kernel)?,
        None => default_kernel(command.is_some())?,
    };
    let drives = drives(&args.drive, &mut warnings)?;
    let w = &mut warnings;
    let mut disks = parse_each("--disk", &args.disk, w, NamespaceSpec::from_disk)?;
    let form = |form| move |argument: &str| DeviceSpec::parse(argument, form);
    let mut objects = parse_each("--object", &args.object, w, form(Form::Object))?;
    let mut devices = parse_each("--device", &args.device, w, form(Form::Device))?;
    disks.iter_mut().for_each(|spec| spec.disk.resolve(&drives));
    for spec in objects.iter_mut().chain(&mut devices) {
        spec.resolve(&drives);
    }
    let mut config = RunConfig {
        kernel,
        initrd: optional_path("--initrd", args.initrd)?,
        append: args.append.unwrap_or_default(),
        memory: args
            .memory
            .map_or(Ok(DEFAULT_MEMORY), |value| memory(&value))?,
        cpus: number("--cpus", args.cpus.as_deref(), 1, MAX_CPUS, 1)?,
        disks,
        objects,
        devices,
        drives,
        warnings,
        control_pipe: optional_path("--control-pipe", args.control_pipe)?,
        control_socket: optional_path("--control-socket", args.control_socket)?,
        io_threads: number(
            "--io-threads",
            args.io_threads.as_deref(),
            1,
            MAX_IO_THREADS,
            1,
        )?,
        memory_lock: memory_lock(args.overcommit.as_deref())?,
        io_affinity: args
            .io_affinity
            .map_or(Ok(Vec::new()), |list| io_affinity(&list))?,
        com2: optional_path("--com2", args.com2)?,
        command,
        trace: trace_path(args.trace)?,
        verbosity: args.verbose,
    };
    let mut arguments = Vec::new();
    for (option, given) in [
        ("--disk", &args.disk),
        ("--object", &args.object),
        ("--device", &args.device),
    ] {
        arguments.extend(given.iter().map(|argument| format!("{option} {argument}")));
    }
    check_ids(&config, &arguments)?;
    check_control_paths(&config)?;
    let root = other_disks_root(&config.append);
    config.warnings.extend(root);
    files::check(&config, &arguments)?;
    Ok(if args.dry_run {
        Invocation::Print(resolved::text(&config))
    } else {
        Invocation::Run(Box::new(config))
    })
}

/// A command runs on the host's own kernel; a guest that is left to itself needs one that fits it.
fn default_kernel(command: bool) -> Result<PathBuf, CliError> {
    if !command {
        let problem = "is missing; give a bzImage or an ELF kernel, --kernel FILE";
        return Err(CliError::usage("--kernel", problem));
    }
    guest_command::kernel::of_host().map_err(|problem| CliError::usage("--kernel", problem))
}

fn ctl_config(args: &CtlArgs) -> Result<Invocation, CliError> {
    let missing = |what, example| {
        CliError::usage(
            what,
            format!("is missing; for example \"berth ctl {example}\""),
        )
    };
    let Some((base, command)) = args.words.split_first() else {
        return Err(missing("PATH", "/tmp/berth info status"));
    };
    let command = command.join(" ");
    if command.trim().is_empty() {
        return Err(missing("COMMAND", &format!("{base} help")));
    }
    if command.contains(['\n', '\0']) {
        return Err(CliError::usage("COMMAND", "must be one line, without NUL"));
    }
    let action = match args.words.as_slice() {
        [_, watch, rest @ ..] if watch == "watch" => Action::Watch(interval(rest)?),
        _ => Action::Command(command),
    };
    let timeout = args.timeout.as_deref();
    Ok(Invocation::Ctl(CtlConfig {
        path: path("PATH", base.clone())?,
        action,
        timeout: Duration::from_secs(number(
            "--timeout",
            timeout,
            1,
            MAX_TIMEOUT,
            DEFAULT_TIMEOUT,
        )?),
        output: if args.json {
            Output::Json
        } else {
            Output::Text
        },
    }))
}

fn trace_config(args: TraceArgs) -> Result<Invocation, CliError> {
    let [what, file] = args.words.as_slice() else {
        let problem = match args.words.get(2) {
            Some(extra) => return Err(CliError::usage(extra, "unexpected argument")),
            None => {
                "name what to make of it and the trace; for example \"berth trace summary FILE\""
            }
        };
        return Err(CliError::usage("trace", problem));
    };
    let file = Some(path("FILE", file.clone())?).filter(|file| file.as_os_str() != "-");
    let action = match what.as_str() {
        "summary" if args.out.is_some() => {
            return Err(CliError::usage("--out", "belongs to plot"));
        }
        "plot" if args.json => return Err(CliError::usage("--json", "belongs to summary")),
        "summary" => TraceAction::Summary { json: args.json },
        "plot" => TraceAction::Plot {
            out: match args.out {
                Some(out) => Some(path("--out", out)?).filter(|out| out.as_os_str() != "-"),
                None => file.as_deref().map(default_out),
            },
        },
        other => {
            let near = did_you_mean(other, &["summary", "plot"]);
            let problem = format!("unknown{near}; known: summary, plot");
            return Err(CliError::usage(format!("trace {other}"), problem));
        }
    };
    Ok(Invocation::Trace(TraceConfig { file, action }))
}

/// What follows `watch`.
fn interval(words: &[String]) -> Result<Duration, CliError> {
    let seconds = words.first().map(String::as_str);
    if let Some(extra) = words.get(1) {
        return Err(CliError::usage(
            extra,
            "unexpected argument; watch takes an interval in seconds",
        ));
    }
    number("watch", seconds, 1, MAX_TIMEOUT, 1).map(Duration::from_secs)
}

fn extra_argument(extra: &str) -> CliError {
    CliError::usage(
        extra,
        "unexpected argument; a kernel is given with --kernel, an image with --disk, a command behind \"--\"",
    )
}

fn path(option: &str, value: String) -> Result<PathBuf, CliError> {
    if value.is_empty() {
        return Err(CliError::usage(option, "the path is empty"));
    }
    Ok(PathBuf::from(value))
}

fn optional_path(option: &str, value: Option<String>) -> Result<Option<PathBuf>, CliError> {
    value.map(|value| path(option, value)).transpose()
}

/// Parses `--trace`.
fn trace_path(value: Option<String>) -> Result<Option<PathBuf>, CliError> {
    if value.as_deref() == Some("-") {
        let problem = "standard output is the guest's console; give a file, or a FIFO that is read";
        return Err(CliError::usage("--trace -", problem));
    }
    optional_path("--trace", value)
}

/// Parses a number from `low` to `high` in a type that holds `high`.
fn number<T>(option: &str, value: Option<&str>, low: T, high: T, default: T) -> Result<T, CliError>
where
    T: Into<u64> + TryFrom<u64>,
{
    let Some(value) = value else {
        return Ok(default);
    };
    parse_number(value, low.into()..=high.into())
        // The range has just been checked, so the conversion cannot fail.
        .map(|number| T::try_from(number).unwrap_or(default))
        .map_err(|problem| CliError::usage(format!("{option} {value}"), problem))
}

/// Parses `--overcommit`, named and written as QEMU's.
fn memory_lock(value: Option<&str>) -> Result<MemoryLock, CliError> {
    match value {
        None | Some("mem-lock=off") => Ok(MemoryLock::Off),
        Some("mem-lock=on" | "mem-lock") => Ok(MemoryLock::On),
        Some(value) => Err(CliError::usage(
            format!("--overcommit {value}"),
            "must be mem-lock=on or mem-lock=off",
        )),
    }
}

/// Parses the CPUs of the I/O threads.
fn io_affinity(list: &str) -> Result<Vec<usize>, CliError> {
    affinity::parse(list)
        .map_err(|problem| CliError::usage(format!("--io-affinity {list}"), problem))
}

/// Parses the size of guest memory. A number alone means MiB, as in QEMU.
fn memory(value: &str) -> Result<u64, CliError> {
    let error = |problem: String| CliError::usage(format!("--memory {value}"), problem);
    let alone = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let with_unit = if alone {
        format!("{value}M")
    } else {
        value.to_owned()
    };
    let bytes = parse_size(&with_unit).map_err(error)?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        let (low, high) = (format_size(MIN_MEMORY), format_size(MAX_MEMORY));
        return Err(error(format!("must be from {low} to {high}")));
    }
    if !bytes.is_multiple_of(MEMORY_UNIT) {
        return Err(error(format!(
            "must be a multiple of {}",
            format_size(MEMORY_UNIT)
        )));
    }
    Ok(bytes)
}

/// Parses the values of a repeatable option. What is left out of them is added to `warnings`.
fn parse_each<T>(
    option: &str,
    arguments: &[String],
    warnings: &mut Vec<String>,
    parse: impl Fn(&str) -> Result<Spec<T>, SpecError>,
) -> Result<Vec<T>, CliError> {
    let mut specs = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let parsed = parse(argument).map_err(|error| CliError::spec(option, &error))?;
        let ignored = parsed.ignored.iter();
        warnings.extend(ignored.map(|why| format!("{option} {argument}: {why}")));
        specs.push(parsed.spec);
    }
    Ok(specs)
}

fn drives(arguments: &[String], warnings: &mut Vec<String>) -> Result<Drives, CliError> {
    let mut drives = Drives::new();
    let specs = parse_each("--drive", arguments, warnings, DriveSpec::parse)?;
    for (spec, argument) in specs.into_iter().zip(arguments) {
        let id = spec.id.clone();
        if drives.insert(id.clone(), spec).is_some() {
            let problem = format!("the id {id} is taken by another --drive");
            return Err(CliError::usage(format!("--drive {argument}"), problem));
        }
    }
    Ok(drives)
}

impl RunConfig {
    /// Everything with an id, in the order `--disk`, `--object`, `--device`.
    fn devices_by_option(
        &self,
    ) -> impl Iterator<Item = (&'static str, Option<&str>, Option<&DiskSpec>)> {
        let disks = self.disks.iter();
        let disks = disks.map(|spec| ("--disk", spec.id.as_deref(), Some(&spec.disk)));
        let objects = self.objects.iter().map(|spec| ("--object", spec));
        let devices = self.devices.iter().map(|spec| ("--device", spec));
        let others = objects.chain(devices);
        disks.chain(others.map(|(option, spec)| (option, spec.id(), spec.disk())))
    }
}

/// Refuses an id that two devices have.
fn check_ids(config: &RunConfig, arguments: &[String]) -> Result<(), CliError> {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for ((_, id, _), argument) in config.devices_by_option().zip(arguments) {
        let Some(id) = id else { continue };
        if let Some(other) = seen.get(id) {
            return Err(CliError::usage(
                argument,
                format!("the id {id} is taken by {other}"),
            ));
        }
        seen.insert(id, argument);
    }
    Ok(())
}

/// A remark on a root file system that is on a disk of another kind than the guest has.
fn other_disks_root(append: &str) -> Option<String> {
    let names = ["/dev/vd", "/dev/sd", "/dev/hd", "/dev/xvd"];
    append.split_whitespace().find_map(|word| {
        let device = word.strip_prefix("root=")?;
        let rest = names.iter().find_map(|name| device.strip_prefix(name))?;
        let mut rest = rest.chars();
        let letter = rest.next().filter(char::is_ascii_lowercase)?;
        let number = u32::from(letter) - u32::from('a') + 1;
        let partition = rest.as_str();
        let p = if partition.is_empty() { "" } else { "p" };
        Some(format!(
            "--append {word}: the guest's disks are NVMe; root=/dev/nvme0n{number}{p}{partition}, \
             probably"
        ))
    })
}

/// Refuses a socket in the place of a FIFO of the pair.
fn check_control_paths(config: &RunConfig) -> Result<(), CliError> {
    let (Some(base), Some(socket)) = (&config.control_pipe, &config.control_socket) else {
        return Ok(());
    };
    let (input, output) = pipe::paths(base);
    if *socket == input || *socket == output {
        let argument = format!("--control-socket {}", socket.display());
        let problem = format!("--control-pipe {} has a FIFO there", base.display());
        return Err(CliError::usage(argument, problem));
    }
    Ok(())
}
