//! A file tree, written as an initramfs: a cpio archive in the kernel's "newc" form
//! (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Type bits of a mode (inode(7)).
pub mod file_type {
    /// All of them.
    pub const MASK: u32 = 0o170_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A regular file.
    pub const REGULAR: u32 = 0o100_000;
    /// A symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// A character device.
    pub const CHARACTER: u32 = 0o020_000;
}

/// Links that are followed on one path, as in Linux.
const MAX_LINKS: u32 = 40;

/// Contents of a file in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// None: a directory, a device.
    Nothing,
    /// These bytes; of a symbolic link its target.
    Bytes(Vec<u8>),
    /// What this file of the host has when the tree is written.
    HostFile(PathBuf),
}

/// One file of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// What is in it.
    pub contents: Contents,
}

impl Entry {
    /// A file of root's.
    #[must_use]
    pub fn new(mode: u32, contents: Contents) -> Self {
        Self {
            mode,
            owner: (0, 0),
            device: (0, 0),
            contents,
        }
    }

    fn directory() -> Self {
        Self::new(file_type::DIRECTORY | 0o755, Contents::Nothing)
    }

    fn is(&self, file_type: u32) -> bool {
        self.mode & file_type::MASK == file_type
    }
}

/// A file tree in the making. Paths are those in the guest, with or without the slash in front; the
/// directories above a file make themselves.
#[derive(Debug, Default)]
pub struct Tree {
    /// Sorted, so that a directory comes before what is in it. Without the slash in front.
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds a file, in the place of what was there; a directory that was there stays.
    pub fn add(&mut self, path: &str, entry: Entry) {
        let path = self.resolved(path);
        if path.is_empty() {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.entries
                .entry(path[..at].to_owned())
                .or_insert_with(Entry::directory);
        }
        let there = self.entries.get(&path);
        if there.is_some_and(|there| there.is(file_type::DIRECTORY)) {
            return;
        }
        self.entries.insert(path, entry);
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, permissions: u32) {
        let mode = file_type::DIRECTORY | permissions;
        self.add(path, Entry::new(mode, Contents::Nothing));
    }

    /// Adds a regular file with these bytes.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: impl Into<Vec<u8>>) {
        let contents = Contents::Bytes(bytes.into());
        self.add(path, Entry::new(file_type::REGULAR | permissions, contents));
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        let contents = Contents::Bytes(target.into());
        self.add(path, Entry::new(file_type::SYMLINK | 0o777, contents));
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, permissions: u32, device: (u32, u32)) {
        let mut entry = Entry::new(file_type::CHARACTER | permissions, Contents::Nothing);
        entry.device = device;
        self.add(path, entry);
    }

    /// The path with `.` and `..` gone and the links above the file followed.
    fn resolved(&self, path: &str) -> String {
        let mut links = 0;
        let mut done: Vec<String> = Vec::new();
        let mut left: Vec<String> = parts(path);
        while let Some(part) = left.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(part);
            let target = match self.entries.get(&done.join("/")) {
                Some(entry) if entry.is(file_type::SYMLINK) && !left.is_empty() => &entry.contents,
                _ => continue,
            };
            links += 1;
            if let (Contents::Bytes(target), true) = (target, links <= MAX_LINKS) {
                let target = String::from_utf8_lossy(target);
                if target.starts_with('/') {
                    done.clear();
                } else {
                    done.pop();
                }
                left.extend(parts(&target));
            }
        }
        done.join("/")
    }

    /// Bytes of the files' contents.
    ///
    /// # Errors
    /// A file of the host is gone; the message names it.
    pub fn size(&self) -> io::Result<u64> {
        let mut size = 0_u64;
        for entry in self.entries.values() {
            let length = match &entry.contents {
                Contents::Nothing => 0,
                Contents::Bytes(bytes) => bytes.len() as u64,
                Contents::HostFile(from) => from.metadata().map_err(named(from))?.len(),
            };
            size = size.saturating_add(length);
        }
        Ok(size)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// A file of the host cannot be read (the message names it) or is 4 GiB or longer, or `out` fails.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        for ((path, entry), inode) in self.entries.iter().zip(1..) {
            match &entry.contents {
                Contents::Nothing => put(&mut out, inode, path, entry, 0, &mut io::empty())?,
                Contents::Bytes(bytes) => {
                    let length = bytes.len() as u64;
                    put(&mut out, inode, path, entry, length, &mut bytes.as_slice())?;
                }
                Contents::HostFile(from) => {
                    let mut file = File::open(from).map_err(named(from))?;
                    let length = file.metadata().map_err(named(from))?.len();
                    let done = put(&mut out, inode, path, entry, length, &mut file);
                    done.map_err(named(from))?;
                }
            }
        }
        let trailer = Entry::new(0, Contents::Nothing);
        put(&mut out, 0, "TRAILER!!!", &trailer, 0, &mut io::empty())?;
        out.flush()
    }
}

