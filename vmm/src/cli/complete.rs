//! What a shell may offer at a place of a command line (`berth complete WORD...`, which the scripts of
//! `berth completion` call; the last word is the one that is being typed).
//!
//! What cannot be known from here, the ids of a machine that runs, is asked of it. Where nothing is
//! offered shells complete the names of files.

use std::path::Path;
use std::time::Duration;

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfoKind};
use serde_json::Value;

use super::{BerthArgs, pages};
use crate::control::client::{Action, CtlConfig, Output, ask};
use crate::control::command as control;
use crate::spec::{self, Form};

/// How long a machine may take to tell its ids: somebody waits at a keyboard.
const PATIENCE: Duration = Duration::from_secs(2);

/// `info` can tell about these.
const INFO: [&str; 7] = [
    "status",
    "qtree",
    "nvme",
    "subsys",
    "block",
    "iothreads",
    "stats",
];

/// What [`Device::driver`] is of an image that `drive=` may name.
const DRIVE: &str = "drive";

/// Something to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The whole word.
    pub text: String,
    /// What it is, for shells that show that; may be empty.
    pub about: String,
}

/// A device of the machine that runs, or a drive.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    id: String,
    driver: String,
}

/// The candidates, a line each: the word, a tab, what it is.
pub fn text(words: &[String]) -> String {
    let candidates = complete(words, &|path| ids(path));
    let line = |candidate: Candidate| format!("{}\t{}\n", candidate.text, candidate.about);
    candidates.into_iter().map(line).collect()
}

/// What may stand in the place of the last word. `devices` asks the machine whose control path it is
/// given.
fn complete(words: &[String], devices: &dyn Fn(&str) -> Vec<Device>) -> Vec<Candidate> {
    let Some((typed, before)) = words.split_last() else {
        return Vec::new();
    };
    let candidates = match before.split_first() {
        None => commands(),
        Some((first, [])) if first == "help" => commands(),
        Some((command, before)) => arguments(command, before, typed, devices),
    };
    let fits = |candidate: &Candidate| candidate.text.starts_with(typed.as_str());
    candidates.into_iter().filter(fits).collect()
}

fn candidate(text: impl Into<String>, about: impl Into<String>) -> Candidate {
    Candidate {
        text: text.into(),
        about: about.into(),
    }
}

/// Words that need no explanation.
fn plain<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<Candidate> {
    words.into_iter().map(|word| candidate(word, "")).collect()
}

fn commands() -> Vec<Candidate> {
    let info = BerthArgs::get_args_info();
    let commands = info.commands.iter();
    let mut candidates: Vec<_> = commands
        .map(|command| candidate(command.name, first_sentence(command.command.description)))
        .collect();
    candidates.push(candidate("help", "explain a command"));
    candidates.extend(options(&info));
    candidates
}

fn first_sentence(text: &str) -> &str {
    text.split(". ")
        .next()
        .unwrap_or(text)
        .trim_end_matches('.')
}

fn options(info: &CommandInfoWithArgs) -> Vec<Candidate> {
    let shown = info.flags.iter().filter(|flag| !flag.hidden);
    shown
        .map(|flag| candidate(flag.long, flag.description))
        .collect()
}

fn arguments(
    command: &str,
    before: &[String],
    typed: &str,
    devices: &dyn Fn(&str) -> Vec<Device>,
) -> Vec<Candidate> {
    let top = BerthArgs::get_args_info();
    let Some(info) = top.commands.iter().find(|it| it.name == command) else {
        return Vec::new();
    };
    let info = &info.command;
    let place = Place::of(info, before, if command == "ctl" { 1 } else { usize::MAX });
    if place.behind {
        return Vec::new();
    }
    if let Some(option) = place.value_of {
        return value(option, typed);
    }
    if let Some((option, typed)) = typed.split_once('=').filter(|_| typed.starts_with("--")) {
        let whole = |it: Candidate| candidate(format!("{option}={}", it.text), it.about);
        return value(option, typed).into_iter().map(whole).collect();
    }
    match (command, place.words.as_slice()) {
        _ if typed.starts_with('-') => options(info),
        ("ctl", [path, words @ ..]) => ctl(words, typed, &|| devices(path)),
        ("trace", []) => vec![
            candidate(
                "summary",
                "latencies, IOPS, depth, sizes, the slowest commands",
            ),
            candidate("plot", "a picture of the time line"),
        ],
        ("completion", []) => plain(pages::SHELLS),
        _ => Vec::new(),
    }
}

