//! berth: a minimal virtual machine monitor with NVMe built in.
#![allow(dead_code)]

mod cli;
mod control;
mod grammar;
mod spec;

fn main() {}
