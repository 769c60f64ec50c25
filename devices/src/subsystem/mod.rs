//! NVM subsystems: they own namespaces; controllers come and go.
//!
//! A subsystem is a device on the system bus with a bus of its own that namespaces plug into. A
//! controller sits on PCI and holds a [`Link`] to one subsystem; dropping the link frees its CNTLID
//! and touches no namespace. The subsystem knows its controllers only as [`ControllerLink`]s.
//!
//! Lock order: a controller's admin state, then the subsystem's members, then what a
//! [`ControllerLink`] locks inside its callback, which must call nothing back.

mod attachment;
mod identity;
mod namespace;
mod traffic;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;

pub use attachment::AttachmentTable;
use identity::History;
use namespace::Reach;
pub use namespace::{Identity, MAX_NSID, Namespace, NamespaceConfig, NamespaceInfo};
pub use traffic::{Traffic, TrafficCounter};

use crate::storage::{Backend, ResizeError};

/// Highest CNTLID (NVMe Base 2.0c, 5.17.2.1: FFF0h and above are reserved).
pub const MAX_CNTLID: u16 = 0xffef;

/// Longest NQN in bytes (NVMe Base 2.0c, 4.7).
pub const MAX_NQN: usize = 223;

/// How a controller hears of changes to what it sees.
pub trait ControllerLink: Send + Sync {
    /// The attached namespaces are now `table`; the NSIDs in `changed` came, went or changed.
    fn attachments_changed(&self, table: Arc<AttachmentTable>, changed: &[u32]);

    /// How many commands the controller has in flight on a namespace.
    fn in_flight(&self, namespace: &Namespace) -> u64;
}

/// Why a subsystem refused something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemError {
    /// The NSID is not 1 to [`MAX_NSID`].
    #[error("nsid {0} is not valid: it must be 1 to {MAX_NSID}")]
    BadNsid(u32),
    /// The NSID is in use.
    #[error("nsid {nsid} is in use by namespace '{by}' of subsystem '{subsystem}'")]
    NsidInUse {
        /// The NSID.
        nsid: u32,
        /// The namespace that has it.
        by: String,
        /// The subsystem.
        subsystem: String,
    },
    /// All NSIDs are taken.
    #[error("subsystem '{0}' has {MAX_NSID} namespaces, which is the limit")]
    Full(String),
    /// The CNTLID is in use.
    #[error("cntlid {cntlid} is in use by controller '{by}' of subsystem '{subsystem}'")]
    CntlidInUse {
        /// The CNTLID.
        cntlid: u16,
        /// The controller that has it.
        by: String,
        /// The subsystem.
        subsystem: String,
    },
    /// The CNTLID is above [`MAX_CNTLID`], or none is free.
    #[error("cntlid {0:#x} is not valid: it must be at most {MAX_CNTLID:#x}")]
    BadCntlid(u16),
    /// A second controller for a subsystem with `shared=off`.
    #[error(
        "subsystem '{subsystem}' has shared=off and controller '{by}' is in it: use another \
         subsystem, or define this one with shared=on"
    )]
    NotShared {
        /// The subsystem.
        subsystem: String,
        /// The controller that is in it.
        by: String,
    },
    /// No namespace with this NSID.
    #[error("subsystem '{subsystem}' has no namespace with nsid {nsid}")]
    NoNamespace {
        /// The NSID.
        nsid: u32,
        /// The subsystem.
        subsystem: String,
    },
    /// No controller with this id.
    #[error("controller '{controller}' is not in subsystem '{subsystem}'")]
    NoController {
        /// The controller.
        controller: String,
        /// The subsystem.
        subsystem: String,
    },
    /// Attached already.
    #[error("nsid {nsid} is attached to controller '{controller}' already")]
    Attached {
        /// The NSID.
        nsid: u32,
        /// The controller.
        controller: String,
    },
    /// Not attached.
    #[error("nsid {nsid} is not attached to controller '{controller}'")]
    NotAttached {
        /// The NSID.
        nsid: u32,
        /// The controller.
        controller: String,
    },
    /// A second controller for a namespace with `shared=off`.
    #[error(
        "nsid {nsid} has shared=off and is attached to controller '{by}': detach it there first"
    )]
    Private {
        /// The NSID.
        nsid: u32,
        /// The controller that it is attached to.
        by: String,
    },
    /// The NQN is empty or too long.
    #[error("nqn '{0}' is not valid: it must have 1 to {MAX_NQN} bytes")]
    BadNqn(String),
}

