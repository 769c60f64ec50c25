//! fio on this host.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use super::job::JobFile;
use crate::control::plain;

/// Lines of fio's that are shown.
const LINES: usize = 4;

/// Why fio cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not there.
    #[error("fio is not in this host's PATH; install it (Debian, Fedora, Arch: package fio)")]
    Missing,
    /// It cannot be started.
    #[error("fio: {0}")]
    Start(std::io::Error),
    /// There is no place for what it is to read.
    #[error("{}: {problem}; TMPDIR can be another folder", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why it cannot be written.
        problem: String,
    },
    /// It does not take a job file.
    #[error("{}: fio refuses it: {said}", path.display())]
    Refused {
        /// The file.
        path: std::path::PathBuf,
        /// What fio said.
        said: String,
    },
}

fn fio(arguments: &[&str]) -> Result<(bool, String), ToolError> {
    let output = Command::new("fio")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ToolError::Missing,
            _ => ToolError::Start(error),
        })?;
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok((output.status.success(), said))
}

/// What fio calls itself: `fio-3.33`.
///
/// # Errors
/// There is no fio.
pub fn version() -> Result<String, ToolError> {
    Ok(fio(&["--version"])?.1)
}

/// Has fio read all phases of a job file.
///
/// # Errors
/// It refuses one; names the file and says what fio said.
pub fn check(file: &JobFile, folder: &Path) -> Result<(), ToolError> {
    let path = folder.join("check.fio");
    for phase in &file.phases {
        std::fs::write(&path, phase.text(None, None)).map_err(|error| ToolError::Write {
            path: path.clone(),
            problem: plain(&error),
        })?;
        let (taken, said) = fio(&["--parse-only", &path.display().to_string()])?;
        if !taken {
            let lines: Vec<&str> = said.lines().map(str::trim).take(LINES).collect();
            return Err(ToolError::Refused {
                path: file.path.clone(),
                said: lines.join("; "),
            });
        }
    }
    Ok(())
}
