//! A machine, put together in one direction: memory, KVM, buses, devices, kernel, vCPUs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use boot::layout;
use devices::bus::{Bus, BusError};
use devices::legacy::MachineEvents;
use devices::legacy::acpi::{self, AcpiRegisters};
use devices::legacy::i8042::{self, I8042};
use devices::legacy::pci_hotplug::{self, PciHotplug};
use devices::legacy::pvpanic::{self, PvPanic};
use devices::legacy::serial::{self, SerialPort};
use devices::nvme::{IoThreads, IoThreadsConfig};
use devices::pci::access::{self, ConfigPorts, Ecam};
use devices::pci::root::{PciRoot, PciWindows};
use devices::ram::GuestRam;

use crate::cli::RunConfig;
use crate::console::{Output, PanicWatch, Standard};
use crate::cpuid::Template;
use crate::event_loop::EventLoop;
use crate::exit::{ExitReason, Outcome, USAGE};
use crate::guest_command::{Session, input};
use crate::host::{SOFTWARE_KVM, kvm_is_software};
use crate::interrupt::{Allocator, Interrupts};
use crate::kvm::{self, KvmError};
use crate::live::SlotEvents;
use crate::memory::{self, MemoryError};
use crate::registry::{DeviceError, Parts, Registry};
use crate::startup::{Phase, Startup, Stopwatch};
use crate::stderr;
use crate::vcpu::{Shared, StringPort, Threads, Vcpu};

