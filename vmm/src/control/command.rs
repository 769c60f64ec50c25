//! The commands: what a line means, and what it can answer.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::grammar::{Problem, SpecError, check_id, did_you_mean, parse_number, parse_size};
use crate::spec::{DeviceSpec, DriveSpec, Form, Parsed};

/// Longest `wait=` and `timeout=` in seconds.
const MAX_WAIT_SECONDS: u64 = 3600;

/// How long `wait` waits unless it is told.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// What can be waited for: the events of devices, and the ways in which a run ends.
pub const EVENTS: [&str; 8] = [
    "device_added",
    "device_deleted",
    "device_del_refused",
    "ns_changed",
    "guest_poweroff",
    "guest_reset",
    "guest_crashed",
    "guest_panicked",
];

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
    /// Adds a device, by `device_add` or `object_add`.
    DeviceAdd(Form, Parsed<DeviceSpec>),
    /// Makes an image known by an id, for `drive=`.
    DriveAdd(Parsed<DriveSpec>),
    /// Forgets such an id; who uses the image keeps it.
    DriveDel {
        /// The id.
        id: String,
    },
    /// Removes a subsystem or a namespace, as QEMU removes objects.
    ObjectDel {
        /// Its id.
        id: String,
    },
    /// Removes a device.
    DeviceDel {
        /// Its id.
        id: String,
        /// At once, without asking the guest.
        surprise: bool,
        /// Answer when it is gone, within this time, rather than when it was requested.
        wait: Option<Duration>,
    },
    /// Changes the size of a namespace and its image.
    NsResize {
        /// Id of the namespace.
        namespace: String,
        /// New size in bytes.
        size: u64,
        /// It may be smaller, and lose what is behind.
        shrink: bool,
    },
    /// Answers when an event comes, or at once if a device came or went already.
    Wait {
        /// Name of the event, one of [`EVENTS`].
        event: &'static str,
        /// Id that the event must be about.
        id: Option<String>,
        /// For how long.
        timeout: Duration,
    },
    /// Writes all NVMe commands to this file from now on, or no more.
    Trace(Option<PathBuf>),
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

