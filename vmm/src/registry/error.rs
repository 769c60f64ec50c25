//! Why a device cannot be added, for people and for programs.

use std::io;

use devices::nvme::ControllerError;
use devices::pci::root::PciError;
use devices::storage::OpenError;
use devices::subsystem::SubsystemError;

use crate::control::command::ErrorClass;
use crate::exit::USAGE;
use crate::image::NotRaw;

/// Why a device cannot be added: the device, and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {problem}")]
pub struct DeviceError {
    /// Driver, and id where it was given one.
    pub device: String,
    /// What is wrong.
    pub problem: Problem,
}

/// See [`DeviceError`].
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The id is taken.
    #[error("id={0} is in use by another device: choose another id")]
    Duplicate(String),
    /// The device that has the id is being removed.
    #[error("id={0} is in use by a device that is being removed: wait for its device_deleted")]
    Leaving(String),
    /// The guest has the slot's last controller still in hand.
    #[error("addr: the guest is still letting go of {0}: try again, or choose another slot")]
    Releasing(String),
    /// Hosts take two subsystems with one NQN for one.
    #[error("nqn={nqn}: subsystem '{id}' has this NQN: give another one, or use that subsystem")]
    DuplicateNqn {
        /// The NQN.
        nqn: String,
        /// Who has it.
        id: String,
    },
    /// Nothing has that id.
    #[error("{key}={id}: no device has this id; {known}")]
    NotFound {
        /// The property.
        key: &'static str,
        /// Its value.
        id: String,
        /// What could have been meant.
        known: String,
    },
    /// Something has that id, but not what is needed.
    #[error("{key}={id}: this is a {found}, it must be {needed}")]
    WrongKind {
        /// The property.
        key: &'static str,
        /// Its value.
        id: String,
        /// Driver of what has the id.
        found: &'static str,
        /// What is needed.
        needed: &'static str,
    },
    /// The controller of a private namespace is in another subsystem.
    #[error("ctrl={ctrl}: this controller is in subsystem '{actual}', not in '{subsystem}'")]
    OtherSubsystem {
        /// The controller.
        ctrl: String,
        /// The subsystem that it is in.
        actual: String,
        /// The subsystem of the namespace.
        subsystem: String,
    },
    /// The image or memory behind a namespace.
    #[error(transparent)]
    Backend(#[from] OpenError),
    /// A file that is no raw image.
    #[error(transparent)]
    NotRaw(#[from] NotRaw),
    /// The subsystem refused.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// The controller cannot be made.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The slot, or the room for BARs.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The host refused something.
    #[error("cannot make {what}: {source}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Problem {
    move |source| Problem::Host { what, source }
}

impl DeviceError {
    /// What kind of error it is to a control client.
    pub fn class(&self) -> ErrorClass {
        match &self.problem {
            Problem::Duplicate(_)
            | Problem::DuplicateNqn { .. }
            | Problem::Leaving(_)
            | Problem::Releasing(_)
            | Problem::Pci(PciError::SlotInUse { .. }) => ErrorClass::Exists,
            Problem::NotFound { .. } => ErrorClass::NotFound,
            Problem::Backend(_)
            | Problem::NotRaw(_)
            | Problem::Host { .. }
            | Problem::Controller(ControllerError::Event(_)) => ErrorClass::Failed,
            Problem::Subsystem(error) | Problem::Controller(ControllerError::Subsystem(error)) => {
                match error {
                    SubsystemError::NsidInUse { .. } | SubsystemError::CntlidInUse { .. } => {
                        ErrorClass::Exists
                    }
                    SubsystemError::NotShared { .. } => ErrorClass::InUse,
                    _ => ErrorClass::Argument,
                }
            }
            _ => ErrorClass::Argument,
        }
    }

    /// [`USAGE`] if the command line is wrong whatever the host is like, else 1.
    pub fn status(&self) -> u8 {
        match self.problem {
            Problem::Backend(_) | Problem::NotRaw(_) | Problem::Host { .. } => 1,
            Problem::Controller(ControllerError::Event(_)) => 1,
            _ => USAGE,
        }
    }
}