/// An error with the file's name.
fn named(file: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

/// The parts of a path, last one first.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split('/').rev();
    parts
        .filter(|part| !part.is_empty() && *part != ".")
        .map(str::to_owned)
        .collect()
}

fn put(
    out: &mut impl Write,
    inode: u32,
    path: &str,
    entry: &Entry,
    length: u64,
    contents: &mut impl Read,
) -> io::Result<()> {
    let too_long = |_| io::Error::other("is 4 GiB or longer, too long for an initramfs");
    let size = u32::try_from(length).map_err(too_long)?;
    // The name is counted with its NUL.
    let name_size = u32::try_from(path.len() + 1).map_err(too_long)?;
    let links = if entry.is(file_type::DIRECTORY) { 2 } else { 1 };
    let (owner, device) = (entry.owner, entry.device);
    out.write_all(b"070701")?;
    // Inode, mode, owner, group, links, time, size, device it is on, device it is, name, checksum.
    for number in [
        inode, entry.mode, owner.0, owner.1, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ] {
        write!(out, "{number:08X}")?;
    }
    out.write_all(path.as_bytes())?;
    // The header is 110 bytes; with the name, and again the contents, it ends on a multiple of 4.
    out.write_all(&[0; 4][..1 + padding(110 + u64::from(name_size))])?;
    let copied = io::copy(&mut contents.take(length), out)?;
    if copied != length {
        return Err(io::Error::other("became shorter while it was read"));
    }
    out.write_all(&[0; 4][..padding(length)])
}

fn padding(length: u64) -> usize {
    // Less than 4.
    usize::try_from(length.next_multiple_of(4) - length).unwrap_or(0)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What an archive has: path, mode and contents of each file.
    pub fn parsed(mut archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut files = BTreeMap::new();
        let whole = archive.len();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * index..][..8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&archive[110..110 + name_size - 1]).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!((whole - archive.len()) % 4, 0);
                return files;
            }
            let contents = archive[start..start + size].to_vec();
            let mode = u32::try_from(mode).unwrap();
            assert!(files.insert(name.to_owned(), (mode, contents)).is_none());
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
    }

    fn written(tree: &Tree) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = Vec::new();
        tree.write(&mut archive).unwrap();
        parsed(&archive)
    }

    #[test]
    fn an_archive_has_what_was_added() {
        let host = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(host.path(), "of the host").unwrap();
        let mut tree = Tree::default();
        tree.file("/etc/motd", 0o600, "hello");
        tree.symlink("bin/sh", "busybox");
        tree.character_device("/dev/console", 0o600, (5, 1));
        let contents = Contents::HostFile(host.path().into());
        tree.add("a/b/c", Entry::new(file_type::REGULAR | 0o755, contents));
        // What is a directory stays one.
        tree.file("etc", 0o600, "x");
        let files = written(&tree);
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        let expected = [
            "a",
            "a/b",
            "a/b/c",
            "bin",
            "bin/sh",
            "dev",
            "dev/console",
            "etc",
            "etc/motd",
        ];
        assert_eq!(names, expected);
        assert_eq!(files["etc/motd"], (0o100_600, b"hello".to_vec()));
        assert_eq!(files["bin/sh"], (0o120_777, b"busybox".to_vec()));
        assert_eq!(files["a/b/c"], (0o100_755, b"of the host".to_vec()));
        assert_eq!(files["a/b"].0, 0o040_755);
        assert_eq!(files["dev/console"].0, 0o020_600);
    }

    #[test]
    fn links_above_a_file_are_followed() {
        let mut tree = Tree::default();
        tree.symlink("bin", "usr/bin");
        tree.symlink("usr/lib", "/lib64");
        tree.symlink("loop", "loop");
        tree.file("/bin/x", 0o755, "x");
        tree.file("bin/../../usr/./lib/y", 0o755, "y");
        tree.file("loop/z", 0o755, "z");
        let files = written(&tree);
        assert!(files.contains_key("usr/bin/x") && files.contains_key("lib64/y"));
        assert_eq!(files["bin"].0, 0o120_777, "{files:?}");
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let mut tree = Tree::default();
        let contents = Contents::HostFile("/nonexistent/x".into());
        tree.add("x", Entry::new(file_type::REGULAR, contents));
        let error = tree.write(io::sink()).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/x: "), "{error}");
    }
}
