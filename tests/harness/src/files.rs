//! Scratch folders, image files and the place of the `berth` binary.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Environment variable that names the `berth` binary to test.
pub const BERTH_BIN: &str = "BERTH_BIN";

/// The `berth` binary under test: the one `BERTH_BIN` names, else the one that
/// cargo put beside the running test (`target/PROFILE/berth`).
///
/// # Errors
/// `NotFound` naming the places looked at and how to build it.
pub fn berth_binary() -> io::Result<PathBuf> {
    if let Some(named) = std::env::var_os(BERTH_BIN) {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(not_found(&format!(
                "{BERTH_BIN}={}: there is no such file",
                path.display()
            )))
        };
    }
    let exe = std::env::current_exe()?;
    // A test binary is in target/PROFILE/deps, a plain one in target/PROFILE.
    let found = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("berth"))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        not_found(&format!(
            "no berth binary near {}: run `cargo build -p vmm` first, or set {BERTH_BIN}",
            exe.display()
        ))
    })
}

fn not_found(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, message.to_owned())
}

/// A scratch folder, removed with everything in it when dropped.
///
/// # Errors
/// Those of making a folder in the system's temporary folder.
pub fn scratch() -> io::Result<TempDir> {
    scratch_in(&std::env::temp_dir())
}

/// As [`scratch`], in a folder of choice.
///
/// # Errors
/// Those of making a folder there.
pub fn scratch_in(folder: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("berth-test-")
        .tempdir_in(folder)
}

/// Makes a sparse image file of `bytes` zero bytes and returns its path.
///
/// # Errors
/// Those of creating the file or setting its length.
pub fn image(dir: &Path, name: &str, bytes: u64) -> io::Result<PathBuf> {
    let path = dir.join(name);
    File::create(&path)?.set_len(bytes)?;
    Ok(path)
}

/// Makes an image of `bytes` bytes in which each aligned 8-byte word holds
/// its own offset, little-endian, so that a misplaced block shows.
///
/// # Errors
/// Those of writing the file.
pub fn patterned_image(dir: &Path, name: &str, bytes: u64) -> io::Result<PathBuf> {
    let path = dir.join(name);
    let file = File::create(&path)?;
    let mut out = BufWriter::with_capacity(1 << 16, &file);
    for offset in (0..bytes).step_by(8) {
        out.write_all(&offset.to_le_bytes())?;
    }
    out.flush()?;
    drop(out);
    // The last word may reach past a length that is no multiple of eight.
    file.set_len(bytes)?;
    Ok(path)
}

/// Opens a file and locks it as berth locks images that may be written, without waiting for others.
///
/// # Errors
/// `WouldBlock` while somebody else has it locked, and those of opening it for writing.
pub fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    // SAFETY: a structure of numbers: from the start of the file, to wherever it ends.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // A small constant.
    lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or(libc::c_short::MAX);
    // SAFETY: an open file, and a valid structure that the kernel only reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_file_is_locked_once() {
        let dir = scratch().unwrap();
        let path = image(dir.path(), "x.img", 512).unwrap();
        let first = lock(&path).unwrap();
        assert_eq!(lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        lock(&path).unwrap();
    }

    #[test]
    fn images_have_the_length_and_pattern_asked_for() {
        let dir = scratch().unwrap();
        let sparse = image(dir.path(), "zero.img", 1 << 20).unwrap();
        assert_eq!(std::fs::metadata(sparse).unwrap().len(), 1 << 20);

        let patterned = patterned_image(dir.path(), "pattern.img", 4099).unwrap();
        let bytes = std::fs::read(patterned).unwrap();
        assert_eq!(bytes.len(), 4099);
        assert_eq!(bytes[4088..4096], 4088u64.to_le_bytes());
    }

    #[test]
    fn a_scratch_folder_goes_when_dropped() {
        let dir = scratch().unwrap();
        let path = dir.path().to_owned();
        image(&path, "x.img", 512).unwrap();
        drop(dir);
        assert!(!path.exists());
    }
}
