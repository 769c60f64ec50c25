//! The folder of the results.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::job::{JobFile, Phase};
use super::page;
use super::results::{self, Results, Run};
use super::session::Done;
use crate::control::plain;

/// Makes the folder. One with results in it is somebody's.
///
/// # Errors
/// It has results, or cannot be made.
pub fn prepare_out(out: &Path) -> anyhow::Result<()> {
    if out.join(results::FILE).exists() {
        bail!(
            "--out {}: has results already; give another folder",
            out.display()
        );
    }
    let raw = out.join("raw");
    fs::create_dir_all(&raw)
        .map_err(|error| anyhow::anyhow!("--out {}: {}", out.display(), plain(&error)))
}

/// What the results are called unless the user says.
pub fn name_of(out: &Path) -> String {
    let name = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    name.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Adds what came of a phase to the results.
///
/// # Errors
/// fio's own output cannot be written. The figures are kept.
pub fn keep(
    out: &Path,
    results: &mut Results,
    setting: &str,
    file: &JobFile,
    phase: &Phase,
    round: u32,
    done: Done,
) -> anyhow::Result<()> {
    let number = results.runs.len() + 1;
    let raw = raw_name(number, &[setting, &file.name, &phase.name]);
    let written = done.raw.map(|text| replace(out, &raw, text.as_bytes()));
    // Its figures are kept even if fio's own output cannot be.
    let raw = Some(raw).filter(|_| matches!(written, Some(Ok(()))));
    if let Some(known) = results.settings.iter_mut().find(|it| it.name == setting)
        && known.system.is_none()
    {
        known.system = done.system;
    }
    results.runs.push(Run {
        setting: setting.to_owned(),
        file: file.name.clone(),
        job: phase.name.clone(),
        round,
        depth: phase.depth,
        options: phase.options.clone(),
        raw,
        outcome: done.outcome,
    });
    written.unwrap_or(Ok(()))
}

/// `raw/003-tuned-load-qd32.json`, of letters that every file system takes.
fn raw_name(number: usize, words: &[&str]) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '=') {
            c
        } else {
            '-'
        }
    };
    let name: String = words.join("-").chars().map(plain).take(120).collect();
    PathBuf::from(format!("raw/{number:03}-{name}.json"))
}

/// Writes all that is made of the results so far.
///
/// # Errors
/// A file cannot be written; names it.
pub fn write_all(out: &Path, results: &Results, old: Option<&Results>) -> anyhow::Result<()> {
    replace(out, Path::new(results::FILE), &results.json()?)?;
    let markdown = page::markdown(results, old);
    replace(out, Path::new("results.md"), markdown.as_bytes())?;
    let page = page::html(results, old);
    replace(out, Path::new("index.html"), page.as_bytes())
}

/// Writes a file of the results anew.
fn replace(out: &Path, name: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let path = out.join(name);
    results::replace(&path, bytes)
        .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), plain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain() {
        let name = raw_name(7, &["tuned poll-us=0", "../x", "a+b\"é"]);
        assert_eq!(name, Path::new("raw/007-tuned-poll-us=0-..-x-a-b--.json"));
        assert_eq!(
            raw_name(1, &[&"x".repeat(500)]).to_str().unwrap().len(),
            4 + 4 + 120 + 5
        );
    }
}
