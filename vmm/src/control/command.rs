//! The commands: what a line means, and what it can answer.

use std::time::Duration;

use serde::Serialize;

use crate::grammar::{check_id, did_you_mean, parse_number};
use crate::spec::DeviceSpec;

/// Longest `wait=` in seconds.
const MAX_WAIT_SECONDS: u64 = 3600;

/// A command for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `info SUBJECT`.
    Info(Info),
    /// Presses the power button.
    SystemPowerdown,
    /// Resets the machine as the guest's own reset would.
    SystemReset,
    /// Ends berth.
    Quit,
    /// Adds a device.
    DeviceAdd(DeviceSpec),
    /// Removes a device.
    DeviceDel {
        /// Its id.
        id: String,
        /// At once, without asking the guest.
        surprise: bool,
        /// Answer when it is gone, within this time, rather than when it was requested.
        wait: Option<Duration>,
    },
    /// Attaches a namespace to a controller.
    NsAttach {
        /// Id of the namespace.
        namespace: String,
        /// Id of the controller.
        controller: String,
    },
    /// Detaches a namespace from a controller.
    NsDetach {
        /// Id of the namespace.
        namespace: String,
        /// Id of the controller.
        controller: String,
    },
}

/// What `info` can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info {
    /// Whether the machine runs, and for how long.
    Status,
    /// The device tree.
    Qtree {
        /// As JSON rather than as indented text.
        json: bool,
    },
    /// Controllers and their queues.
    Nvme,
    /// Subsystems with their controllers and namespaces.
    Subsys,
    /// I/O threads and what they own.
    IoThreads,
    /// Counters.
    Stats,
}

/// What a command that cannot be done answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{message}")]
pub struct CommandError {
    /// For programs.
    pub class: ErrorClass,
    /// For people: names the argument, what is wrong, what would be right.
    pub message: String,
}

impl CommandError {
    /// An error of `class`.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
        }
    }
}

/// Classes of errors, by which programs tell them apart. Serialized by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ErrorClass {
    /// The line is no command: too long, not UTF-8, a bad token.
    Protocol,
    /// There is no such command.
    UnknownCommand,
    /// An argument is wrong.
    Argument,
    /// No object has that id.
    NotFound,
    /// The id, slot or NSID is taken.
    Exists,
    /// Something else uses it.
    InUse,
    /// berth cannot do this (yet).
    Unsupported,
    /// The host refused: a file, memory, a system call.
    Failed,
}

/// A line, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// `help`, answered without the machine: the text.
    Help(String),
    /// A command for the machine.
    Command(Command),
}

/// Names, arguments and one line of explanation.
const COMMANDS: [(&str, &str, &str); 9] = [
    (
        "device_add",
        "DRIVER,key=value,...",
        "add a device; the grammar is that of --device",
    ),
    (
        "device_del",
        "ID [surprise]",
        "remove a device; the event device_deleted says when it is gone",
    ),
    ("help", "[COMMAND]", "list the commands, or explain one"),
    (
        "info",
        "status|qtree [json]|nvme|subsys|iothreads|stats",
        "tell about the machine; qtree is text unless json is asked for",
    ),
    (
        "ns_attach",
        "NAMESPACE CONTROLLER",
        "attach a namespace to a controller",
    ),
    (
        "ns_detach",
        "NAMESPACE CONTROLLER",
        "detach a namespace from a controller",
    ),
    ("quit", "", "end berth at once, without telling the guest"),
    ("system_powerdown", "", "press the power button"),
    ("system_reset", "", "reset the machine"),
];

/// Parses a line without its token and newline.
///
/// # Errors
/// The command is unknown, or an argument is wrong.
pub fn parse(line: &str) -> Result<Line, CommandError> {
    let line = line.trim();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    let command = match name {
        "help" => return help(rest).map(Line::Help),
        "info" => Command::Info(parse_info(rest)?),
        "system_powerdown" => no_arguments(name, rest, Command::SystemPowerdown)?,
        "system_reset" => no_arguments(name, rest, Command::SystemReset)?,
        "quit" => no_arguments(name, rest, Command::Quit)?,
        "device_add" if rest.is_empty() => return Err(usage(name)),
        // Not split at blanks: a path may contain them.
        "device_add" => Command::DeviceAdd(rest.parse().map_err(|error| {
            CommandError::new(ErrorClass::Argument, format!("device_add {error}"))
        })?),
        "device_del" => parse_device_del(rest)?,
        "ns_attach" => {
            let (namespace, controller) = two_ids(name, rest)?;
            Command::NsAttach {
                namespace,
                controller,
            }
        }
        "ns_detach" => {
            let (namespace, controller) = two_ids(name, rest)?;
            Command::NsDetach {
                namespace,
                controller,
            }
        }
        _ => return Err(unknown(name)),
    };
    Ok(Line::Command(command))
}

