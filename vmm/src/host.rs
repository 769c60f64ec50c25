//! What the host has for KVM, and what a user does where that is not enough.

use std::arch::x86_64::{__cpuid, CpuidResult};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The device file of KVM.
const DEVICE: &str = "/dev/kvm";

/// Hardware virtualization of a vendor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// VT-x.
    Intel,
    /// AMD-V.
    Amd,
}

impl Vendor {
    fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Intel => "VT-x",
            Self::Amd => "AMD-V",
        }
    }
}

/// What is known of a host whose KVM is missing.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// The kernel has the driver, whether there is a device file or not.
    driver: bool,
    /// What the kernel found usable (`/proc/cpuinfo`).
    usable: Option<Vendor>,
    /// What the processor says (CPUID), even if firmware has locked it.
    has: Option<Vendor>,
    /// The host is a virtual machine itself.
    nested: bool,
}

impl Facts {
    fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            driver: Path::new("/sys/devices/virtual/misc/kvm").exists(),
            usable: flag(&cpuinfo),
            has: by_cpuid(),
            nested: is_virtual_machine(),
        }
    }

    /// What to do where `/dev/kvm` does not exist.
    fn advice(self) -> String {
        match self {
            Self { driver: true, .. } => "the kernel has KVM, but this place has no device file for \
                it: give it to the container (docker run --device /dev/kvm), or make it (sudo mknod \
                /dev/kvm c 10 232)"
                .into(),
            Self {
                usable: Some(vendor),
                ..
            } => format!("load its module: sudo modprobe {}", vendor.module()),
            Self {
                has: Some(vendor), ..
            } => format!(
                "the processor has {}, but the firmware has turned it off: turn it on in the \
                 firmware's setup",
                vendor.name()
            ),
            Self { nested: true, .. } => "this is a virtual machine without VT-x or AMD-V: turn on \
                nested virtualisation for it on its host"
                .into(),
            _ => "the processor shows neither VT-x (vmx) nor AMD-V (svm): turn it on in the \
                firmware's setup, if there is such a switch"
                .into(),
        }
    }
}

/// What to do where `/dev/kvm` does not exist, or has no driver behind it.
pub fn if_missing() -> String {
    Facts::read().advice()
}

/// The vendor by the flags of the first processor.
fn flag(cpuinfo: &str) -> Option<Vendor> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some(Vendor::Intel),
        "svm" => Some(Vendor::Amd),
        _ => None,
    })
}

/// Leaf 1 ECX: VMX.
const VMX: u32 = 1 << 5;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x8000_0001 ECX: SVM.
const SVM: u32 = 1 << 2;

fn by_cpuid() -> Option<Vendor> {
    let extended = __cpuid(0x8000_0000).eax;
    let ecx = |CpuidResult { ecx, .. }| ecx;
    if ecx(__cpuid(1)) & VMX != 0 {
        Some(Vendor::Intel)
    } else if extended > 0x8000_0000 && ecx(__cpuid(0x8000_0001)) & SVM != 0 {
        Some(Vendor::Amd)
    } else {
        None
    }
}

fn is_virtual_machine() -> bool {
    __cpuid(1).ecx & HYPERVISOR != 0
}

/// Whether a KVM that works here does without the processor's help.
pub fn kvm_is_software() -> bool {
    by_cpuid().is_none()
}

/// What runs on software KVM and what does not.
pub const SOFTWARE_KVM: &str = "this host's KVM works without VT-x and AMD-V, in software: small \
    programs of one's own run on it, stock Linux kernels stop or hang early, under any VMM; for them \
    use a host whose processor offers VT-x or AMD-V";

/// What to do where the user may not open `/dev/kvm`.
pub fn if_not_permitted(errno: i32) -> String {
    let owner = fs::metadata(DEVICE).map(|found| (found.gid(), found.mode()));
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    match owner {
        Ok((gid, mode)) if errno == libc::EACCES => permission(gid, mode, &groups),
        _ => "a container or a security policy forbids it: allow the device there (docker run \
              --device /dev/kvm)"
            .into(),
    }
}

/// Its group, or if that may not either, an entry in its access control list.
fn permission(gid: u32, mode: u32, groups: &str) -> String {
    const GROUP_MAY: u32 = 0o060;
    let entry = "sudo setfacl -m u:$USER:rw /dev/kvm";
    match group(gid, groups) {
        Some(group) if mode & GROUP_MAY == GROUP_MAY && gid != 0 => format!(
            "join the group that may, sudo usermod -aG {group} $USER, and log in again; or for now: \
             {entry}"
        ),
        _ => format!("allow it: {entry}"),
    }
}

/// The name of a group in the form of `/etc/group` (group(5)).
fn group(gid: u32, groups: &str) -> Option<&str> {
    let number = gid.to_string();
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_explained_by_what_the_host_has() {
        let nothing = Facts {
            driver: false,
            usable: None,
            has: None,
            nested: false,
        };
        let intel = Some(Vendor::Intel);
        let amd = Some(Vendor::Amd);
        #[rustfmt::skip]
        let table = [
            (Facts { driver: true, usable: intel, has: intel, ..nothing }, "docker run --device /dev/kvm"),
            (Facts { usable: intel, has: intel, ..nothing }, "load its module: sudo modprobe kvm_intel"),
            (Facts { usable: amd, has: amd, nested: true, ..nothing }, "load its module: sudo modprobe kvm_amd"),
            (Facts { has: intel, ..nothing }, "the processor has VT-x, but the firmware has turned it off"),
            (Facts { has: amd, ..nothing }, "the processor has AMD-V, but the firmware has turned it off"),
            (Facts { nested: true, ..nothing }, "turn on nested virtualisation for it on its host"),
            (nothing, "neither VT-x (vmx) nor AMD-V (svm)"),
        ];
        let readme = include_str!("../../README.md");
        for (facts, expected) in table {
            let advice = facts.advice();
            assert!(advice.contains(expected), "{facts:?}: {advice}");
        }
        for (_, told) in &table[..6] {
            let told = told
                .replace("kvm_amd", "kvm_intel")
                .replace("AMD-V", "VT-x");
            assert!(readme.contains(&told), "{told}");
        }
    }

    #[test]
    fn flags_are_words_of_the_line_of_flags() {
        assert_eq!(flag("bugs: vmx\nflags\t\t: fpu svm_lock\n"), None);
        assert_eq!(flag("flags\t\t: fpu vmx\n"), Some(Vendor::Intel));
        assert_eq!(flag("flags\t\t: svm\nflags\t\t: fpu\n"), Some(Vendor::Amd));
        assert_eq!(flag(""), None);
    }

    #[test]
    fn permission_comes_by_the_group_if_that_may() {
        let groups = "root:x:0:\nkvmx:x:10:me\nkvm:x:108:you,me\n";
        let by_group = permission(108, 0o20660, groups);
        assert!(
            by_group.contains("sudo usermod -aG kvm $USER"),
            "{by_group}"
        );
        assert!(by_group.contains("sudo setfacl -m u:$USER:rw /dev/kvm"));
        let readme = include_str!("../../README.md");
        assert!(
            readme.contains("`sudo usermod -aG kvm $USER`, or for now `sudo setfacl -m u:$USER:rw")
        );
        for (gid, mode) in [(0, 0o20660), (108, 0o20600), (99, 0o20660)] {
            let advice = permission(gid, mode, groups);
            assert_eq!(advice, "allow it: sudo setfacl -m u:$USER:rw /dev/kvm");
        }
    }
}
