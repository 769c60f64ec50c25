//! The commands of a README as a test: its fenced blocks ([`parse()`]), a shell that runs them one after
//! another ([`Session`]), and the comparison of a transcript with what was printed ([`transcript`]).
//!
//! Blocks in `sh` are scripts; those in `console` are transcripts. A comment on the lines before the
//! fence, which no reader of the page sees, tells the test what it needs to know:
//!
//! ```text
//! <!-- test: guest
//! types: nvme list
//! shows: /dev/nvme0n1
//! types: exit -->
//! ```
//!
//! | entry | meaning |
//! |---|---|
//! | `host` | runs anywhere; also meant if no place is named |
//! | `kvm` | needs `/dev/kvm` of any kind |
//! | `guest` | boots Linux: runs where Linux guests run |
//! | `own-kernel` | the same with the host's own kernel: needs one in `/boot` |
//! | `stays` | its guest stays in a terminal of its own while later blocks run |
//! | `types: LINE` | typed at the next prompt of the guest's shell |
//! | `shows: TEXT` | awaited from the guest: a line that contains it |
//! | `instead of: COMMAND`, `runs: COMMAND`, `because: REASON` | what is run for a line of the block, and why |
//! | `skip: REASON` | is not run |

mod block;
mod session;
pub mod transcript;

pub use block::{Block, Kind, Place, Replacement, Run, Talk, parse};
pub use session::{Session, Verdict, result_line};
