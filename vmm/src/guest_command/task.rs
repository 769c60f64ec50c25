//! What the guest's first process is to do, as a file of the initramfs.

use serde::{Deserialize, Serialize};

/// Where berth's own things are in the guest.
pub const HOME: &str = "/.berth";
/// The guest's first process.
pub const INIT: &str = "/.berth/init";
/// The file with the [`Task`], as JSON.
pub const FILE: &str = "/.berth/task.json";

/// A command, and what it needs before it can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Where its program is, if that is known; else it is looked for in the guest's `PATH`.
    pub program: Option<String>,
    /// The command: its name and its arguments, at least one.
    pub words: Vec<String>,
    /// All of its environment.
    pub environment: Vec<(String, String)>,
    /// Files of kernel modules, in the order in which they are to be loaded.
    pub modules: Vec<String>,
    /// The disk that becomes the root; else the initramfs stays it.
    pub root: Option<RootDisk>,
}

/// A disk with a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// UUID of its NVMe namespace, in lower case with hyphens.
    pub uuid: String,
    /// Type of its file system, as mount(2) has it.
    pub file_system: String,
    /// It cannot be written.
    pub read_only: bool,
}