impl Command {
    /// How long the reply may take by the command's own will.
    pub fn own_wait(&self) -> Duration {
        match self {
            Self::DeviceDel { wait, .. } => wait.unwrap_or_default(),
            Self::Wait { timeout, .. } => *timeout,
            _ => Duration::ZERO,
        }
    }
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
    /// Images that are known by an id.
    Block,
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
    /// It was not done in the time given.
    Timeout,
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
const COMMANDS: [(&str, &str, &str); 16] = [
    (
        "device_add",
        "DRIVER,key=value,...",
        "add a device; the grammar is that of --device",
    ),
    (
        "device_del",
        "ID [surprise] [wait=SECONDS]",
        "remove a device: the event device_deleted says when it is gone, and with wait= the reply; \
         surprise pulls a controller without asking the guest",
    ),
    (
        "drive_add",
        "[SLOT] file=PATH,if=none,id=ID,key=value,...",
        "make an image known by an id, for drive= of a device; SLOT is QEMU's and means nothing",
    ),
    (
        "drive_del",
        "ID",
        "forget the id of an image; a namespace that uses the image keeps it",
    ),
    ("help", "[COMMAND]", "list the commands, or explain one"),
    (
        "info",
        "status|qtree [json]|nvme|subsys|block|iothreads|stats",
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
    (
        "ns_resize",
        "NAMESPACE SIZE [shrink]",
        "change the size of a namespace and its image; the guest is told",
    ),
    (
        "object_add",
        "TYPE,key=value,...",
        "add a subsystem or a namespace; means the same as device_add",
    ),
    (
        "object_del",
        "ID",
        "remove a subsystem or a namespace; means the same as device_del",
    ),
    ("quit", "", "end berth at once, without telling the guest"),
    ("system_powerdown", "", "press the power button"),
    ("system_reset", "", "reset the machine"),
    (
        "trace",
        "on FILE|off",
        "write every NVMe command and completion to FILE, as --trace does, or end that",
    ),
    (
        "wait",
        "EVENT [ID] [timeout=SECONDS]",
        "answer when an event comes (60 s at most unless told), or at once if the device came or \
         went already",
    ),
];

/// The commands by name, each with its explanation.
pub fn explanations() -> impl Iterator<Item = (&'static str, &'static str)> {
    COMMANDS
        .iter()
        .map(|(name, _, explanation)| (*name, *explanation))
}

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
        "device_add" | "object_add" | "drive_add" if rest.is_empty() => return Err(usage(name)),
        // Not split at blanks: a path may contain them.
        "device_add" => parse_device(Form::Device, rest)?,
        "object_add" => parse_device(Form::Object, rest)?,
        "drive_add" => Command::DriveAdd(parse_drive(name, rest)?),
        "drive_del" => Command::DriveDel {
            id: one_id(name, rest)?,
        },
        "object_del" => Command::ObjectDel {
            id: one_id(name, rest)?,
        },
        "device_del" => parse_device_del(rest)?,
        "ns_resize" => parse_ns_resize(rest)?,
        "wait" => parse_wait(rest)?,
        "trace" => parse_trace(rest)?,
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

fn parse_device(form: Form, rest: &str) -> Result<Command, CommandError> {
    let parsed = DeviceSpec::parse(rest, form);
    let parsed = parsed.map_err(|error| refused(form.command(), &error))?;
    Ok(Command::DeviceAdd(form, parsed))
}

/// QEMU's users put a number, or anything else, in front, where it once had a PCI slot.
fn parse_drive(name: &str, rest: &str) -> Result<Parsed<DriveSpec>, CommandError> {
    let options = match rest.split_once(char::is_whitespace) {
        Some((slot, options)) if !slot.contains(['=', ',']) => options.trim_start(),
        _ => rest,
    };
    DriveSpec::parse(options).map_err(|error| refused(name, &error))
}

fn one_id(name: &str, rest: &str) -> Result<String, CommandError> {
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        return Err(usage(name));
    }
    parse_id(name, rest)
}

fn refused(name: &str, error: &SpecError) -> CommandError {
    let class = match error.problem {
        Problem::Unsupported { .. } => ErrorClass::Unsupported,
        _ => ErrorClass::Argument,
    };
    CommandError::new(class, format!("{name} {error}"))
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
    Ok((parse_id(name, namespace)?, parse_id(name, controller)?))
}

fn parse_info(rest: &str) -> Result<Info, CommandError> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words.as_slice() {
        ["status"] => Ok(Info::Status),
        ["qtree"] => Ok(Info::Qtree { json: false }),
        ["qtree", "json"] => Ok(Info::Qtree { json: true }),
        ["nvme"] => Ok(Info::Nvme),
        ["subsys"] => Ok(Info::Subsys),
        ["block"] => Ok(Info::Block),
        ["iothreads"] => Ok(Info::IoThreads),
        ["stats"] => Ok(Info::Stats),
        _ => Err(usage("info")),
    }
}

/// An error about one word of a command.
fn argument(name: &str, word: &str, problem: impl std::fmt::Display) -> CommandError {
    CommandError::new(ErrorClass::Argument, format!("{name} {word}: {problem}"))
}

fn parse_id(name: &str, id: &str) -> Result<String, CommandError> {
    check_id(id).map_err(|problem| argument(name, id, problem))?;
    Ok(id.to_owned())
}

/// The seconds of `word`, whose value is `value`.
fn parse_seconds(name: &str, word: &str, value: &str) -> Result<Duration, CommandError> {
    let seconds = parse_number(value, 1..=MAX_WAIT_SECONDS);
    let seconds = seconds.map_err(|problem| argument(name, word, problem))?;
    Ok(Duration::from_secs(seconds))
}

