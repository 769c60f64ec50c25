//! Runs stock Linux kernels as berth's guests.
//!
//! On hardware KVM guests start right here. Elsewhere this program starts an
//! emulated outer machine with itself inside, where it finds hardware KVM and
//! does the very same.

mod blocks;
mod boot_time;
mod command;
mod control;
mod counters;
mod fio_report;
mod guest;
mod hotplug;
mod interrupts;
mod iolog;
mod iopoll;
mod kit;
mod kvmstat;
mod measure;
mod outer;
mod report;
mod scenarios;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use harness::{HostKind, Placement};

use crate::kit::Kit;
use crate::outer::Outer;
use crate::report::Report;
use crate::scenarios::{SCENARIOS, Scenario};

const HELP: &str = "\
linux-guests COMMAND [--kit DIR] [--results FILE] [--exact] [--here] [WORD...]

  run [FILTER...]   the scenarios whose name contains a FILTER, all without one
  list              their names
  demo              a guest that shows its disk and checks it
  shell [KERNEL]    an interactive guest
  measure           an idle guest's cost
  outer FILE...     a program (with further files) in the outer machine
  readme DIR FROM TO
                    the blocks of DIR/README.md that begin in these lines

--exact   filters are whole names
--here    guests start on this machine's /dev/kvm, whatever its kind
";

/// What was asked for.
struct Options {
    command: String,
    words: Vec<String>,
    kit: Option<PathBuf>,
    results: Option<PathBuf>,
    exact: bool,
    here: bool,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("linux-guests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        command: args.next().unwrap_or_else(|| "help".to_owned()),
        words: Vec::new(),
        kit: None,
        results: None,
        exact: false,
        here: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--kit" => options.kit = Some(value()?.into()),
            "--results" => options.results = Some(value()?.into()),
            "--exact" => options.exact = true,
            "--here" => options.here = true,
            word if word.starts_with("--") => bail!("unknown option {word}\n\n{HELP}"),
            _ => options.words.push(arg),
        }
    }
    Ok(options)
}

/// True when all went well.
fn run(options: &Options) -> Result<bool> {
    match options.command.as_str() {
        "help" | "--help" => {
            print!("{HELP}");
            return Ok(true);
        }
        "list" => {
            for scenario in SCENARIOS {
                println!("{}", scenario.name);
            }
            return Ok(true);
        }
        "run" | "demo" | "shell" | "measure" | "outer" | "readme" => {}
        other => bail!("unknown command {other:?}\n\n{HELP}"),
    }
    let host = HostKind::detect();
    let placement = if options.here {
        Placement::Direct
    } else if options.command == "outer" {
        Placement::Outer
    } else {
        host.linux_placement()?
    };
    if !options.here {
        println!("{}", host.announce("Linux guests", &placement));
    }
    let kit = Kit::open(options.kit.as_deref())?;
    match placement {
        Placement::Direct => run_here(options, &kit),
        Placement::Outer => run_outside(options, &kit),
        Placement::Skip(_) => {
            println!("0 passed, 0 failed, 1 skipped");
            Ok(true)
        }
    }
}

fn run_here(options: &Options, kit: &Kit) -> Result<bool> {
    match options.command.as_str() {
        "demo" => tasks::demo(kit),
        "shell" => tasks::shell(kit, options.words.first().map(String::as_str)),
        "measure" => measure::run(kit),
        "readme" => blocks::here(&options.words),
        _ => {
            let mut report = Report::new(options.results.as_deref())?;
            for scenario in select(options)? {
                report.run(scenario, kit);
            }
            // Inside the outer machine the count is not yet whole.
            if options.results.is_none() {
                report.close();
            }
            Ok(report.passed())
        }
    }
}

fn run_outside(options: &Options, kit: &Kit) -> Result<bool> {
    match options.command.as_str() {
        "run" => outer::run_scenarios(kit, &select(options)?),
        "outer" => {
            let files: Vec<PathBuf> = options.words.iter().map(PathBuf::from).collect();
            let program = files.first().context("outer needs a program")?;
            Outer::new(kit, program, &files[1..])?.run()
        }
        "readme" => blocks::outside(kit, &options.words),
        command => {
            let mut words = vec![command];
            words.extend(options.words.iter().map(String::as_str));
            Outer::for_self(kit, &words)?
                .interactive(command == "shell")
                .run()
        }
    }
}

fn select(options: &Options) -> Result<Vec<&'static Scenario>> {
    let wanted = |name: &str| {
        options.words.is_empty()
            || options.words.iter().any(|word| {
                if options.exact {
                    name == word
                } else {
                    name.contains(word.as_str())
                }
            })
    };
    let found: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| wanted(scenario.name))
        .collect();
    if found.is_empty() {
        bail!("no scenario matches {:?}", options.words.join(" "));
    }
    Ok(found)
}
