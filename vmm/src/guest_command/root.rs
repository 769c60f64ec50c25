//! An image with a root file system: what is in it, and how the guest finds it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::Error;
use super::task::RootDisk;
use crate::cli::RunConfig;
use crate::control::plain;
use crate::spec::{BackendSpec, NamespaceSpec};

/// File systems by the letters that begin them, and where those are. ext4 mounts its forebears too.
const FILE_SYSTEMS: [(&str, u64, &[u8]); 4] = [
    ("ext4", 0x438, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("squashfs", 0, b"hsqs"),
];

/// Attaches the image to the machine, behind its other disks, and tells how the guest finds it: by the
/// UUID of the namespace, because the names of disks depend on what else there is.
///
/// # Errors
/// The image has no file system that is known.
pub fn attach(spec: &NamespaceSpec, config: &mut RunConfig) -> Result<RootDisk, Error> {
    let mut spec = spec.clone();
    let uuid = Uuid::from_bytes(*spec.uuid.get_or_insert_with(|| Uuid::new_v4().into_bytes()));
    let BackendSpec::File { path, .. } = &spec.disk.backend else {
        return Err(Error::Image {
            path: "".into(),
            problem: "must be a directory or an image".into(),
        });
    };
    let failed = |problem| Error::Image {
        path: path.clone(),
        problem,
    };
    let file = File::open(path).map_err(|error| failed(plain(&error)))?;
    let file_system = file_system(&file).ok_or_else(|| {
        failed(
            "has no file system of its own (ext4, xfs, btrfs or squashfs, without a partition table)"
                .to_owned(),
        )
    })?;
    let read_only = spec.disk.ro || file_system == "squashfs";
    spec.disk.ro = read_only;
    config.disks.push(spec);
    Ok(RootDisk {
        uuid: uuid.to_string(),
        file_system: file_system.to_owned(),
        read_only,
    })
}

fn file_system(image: &File) -> Option<&'static str> {
    let has = |&(_, offset, magic): &(&str, u64, &[u8])| {
        let mut found = vec![0; magic.len()];
        image.read_exact_at(&mut found, offset).is_ok() && found == magic
    };
    let found = FILE_SYSTEMS.iter().find(|it| has(it));
    found.map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_by_their_magic() {
        for (name, offset, magic) in FILE_SYSTEMS {
            let image = tempfile::tempfile().unwrap();
            image.write_all_at(magic, offset).unwrap();
            assert_eq!(file_system(&image), Some(name));
        }
        let other = tempfile::tempfile().unwrap();
        other.write_all_at(b"\x55\xaa", 510).unwrap();
        assert_eq!(file_system(&other), None);
    }
}
