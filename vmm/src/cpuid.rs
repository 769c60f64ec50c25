//! CPUID as each vCPU shows it: what KVM can do, with this machine's topology.
//!
//! The topology is one package, N cores, one thread each; the APIC id is the vCPU's number.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::{KvmError, refused};

/// Leaf 1 ECX: TSC-deadline mode of the local APIC timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX 23:16 counts logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_001E exists on AMD and Hygon only, which count cores in leaf 0x8000_0008 too.
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// The CPUID of a machine, before it is made that of one vCPU.
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
}

impl Template {
    /// What KVM supports, for a machine of `cpus` (1 to 64) vCPUs.
    ///
    /// # Errors
    /// KVM did not say what it supports.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list its CPUID"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_entries(
            supported.as_slice().to_vec(),
            cpus,
            deadline,
        ))
    }

    fn from_entries(mut entries: Vec<kvm_cpuid_entry2>, cpus: u8, deadline: bool) -> Self {
        // These list topology levels that KVM copied from the host; they are made afresh below.
        let made = |entry: &kvm_cpuid_entry2| matches!(entry.function, 0xb | 0x1f | 0x8000_0026);
        let levels = |function| entries.iter().any(|entry| entry.function == function);
        let (extended, v2) = (levels(0xb), levels(0x1f));
        let amd = levels(AMD_TOPOLOGY);
        entries.retain(|entry| !made(entry));
        for (function, present) in [(0xb, extended), (0x1f, v2)] {
            if present {
                entries.extend((0..3).map(|index| topology_level(function, index, cpus)));
            }
        }
        for entry in &mut entries {
            shared_by_all(entry, cpus, deadline);
            if amd && entry.function == 0x8000_0008 {
                entry.ecx = entry.ecx & !0xf0ff | core_bits(cpus) << 12 | (u32::from(cpus) - 1);
            }
        }
        Self { entries, cpus }
    }

    /// The CPUID of vCPU `id`.
    ///
    /// # Errors
    /// More entries than KVM takes.
    pub fn for_vcpu(&self, id: u8) -> Result<CpuId, KvmError> {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            own_apic_id(entry, id, self.cpus);
        }
        CpuId::from_entries(&entries).map_err(|_| KvmError::Ioctl {
            what: "take so many CPUID entries",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })
    }
}

/// Bits of the APIC id that tell cores apart.
fn core_bits(cpus: u8) -> u32 {
    u8::BITS - (cpus - 1).leading_zeros()
}

/// One level of leaf 0xB or 0x1F: 0 threads, 1 cores, 2 the end (Intel SDM volume 2, CPUID).
fn topology_level(function: u32, index: u32, cpus: u8) -> kvm_cpuid_entry2 {
    let (shift, count, kind) = match index {
        0 => (0, 1, 1),
        1 => (core_bits(cpus), u32::from(cpus), 2),
        _ => (0, 0, 0),
    };
    kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        ..Default::default()
    }
}

fn shared_by_all(entry: &mut kvm_cpuid_entry2, cpus: u8, deadline: bool) {
    let last = u32::from(cpus) - 1;
    match entry.function {
        1 => {
            entry.ecx |= HYPERVISOR | X2APIC;
            entry.ecx &= !TSC_DEADLINE;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx &= !HTT;
            if cpus > 1 {
                entry.edx |= HTT;
            }
            entry.ebx = entry.ebx & 0xff00_ffff | u32::from(cpus) << 16;
        }
        // Caches: levels 1 and 2 belong to a core, those above to the package.
        4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { last } else { 0 };
            entry.eax = entry.eax & !0x03ff_c000 | sharing << 14;
            if entry.function == 4 {
                let ids = (1u32 << core_bits(cpus)) - 1;
                entry.eax = entry.eax & !0xfc00_0000 | ids.min(0x3f) << 26;
            }
        }
        _ => {}
    }
}

fn own_apic_id(entry: &mut kvm_cpuid_entry2, id: u8, cpus: u8) {
    let apic_id = u32::from(id);
    debug_assert!(id < cpus);
    match entry.function {
        1 => entry.ebx = entry.ebx & 0x00ff_ffff | apic_id << 24,
        0xb | 0x1f => entry.edx = apic_id,
        // AMD: extended APIC id; core id with one thread; node 0 of one.
        AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx = apic_id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn every_vcpu_shows_its_own_apic_id_in_one_package() {
        let mut l3 = leaf(4, 3);
        l3.eax = 3 | 3 << 5 | 0xfff << 14;
        let mut l1 = leaf(4, 0);
        l1.eax = 1 | 1 << 5 | 1 << 14;
        let host = vec![
            leaf(1, 0),
            l1,
            l3,
            leaf(0xb, 0),
            leaf(0xb, 1),
            leaf(0x1f, 0),
            leaf(0x8000_0008, 0),
            leaf(0x8000_001e, 0),
        ];
        let cpuid = Template::from_entries(host, 6, true).for_vcpu(5).unwrap();
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (5, 6));
        assert_eq!(one.ecx, HYPERVISOR | X2APIC | TSC_DEADLINE);
        assert_eq!(one.edx, HTT);
        for function in [0xb, 0x1f] {
            let levels = [0, 1, 2].map(|index| find(&cpuid, function, index));
            assert!(levels.iter().all(|level| level.edx == 5));
            assert_eq!(levels.map(|level| level.eax), [0, 3, 0]);
            assert_eq!(levels.map(|level| level.ebx), [1, 6, 0]);
            assert_eq!(levels.map(|level| level.ecx), [0x100, 0x201, 2]);
        }
        assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, 5);
        assert_eq!(find(&cpuid, 4, 3).eax >> 26, 7);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 3 << 12 | 5);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 5);
    }

    #[test]
    fn one_cpu_has_no_core_bits() {
        assert_eq!([1, 2, 3, 4, 5, 64].map(core_bits), [0, 1, 2, 2, 3, 6]);
        let cpuid = Template::from_entries(vec![leaf(1, 0)], 1, false)
            .for_vcpu(0)
            .unwrap();
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.edx, one.ecx), (0, HYPERVISOR | X2APIC));
    }
}
