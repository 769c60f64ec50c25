//! Which kernel a command runs on where none is given, and which version a kernel has.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where the setup header has the offset of the version, less 0x200 (Linux
/// Documentation/arch/x86/boot.rst, `kernel_version`).
const VERSION_POINTER: u64 = 0x20e;
/// Where "HdrS" is in a bzImage.
const MAGIC: u64 = 0x202;

/// The host's own kernel, else the newest one in `/boot`.
///
/// # Errors
/// There is none; says what was looked for and what to do.
pub fn of_host() -> Result<PathBuf, String> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    found_in(Path::new("/boot"), Path::new("/lib/modules"), &release)
}

fn found_in(boot: &Path, modules: &Path, release: &str) -> Result<PathBuf, String> {
    let own = boot.join(format!("vmlinuz-{release}"));
    // Where distributions without a /boot of that kind have it.
    let beside_modules = modules.join(release).join("vmlinuz");
    let unreadable = |path: &Path| path.exists() && File::open(path).is_err();
    for path in [&own, &beside_modules] {
        if path.is_file() && !unreadable(path) {
            return Ok(path.clone());
        }
    }
    let entries = fs::read_dir(boot).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("vmlinuz-")?;
            Some((version.to_owned(), entry.path()))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    found.sort_by(|a, b| compare(&a.0, &b.0));
    if let Some((_, path)) = found.iter().rev().find(|(_, path)| !unreadable(path)) {
        return Ok(path.clone());
    }
    Err(match found.last() {
        Some((_, path)) => format!(
            "is missing, and {} cannot be read by this user; copy it as root, or give another \
             kernel, --kernel FILE",
            path.display()
        ),
        None => format!(
            "is missing, and this host has no kernel of its own: neither {} nor another {}; give \
             one, --kernel FILE (\"apt-get download\" of a linux-image package and \"dpkg-deb -x\" \
             get one without root)",
            own.display(),
            boot.join("vmlinuz-*").display()
        ),
    })
}

/// Compares versions: numbers as numbers, the rest as text.
fn compare(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(u64, String)> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, behind) = rest.split_at(digits);
            let end = behind.find(|c: char| c.is_ascii_digit());
            let (word, behind) = behind.split_at(end.unwrap_or(behind.len()));
            parts.push((number.parse().unwrap_or(u64::MAX), word.to_owned()));
            rest = behind;
        }
        parts
    };
    parts(a).cmp(&parts(b))
}

/// The version of a bzImage, which is also the name of its folder of modules; nothing for other files.
pub fn version(kernel: &Path) -> Option<String> {
    let file = File::open(kernel).ok()?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, MAGIC).ok()?;
    if magic != *b"HdrS" {
        return None;
    }
    let mut pointer = [0; 2];
    file.read_exact_at(&mut pointer, VERSION_POINTER).ok()?;
    let offset = u64::from(u16::from_le_bytes(pointer)) + 0x200;
    let mut text = [0; 256];
    let count = file.read_at(&mut text, offset).ok()?;
    let text = text[..count].split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    let version = text.split_whitespace().next()?;
    // It becomes part of a path.
    (!version.contains('/') && !version.starts_with('.')).then(|| version.to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// As much of a bzImage as tells its version.
    pub fn bzimage(version: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        image
    }

    #[test]
    fn the_hosts_own_kernel_is_preferred_then_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path().join("boot"), dir.path().join("modules"));
        let none = found_in(&boot, &modules, "6.1.0-9").unwrap_err();
        assert!(none.contains("boot/vmlinuz-6.1.0-9 nor another"), "{none}");
        fs::create_dir(&boot).unwrap();
        for version in ["6.1.0-9", "6.1.0-10", "5.99.1", "6.1.0-9-old"] {
            fs::write(boot.join(format!("vmlinuz-{version}")), "x").unwrap();
        }
        let found = |release| found_in(&boot, &modules, release).unwrap();
        assert_eq!(found("6.1.0-9"), boot.join("vmlinuz-6.1.0-9"));
        assert_eq!(found("7.0"), boot.join("vmlinuz-6.1.0-10"));
        fs::create_dir_all(modules.join("7.0")).unwrap();
        fs::write(modules.join("7.0/vmlinuz"), "x").unwrap();
        assert_eq!(found("7.0"), modules.join("7.0/vmlinuz"));
    }

    #[test]
    fn a_bzimage_tells_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        for (text, expected) in [
            (
                "6.1.0-56-cloud-amd64 (debian) #1 SMP",
                Some("6.1.0-56-cloud-amd64"),
            ),
            ("../../etc x", None),
            ("", None),
        ] {
            fs::write(&path, bzimage(text)).unwrap();
            assert_eq!(version(&path).as_deref(), expected);
        }
        fs::write(&path, b"\x7fELF").unwrap();
        assert_eq!(version(&path), None);
    }
}
