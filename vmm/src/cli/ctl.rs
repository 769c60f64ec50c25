//! The command line of `berth ctl`.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::values::{number, path};
use super::{CliError, Invocation};
use crate::control::client::{Action, CtlConfig, Output};

const DEFAULT_TIMEOUT: u64 = 10;
const MAX_TIMEOUT: u64 = 3600;

/// Send one command to a running berth and print its reply. PATH is what it was given as
/// --control-socket or --control-pipe; "berth ctl PATH help" lists the commands. One is berth ctl's
/// own: "watch [SECONDS]" prints tables of controllers, queues, namespaces and I/O threads again and again.
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
pub struct CtlArgs {
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

/// Checks the command line.
///
/// # Errors
/// A word is missing or wrong, or an option.
pub fn config(args: &CtlArgs) -> Result<Invocation, CliError> {
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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::parse;
    use super::super::testing::{files, parse_in, refused};
    use super::*;

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
    fn ctl_prints_json_if_asked_before_the_command() {
        for line in ["ctl --json /p info stats", "ctl /p --json info stats"] {
            let Invocation::Ctl(config) = parse_in(&files(), line).unwrap() else {
                panic!("no ctl")
            };
            assert_eq!(config.output, Output::Json, "{line}");
            assert_eq!(config.action, Action::Command("info stats".into()));
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
    }
}
