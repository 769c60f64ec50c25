//! Command lines of `berth run`.

use std::ffi::OsString;

use super::super::parse;
use super::super::testing::{K, config, printed, refused};
use super::*;
use crate::grammar::Problem;
use crate::spec::BackendSpec;

#[test]
fn defaults_are_small() {
    let config = config("");
    let expected = RunConfig {
        kernel: config.kernel.clone(),
        initrd: None,
        append: String::new(),
        memory: 512 << 20,
        cpus: 1,
        disks: vec![],
        objects: vec![],
        devices: vec![],
        drives: Drives::new(),
        warnings: vec![],
        control_pipe: None,
        control_socket: None,
        io_threads: 1,
        memory_lock: MemoryLock::Off,
        io_affinity: Vec::new(),
        com2: None,
        command: None,
        trace: None,
        verbosity: 0,
    };
    assert_eq!(config, expected);
}

#[test]
fn limits_are_inside() {
    for (line, memory) in [
        ("-m 64", 64 << 20),
        ("-m 1T", 1 << 40),
        ("-m 66M", 66 << 20),
    ] {
        assert_eq!(config(line).memory, memory);
    }
    assert_eq!(config("--cpus 64").cpus, 64);
}

/// As QEMU's users type it.
#[test]
fn qemus_forms_are_taken() {
    let config = config(
        "-drive file=DIR/a.img,if=none,id=d,format=raw,cache=none,aio=native -object \
         nvme-subsys,id=s -device nvme,id=c,subsys=s,bus=pcie.0 -device nvme-ns,drive=d,bus=c \
         -drive if=none,id=e,readonly=on,file=DIR/a.img --disk drive=e",
    );
    let file = |disk: &DiskSpec| match &disk.backend {
        BackendSpec::File { path, cache } => (path.ends_with("a.img"), cache.to_string(), disk.ro),
        other => panic!("{other:?}"),
    };
    let devices: Vec<_> = config.devices.iter().filter_map(DeviceSpec::disk).collect();
    assert_eq!(file(devices[0]), (true, "none".into(), false));
    assert_eq!(
        file(&config.disks[0].disk),
        (true, "writeback".into(), true)
    );
    assert_eq!(config.objects[0].id(), Some("s"));
    assert_eq!(config.drives.len(), 2);
    let [aio, bus] = config.warnings.as_slice() else {
        panic!("{:?}", config.warnings)
    };
    assert!(aio.starts_with("--drive file=") && aio.contains(": aio=native is ignored: "));
    assert!(bus.starts_with("--device nvme,id=c,subsys=s,bus=pcie.0: bus=pcie.0 is ignored: "));
}

#[test]
fn devices_and_disks_arrive_in_order() {
    let config = config(
        "--disk DIR/a.img,ro --disk DIR/b,,c.img,id=d --disk memory=1M --device nvme-subsys,id=s \
         --device=nvme,id=c0,subsys=s --device nvme-ns,bus=s,null=1G --control-pipe DIR/good \
         --control-socket DIR/socket --com2 DIR/new --io-threads 64 --overcommit mem-lock=on --initrd DIR/a.img",
    );
    assert_eq!(config.disks.len(), 3);
    assert!(config.disks[0].disk.ro);
    assert_eq!(config.disks[1].id.as_deref(), Some("d"));
    let BackendSpec::File { path, .. } = &config.disks[1].disk.backend else {
        panic!("no file")
    };
    assert!(path.ends_with("b,c.img"));
    assert_eq!(config.disks[2].disk.backend, BackendSpec::Memory(1 << 20));
    let drivers: Vec<_> = config.devices.iter().map(DeviceSpec::driver).collect();
    assert_eq!(drivers, ["nvme-subsys", "nvme", "nvme-ns"]);
    assert_eq!(config.io_threads, 64);
    assert_eq!(config.memory_lock, MemoryLock::On);
    assert!(config.control_pipe.is_some() && config.control_socket.is_some());
    assert!(config.com2.is_some() && config.initrd.is_some());
}

#[test]
fn io_threads_are_bound_to_cpus_that_there_are() {
    let cpu = devices::affinity::allowed().unwrap()[0];
    let config = config(&format!("--io-threads 2 --io-affinity {cpu},{cpu}-{cpu}"));
    assert_eq!((config.io_threads, config.io_affinity), (2, vec![cpu; 2]));
}

#[test]
fn a_root_on_a_disk_of_another_kind_is_warned_of() {
    let warning = |append: &str| config(&format!("--append={append}")).warnings.pop();
    for (append, root) in [
        ("root=/dev/vda", "root=/dev/nvme0n1,"),
        ("quiet~root=/dev/sdb2~rw", "root=/dev/nvme0n2p2,"),
        ("root=/dev/xvda1", "root=/dev/nvme0n1p1,"),
    ] {
        let warning = warning(append).unwrap();
        assert!(warning.contains(root), "{warning}");
    }
    for append in [
        "root=/dev/nvme0n1",
        "root=LABEL=x",
        "x=/dev/vda",
        "root=/dev/vd",
    ] {
        assert_eq!(warning(append), None, "{append}");
    }
}

