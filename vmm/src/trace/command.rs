//! `berth trace`: what a trace says.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::plot;
use super::read::ReadError;
use super::summary::Summary;
use crate::control::plain;
use crate::stderr;

/// What `berth trace` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    /// The trace; standard input if there is none.
    pub file: Option<PathBuf>,
    /// What to make of it.
    pub action: TraceAction,
}

/// What can be made of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceAction {
    /// Figures.
    Summary {
        /// As JSON rather than as tables.
        json: bool,
    },
    /// A picture.
    Plot {
        /// Where it goes; standard output if there is none.
        out: Option<PathBuf>,
    },
}

/// Why nothing could be made of a trace. Starts with the file.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TraceCommandError {
    file: String,
    problem: String,
}

impl TraceCommandError {
    fn new(file: &Path, problem: impl Into<String>) -> Self {
        Self {
            file: file.display().to_string(),
            problem: problem.into(),
        }
    }
}

/// Where the picture of a trace goes unless it is told.
pub fn default_out(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".html");
    name.into()
}

/// Does what was asked for.
///
/// # Errors
/// The trace cannot be read or is none, or the picture cannot be written.
pub fn run(config: &TraceConfig) -> Result<(), TraceCommandError> {
    let (input, name) = open(config.file.as_deref())?;
    let input = BufReader::with_capacity(1 << 20, input);
    let unread = |error: ReadError| TraceCommandError::new(&name, error.to_string());
    match &config.action {
        TraceAction::Summary { json } => {
            let summary = Summary::read(input).map_err(unread)?;
            note(&name, summary.notes());
            let text = if *json {
                format!("{:#}\n", summary.json())
            } else {
                summary.text()
            };
            tell(&text)?;
        }
        TraceAction::Plot { out } => {
            let plot = plot::Plot::read(input).map_err(unread)?;
            note(&name, plot.notes());
            let svg = out
                .as_ref()
                .is_some_and(|out| out.extension().is_some_and(|it| it == "svg"));
            let title = name.display().to_string();
            let page = if svg {
                plot.svg(&title)
            } else {
                plot.html(&title)
            };
            match out {
                None => tell(&page)?,
                Some(out) => {
                    if is_same(config.file.as_deref(), out) {
                        let problem = "is the trace; give the picture another name";
                        return Err(TraceCommandError::new(out, problem));
                    }
                    std::fs::write(out, page)
                        .map_err(|error| TraceCommandError::new(out, plain(&error)))?;
                    stderr::say(format_args!("berth trace: wrote {}", out.display()));
                }
            }
        }
    }
    Ok(())
}

fn tell(text: &str) -> Result<(), TraceCommandError> {
    let failed = |error| TraceCommandError::new(Path::new("standard output"), plain(&error));
    crate::cli::print(text).map_err(failed)
}

fn open(file: Option<&Path>) -> Result<(Box<dyn Read>, PathBuf), TraceCommandError> {
    let Some(path) = file else {
        return Ok((Box::new(io::stdin()), "-".into()));
    };
    let failed = |error: io::Error| TraceCommandError::new(path, plain(&error));
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(TraceCommandError::new(
            path,
            "is a directory, must be a trace",
        ));
    }
    Ok((Box::new(file), path.into()))
}

/// Whether the picture would replace the trace.
fn is_same(file: Option<&Path>, out: &Path) -> bool {
    let meta = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
    file.is_some_and(|file| matches!((meta(file), meta(out)), (Ok(file), Ok(out)) if file == out))
}

fn note(file: &Path, notes: Vec<String>) {
    for note in notes {
        stderr::say(format_args!("berth trace: {}: {note}", file.display()));
    }
}
