//! Typed device specifications, the same for `--device` and `device_add`.
//!
//! Everything that can be judged from the text alone is checked here: ranges, lengths, character sets
//! and properties that exclude each other. Whether an id exists, a slot is free or a file opens is for
//! the machine to say.

mod qemu;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use devices::storage::{CacheMode, MAX_MEMORY, MAX_NULL};
use uuid::Uuid;

use self::qemu::{CONTROLLER_HINTS, DRIVE_HINTS, NAMESPACE_HINTS, SUBSYSTEM_HINTS};
use crate::affinity;
use crate::grammar::{Problem, Properties, SpecError, format_size, nearest, parse_size};

/// Highest NSID that berth gives out; also the number of namespaces a subsystem can hold.
pub const MAX_NSID: u32 = 1024;

/// What a subsystem's NQN begins with unless it was given whole. `internal` is the top-level domain
/// that ICANN set aside for private use in July 2024.
pub const NQN_PREFIX: &str = "nqn.2024-07.internal.berth:";

/// Longest NQN in bytes (NVMe Base 2.0, 4.5).
pub const MAX_NQN_LEN: usize = 223;

/// Default of `mqes`, zero-based: queues of 2,048 entries, as QEMU's controller has them.
pub const DEFAULT_MQES: u16 = 0x7ff;

/// Default of `max_ioqpairs`, as in QEMU.
pub const DEFAULT_MAX_IOQPAIRS: u16 = 64;

/// Default of `mdts`, as in QEMU: 2^7 pages of 4 KiB, 512 KiB a command.
pub const DEFAULT_MDTS: u8 = 7;
/// How long an idle I/O thread looks for commands where it pays, in microseconds.
pub const DEFAULT_POLL_US: u16 = 50;

/// Default of `logical_block_size` in bytes.
pub const DEFAULT_BLOCK_SIZE: u32 = 512;

const DRIVERS: [&str; 3] = ["nvme", "nvme-ns", "nvme-subsys"];
const KNOWN_DRIVERS: &str = "nvme, nvme-ns, nvme-subsys";
const KNOWN_TYPES: &str = "nvme-ns, nvme-subsys";

/// What one `--device` or `device_add` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `nvme-subsys`.
    Subsystem(SubsystemSpec),
    /// `nvme`.
    Controller(ControllerSpec),
    /// `nvme-ns`.
    Namespace(NamespaceSpec),
}

/// An NVM subsystem on the system bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemSpec {
    /// Its id, which controllers and namespaces name.
    pub id: String,
    /// Its NQN, whole, at most [`MAX_NQN_LEN`] bytes.
    pub nqn: String,
    /// Whether more than one controller may link to it.
    pub shared: bool,
}

/// An NVMe controller on PCI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerSpec {
    /// Its id, if it was given one.
    pub id: Option<String>,
    /// The subsystem it links to; without one the machine makes one.
    pub subsys: Option<String>,
    /// PCI slot on bus 0, 1 to 31; `None` takes the lowest free one.
    pub addr: Option<u8>,
    /// Serial number, 1 to 20 printable ASCII characters.
    pub serial: Option<String>,
    /// Model, 1 to 40 printable ASCII characters.
    pub model: Option<String>,
    /// Firmware revision, 1 to 8 printable ASCII characters.
    pub firmware: Option<String>,
    /// I/O queue pairs, 1 to 128.
    pub max_ioqpairs: u16,
    /// CAP.MQES: the entries that a queue may have, zero-based, 1 to 65,535.
    pub mqes: u16,
    /// Identify Controller MDTS: the longest transfer is 2^mdts pages of 4 KiB, 1 to 9.
    pub mdts: u8,
    /// How long I/O threads look for commands before they sleep in microseconds, 0 to 1000.
    pub poll_us: u16,
    /// I/O threads of its own; `None` uses the machine's.
    pub io_threads: Option<Box<IoThreadsSpec>>,
    /// Controller id, 0 to 65,519; `None` takes the lowest free one of the subsystem.
    pub cntlid: Option<u16>,
    /// The namespace of a one-disk controller.
    pub disk: Option<DiskSpec>,
}

/// I/O threads of a controller's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoThreadsSpec {
    /// How many, 1 to 64.
    pub count: u32,
    /// CPUs that they are bound to in turn; none if they run anywhere.
    pub cpus: Vec<usize>,
}

