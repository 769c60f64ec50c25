//! What is common to all commands: which one it is, help, and the form of options.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use argh::ArgsInfo;

use super::testing::{config, files, parse_in, printed, refused};
use super::{BerthArgs, Invocation, parse};

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

#[test]
fn without_a_command_there_is_nothing_to_do() {
    for line in ["", "--"] {
        assert_eq!(parse_in(&files(), line).unwrap(), Invocation::Nothing);
    }
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
fn wrong_commands_are_refused() {
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
                "help me",
                "me: unknown command; known: run, ctl, fio, trace, completion, man; see \"berth --help\"",
            ),
            (
                "--verison",
                "--verison: unknown option (did you mean \"--version\"?); see \"berth --help\"",
            ),
            ("-Vx", "-x: unknown option; see \"berth --help\""),
            ("-- run", "run: unexpected argument; see \"berth --help\""),
        ],
    );
}

#[test]
fn options_in_a_wrong_form_are_refused() {
    refused(
        35,
        &[
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
            ("run --kernel", "--kernel: its value is missing"),
            (
                "run --kernel --disk x",
                "--kernel: its value is missing; --disk follows",
            ),
            (
                "run --device -kernel k",
                "--device: its value is missing; -kernel follows",
            ),
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
        ],
    );
}

#[test]
fn arguments_are_utf8() {
    let error = parse([OsString::from_vec(b"a\xff".to_vec())]).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.status()),
        ("a\u{fffd}: is not UTF-8", 35)
    );
}