/// What a subsystem is to be.
#[derive(Debug, Clone)]
pub struct SubsystemConfig {
    /// Name in the device tree, unique in the machine.
    pub id: String,
    /// NVMe qualified name, 1 to [`MAX_NQN`] bytes.
    pub nqn: String,
    /// Whether more than one controller may link to it (CMIC bit 1).
    pub shared: bool,
}

/// An NVM subsystem.
pub struct Subsystem {
    id: String,
    nqn: String,
    shared: bool,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    namespaces: BTreeMap<u32, Plugged>,
    controllers: BTreeMap<u16, Member>,
    history: History,
}

/// A namespace on the subsystem's bus.
struct Plugged {
    namespace: Arc<Namespace>,
    // By controller id: attached or detached by command, whatever the namespace reaches by itself.
    commanded: BTreeMap<String, bool>,
}

struct Member {
    id: String,
    link: Option<Weak<dyn ControllerLink>>,
}

impl std::fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subsystem({})", self.id)
    }
}

impl Subsystem {
    /// An empty subsystem.
    ///
    /// # Errors
    /// The NQN is empty or longer than [`MAX_NQN`].
    pub fn new(config: SubsystemConfig) -> Result<Arc<Self>, SubsystemError> {
        let nqn = config.nqn;
        if nqn.is_empty() || nqn.len() > MAX_NQN {
            return Err(SubsystemError::BadNqn(nqn));
        }
        Ok(Arc::new(Self {
            id: config.id,
            nqn,
            shared: config.shared,
            members: Mutex::default(),
        }))
    }