/// A namespace on the subsystem bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its id, if it was given one.
    pub id: Option<String>,
    /// The subsystem, or a controller that stands for its subsystem. `None` means the subsystem of the
    /// controller defined last, and for `--disk` the default subsystem.
    pub bus: Option<String>,
    /// Namespace id, 1 to [`MAX_NSID`]; `None` takes the lowest free one.
    pub nsid: Option<u32>,
    /// Where its bytes are.
    pub disk: DiskSpec,
    /// Whether more than one controller may attach to it.
    pub shared: bool,
    /// Allocated, but attached to no controller.
    pub detached: bool,
    /// The one controller of a private namespace (`shared=off`).
    pub ctrl: Option<String>,
    /// UUID; `None` (`auto`) derives one.
    pub uuid: Option<[u8; 16]>,
    /// EUI-64, as the number whose big-endian bytes it is.
    pub eui64: Option<u64>,
    /// NGUID, in the order the digits were given.
    pub nguid: Option<[u8; 16]>,
}

/// The bytes behind a namespace, and how the guest sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Where the bytes are.
    pub backend: BackendSpec,
    /// Logical block size in bytes, 512 or 4,096.
    pub logical_block_size: u32,
    /// Writes are refused.
    pub ro: bool,
    /// Whether a file is looked at before it is taken for raw.
    pub format: Format,
}

/// What is known of the format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Nothing: a file that looks like another format than raw is refused.
    #[default]
    Probed,
    /// It is raw, whatever it looks like.
    Raw,
}

/// Where a namespace's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendSpec {
    /// A raw image or a block device.
    File {
        /// Its path.
        path: PathBuf,
        /// How the host's page cache is used.
        cache: CacheMode,
    },
    /// A drive by its id, or else the path of an image; see [`DiskSpec::resolve`].
    Drive {
        /// Id or path.
        drive: String,
        /// How the host's page cache is used; `None` is as the drive says.
        cache: Option<CacheMode>,
    },
    /// Anonymous memory of this many bytes, a multiple of the block size.
    Memory(u64),
    /// Reads zeroes and forgets writes; this many bytes, a multiple of the block size.
    Null(u64),
}

/// The two ways to say what a device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `--device` and `device_add`.
    Device,
    /// `--object` and `object_add`: a subsystem or a namespace, meaning the same. This is the form
    /// that was proposed for QEMU in 2021, in which these two are no devices.
    Object,
}

impl Form {
    /// The command of this form.
    pub fn command(self) -> &'static str {
        match self {
            Self::Device => "device_add",
            Self::Object => "object_add",
        }
    }
}

/// What an argument asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// The specification.
    pub spec: T,
    /// Properties that were left out, each with the reason.
    pub ignored: Vec<String>,
}

impl<T> Parsed<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Parsed<U> {
        Parsed {
            spec: f(self.spec),
            ignored: self.ignored,
        }
    }
}

/// Names of the drivers that a form has.
#[must_use]
pub fn drivers(form: Form) -> &'static [&'static str] {
    match form {
        Form::Device => &DRIVERS,
        Form::Object => &DRIVERS[1..],
    }
}

/// The properties of a driver; none if there is no such driver.
#[must_use]
pub fn keys(driver: &str) -> Vec<&'static str> {
    // Nothing has a property of this name, and the refusal lists those that there are.
    let unknown = format!("{driver},null=1M,id=x,?");
    match DeviceSpec::parse(&unknown, Form::Device) {
        Err(SpecError {
            problem: Problem::UnknownKey { allowed, .. },
            ..
        }) => allowed,
        _ => Vec::new(),
    }
}

impl DeviceSpec {
    /// Parses `DRIVER,key=value,flag`.
    ///
    /// # Errors
    /// An unknown driver or property, or a value that does not fit.
    pub fn parse(argument: &str, form: Form) -> Result<Parsed<Self>, SpecError> {
        let (implied, known) = match form {
            Form::Device => ("driver", KNOWN_DRIVERS),
            Form::Object => ("qom-type", KNOWN_TYPES),
        };
        let mut properties = Properties::parse(argument, implied)?;
        let Some(driver) = properties.take_driver(implied)? else {
            return Err(properties.error(Problem::NoDriver(known)));
        };
        properties.set_driver(&driver);
        match (driver.as_str(), form) {
            ("nvme-subsys", _) => Ok(SubsystemSpec::take(properties)?.map(Self::Subsystem)),
            ("nvme-ns", _) => Ok(NamespaceSpec::take(properties)?.map(Self::Namespace)),
            ("nvme", Form::Device) => Ok(ControllerSpec::take(properties)?.map(Self::Controller)),
            ("nvme", Form::Object) => Err(properties.error(Problem::Conflict(
                "a controller is a PCI device; use --device or device_add",
            ))),
            (path, Form::Device) if path.contains(['.', '/']) => {
                Err(properties.error(Problem::Conflict(
                    "the driver is missing; an image is given with --disk FILE, or as \
                     nvme-ns,file=FILE",
                )))
            }
            _ => Err(properties.error(Problem::UnknownDriver {
                near: nearest(&driver, &DRIVERS),
                driver,
                known,
            })),
        }
    }

