//! Files that are no raw images, by their first bytes.
//!
//! The guest of a raw image writes those bytes itself, so they may look like anything: `format=raw`
//! says that an image is raw whatever it looks like.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A format of disk images or archives that berth does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Disk(&'static str),
    Compressed {
        name: &'static str,
        tool: &'static str,
    },
}

/// What a file begins with. Long enough that a guest's data looks so once in 2^32 times at most.
const MAGIC: [(&[u8], Format); 12] = [
    (b"QFI\xfb", Format::Disk("qcow2")),
    (b"KDMV", Format::Disk("vmdk")),
    (b"COWD", Format::Disk("vmdk")),
    (b"# Disk DescriptorFile", Format::Disk("vmdk")),
    (b"vhdxfile", Format::Disk("vhdx")),
    (b"conectix", Format::Disk("vpc")),
    (b"QED\0", Format::Disk("qed")),
    (b"<<< ", Format::Disk("vdi")),
    // Without and with the name of a file behind it.
    (b"\x1f\x8b\x08\x00", compressed("gzip", "gunzip")),
    (b"\x1f\x8b\x08\x08", compressed("gzip", "gunzip")),
    (b"\xfd7zXZ\0", compressed("xz", "unxz")),
    (b"\x28\xb5\x2f\xfd", compressed("zstd", "unzstd")),
];

const fn compressed(name: &'static str, tool: &'static str) -> Format {
    Format::Compressed { name, tool }
}

/// A file is no raw image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRaw {
    path: PathBuf,
    format: Format,
}

impl std::error::Error for NotRaw {}

impl std::fmt::Display for NotRaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.format {
            Format::Disk(name) => write!(
                f,
                "{path}: is a {name} image, berth takes raw ones; convert it: qemu-img convert -f \
                 {name} -O raw {path} {}",
                self.path.with_extension("raw").display()
            ),
            Format::Compressed { name, tool } => write!(
                f,
                "{path}: is compressed with {name}, berth takes raw images; unpack it first: {tool} \
                 {path}"
            ),
        }?;
        f.write_str("; if it is a raw image that only looks so, add format=raw")
    }
}

/// Refuses a regular file that begins as another format than a raw image does. What cannot be read is
/// for its opening to tell.
///
/// # Errors
/// It is of another format.
pub fn check(path: &Path) -> Result<(), NotRaw> {
    let is_file = path.metadata().is_ok_and(|found| found.is_file());
    let Some(file) = is_file.then(|| File::open(path).ok()).flatten() else {
        return Ok(());
    };
    let mut start = [0; 32];
    let count = file.read_at(&mut start, 0).unwrap_or(0);
    let found = MAGIC
        .iter()
        .find(|(magic, _)| start[..count].starts_with(magic));
    found.map_or(Ok(()), |(_, format)| {
        Err(NotRaw {
            path: path.into(),
            format: *format,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_told_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let shown = path.display();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            check(&path).err().map(|error| error.to_string())
        };
        let qcow2 = refused(b"QFI\xfb\0\0\0\x03").unwrap();
        let start =
            format!("{shown}: is a qcow2 image, berth takes raw ones; convert it: qemu-img");
        assert!(
            qcow2.starts_with(&start) && qcow2.ends_with("add format=raw"),
            "{qcow2}"
        );
        let gzip = refused(b"\x1f\x8b\x08\0\0\0\0\0").unwrap();
        assert!(
            gzip.contains(&format!("unpack it first: gunzip {shown}")),
            "{gzip}"
        );
        for (magic, _) in MAGIC {
            assert!(refused(magic).is_some(), "{magic:?}");
            assert_eq!(refused(&magic[..magic.len() - 1]), None, "{magic:?}");
        }
        assert_eq!(refused(&[0; 512]), None);
        assert_eq!(refused(b""), None);
        assert_eq!(check(dir.path()), Ok(()));
        assert_eq!(check(&dir.path().join("none")), Ok(()));
    }
}
