//! Interrupts and doorbell events on KVM: GSIs, their routes, irqfds and ioeventfds.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::interrupt::{IrqLine, MsiAllocator, MsiGroup, MsiMessage};
use devices::ioevent::IoEvents;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_ioeventfd, kvm_ioeventfd_flag_nr_deassign,
    kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::coalesced::CoalescedMmio;

/// Pins of the IOAPIC; GSIs from here on are message-signalled.
const IOAPIC_PINS: u32 = 24;
/// IOAPIC pin of the ISA timer, whose GSI 0 the MADT overrides; the PC has nothing else there.
const TIMER_PIN: u32 = 2;
/// Routes of the pins: 16 to the PICs, 23 to the IOAPIC.
const PIN_ROUTES: usize = 39;
/// KVM takes no more routes than 4,096 (KVM_MAX_IRQ_ROUTES), and no GSI above.
const MAX_MSIS: usize = 4096 - PIN_ROUTES;

ioctl_iow_nr!(KVM_IOEVENTFD, 0xae, 0x79, kvm_ioeventfd);

/// The interrupt side of a virtual machine. One object: KVM replaces all routes at once, so
/// somebody must know them all.
pub struct Interrupts {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
    ioeventfds: AtomicUsize,
    coalesced: Arc<CoalescedMmio>,
}

/// What devices hold of KVM. Nothing of a device that is gone may be left in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Doorbells that KVM turns into events.
    pub ioeventfds: usize,
    /// Doorbells whose writes KVM keeps.
    pub coalesced: usize,
    /// Message-signalled GSIs that are reserved, routed or not.
    pub gsis: usize,
    /// Of these, those with a route and so an irqfd.
    pub irqfds: usize,
}

/// What each message-signalled GSI is: free, reserved, or routed.
struct Table {
    /// Index 0 is GSI [`IOAPIC_PINS`].
    gsis: Vec<Gsi>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gsi {
    Free,
    Reserved,
    Routed(MsiMessage),
}

impl Interrupts {
    /// Installs the routes of the interrupt controllers' pins.
    ///
    /// # Errors
    /// KVM refused them.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let interrupts = Arc::new(Self {
            coalesced: Arc::new(CoalescedMmio::new(Arc::clone(&vm))),
            vm,
            table: Mutex::new(Table { gsis: Vec::new() }),
            ioeventfds: AtomicUsize::new(0),
        });
        interrupts.commit(&interrupts.table())?;
        Ok(interrupts)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in use now.
    pub fn held(&self) -> Held {
        let table = self.table();
        let count = |which: fn(&Gsi) -> bool| table.gsis.iter().filter(|gsi| which(gsi)).count();
        Held {
            ioeventfds: self.ioeventfds.load(Ordering::Relaxed),
            coalesced: self.coalesced.zones(),
            gsis: count(|gsi| *gsi != Gsi::Free),
            irqfds: count(|gsi| matches!(gsi, Gsi::Routed(_))),
        }
    }

    /// The writes that KVM keeps.
    pub fn coalesced(&self) -> &Arc<CoalescedMmio> {
        &self.coalesced
    }

    fn commit(&self, table: &Table) -> io::Result<()> {
        let mut entries = pin_routes();
        for (gsi, state) in (IOAPIC_PINS..).zip(&table.gsis) {
            if let Gsi::Routed(message) = state {
                entries.push(msi_route(gsi, *message));
            }
        }
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::other("too many interrupt routes"))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }

    /// A line to interrupt controller pin `gsi` (below 24).
    ///
    /// # Errors
    /// KVM refused the irqfd, or no file descriptor is left.
    pub fn line(&self, gsi: u32) -> io::Result<Arc<dyn IrqLine>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(Arc::new(Line { event }))
    }
}

/// The routes that an in-kernel PIC and IOAPIC need, as the MADT describes them.
fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for gsi in 0..16 {
        let (chip, pin) = if gsi < 8 {
            (KVM_IRQCHIP_PIC_MASTER, gsi)
        } else {
            (KVM_IRQCHIP_PIC_SLAVE, gsi - 8)
        };
        routes.push(pin_route(gsi, chip, pin));
    }
    for gsi in (0..IOAPIC_PINS).filter(|gsi| *gsi != TIMER_PIN) {
        // KVM's timer raises GSI 0.
        let pin = if gsi == 0 { TIMER_PIN } else { gsi };
        routes.push(pin_route(gsi, KVM_IRQCHIP_IOAPIC, pin));
    }
    routes
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut route = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    route.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    route
}

