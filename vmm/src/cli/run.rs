//! The command line of `berth run`.

mod command;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use devices::nvme::MemoryLock;

use super::machine_file::MachineFile;
use super::values::{
    drives, io_affinity, memory, memory_lock, number, optional_path, parse_each, path,
};
use super::{CliError, Invocation, files, resolved};
use crate::control::pipe;
use crate::guest_command::{self, GuestCommand};
use crate::spec::{DeviceSpec, DiskSpec, Drives, Form, NamespaceSpec};

const DEFAULT_MEMORY: u64 = 512 << 20;
const MAX_CPUS: u8 = 64;
const MAX_IO_THREADS: u32 = 64;

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

impl RunConfig {
    /// Everything with an id, in the order `--disk`, `--object`, `--device`.
    pub fn devices_by_option(
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
pub struct RunArgs {
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

/// Checks everything that can be checked before anything starts.
///
/// # Errors
/// An option is wrong, or a file that it names.
pub fn config(args: RunArgs, command: Option<Vec<String>>) -> Result<Invocation, CliError> {
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

fn extra_argument(extra: &str) -> CliError {
    CliError::usage(
        extra,
        "unexpected argument; a kernel is given with --kernel, an image with --disk, a command behind \"--\"",
    )
}

/// Parses `--trace`.
fn trace_path(value: Option<String>) -> Result<Option<PathBuf>, CliError> {
    if value.as_deref() == Some("-") {
        let problem = "standard output is the guest's console; give a file, or a FIFO that is read";
        return Err(CliError::usage("--trace -", problem));
    }
    optional_path("--trace", value)
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