    /// The id, if it was given one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Subsystem(spec) => Some(&spec.id),
            Self::Controller(spec) => spec.id.as_deref(),
            Self::Namespace(spec) => spec.id.as_deref(),
        }
    }

    /// The slot, if it was given one, 1 to 31.
    #[must_use]
    pub fn slot(&self) -> Option<u8> {
        match self {
            Self::Controller(spec) => spec.addr,
            Self::Subsystem(_) | Self::Namespace(_) => None,
        }
    }

    /// The driver's name.
    #[must_use]
    pub fn driver(&self) -> &'static str {
        match self {
            Self::Subsystem(_) => "nvme-subsys",
            Self::Controller(_) => "nvme",
            Self::Namespace(_) => "nvme-ns",
        }
    }

    /// The namespace's bytes, or those of a one-disk controller.
    #[must_use]
    pub fn disk(&self) -> Option<&DiskSpec> {
        match self {
            Self::Subsystem(_) => None,
            Self::Controller(spec) => spec.disk.as_ref(),
            Self::Namespace(spec) => Some(&spec.disk),
        }
    }

    /// Puts the file of a drive in the place of its id.
    pub fn resolve(&mut self, drives: &Drives) {
        let disk = match self {
            Self::Subsystem(_) => None,
            Self::Controller(spec) => spec.disk.as_mut(),
            Self::Namespace(spec) => Some(&mut spec.disk),
        };
        if let Some(disk) = disk {
            disk.resolve(drives);
        }
    }
}

impl SubsystemSpec {
    fn take(mut properties: Properties) -> Result<Parsed<Self>, SpecError> {
        properties.synonym("subnqn", "nqn")?;
        let id = properties.take_id("id")?;
        let nqn = properties.take_with("nqn", whole_nqn)?;
        let shared = properties.take_bool("shared")?.unwrap_or(true);
        let missing = properties.error(Problem::Missing {
            key: "id",
            why: "controllers and namespaces name the subsystem by it",
        });
        let ignored = properties.finish(SUBSYSTEM_HINTS)?;
        let id = id.ok_or(missing)?;
        let spec = Self {
            nqn: nqn.unwrap_or_else(|| default_nqn(&id)),
            id,
            shared,
        };
        Ok(Parsed { spec, ignored })
    }
}

/// The NQN of a subsystem that was given none.
#[must_use]
pub fn default_nqn(id: &str) -> String {
    format!("{NQN_PREFIX}{id}")
}

/// QEMU's `nqn` is what follows its own prefix; a whole NQN is taken as it is.
fn whole_nqn(value: &str) -> Result<String, String> {
    let nqn = if value.starts_with("nqn.") {
        value.to_owned()
    } else {
        default_nqn(value)
    };
    if nqn.len() > MAX_NQN_LEN {
        return Err(format!(
            "the NQN has {} bytes; at most {MAX_NQN_LEN} fit",
            nqn.len()
        ));
    }
    if nqn.chars().any(char::is_control) {
        return Err("an NQN has no control characters".into());
    }
    Ok(nqn)
}

impl ControllerSpec {
    fn take(mut properties: Properties) -> Result<Parsed<Self>, SpecError> {
        let p = &mut properties;
        p.synonym("firmware-version", "firmware")?;
        let spec = Self {
            id: p.take_id("id")?,
            subsys: p.take_id("subsys")?,
            addr: p.take_with("addr", parse_slot)?,
            serial: p.take_with("serial", |value| ascii(value, 20))?,
            model: p.take_with("model", |value| ascii(value, 40))?,
            firmware: p.take_with("firmware", |value| ascii(value, 8))?,
            max_ioqpairs: take_narrow(p, "max_ioqpairs", 1, 128)?.unwrap_or(DEFAULT_MAX_IOQPAIRS),
            mqes: take_narrow(p, "mqes", 1, u16::MAX)?.unwrap_or(DEFAULT_MQES),
            mdts: take_narrow(p, "mdts", 1, 9)?.unwrap_or(DEFAULT_MDTS),
            poll_us: take_narrow(p, "poll-us", 0, 1000)?.unwrap_or(DEFAULT_POLL_US),
            io_threads: IoThreadsSpec::take(p)?,
            cntlid: take_narrow(p, "cntlid", 0, 65_519)?,
            disk: DiskSpec::take(p)?,
        };
        let ignored = properties.finish(CONTROLLER_HINTS)?;
        Ok(Parsed { spec, ignored })
    }
}

