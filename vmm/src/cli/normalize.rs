//! Brings a command line into the one form that argh takes.
//!
//! argh knows `--key value` and `-k value` only. `--key=value`, `-m512`, `-vv` and `-h` are taken apart
//! here, `-device` of QEMU's kind is taken as `--device`, and what argh would refuse in words of its own
//! is refused here first. The options are argh's own table. Nothing is touched behind `--`, nor behind
//! the first word of a command for `ctl`.

use std::collections::HashSet;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

use super::{CliError, fio, qemu};
use crate::grammar::did_you_mean;

/// A command line in argh's form.
#[derive(Debug, Default)]
pub struct Normalized {
    /// Options, each as its own argument, values behind them.
    pub options: Vec<String>,
    /// Everything else before `--`.
    pub words: Vec<String>,
    /// What is behind `--`, if that is there.
    pub behind: Option<Vec<String>>,
}

/// Takes the arguments of one subcommand apart, whose options `info` lists. From word `verbatim` on
/// (counted from 0) nothing is an option any more.
///
/// # Errors
/// An unknown option, an option without its value or given twice.
pub fn normalize(
    info: &CommandInfoWithArgs,
    verbatim: usize,
    args: &[String],
) -> Result<Normalized, CliError> {
    let mut state = State {
        info,
        options: Vec::new(),
        seen: HashSet::new(),
    };
    let mut words = Vec::new();
    let mut behind = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if words.len() > verbatim {
            words.push(arg.clone());
        } else if arg == "--" {
            behind = Some(rest.by_ref().cloned().collect());
        } else if let Some(long) = arg.strip_prefix("--") {
            state.long(long, &mut rest)?;
        } else if let Some(long) = state.single_dash(arg) {
            state.long(long, &mut rest)?;
        } else if let Some(error) = state.elsewhere(arg) {
            return Err(error);
        } else if arg.len() > 1 && arg.starts_with('-') {
            state.short(&arg[1..], &mut rest)?;
        } else {
            words.push(arg.clone());
        }
    }
    Ok(Normalized {
        options: state.options,
        words,
        behind,
    })
}

struct State<'a> {
    info: &'a CommandInfoWithArgs,
    options: Vec<String>,
    seen: HashSet<&'static str>,
}

type Rest<'a> = std::slice::Iter<'a, String>;

impl State<'_> {
    /// What is behind the dash of a long option in QEMU's form, `-device`.
    fn single_dash<'a>(&self, arg: &'a str) -> Option<&'a str> {
        let long = arg.strip_prefix('-')?;
        let name = long.split_once('=').map_or(long, |(name, _)| name);
        let given = format!("--{name}");
        let known = self.info.flags.iter().any(|flag| flag.long == given);
        (known && name.len() > 1).then_some(long)
    }

    /// An option that is QEMU's, or that of one of the commands.
    fn elsewhere(&self, given: &str) -> Option<CliError> {
        if !given.starts_with('-') {
            return None;
        }
        match self.info.name {
            "run" => return qemu::advice(given).map(|advice| CliError::usage(given, advice)),
            "fio" => return fio::advice(given).map(|advice| CliError::usage(given, advice)),
            _ => {}
        }
        let name = given.split_once('=').map_or(given, |(name, _)| name);
        let long = format!("--{}", name.trim_start_matches('-'));
        let has_it = |flag: &FlagInfo| {
            flag.long == long || flag.short.is_some_and(|short| name == format!("-{short}"))
        };
        let mut commands = self.info.commands.iter();
        let command = commands
            .find(|it| it.command.flags.iter().any(has_it))?
            .name;
        let problem = format!("is an option of \"berth {command}\"; berth {command} {name} ...");
        Some(CliError::usage(name, problem))
    }

    fn long(&mut self, arg: &str, rest: &mut Rest<'_>) -> Result<(), CliError> {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg, None),
        };
        let given = format!("--{name}");
        let flag = self.info.flags.iter().find(|flag| flag.long == given);
        let Some(flag) = flag else {
            return Err(self.unknown(&given));
        };
        match flag.kind {
            FlagInfoKind::Switch if value.is_some() => {
                Err(CliError::usage(given, "takes no value"))
            }
            FlagInfoKind::Switch => {
                self.options.push(given);
                Ok(())
            }
            FlagInfoKind::Option { .. } => self.option(flag, &given, value, rest),
        }
    }

    /// A cluster such as `-vvm512`: switches, then at most one option with its value.
    fn short(&mut self, cluster: &str, rest: &mut Rest<'_>) -> Result<(), CliError> {
        for (at, letter) in cluster.char_indices() {
            let given = format!("-{letter}");
            if letter == 'h' {
                self.options.push("--help".to_owned());
                continue;
            }
            let flag = self
                .info
                .flags
                .iter()
                .find(|flag| flag.short == Some(letter));
            let Some(flag) = flag else {
                return Err(self.unknown(&given));
            };
            if matches!(flag.kind, FlagInfoKind::Option { .. }) {
                let value = &cluster[at + letter.len_utf8()..];
                let value = value.strip_prefix('=').unwrap_or(value);
                let value = (!value.is_empty()).then_some(value);
                return self.option(flag, &given, value, rest);
            }
            self.options.push(given);
        }
        Ok(())
    }

    fn option(
        &mut self,
        flag: &FlagInfo<'static>,
        given: &str,
        value: Option<&str>,
        rest: &mut Rest<'_>,
    ) -> Result<(), CliError> {
        if !self.seen.insert(flag.long) && flag.optionality != Optionality::Repeating {
            return Err(CliError::usage(given, "is given twice"));
        }
        let value = match value {
            Some(value) => value,
            None => self.next_value(given, rest)?,
        };
        self.options.extend([given.to_owned(), value.to_owned()]);
        Ok(())
    }

    /// The next argument as the value of `given`. An option in its place means that the value was
    /// forgotten; `--append=--quiet` is how to say otherwise.
    fn next_value<'r>(&self, given: &str, rest: &mut Rest<'r>) -> Result<&'r str, CliError> {
        let next = rest
            .next()
            .ok_or_else(|| CliError::usage(given, "its value is missing"))?;
        let known = self.info.flags.iter().any(|flag| flag.long == next);
        if known || self.single_dash(next).is_some() {
            let problem = format!("its value is missing; {next} follows");
            return Err(CliError::usage(given, problem));
        }
        Ok(next)
    }

    fn unknown(&self, given: &str) -> CliError {
        if let Some(error) = self.elsewhere(given) {
            return error;
        }
        let known: Vec<&'static str> = self.info.flags.iter().map(|flag| flag.long).collect();
        let near = did_you_mean(given, &known);
        // The name of argh's top level is that of a type.
        let name = Some(self.info.name).filter(|_| self.info.commands.is_empty());
        let help: Vec<&str> = ["berth"]
            .into_iter()
            .chain(name)
            .chain(["--help"])
            .collect();
        let problem = format!("unknown option{near}; see \"{}\"", help.join(" "));
        CliError::usage(given, problem)
    }
}
