//! berth: a minimal virtual machine monitor with NVMe built in.

// The machine that uses the rest is on its way.
#![allow(dead_code)]

mod cli;
mod control;
mod grammar;
mod spec;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli::Invocation::Print(text)) => {
            cli::print(&text);
            ExitCode::SUCCESS
        }
        Ok(cli::Invocation::Ctl(config)) => ctl(&config),
        Ok(cli::Invocation::Run(config)) => {
            println!("{config:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("berth: {error}");
            ExitCode::from(error.status())
        }
    }
}

/// Sends one command to a running berth.
fn ctl(config: &control::client::CtlConfig) -> ExitCode {
    match control::client::run(config) {
        Ok(text) => {
            cli::print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("berth ctl: {error}");
            ExitCode::from(1)
        }
    }
}
