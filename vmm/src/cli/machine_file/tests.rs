//! Machine descriptions, alone and beside a command line.

use std::fs;

use tempfile::TempDir;

use super::super::Invocation;
use super::super::testing::{files, parse_in, printed, refused};
use super::*;
use crate::spec::BackendSpec;

#[test]
fn a_file_says_what_a_command_line_would() {
    let machine = MachineFile::parse(
        "kernel = 'bzImage'\nmemory = 512\nio-threads = 2\n\
         [[device]]\nid = 'c'\ndriver = 'nvme'\npoll-us = 0\naddr = 9\n\
         [[device]]\ndriver = 'nvme-ns'\nfile = 'a,b.img'\nro = true\nshared = false\n\
         [[disk]]\nnsid = 7\nfile = 'c.img'\n",
    )
    .unwrap();
    assert_eq!(machine.single("kernel", None).unwrap(), "bzImage");
    assert_eq!(machine.single("memory", None).unwrap(), "512");
    assert_eq!(machine.single("memory", Some("1G".into())).unwrap(), "1G");
    assert_eq!(machine.single("append", None), None);
    assert_eq!(
        machine.repeated("device", vec!["nvme".into()]),
        [
            "driver=nvme,addr=9,id=c,poll-us=0",
            "driver=nvme-ns,file=a,,b.img,ro=on,shared=off",
            "nvme"
        ]
    );
    assert_eq!(machine.repeated("disk", Vec::new()), ["file=c.img,nsid=7"]);
}

#[test]
fn mistakes_are_explained() {
    for (text, why) in [
        ("kernel =", "is no TOML: "),
        ("[[device]]\n[[device", "at line 2"),
        (
            "kernal = 'x'",
            "unknown key \"kernal\" (did you mean \"kernel\"?)",
        ),
        ("cpus = [1]", "cpus: is a list; must be a string"),
        (
            "device = 'nvme'",
            "device: must be tables, each headed [[device]]",
        ),
        ("[device]\ndriver = 'nvme'", "each headed [[device]]"),
        ("with = 'x'", "with: must be a list"),
        ("command = [1.5]", "command: is a fraction"),
        ("[[device]]\nid = 1.5", "[[device]] 1: id: is a fraction"),
        (
            "[[disk]]\n[[disk]]\n'a=b' = 1",
            "[[disk]] 2: \"a=b\" is no property",
        ),
        ("append = \"a\\u0000b\"", "append: contains NUL"),
        (
            "[[device]]\naddr = 0x10",
            "[[device]] 1: addr: write a slot above 9 as a string",
        ),
    ] {
        let problem = MachineFile::parse(text).unwrap_err();
        assert!(problem.contains(why), "{problem:?}");
        assert!(!problem.contains('\n'), "{problem:?}");
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
