//! Typed device specifications, the same for `--device` and `device_add`.
//!
//! Everything that can be judged from the text alone is checked here: ranges, lengths, character sets
//! and properties that exclude each other. Whether an id exists, a slot is free or a file opens is for
//! the machine to say.

use std::path::PathBuf;

use devices::storage::CacheMode;
use uuid::Uuid;

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

/// Default of `logical_block_size` in bytes.
pub const DEFAULT_BLOCK_SIZE: u32 = 512;

const DRIVERS: [&str; 3] = ["nvme", "nvme-ns", "nvme-subsys"];
const KNOWN_DRIVERS: &str = "nvme, nvme-ns, nvme-subsys";
const MAX_MEMORY_BYTES: u64 = 1 << 40;
const MAX_NULL_BYTES: u64 = 1 << 50;

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
    /// I/O threads of its own, 1 to 64; `None` uses the machine's.
    pub io_threads: Option<u32>,
    /// Controller id, 0 to 65,519; `None` takes the lowest free one of the subsystem.
    pub cntlid: Option<u16>,
    /// The namespace of a one-disk controller.
    pub disk: Option<DiskSpec>,
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
    /// Anonymous memory of this many bytes, a multiple of the block size.
    Memory(u64),
    /// Reads zeroes and forgets writes; this many bytes, a multiple of the block size.
    Null(u64),
}

impl std::str::FromStr for DeviceSpec {
    type Err = SpecError;

    /// Parses `DRIVER,key=value,flag`.
    fn from_str(argument: &str) -> Result<Self, SpecError> {
        let mut properties = Properties::parse(argument, "driver")?;
        let Some(driver) = properties.take_driver()? else {
            return Err(properties.error(Problem::NoDriver(KNOWN_DRIVERS)));
        };
        properties.set_driver(&driver);
        match driver.as_str() {
            "nvme-subsys" => SubsystemSpec::take(properties).map(Self::Subsystem),
            "nvme" => ControllerSpec::take(properties).map(Self::Controller),
            "nvme-ns" => NamespaceSpec::take(properties).map(Self::Namespace),
            _ => Err(properties.error(Problem::UnknownDriver {
                near: nearest(&driver, &DRIVERS),
                driver,
                known: KNOWN_DRIVERS,
            })),
        }
    }
}

impl DeviceSpec {
    /// The id, if it was given one.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Subsystem(spec) => Some(&spec.id),
            Self::Controller(spec) => spec.id.as_deref(),
            Self::Namespace(spec) => spec.id.as_deref(),
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
}

impl SubsystemSpec {
    fn take(mut properties: Properties) -> Result<Self, SpecError> {
        let id = properties.take_id("id")?;
        let nqn = properties.take_with("nqn", whole_nqn)?;
        let shared = properties.take_bool("shared")?.unwrap_or(true);
        let missing = properties.error(Problem::Missing {
            key: "id",
            why: "controllers and namespaces name the subsystem by it",
        });
        properties.finish(SUBSYSTEM_HINTS)?;
        let id = id.ok_or(missing)?;
        Ok(Self {
            nqn: nqn.unwrap_or_else(|| default_nqn(&id)),
            id,
            shared,
        })
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
    fn take(mut properties: Properties) -> Result<Self, SpecError> {
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
            io_threads: take_narrow(p, "io-threads", 1, 64)?,
            cntlid: take_narrow(p, "cntlid", 0, 65_519)?,
            disk: DiskSpec::take(p)?,
        };
        properties.finish(CONTROLLER_HINTS)?;
        Ok(spec)
    }
}

impl NamespaceSpec {
    /// Parses the value of `--disk`: a namespace whose `file` may be given without its key, on the
    /// default subsystem.
    ///
    /// # Errors
    /// As for a `nvme-ns` device, and where it names a bus or a controller.
    pub fn from_disk(argument: &str) -> Result<Self, SpecError> {
        let mut properties = Properties::parse(argument, "file")?;
        properties.set_driver("a disk");
        if properties.has("bus") || properties.has("ctrl") {
            return Err(properties.error(Problem::Conflict(
                "a disk is on the default subsystem; use --device nvme-ns to choose one",
            )));
        }
        Self::take(properties)
    }

