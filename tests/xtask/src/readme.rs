//! `cargo xtask test readme`: the README's commands, in order, in a fresh clone of what is committed.
//!
//! What they build goes to a target folder of its own: cargo cannot tell two checkouts in one folder
//! apart, and would take the clone's programs for this checkout's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{HostKind, Placement, TempDir};
use readme::{Block, Place, Session, Verdict, parse, result_line};

use crate::progress::Tool;
use crate::suite::{self, Tally};
use crate::{Context, build, images};

/// A fresh clone, with what a user has besides: a home, and a folder for installed programs.
struct Clone {
    scratch: TempDir,
    target: PathBuf,
}

impl Clone {
    fn new(context: &Context) -> Result<Self> {
        let scratch = harness::scratch()?;
        let git = |words: &[&str]| Tool::new("git", words).inside(&context.root).run();
        let commit = git(&["rev-parse", "HEAD"])?;
        let folder = scratch.path().join("berth");
        let to = folder.display().to_string();
        git(&["clone", "--quiet", "--no-checkout", ".", &to])?;
        git(&["-C", &to, "checkout", "--quiet", "--detach", commit.trim()])?;
        if !git(&["status", "--porcelain"])?.is_empty() {
            let note = "what is not committed is not in the clone";
            context.progress.step(note);
        }
        for folder in ["home", "installed/bin"] {
            std::fs::create_dir_all(scratch.path().join(folder))?;
        }
        let target = context.target.join("readme");
        share_guests(context, &target)?;
        Ok(Self { scratch, target })
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("berth")
    }

    /// Where `cargo install` puts berth.
    fn berth(&self) -> PathBuf {
        self.scratch.path().join("installed/bin/berth")
    }

    /// A user's, who has cargo and its folder of programs in PATH.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let show = |path: &Path| path.display().to_string();
        let home = std::env::var("HOME").unwrap_or_default();
        let kept = |name: &'static str, folder: &str| {
            let value = std::env::var(name);
            (name, value.unwrap_or_else(|_| format!("{home}/{folder}")))
        };
        let installed = self.scratch.path().join("installed");
        let path = std::env::var("PATH").unwrap_or_default();
        vec![
            kept("CARGO_HOME", ".cargo"),
            kept("RUSTUP_HOME", ".rustup"),
            ("CARGO_TARGET_DIR", show(&self.target)),
            ("CARGO_INSTALL_ROOT", show(&installed)),
            ("PATH", format!("{}:{path}", show(&installed.join("bin")))),
            ("HOME", show(&self.scratch.path().join("home"))),
        ]
    }
}

/// Guest software that was fetched once is there for the clone as well.
fn share_guests(context: &Context, target: &Path) -> Result<()> {
    let cache = context.cache();
    std::fs::create_dir_all(&cache)?;
    std::fs::create_dir_all(target)?;
    let link = target.join("guest");
    if link.symlink_metadata().is_err() {
        std::os::unix::fs::symlink(std::path::absolute(cache)?, link)?;
    }
    Ok(())
}

/// Runs all blocks. One that fails is the last: those behind it build on it.
///
/// # Errors
/// When there is no clone, or its README is not understood.
pub fn run(context: &Context, host: HostKind) -> Result<Tally> {
    let clone = Clone::new(context)?;
    let text = std::fs::read_to_string(clone.folder().join("README.md"))?;
    let blocks = parse(&text).context("README.md")?;
    ensure!(!blocks.is_empty(), "README.md has no commands");
    let mut walk = Walk {
        context,
        host,
        guests: host.linux_placement()?,
        session: Session::new(&clone.folder(), &clone.environment())?,
        clone: &clone,
        tally: Tally::default(),
    };
    let mut left = &blocks[..];
    while let Some(block) = left.first() {
        let together = match walk.guests {
            Placement::Outer if block.boots_linux() => {
                left.iter().take_while(|block| block.boots_linux()).count()
            }
            _ => 1,
        };
        let (now, later) = left.split_at(together);
        left = later;
        if !walk.go(now)? {
            println!("the blocks behind it are not run");
            break;
        }
    }
    let Walk { session, tally, .. } = walk;
    session.close()?;
    Ok(tally)
}