    /// Name in the device tree.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// NVMe qualified name.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Whether more than one controller may link to it.
    pub fn shared(&self) -> bool {
        self.shared
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs a namespace into the subsystem's bus and attaches it to the controllers it reaches.
    ///
    /// # Errors
    /// The NSID is out of range or in use, or none is free.
    pub fn add_namespace(
        &self,
        config: NamespaceConfig,
        backend: Arc<dyn Backend>,
    ) -> Result<Arc<Namespace>, SubsystemError> {
        let mut members = self.members();
        let nsid = match config.nsid {
            Some(nsid) => self.check_nsid(&members, nsid)?,
            None => (1..=MAX_NSID)
                .find(|nsid| !members.namespaces.contains_key(nsid))
                .ok_or_else(|| SubsystemError::Full(self.id.clone()))?,
        };
        let uuid = config
            .uuid
            .unwrap_or_else(|| members.history.uuid(&self.nqn, nsid, backend.medium()));
        let namespace = Arc::new(Namespace::new(config, nsid, uuid, backend));
        let plugged = Plugged {
            namespace: Arc::clone(&namespace),
            commanded: BTreeMap::new(),
        };
        let reached = members.reached_by(&plugged);
        members.namespaces.insert(nsid, plugged);
        members.publish(nsid, &reached).drop_unlocked(members);
        Ok(namespace)
    }

    /// Takes a namespace off the bus: no controller sees it any more, commands in flight end by
    /// themselves. It closes when its last user lets go of it; see [`Namespace::notify_closed`].
    pub fn remove_namespace(&self, nsid: u32) -> Option<Arc<Namespace>> {
        let mut members = self.members();
        let plugged = members.namespaces.remove(&nsid)?;
        let reached = members.reached_by(&plugged);
        members.publish(nsid, &reached).drop_unlocked(members);
        Some(plugged.namespace)
    }

    /// Attaches a namespace to a controller of the subsystem.
    ///
    /// # Errors
    /// No such namespace or controller here, attached already, or private to another controller.
    pub fn attach(&self, nsid: u32, controller: &str) -> Result<(), SubsystemError> {
        let members = self.members();
        let plugged = self.plugged(&members, nsid, controller)?;
        let reached = members.reached_by(plugged);
        if reached.iter().any(|id| id == controller) {
            return Err(SubsystemError::Attached {
                nsid,
                controller: controller.to_owned(),
            });
        }
        if let (false, Some(other)) = (plugged.namespace.shared(), reached.first()) {
            return Err(SubsystemError::Private {
                nsid,
                by: other.clone(),
            });
        }
        Self::command(members, nsid, controller, true);
        Ok(())
    }

    /// Detaches a namespace from a controller of the subsystem.
    ///
    /// # Errors
    /// No such namespace or controller here, or not attached.
    pub fn detach(&self, nsid: u32, controller: &str) -> Result<(), SubsystemError> {
        let members = self.members();
        let plugged = self.plugged(&members, nsid, controller)?;
        if !plugged.reaches(controller) {
            return Err(SubsystemError::NotAttached {
                nsid,
                controller: controller.to_owned(),
            });
        }
        Self::command(members, nsid, controller, false);
        Ok(())
    }

    fn plugged<'a>(
        &self,
        members: &'a Members,
        nsid: u32,
        controller: &str,
    ) -> Result<&'a Plugged, SubsystemError> {
        let here = |member: &Member| member.id == controller;
        if !members.controllers.values().any(here) {
            return Err(SubsystemError::NoController {
                controller: controller.to_owned(),
                subsystem: self.id.clone(),
            });
        }
        members
            .namespaces
            .get(&nsid)
            .ok_or_else(|| SubsystemError::NoNamespace {
                nsid,
                subsystem: self.id.clone(),
            })
    }

    fn command(mut members: MutexGuard<'_, Members>, nsid: u32, controller: &str, attached: bool) {
        if let Some(plugged) = members.namespaces.get_mut(&nsid) {
            plugged.commanded.insert(controller.to_owned(), attached);
        }
        let told = members.publish(nsid, &[controller.to_owned()]);
        told.drop_unlocked(members);
    }

    fn check_nsid(&self, members: &Members, nsid: u32) -> Result<u32, SubsystemError> {
        if !(1..=MAX_NSID).contains(&nsid) {
            return Err(SubsystemError::BadNsid(nsid));
        }
        match members.namespaces.get(&nsid) {
            None => Ok(nsid),
            Some(other) => Err(SubsystemError::NsidInUse {
                nsid,
                by: other.namespace.id().to_owned(),
                subsystem: self.id.clone(),
            }),
        }
    }

    /// Looks at the backends' sizes again and tells the controllers of namespaces that changed.
    pub fn refresh_sizes(&self) -> Vec<Arc<Namespace>> {
        self.refresh(|_| true)
    }

    /// As [`Subsystem::refresh_sizes`], for one namespace.
    pub fn refresh_size(&self, nsid: u32) {
        self.refresh(|namespace| namespace.nsid() == nsid);
    }

    fn refresh(&self, which: impl Fn(&Namespace) -> bool) -> Vec<Arc<Namespace>> {
        let members = self.members();
        let changed: Vec<_> = members
            .namespaces
            .values()
            .filter(|plugged| which(&plugged.namespace) && plugged.namespace.take_size())
            .map(|plugged| (Arc::clone(&plugged.namespace), members.reached_by(plugged)))
            .collect();
        let mut told = Linked::default();
        for (namespace, reached) in &changed {
            told.0.extend(members.publish(namespace.nsid(), reached).0);
        }
        told.drop_unlocked(members);
        changed
            .into_iter()
            .map(|(namespace, _)| namespace)
            .collect()
    }

    /// Changes the size of a namespace and of its backend, and tells the controllers that have it.
    ///
    /// # Errors
    /// The backend cannot have this size, or the host refused. Nothing changes for an NSID that is not
    /// there.
    pub fn resize(&self, nsid: u32, size: u64) -> Result<(), ResizeError> {
        let Some(namespace) = self.namespace(nsid) else {
            return Ok(());
        };
        let result = namespace.backend().resize(size);
        self.refresh_size(nsid);
        result
    }

    /// Links a controller: reserves its CNTLID. [`Link::observe`] has it hear of namespaces.
    ///
    /// # Errors
    /// The CNTLID is taken or reserved, or the subsystem is not shared and has a controller.
    pub fn link(self: &Arc<Self>, id: &str, cntlid: Option<u16>) -> Result<Link, SubsystemError> {
        let mut members = self.members();
        if let (false, Some(other)) = (self.shared, members.controllers.values().next()) {
            return Err(SubsystemError::NotShared {
                subsystem: self.id.clone(),
                by: other.id.clone(),
            });
        }
        let cntlid = cntlid
            .or_else(|| (0..=MAX_CNTLID).find(|id| !members.controllers.contains_key(id)))
            .unwrap_or(u16::MAX);
        if cntlid > MAX_CNTLID {
            return Err(SubsystemError::BadCntlid(cntlid));
        }
        if let Some(other) = members.controllers.get(&cntlid) {
            return Err(SubsystemError::CntlidInUse {
                cntlid,
                by: other.id.clone(),
                subsystem: self.id.clone(),
            });
        }
        members.leave_private_ones(id);
        let id = id.to_owned();
        members
            .controllers
            .insert(cntlid, Member { id, link: None });
        drop(members);
        let subsystem = Arc::clone(self);
        Ok(Link { subsystem, cntlid })
    }

    /// NSIDs of all namespaces, attached or not (the allocated namespaces), ascending.
    pub fn allocated(&self) -> Vec<u32> {
        self.members().namespaces.keys().copied().collect()
    }

    /// The namespace with this NSID, attached or not.
    pub fn namespace(&self, nsid: u32) -> Option<Arc<Namespace>> {
        let members = self.members();
        let plugged = members.namespaces.get(&nsid)?;
        Some(Arc::clone(&plugged.namespace))
    }

    /// CNTLIDs of all controllers, ascending.
    pub fn controllers(&self) -> Vec<u16> {
        self.members().controllers.keys().copied().collect()
    }

    /// CNTLIDs of the controllers that the namespace is attached to, ascending.
    pub fn attached_to(&self, nsid: u32) -> Vec<u16> {
        let members = self.members();
        let Some(plugged) = members.namespaces.get(&nsid) else {
            return Vec::new();
        };
        let reached =
            |(cntlid, member): (&u16, &Member)| plugged.reaches(&member.id).then_some(*cntlid);
        members.controllers.iter().filter_map(reached).collect()
    }

    /// Commands in flight on a namespace over all controllers, even if it was removed.
    pub fn in_flight(&self, namespace: &Namespace) -> u64 {
        let members = self.members();
        let linked = members.linked();
        let count = linked.in_flight(namespace);
        linked.drop_unlocked(members);
        count
    }

    /// One namespace as `info` shows it.
    pub fn namespace_info(&self, nsid: u32) -> Option<NamespaceInfo> {
        let members = self.members();
        let linked = members.linked();
        let plugged = members.namespaces.get(&nsid);
        let info = plugged.map(|plugged| members.namespace_info(plugged, &linked));
        linked.drop_unlocked(members);
        info
    }

    /// The subsystem as `info` shows it.
    pub fn info(&self) -> SubsystemInfo {
        let members = self.members();
        let linked = members.linked();
        let controllers = members
            .controllers
            .iter()
            .map(|(cntlid, member)| (*cntlid, member.id.clone()))
            .collect();
        let namespaces = members
            .namespaces
            .values()
            .map(|plugged| members.namespace_info(plugged, &linked))
            .collect();
        linked.drop_unlocked(members);
        SubsystemInfo {
            id: self.id.clone(),
            nqn: self.nqn.clone(),
            shared: self.shared,
            controllers,
            namespaces,
        }
    }
}