/// Interrupt of COM1, a GSI.
const COM1_IRQ: u32 = 4;
/// Interrupt of COM2.
const COM2_IRQ: u32 = 3;
/// Interrupt of the generic event device.
const EVENT_IRQ: u32 = 10;
/// What the guest's command line begins with: what the user gives comes later and wins.
const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";
/// How long vCPUs may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel or what goes with it.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The file for COM2.
    #[error("--com2 {}: {source}", path.display())]
    Com2 {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A device of the command line.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Two devices at one place.
    #[error("devices collide: {0}")]
    Bus(#[from] BusError),
    /// The host refused something.
    #[error("cannot make {what}: {source}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl MachineError {
    /// [`USAGE`] if the command line is wrong whatever the host is like, else 1.
    pub fn status(&self) -> u8 {
        match self {
            Self::Memory(MemoryError::TooSmall(_) | MemoryError::Unaligned(_))
            | Self::Boot(boot::Error::Cmdline(_) | boot::Error::MemorySize { .. }) => USAGE,
            Self::Device(error) => error.status(),
            _ => 1,
        }
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// What the guest asks of its machine ends the run.
struct Requests(Arc<Outcome>);

impl MachineEvents for Requests {
    fn power_off(&self) {
        self.0.end(ExitReason::PowerOff);
    }

    fn reset(&self) {
        self.0.end(ExitReason::Reset);
    }

    fn panicked(&self) {
        self.0.end(ExitReason::Panic);
    }
}

/// A machine that is ready to start.
pub struct Machine {
    /// Where the end of the run is reported.
    pub outcome: Arc<Outcome>,
    /// The console.
    pub com1: Arc<SerialPort>,
    /// The result channel.
    pub com2: Arc<SerialPort>,
    /// What the guest's command has here, if there is one.
    pub session: Option<Session>,
    /// Power button.
    pub acpi: Arc<AcpiRegisters>,
    /// Tells the guest of controllers that come and go.
    pub hotplug: Arc<PciHotplug>,
    /// What the guest says to that.
    pub slots: Arc<SlotEvents>,
    /// What devices hold of KVM.
    pub interrupts: Arc<Interrupts>,
    shared: Shared,
    vcpus: Vec<Vcpu>,
    outputs: Vec<Output>,
}

impl Machine {
    /// Makes the machine that `config` describes, with its kernel loaded, and its devices, whose admin
    /// work is done in `events`; `watch` is told of each part that is done.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn new(
        config: &RunConfig,
        events: &Rc<EventLoop>,
        watch: &mut Stopwatch,
    ) -> Result<(Self, Registry), MachineError> {
        // What is wrong with the kernel is told whatever the host is like.
        boot::check(&config.kernel, config.memory)?;
        let ram = memory::create(&layout::ram_ranges(config.memory))?;
        watch.lap(Phase::Memory);
        // KVM waits more than it works while it makes a machine.
        thread::scope(|scope| {
            let copying = thread::Builder::new()
                .name("kernel".into())
                .spawn_scoped(scope, || load_kernel(config, &ram))
                .map_err(host("a thread that loads the kernel"))?;
            let loaded = || copying.join().unwrap_or_else(|panic| resume_unwind(panic));
            Self::build(config, events, watch, ram.clone(), loaded)
        })
    }

    /// Makes the machine while its kernel is being loaded into `ram`; `loaded` waits for that.
    fn build(
        config: &RunConfig,
        events: &Rc<EventLoop>,
        watch: &mut Stopwatch,
        ram: GuestRam,
        loaded: impl FnOnce() -> Result<boot::Entry, MachineError>,
    ) -> Result<(Self, Registry), MachineError> {
        let kvm = kvm::open()?;
        let vm = kvm::create_vm(&kvm, config.cpus)?;
        memory::register(&vm, &ram)?;
        kvm::create_chips(&vm)?;
        watch.lap(Phase::Kvm);
        let interrupts = Interrupts::new(Arc::clone(&vm)).map_err(host("interrupt routes"))?;
        let outcome = Arc::new(Outcome::new().map_err(host("an event"))?);
        let mut shared = Shared {
            ports: Arc::new(Bus::new()),
            mmio: Arc::new(Bus::new()),
            coalesced: Arc::clone(interrupts.coalesced()),
            ram,
            outcome: Arc::clone(&outcome),
            strings: None,
        };
        let lines = match &config.command {
            None => Lines::console(config.com2.as_deref())?,
            Some(_) => Lines::command(config.verbosity > 0, &outcome)?,
        };
        let watched = sink(PanicWatch::new(lines.com1, Arc::clone(&outcome)));
        let com1 = serial_port(&shared, &interrupts, serial::COM1, COM1_IRQ, watched)?;
        let com2 = serial_port(&shared, &interrupts, serial::COM2, COM2_IRQ, lines.com2)?;
        if let Some(session) = &lines.session {
            let input = session.channel.input_port();
            shared
                .ports
                .insert(input::PORT.into(), input::LEN.into(), input)?;
            let (port, serial) = (narrow(serial::COM2), Arc::clone(&com2));
            shared.strings = Some(StringPort { port, serial });
        }
        let acpi = legacy_devices(&shared, &interrupts)?;
        let slots = Arc::new(SlotEvents::new().map_err(host("an event"))?);
        let hotplug = Arc::new(PciHotplug::new(slots.clone(), Arc::clone(&acpi)));
        shared
            .ports
            .insert(pci_hotplug::BASE, pci_hotplug::LEN, hotplug.clone())?;
        let registry = registry(config, &shared, &interrupts, Rc::clone(events))?;
        watch.lap(Phase::Devices);
        let template = Template::new(&kvm, config.cpus)?;
        let vcpus = (0..config.cpus)
            .map(|id| Vcpu::new(&vm, id, &template))
            .collect::<Result<Vec<_>, _>>()?;
        watch.lap(Phase::Vcpus);
        let entry = loaded()?;
        warn_of_software_kvm(&entry);
        watch.lap(Phase::Kernel);
        if let Some(first) = vcpus.first() {
            first.set_entry(&entry.cpu_state())?;
            first
                .attach(interrupts.coalesced())
                .map_err(host("the ring of kept writes"))?;
        }
        let machine = Self {
            outcome,
            com1,
            com2,
            session: lines.session,
            acpi,
            hotplug,
            slots,
            interrupts,
            shared,
            vcpus,
            outputs: lines.outputs,
        };
        Ok((machine, registry))
    }

    /// Starts the vCPUs; `startup` is told when the first one enters the guest.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(&mut self, startup: &Arc<Startup>) -> Result<Running, MachineError> {
        let vcpus = std::mem::take(&mut self.vcpus);
        let threads = Threads::start(vcpus, &self.shared, startup);
        let threads = threads.map_err(host("the vCPUs' threads"))?;
        Ok(Running { threads })
    }

    /// Brings the guest's last output to its readers.
    pub fn finish_output(&self) {
        self.outputs.iter().for_each(Output::finish);
    }
}

/// The vCPUs of a started machine.
pub struct Running {
    threads: Threads,
}

impl Running {
    /// Stops the vCPUs.
    pub fn stop(self) {
        let left = self.threads.stop(STOP_LIMIT);
        if !left.is_empty() {
            tracing::warn!("vCPUs {left:?} did not stop within {STOP_LIMIT:?}");
        }
    }
}

/// Where the serial ports lead to.
struct Lines {
    com1: Box<dyn Write + Send>,
    com2: Box<dyn Write + Send>,
    outputs: Vec<Output>,
    session: Option<Session>,
}

impl Lines {
    /// The console to standard output, COM2 to a file.
    fn console(com2: Option<&Path>) -> Result<Self, MachineError> {
        let console = Output::new("console", Standard::Output);
        let console = console.map_err(host("the console's thread"))?;
        let result = com2_output(com2)?;
        let outputs = [Some(console.clone()), result.clone()];
        Ok(Self {
            com1: sink(console),
            com2: result.map_or_else(|| sink(io::sink()), sink),
            outputs: outputs.into_iter().flatten().collect(),
            session: None,
        })
    }

    /// The console to the log if it is shown, else its end is kept; COM2 to the command's streams.
    fn command(shown: bool, outcome: &Arc<Outcome>) -> Result<Self, MachineError> {
        let (session, from_guest) = Session::new(outcome).map_err(host("the command's streams"))?;
        let mut outputs = Vec::new();
        let com1 = if shown {
            let console = Output::new("console", stderr::Log);
            let console = console.map_err(host("the console's thread"))?;
            outputs.push(console.clone());
            sink(console)
        } else {
            sink(session.tail.clone())
        };
        Ok(Self {
            com1,
            com2: sink(from_guest),
            outputs,
            session: Some(session),
        })
    }
}

fn sink(output: impl Write + Send + 'static) -> Box<dyn Write + Send> {
    Box::new(output)
}

fn com2_output(path: Option<&Path>) -> Result<Option<Output>, MachineError> {
    let Some(path) = path else { return Ok(None) };
    let failed = |source| MachineError::Com2 {
        path: path.into(),
        source,
    };
    // A FIFO that is opened for writing alone would wait for its reader.
    let fifo = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    let file = File::options()
        .read(fifo)
        .write(true)
        .create(!fifo)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    if file.metadata().map_err(failed)?.is_file() {
        // Before anything in it is lost: it may be an image of another berth.
        lock(&file).map_err(failed)?;
        file.set_len(0).map_err(failed)?;
    }
    Output::new("com2", file).map(Some).map_err(failed)
}

/// Locks a file as images are locked (fcntl(2), "Open file description locks").
///
/// # Errors
/// Somebody else uses it.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: a structure of numbers: from the start of the file, to wherever it ends.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // A small constant.
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or(libc::c_short::MAX);
    // SAFETY: an open file, and a valid structure that the kernel only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(io::Error::other(
            "is in use by another process; give another path",
        )),
        // A file system without locks has no images that berth would open either.
        _ => Ok(()),
    }
}