#[test]
fn help_names_every_property_and_status() {
    let help = printed("run --help");
    for driver in ["nvme-subsys,id=s", "nvme", "nvme-ns,null=1G"] {
        let argument = format!("{driver},bogus");
        let error = DeviceSpec::parse(&argument, Form::Device).unwrap_err();
        let Problem::UnknownKey { allowed, .. } = error.problem else {
            panic!("{error}")
        };
        for key in allowed {
            assert!(help.contains(key), "{key} of {driver}");
        }
    }
    for status in [
        "  0 ", "  1 ", "  32 ", "  33 ", "  34 ", "  35 ", "  126 ", "  127 ", "  255 ",
    ] {
        assert!(help.contains(status), "{status}");
    }
    for line in help.lines() {
        assert!(line.chars().count() <= 105, "{line}");
    }
}

#[test]
fn wrong_values_are_refused() {
    refused(
        35,
        &[
            (
                &format!("{K} --trace -"),
                "--trace -: standard output is the guest's console; give a file, or a FIFO that is read",
            ),
            (
                "run",
                "--kernel: is missing; give a bzImage or an ELF kernel, --kernel FILE",
            ),
            ("run --kernel= ", "--kernel: the path is empty"),
            (
                "run bzImage",
                "bzImage: unexpected argument; a kernel is given with --kernel, an image with --disk, \
                 a command behind \"--\"",
            ),
            (
                "run --kernel x - -v",
                "-: unexpected argument; a kernel is given with --kernel, an image with --disk, \
                 a command behind \"--\"",
            ),
            (
                &format!("{K} -m 63M"),
                "--memory 63M: must be from 64M to 1T",
            ),
            (&format!("{K} -m 2T"), "--memory 2T: must be from 64M to 1T"),
            (
                &format!("{K} -m 65"),
                "--memory 65: must be a multiple of 2M",
            ),
            (
                &format!("{K} --memory=1GB"),
                "--memory 1GB: must be a size: a number of bytes, or a number with K, M, G or T",
            ),
            (
                &format!("{K} -m 99999999T"),
                "--memory 99999999T: the size does not fit 64 bits",
            ),
            (
                &format!("{K} -m -1"),
                "--memory -1: must be a size: a number of bytes, or a number with K, M, G or T",
            ),
            (
                &format!("{K} --cpus 0"),
                "--cpus 0: must be a number from 1 to 64",
            ),
            (
                &format!("{K} --cpus 65"),
                "--cpus 65: must be a number from 1 to 64",
            ),
            (
                &format!("{K} --cpus two"),
                "--cpus two: must be a number from 1 to 64",
            ),
            (
                &format!("{K} --overcommit cpu-pm=on"),
                "--overcommit cpu-pm=on: must be mem-lock=on or mem-lock=off",
            ),
            (
                &format!("{K} --io-threads 65"),
                "--io-threads 65: must be a number from 1 to 64",
            ),
            (
                &format!("{K} --io-affinity 1-"),
                "--io-affinity 1-: must be CPUs and ranges of CPUs, such as 2-3:5",
            ),
            (
                &format!("{K} --disk DIR/a.img,nsid=0"),
                "--disk DIR/a.img,nsid=0: nsid=0: 0 is no namespace; leave nsid out to have one chosen",
            ),
            (
                &format!("{K} --disk DIR/a.img,rw"),
                "--disk DIR/a.img,rw: unknown property \"rw\" of a disk (did you mean \"ro\"?); allowed: bus, cache, ctrl, detached, drive, eui64, file, format, id, logical_block_size, memory, nguid, nsid, null, ro, shared, uuid",
            ),
            (
                &format!("{K} --disk DIR/a.img,bus=s"),
                "--disk DIR/a.img,bus=s: a disk is on the default subsystem; use --device nvme-ns to choose one",
            ),
            (
                &format!("{K} --disk DIR/b,c.img"),
                "--disk DIR/b,c.img: unknown property \"c.img\" of a disk; allowed: bus, cache, ctrl, detached, drive, eui64, file, format, id, logical_block_size, memory, nguid, nsid, null, ro, shared, uuid",
            ),
            (
                &format!("{K} --disk="),
                "--disk : empty property (a comma in a value is written \",,\")",
            ),
            (
                &format!("{K} --disk DIR/a.img,id=x --disk DIR/kernel,id=x"),
                "--disk DIR/kernel,id=x: the id x is taken by --disk DIR/a.img,id=x",
            ),
            (
                &format!("{K} --disk null=1M,id=x --device nvme,id=x"),
                "--device nvme,id=x: the id x is taken by --disk null=1M,id=x",
            ),
        ],
    );
}

