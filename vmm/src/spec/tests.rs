//! What device arguments mean, and what is said of wrong ones.

use super::*;
use crate::grammar::Hint;

fn device(argument: &str) -> DeviceSpec {
    DeviceSpec::parse(argument, Form::Device).unwrap().spec
}

fn controller(argument: &str) -> ControllerSpec {
    match device(argument) {
        DeviceSpec::Controller(spec) => spec,
        other => panic!("{other:?}"),
    }
}

fn namespace(argument: &str) -> NamespaceSpec {
    match device(argument) {
        DeviceSpec::Namespace(spec) => spec,
        other => panic!("{other:?}"),
    }
}

fn subsystem(argument: &str) -> SubsystemSpec {
    match device(argument) {
        DeviceSpec::Subsystem(spec) => spec,
        other => panic!("{other:?}"),
    }
}

/// The message for an argument that is refused, without the argument.
fn refusal(argument: &str) -> String {
    let error = DeviceSpec::parse(argument, Form::Device).unwrap_err();
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
        poll_us: 50,
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
        format: Format::Probed,
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
    assert_eq!(namespace("nvme-ns,file=a.img,eui64=0,uuid=auto"), expected);
    assert_eq!(NamespaceSpec::from_disk("a.img").unwrap().spec, expected);
    assert_eq!(
        NamespaceSpec::from_disk("file=a.img").unwrap().spec,
        expected
    );
    let spec = subsystem("nvme-subsys,id=s0");
    assert!(spec.shared);
    assert_eq!(spec.nqn, "nqn.2024-07.internal.berth:s0");
}

