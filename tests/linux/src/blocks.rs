//! Blocks of a README that boot Linux guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use readme::{Block, Session, Verdict, parse, result_line};

use crate::kit::Kit;
use crate::outer::{Outer, SCRATCH};

/// What is asked for: a folder with a README, and first and last line of blocks.
struct Wanted {
    folder: PathBuf,
    from: usize,
    to: usize,
}

impl Wanted {
    fn parse(words: &[String]) -> Result<Self> {
        let [folder, from, to] = words else {
            bail!("readme needs a folder and two line numbers");
        };
        Ok(Self {
            folder: folder.into(),
            from: from.parse().context(from.clone())?,
            to: to.parse().context(to.clone())?,
        })
    }

    fn blocks(&self) -> Result<Vec<Block>> {
        let path = self.folder.join("README.md");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut blocks = parse(&text).with_context(|| path.display().to_string())?;
        blocks.retain(|block| (self.from..=self.to).contains(&block.line));
        Ok(blocks)
    }
}

/// Runs them in this machine. A block that fails ends it: those behind it build on it.
///
/// # Errors
/// When there is no README, or what was asked for is not understood.
pub fn here(words: &[String]) -> Result<bool> {
    let wanted = Wanted::parse(words)?;
    let mut session = Session::new(&wanted.folder, &[])?;
    for block in wanted.blocks()? {
        let start = Instant::now();
        let verdict = session.run(&block);
        println!("{}", result_line(&block, &verdict, start.elapsed()));
        if let Verdict::Failed(_) = verdict {
            return Ok(false);
        }
    }
    session.close()?;
    Ok(true)
}

/// Runs them in an outer machine that has a copy of the folder.
///
/// # Errors
/// When it breaks down.
pub fn outside(kit: &Kit, words: &[String]) -> Result<bool> {
    let wanted = Wanted::parse(words)?;
    let (from, to) = (wanted.from.to_string(), wanted.to.to_string());
    let inside = ["readme", SCRATCH, &from, &to];
    Outer::with_folder(kit, &inside, Path::new(&wanted.folder))?.run()
}