fn no_arguments(name: &str, rest: &str, command: Command) -> Result<Command, CommandError> {
    if rest.is_empty() {
        Ok(command)
    } else {
        Err(usage(name))
    }
}

fn two_ids(name: &str, rest: &str) -> Result<(String, String), CommandError> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let [namespace, controller] = words.as_slice() else {
        return Err(usage(name));
    };
    for id in [namespace, controller] {
        check_id(id).map_err(|problem| {
            CommandError::new(ErrorClass::Argument, format!("{name} {id}: {problem}"))
        })?;
    }
    Ok((namespace.to_string(), controller.to_string()))
}

fn parse_info(rest: &str) -> Result<Info, CommandError> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words.as_slice() {
        ["status"] => Ok(Info::Status),
        ["qtree"] => Ok(Info::Qtree { json: false }),
        ["qtree", "json"] => Ok(Info::Qtree { json: true }),
        ["nvme"] => Ok(Info::Nvme),
        ["subsys"] => Ok(Info::Subsys),
        ["iothreads"] => Ok(Info::IoThreads),
        ["stats"] => Ok(Info::Stats),
        _ => Err(usage("info")),
    }
}

fn parse_device_del(rest: &str) -> Result<Command, CommandError> {
    let mut words = rest.split_whitespace();
    let id = words.next().ok_or_else(|| usage("device_del"))?;
    let argument = |word: &str, problem: String| {
        CommandError::new(
            ErrorClass::Argument,
            format!("device_del {word}: {problem}"),
        )
    };
    check_id(id).map_err(|problem| argument(id, problem))?;
    let (mut surprise, mut wait) = (false, None);
    for word in words {
        if word == "surprise" && !surprise {
            surprise = true;
        } else if let (Some(value), None) = (word.strip_prefix("wait="), wait) {
            let seconds = parse_number(value, 1..=MAX_WAIT_SECONDS);
            let seconds = seconds.map_err(|problem| argument(word, problem))?;
            wait = Some(Duration::from_secs(seconds));
        } else {
            return Err(usage("device_del"));
        }
    }
    Ok(Command::DeviceDel {
        id: id.to_owned(),
        surprise,
        wait,
    })
}

fn synopsis(name: &str, arguments: &str) -> String {
    format!("{name} {arguments}").trim_end().to_owned()
}

fn usage(name: &str) -> CommandError {
    let arguments = COMMANDS
        .iter()
        .find(|(known, ..)| *known == name)
        .map_or("", |entry| entry.1);
    let message = format!(
        "{name}: wrong arguments; usage: {}",
        synopsis(name, arguments)
    );
    CommandError::new(ErrorClass::Argument, message)
}

fn unknown(name: &str) -> CommandError {
    let names = COMMANDS.map(|(known, ..)| known);
    let near = did_you_mean(name, &names);
    let message = format!("{name}: unknown command{near}; known: {}", names.join(", "));
    CommandError::new(ErrorClass::UnknownCommand, message)
}