#[test]
fn every_property_arrives() {
    let spec = controller(
        "nvme,id=c,subsys=s,addr=0x1f,serial=12345678901234567890,model=A model,firmware=1.0,\
         max_ioqpairs=128,mqes=0xffff,mdts=9,poll-us=1000,io-threads=2,cntlid=65519,null=1T,ro,\
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
        poll_us: 1000,
        io_threads: Some(Box::new(IoThreadsSpec {
            count: 2,
            cpus: Vec::new(),
        })),
        cntlid: Some(65_519),
        disk: Some(DiskSpec {
            backend: BackendSpec::Null(1 << 40),
            logical_block_size: 4096,
            ro: true,
            format: Format::Probed,
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
            "logical_block_size, ro, cache and format describe a disk; give one of file=PATH, memory=SIZE and null=SIZE",
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
        let error = DeviceSpec::parse(&format!("{driver},bogus"), Form::Device).unwrap_err();
        let Problem::UnknownKey { allowed, .. } = error.problem else {
            panic!("{error}")
        };
        for (key, _) in hints {
            assert!(!allowed.contains(key), "{driver} has {key}");
        }
    }
}

/// What of an argument is left out.
fn ignored(argument: &str) -> Vec<String> {
    DeviceSpec::parse(argument, Form::Device).unwrap().ignored
}

#[test]
fn what_changes_nothing_is_left_out() {
    let expected = [
        "bus=rp1 is ignored: berth has one PCI bus, all of whose slots can be hot-plugged; choose one \
         with addr=",
        "ioeventfd=on is ignored: doorbells of shadowed queues always are ioeventfds in berth",
    ];
    let argument = "nvme,id=c,bus=rp1,cmb_size_mb=0,ioeventfd=on,use-intel-id=off";
    assert_eq!(ignored(argument), expected);
    assert_eq!(controller(argument), controller("nvme,id=c"));
    assert!(ignored("nvme-ns,null=1G,zoned=off,ms=0,fdp.nru=0").is_empty());
    assert_eq!(
        refusal("nvme-ns,null=1G,ms=8"),
        "ms: not supported by berth"
    );
    assert_eq!(
        refusal("nvme,ioeventfd=on,sriov_max_vfs=2"),
        "sriov_max_vfs: not supported by berth"
    );
}

#[test]
fn objects_are_the_same_subsystems_and_namespaces() {
    for (object, same) in [
        (
            "nvme-subsys,id=s,subnqn=nqn.2024-07.internal.berth:x",
            "nvme-subsys,id=s,nqn=x",
        ),
        (
            "qom-type=nvme-ns,id=n,subsys=s,blkdev=d,nsid=2",
            "nvme-ns,id=n,bus=s,drive=d,nsid=2",
        ),
    ] {
        let parsed = DeviceSpec::parse(object, Form::Object).unwrap();
        assert_eq!(parsed.spec, device(same));
        assert!(parsed.ignored.is_empty());
    }
    let refusal = |argument: &str| {
        let error = DeviceSpec::parse(argument, Form::Object).unwrap_err();
        error.problem.to_string()
    };
    assert_eq!(
        refusal("nvme,id=c"),
        "a controller is a PCI device; use --device or device_add"
    );
    let unknown = "unknown driver \"iothread\"; known drivers: nvme-ns, nvme-subsys";
    assert_eq!(refusal("iothread,id=t"), unknown);
    assert_eq!(
        refusal("nvme-ns,subsys=s,bus=s,memory=1M"),
        "subsys and bus mean the same; give one of them"
    );
}

#[test]
fn a_drive_stands_for_its_image() {
    let parsed =
        DriveSpec::parse("file=a.img,if=none,id=d,format=raw,cache=none,readonly=on,aio=native");
    let parsed = parsed.unwrap();
    assert_eq!(
        parsed.ignored,
        ["aio=native is ignored: berth chooses how it does I/O by what the file can do"]
    );
    let drive = |argument: &str| {
        let spec = DriveSpec::parse(argument).unwrap().spec;
        (spec.id.clone(), spec)
    };
    let drives = Drives::from([
        ("d".to_owned(), parsed.spec),
        drive("file=r.img,id=r,format=raw"),
        drive("file=p.img,id=p"),
    ]);
    let resolved = |argument: &str| {
        let mut spec = device(argument);
        spec.resolve(&drives);
        spec
    };
    for (argument, same) in [
        (
            "nvme,drive=d",
            "nvme,file=a.img,cache=none,ro=on,format=raw",
        ),
        (
            "nvme-ns,drive=d,cache=unsafe",
            "nvme-ns,file=a.img,cache=unsafe,ro=on,format=raw",
        ),
        // What either says of the format counts.
        ("nvme-ns,drive=r", "nvme-ns,file=r.img,format=raw"),
        (
            "nvme-ns,drive=p,format=raw",
            "nvme-ns,file=p.img,format=raw",
        ),
        // No drive's id is a path.
        ("nvme-ns,drive=b.img", "nvme-ns,file=b.img"),
        ("nvme-ns,null=1G", "nvme-ns,null=1G"),
        ("nvme-subsys,id=d", "nvme-subsys,id=d"),
    ] {
        assert_eq!(resolved(argument), device(same), "{argument}");
    }
    let refusal = |argument: &str| DriveSpec::parse(argument).unwrap_err().problem.to_string();
    for (argument, expected) in [
        (
            "file=a,if=none",
            "id is missing; a device names the drive by it, with drive=; an image alone is given with --disk FILE",
        ),
        (
            "id=d,if=none",
            "file is missing; give the path of a raw image or block device",
        ),
        (
            "file=a,id=d,format=qcow2",
            "format=qcow2: must be raw; convert it first (qemu-img convert -O raw)",
        ),
        (
            "file=a,id=d,if=virtio",
            "if=virtio: must be none, for a device with drive= to use it; or use --disk",
        ),
        (
            "file=a,id=d,snapshot=on",
            "snapshot: not supported by berth",
        ),
    ] {
        assert_eq!(refusal(argument), expected);
    }
}

/// A row of the table of properties in docs/qemu.md, if there is anything in it.
fn row(driver: &str, what: &str, mut keys: Vec<String>) -> Option<String> {
    keys.sort_unstable();
    (!keys.is_empty()).then(|| format!("| `{driver}` | {what} | {} |", keys.join(", ")))
}

/// The table of properties is made of what berth does with them.
#[test]
fn the_documentation_tells_what_becomes_of_qemus_properties() {
    let allowed = |error: SpecError| match error.problem {
        Problem::UnknownKey { allowed, .. } => allowed,
        problem => panic!("{problem}"),
    };
    let device = |argument: &str| allowed(DeviceSpec::parse(argument, Form::Device).unwrap_err());
    let drive = allowed(DriveSpec::parse("file=a,id=d,bogus").unwrap_err());
    let mut rows = Vec::new();
    for (driver, allowed, hints) in [
        (
            "nvme-subsys",
            device("nvme-subsys,id=s,bogus"),
            SUBSYSTEM_HINTS,
        ),
        ("nvme", device("nvme,bogus"), CONTROLLER_HINTS),
        ("nvme-ns", device("nvme-ns,null=1G,bogus"), NAMESPACE_HINTS),
        ("--drive", drive, DRIVE_HINTS),
    ] {
        let quoted = |key: &str| {
            let rest = if key.ends_with('.') { "*" } else { "" };
            format!("`{key}{rest}`")
        };
        let with = |which: fn(&Hint) -> bool| {
            let keys = hints.iter().filter(|(_, hint)| which(hint));
            keys.map(|(key, _)| quoted(key)).collect::<Vec<_>>()
        };
        let accepted = allowed.iter().map(|key| quoted(key)).collect();
        rows.extend(row(driver, "accepted", accepted));
        let ignored = with(|hint| matches!(hint, Hint::Ignored(_)));
        rows.extend(row(driver, "ignored with a warning", ignored));
        let absent = with(|hint| *hint == Hint::Absent);
        rows.extend(row(driver, "refused, unless `off` or 0", absent));
        let refused = with(|hint| matches!(hint, Hint::Refused(_)));
        rows.extend(row(driver, "refused with a hint", refused));
    }
    let table = rows.join("\n");
    let page = include_str!("../../../docs/qemu.md");
    assert!(
        page.contains(&table),
        "the table in docs/qemu.md should be:\n{table}"
    );
}

#[test]
fn threads_of_a_controller_are_bound_to_cpus_in_ranges() {
    let cpu = devices::affinity::allowed().unwrap()[0];
    for list in [format!("{cpu}:{cpu}-{cpu}"), format!("{cpu},,{cpu}")] {
        let parsed = DeviceSpec::parse(
            &format!("nvme,io-threads=3,io-affinity={list}"),
            Form::Device,
        );
        let DeviceSpec::Controller(spec) = parsed.unwrap().spec else {
            panic!("no controller");
        };
        let cpus = vec![cpu; 2];
        let expected = IoThreadsSpec { count: 3, cpus };
        assert_eq!(spec.io_threads.as_deref(), Some(&expected));
    }
    let allowed = "must be CPUs and ranges of CPUs, such as 2-3:5";
    assert_eq!(
        refusal("nvme,io-threads=2,io-affinity=x"),
        format!("io-affinity=x: {allowed}")
    );
    let not_there = refusal("nvme,io-threads=2,io-affinity=99999");
    let told = "io-affinity=99999: CPU 99999 is not there for berth; allowed: ";
    assert!(not_there.starts_with(told), "{not_there}");
    assert_eq!(
        refusal(&format!("nvme,io-affinity={cpu}")),
        "io-affinity is for io-threads= only; the machine's I/O threads have --io-affinity"
    );
}
