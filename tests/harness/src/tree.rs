//! A file tree for a guest, written as an initramfs or into a folder.
//!
//! The initramfs is an uncompressed cpio archive in the kernel's "newc" form
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Everything
//! in it belongs to root, whoever builds it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Type bits of a mode, from `stat.h`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// A file tree in the making. Paths are relative to its root (`bin/sh`), and
/// the folders above each are made by themselves.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    /// Sorted, so that a folder comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Folder,
    Bytes { mode: u32, bytes: Vec<u8> },
    Copy { mode: u32, from: PathBuf },
    Link(String),
    CharDevice { major: u32, minor: u32 },
}

impl Tree {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        self.insert(path, Entry::Folder);
    }

    /// Adds a file with these bytes; `mode` holds the permission bits.
    pub fn bytes(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.insert(path, Entry::Bytes { mode, bytes });
    }

    /// Adds a copy of the host's file `from`, read when the tree is written.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) {
        let from = from.to_owned();
        self.insert(path, Entry::Copy { mode, from });
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Entry::Link(target.to_owned()));
    }

    /// Adds a character device. Only an initramfs can hold it: writing to a
    /// folder leaves it out, for making one there takes root.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Entry::CharDevice { major, minor });
    }

    /// Adds every file of the host's folder `from`, executable, under `path`.
    ///
    /// # Errors
    /// Those of reading the folder.
    pub fn scripts(&mut self, path: &str, from: &Path) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                self.copy(&format!("{path}/{name}"), 0o755, &entry.path());
            }
        }
        Ok(())
    }

    /// Adds the static busybox `from` as `bin/busybox`, with a link for each
    /// of its applets.
    ///
    /// # Errors
    /// When it does not run on this host.
    pub fn busybox(&mut self, from: &Path) -> io::Result<()> {
        self.copy("bin/busybox", 0o755, from);
        for applet in output_of(Command::new(from).arg("--list"))?.lines() {
            if applet != "busybox" {
                self.link(&format!("bin/{applet}"), "busybox");
            }
        }
        Ok(())
    }

    /// Adds the host's program `from` as `path`, with the dynamic linker and
    /// the libraries it loads, at the places where it looks for them.
    ///
    /// # Errors
    /// When `ldd` fails on it, or a library is not found.
    pub fn program(&mut self, path: &str, from: &Path) -> io::Result<()> {
        self.copy(path, 0o755, from);
        for library in libraries(from)? {
            let inside = library.to_string_lossy();
            let inside = inside.trim_start_matches('/').to_owned();
            self.copy(&inside, 0o755, &library);
        }
        Ok(())
    }

    /// Writes the tree as an initramfs to `path`.
    ///
    /// # Errors
    /// Those of reading the copied files and of writing.
    pub fn write_cpio(&self, path: &Path) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, fs::File::create(path)?);
        let mut inode = 0;
        for (name, entry) in &self.entries {
            inode += 1;
            let (mode, device, bytes) = match entry {
                Entry::Folder => (DIRECTORY | 0o755, (0, 0), Vec::new()),
                Entry::Bytes { mode, bytes } => (REGULAR | mode, (0, 0), bytes.clone()),
                Entry::Copy { mode, from } => (REGULAR | mode, (0, 0), read(from)?),
                Entry::Link(target) => (SYMLINK | 0o777, (0, 0), target.clone().into_bytes()),
                Entry::CharDevice { major, minor } => {
                    (CHARACTER | 0o600, (*major, *minor), Vec::new())
                }
            };
            write_entry(&mut out, name, inode, mode, device, &bytes)?;
        }
        write_entry(&mut out, "TRAILER!!!", 0, 0, (0, 0), &[])?;
        out.flush()
    }

    /// Writes the tree into the existing folder `root`.
    ///
    /// # Errors
    /// Those of reading the copied files and of writing.
    pub fn write_folder(&self, root: &Path) -> io::Result<()> {
        for (name, entry) in &self.entries {
            let path = root.join(name);
            match entry {
                Entry::Folder => fs::create_dir_all(&path)?,
                Entry::Bytes { mode, bytes } => write_file(&path, *mode, bytes)?,
                Entry::Copy { mode, from } => write_file(&path, *mode, &read(from)?)?,
                Entry::Link(target) => symlink(target, &path)?,
                Entry::CharDevice { .. } => {}
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        let mut above = String::new();
        for part in path.split('/') {
            if !above.is_empty() {
                self.entries.entry(above.clone()).or_insert(Entry::Folder);
                above.push('/');
            }
            above.push_str(part);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// The libraries that a host's program loads, dynamic linker included; none
/// for a static one.
///
/// # Errors
/// When `ldd` cannot be run, or a library is missing.
pub fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        if message.contains("not a dynamic") || stdout.contains("not a dynamic") {
            return Ok(Vec::new());
        }
        return Err(io::Error::other(format!(
            "ldd {}: {}",
            program.display(),
            message.trim()
        )));
    }
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
}

/// Lines are `name => /path (0x…)`, `/path (0x…)`, `name => not found`,
/// `linux-vdso.so.1 (0x…)` or `statically linked`.
fn parse_ldd(text: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("not found") {
            return Err(io::Error::new(io::ErrorKind::NotFound, line.to_owned()));
        }
        let path = line.split(" => ").last().unwrap_or(line);
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

fn output_of(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(format!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn write_file(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn write_entry(
    out: &mut impl Write,
    name: &str,
    inode: u32,
    mode: u32,
    (major, minor): (u32, u32),
    bytes: &[u8],
) -> io::Result<()> {
    let length = field(bytes.len())?;
    // The name is counted with its terminating zero.
    let name_length = field(name.len() + 1)?;
    let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let header = [
        inode,
        mode,
        0,
        0,
        links,
        0,
        length,
        0,
        0,
        major,
        minor,
        name_length,
        0,
    ];
    out.write_all(b"070701")?;
    for number in header {
        write!(out, "{number:08X}")?;
    }
    out.write_all(name.as_bytes())?;
    // Header (110 bytes) with name, and the bytes, each end on a multiple of 4.
    let after_name = 110 + name.len() + 1;
    out.write_all(&[0; 4][..1 + padding(after_name)])?;
    out.write_all(bytes)?;
    out.write_all(&[0; 4][..padding(bytes.len())])
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

fn field(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::other("a file of 4 GiB or more in an initramfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_is_what_cpio_reads() {
        let dir = crate::scratch().unwrap();
        let mut tree = Tree::new();
        tree.bytes("etc/motd", 0o644, "hello\n");
        tree.link("bin/sh", "busybox");
        tree.folder("dev");
        let archive = dir.path().join("x.cpio");
        tree.write_cpio(&archive).unwrap();
        let bytes = fs::read(&archive).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let order: Vec<_> = [
            "bin\0",
            "bin/sh\0",
            "dev\0",
            "etc\0",
            "etc/motd\0",
            "TRAILER!!!\0",
        ]
        .iter()
        .map(|name| text.find(name).unwrap())
        .collect();
        assert!(order.is_sorted(), "{order:?}");
        // Every header starts on a multiple of four.
        let headers: Vec<_> = text.match_indices("070701").map(|(at, _)| at % 4).collect();
        assert_eq!(headers, [0; 6]);
    }

    #[test]
    fn a_folder_gets_files_links_and_modes() {
        let dir = crate::scratch().unwrap();
        let mut tree = Tree::new();
        tree.bytes("sbin/init", 0o755, "#!/bin/sh\n");
        tree.link("init", "sbin/init");
        tree.char_device("dev/console", 5, 1);
        tree.write_folder(dir.path()).unwrap();
        let init = dir.path().join("init");
        assert_eq!(fs::read_to_string(&init).unwrap(), "#!/bin/sh\n");
        let mode = fs::metadata(&init).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(dir.path().join("dev").is_dir());
    }

    #[test]
    fn ldd_lines_are_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found = parse_ldd(text).unwrap();
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(
            parse_ldd("\tstatically linked\n").unwrap(),
            [] as [PathBuf; 0]
        );
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn a_dynamic_program_brings_its_linker() {
        let exe = std::env::current_exe().unwrap();
        let found = libraries(&exe).unwrap();
        assert!(
            found
                .iter()
                .any(|path| path.to_string_lossy().contains("ld-linux")),
            "{found:?}"
        );
    }
}