fn serial_port(
    shared: &Shared,
    interrupts: &Interrupts,
    base: u64,
    irq: u32,
    output: Box<dyn Write + Send>,
) -> Result<Arc<SerialPort>, MachineError> {
    let line = interrupts.line(irq).map_err(host("a serial port's line"))?;
    let port = SerialPort::new(line, output).map_err(host("a serial port"))?;
    let port = Arc::new(port);
    shared.ports.insert(base, serial::LEN, port.clone())?;
    Ok(port)
}

fn legacy_devices(
    shared: &Shared,
    interrupts: &Interrupts,
) -> Result<Arc<AcpiRegisters>, MachineError> {
    let requests = || Arc::new(Requests(Arc::clone(&shared.outcome)));
    let line = interrupts.line(EVENT_IRQ).map_err(host("the event line"))?;
    let acpi = Arc::new(AcpiRegisters::new(requests(), line));
    let ports = &shared.ports;
    ports.insert(i8042::BASE, i8042::LEN, Arc::new(I8042::new(requests())))?;
    ports.insert(
        pvpanic::BASE,
        pvpanic::LEN,
        Arc::new(PvPanic::new(requests())),
    )?;
    ports.insert(acpi::BASE, acpi::LEN, acpi.clone())?;
    Ok(acpi)
}

