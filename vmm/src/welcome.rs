//! What berth says to somebody who gave it nothing to do.

use std::fs;
use std::path::{Path, PathBuf};

use crate::host::{self, SOFTWARE_KVM};
use crate::kvm;

/// Where distributions put kernels.
const BOOT: &str = "/boot";

/// Lines that say what to type next, and whether guests can run here.
pub fn text() -> String {
    let kernel = host_kernel(Path::new(BOOT));
    let kvm = match kvm::open() {
        Ok(_) if host::kvm_is_software() => format!("KVM: {SOFTWARE_KVM}."),
        Ok(_) => "KVM: guests can run here.".into(),
        Err(error) => format!("KVM: {error}."),
    };
    format!("{}\n\n{kvm}", lines(kernel.as_deref()))
}

fn lines(kernel: Option<&Path>) -> String {
    let kernel = kernel.unwrap_or(Path::new("bzImage")).display();
    format!(
        "nothing to do. Boot a guest, with an initial RAM disk or with a root file system on NVMe:\n\n  \
         berth run --kernel {kernel} --initrd initrd.img\n  \
         berth run --kernel {kernel} --disk rootfs.img --append root=/dev/nvme0n1\n\n\
         Its console is this terminal; Ctrl-a x leaves. Further:\n\n  \
         berth run --help     options, devices, exit statuses\n  \
         berth ctl --help     control of a running guest\n  \
         berth man | man -l - the manual"
    )
}

/// The kernel in `folder` that was put there last and may be read.
fn host_kernel(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let kernels =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    let readable = kernels
        .map(|entry| entry.path())
        .filter(|path| fs::File::open(path).is_ok());
    readable.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_newest_kernel_is_in_the_example() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host_kernel(dir.path()), None);
        assert!(lines(None).contains("berth run --kernel bzImage --initrd"));
        for (name, age) in [("vmlinuz-1", 20), ("vmlinuz-2", 10), ("initrd.img-2", 0)] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(time).unwrap();
        }
        let newest = dir.path().join("vmlinuz-2");
        assert_eq!(host_kernel(dir.path()).as_ref(), Some(&newest));
        let example = format!("berth run --kernel {} --disk", newest.display());
        assert!(lines(Some(&newest)).contains(&example));
    }
}