/// Where the word that is being typed stands.
#[derive(Debug, Default)]
struct Place<'a> {
    /// Words before it that are neither options nor their values.
    words: Vec<&'a str>,
    /// It is the value of this option.
    value_of: Option<&'static str>,
    /// It is behind `--`.
    behind: bool,
}

impl<'a> Place<'a> {
    /// From word `verbatim` on (counted from 0) nothing is an option.
    fn of(info: &CommandInfoWithArgs, before: &'a [String], verbatim: usize) -> Self {
        let mut place = Self::default();
        for word in before {
            if place.value_of.take().is_some() || place.behind {
                continue;
            }
            if place.words.len() > verbatim || !word.starts_with('-') || word == "-" {
                place.words.push(word);
            } else if word == "--" {
                place.behind = true;
            } else {
                let flag = info.flags.iter().find(|flag| {
                    let short = flag.short.map(|letter| format!("-{letter}"));
                    *word == flag.long || short.as_deref() == Some(word)
                });
                let takes = flag.filter(|flag| matches!(flag.kind, FlagInfoKind::Option { .. }));
                place.value_of = takes.map(|flag| flag.long);
            }
        }
        place
    }
}

/// Values of an option of `berth run`.
fn value(option: &str, typed: &str) -> Vec<Candidate> {
    match option {
        "--device" => device(Form::Device, typed, &Vec::new),
        "--object" => device(Form::Object, typed, &Vec::new),
        "--disk" if typed.contains(',') => properties("nvme-ns", typed, &Vec::new),
        "--overcommit" => plain(["mem-lock=on", "mem-lock=off"]),
        _ => Vec::new(),
    }
}

/// The words of a control command, `before` the one that is typed.
fn ctl(before: &[&str], typed: &str, devices: &dyn Fn() -> Vec<Device>) -> Vec<Candidate> {
    let Some((command, before)) = before.split_first() else {
        let mut commands: Vec<_> = control::explanations()
            .map(|(name, explanation)| candidate(name, first_sentence(explanation)))
            .collect();
        commands.push(candidate("watch", "a table of queues, again and again"));
        return commands;
    };
    let of = |drivers: &[&str]| {
        let all = devices().into_iter();
        all.filter(|device| drivers.contains(&device.driver.as_str()))
            .map(|device| candidate(device.id, device.driver))
            .collect::<Vec<_>>()
    };
    match (*command, before) {
        ("help", []) => plain(control::explanations().map(|(name, _)| name)),
        ("info", []) => plain(INFO),
        ("info", ["qtree"]) => plain(["json"]),
        ("device_add", []) => device(Form::Device, typed, devices),
        ("object_add", []) => device(Form::Object, typed, devices),
        ("device_del", []) => of(spec::drivers(Form::Device)),
        ("drive_del", []) => of(&[DRIVE]),
        ("device_del", [_, ..]) => plain(["surprise", "wait="]),
        ("object_del", []) => of(&["nvme-subsys", "nvme-ns"]),
        ("ns_attach" | "ns_detach" | "ns_resize", []) => of(&["nvme-ns"]),
        ("ns_attach" | "ns_detach", [_]) => of(&["nvme"]),
        ("ns_resize", [_, _]) => plain(["shrink"]),
        ("trace", []) => plain(["on", "off"]),
        ("wait", []) => plain(control::EVENTS),
        ("wait", [event]) if !event.starts_with("guest_") => {
            let mut candidates = of(spec::drivers(Form::Device));
            candidates.push(candidate("timeout=", ""));
            candidates
        }
        ("wait", [_, ..]) => plain(["timeout="]),
        _ => Vec::new(),
    }
}

/// A device in the grammar of `--device`: its driver, or one more property.
fn device(form: Form, typed: &str, devices: &dyn Fn() -> Vec<Device>) -> Vec<Candidate> {
    match typed.split_once(',') {
        None => {
            let drivers = spec::drivers(form);
            drivers.iter().map(|name| candidate(*name, "")).collect()
        }
        Some((driver, _)) => properties(driver, typed, devices),
    }
}

/// One more property of a device of which some are typed.
fn properties(driver: &str, typed: &str, devices: &dyn Fn() -> Vec<Device>) -> Vec<Candidate> {
    let (done, last) = typed.rsplit_once(',').unwrap_or(("", typed));
    let candidates = match last.split_once('=') {
        Some((key, _)) => values(key, devices)
            .into_iter()
            .map(|value| (format!("{key}={}", value.text), value.about))
            .collect::<Vec<_>>(),
        None => {
            let given = |key: &&str| {
                let mut given = done.split(',').map(|it| it.split('=').next());
                !given.any(|given| given == Some(key))
            };
            let keys = spec::keys(driver).into_iter().filter(given);
            keys.map(|key| (format!("{key}="), String::new())).collect()
        }
    };
    let whole = |(text, about)| candidate(format!("{done},{text}"), about);
    candidates.into_iter().map(whole).collect()
}