impl IoThreadsSpec {
    fn take(p: &mut Properties) -> Result<Option<Box<Self>>, SpecError> {
        let count = take_narrow(p, "io-threads", 1, 64)?;
        let cpus = p.take_with("io-affinity", affinity::parse)?;
        match (count, cpus) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(p.error(Problem::Conflict(
                "io-affinity is for io-threads= only; the machine's I/O threads have --io-affinity",
            ))),
            (Some(count), cpus) => {
                let cpus = cpus.unwrap_or_default();
                Ok(Some(Box::new(Self { count, cpus })))
            }
        }
    }
}

impl NamespaceSpec {
    /// Parses the value of `--disk`: a namespace whose `file` may be given without its key, on the
    /// default subsystem.
    ///
    /// # Errors
    /// As for a `nvme-ns` device, and where it names a bus or a controller.
    pub fn from_disk(argument: &str) -> Result<Parsed<Self>, SpecError> {
        let mut properties = Properties::parse(argument, "file").map_err(|error| match error {
            // `nvme-ns,file=…` gives the file twice.
            SpecError { argument, .. } if is_device(&argument) => SpecError {
                argument,
                problem: DEVICE_AS_DISK,
            },
            error => error,
        })?;
        if is_device(argument) {
            return Err(properties.error(DEVICE_AS_DISK));
        }
        properties.set_driver("a disk");
        if properties.has("bus") || properties.has("ctrl") {
            return Err(properties.error(Problem::Conflict(
                "a disk is on the default subsystem; use --device nvme-ns to choose one",
            )));
        }
        Self::take(properties)
    }

    fn take(mut properties: Properties) -> Result<Parsed<Self>, SpecError> {
        let p = &mut properties;
        p.synonym("subsys", "bus")?;
        let spec = Self {
            id: p.take_id("id")?,
            bus: p.take_id("bus")?,
            nsid: p.take_with("nsid", parse_nsid)?,
            shared: p.take_bool("shared")?.unwrap_or(true),
            detached: p.take_bool("detached")?.unwrap_or(false),
            ctrl: p.take_id("ctrl")?,
            uuid: p.take_with("uuid", parse_uuid)?.flatten(),
            // QEMU's default is 0 and means none.
            eui64: p
                .take_number("eui64", 0..=u64::MAX)?
                .filter(|eui64| *eui64 != 0),
            nguid: p.take_with("nguid", parse_nguid)?,
            disk: match DiskSpec::take(p)? {
                Some(disk) => disk,
                None => return Err(Self::no_disk(properties)),
            },
        };
        let private = spec.shared && spec.ctrl.is_some();
        let conflict = properties.error(Problem::Conflict(
            "ctrl names the one controller of a private namespace; it needs shared=off",
        ));
        let ignored = properties.finish(NAMESPACE_HINTS)?;
        if private {
            return Err(conflict);
        }
        Ok(Parsed { spec, ignored })
    }

    /// What is said first where nothing says where the bytes are: a mistyped key is the likely reason.
    fn no_disk(properties: Properties) -> SpecError {
        let missing = properties.error(Problem::Missing {
            key: "file",
            why: "give one of file=PATH, memory=SIZE and null=SIZE",
        });
        properties.finish(NAMESPACE_HINTS).err().unwrap_or(missing)
    }
}