fn msi_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut route = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let bytes = message.address.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    route.u.msi = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        ..Default::default()
    };
    route
}

struct Line {
    event: EventFd,
}

impl IrqLine for Line {
    fn trigger(&self) {
        // KVM reads the counter at once; should it be full, an edge is pending already.
        let _ = self.event.write(1);
    }
}

/// [`MsiAllocator`] for PCI functions: it needs the `Arc`, to give the GSIs back later.
pub struct Allocator(pub Arc<Interrupts>);

impl MsiAllocator for Allocator {
    fn allocate(&self, vectors: u16) -> io::Result<Arc<dyn MsiGroup>> {
        let events = (0..vectors)
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<Vec<_>>>()?;
        let gsis = self.0.table().reserve(events.len())?;
        let vectors = events
            .into_iter()
            .zip(gsis)
            .map(|(event, gsi)| Vector {
                gsi,
                event,
                connected: AtomicBool::new(false),
            })
            .collect();
        Ok(Arc::new(Group {
            interrupts: Arc::clone(&self.0),
            vectors,
        }))
    }
}

impl Table {
    fn reserve(&mut self, count: usize) -> io::Result<Vec<u32>> {
        let spare = self.gsis.iter().filter(|gsi| **gsi == Gsi::Free).count();
        if count > spare + (MAX_MSIS - self.gsis.len()) {
            return Err(io::Error::other(format!(
                "no {count} interrupt vectors are left of {MAX_MSIS}: \
                 use fewer controllers or queues"
            )));
        }
        let missing = count.saturating_sub(spare);
        self.gsis.extend(std::iter::repeat_n(Gsi::Free, missing));
        let mut reserved = Vec::with_capacity(count);
        for (gsi, state) in (IOAPIC_PINS..).zip(&mut self.gsis) {
            if reserved.len() == count {
                break;
            }
            if *state == Gsi::Free {
                *state = Gsi::Reserved;
                reserved.push(gsi);
            }
        }
        Ok(reserved)
    }

    fn set(&mut self, gsi: u32, state: Gsi) {
        let index = gsi.checked_sub(IOAPIC_PINS).map(|index| index as usize);
        if let Some(slot) = index.and_then(|index| self.gsis.get_mut(index)) {
            *slot = state;
        }
    }
}

struct Vector {
    gsi: u32,
    event: EventFd,
    /// Whether `event` is an irqfd now. Changes under the table's lock only.
    connected: AtomicBool,
}

/// The vectors of one function. A vector is connected (its eventfd an irqfd) while it is routed.
struct Group {
    interrupts: Arc<Interrupts>,
    vectors: Vec<Vector>,
}

impl MsiGroup for Group {
    fn trigger(&self, vector: u16) {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            // A full counter means that an event is pending already.
            let _ = vector.event.write(1);
        }
    }

    /// Removes irqfds before their routes go and adds them after their routes came: older kernels
    /// crash on an irqfd whose GSI has no route.
    fn update(&self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let mut table = self.interrupts.table();
        let known = |&(vector, message): &(u16, Option<MsiMessage>)| {
            Some((self.vectors.get(usize::from(vector))?, message))
        };
        let mut routed = Vec::new();
        for (vector, message) in changes.iter().filter_map(known) {
            match message {
                Some(message) => {
                    table.set(vector.gsi, Gsi::Routed(message));
                    routed.push(vector);
                }
                None => {
                    vector.disconnect(&self.interrupts.vm)?;
                    table.set(vector.gsi, Gsi::Reserved);
                }
            }
        }
        self.interrupts.commit(&table)?;
        for vector in routed {
            vector.connect(&self.interrupts.vm)?;
        }
        Ok(())
    }

    fn discard(&self) {
        let _table = self.interrupts.table();
        for vector in &self.vectors {
            if !vector.connected.load(Ordering::Relaxed) {
                // Nothing to read is what is wanted.
                let _ = vector.event.read();
            }
        }
    }
}