/// Values of a property, where they can be listed.
fn values(key: &str, devices: &dyn Fn() -> Vec<Device>) -> Vec<Candidate> {
    let of = |drivers: &[&str]| {
        let all = devices().into_iter();
        all.filter(|device| drivers.contains(&device.driver.as_str()))
            .map(|device| candidate(device.id, device.driver))
            .collect()
    };
    match key {
        "cache" => plain(["writeback", "none", "writethrough", "directsync", "unsafe"]),
        "shared" | "ro" | "detached" => plain(["on", "off"]),
        "logical_block_size" => plain(["512", "4096"]),
        "uuid" => plain(["auto"]),
        "subsys" => of(&["nvme-subsys"]),
        "bus" => of(&["nvme-subsys", "nvme"]),
        "ctrl" => of(&["nvme"]),
        "drive" => of(&[DRIVE]),
        _ => Vec::new(),
    }
}

/// The devices and drives of the machine at a control path; none if it cannot be asked.
fn ids(path: &str) -> Vec<Device> {
    let config = CtlConfig {
        path: Path::new(path).into(),
        action: Action::Command(String::new()),
        timeout: PATIENCE,
        output: Output::Text,
    };
    let tree = ask(&config, "info qtree json").unwrap_or_default();
    let mut devices = Vec::new();
    collect(&tree, &mut devices);
    let drives = ask(&config, "info block").unwrap_or_default();
    for id in drives["drives"].as_array().into_iter().flatten() {
        if let Some(id) = id["id"].as_str() {
            devices.push(Device {
                id: id.into(),
                driver: DRIVE.into(),
            });
        }
    }
    devices
}