fn help(topic: &str) -> Result<String, CommandError> {
    let mut text = String::new();
    for (name, arguments, explanation) in COMMANDS {
        if topic.is_empty() || topic == name {
            text += &format!("{}\n    {explanation}\n", synopsis(name, arguments));
        }
    }
    if text.is_empty() {
        Err(unknown(topic))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        match parse(line).unwrap() {
            Line::Command(command) => command,
            Line::Help(text) => panic!("{text}"),
        }
    }

    fn refusal(line: &str) -> (ErrorClass, String) {
        let error = parse(line).expect_err(line);
        (error.class, error.message)
    }

    #[test]
    fn commands_are_recognised() {
        for (line, expected) in [
            ("info status", Command::Info(Info::Status)),
            (
                "  info \t qtree ",
                Command::Info(Info::Qtree { json: false }),
            ),
            ("info qtree json", Command::Info(Info::Qtree { json: true })),
            ("info nvme", Command::Info(Info::Nvme)),
            ("info subsys", Command::Info(Info::Subsys)),
            ("info iothreads", Command::Info(Info::IoThreads)),
            ("info stats", Command::Info(Info::Stats)),
            ("system_powerdown", Command::SystemPowerdown),
            ("system_reset", Command::SystemReset),
            ("quit", Command::Quit),
        ] {
            assert_eq!(command(line), expected, "{line}");
        }
    }

    #[test]
    fn device_add_has_the_grammar_of_the_command_line() {
        let argument = "nvme-ns,file=/tmp/my disk.img,nsid=3";
        let expected = Command::DeviceAdd(argument.parse().unwrap());
        assert_eq!(command(&format!("device_add  {argument}")), expected);
        let (class, message) = refusal("device_add nvme,serail=1");
        assert_eq!(class, ErrorClass::Argument);
        assert!(message.starts_with("device_add nvme,serail=1: unknown property \"serail\""));
    }

    #[test]
    fn device_del_takes_its_words_in_any_order() {
        let id = || "nvme1".to_owned();
        let ten = Some(Duration::from_secs(10));
        for (line, surprise, wait) in [
            ("device_del nvme1", false, None),
            ("device_del nvme1 surprise", true, None),
            ("device_del nvme1 wait=10", false, ten),
            ("device_del nvme1 surprise wait=10", true, ten),
            ("device_del nvme1 wait=10 surprise", true, ten),
        ] {
            assert_eq!(
                command(line),
                Command::DeviceDel {
                    id: id(),
                    surprise,
                    wait
                },
                "{line}"
            );
        }
        let usage = "device_del: wrong arguments; usage: device_del ID [surprise]";
        for line in [
            "device_del",
            "device_del a b",
            "device_del a surprise surprise",
            "device_del a wait=1 wait=2",
        ] {
            assert_eq!(refusal(line), (ErrorClass::Argument, usage.to_owned()));
        }
        let (_, message) = refusal("device_del a wait=0");
        assert_eq!(
            message,
            "device_del wait=0: must be a number from 1 to 3600"
        );
        let (_, message) = refusal("device_del 1a");
        assert!(
            message.starts_with("device_del 1a: an id is a letter"),
            "{message}"
        );
    }

    #[test]
    fn what_is_no_command_is_explained() {
        let known = "known: device_add, device_del, help, info, ns_attach, ns_detach, quit, system_powerdown, system_reset";
        let expected = format!("qiut: unknown command (did you mean \"quit\"?); {known}");
        assert_eq!(refusal("qiut"), (ErrorClass::UnknownCommand, expected));
        assert_eq!(
            refusal("x"),
            (
                ErrorClass::UnknownCommand,
                format!("x: unknown command; {known}")
            )
        );
        for (line, usage) in [
            ("quit now", "quit: wrong arguments; usage: quit"),
            (
                "device_add",
                "device_add: wrong arguments; usage: device_add DRIVER,key=value,...",
            ),
            (
                "info",
                "info: wrong arguments; usage: info status|qtree [json]|nvme|subsys|iothreads|stats",
            ),
            (
                "info nvme json",
                "info: wrong arguments; usage: info status|qtree [json]|nvme|subsys|iothreads|stats",
            ),
        ] {
            assert_eq!(refusal(line), (ErrorClass::Argument, usage.to_owned()));
        }
    }

    #[test]
    fn classes_of_errors_keep_their_names() {
        for (class, name) in [
            (ErrorClass::Protocol, "Protocol"),
            (ErrorClass::UnknownCommand, "UnknownCommand"),
            (ErrorClass::Argument, "Argument"),
            (ErrorClass::NotFound, "NotFound"),
            (ErrorClass::Exists, "Exists"),
            (ErrorClass::InUse, "InUse"),
            (ErrorClass::Unsupported, "Unsupported"),
            (ErrorClass::Failed, "Failed"),
        ] {
            let error = serde_json::to_value(CommandError::new(class, "why")).unwrap();
            assert_eq!(
                error,
                serde_json::json!({ "class": name, "message": "why" })
            );
        }
    }

    #[test]
    fn help_lists_all_or_explains_one() {
        let text = |line: &str| match parse(line).unwrap() {
            Line::Help(text) => text,
            Line::Command(command) => panic!("{command:?}"),
        };
        for (name, ..) in COMMANDS {
            assert!(text("help").contains(name));
            assert!(text(&format!("help {name}")).starts_with(name));
        }
        assert_eq!(
            text("help quit"),
            "quit\n    end berth at once, without telling the guest\n"
        );
        assert_eq!(refusal("help me").0, ErrorClass::UnknownCommand);
    }
}
