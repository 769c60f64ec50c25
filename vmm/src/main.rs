//! berth: a minimal virtual machine monitor with NVMe built in.
#![allow(dead_code)]

mod cli;
mod control;
mod grammar;
mod spec;

mod console;
mod cpuid;
mod event_loop;
mod exit;
mod interrupt;
mod kvm;
mod machine;
mod memory;
mod run;
mod signals;
mod terminal;
mod vcpu;

fn main() {}