fn parse_wait(rest: &str) -> Result<Command, CommandError> {
    let mut words = rest.split_whitespace();
    let name = words.next().ok_or_else(|| usage("wait"))?;
    let Some(event) = EVENTS.iter().find(|known| **known == name) else {
        let near = did_you_mean(name, &EVENTS);
        let problem = format!("no such event{near}; known: {}", EVENTS.join(", "));
        return Err(argument("wait", name, problem));
    };
    let (mut id, mut timeout) = (None, None);
    for word in words {
        if let (Some(value), None) = (word.strip_prefix("timeout="), timeout) {
            timeout = Some(parse_seconds("wait", word, value)?);
        } else if id.is_none() && !word.contains('=') {
            id = Some(parse_id("wait", word)?);
        } else {
            return Err(usage("wait"));
        }
    }
    if let (Some(id), true) = (&id, event.starts_with("guest_")) {
        let problem = format!("{event} is about the machine, not about a device; leave the id out");
        return Err(argument("wait", id, problem));
    }
    Ok(Command::Wait {
        event,
        id,
        timeout: timeout.unwrap_or(DEFAULT_WAIT),
    })
}

/// A path may contain blanks.
fn parse_trace(rest: &str) -> Result<Command, CommandError> {
    match rest.split_once(char::is_whitespace) {
        None if rest == "off" => Ok(Command::Trace(None)),
        Some(("on", file)) => Ok(Command::Trace(Some(file.trim_start().into()))),
        _ => Err(usage("trace")),
    }
}

fn parse_ns_resize(rest: &str) -> Result<Command, CommandError> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (namespace, size, shrink) = match words.as_slice() {
        [namespace, size] => (namespace, size, false),
        [namespace, size, "shrink"] => (namespace, size, true),
        _ => return Err(usage("ns_resize")),
    };
    Ok(Command::NsResize {
        namespace: parse_id("ns_resize", namespace)?,
        size: parse_size(size).map_err(|problem| argument("ns_resize", size, problem))?,
        shrink,
    })
}

