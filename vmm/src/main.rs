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

fn main() -> std::process::ExitCode {
    let mut config = cli::RunConfig {
        kernel: std::path::PathBuf::new(), initrd: None, append: String::new(), memory: 512 << 20, cpus: 1,
        disks: vec![], devices: vec![], control_pipe: None, control_socket: None, io_threads: 1, com2: None, verbosity: 0,
    };
    let mut args = std::env::args().skip(2);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap();
        match arg.as_str() {
            "--kernel" => config.kernel = value().into(),
            "--initrd" => config.initrd = Some(value().into()),
            "--append" => config.append = value(),
            "-m" => config.memory = value().trim_end_matches('M').parse::<u64>().unwrap() << 20,
            "--cpus" => config.cpus = value().parse().unwrap(),
            "--com2" => config.com2 = Some(value().into()),
            "-v" => config.verbosity += 1,
            _ => panic!("{arg}"),
        }
    }
    std::process::ExitCode::from(run::run(&config))
}