fn registry(
    config: &RunConfig,
    shared: &Shared,
    interrupts: &Arc<Interrupts>,
    events: Rc<EventLoop>,
) -> Result<Registry, MachineError> {
    let threads = IoThreadsConfig {
        count: config.io_threads as usize,
        cpus: config.io_affinity.clone(),
        memory_lock: config.memory_lock,
        vcpus: config.cpus as usize,
    };
    let io_threads = IoThreads::with(&threads, &shared.ram).map_err(host("the I/O threads"))?;
    tell_of_spare(&io_threads, "--io-threads", "--io-affinity");
    let mut registry = Registry::new(Parts {
        ram: shared.ram.clone(),
        pci: pci_root(shared, config.memory)?,
        msi: Arc::new(Allocator(Arc::clone(interrupts))),
        io_events: Arc::clone(interrupts) as Arc<_>,
        coalesced: Arc::clone(interrupts.coalesced()) as Arc<_>,
        io_threads,
        events,
    });
    registry.drives_mut().clone_from(&config.drives);
    registry.add_all(&config.disks, &config.objects, &config.devices)?;
    Ok(registry)
}

/// Says so if not all I/O threads get queues. The names are those of the option or property that made them,
/// and of the one that has all used.
pub fn tell_of_spare(threads: &IoThreads, made_by: &str, all_by: &str) {
    let (count, used) = (threads.count(), threads.used());
    if used < count {
        tracing::warn!(
            "{made_by}={count}: queues go to {used} of them, since there are not enough CPUs for more \
             beside the vCPUs; {all_by} binds them to CPUs and has all used"
        );
    }
}

fn pci_root(shared: &Shared, memory: u64) -> Result<Arc<PciRoot>, MachineError> {
    let windows = PciWindows {
        mmio32: layout::PCI_WINDOW_32,
        mmio64: layout::pci_window_64(memory),
    };
    let root = Arc::new(PciRoot::new(Arc::clone(&shared.mmio), windows));
    let ecam = Arc::new(Ecam::new(&root));
    let ports = Arc::new(ConfigPorts::new(Arc::clone(&root)));
    shared
        .mmio
        .insert(layout::ECAM_BASE, access::ECAM_LEN, ecam)?;
    shared
        .ports
        .insert(access::PORTS_BASE, access::PORTS_LEN, ports)?;
    Ok(root)
}

// The DSDT has these numbers too: its methods test the event bits and its fields fill the ports.
const _: () = {
    assert!(pci_hotplug::LEN == boot::acpi::PCI_HOTPLUG_PORTS as u64);
    assert!(pci_hotplug::BASE + pci_hotplug::LEN <= 0x700);
    assert!(acpi::EVENT_PCI_HOTPLUG == boot::acpi::GED_PCI_HOTPLUG);
    assert!(acpi::EVENT_POWER_BUTTON == boot::acpi::GED_POWER_BUTTON);
};

/// A port's number. Those of this machine are below 0x700: it fits.
fn narrow(port: u64) -> u16 {
    u16::try_from(port).unwrap_or(u16::MAX)
}

/// Linux may hang there without a word. Kernels with a PVH note may be anything.
fn warn_of_software_kvm(entry: &boot::Entry) {
    if matches!(entry, boot::Entry::Linux64 { .. }) && kvm_is_software() {
        tracing::warn!("{SOFTWARE_KVM}");
    }
}

fn load_kernel(config: &RunConfig, ram: &GuestRam) -> Result<boot::Entry, MachineError> {
    let port = |offset| narrow(acpi::BASE + offset);
    let tables = boot::acpi::Config {
        sleep_control_port: port(acpi::SLEEP_CONTROL),
        sleep_status_port: port(acpi::SLEEP_STATUS),
        reset_port: port(acpi::RESET),
        reset_value: acpi::RESET_VALUE,
        ged_status_port: port(acpi::EVENT_STATUS),
        ged_gsi: EVENT_IRQ,
        pci_hotplug_port: narrow(pci_hotplug::BASE),
        ..boot::acpi::Config::new(config.cpus, config.memory)
    };
    let cmdline = format!("{DEFAULT_CMDLINE} {}", config.append);
    let entry = boot::load(
        ram.memory(),
        &boot::Config {
            kernel: &config.kernel,
            initrd: config.initrd.as_deref(),
            cmdline: cmdline.trim_end(),
            memory: config.memory,
            acpi: &tables,
        },
    )?;
    Ok(entry)
}