impl Members {
    fn table(&self, controller: &str) -> Arc<AttachmentTable> {
        let attached = self
            .namespaces
            .values()
            .filter(|plugged| plugged.reaches(controller))
            .map(|plugged| Arc::clone(&plugged.namespace));
        Arc::new(AttachmentTable::new(attached))
    }

    /// Private namespaces of a controller to come that were attached to another one stay there.
    fn leave_private_ones(&mut self, controller: &str) {
        let controllers = &self.controllers;
        for plugged in self.namespaces.values_mut() {
            let mut others = controllers.values().filter(|it| it.id != controller);
            if !plugged.namespace.shared() && others.any(|member| plugged.reaches(&member.id)) {
                plugged.commanded.insert(controller.to_owned(), false);
            }
        }
    }

    /// Ids of the controllers that a namespace is attached to.
    fn reached_by(&self, plugged: &Plugged) -> Vec<String> {
        self.controllers
            .values()
            .filter(|member| plugged.reaches(&member.id))
            .map(|member| member.id.clone())
            .collect()
    }

    /// Gives the named controllers their new tables, in which `nsid` came, went or changed.
    fn publish(&self, nsid: u32, controllers: &[String]) -> Linked {
        let mut told = Linked::default();
        for member in self.controllers.values() {
            if !controllers.contains(&member.id) {
                continue;
            }
            if let Some(link) = member.link.as_ref().and_then(Weak::upgrade) {
                link.attachments_changed(self.table(&member.id), &[nsid]);
                told.0.push(link);
            }
        }
        told
    }