impl Vector {
    fn connect(&self, vm: &VmFd) -> io::Result<()> {
        if !self.connected.load(Ordering::Relaxed) {
            vm.register_irqfd(&self.event, self.gsi)?;
            self.connected.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn disconnect(&self, vm: &VmFd) -> io::Result<()> {
        if self.connected.load(Ordering::Relaxed) {
            vm.unregister_irqfd(&self.event, self.gsi)?;
            self.connected.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut table = self.interrupts.table();
        for vector in &self.vectors {
            // A GSI whose irqfd is stuck is not given to anybody else.
            match vector.disconnect(&self.interrupts.vm) {
                Ok(()) => table.set(vector.gsi, Gsi::Free),
                Err(error) => tracing::warn!("GSI {} stays in use: {error}", vector.gsi),
            }
        }
        if let Err(error) = self.interrupts.commit(&table) {
            tracing::warn!("routes of a removed function stay: {error}");
        }
    }
}

impl IoEvents for Interrupts {
    fn register(&self, event: &EventFd, address: u64) -> io::Result<()> {
        self.ioeventfd(event, address, 0)?;
        self.ioeventfds.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn unregister(&self, event: &EventFd, address: u64) -> io::Result<()> {
        self.ioeventfd(event, address, 1 << kvm_ioeventfd_flag_nr_deassign)?;
        self.ioeventfds.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Interrupts {
    /// kvm-ioctls can only match any length or a length with a value; a doorbell is any value of 4
    /// bytes.
    fn ioeventfd(&self, event: &EventFd, address: u64, flags: u32) -> io::Result<()> {
        let request = kvm_ioeventfd {
            addr: address,
            len: 4,
            fd: event.as_raw_fd(),
            flags,
            ..Default::default()
        };
        // SAFETY: a VM descriptor, the structure that this ioctl takes, and a checked result.
        let result = unsafe { ioctl_with_ref(&*self.vm, KVM_IOEVENTFD(), &request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests of the KVM half need /dev/kvm; the table itself does not.
    fn vm() -> Option<Arc<VmFd>> {
        let made = crate::kvm::open().and_then(|kvm| crate::kvm::create_vm(&kvm, 1));
        match made.and_then(|vm| crate::kvm::create_chips(&vm).map(|()| vm)) {
            Ok(vm) => Some(vm),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn message(data: u32) -> Option<MsiMessage> {
        Some(MsiMessage {
            address: 0xfee0_0000,
            data,
        })
    }

    #[test]
    fn gsis_are_reused_and_run_out_with_a_message() {
        let mut table = Table { gsis: Vec::new() };
        assert_eq!(table.reserve(2).unwrap(), [24, 25]);
        assert_eq!(table.reserve(2).unwrap(), [26, 27]);
        table.set(25, Gsi::Free);
        assert_eq!(table.reserve(2).unwrap(), [25, 28]);
        let rest = MAX_MSIS - 5;
        assert!(table.reserve(rest + 1).is_err());
        let last = table.reserve(rest).unwrap().pop();
        assert_eq!(last, Some(4080));
        assert!(table.reserve(1).unwrap_err().to_string().contains("4057"));
    }

    #[test]
    fn pin_routes_are_counted() {
        assert_eq!(pin_routes().len(), PIN_ROUTES);
    }

    #[test]
    fn a_connected_vector_hands_its_pending_event_to_kvm() {
        let Some(vm) = vm() else { return };
        let interrupts = Interrupts::new(vm).unwrap();
        let allocator = Allocator(Arc::clone(&interrupts));
        let vectors = interrupts_group(&allocator, 2);
        vectors.trigger(0);
        vectors.trigger(1);
        vectors.trigger(9);
        vectors.update(&[(0, message(0x30))]).unwrap();
        vectors
            .update(&[(0, message(0x31)), (7, message(1))])
            .unwrap();
        let held = |gsis, irqfds| Held {
            ioeventfds: 0,
            coalesced: 0,
            gsis,
            irqfds,
        };
        assert_eq!(interrupts.held(), held(2, 1));
        vectors.update(&[(0, None), (1, None)]).unwrap();
        vectors.discard();
        assert_eq!(interrupts.held(), held(2, 0));
        drop(vectors);
        assert_eq!(interrupts.held(), held(0, 0));
    }

    fn interrupts_group(allocator: &Allocator, vectors: u16) -> Arc<dyn MsiGroup> {
        allocator.allocate(vectors).unwrap()
    }

    #[test]
    fn a_doorbell_is_registered_once_and_unregistered() {
        let Some(vm) = vm() else { return };
        let interrupts = Interrupts::new(vm).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let other = EventFd::new(EFD_NONBLOCK).unwrap();
        interrupts.register(&event, 0xe000_1000).unwrap();
        assert!(interrupts.register(&other, 0xe000_1000).is_err());
        assert_eq!(interrupts.held().ioeventfds, 1);
        interrupts.unregister(&event, 0xe000_1000).unwrap();
        assert!(interrupts.unregister(&event, 0xe000_1000).is_err());
        assert_eq!(interrupts.held().ioeventfds, 0);
        interrupts.register(&other, 0xe000_1000).unwrap();
    }
}
