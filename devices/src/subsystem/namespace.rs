//! A namespace: an identity, a format and the backend that holds its bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use uuid::Uuid;
use vmm_sys_util::eventfd::EventFd;

use super::traffic::{Meter, Traffic, TrafficCounter};
use crate::closed::Closed;
use crate::storage::Backend;

/// Highest NSID of a subsystem (Identify Controller NN and MNAN).
pub const MAX_NSID: u32 = 1024;

/// What a namespace is to be.
#[derive(Debug, Clone, Default)]
pub struct NamespaceConfig {
    /// Name in the device tree, unique in the machine.
    pub id: String,
    /// 1 to [`MAX_NSID`]; the lowest free one if not given.
    pub nsid: Option<u32>,
    /// Whether more than one controller may attach to it.
    pub shared: bool,
    /// Allocated, but attached to no controller at first.
    pub detached: bool,
    /// The id of the one controller that a private namespace belongs to.
    pub ctrl: Option<String>,
    /// Namespace UUID. If not given, the subsystem makes one from its NQN and the NSID, the same from
    /// run to run for the first namespace there, and for each medium that returns.
    pub uuid: Option<Uuid>,
    /// IEEE extended unique identifier, 0 or absent for none.
    pub eui64: Option<u64>,
    /// Namespace globally unique identifier.
    pub nguid: Option<[u8; 16]>,
}

/// To which controllers a namespace attaches by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// To every controller of the subsystem.
    Shared,
    /// To the controller with this id only.
    Private(String),
    /// To none.
    Detached,
}

/// By what a guest tells a namespace from others, whatever its NSID, and by what it addresses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    uuid: Uuid,
    eui64: u64,
    nguid: [u8; 16],
    // A command for blocks of another size would reach other bytes.
    block_shift: u32,
}

/// A namespace of a subsystem.
pub struct Namespace {
    id: String,
    nsid: u32,
    shared: bool,
    pub(super) reach: Reach,
    identity: Identity,
    blocks: AtomicU64,
    meter: Meter,
    backend: Arc<dyn Backend>,
    // The last field: it is dropped behind the backend, which may keep it for longer.
    closed: Arc<Closed>,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Namespace({} nsid {})", self.id, self.nsid)
    }
}

impl Namespace {
    pub(super) fn new(
        config: NamespaceConfig,
        nsid: u32,
        uuid: Uuid,
        backend: Arc<dyn Backend>,
    ) -> Self {
        let reach = match (config.detached, config.shared, config.ctrl) {
            (true, _, _) => Reach::Detached,
            (_, false, Some(ctrl)) => Reach::Private(ctrl),
            (_, false, None) => Reach::Detached,
            (_, true, _) => Reach::Shared,
        };
        let block_shift = backend.block_size().trailing_zeros();
        let closed = Arc::<Closed>::default();
        backend.tell_closed(Arc::clone(&closed));
        Self {
            id: config.id,
            nsid,
            shared: config.shared,
            reach,
            identity: Identity {
                uuid,
                eui64: config.eui64.unwrap_or(0),
                nguid: config.nguid.unwrap_or([0; 16]),
                block_shift,
            },
            blocks: AtomicU64::new(backend.size() >> block_shift),
            meter: Meter::default(),
            backend,
            closed,
        }
    }

    /// Has `event` signalled when the last user let go of the namespace and its image is closed and
    /// unlocked. Only the first call counts.
    pub fn notify_closed(&self, event: EventFd) {
        self.closed.notify(event);
    }

    /// Name in the device tree.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Namespace identifier, 1 to [`MAX_NSID`].
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Whether more than one controller may attach to it (NMIC bit 0).
    pub fn shared(&self) -> bool {
        self.shared
    }

    /// Whether it attaches to no controller by itself, as asked for.
    pub fn starts_detached(&self) -> bool {
        self.reach == Reach::Detached
    }

    /// By what a guest tells it from others and addresses it.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Namespace UUID.
    pub fn uuid(&self) -> Uuid {
        self.identity.uuid
    }

    /// EUI-64, 0 for none.
    pub fn eui64(&self) -> u64 {
        self.identity.eui64
    }

    /// NGUID, all zero for none.
    pub fn nguid(&self) -> [u8; 16] {
        self.identity.nguid
    }

    /// Logical block size as a power of two (LBADS).
    pub fn block_shift(&self) -> u32 {
        self.identity.block_shift
    }

    /// Size in logical blocks (NSZE).
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Size in bytes, whole blocks.
    pub fn bytes(&self) -> u64 {
        // It was a number of bytes before it was one of blocks.
        self.blocks() << self.identity.block_shift
    }

    /// Takes the backend's size of now; says whether it changed.
    pub(super) fn take_size(&self) -> bool {
        self.backend.refresh_size();
        let blocks = self.backend.size() >> self.identity.block_shift;
        self.blocks.swap(blocks, Ordering::Relaxed) != blocks
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.backend.read_only()
    }

    /// Counts its commands for one thread.
    pub fn traffic_counter(&self) -> TrafficCounter {
        self.meter.counter()
    }

    /// Read and Write commands on it so far, over all controllers that there are and were.
    pub fn traffic(&self) -> Traffic {
        self.meter.total()
    }

    /// What holds its bytes.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

/// A namespace as `info` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct NamespaceInfo {
    /// Name in the device tree.
    pub id: String,
    /// Namespace identifier.
    pub nsid: u32,
    /// Whether more than one controller may attach.
    pub shared: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Size in bytes.
    pub size: u64,
    /// Namespace UUID.
    pub uuid: String,
    /// What holds its bytes.
    pub backend: String,
    /// Ids of the controllers that it is attached to.
    pub attached: Vec<String>,
    /// Commands in flight on it over all controllers.
    pub in_flight: u64,
    /// Read and Write commands on it so far; no property, and so not among those that are serialized.
    #[serde(skip)]
    pub traffic: Traffic,
}