    /// The controllers that there are.
    fn linked(&self) -> Linked {
        let links = self.controllers.values();
        Linked(
            links
                .filter_map(|member| member.link.as_ref()?.upgrade())
                .collect(),
        )
    }

    fn namespace_info(&self, plugged: &Plugged, linked: &Linked) -> NamespaceInfo {
        let namespace = &plugged.namespace;
        NamespaceInfo {
            id: namespace.id().to_owned(),
            nsid: namespace.nsid(),
            shared: namespace.shared(),
            read_only: namespace.read_only(),
            block_size: 1 << namespace.block_shift(),
            size: namespace.bytes(),
            uuid: namespace.uuid().to_string(),
            backend: namespace.backend().describe(),
            attached: self.reached_by(plugged),
            in_flight: linked.in_flight(namespace),
            traffic: namespace.traffic(),
        }
    }
}

/// Controllers that were told of a change, or asked.
///
/// One of them may have lost its other owners meanwhile, and its end removes it from the members: so
/// they are dropped without the lock.
#[derive(Default)]
#[must_use = "must be dropped without the lock on the members"]
struct Linked(Vec<Arc<dyn ControllerLink>>);

impl Linked {
    fn in_flight(&self, namespace: &Namespace) -> u64 {
        self.0.iter().map(|link| link.in_flight(namespace)).sum()
    }

    fn drop_unlocked(self, members: MutexGuard<'_, Members>) {
        drop(members);
        drop(self);
    }
}

impl Plugged {
    fn reaches(&self, controller: &str) -> bool {
        let by_itself = || match &self.namespace.reach {
            Reach::Shared => true,
            Reach::Private(id) => id == controller,
            Reach::Detached => false,
        };
        self.commanded
            .get(controller)
            .copied()
            .unwrap_or_else(by_itself)
    }
}

/// A controller's place in a subsystem; dropping it frees the CNTLID.
#[derive(Debug)]
pub struct Link {
    subsystem: Arc<Subsystem>,
    cntlid: u16,
}

impl Link {
    /// The subsystem.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.subsystem
    }

    /// Gives `observer` the table of now, and every later one.
    pub fn observe(&self, observer: &Arc<dyn ControllerLink>) {
        let mut members = self.subsystem.members();
        let Some(member) = members.controllers.get_mut(&self.cntlid) else {
            return;
        };
        member.link = Some(Arc::downgrade(observer));
        let id = member.id.clone();
        observer.attachments_changed(members.table(&id), &[]);
    }

    /// The controller's id in it.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut members = self.subsystem.members();
        let Some(member) = members.controllers.remove(&self.cntlid) else {
            return;
        };
        // The next controller of this name sees what one that booted with the machine would.
        for plugged in members.namespaces.values_mut() {
            plugged.commanded.remove(&member.id);
        }
    }
}

/// A subsystem as `info` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct SubsystemInfo {
    /// Name in the device tree.
    pub id: String,
    /// NVMe qualified name.
    pub nqn: String,
    /// Whether more than one controller may link to it.
    pub shared: bool,
    /// CNTLID and id of each controller.
    pub controllers: Vec<(u16, String)>,
    /// The namespaces on its bus.
    pub namespaces: Vec<NamespaceInfo>,
}
