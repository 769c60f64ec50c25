//! What is wrong with a command line.

use std::path::Path;

use super::machine_file::MachineFile;
use crate::control::ControlError;
use crate::grammar::SpecError;

/// Why a command line cannot be followed. Starts with the argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The command line is wrong.
    #[error("{argument}: {problem}")]
    Usage {
        /// The argument as given.
        argument: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The command line is right, but the host is not as it says.
    #[error("{argument}: {problem}")]
    Environment {
        /// The argument as given.
        argument: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl CliError {
    /// The command line is wrong: the argument, and what would be right.
    pub fn usage(argument: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Usage {
            argument: argument.into(),
            problem: problem.into(),
        }
    }

    /// The command line is right, but the host is not: the argument, and what would be right.
    pub fn environment(argument: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Environment {
            argument: argument.into(),
            problem: problem.into(),
        }
    }

    /// The value of `option` is wrong.
    pub fn spec(option: &str, error: &SpecError) -> Self {
        Self::usage(
            format!("{option} {}", error.argument),
            error.problem.to_string(),
        )
    }

    /// Names the machine description as well, if that is where the argument is from.
    pub fn with_source(mut self, file: &Path, machine: &MachineFile) -> Self {
        let (Self::Usage { argument, .. } | Self::Environment { argument, .. }) = &mut self;
        if machine.has(argument) {
            *argument = format!("{}: {argument}", file.display());
        }
        self
    }

    /// The exit status: 35 for usage, 1 for the environment.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage { .. } => 35,
            Self::Environment { .. } => 1,
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        Self::Environment {
            argument: error.argument,
            problem: error.problem,
        }
    }
}
