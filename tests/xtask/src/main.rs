//! berth's developer tasks: `cargo xtask help`.

mod apt;
mod bench;
mod build;
mod cost;
mod images;
mod kernels;
mod packages;
mod progress;
mod readme;
mod release;
mod roots;
mod size;
mod suite;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::progress::Progress;

const HELP: &str = "\
cargo xtask TASK

  demo            boot a Debian guest with an NVMe disk, run fio with
                  verification and nvme-cli in it, pull a controller beneath
                  fio and plug it in again, power off
  shell [KERNEL]  a shell in such a guest; `Ctrl-a x` leaves
  test [PART]...  everything CI runs; PARTs: fmt clippy doc unit cost bare linux
                  release readme (linux=NAME runs the Linux scenarios whose name
                  contains NAME; readme runs the README's commands in a clone)
  list            the Linux scenarios
  guest [DIR]     put a Debian guest into DIR (this one): bzImage, initrd.img and
                  rootfs.img
  fetch           get guest kernels and tools, and build the guest images
  build-guest     build the bare-metal test guest and print where it is
  bench [KEY=VALUE]...
                  speed beside QEMU's nvme and virtio-blk and the host's own,
                  as tables, JSON and pictures; `bench help` lists the keys
  boot [KEY=VALUE]...
                  time to a guest's first instruction, beside QEMU's machines
  release [DIR]   berth for other machines, in DIR (target/dist): an archive with
                  the static binary, manual, completions and examples
  size            size of the release binary, and berth's own memory and idle
                  CPU use; fails above 4 MiB, 8 MiB and 1 %
  help            this text

What a task needs from the distribution it installs by itself as root or with
sudo; elsewhere it prints the list and stops. Kernels and images are cached in
target/guest. BERTH_TEST_HOST=direct|outer|skip overrides where guests run.
";

/// Where things are, and the clock that progress lines show.
pub struct Context {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// Progress lines.
    pub progress: Progress,
}

impl Context {
    fn new() -> Self {
        // tests/xtask is two levels below the root.
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.ancestors().nth(2).unwrap_or(here).to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        Self {
            root,
            target,
            progress: Progress::start(),
        }
    }

    /// Cache of guest software.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.target.join("guest")
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let context = Context::new();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", args),
    };
    if !matches!(
        task,
        "shell" | "test" | "bench" | "boot" | "guest" | "release"
    ) && !rest.is_empty()
    {
        bail!("{task} takes no argument, but got {:?}", rest.join(" "));
    }
    match task {
        "demo" => guests(&context, &["demo"]),
        "shell" => {
            if !std::io::stdin().is_terminal() {
                bail!("shell needs a terminal as standard input; demo runs without one");
            }
            let mut words = vec!["shell"];
            words.extend(rest.iter().map(String::as_str));
            guests(&context, &words)
        }
        "list" => guests(&context, &["list"]),
        "test" => suite::run(&context, rest),
        "guest" => {
            images::guest(&context, &folder(rest, Path::new("."))?)?;
            Ok(ExitCode::SUCCESS)
        }
        "release" => {
            let out = folder(rest, &context.target.join("dist"))?;
            println!("{}", release::make(&context, &out)?.display());
            Ok(ExitCode::SUCCESS)
        }
        "fetch" => images::prepare(&context).map(|_| ExitCode::SUCCESS),
        "build-guest" => {
            println!("{}", build::bare_guest(&context)?.display());
            Ok(ExitCode::SUCCESS)
        }
        "bench" => bench::run(&context, rest),
        "boot" => bench::boot(&context, rest),
        "size" => size::run(&context),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("there is no task {other:?}\n\n{HELP}"),
    }
}

/// The one folder that may be given, or `default`.
fn folder(words: &[String], default: &Path) -> Result<PathBuf> {
    match words {
        [] => Ok(default.to_owned()),
        [folder] if !folder.starts_with('-') => Ok(folder.into()),
        _ => bail!("one folder may be given, but got {:?}", words.join(" ")),
    }
}

/// Builds all it needs, then hands the terminal to `linux-guests`.
fn guests(context: &Context, words: &[&str]) -> Result<ExitCode> {
    let binaries = build::release(context)?;
    let kit = images::prepare(context)?;
    context
        .progress
        .step(&format!("starting: linux-guests {}", words.join(" ")));
    let status = build::linux_guests(&binaries, &kit, words).status()?;
    context.progress.step(&format!("ended with {status}"));
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that stand in running text; those in blocks are run by `readme`.
    #[test]
    fn tasks_that_the_documentation_names_are_in_the_help() {
        let known: Vec<&str> = HELP
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let pages = [
            include_str!("../../../README.md"),
            include_str!("../../../CONTRIBUTING.md"),
            include_str!("../../../CHANGELOG.md"),
        ];
        let named: Vec<&str> = pages
            .iter()
            .flat_map(|page| page.split("`cargo xtask ").skip(1))
            .filter_map(|rest| rest.split([' ', '`', '\n']).next())
            .collect();
        assert!(named.len() > 5, "{named:?}");
        for task in named {
            assert!(known.contains(&task), "{task} is not one of {known:?}");
        }
    }
}
