//! What berth's tests share: which kind of host this is ([`host`]), processes
//! that are watched, limited in time and never left behind ([`process`]), and
//! scratch files ([`files`]), file trees for guests ([`tree`]), and a browser that looks at pages
//! ([`browser`]).

pub mod browser;
pub mod files;
pub mod host;
pub mod process;
pub mod tree;

pub use files::{berth_binary, image, patterned_image, scratch, scratch_in};
pub use host::{HostKind, Placement, cpus};
pub use process::{Error, Exit, Finished, Process, Stdin, Stream};
pub use tempfile::TempDir;
pub use tree::Tree;