#[test]
fn wrong_drives_and_objects_are_refused() {
    refused(
        35,
        &[
            (
                &format!("{K} --drive id=d,file=DIR/a.img --drive id=d,file=DIR/a.img"),
                "--drive id=d,file=DIR/a.img: the id d is taken by another --drive",
            ),
            (
                &format!("{K} --object nvme-subsys,id=s --device nvme,id=s"),
                "--device nvme,id=s: the id s is taken by --object nvme-subsys,id=s",
            ),
            (
                &format!("{K} --object nvme,id=c"),
                "--object nvme,id=c: a controller is a PCI device; use --device or device_add",
            ),
        ],
    );
}

#[test]
fn wrong_devices_are_refused() {
    let allowed = "addr, cache, cntlid, drive, file, firmware, format, id, io-affinity, io-threads, logical_block_size, max_ioqpairs, \
                   mdts, memory, model, mqes, null, poll-us, ro, serial, subsys";
    let drivers = "known drivers: nvme, nvme-ns, nvme-subsys";
    let table = [
        (
            "",
            "empty property (a comma in a value is written \",,\")".to_owned(),
        ),
        (
            "nvem",
            format!("unknown driver \"nvem\" (did you mean \"nvme\"?); {drivers}"),
        ),
        (
            "nvme-nss,null=1M",
            format!("unknown driver \"nvme-nss\" (did you mean \"nvme-ns\"?); {drivers}"),
        ),
        (
            "disk.img",
            "the driver is missing; an image is given with --disk FILE, or as nvme-ns,file=FILE"
                .into(),
        ),
        (
            "virtio-blk",
            format!("unknown driver \"virtio-blk\"; {drivers}"),
        ),
        ("id=x", format!("the driver is missing; {drivers}")),
        (
            "nvme,seriall=1",
            format!(
                "unknown property \"seriall\" of nvme (did you mean \"serial\"?); allowed: {allowed}"
            ),
        ),
        (
            "nvme,id=1x",
            "id=1x: an id is a letter, then letters, digits, \"-\", \".\" and \"_\"".into(),
        ),
        ("nvme,id=", "id=: the value is empty".into()),
        ("nvme,id=a,id=b", "id is given twice".into()),
        (
            "nvme,serial=123456789012345678901",
            "serial=123456789012345678901: has 21 characters; at most 20 fit".into(),
        ),
        ("nvme,serial=é", "serial=é: must be printable ASCII".into()),
        (
            "nvme,firmware=123456789",
            "firmware=123456789: has 9 characters; at most 8 fit".into(),
        ),
        (
            "nvme,max_ioqpairs=129",
            "max_ioqpairs=129: must be a number from 1 to 128".into(),
        ),
        (
            "nvme,mqes=0",
            "mqes=0: must be a number from 1 to 65535".into(),
        ),
        (
            "nvme,mdts=10",
            "mdts=10: must be a number from 1 to 9".into(),
        ),
        (
            "nvme,cntlid=65520",
            "cntlid=65520: must be a number from 0 to 65519".into(),
        ),
        (
            "nvme,io-threads=0",
            "io-threads=0: must be a number from 1 to 64".into(),
        ),
        (
            "nvme,ro=maybe,null=1M",
            "ro=maybe: must be on or off (or yes, no, true, false)".into(),
        ),
        (
            "nvme-ns,null=1M,nsid=1025",
            "nsid=1025: berth's limit is 1024 namespaces; use 1 to 1024".into(),
        ),
        (
            "nvme-ns,null=1M,nsid=0xffffffff",
            "nsid=0xffffffff: berth's limit is 1024 namespaces; use 1 to 1024".into(),
        ),
        (
            "nvme-ns,null=1M,nsid=0x100000000",
            "nsid=0x100000000: must be a number from 1 to 1024".into(),
        ),
        (
            "nvme-ns,null=1M,logical_block_size=1024",
            "logical_block_size=1024: must be 512 or 4096".into(),
        ),
        (
            "nvme-ns,null=1M,uuid=1",
            "uuid=1: must be a UUID such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8, or auto".into(),
        ),
        (
            "nvme-ns,null=1M,uuid=00000000-0000-0000-0000-000000000000",
            "uuid=00000000-0000-0000-0000-000000000000: the nil UUID names nothing; use auto"
                .into(),
        ),
        (
            "nvme-ns,null=1M,nguid=12",
            "nguid=12: must be 32 hexadecimal digits, not all zero (dashes are allowed)".into(),
        ),
        (
            "nvme-ns,null=1M,eui64=x",
            "eui64=x: must be a number from 0 to 18446744073709551615".into(),
        ),
        (
            "nvme-ns,file=a,cache=fast",
            "cache=fast: must be one of writeback, none, writethrough, directsync, unsafe".into(),
        ),
    ];
    for (device, problem) in &table {
        // A device argument is one word here even where it is empty.
        let arguments = ["run", "--kernel", "/dev/null", "--device", device];
        let error = parse(arguments.map(OsString::from)).expect_err(device);
        assert_eq!(error.to_string(), format!("--device {device}: {problem}"));
        assert_eq!(error.status(), 35);
    }
}
