//! `/dev/kvm`: opening it, checking it, and making the virtual machine with its interrupt chips.

use std::sync::Arc;

use boot::layout;
use kvm_bindings::{KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::host;

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No such device, and what to do about it.
    #[error("/dev/kvm does not exist or has no driver: {0}")]
    Missing(String),
    /// No permission, and how to get it.
    #[error("/dev/kvm may not be opened by this user: {0}")]
    Permission(String),
    /// Somebody else has the processor's virtualisation.
    #[error(
        "another hypervisor (VirtualBox, VMware) is using the processor's virtualisation: end its \
         machines, or unload its modules (sudo modprobe -r vboxdrv vmmon)"
    )]
    Busy,
    /// Another error on opening.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(kvm_ioctls::Error),
    /// Not the API that every KVM has had since 2007.
    #[error("/dev/kvm has API version {0}, berth needs {KVM_API_VERSION}")]
    Version(i32),
    /// A capability is missing.
    #[error("this kernel's KVM lacks {0}, which berth needs: use Linux 5.10 or newer")]
    Capability(&'static str),
    /// More vCPUs than the host takes.
    #[error("--cpus {asked}: this host's KVM allows at most {allowed}")]
    Cpus {
        /// From the command line.
        asked: u8,
        /// What KVM said.
        allowed: usize,
    },
    /// An ioctl failed.
    #[error("KVM refused to {what}: {source}")]
    Ioctl {
        /// What berth tried to do.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// For `map_err`: names what was tried.
pub fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}

/// Opens `/dev/kvm` and checks that it can do what berth needs.
///
/// # Errors
/// See [`KvmError`]; each message says what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing(host::if_missing()),
        errno @ (libc::EACCES | libc::EPERM) => KvmError::Permission(host::if_not_permitted(errno)),
        libc::EBUSY => KvmError::Busy,
        _ => KvmError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if version != i32::try_from(KVM_API_VERSION).unwrap_or(i32::MAX) {
        return Err(KvmError::Version(version));
    }
    let needed = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    for (cap, name) in needed {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    Ok(kvm)
}

/// The kernel turns the processor's virtualisation on for the first machine only.
fn not_created(error: kvm_ioctls::Error) -> KvmError {
    match error.errno() {
        libc::EBUSY => KvmError::Busy,
        _ => refused("create a virtual machine")(error),
    }
}

/// Makes a virtual machine, ready for memory and then for [`create_chips`].
///
/// # Errors
/// More `cpus` than the host allows, or an ioctl failed.
pub fn create_vm(kvm: &Kvm, cpus: u8) -> Result<Arc<VmFd>, KvmError> {
    let allowed = kvm.get_max_vcpus();
    if usize::from(cpus) > allowed {
        return Err(KvmError::Cpus {
            asked: cpus,
            allowed,
        });
    }
    let vm = kvm.create_vm().map_err(not_created)?;
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(refused("place the identity map"))?;
    vm.set_tss_address(tss).map_err(refused("place the TSS"))?;
    Ok(Arc::new(vm))
}

/// Gives a virtual machine in-kernel PIC, IOAPIC, local APICs and PIT: it is ready for vCPUs then.
///
/// Memory comes before them: they begin a grace period of the kernel's (SRCU) that memory slots wait
/// for, some 5 ms on Linux 6.18.
///
/// # Errors
/// An ioctl failed.
pub fn create_chips(vm: &VmFd) -> Result<(), KvmError> {
    vm.create_irq_chip()
        .map_err(refused("create the interrupt controllers"))?;
    // With the dummy, port 0x61 is answered in the kernel too: Linux calibrates its clock there.
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })
    .map_err(refused("create the interval timer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_processor_is_told_from_other_failures() {
        let busy = not_created(kvm_ioctls::Error::new(libc::EBUSY)).to_string();
        assert!(busy.contains("VirtualBox"), "{busy}");
        let other = not_created(kvm_ioctls::Error::new(libc::ENOMEM)).to_string();
        assert!(
            other.starts_with("KVM refused to create a virtual machine"),
            "{other}"
        );
    }
}