/// Whether this host has a kernel of its own that this user can boot. An outer machine has.
fn own_kernel() -> bool {
    let entries = std::fs::read_dir("/boot").into_iter().flatten().flatten();
    let mut kernels =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    kernels.any(|kernel| std::fs::File::open(kernel.path()).is_ok())
}

/// The way through the blocks.
struct Walk<'a> {
    context: &'a Context,
    host: HostKind,
    guests: Placement,
    session: Session,
    clone: &'a Clone,
    tally: Tally,
}

impl Walk<'_> {
    /// Runs blocks that belong together; whether the next ones may come.
    fn go(&mut self, blocks: &[Block]) -> Result<bool> {
        let [first, ..] = blocks else {
            return Ok(true);
        };
        let start = Instant::now();
        let verdict = match (first.place, &self.guests) {
            (_, Placement::Skip(why)) if first.boots_linux() => Verdict::Skipped(why.clone()),
            (_, Placement::Outer) if first.boots_linux() => return self.inside(blocks),
            (Place::OwnKernel, _) if !own_kernel() => {
                Verdict::Skipped("this host has no kernel in /boot".to_owned())
            }
            (Place::Kvm, _) if self.host == HostKind::NoKvm => {
                Verdict::Skipped("this host has no /dev/kvm".to_owned())
            }
            _ => self.session.run(first),
        };
        self.count(first, &verdict, start.elapsed());
        Ok(!matches!(verdict, Verdict::Failed(_)))
    }

    fn count(&mut self, block: &Block, verdict: &Verdict, taken: Duration) {
        println!("{}", result_line(block, verdict, taken));
        match verdict {
            Verdict::Passed => self.tally.passed += 1,
            Verdict::Failed(_) => self.tally.failed += 1,
            Verdict::Skipped(_) => self.tally.skipped += 1,
        }
    }

    /// Runs blocks in an outer machine that has a copy of the clone, as the blocks so far left it.
    fn inside(&mut self, blocks: &[Block]) -> Result<bool> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Ok(true);
        };
        let mut binaries = build::release(self.context)?;
        if self.clone.berth().is_file() {
            binaries.berth = self.clone.berth();
        }
        let kit = images::prepare(self.context)?;
        let words = [
            "readme".to_owned(),
            self.clone.folder().display().to_string(),
            first.line.to_string(),
            last.line.to_string(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut here = Tally::default();
        let success = suite::relay(
            build::linux_guests(&binaries, &kit, &words)
                .env(harness::files::BERTH_BIN, &binaries.berth),
            |line| here.add(result(line)),
        )?;
        let told = usize::try_from(here.passed + here.failed + here.skipped)?;
        if here.failed == 0 && (!success || told != blocks.len()) {
            println!("{told} of {} blocks told how they went", blocks.len());
            here.failed = 1;
        }
        self.tally.add(here);
        Ok(here.failed == 0)
    }
}

/// The count of one line of an outer machine's output.
fn result(line: &str) -> Tally {
    let mut tally = Tally::default();
    if let Some((_, verdict)) = line
        .strip_prefix("TEST readme::")
        .and_then(|rest| rest.split_once(" ... "))
    {
        match verdict.split(' ').next() {
            Some("ok") => tally.passed = 1,
            Some("skipped:") => tally.skipped = 1,
            _ => tally.failed = 1,
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_blocks_are_counted() {
        let counts = |line| {
            let Tally {
                passed,
                failed,
                skipped,
            } = result(line);
            (passed, failed, skipped)
        };
        assert_eq!(counts("TEST readme::line_7 ... ok (0.1 s)"), (1, 0, 0));
        assert_eq!(counts("TEST readme::line_7 ... FAILED"), (0, 1, 0));
        assert_eq!(counts("TEST readme::line_7 ... skipped: no"), (0, 0, 1));
        assert_eq!(counts("TEST linux::boot ... ok (0.1 s)"), (0, 0, 0));
    }
}