    fn take(mut properties: Properties) -> Result<Self, SpecError> {
        let p = &mut properties;
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
        properties.finish(NAMESPACE_HINTS)?;
        if private { Err(conflict) } else { Ok(spec) }
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
        p.synonym("drive", "file")?;
        let block_size = p.take_with("logical_block_size", |value| match value {
            "512" => Ok(512),
            "4096" => Ok(4096),
            _ => Err("must be 512 or 4096".into()),
        })?;
        let logical_block_size = block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        let ro = p.take_bool("ro")?;
        let cache = p.take_with("cache", parse_cache)?;
        let file = p.take_text("file")?.map(PathBuf::from);
        let size = |max| move |value: &str| parse_disk_size(value, logical_block_size, max);
        let memory = p.take_with("memory", size(MAX_MEMORY_BYTES))?;
        let null = p.take_with("null", size(MAX_NULL_BYTES))?;
        let backend = match (file, memory, null) {
            (Some(path), None, None) => BackendSpec::File {
                path,
                cache: cache.unwrap_or_default(),
            },
            (None, Some(bytes), None) => BackendSpec::Memory(bytes),
            (None, None, Some(bytes)) => BackendSpec::Null(bytes),
            (None, None, None) => {
                let stray = [
                    ("logical_block_size", block_size.is_some()),
                    ("ro", ro.is_some()),
                    ("cache", cache.is_some()),
                ];
                return match stray.iter().find(|(_, given)| *given) {
                    Some(_) => Err(p.error(Problem::Conflict(
                        "logical_block_size, ro and cache describe a disk; \
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
        if cache.is_some() && !matches!(backend, BackendSpec::File { .. }) {
            return Err(p.error(Problem::Conflict("cache is for file= only")));
        }
        Ok(Some(Self {
            backend,
            logical_block_size,
            ro: ro.unwrap_or(false),
        }))
    }
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

const LATER: &str = "not supported by berth yet";
const ABSENT: &str = "not supported by berth";

/// QEMU's properties of `nvme-subsys` that berth lacks, and those that come later.
const SUBSYSTEM_HINTS: &[(&str, &str)] = &[
    ("pool", LATER),
    ("capacity", LATER),
    ("fdp", ABSENT),
    ("fdp.", ABSENT),
];

/// The same for `nvme`.
const CONTROLLER_HINTS: &[(&str, &str)] = &[
    ("poll-us", LATER),
    (
        "bus",
        "berth has one PCI bus; leave bus out and choose a slot with addr=",
    ),
    (
        "nsid",
        "a one-disk controller's namespace is 1; use a nvme-ns device to choose",
    ),
    ("shared", "belongs to nvme-subsys and nvme-ns"),
    (
        "num_queues",
        "replaced by max_ioqpairs (without the admin queue)",
    ),
    ("ioeventfd", "always on in berth; leave it out"),
    ("dbcs", "always on in berth; leave it out"),
    ("msix_qsize", "follows max_ioqpairs in berth; leave it out"),
    (
        "iothread",
        "berth has its own I/O threads; use io-threads=NUMBER",
    ),
    ("physical_block_size", ABSENT),
    ("pmrdev", ABSENT),
    ("cmb_size_mb", ABSENT),
    ("legacy-cmb", ABSENT),
    ("aerl", ABSENT),
    ("aer_max_queued", ABSENT),
    ("vsl", ABSENT),
    ("use-intel-id", ABSENT),
    ("ocp", ABSENT),
    ("bootindex", ABSENT),
    ("msix-exclusive-bar", ABSENT),
    ("smart_critical_warning", ABSENT),
    ("spdm_port", ABSENT),
    ("spdm_trans", ABSENT),
    ("sriov_max_vfs", ABSENT),
    ("sriov_vq_flexible", ABSENT),
    ("sriov_vi_flexible", ABSENT),
    ("sriov_max_vi_per_vf", ABSENT),
    ("sriov_max_vq_per_vf", ABSENT),
    ("ctratt.", ABSENT),
    ("atomic.", ABSENT),
    ("zoned.", ABSENT),
];

/// The same for `nvme-ns`.
const NAMESPACE_HINTS: &[(&str, &str)] = &[
    ("latency", LATER),
    (
        "size",
        "the size is the image's; for memory and null give memory=SIZE or null=SIZE",
    ),
    ("format", "images are always raw; leave it out"),
    ("readonly", "called ro here"),
    ("read-only", "called ro here"),
    ("physical_block_size", ABSENT),
    ("ms", ABSENT),
    ("mset", ABSENT),
    ("pi", ABSENT),
    ("pil", ABSENT),
    ("pif", ABSENT),
    ("mssrl", ABSENT),
    ("mcl", ABSENT),
    ("msrc", ABSENT),
    ("zoned", ABSENT),
    ("eui64-default", ABSENT),
    ("bootindex", ABSENT),
    ("zoned.", ABSENT),
    ("fdp.", ABSENT),
    ("atomic.", ABSENT),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(argument: &str) -> ControllerSpec {
        match argument.parse().unwrap() {
            DeviceSpec::Controller(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    fn namespace(argument: &str) -> NamespaceSpec {
        match argument.parse().unwrap() {
            DeviceSpec::Namespace(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    fn subsystem(argument: &str) -> SubsystemSpec {
        match argument.parse().unwrap() {
            DeviceSpec::Subsystem(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    /// The message for an argument that is refused, without the argument.
    fn refusal(argument: &str) -> String {
        let error = argument.parse::<DeviceSpec>().unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("{argument}: ")),
            "{error}"
        );
        error.problem.to_string()
    }

    #[test]
    fn defaults_are_qemus() {
        let expected = ControllerSpec {
            id: None,
            subsys: None,
            addr: None,
            serial: None,
            model: None,
            firmware: None,
            max_ioqpairs: 64,
            mqes: 0x7ff,
            mdts: 7,
            io_threads: None,
            cntlid: None,
            disk: None,
        };
        assert_eq!(controller("nvme"), expected);
        assert_eq!(controller("driver=nvme"), expected);
        let disk = DiskSpec {
            backend: BackendSpec::File {
                path: "a.img".into(),
                cache: CacheMode::Writeback,
            },
            logical_block_size: 512,
            ro: false,
        };
        let expected = NamespaceSpec {
            id: None,
            bus: None,
            nsid: None,
            disk,
            shared: true,
            detached: false,
            ctrl: None,
            uuid: None,
            eui64: None,
            nguid: None,
        };
        assert_eq!(namespace("nvme-ns,file=a.img"), expected);
        assert_eq!(namespace("nvme-ns,drive=a.img,eui64=0,uuid=auto"), expected);
        assert_eq!(NamespaceSpec::from_disk("a.img").unwrap(), expected);
        assert_eq!(NamespaceSpec::from_disk("file=a.img").unwrap(), expected);
        let spec = subsystem("nvme-subsys,id=s0");
        assert!(spec.shared);
        assert_eq!(spec.nqn, "nqn.2024-07.internal.berth:s0");
    }

    #[test]
    fn every_property_arrives() {
        let spec = controller(
            "nvme,id=c,subsys=s,addr=0x1f,serial=12345678901234567890,model=A model,firmware=1.0,\
             max_ioqpairs=128,mqes=0xffff,mdts=9,io-threads=2,cntlid=65519,null=1T,ro,\
             logical_block_size=4096",
        );
        let expected = ControllerSpec {
            id: Some("c".into()),
            subsys: Some("s".into()),
            addr: Some(31),
            serial: Some("12345678901234567890".into()),
            model: Some("A model".into()),
            firmware: Some("1.0".into()),
            max_ioqpairs: 128,
            mqes: 0xffff,
            mdts: 9,
            io_threads: Some(2),
            cntlid: Some(65_519),
            disk: Some(DiskSpec {
                backend: BackendSpec::Null(1 << 40),
                logical_block_size: 4096,
                ro: true,
            }),
        };
        assert_eq!(spec, expected);
        let spec = namespace(
            "nvme-ns,id=n,bus=s,nsid=1024,file=a,,b.img,cache=none,shared=off,detached,ctrl=c,\
             uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8,eui64=0x0123456789abcdef,\
             nguid=00112233-44556677-8899aabb-ccddeeff",
        );
        assert_eq!(spec.nsid, Some(1024));
        assert_eq!(spec.ctrl.as_deref(), Some("c"));
        assert!(!spec.shared && spec.detached);
        assert_eq!(spec.eui64, Some(0x0123_4567_89ab_cdef));
        assert_eq!(spec.uuid.unwrap()[..4], [0x6b, 0xa7, 0xb8, 0x10]);
        let nguid = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128;
        assert_eq!(spec.nguid, Some(nguid.to_be_bytes()));
        let path = PathBuf::from("a,b.img");
        assert_eq!(
            spec.disk.backend,
            BackendSpec::File {
                path,
                cache: CacheMode::None
            }
        );
    }

    #[test]
    fn slots_take_qemus_forms() {
        for (text, slot) in [
            ("5", 5),
            ("05", 5),
            ("05.0", 5),
            ("0x5", 5),
            ("1f", 31),
            ("10", 16),
        ] {
            assert_eq!(
                controller(&format!("nvme,addr={text}")).addr,
                Some(slot),
                "{text}"
            );
        }
        for text in [
            "0", "20", "05.1", "5.", ".0", "0x", "+5", "00:05.0", "105", "x",
        ] {
            let expected = format!(
                "addr={text}: must be a PCI slot from 1 to 1f (hexadecimal, as in QEMU), such as 05 \
                 or 05.0"
            );
            assert_eq!(refusal(&format!("nvme,addr={text}")), expected);
        }
    }

    #[test]
    fn cache_modes_have_the_names_that_they_show() {
        for name in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
            let spec = namespace(&format!("nvme-ns,file=a,cache={name}"));
            let BackendSpec::File { cache, .. } = spec.disk.backend else {
                panic!("no file")
            };
            assert_eq!(cache.to_string(), name);
        }
    }

    #[test]
    fn an_nqn_is_qemus_suffix_or_whole() {
        let whole = "nqn.2014-08.org.nvmexpress:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        assert_eq!(
            subsystem(&format!("nvme-subsys,id=s,nqn={whole}")).nqn,
            whole
        );
        assert_eq!(
            subsystem("nvme-subsys,id=s,nqn=t").nqn,
            "nqn.2024-07.internal.berth:t"
        );
        let longest = format!("nqn.{}", "é".repeat(109));
        assert_eq!(
            subsystem(&format!("nvme-subsys,id=s,nqn={longest}x"))
                .nqn
                .len(),
            MAX_NQN_LEN
        );
        let long = format!("{longest}xx");
        let expected = format!("nqn={long}: the NQN has 224 bytes; at most 223 fit");
        assert_eq!(refusal(&format!("nvme-subsys,id=s,nqn={long}")), expected);
        let expected = "nqn=a\tb: an NQN has no control characters";
        assert_eq!(refusal("nvme-subsys,id=s,nqn=a\tb"), expected);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (argument, expected) in [
            (
                "nvme-ns,ctrl=c,null=1G",
                "ctrl names the one controller of a private namespace; it needs shared=off",
            ),
            (
                "nvme-ns,file=a,drive=b",
                "drive and file mean the same; give one of them",
            ),
            (
                "nvme-ns,file=a,null=1G",
                "file, memory and null exclude each other; give one of them",
            ),
            (
                "nvme-ns,memory=1G,null=1G",
                "file, memory and null exclude each other; give one of them",
            ),
            ("nvme-ns,memory=1G,cache=none", "cache is for file= only"),
            (
                "nvme-ns",
                "file is missing; give one of file=PATH, memory=SIZE and null=SIZE",
            ),
            (
                "nvme,ro",
                "logical_block_size, ro and cache describe a disk; give one of file=PATH, memory=SIZE and null=SIZE",
            ),
            (
                "nvme-ns,memory=1000",
                "memory=1000: must be a multiple of the block size, 512",
            ),
            ("nvme-ns,memory=0", "memory=0: must be from one block to 1T"),
            (
                "nvme-ns,memory=2T",
                "memory=2T: must be from one block to 1T",
            ),
            (
                "nvme-ns,null=1025T",
                "null=1025T: must be from one block to 1024T",
            ),
            (
                "nvme-ns,null=512,logical_block_size=4096",
                "null=512: must be a multiple of the block size, 4096",
            ),
            (
                "nvme-subsys",
                "id is missing; controllers and namespaces name the subsystem by it",
            ),
        ] {
            assert_eq!(refusal(argument), expected);
        }
    }

    #[test]
    fn qemus_other_properties_are_explained() {
        for (argument, expected) in [
            (
                "nvme-subsys,id=s,pool=/tmp",
                "pool: not supported by berth yet",
            ),
            (
                "nvme-subsys,id=s,fdp.nrg=1",
                "fdp.nrg: not supported by berth",
            ),
            ("nvme,cmb_size_mb=64", "cmb_size_mb: not supported by berth"),
            (
                "nvme,bus=pcie.0",
                "bus: berth has one PCI bus; leave bus out and choose a slot with addr=",
            ),
            (
                "nvme,ioeventfd=on",
                "ioeventfd: always on in berth; leave it out",
            ),
            ("nvme-ns,null=1G,zoned=on", "zoned: not supported by berth"),
            (
                "nvme-ns,zoned.zone_size=1M",
                "zoned.zone_size: not supported by berth",
            ),
        ] {
            assert_eq!(refusal(argument), expected);
        }
    }

    #[test]
    fn hints_do_not_hide_what_berth_has() {
        for (driver, hints) in [
            ("nvme-subsys,id=s", SUBSYSTEM_HINTS),
            ("nvme", CONTROLLER_HINTS),
            ("nvme-ns,null=1G", NAMESPACE_HINTS),
        ] {
            let error = format!("{driver},bogus").parse::<DeviceSpec>().unwrap_err();
            let Problem::UnknownKey { allowed, .. } = error.problem else {
                panic!("{error}")
            };
            for (key, _) in hints {
                assert!(!allowed.contains(key), "{driver} has {key}");
            }
        }
    }
}
