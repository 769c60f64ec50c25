//! The machines that are compared: descriptions, with properties varied.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::cli::{self, CliError, Invocation};
use crate::grammar::did_you_mean;

/// What is varied for the machine as a whole.
const MACHINE: [&str; 6] = [
    "append",
    "cpus",
    "io-affinity",
    "io-threads",
    "memory",
    "overcommit",
];
/// What is varied for every controller.
const CONTROLLER: [&str; 4] = ["max_ioqpairs", "mdts", "mqes", "poll-us"];
/// What is varied for every namespace.
const NAMESPACE: [&str; 2] = ["cache", "logical_block_size"];
/// The machine where none is described.
const DEFAULT: [&str; 4] = [
    "--device",
    "nvme,id=nvme0",
    "--device",
    "nvme-ns,bus=nvme0,memory=256M",
];
/// What of a device's properties says where its bytes are.
const BACKENDS: [&str; 4] = ["file", "drive", "memory", "null"];

/// A machine for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Unique among those of a comparison.
    pub name: String,
    /// Its description, for `--machine`.
    pub text: String,
}

/// `--vary KEY=VALUE,VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vary {
    key: String,
    values: Vec<String>,
}

impl Vary {
    /// Parses the argument.
    ///
    /// # Errors
    /// What is wrong with it, without the option.
    pub fn parse(argument: &str) -> Result<Self, CliError> {
        let error = |problem: String| CliError::usage(format!("--vary {argument}"), problem);
        let (key, values) = argument
            .split_once('=')
            .ok_or_else(|| error("must be KEY=VALUE,VALUE".into()))?;
        let known: Vec<&'static str> = [&MACHINE[..], &CONTROLLER, &NAMESPACE].concat();
        if !known.contains(&key) {
            let near = did_you_mean(key, &known);
            let known = known.join(", ");
            return Err(error(format!(
                "cannot vary \"{key}\"{near}; known: {known}"
            )));
        }
        // A list of CPUs has commas of its own.
        let separator = if key == "io-affinity" { ':' } else { ',' };
        let values: Vec<String> = values.split(separator).map(str::to_owned).collect();
        if values.iter().any(String::is_empty) {
            return Err(error("a value is missing".into()));
        }
        Ok(Self {
            key: key.to_owned(),
            values,
        })
    }
}

/// All machines: each of `files` (or the one that `options` of `berth run` describe alone) with every
/// combination of varied values.
///
/// # Errors
/// A description or an option is wrong.
pub fn machines(
    files: &[PathBuf],
    options: &[String],
    vary: &[Vary],
) -> Result<Vec<Machine>, CliError> {
    let mut bases = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        bases.push((name.into_owned(), described(Some(file), options)?));
    }
    if bases.is_empty() {
        bases.push((String::new(), described(None, options)?));
    }
    let mut machines = Vec::new();
    for (base, text) in bases {
        for values in combinations(vary) {
            let mut text = text.clone();
            let mut words: Vec<String> = vec![base.clone()]
                .into_iter()
                .filter(|it| !it.is_empty())
                .collect();
            for (key, value) in values {
                text = varied(&text, key, value)?;
                words.push(format!("{key}={value}"));
            }
            let name = if words.is_empty() {
                "default".into()
            } else {
                words.join(" ")
            };
            let taken = machines.iter().any(|it: &Machine| it.name == name);
            let name = if taken {
                format!("{name} ({})", machines.len() + 1)
            } else {
                name
            };
            machines.push(Machine { name, text });
        }
    }
    Ok(machines)
}

fn combinations(vary: &[Vary]) -> Vec<Vec<(&str, &str)>> {
    let mut all = vec![Vec::new()];
    for one in vary {
        let more = all.iter().flat_map(|begun: &Vec<(&str, &str)>| {
            one.values.iter().map(move |value| {
                let mut next = begun.clone();
                next.push((one.key.as_str(), value.as_str()));
                next
            })
        });
        all = more.collect();
    }
    all
}

