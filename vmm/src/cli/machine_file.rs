//! A machine description (`--machine FILE`): the options of `berth run` in TOML.
//!
//! Options that are given once are keys of their names, without dashes in front; those that are given
//! again and again are tables, `[[device]]`, whose keys are the device's properties, or lists of texts. Everything becomes
//! the text that the command line would have had, so that both mean the same and are refused alike.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::{Table, Value};

use super::CliError;
use crate::control::plain;
use crate::grammar::did_you_mean;

/// Larger files are no machine descriptions.
const MAX_BYTES: u64 = 1 << 20;

/// Options that are given once.
const SINGLE: [&str; 13] = [
    "kernel",
    "initrd",
    "append",
    "memory",
    "cpus",
    "io-threads",
    "io-affinity",
    "overcommit",
    "com2",
    "rootfs",
    "trace",
    "control-pipe",
    "control-socket",
];

/// Options that are tables, with the key that their argument begins with.
const REPEATED: [(&str, &str); 4] = [
    ("disk", "file"),
    ("drive", "file"),
    ("object", "qom-type"),
    ("device", "driver"),
];

/// Options that are lists of texts, and the guest's command.
const LISTS: [&str; 3] = ["with", "module", "command"];

/// What a file says, as arguments of options.
#[derive(Debug, Default, PartialEq)]
pub struct MachineFile {
    single: BTreeMap<String, String>,
    repeated: BTreeMap<String, Vec<String>>,
}

impl MachineFile {
    /// Reads the description at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or has keys or values that a machine has not.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let argument = format!("--machine {}", path.display());
        let failed = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; it takes a description in TOML (QEMU's machine types have no meaning here)"
                }
                io::ErrorKind::InvalidData => {
                    let problem = "is no text; it takes a description in TOML";
                    return CliError::usage(&argument, problem);
                }
                _ => "",
            };
            CliError::environment(&argument, plain(&error) + hint)
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            let problem = "is larger than 1 MiB, and so no machine description";
            return Err(CliError::usage(argument, problem));
        }
        Self::parse(&text).map_err(|problem| CliError::usage(argument, problem))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: Table = text
            .parse()
            .map_err(|error| format!("is no TOML: {}", one_line(&error)))?;
        let mut machine = Self::default();
        for (key, value) in table {
            if let Some((_, first)) = REPEATED.iter().find(|(name, _)| *name == key) {
                let arguments = arguments(&key, first, value)?;
                machine.repeated.insert(key, arguments);
            } else if LISTS.contains(&key.as_str()) {
                let texts = texts(&key, value)?;
                machine.repeated.insert(key, texts);
            } else if SINGLE.contains(&key.as_str()) {
                let text = text_of(&key, &value)?;
                machine.single.insert(key, text);
            } else {
                return Err(unknown(&key));
            }
        }
        Ok(machine)
    }

    /// Whether `argument`, an option with its value, is from here.
    pub fn has(&self, argument: &str) -> bool {
        // What is wrong with an empty value is told of the option alone.
        let (option, value) = argument.split_once(' ').unwrap_or((argument, ""));
        let name = option.trim_start_matches('-');
        let is = |text: &String| text == value;
        self.single.get(name).is_some_and(is)
            || self
                .repeated
                .get(name)
                .is_some_and(|all| all.iter().any(is))
    }

    /// An option that is given once: from the command line if it is there, else from here.
    pub fn single(&self, name: &str, given: Option<String>) -> Option<String> {
        debug_assert!(SINGLE.contains(&name));
        given.or_else(|| self.single.get(name).cloned())
    }

    /// An option that is given again and again: what is here, then what is on the command line.
    pub fn repeated(&self, name: &str, given: Vec<String>) -> Vec<String> {
        let mut all = self.repeated.get(name).cloned().unwrap_or_default();
        all.extend(given);
        all
    }
}

/// TOML's errors show the line in a drawing of several lines.
fn one_line(error: &toml::de::Error) -> String {
    let whole = error.to_string();
    let place = whole.lines().next().unwrap_or_default();
    format!("{} ({})", error.message(), place.trim())
}

fn unknown(key: &str) -> String {
    let known: Vec<&str> = SINGLE
        .into_iter()
        .chain(LISTS)
        .chain(REPEATED.iter().map(|(name, _)| *name))
        .collect();
    let near = did_you_mean(key, &known);
    format!("unknown key \"{key}\"{near}; known: {}", known.join(", "))
}

/// A list of texts.
fn texts(key: &str, value: Value) -> Result<Vec<String>, String> {
    let Value::Array(values) = value else {
        return Err(format!("{key}: must be a list, such as [\"a\", \"b\"]"));
    };
    values.iter().map(|value| text_of(key, value)).collect()
}

/// `[[device]]` and its like as arguments.
fn arguments(key: &str, first: &str, value: Value) -> Result<Vec<String>, String> {
    let wrong = || format!("{key}: must be tables, each headed [[{key}]]");
    let Value::Array(tables) = value else {
        return Err(wrong());
    };
    let mut arguments = Vec::new();
    for (table, number) in tables.into_iter().zip(1..) {
        let Value::Table(table) = table else {
            return Err(wrong());
        };
        arguments.push(argument(&format!("[[{key}]] {number}"), first, table)?);
    }
    Ok(arguments)
}

fn argument(place: &str, first: &str, mut table: Table) -> Result<String, String> {
    let mut properties = Vec::new();
    let mut add = |key: &str, value: &Value| -> Result<(), String> {
        if key.is_empty() || key.contains([',', '=']) {
            return Err(format!("{place}: \"{key}\" is no property"));
        }
        let text = text_of(&format!("{place}: {key}"), value)?;
        // TOML keeps no notation: 0x10 and 16 are one number here, and two slots on the command line.
        if key == "addr" && matches!(value, Value::Integer(10..)) {
            let problem = "write a slot above 9 as a string, in hexadecimal as in QEMU";
            return Err(format!("{place}: {key}: {problem}"));
        }
        // A comma in a value is written twice in the grammar of devices.
        properties.push(format!("{key}={}", text.replace(',', ",,")));
        Ok(())
    };
    if let Some(value) = table.remove(first) {
        add(first, &value)?;
    }
    for (key, value) in &table {
        add(key, value)?;
    }
    Ok(properties.join(","))
}

fn text_of(place: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.contains('\0') => Err(format!("{place}: contains NUL")),
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
        other => Err(format!(
            "{place}: is {}; must be a string, a whole number, true or false",
            match other {
                Value::Float(_) => "a fraction",
                Value::Datetime(_) => "a date",
                Value::Array(_) => "a list",
                _ => "a table",
            }
        )),
    }
}
