//! From what went wrong to the status that the guest sees: the one place.

use crate::ram::NotRam;
use crate::storage::BackendError;

use super::spec::Status;

/// A command that ends with an error status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status:?}")]
pub struct CommandError {
    status: Status,
    retry: Retry,
}

/// Whether the same command could succeed later (the status field's DNR bit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Never,
    MayHelp,
}

impl CommandError {
    /// The status code type and status code.
    pub fn status(self) -> Status {
        self.status
    }

    /// Do Not Retry.
    pub fn dnr(self) -> bool {
        self.retry == Retry::Never
    }

    /// An error that may go away.
    pub fn transient(status: Status) -> Self {
        Self {
            status,
            retry: Retry::MayHelp,
        }
    }
}

impl From<Status> for CommandError {
    fn from(status: Status) -> Self {
        Self {
            status,
            retry: Retry::Never,
        }
    }
}

impl From<NotRam> for CommandError {
    fn from(_: NotRam) -> Self {
        Status::DATA_TRANSFER_ERROR.into()
    }
}

impl From<BackendError> for CommandError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::OutOfRange => Status::LBA_OUT_OF_RANGE.into(),
            BackendError::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.into(),
            BackendError::NoSpace => Status::CAPACITY_EXCEEDED.into(),
            BackendError::Unsupported => Status::INVALID_FIELD.into(),
            BackendError::Io(_) => Self::transient(Status::INTERNAL_ERROR),
            BackendError::Cancelled => Self::transient(Status::ABORT_REQUESTED),
        }
    }
}
