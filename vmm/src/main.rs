//! berth: a minimal virtual machine monitor with NVMe built in.

mod affinity;
mod cli;
mod coalesced;
mod commands;
mod console;
mod control;
mod cpuid;
mod event_loop;
mod exit;
mod fio;
mod grammar;
mod guest;
mod guest_command;
mod host;
mod image;
mod interrupt;
mod kvm;
mod live;
mod machine;
mod memory;
mod poll;
mod qtree;
mod registry;
mod run;
mod signals;
mod spec;
mod startup;
mod stderr;
mod string_io;
mod terminal;
mod trace;
mod vcpu;
mod waits;
mod welcome;

use std::process::ExitCode;

fn main() -> ExitCode {
    if guest::is_first_process() {
        guest::run();
    }
    let watch = startup::Stopwatch::start();
    match cli::parse(std::env::args_os().skip(1)) {
        Ok(cli::Invocation::Print(text)) => match cli::print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let why = control::plain(&error);
                stderr::say(format_args!("berth: standard output: {why}"));
                ExitCode::from(1)
            }
        },
        Ok(cli::Invocation::Nothing) => {
            stderr::say(format_args!("berth: {}", welcome::text()));
            ExitCode::from(exit::USAGE)
        }
        Ok(cli::Invocation::Ctl(config)) => ctl(&config),
        Ok(cli::Invocation::Fio(config)) => ExitCode::from(fio::run(&config)),
        Ok(cli::Invocation::Trace(config)) => trace(&config),
        Ok(cli::Invocation::Run(config)) => ExitCode::from(run::run(&config, watch)),
        Err(error) => {
            stderr::say(format_args!("berth: {error}"));
            ExitCode::from(error.status())
        }
    }
}

/// Sends one command to a running berth.
fn ctl(config: &control::client::CtlConfig) -> ExitCode {
    match control::client::run(config) {
        Ok(control::client::Done::Yes) => ExitCode::SUCCESS,
        Ok(control::client::Done::Refused) => ExitCode::from(1),
        Err(error) => {
            stderr::say(format_args!("berth ctl: {error}"));
            ExitCode::from(1)
        }
    }
}

/// Tells what a trace says.
fn trace(config: &trace::command::TraceConfig) -> ExitCode {
    match trace::command::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stderr::say(format_args!("berth trace: {error}"));
            ExitCode::from(1)
        }
    }
}