impl DiskSpec {
    fn take(p: &mut Properties) -> Result<Option<Self>, SpecError> {
        p.synonym("blkdev", "drive")?;
        if p.has("drive") && p.has("file") {
            return Err(p.error(Problem::Synonyms("drive", "file")));
        }
        let block_size = p.take_with("logical_block_size", |value| match value {
            "512" => Ok(512),
            "4096" => Ok(4096),
            _ => Err("must be 512 or 4096".into()),
        })?;
        let logical_block_size = block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        let ro = p.take_bool("ro")?;
        let cache = p.take_with("cache", parse_cache)?;
        let format = p.take_with("format", parse_format)?;
        let file = p.take_text("file")?.map(PathBuf::from);
        let drive = p.take_text("drive")?;
        let size = |max| move |value: &str| parse_disk_size(value, logical_block_size, max);
        let memory = p.take_with("memory", size(MAX_MEMORY))?;
        let null = p.take_with("null", size(MAX_NULL))?;
        let file = match (file, drive) {
            (Some(path), _) => Some(BackendSpec::File {
                path,
                cache: cache.unwrap_or_default(),
            }),
            (None, drive) => drive.map(|drive| BackendSpec::Drive { drive, cache }),
        };
        let backend = match (file, memory, null) {
            (Some(file), None, None) => file,
            (None, Some(bytes), None) => BackendSpec::Memory(bytes),
            (None, None, Some(bytes)) => BackendSpec::Null(bytes),
            (None, None, None) => {
                let stray = [
                    ("logical_block_size", block_size.is_some()),
                    ("ro", ro.is_some()),
                    ("cache", cache.is_some()),
                    ("format", format.is_some()),
                ];
                return match stray.iter().find(|(_, given)| *given) {
                    Some(_) => Err(p.error(Problem::Conflict(
                        "logical_block_size, ro, cache and format describe a disk; \
                         give one of file=PATH, memory=SIZE and null=SIZE",
                    ))),
                    None => Ok(None),
                };
            }
            _ => {
                return Err(p.error(Problem::Conflict(
                    "file, memory and null exclude each other; give one of them",
                )));
            }
        };
        let memory_or_null = matches!(backend, BackendSpec::Memory(_) | BackendSpec::Null(_));
        if cache.is_some() && memory_or_null {
            return Err(p.error(Problem::Conflict("cache is for file= only")));
        }
        if format.is_some() && memory_or_null {
            return Err(p.error(Problem::Conflict("format is for file= only")));
        }
        Ok(Some(Self {
            backend,
            logical_block_size,
            ro: ro.unwrap_or(false),
            format: format.unwrap_or_default(),
        }))
    }

    /// Puts the file of a drive in the place of its id. What is no drive's id is a path.
    pub fn resolve(&mut self, drives: &Drives) {
        let BackendSpec::Drive { drive, cache } = &self.backend else {
            return;
        };
        let (path, given) = match drives.get(drive) {
            Some(found) => (found.file.clone(), found.cache),
            None => (drive.into(), CacheMode::default()),
        };
        if let Some(found) = drives.get(drive) {
            self.ro |= found.ro;
            if found.format == Format::Raw {
                self.format = Format::Raw;
            }
        }
        self.backend = BackendSpec::File {
            path,
            cache: cache.unwrap_or(given),
        };
    }
}

/// An image by an id, which `drive=` of a device names: QEMU's `-drive if=none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveSpec {
    /// Its id.
    pub id: String,
    /// The image or block device.
    pub file: PathBuf,
    /// How the host's page cache is used.
    pub cache: CacheMode,
    /// Writes are refused.
    pub ro: bool,
    /// Whether the file is looked at before it is taken for raw.
    pub format: Format,
}

/// Drives by their ids.
pub type Drives = BTreeMap<String, DriveSpec>;

impl DriveSpec {
    /// Parses `file=PATH,if=none,id=ID,key=value`.
    ///
    /// # Errors
    /// What is no raw image for a device to name.
    pub fn parse(argument: &str) -> Result<Parsed<Self>, SpecError> {
        let mut properties = Properties::parse(argument, "file")?;
        let p = &mut properties;
        p.set_driver("a drive");
        for synonym in ["ro", "read-only"] {
            p.synonym(synonym, "readonly")?;
        }
        p.take_with("if", |value| match value {
            "none" => Ok(()),
            _ => Err("must be none, for a device with drive= to use it; or use --disk".into()),
        })?;
        let format = p.take_with("format", parse_format)?.unwrap_or_default();
        p.take_with("media", |value| match value {
            "disk" => Ok(()),
            _ => Err("must be disk".into()),
        })?;
        let id = p.take_id("id")?;
        let file = p.take_text("file")?;
        let cache = p.take_with("cache", parse_cache)?.unwrap_or_default();
        let ro = p.take_bool("readonly")?.unwrap_or(false);
        let missing = |key, why| p.error(Problem::Missing { key, why });
        let no_id = missing(
            "id",
            "a device names the drive by it, with drive=; an image alone is given with --disk FILE",
        );
        let no_file = missing("file", "give the path of a raw image or block device");
        let ignored = properties.finish(DRIVE_HINTS)?;
        let spec = Self {
            id: id.ok_or(no_id)?,
            file: file.ok_or(no_file)?.into(),
            cache,
            ro,
            format,
        };
        Ok(Parsed { spec, ignored })
    }
}

