//! KVM's own counters of a guest, which are the same for every VMM.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where KVM shows them; a VM's folder is called `TID-FD`, by the thread that made it.
const FOLDER: &str = "/sys/kernel/debug/kvm";

/// Exits of all of a guest's vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct Exits {
    /// Of any kind, those included that KVM handles itself.
    pub all: u64,
    /// Those to the VMM for a device's register.
    pub mmio: u64,
}

impl Exits {
    /// Those of the guest of the process `pid`; none where debugfs is not to be read.
    ///
    /// # Errors
    /// When the process has no guest, or the counters are not numbers.
    pub fn read(pid: i32) -> Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(FOLDER) else {
            return Ok(None);
        };
        let names = entries.filter_map(Result::ok).map(|entry| entry.path());
        let folder = find(names, &threads(pid)?)
            .with_context(|| format!("{FOLDER} shows no guest of process {pid}"))?;
        Ok(Some(Self {
            all: number(&folder.join("exits"))?,
            mmio: number(&folder.join("mmio_exits"))?,
        }))
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            all: self.all - before.all,
            mmio: self.mmio - before.mmio,
        }
    }
}

fn threads(pid: i32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(found)
}

fn find(mut folders: impl Iterator<Item = PathBuf>, threads: &[String]) -> Option<PathBuf> {
    folders.find(|folder| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        name.split_once('-')
            .is_some_and(|(thread, _)| threads.iter().any(|known| known == thread))
    })
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{}: {text:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_found_by_a_thread_of_its_process() {
        let folders = ["/k/exits", "/k/120-9", "/k/12-11"].map(PathBuf::from);
        let threads = ["11".to_owned(), "12".to_owned()];
        let found = find(folders.into_iter(), &threads);
        assert_eq!(found, Some(PathBuf::from("/k/12-11")));
        assert_eq!(find(["/k/1-2".into()].into_iter(), &threads), None);
    }
}
