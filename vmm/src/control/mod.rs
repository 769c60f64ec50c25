//! Control of a running machine: one command a line in, one JSON reply a line out.
//!
//! [`ControlServer`] speaks the protocol over a pair of FIFOs and over a socket. Everything in it is
//! non-blocking and lives on the thread that drives it: an outer event loop watches the server's one
//! descriptor for readability and calls [`ControlServer::handle`], the machine is reached through
//! [`CommandSink`]. [`client`] is the other end, `berth ctl`.

pub mod command;

pub use command::{Command, CommandError};

/// The machine, as the control protocol sees it.
pub trait CommandSink {
    /// Does a command. The value becomes `result` in the reply: a string for text to be shown as it
    /// is, otherwise an object; `Value::Null` where there is nothing to say.
    ///
    /// To an object that answers `info status`, the server adds `control`: its clients and the lines
    /// that it had to drop.
    ///
    /// # Errors
    /// The command cannot be done; the reply says why.
    fn execute(&mut self, command: Command) -> Result<serde_json::Value, CommandError>;
}
