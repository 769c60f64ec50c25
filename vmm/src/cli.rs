//! The command line.

use std::path::PathBuf;

use crate::spec::{DeviceSpec, NamespaceSpec};

/// Everything `berth run` was asked for: checked, plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunConfig {
    /// Kernel image; a readable regular file when it was checked.
    pub kernel: PathBuf,
    /// Initial RAM disk, likewise.
    pub initrd: Option<PathBuf>,
    /// The guest's command line, empty unless given.
    pub append: String,
    /// Guest memory in bytes: 64 MiB to 1 TiB, a multiple of 2 MiB.
    pub memory: u64,
    /// vCPUs, 1 to 64.
    pub cpus: u8,
    /// `--disk`, in order: namespaces without a bus, for the default subsystem.
    pub disks: Vec<NamespaceSpec>,
    /// `--device`, in order. No two of these and of `disks` have the same id.
    pub devices: Vec<DeviceSpec>,
    /// Base path of the FIFO pair.
    pub control_pipe: Option<PathBuf>,
    /// Path of the control socket.
    pub control_socket: Option<PathBuf>,
    /// I/O threads of the machine, 1 to 64.
    pub io_threads: u32,
    /// Where COM2's output goes: a file to be made or truncated, or an existing FIFO or device.
    pub com2: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbosity: u8,
}