fn parse_device_del(rest: &str) -> Result<Command, CommandError> {
    let mut words = rest.split_whitespace();
    let id = words.next().ok_or_else(|| usage("device_del"))?;
    let id = parse_id("device_del", id)?;
    let (mut surprise, mut wait) = (false, None);
    for word in words {
        if word == "surprise" && !surprise {
            surprise = true;
        } else if let (Some(value), None) = (word.strip_prefix("wait="), wait) {
            wait = Some(parse_seconds("device_del", word, value)?);
        } else {
            return Err(usage("device_del"));
        }
    }
    Ok(Command::DeviceDel { id, surprise, wait })
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
            ("info block", Command::Info(Info::Block)),
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
        let parsed = DeviceSpec::parse(argument, Form::Device).unwrap();
        let expected = Command::DeviceAdd(Form::Device, parsed);
        assert_eq!(command(&format!("device_add  {argument}")), expected);
        let (class, message) = refusal("device_add nvme,serail=1");
        assert_eq!(class, ErrorClass::Argument);
        assert!(message.starts_with("device_add nvme,serail=1: unknown property \"serail\""));
        let (class, message) = refusal("device_add nvme-ns,memory=1M,zoned=on");
        assert_eq!(class, ErrorClass::Unsupported);
        assert!(message.ends_with("zoned: not supported by berth"));
    }

    #[test]
    fn qemus_objects_and_drives_are_commands() {
        let parsed = DeviceSpec::parse("nvme-ns,bus=s,memory=1M", Form::Device).unwrap();
        let object = command("object_add nvme-ns,subsys=s,memory=1M");
        assert_eq!(object, Command::DeviceAdd(Form::Object, parsed));
        let drive = "if=none,id=d,file=/tmp/my disk.img";
        let expected = Command::DriveAdd(DriveSpec::parse(drive).unwrap());
        for slot in ["", "0 ", "pci.0:0 ", "dummy "] {
            assert_eq!(command(&format!("drive_add {slot}{drive}")), expected);
        }
        let id = || "d".to_owned();
        assert_eq!(command("drive_del d"), Command::DriveDel { id: id() });
        assert_eq!(command("object_del d"), Command::ObjectDel { id: id() });
        for (line, start) in [
            (
                "object_add",
                "object_add: wrong arguments; usage: object_add TYPE,",
            ),
            (
                "object_add nvme,id=c",
                "object_add nvme,id=c: a controller is a PCI device",
            ),
            ("drive_add 0", "drive_add 0: "),
            ("drive_add 0 id=d", "drive_add id=d: file is missing"),
            (
                "drive_del",
                "drive_del: wrong arguments; usage: drive_del ID",
            ),
            (
                "object_del a b",
                "object_del: wrong arguments; usage: object_del ID",
            ),
            ("object_del 1", "object_del 1: an id is a letter"),
        ] {
            let (class, message) = refusal(line);
            assert_eq!(class, ErrorClass::Argument);
            assert!(message.starts_with(start), "{message}");
        }
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
        let usage = "device_del: wrong arguments; usage: device_del ID [surprise] [wait=SECONDS]";
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
    fn wait_names_an_event_and_maybe_a_device() {
        let wait = |event, id: Option<&str>, seconds| Command::Wait {
            event,
            id: id.map(str::to_owned),
            timeout: Duration::from_secs(seconds),
        };
        for (line, expected) in [
            (
                "wait device_deleted c",
                wait("device_deleted", Some("c"), 60),
            ),
            ("wait ns_changed", wait("ns_changed", None, 60)),
            (
                "wait device_added c timeout=3",
                wait("device_added", Some("c"), 3),
            ),
            (
                "wait guest_reset timeout=3600",
                wait("guest_reset", None, 3600),
            ),
        ] {
            assert_eq!(command(line), expected, "{line}");
        }
        assert_eq!(command("wait ns_changed").own_wait(), DEFAULT_WAIT);
        for (line, start) in [
            (
                "wait",
                "wait: wrong arguments; usage: wait EVENT [ID] [timeout=SECONDS]",
            ),
            ("wait ns_changed a b", "wait: wrong arguments; usage: "),
            ("wait ns_changed wait=3", "wait: wrong arguments; usage: "),
            (
                "wait device_delete",
                "wait device_delete: no such event (did you mean \"device_deleted\"?); known: ",
            ),
            (
                "wait ns_changed timeout=0",
                "wait timeout=0: must be a number from 1 to 3600",
            ),
            ("wait ns_changed 1", "wait 1: an id is a letter"),
            (
                "wait guest_reset c timeout=3",
                "wait c: guest_reset is about the machine",
            ),
        ] {
            let (class, message) = refusal(line);
            assert_eq!(class, ErrorClass::Argument);
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn ns_resize_takes_sizes() {
        let resize = |size, shrink| Command::NsResize {
            namespace: "n".into(),
            size,
            shrink,
        };
        assert_eq!(command("ns_resize n 64M"), resize(64 << 20, false));
        assert_eq!(command("ns_resize n 4096 shrink"), resize(4096, true));
        for (line, start) in [
            (
                "ns_resize n",
                "ns_resize: wrong arguments; usage: ns_resize NAMESPACE SIZE",
            ),
            ("ns_resize n 1M now", "ns_resize: wrong arguments; usage: "),
            ("ns_resize n -1", "ns_resize -1: "),
            ("ns_resize n 1X", "ns_resize 1X: "),
        ] {
            let (class, message) = refusal(line);
            assert_eq!(class, ErrorClass::Argument);
            assert!(message.starts_with(start), "{message}");
        }
    }

    #[test]
    fn what_is_no_command_is_explained() {
        let known = COMMANDS.map(|(name, ..)| name).join(", ");
        let known = format!("known: {known}");
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
                "info: wrong arguments; usage: info status|qtree [json]|nvme|subsys|block|iothreads|stats",
            ),
            (
                "info nvme json",
                "info: wrong arguments; usage: info status|qtree [json]|nvme|subsys|block|iothreads|stats",
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
            (ErrorClass::Timeout, "Timeout"),
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
