//! The manual page and the completions of shells, from the same tables as `--help`.

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, FromArgs, Optionality};
use argh_complete::Generator;
use roff::{Inline, Roff, bold, italic, roman};

use super::{BerthArgs, CliError, Invocation};
use crate::grammar::did_you_mean;

/// Shells that completions are made for.
pub const SHELLS: [&str; 4] = ["bash", "fish", "nushell", "zsh"];

/// Print completions of berth's commands and options for a shell: bash, fish, nushell or zsh.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "completion",
    help_triggers("-h", "--help"),
    usage = "SHELL",
    example = "berth completion bash > ~/.local/share/bash-completion/completions/berth"
)]
pub struct CompletionArgs {
    #[argh(positional, greedy, hidden_help)]
    pub words: Vec<String>,
}

/// Print the manual page.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "man",
    help_triggers("-h", "--help"),
    usage = "",
    example = "berth man | man -l -"
)]
pub struct ManArgs {
    #[argh(positional, greedy, hidden_help)]
    pub words: Vec<String>,
}

/// Completions for a shell, as a script for it. It asks berth for the words, see
/// [`complete`](super::complete); for nushell it has the commands and options in it.
///
/// # Errors
/// No shell is named, or none that completions are made for.
pub fn completion(words: &[String]) -> Result<String, CliError> {
    let info = BerthArgs::get_args_info();
    let [shell] = words else {
        let problem = format!("name one shell of {}", SHELLS.join(", "));
        return Err(CliError::usage("completion", problem));
    };
    match shell.as_str() {
        "bash" => Ok(include_str!("completion.bash").into()),
        "fish" => Ok(include_str!("completion.fish").into()),
        "nushell" => Ok(argh_complete::nushell::Nushell::generate("berth", &info)),
        "zsh" => Ok(include_str!("completion.zsh").into()),
        other => {
            let near = did_you_mean(other, &SHELLS);
            let problem = format!("unknown shell{near}; known: {}", SHELLS.join(", "));
            Err(CliError::usage(format!("completion {other}"), problem))
        }
    }
}

/// The manual page, berth(1), in roff.
///
/// # Errors
/// None that is known: a command's help can be had.
pub fn manual() -> Result<String, CliError> {
    let info = BerthArgs::get_args_info();
    let mut page = Roff::new();
    let version = concat!("berth ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["berth", "1", "", version]);
    page.control("SH", ["NAME"]);
    page.text([roman(
        "berth - boots Linux guests on KVM, with NVMe built in",
    )]);
    page.control("SH", ["SYNOPSIS"]);
    for command in &info.commands {
        page.text([roman(synopsis(command.name)?)]);
        page.control("br", []);
    }
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(info.description)]);
    for command in &info.commands {
        describe(&mut page, &command.command);
    }
    examples(&mut page, &info);
    Ok(page.render())
}

/// How a command is used, from its help.
fn synopsis(name: &str) -> Result<String, CliError> {
    let help = super::help(&[name.to_owned()])?;
    let Invocation::Print(help) = help else {
        return Ok(String::new());
    };
    let usage = help.lines().next().unwrap_or_default();
    Ok(usage.trim_start_matches("Usage: ").to_owned())
}

fn describe(page: &mut Roff, command: &CommandInfoWithArgs) {
    page.control(
        "SH",
        [format!("BERTH {}", command.name.to_uppercase()).as_str()],
    );
    page.text([roman(command.description)]);
    for flag in command.flags.iter().filter(|flag| !flag.hidden) {
        page.control("TP", []);
        page.text(option(flag));
        page.text([roman(flag.description)]);
    }
    for note in command.notes {
        verbatim(page, note);
    }
    examples(page, command);
    if !command.error_codes.is_empty() {
        page.control("SS", ["Exit status"]);
    }
    for code in command.error_codes {
        page.control("TP", []);
        page.text([bold(code.code.to_string())]);
        page.text([roman(code.description)]);
    }
}

fn option(flag: &FlagInfo) -> Vec<Inline> {
    let mut words = Vec::new();
    if let Some(short) = flag.short {
        words.extend([bold(format!("-{short}")), roman(", ")]);
    }
    words.push(bold(flag.long));
    if let FlagInfoKind::Option { arg_name } = flag.kind {
        words.extend([roman(" "), italic(arg_name)]);
    }
    if flag.optionality == Optionality::Repeating {
        words.push(roman(" ..."));
    }
    words
}

fn examples(page: &mut Roff, command: &CommandInfoWithArgs) {
    if !command.examples.is_empty() {
        page.control("SS", ["Examples"]);
    }
    for example in command.examples {
        verbatim(page, example);
    }
}

/// Lines as they are.
fn verbatim(page: &mut Roff, text: &str) {
    page.control("PP", []);
    page.control("nf", []);
    for line in text.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
}