/// Adds what is on a bus, and on the buses of that. The root of PCI is no device of the user's.
fn collect(bus: &Value, devices: &mut Vec<Device>) {
    for device in bus["devices"].as_array().into_iter().flatten() {
        if let (Some(id), Some(driver)) = (device["id"].as_str(), device["driver"].as_str())
            && driver.starts_with("nvme")
        {
            devices.push(Device {
                id: id.into(),
                driver: driver.into(),
            });
        }
        collect(&device["bus"], devices);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn machine(path: &str) -> Vec<Device> {
        assert_eq!(path, "PATH");
        let device = |id: &str, driver: &str| Device {
            id: id.into(),
            driver: driver.into(),
        };
        vec![
            device("s", "nvme-subsys"),
            device("n1", "nvme-ns"),
            device("c0", "nvme"),
            device("c1", "nvme"),
            device("d", DRIVE),
        ]
    }

    /// What is offered for a line; what is typed is its last word, `_` for nothing.
    fn offers(line: &str) -> Vec<String> {
        let word = |word: &str| word.replace('_', "");
        let words: Vec<String> = match line.rsplit_once(' ') {
            Some((before, last)) => before
                .split(' ')
                .map(str::to_owned)
                .chain([if last == "_" { word(last) } else { last.into() }])
                .collect(),
            None => vec![if line == "_" { word(line) } else { line.into() }],
        };
        let offers = complete(&words, &|path| machine(path));
        offers.into_iter().map(|offer| offer.text).collect()
    }

    #[test]
    fn commands_and_options_are_offered() {
        assert_eq!(offers("r"), ["run"]);
        assert_eq!(
            offers("_"),
            [
                "run",
                "ctl",
                "trace",
                "fio",
                "completion",
                "man",
                "help",
                "--help",
                "--version"
            ]
        );
        assert_eq!(offers("help c"), ["ctl", "completion"]);
        assert_eq!(offers("run --io-"), ["--io-threads", "--io-affinity"]);
        assert_eq!(
            offers("run --overcommit _"),
            ["mem-lock=on", "mem-lock=off"]
        );
        assert_eq!(
            offers("run --overcommit=mem-lock=of"),
            ["--overcommit=mem-lock=off"]
        );
        assert_eq!(offers("run --kernel _"), [""; 0], "a file");
        assert_eq!(offers("run -m _"), [""; 0]);
        assert_eq!(offers("run -- _"), [""; 0]);
        assert_eq!(offers("trace _"), ["summary", "plot"]);
        assert_eq!(offers("trace plot --o"), ["--out"]);
        assert_eq!(offers("trace plot _"), [""; 0]);
        assert_eq!(offers("completion z"), ["zsh"]);
        assert_eq!(offers("nonsense _"), [""; 0]);
    }

    #[test]
    fn every_option_is_offered() {
        let info = BerthArgs::get_args_info();
        for command in &info.commands {
            let offered = offers(&format!("{} --", command.name));
            for flag in command.command.flags.iter().filter(|flag| !flag.hidden) {
                assert!(offered.iter().any(|it| it == flag.long), "{offered:?}");
            }
        }
    }

    #[test]
    fn devices_are_offered_piece_by_piece() {
        assert_eq!(offers("run --device nvme-"), ["nvme-ns", "nvme-subsys"]);
        assert_eq!(offers("run --object _"), ["nvme-ns", "nvme-subsys"]);
        assert_eq!(offers("run --device nvme,se"), ["nvme,serial="]);
        assert_eq!(
            offers("run --device nvme-subsys,id=s,_").len(),
            0,
            "no property begins with an underscore"
        );
        assert_eq!(
            offers("run --device nvme-subsys,id=s,"),
            ["nvme-subsys,id=s,nqn=", "nvme-subsys,id=s,shared="]
        );
        assert_eq!(
            offers("run --disk=a.img,cache=write"),
            [
                "--disk=a.img,cache=writeback",
                "--disk=a.img,cache=writethrough"
            ]
        );
        assert_eq!(
            offers("run --device nvme,subsys=_"),
            [""; 0],
            "no machine runs"
        );
    }

    #[test]
    fn control_commands_are_offered_with_the_ids_of_the_machine() {
        assert_eq!(offers("ctl PATH de"), ["device_add", "device_del"]);
        assert_eq!(offers("ctl PATH w"), ["wait", "watch"]);
        assert_eq!(
            offers("ctl --timeout 5 PATH device_del _"),
            ["s", "n1", "c0", "c1"]
        );
        assert_eq!(offers("ctl PATH device_del c"), ["c0", "c1"]);
        assert_eq!(offers("ctl PATH device_del c0 _"), ["surprise", "wait="]);
        assert_eq!(offers("ctl PATH ns_attach _"), ["n1"]);
        assert_eq!(offers("ctl PATH ns_attach n1 _"), ["c0", "c1"]);
        assert_eq!(offers("ctl PATH object_del _"), ["s", "n1"]);
        assert_eq!(offers("ctl PATH drive_del _"), ["d"]);
        assert_eq!(offers("ctl PATH device_add nvme,drive="), ["nvme,drive=d"]);
        assert_eq!(offers("ctl PATH info q"), ["qtree"]);
        assert_eq!(offers("ctl PATH info qtree _"), ["json"]);
        assert_eq!(offers("ctl PATH help ns_r"), ["ns_resize"]);
        assert_eq!(offers("ctl PATH wait device_a"), ["device_added"]);
        assert_eq!(offers("ctl PATH wait device_deleted c1"), ["c1"]);
        assert_eq!(offers("ctl PATH wait guest_reset _"), ["timeout="]);
        assert_eq!(
            offers("ctl PATH device_add nvme,subsys="),
            ["nvme,subsys=s"]
        );
        assert_eq!(
            offers("ctl PATH device_add nvme-ns,bus="),
            ["nvme-ns,bus=s", "nvme-ns,bus=c0", "nvme-ns,bus=c1"]
        );
        assert_eq!(offers("ctl PATH trace o"), ["on", "off"]);
        assert_eq!(offers("ctl PATH trace on _"), [""; 0], "a file");
        // Before the path there are options, behind it commands.
        assert_eq!(offers("ctl --ti"), ["--timeout"]);
        assert_eq!(offers("ctl _"), [""; 0]);
    }

    #[test]
    fn info_knows_what_is_offered() {
        for topic in INFO {
            control::parse(&format!("info {topic}")).unwrap();
        }
    }

    #[test]
    fn ids_are_read_from_the_tree() {
        let tree = json!({ "bus": "main", "devices": [
            { "driver": "nvme-subsys", "id": "s", "bus": { "devices": [
                { "driver": "nvme-ns", "id": "n1" } ] } },
            { "driver": "pci-root", "id": "pci", "bus": { "devices": [
                { "driver": "nvme", "id": "c0" } ] } },
        ]});
        let mut devices = Vec::new();
        collect(&tree, &mut devices);
        let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["s", "n1", "c0"]);
    }
}