const DEVICE_AS_DISK: Problem = Problem::Conflict("this is a device; give it with --device");

/// Whether an argument begins with a driver.
fn is_device(argument: &str) -> bool {
    let first = argument.split(',').next().unwrap_or_default();
    DRIVERS.contains(&first)
}

/// Takes a number from `low` to `high` in a type that holds `high`.
fn take_narrow<T>(
    properties: &mut Properties,
    key: &'static str,
    low: T,
    high: T,
) -> Result<Option<T>, SpecError>
where
    T: Into<u64> + TryFrom<u64>,
{
    let number = properties.take_number(key, low.into()..=high.into())?;
    // The range has just been checked, so the conversion cannot lose anything.
    Ok(number.and_then(|number| T::try_from(number).ok()))
}

/// Parses a PCI slot in QEMU's forms `5`, `05` and `05.0`: hexadecimal, function 0.
fn parse_slot(value: &str) -> Result<u8, String> {
    let digits = value.strip_suffix(".0").unwrap_or(value);
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let slot = if valid {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    };
    slot.filter(|slot| (1..=31).contains(slot)).ok_or_else(|| {
        "must be a PCI slot from 1 to 1f (hexadecimal, as in QEMU), such as 05 or 05.0".into()
    })
}

fn parse_nsid(value: &str) -> Result<u32, String> {
    match crate::grammar::parse_number(value, 0..=u64::from(u32::MAX)) {
        Ok(0) => Err("0 is no namespace; leave nsid out to have one chosen".into()),
        Ok(number) => u32::try_from(number)
            .ok()
            .filter(|nsid| *nsid <= MAX_NSID)
            .ok_or_else(|| format!("berth's limit is {MAX_NSID} namespaces; use 1 to {MAX_NSID}")),
        Err(_) => Err(format!("must be a number from 1 to {MAX_NSID}")),
    }
}

/// Checks an Identify string: printable ASCII (NVMe Base 2.0, 1.5), which berth pads with spaces.
fn ascii(value: &str, max: usize) -> Result<String, String> {
    if !value.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Err("must be printable ASCII".into());
    }
    if value.len() > max {
        return Err(format!("has {} characters; at most {max} fit", value.len()));
    }
    Ok(value.to_owned())
}

/// Parses a UUID; `auto` is `None`.
fn parse_uuid(value: &str) -> Result<Option<[u8; 16]>, String> {
    if value == "auto" {
        return Ok(None);
    }
    match Uuid::try_parse(value) {
        Ok(uuid) if uuid.is_nil() => Err("the nil UUID names nothing; use auto".into()),
        Ok(uuid) => Ok(Some(uuid.into_bytes())),
        Err(_) => {
            Err("must be a UUID such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8, or auto".into())
        }
    }
}

fn parse_nguid(value: &str) -> Result<[u8; 16], String> {
    let digits: String = value.chars().filter(|c| *c != '-').collect();
    let valid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = if valid {
        u128::from_str_radix(&digits, 16).ok()
    } else {
        None
    };
    number
        .filter(|number| *number != 0)
        .map(u128::to_be_bytes)
        .ok_or_else(|| "must be 32 hexadecimal digits, not all zero (dashes are allowed)".into())
}

fn parse_cache(value: &str) -> Result<CacheMode, String> {
    value
        .parse()
        .map_err(|_| "must be one of writeback, none, writethrough, directsync, unsafe".into())
}

fn parse_format(value: &str) -> Result<Format, String> {
    match value {
        "raw" => Ok(Format::Raw),
        _ => Err("must be raw; convert it first (qemu-img convert -O raw)".into()),
    }
}

fn parse_disk_size(value: &str, block_size: u32, max: u64) -> Result<u64, String> {
    let bytes = parse_size(value)?;
    if bytes == 0 || bytes > max {
        return Err(format!("must be from one block to {}", format_size(max)));
    }
    if !bytes.is_multiple_of(u64::from(block_size)) {
        return Err(format!(
            "must be a multiple of the block size, {block_size}"
        ));
    }
    Ok(bytes)
}