/// The machine as `berth run --dry-run` prints it.
fn described(file: Option<&Path>, options: &[String]) -> Result<String, CliError> {
    let mut words = vec!["run".to_owned(), "--dry-run".to_owned()];
    if let Some(file) = file {
        words.extend(["--machine".to_owned(), file.display().to_string()]);
    }
    words.extend(options.iter().cloned());
    let text = dry_run(words.clone())?;
    if table(&text).contains_key("rootfs") {
        let argument = format!(
            "--machine {}: --rootfs",
            file.unwrap_or(Path::new("")).display()
        );
        return Err(CliError::usage(argument, cli::FIO_ROOT));
    }
    if !namespaces(&text).is_empty() {
        return Ok(text);
    }
    if file.is_some() {
        let argument = format!("--machine {}", file.unwrap_or(Path::new("")).display());
        return Err(CliError::usage(argument, "has no disk for fio to work on"));
    }
    words.extend(DEFAULT.map(str::to_owned));
    dry_run(words)
}

fn dry_run(mut words: Vec<String>) -> Result<String, CliError> {
    // With a command, a kernel need not be named.
    words.extend(["--".to_owned(), "sh".to_owned()]);
    match cli::parse(words.into_iter().map(Into::into))? {
        // The command is another one.
        Invocation::Print(text) => Ok(without_command(&text)),
        _ => Err(CliError::usage("--machine", "cannot be described")),
    }
}

