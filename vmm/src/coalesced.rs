//! Guest writes that KVM keeps in a ring instead of leaving the guest (KVM_CAP_COALESCED_MMIO).
//!
//! KVM has one ring for a virtual machine, mapped behind any vCPU's page. It appends; whoever drains
//! takes from the front. A ring that is full makes the next write an exit.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use devices::ioevent::{CoalescedWrites, WriteSink};
use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{Cap, IoEventAddress, VmFd};

const PAGE: usize = 4096;
/// Entries of the ring (KVM_COALESCED_MMIO_MAX).
#[allow(clippy::cast_possible_truncation)] // fewer than a page has bytes
const ENTRIES: u32 =
    ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;
/// Bytes of a zone: a doorbell.
const ZONE: u32 = 4;

/// The kept writes of a virtual machine.
pub struct CoalescedMmio {
    vm: Arc<VmFd>,
    ring: OnceLock<Ring>,
    // By address. The lock is also what taking from the ring needs: writes are handed over in order.
    sinks: Mutex<BTreeMap<u64, Arc<dyn WriteSink>>>,
}

impl CoalescedMmio {
    /// Keeps nothing until [`CoalescedMmio::attach`].
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            ring: OnceLock::new(),
            sinks: Mutex::default(),
        }
    }

    /// Maps the ring through a vCPU of the machine, if this KVM has one.
    ///
    /// # Errors
    /// The mapping failed.
    pub fn attach(&self, vcpu: &impl AsRawFd) -> io::Result<()> {
        let page = self.vm.check_extension_int(Cap::CoalescedMmio);
        if let Some(page) = usize::try_from(page).ok().filter(|&page| page > 0) {
            let ring = Ring::map(vcpu, page)?;
            // A second vCPU shows the same ring.
            let _ = self.ring.set(ring);
        }
        Ok(())
    }

    /// Number of addresses whose writes are kept.
    pub fn zones(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<dyn WriteSink>>> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CoalescedWrites for CoalescedMmio {
    fn register(&self, address: u64, sink: Arc<dyn WriteSink>) -> io::Result<()> {
        if self.ring.get().is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut sinks = self.lock();
        self.vm
            .register_coalesced_mmio(IoEventAddress::Mmio(address), ZONE)?;
        sinks.insert(address, sink);
        Ok(())
    }

    fn unregister(&self, address: u64) -> io::Result<()> {
        let mut sinks = self.lock();
        // KVM waits for writes that are on their way.
        self.vm
            .unregister_coalesced_mmio(IoEventAddress::Mmio(address), ZONE)?;
        if let Some(ring) = self.ring.get() {
            ring.drain(&sinks);
        }
        sinks.remove(&address);
        Ok(())
    }

    fn drain(&self) {
        if let Some(ring) = self.ring.get().filter(|ring| !ring.is_empty()) {
            ring.drain(&self.lock());
        }
    }
}

/// The ring's page.
struct Ring {
    page: NonNull<kvm_coalesced_mmio_ring>,
}

// SAFETY: the mapping belongs to the value alone. Its indices are accessed as atomics, its entries
// under the lock that `drain` is called with.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Maps page `page` of a vCPU's descriptor.
    fn map(vcpu: &impl AsRawFd, page: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(page * PAGE).map_err(io::Error::other)?;
        // SAFETY: a new mapping, wherever the host likes, with a checked result.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { page })
    }

    /// Index of the entry to take next. It moves on once that was handed over.
    fn first(&self) -> &AtomicU32 {
        // SAFETY: an aligned field of the mapping, which only this process writes, by atomics.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).first) }
    }

    /// Index of the entry that KVM fills next.
    fn last(&self) -> &AtomicU32 {
        // SAFETY: an aligned field of the mapping, which only KVM writes.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.page.as_ptr()).last) }
    }

    fn is_empty(&self) -> bool {
        self.first().load(Ordering::Acquire) == self.last().load(Ordering::Acquire)
    }

    /// Reads an entry below [`ENTRIES`] that KVM has filled and will not touch until `first` is past
    /// it.
    fn entry(&self, index: u32) -> kvm_coalesced_mmio {
        // SAFETY: the entries lie behind the indices, and this one is inside of the page.
        unsafe {
            let entries = (&raw const (*self.page.as_ptr()).coalesced_mmio);
            entries
                .cast::<kvm_coalesced_mmio>()
                .add(index as usize)
                .read_volatile()
        }
    }

    /// Hands over what is there, with the lock that `sinks` are behind. At most one lap: what comes
    /// meanwhile can wait.
    fn drain(&self, sinks: &BTreeMap<u64, Arc<dyn WriteSink>>) {
        for _ in 0..ENTRIES {
            if self.is_empty() {
                return;
            }
            let first = self.first().load(Ordering::Relaxed) % ENTRIES;
            let entry = self.entry(first);
            let [a, b, c, d, ..] = entry.data;
            if let Some(sink) = sinks.get(&entry.phys_addr).filter(|_| entry.len == ZONE) {
                sink.written(u32::from_le_bytes([a, b, c, d]));
            }
            self.first().store((first + 1) % ENTRIES, Ordering::Release);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, which nothing refers to any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
