//! The command line: what may be typed, and the plain data that comes of it.

mod complete;
mod ctl;
mod error;
mod files;
mod fio;
mod machine_file;
mod normalize;
mod pages;
mod qemu;
mod resolved;
mod run;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trace;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use argh::{ArgsInfo, EarlyExit, FromArgs};

pub use self::error::CliError;
pub use self::fio::ROOT as FIO_ROOT;
use self::normalize::{Normalized, normalize};
pub use self::run::RunConfig;
use crate::control::client::CtlConfig;
use crate::fio::FioConfig;
use crate::grammar::did_you_mean;
use crate::trace::command::TraceConfig;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Boot a guest.
    Run(Box<RunConfig>),
    /// Talk to a running berth.
    Ctl(CtlConfig),
    /// Read a trace.
    Trace(TraceConfig),
    /// Run fio's jobs.
    Fio(Box<FioConfig>),
    /// Print this on stdout and exit with status 0: help, version.
    Print(String),
    /// No command was given.
    Nothing,
}

/// Boots Linux guests on KVM, with NVMe built in.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    name = "berth",
    help_triggers("-h", "--help"),
    example = "\
Boot a kernel from a disk:
  berth run --kernel bzImage --append root=/dev/nvme0n1 --disk root.img
Ask it how it is, from elsewhere, if it was given --control-socket /tmp/berth:
  berth ctl /tmp/berth info status"
)]
struct BerthArgs {
    /// print the version
    #[argh(switch, short = 'V')]
    version: bool,
    #[argh(subcommand)]
    command: Option<Subcommand>,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
#[allow(clippy::large_enum_variant)] // There is one of it, for a moment.
enum Subcommand {
    Run(run::RunArgs),
    Ctl(ctl::CtlArgs),
    Trace(trace::TraceArgs),
    Fio(fio::FioArgs),
    Completion(pages::CompletionArgs),
    Man(pages::ManArgs),
}

/// The names of the subcommands.
const COMMANDS: [&str; 6] = ["run", "ctl", "fio", "trace", "completion", "man"];

/// Parses the arguments, without the program's name.
///
/// # Errors
/// The command line is wrong, or a file that it names is not as it should be.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let args = args.into_iter().map(|arg| {
        let lossy = |arg: OsString| CliError::usage(arg.to_string_lossy(), "is not UTF-8");
        arg.into_string().map_err(lossy)
    });
    let args: Vec<String> = args.collect::<Result<_, _>>()?;
    let Some((first, rest)) = args.split_first() else {
        return Ok(Invocation::Nothing);
    };
    let parsed = match first.as_str() {
        "help" => return help(rest),
        // For the scripts of `berth completion` only.
        "complete" => return Ok(Invocation::Print(complete::text(rest))),
        "ctl" => parsed("ctl", 1, rest)?,
        "fio" => parsed("fio", usize::MAX, &fio::split_host(rest))?,
        name if COMMANDS.contains(&name) => parsed(name, usize::MAX, rest)?,
        option if option.starts_with('-') => parsed("", usize::MAX, &args)?,
        other => return Err(unknown_command(other)),
    };
    let (args, command) = match parsed {
        Parsed::Help(text) => return Ok(Invocation::Print(text)),
        Parsed::Args(args, command) => (*args, command),
    };
    match args.command {
        _ if args.version => Ok(Invocation::Print(
            concat!("berth ", env!("CARGO_PKG_VERSION"), "\n").into(),
        )),
        Some(Subcommand::Run(args)) => run::config(args, command),
        Some(Subcommand::Ctl(args)) => ctl::config(&args),
        Some(Subcommand::Trace(args)) => trace::config(args),
        Some(Subcommand::Fio(args)) => fio::config(args, rest),
        Some(Subcommand::Completion(args)) => pages::completion(&args.words).map(Invocation::Print),
        Some(Subcommand::Man(args)) => match args.words.first() {
            Some(extra) => Err(CliError::usage(extra, "unexpected argument of berth man")),
            None => pages::manual().map(Invocation::Print),
        },
        None => Ok(Invocation::Nothing),
    }
}

/// Prints on stdout. That nobody may be left to read it (`berth --help | head -1`) is no failure.
///
/// # Errors
/// It cannot be stored, on a full disk for example.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn unknown_command(given: &str) -> CliError {
    if Path::new(given).is_file() {
        let problem =
            "is a file, not a command; a kernel is booted with \"berth run --kernel FILE\"";
        return CliError::usage(given, problem);
    }
    let known: Vec<&str> = COMMANDS
        .into_iter()
        .chain(["--help", "--version"])
        .collect();
    let near = did_you_mean(given, &known);
    let commands = COMMANDS.join(", ");
    CliError::usage(
        given,
        format!("unknown command{near}; known: {commands}; see \"berth --help\""),
    )
}

fn help(topics: &[String]) -> Result<Invocation, CliError> {
    let topic = topics.first().map_or("", String::as_str);
    if !topic.is_empty() && !COMMANDS.contains(&topic) {
        return Err(unknown_command(topic));
    }
    match parsed(topic, usize::MAX, &["--help".to_owned()])? {
        Parsed::Help(text) => Ok(Invocation::Print(text)),
        Parsed::Args(..) => Ok(Invocation::Nothing),
    }
}

enum Parsed {
    /// And the guest's command, if there is one.
    Args(Box<BerthArgs>, Option<Vec<String>>),
    Help(String),
}

/// Parses the arguments of one subcommand, or berth's own if `name` is empty; from word `verbatim` on
/// nothing is an option.
fn parsed(name: &str, verbatim: usize, args: &[String]) -> Result<Parsed, CliError> {
    let top = BerthArgs::get_args_info();
    let info = top
        .commands
        .iter()
        .find(|it| it.name == name)
        .map_or(&top, |it| &it.command);
    let Normalized {
        options,
        words,
        mut behind,
    } = normalize(info, verbatim, args)?;
    let command = match name {
        "run" => behind.take(),
        _ => None,
    };
    let mut others = words.iter().chain(behind.iter().flatten());
    if let ("", Some(word)) = (name, others.next()) {
        return Err(CliError::usage(
            word,
            "unexpected argument; see \"berth --help\"",
        ));
    }
    let mut args: Vec<&str> = Vec::new();
    if !name.is_empty() {
        args.push(name);
    }
    args.extend(options.iter().map(String::as_str));
    args.push("--");
    args.extend(
        words
            .iter()
            .chain(behind.iter().flatten())
            .map(String::as_str),
    );
    match BerthArgs::from_args(&["berth"], &args) {
        Ok(parsed) => Ok(Parsed::Args(Box::new(parsed), command)),
        Err(EarlyExit {
            output,
            status: Ok(()),
        }) => Ok(Parsed::Help(output)),
        // Not reached while normalize refuses all that argh refuses.
        Err(EarlyExit { output, .. }) => Err(CliError::usage(name, output.trim())),
    }
}