fn without_command(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("command = "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The description with one property changed. Where nothing has it, that is an error.
fn varied(text: &str, key: &str, value: &str) -> Result<String, CliError> {
    let argument = format!("--vary {key}={value}");
    let mut table = table(text);
    if MACHINE.contains(&key) {
        table.insert(key.to_owned(), value.into());
        return checked(&table, &argument);
    }
    let mut count = 0;
    for name in ["disk", "object", "device"] {
        let Some(Value::Array(devices)) = table.get_mut(name) else {
            continue;
        };
        for device in devices.iter_mut().filter_map(Value::as_table_mut) {
            let driver = driver(device);
            let fits = if CONTROLLER.contains(&key) {
                driver == "nvme"
            } else {
                // Only files have a cache.
                has_backend(device) && (key != "cache" || device.contains_key("file"))
            };
            if fits {
                device.insert(key.to_owned(), value.into());
                count += 1;
            }
        }
    }
    if count == 0 {
        let problem = if CONTROLLER.contains(&key) {
            "the machine names no controller; instead of --disk FILE write --device nvme,id=c --device \
             nvme-ns,bus=c,file=FILE"
        } else {
            "no disk of the machine has it"
        };
        return Err(CliError::usage(argument, problem));
    }
    checked(&table, &argument)
}

/// The description as it is understood, so that a wrong value is told before anything runs.
fn checked(table: &Table, argument: &str) -> Result<String, CliError> {
    let error = |problem: String| CliError::usage(argument, problem);
    let folder = super::private::Folder::new().map_err(|problem| error(problem.to_string()))?;
    let path = folder.path().join("machine.toml");
    std::fs::write(&path, table.to_string()).map_err(|problem| error(problem.to_string()))?;
    let words = ["run", "--dry-run", "--machine", &path.display().to_string()];
    dry_run(words.map(str::to_owned).to_vec()).map_err(|problem| {
        // The path of the file that was just made tells nobody anything.
        let text = problem.to_string();
        let shown = text
            .split_once(".toml: ")
            .map_or(text.as_str(), |(_, rest)| rest);
        error(shown.to_owned())
    })
}

/// What `--dry-run` printed is a description.
fn table(text: &str) -> Table {
    text.parse().unwrap_or_default()
}

fn driver(device: &Table) -> &str {
    let driver = device.get("driver").or_else(|| device.get("qom-type"));
    driver.and_then(Value::as_str).unwrap_or("nvme-ns")
}

fn has_backend(device: &Table) -> bool {
    BACKENDS.iter().any(|key| device.contains_key(*key))
}

/// The machine's namespaces: for each its file, or `None` if it has none.
pub fn namespaces(text: &str) -> Vec<Option<PathBuf>> {
    let table = table(text);
    let all = ["disk", "object", "device"].into_iter();
    let all = all.filter_map(|name| table.get(name)?.as_array());
    let devices = all.flatten().filter_map(Value::as_table);
    devices
        .filter(|device| has_backend(device))
        .map(|device| {
            device
                .get("file")
                .and_then(Value::as_str)
                .map(PathBuf::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn words(line: &str, dir: &TempDir) -> Vec<String> {
        let base = dir.path().display().to_string();
        let words = line.split_whitespace();
        words.map(|word| word.replace("DIR", &base)).collect()
    }

    fn folder() -> TempDir {
        let dir = TempDir::new().unwrap();
        for name in ["kernel", "a.img"] {
            fs::write(dir.path().join(name), "content").unwrap();
        }
        fs::write(
            dir.path().join("tuned.toml"),
            "io-threads = 2\n[[device]]\ndriver = 'nvme'\nid = 'c'\n[[device]]\ndriver = 'nvme-ns'\n\
             null = '1G'\n",
        )
        .unwrap();
        dir
    }

    fn vary(arguments: &[&str]) -> Vec<Vary> {
        arguments
            .iter()
            .map(|it| Vary::parse(it).unwrap())
            .collect()
    }

    #[test]
    fn varied_properties_are_combined() {
        let dir = folder();
        let options = words("--kernel DIR/kernel", &dir);
        let files = [dir.path().join("tuned.toml")];
        let found = machines(&files, &options, &vary(&["poll-us=0,50", "io-threads=1,2"])).unwrap();
        let names: Vec<&str> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "tuned poll-us=0 io-threads=1",
                "tuned poll-us=0 io-threads=2",
                "tuned poll-us=50 io-threads=1",
                "tuned poll-us=50 io-threads=2",
            ]
        );
        assert!(
            found[0].text.contains("\nio-threads = 1\n"),
            "{}",
            found[0].text
        );
        assert!(
            found[0].text.contains("\npoll-us = 0\n"),
            "{}",
            found[0].text
        );
        assert!(
            found[3].text.contains("\nio-threads = 2\n"),
            "{}",
            found[3].text
        );
        assert!(
            found[3].text.contains("\npoll-us = 50\n"),
            "{}",
            found[3].text
        );
    }

    #[test]
    fn without_a_disk_there_is_one_in_memory() {
        let dir = folder();
        let options = words("--kernel DIR/kernel", &dir);
        let found = machines(&[], &options, &[]).unwrap();
        assert_eq!(found[0].name, "default");
        assert_eq!(namespaces(&found[0].text), [None]);
        assert_eq!(
            machines(&[], &options, &vary(&["mqes=63"])).unwrap()[0].name,
            "mqes=63"
        );
        let options = words("--kernel DIR/kernel --disk DIR/a.img", &dir);
        let found = machines(&[], &options, &vary(&["cache=none,unsafe"])).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(namespaces(&found[1].text), [Some(dir.path().join("a.img"))]);
        assert!(
            found[1].text.contains("cache = \"unsafe\""),
            "{}",
            found[1].text
        );
    }

    #[test]
    fn mistakes_are_explained() {
        for (argument, why) in [
            ("polls", "--vary polls: must be KEY=VALUE,VALUE"),
            (
                "pol-us=1",
                "--vary pol-us=1: cannot vary \"pol-us\" (did you mean \"poll-us\"?); known: ",
            ),
            ("poll-us=1,", "--vary poll-us=1,: a value is missing"),
        ] {
            let error = Vary::parse(argument).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
        let dir = folder();
        let refused = |line: &str, argument: &str| {
            let found = machines(&[], &words(line, &dir), &vary(&[argument]));
            found.unwrap_err().to_string()
        };
        let disk = "--kernel DIR/kernel --disk DIR/a.img";
        assert!(refused(disk, "poll-us=1").contains("names no controller"));
        assert!(
            refused("--kernel DIR/kernel", "cache=none").contains("no disk of the machine has it")
        );
        let wrong = refused("--kernel DIR/kernel", "poll-us=9999");
        assert!(
            wrong.starts_with("--vary poll-us=9999: ") && !wrong.contains("machine.toml"),
            "{wrong}"
        );
        let wrong = refused("--kernel DIR/kernel", "cpus=0");
        assert!(wrong.starts_with("--vary cpus=0: "), "{wrong}");
        fs::write(dir.path().join("empty.toml"), "memory = '1G'\n").unwrap();
        let files = [dir.path().join("empty.toml")];
        let error = machines(&files, &words("--kernel DIR/kernel", &dir), &[]).unwrap_err();
        assert!(error.to_string().contains("has no disk"), "{error}");
        let rootfs = format!(
            "rootfs = '{}'\n[[disk]]\nnull = '1G'\n",
            dir.path().display()
        );
        fs::write(dir.path().join("empty.toml"), rootfs).unwrap();
        let error = machines(&files, &words("--kernel DIR/kernel", &dir), &[]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("empty.toml: --rootfs: the guests of \"berth fio\" have"),
            "{error}"
        );
    }
}
