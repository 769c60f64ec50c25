//! Command lines, right and wrong, parsed in this process.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;
use crate::grammar::Problem;
use crate::guest_command::{RootKind, With};
use crate::spec::BackendSpec;

/// A directory with files of all kinds; its path is `DIR` in the tables.
fn files() -> TempDir {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["kernel", "a.img", "b,c.img", "base.in", "half.out"] {
        fs::write(path(name), "content").unwrap();
    }
    fs::create_dir(path("dir")).unwrap();
    for name in ["fifo", "good.in", "good.out", "half.in"] {
        crate::control::sys::mkfifo(&path(name)).unwrap();
    }
    drop(UnixListener::bind(path("socket")).unwrap());
    dir
}

/// Parses a line split at blanks, `DIR` replaced, an argument with blanks written with `~`.
fn parse_in(dir: &TempDir, line: &str) -> Result<Invocation, CliError> {
    let base = dir.path().to_str().unwrap();
    let words = line.split_whitespace();
    parse(words.map(|word| word.replace("DIR", base).replace('~', " ").into()))
}

fn config(line: &str) -> RunConfig {
    let dir = files();
    match parse_in(&dir, &format!("run --kernel DIR/kernel {line}")).unwrap() {
        Invocation::Run(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn printed(line: &str) -> String {
    match parse_in(&files(), line).unwrap() {
        Invocation::Print(text) => text,
        other => panic!("{other:?}"),
    }
}

/// Each line is refused with exactly this message and status.
fn refused(status: u8, table: &[(&str, &str)]) {
    let dir = files();
    let base = dir.path().to_str().unwrap();
    for (line, expected) in table {
        let error = parse_in(&dir, line).expect_err(line);
        assert_eq!(
            error.to_string(),
            expected.replace("DIR", base),
            "berth {line}"
        );
        assert_eq!(error.status(), status, "berth {line}");
    }
}

#[test]
fn options_take_every_form() {
    for line in [
        "--memory 1G --cpus 4 -v -v --append a~b",
        "--memory=1G --cpus=4 -vv --append=a~b",
        "-m 1G --cpus 4 --verbose -v --append a~b",
        "-m1G --cpus=4 -vv --append a~b",
        "-vvm1024 --cpus 0x4 --append=a~b",
        "-v -m=1024M -v --cpus 4 --append a~b",
        "-memory 1G -cpus=4 -verbose -v -append a~b",
    ] {
        let config = config(line);
        assert_eq!(config.memory, 1 << 30, "{line}");
        assert_eq!(config.cpus, 4, "{line}");
        assert_eq!(config.verbosity, 2, "{line}");
        assert_eq!(config.append, "a b", "{line}");
    }
}

#[test]
fn without_a_command_there_is_nothing_to_do() {
    for line in ["", "--"] {
        assert_eq!(parse_in(&files(), line).unwrap(), Invocation::Nothing);
    }
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
fn images_of_other_formats_are_refused_unless_they_are_raw() {
    let dir = files();
    let base = dir.path().to_str().unwrap();
    fs::write(dir.path().join("b.img"), b"QFI\xfb\0\0\0\x03").unwrap();
    for option in [
        "--disk DIR/b.img",
        "--device nvme,file=DIR/b.img",
        "--device nvme,drive=d --drive id=d,file=DIR/b.img",
    ] {
        let error = parse_in(&dir, &format!("{K} {option}")).unwrap_err();
        let told = format!("{base}/b.img: is a qcow2 image, berth takes raw ones; ");
        assert!(error.to_string().contains(&told), "{error}");
        assert_eq!(error.status(), 1);
        let raw = option.replace("b.img", "b.img,format=raw");
        parse_in(&dir, &format!("{K} {raw}")).unwrap();
    }
}

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
fn values_may_look_like_options() {
    assert_eq!(config("--append=--kernel").append, "--kernel");
    assert_eq!(config("--append --quiet=1").append, "--quiet=1");
    assert_eq!(config("--append --").append, "--");
    assert_eq!(config("--append=").append, "");
    assert_eq!(
        config("--append=root=/dev/nvme0n1").append,
        "root=/dev/nvme0n1"
    );
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
fn io_threads_are_bound_to_cpus_that_there_are() {
    let cpu = devices::affinity::allowed().unwrap()[0];
    let config = config(&format!("--io-threads 2 --io-affinity {cpu},{cpu}-{cpu}"));
    assert_eq!((config.io_threads, config.io_affinity), (2, vec![cpu; 2]));
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
fn a_command_is_left_as_it_is() {
    let command = |line| config(line).command.unwrap();
    let plain = command("-v -- sh -c exit~7 --kernel -- -v");
    assert_eq!(plain.words, ["sh", "-c", "exit 7", "--kernel", "--", "-v"]);
    assert_eq!((plain.rootfs, plain.with), (None, Vec::new()));
    let full = command("--with a --with=b=/c --module m --rootfs DIR -- x");
    assert_eq!(full.modules, ["m"]);
    assert_eq!(full.with, [With::parse("a"), With::parse("b=/c")]);
    assert!(matches!(full.rootfs.unwrap().kind, RootKind::Directory(_)));
    let image = command("--rootfs DIR/a.img,ro -- x").rootfs.unwrap();
    let RootKind::Disk(spec) = image.kind else {
        panic!("no disk")
    };
    assert!(spec.disk.ro);
}

#[test]
fn a_description_can_have_a_command() {
    let dir = files();
    let line =
        "--kernel DIR/kernel --rootfs DIR --with a --with b=/c --module m -- sh -c exit~7 --x";
    let Invocation::Print(text) = parse_in(&dir, &format!("run --dry-run {line}")).unwrap() else {
        panic!("it was to be printed");
    };
    let given = parse_in(&dir, &format!("run {line}")).unwrap();
    assert_eq!(described(&dir, &text, "").unwrap(), given, "{text}");
    let Invocation::Run(other) = described(&dir, &text, "--with d -- true").unwrap() else {
        panic!("it was to be run");
    };
    let command = other.command.unwrap();
    assert_eq!(
        (command.words, command.with.len()),
        (vec!["true".to_owned()], 3)
    );
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

#[test]
fn ctl_leaves_the_command_alone() {
    for line in [
        "ctl --timeout 3 /p device_add nvme,id=x --help",
        "ctl /p --timeout=3 device_add nvme,id=x --help",
        "ctl --timeout 3 -- /p device_add nvme,id=x --help",
        "ctl /p --timeout 3 -- device_add nvme,id=x --help",
    ] {
        let expected = CtlConfig {
            path: "/p".into(),
            action: Action::Command("device_add nvme,id=x --help".into()),
            timeout: Duration::from_secs(3),
            output: Output::Text,
        };
        assert_eq!(
            parse_in(&files(), line).unwrap(),
            Invocation::Ctl(expected),
            "{line}"
        );
    }
    let Invocation::Ctl(config) = parse_in(&files(), "ctl p help").unwrap() else {
        panic!("no ctl")
    };
    assert_eq!(
        (config.action, config.timeout.as_secs()),
        (Action::Command("help".into()), 10)
    );
}

#[test]
fn help_and_version_are_on_stdout() {
    for line in ["-h", "--help", "help", "-Vh"] {
        assert!(printed(line).starts_with("Usage: berth [-V]"), "{line}");
    }
    for line in [
        "run -h",
        "run --help",
        "help run",
        "run -vh",
        "run --kernel x -h",
    ] {
        assert!(
            printed(line).starts_with("Usage: berth run --kernel FILE"),
            "{line}"
        );
    }
    for line in ["ctl -h", "ctl p --help", "help ctl"] {
        assert!(printed(line).starts_with("Usage: berth ctl "), "{line}");
    }
    for line in ["-V", "--version"] {
        assert_eq!(
            printed(line),
            format!("berth {}\n", env!("CARGO_PKG_VERSION"))
        );
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

/// The machine that a description in `machine.toml` makes.
fn described(dir: &TempDir, toml: &str, line: &str) -> Result<Invocation, CliError> {
    let base = dir.path().to_str().unwrap();
    let file = dir.path().join("machine.toml");
    fs::write(file, toml.replace("DIR", base)).unwrap();
    parse_in(dir, &format!("run --machine DIR/machine.toml {line}"))
}

#[test]
fn a_description_means_what_the_command_line_means() {
    let line = "--kernel DIR/kernel -m 1G --cpus 2 --io-threads 3 --io-affinity 0,0 --overcommit mem-lock=on --append a~b --com2 DIR/out \
                --trace DIR/trace --control-socket DIR/new --disk DIR/b,,c.img,cache=none,nsid=9 \
                --object nvme-ns,id=o,bus=s,null=1T,ro,shared=off,ctrl=c,detached \
                --drive file=DIR/a.img,id=d,if=none,readonly=on \
                --drive file=DIR/b,,c.img,id=later,cache=none --device nvme-subsys,id=s \
                --device nvme,id=c,subsys=s,addr=1f,serial=x~y,model=\"m,firmware=1,mdts=9,cntlid=0 \
                --device nvme,io-threads=2,io-affinity=0:0,poll-us=0,drive=d,logical_block_size=512 \
                --disk DIR/a.img,format=raw --drive id=raw,file=DIR/a.img,format=raw \
                --device nvme-ns,bus=s,memory=64M,logical_block_size=4096,eui64=5,\
uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8,nguid=000102030405060708090a0b0c0d0e0f";
    let dir = files();
    let run = |invocation| match invocation {
        Invocation::Run(config) => *config,
        other => panic!("{other:?}"),
    };
    let Invocation::Print(text) = parse_in(&dir, &format!("run --dry-run {line}")).unwrap() else {
        panic!("it was to be printed");
    };
    let given = run(parse_in(&dir, &format!("run {line}")).unwrap());
    assert_eq!(given.drives.len(), 3);
    assert_eq!(run(described(&dir, &text, "").unwrap()), given, "{text}");
    let again = described(&dir, &text, "--dry-run").unwrap();
    assert_eq!(again, Invocation::Print(text));
}

#[test]
fn what_is_left_out_is_told_in_a_description() {
    let text = printed("run --dry-run --kernel DIR/kernel --device nvme,id=c,msix_qsize=65");
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("# --device nvme,id=c,msix_qsize=65: "),
        "{text}"
    );
}

#[test]
fn the_command_line_wins_over_a_description() {
    let dir = files();
    let toml = "kernel = 'DIR/kernel'\ncpus = 2\n[[disk]]\nfile = 'DIR/a.img'\n";
    let Ok(Invocation::Run(config)) = described(&dir, toml, "--cpus 3 --disk null=1M") else {
        panic!("it is refused");
    };
    assert_eq!((config.cpus, config.disks.len()), (3, 2));
    assert_eq!(config.disks[1].disk.backend, BackendSpec::Null(1 << 20));
}

#[test]
fn wrong_descriptions_are_refused_with_their_name() {
    let dir = files();
    let base = dir.path().to_str().unwrap();
    for (toml, line, expected) in [
        (
            "",
            "",
            "--kernel: is missing; give a bzImage or an ELF kernel, --kernel FILE",
        ),
        (
            "kernel = ''",
            "",
            "DIR/machine.toml: --kernel: the path is empty",
        ),
        (
            "cpus = 65",
            "--kernel DIR/kernel",
            "DIR/machine.toml: --cpus 65: must be a number from 1 to 64",
        ),
        (
            "cpus = 2",
            "--kernel DIR/kernel --cpus 65",
            "--cpus 65: must be a number from 1 to 64",
        ),
        (
            "[[disk]]\nnull = '1M'\nnsid = 0",
            "--kernel DIR/kernel",
            "DIR/machine.toml: --disk nsid=0,null=1M: nsid=0: 0 is no namespace; leave nsid out \
             to have one chosen",
        ),
        (
            "[[disk]]\nfile = 'DIR/none.img'",
            "--kernel DIR/kernel",
            "DIR/machine.toml: --disk file=DIR/none.img: DIR/none.img: no such file or directory; make one: \
             truncate -s 1G DIR/none.img",
        ),
        (
            "disks = 1",
            "",
            "--machine DIR/machine.toml: unknown key \"disks\" (did you mean \"disk\"?); known: kernel, \
             initrd, append, memory, cpus, io-threads, io-affinity, overcommit, com2, rootfs, trace, \
             control-pipe, control-socket, with, module, command, disk, drive, object, device",
        ),
    ] {
        let error = described(&dir, toml, line).expect_err(toml).to_string();
        assert_eq!(error, expected.replace("DIR", base));
    }
    refused(
        1,
        &[
            (
                "run --machine DIR/none",
                "--machine DIR/none: no such file or directory; it takes a description in TOML (QEMU's machine \
                 types have no meaning here)",
            ),
            ("run --machine DIR/dir", "--machine DIR/dir: is a directory"),
        ],
    );
}

#[test]
fn manual_and_completions_know_every_option() {
    let info = BerthArgs::get_args_info();
    let manual = printed("man");
    for command in &info.commands {
        let synopsis = format!("\nberth {}", command.name);
        assert!(manual.contains(&synopsis), "{synopsis}\n{manual}");
        for flag in command.command.flags.iter().filter(|flag| !flag.hidden) {
            let escaped = flag.long.replace('-', "\\-");
            assert!(manual.contains(&escaped), "{escaped}\n{manual}");
            // The others ask berth, see complete.rs.
            let script = printed("completion nushell");
            let name = flag.long.trim_start_matches('-');
            assert!(script.contains(name), "{name}");
        }
    }
    for status in ["32", "33", "34", "35"] {
        assert!(manual.contains(&format!("\\fB{status}\\fR")), "{status}");
    }
}

#[test]
fn traces_are_read_as_asked() {
    let invocation = |line: &str| match parse_in(&files(), line).unwrap() {
        Invocation::Trace(config) => config,
        other => panic!("{other:?}"),
    };
    let summary = |file: Option<&str>, json| TraceConfig {
        file: file.map(Into::into),
        action: TraceAction::Summary { json },
    };
    assert_eq!(invocation("trace summary /t"), summary(Some("/t"), false));
    assert_eq!(invocation("trace --json summary -"), summary(None, true));
    for (line, file, out) in [
        ("trace plot /t", Some("/t"), Some("/t.html")),
        ("trace plot /t --out=x.svg", Some("/t"), Some("x.svg")),
        ("trace plot --out - /t", Some("/t"), None),
        ("trace plot -", None, None),
    ] {
        let out = out.map(Into::into);
        let action = TraceAction::Plot { out };
        let file = file.map(Into::into);
        assert_eq!(invocation(line), TraceConfig { file, action }, "{line}");
    }
    let name =
        "trace: name what to make of it and the trace; for example \"berth trace summary FILE\"";
    refused(
        35,
        &[
            ("trace", name),
            ("trace summary", name),
            ("trace plot a b", "b: unexpected argument"),
            ("trace summary /t --out x", "--out: belongs to plot"),
            ("trace plot /t --json", "--json: belongs to summary"),
            (
                "trace sumary /t",
                "trace sumary: unknown (did you mean \"summary\"?); known: summary, plot",
            ),
        ],
    );
}

#[test]
fn ctl_prints_json_if_asked_before_the_command() {
    for line in ["ctl --json /p info stats", "ctl /p --json info stats"] {
        let Invocation::Ctl(config) = parse_in(&files(), line).unwrap() else {
            panic!("no ctl")
        };
        assert_eq!(config.output, Output::Json, "{line}");
        assert_eq!(config.action, Action::Command("info stats".into()));
    }
}

const K: &str = "run --kernel DIR/kernel ";

#[test]
fn wrong_command_lines_are_refused() {
    refused(
        35,
        &[
            (
                "completion",
                "completion: name one shell of bash, fish, nushell, zsh",
            ),
            (
                "completion zhs",
                "completion zhs: unknown shell (did you mean \"zsh\"?); known: bash, fish, nushell, zsh",
            ),
            ("man berth", "berth: unexpected argument of berth man"),
            (
                &format!("{K} --trace -"),
                "--trace -: standard output is the guest's console; give a file, or a FIFO that is read",
            ),
            (
                "rum",
                "rum: unknown command (did you mean \"run\"?); known: run, ctl, fio, trace, \
                 completion, man; see \"berth --help\"",
            ),
            (
                "DIR/kernel",
                "DIR/kernel: is a file, not a command; a kernel is booted with \"berth run --kernel FILE\"",
            ),
            (
                "DIR/none",
                "DIR/none: unknown command; known: run, ctl, fio, trace, completion, man; see \"berth --help\"",
            ),
            (
                "--kernel DIR/kernel",
                "--kernel: is an option of \"berth run\"; berth run --kernel ...",
            ),
            (
                "-kernel DIR/kernel",
                "-kernel: is an option of \"berth run\"; berth run -kernel ...",
            ),
            (
                "--timeout 3",
                "--timeout: is an option of \"berth ctl\"; berth ctl --timeout ...",
            ),
            (
                "run -hda DIR/a.img",
                "-hda: is QEMU's; give an image with --disk FILE",
            ),
            (
                "run --kernel DIR/kernel --smp=2",
                "--smp: is QEMU's; give the number of vCPUs with --cpus NUMBER",
            ),
            (
                "run -nographic",
                "-nographic: is QEMU's; the guest's console always is on the terminal; leave it out",
            ),
            (
                "help me",
                "me: unknown command; known: run, ctl, fio, trace, completion, man; see \"berth --help\"",
            ),
            (
                "--verison",
                "--verison: unknown option (did you mean \"--version\"?); see \"berth --help\"",
            ),
            ("-Vx", "-x: unknown option; see \"berth --help\""),
            ("-- run", "run: unexpected argument; see \"berth --help\""),
            (
                "run",
                "--kernel: is missing; give a bzImage or an ELF kernel, --kernel FILE",
            ),
            ("run --kernel", "--kernel: its value is missing"),
            (
                "run --kernel --disk x",
                "--kernel: its value is missing; --disk follows",
            ),
            (
                "run --device -kernel k",
                "--device: its value is missing; -kernel follows",
            ),
            ("run --kernel= ", "--kernel: the path is empty"),
            ("run --kernel a --kernel=b", "--kernel: is given twice"),
            ("run -m 1G --memory 1G", "--memory: is given twice"),
            (
                "run --kernl=x",
                "--kernl: unknown option (did you mean \"--kernel\"?); see \"berth run --help\"",
            ),
            ("run -x", "-x: unknown option; see \"berth run --help\""),
            ("run -vx", "-x: unknown option; see \"berth run --help\""),
            ("run -m", "-m: its value is missing"),
            ("run --verbose=2", "--verbose: takes no value"),
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
                "run --kernel x --",
                "--: the COMMAND is missing; for example \"berth run --disk a.img -- nvme list\"",
            ),
            (
                &format!("{K} --initrd DIR/a.img -- true"),
                "--initrd DIR/a.img: a COMMAND has an initramfs of berth's own; use --rootfs or --with",
            ),
            (
                &format!("{K} --com2 DIR/x -- true"),
                "--com2 DIR/x: COM2 carries the output of the COMMAND, which is on stdout and stderr",
            ),
            (
                &format!("{K} --rootfs DIR"),
                "--rootfs DIR: needs a COMMAND behind \"--\"",
            ),
            (
                &format!("{K} --module nvme"),
                "--module nvme: needs a COMMAND behind \"--\"",
            ),
            (
                &format!("{K} --with a"),
                "--with a: needs a COMMAND behind \"--\"",
            ),
            (
                &format!("{K} --with a --rootfs DIR/a.img -- true"),
                "--with a: has no place in an image; put the file into the image of --rootfs",
            ),
            (
                &format!("{K} --rootfs memory=1M -- true"),
                "--rootfs memory=1M: must be a directory or an image",
            ),
            (
                &format!("{K} --rootfs DIR/a.img,bogus=1 -- true"),
                "--rootfs DIR/a.img,bogus=1: unknown property \"bogus\" of a disk; allowed: bus, cache, ctrl, \
                 detached, drive, eui64, file, format, id, logical_block_size, memory, nguid, nsid, null, ro, shared, uuid",
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

#[test]
fn wrong_ctl_lines_are_refused() {
    refused(
        35,
        &[
            (
                "ctl",
                "PATH: is missing; for example \"berth ctl /tmp/berth info status\"",
            ),
            (
                "ctl /p",
                "COMMAND: is missing; for example \"berth ctl /p help\"",
            ),
            (
                "ctl /p ~",
                "COMMAND: is missing; for example \"berth ctl /p help\"",
            ),
            (
                "ctl --timeout 0 /p help",
                "--timeout 0: must be a number from 1 to 3600",
            ),
            (
                "ctl --wait /p help",
                "--wait: unknown option; see \"berth ctl --help\"",
            ),
            ("ctl /p -x", "-x: unknown option; see \"berth ctl --help\""),
            ("ctl /p watch 0", "watch 0: must be a number from 1 to 3600"),
            (
                "ctl /p watch 1 2",
                "2: unexpected argument; watch takes an interval in seconds",
            ),
        ],
    );
    let arguments = ["ctl", "/p", "info\nstatus"].map(OsString::from);
    let error = parse(arguments).unwrap_err();
    assert_eq!(error.to_string(), "COMMAND: must be one line, without NUL");
    let error = parse([OsString::from_vec(b"a\xff".to_vec())]).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.status()),
        ("a\u{fffd}: is not UTF-8", 35)
    );
}

#[test]
fn wrong_files_are_refused() {
    refused(
        1,
        &[
            (
                "run --kernel DIR/none",
                "--kernel DIR/none: no such file or directory",
            ),
            (
                "run --kernel DIR/dir",
                "--kernel DIR/dir: is a directory, must be a regular file",
            ),
            (
                "run --kernel DIR/fifo",
                "--kernel DIR/fifo: is a FIFO, must be a regular file",
            ),
            (
                "run --kernel /dev/null",
                "--kernel /dev/null: is a character device, must be a regular file",
            ),
            (
                "run --kernel DIR/kernel/x",
                "--kernel DIR/kernel/x: not a directory",
            ),
            (
                &format!("{K} --initrd DIR/none"),
                "--initrd DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --disk DIR/none,ro"),
                "--disk DIR/none,ro: DIR/none: no such file or directory; make one: truncate -s 1G DIR/none",
            ),
            (
                &format!("{K} --disk DIR/dir"),
                "--disk DIR/dir: DIR/dir: is a directory, must be an image or a block device",
            ),
            (
                &format!("{K} --disk /dev/null"),
                "--disk /dev/null: /dev/null: is a character device, must be an image or a block device",
            ),
            (
                &format!("{K} --device nvme,drive=d0"),
                "--device nvme,drive=d0: d0: no such file or directory; drive= takes the id of a --drive, or the path of an image",
            ),
            (
                &format!("{K} --device nvme-ns,file=DIR/none"),
                "--device nvme-ns,file=DIR/none: DIR/none: no such file or directory; make one: truncate -s 1G DIR/none",
            ),
            (
                &format!("{K} --com2 DIR/dir"),
                "--com2 DIR/dir: is a directory, must be a file, FIFO or device",
            ),
            (
                &format!("{K} --trace DIR/socket"),
                "--trace DIR/socket: is a socket, must be a file, FIFO or device",
            ),
            (
                &format!("{K} --com2 DIR/none/x"),
                "--com2 DIR/none/x: DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --control-pipe DIR/base"),
                "--control-pipe DIR/base: DIR/base.in is a regular file, not a FIFO; remove it or choose another path",
            ),
            (
                &format!("{K} --control-pipe DIR/half"),
                "--control-pipe DIR/half: DIR/half.out is a regular file, not a FIFO; remove it or choose another path",
            ),
            (
                &format!("{K} --control-pipe DIR/none/p"),
                "--control-pipe DIR/none/p: DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --control-socket DIR/a.img"),
                "--control-socket DIR/a.img: is a regular file, not a socket; remove it or choose another path",
            ),
            (
                &format!("{K} --control-socket DIR/none/s"),
                "--control-socket DIR/none/s: DIR/none: no such file or directory",
            ),
        ],
    );
    let long = format!("/tmp/{}", "x".repeat(103));
    let line = format!("{K} --control-socket {long}");
    let expected = format!(
        "--control-socket {long}: the path of a socket has at most 107 bytes, this has 108"
    );
    refused(1, &[(&line, &expected)]);
    let line = format!("{K} --control-pipe DIR/p --control-socket DIR/p.in");
    refused(
        35,
        &[(
            &line,
            "--control-socket DIR/p.in: --control-pipe DIR/p has a FIFO there",
        )],
    );
}

#[test]
fn com2_empties_none_of_the_guests_files() {
    let dir = files();
    fs::hard_link(dir.path().join("a.img"), dir.path().join("link")).unwrap();
    let base = dir.path().to_str().unwrap();
    for (line, input) in [
        ("--com2 DIR/kernel", "--kernel DIR/kernel"),
        ("--trace DIR/kernel", "--kernel DIR/kernel"),
        ("--initrd DIR/a.img --com2 DIR/a.img", "--initrd DIR/a.img"),
        ("--disk DIR/a.img,ro --com2 DIR/link", "--disk DIR/a.img"),
        (
            "--device nvme,file=DIR/link --com2 DIR/a.img",
            "--device DIR/link",
        ),
    ] {
        let error = parse_in(&dir, &format!("{K} {line}")).expect_err(line);
        let input = input.replace("DIR", base);
        let expected = format!("would empty the file of {input}; give another path");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert_eq!(error.status(), 35);
    }
    parse_in(&dir, &format!("{K} --disk DIR/a.img --com2 DIR/half.out")).unwrap();
    parse_in(&dir, &format!("{K} --disk DIR/a.img --com2 /dev/null")).unwrap();
}

/// Root may do everything, so that this says something only for others.
#[test]
fn files_without_permission_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = files();
    let base = dir.path().to_str().unwrap();
    fs::set_permissions(dir.path().join("a.img"), fs::Permissions::from_mode(0o400)).unwrap();
    let probe = fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("a.img"));
    let result = parse_in(&dir, &format!("{K} --disk DIR/a.img"));
    match probe {
        Ok(_) => assert!(result.is_ok(), "{result:?}"),
        Err(_) => assert_eq!(
            result.unwrap_err().to_string(),
            format!(
                "--disk {base}/a.img: {base}/a.img: cannot be written (permission denied); add ,ro to read only"
            )
        ),
    }
    parse_in(&dir, &format!("{K} --disk DIR/a.img,ro")).unwrap();
}
