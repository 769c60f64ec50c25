//! The files that are read and written.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use harness::TempDir;

use crate::plan::Place;

/// Size of a file or backend.
const BYTES: u64 = 256 << 20;

/// Environment variable that names a folder on the disk to be measured.
const DISK: &str = "BENCH_DISK";

/// What one place has for a backend.
pub struct Image {
    /// Where it is.
    pub place: Place,
    /// The file, where it is one.
    pub path: Option<PathBuf>,
    /// Its size.
    pub bytes: u64,
    // Removed with the file.
    _folder: Option<TempDir>,
}

impl Image {
    /// Makes the file, full of bytes that are not zero.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(place: Place) -> Result<Self> {
        let root = match place {
            Place::Tmpfs => Some(PathBuf::from("/dev/shm")),
            Place::Disk => Some(std::env::var_os(DISK).map_or_else(|| ".".into(), PathBuf::from)),
            Place::Memory | Place::Null => None,
        };
        let mut image = Self {
            place,
            path: None,
            bytes: BYTES,
            _folder: None,
        };
        if let Some(root) = root {
            let folder = harness::scratch_in(&root)
                .with_context(|| format!("no folder in {}", root.display()))?;
            let path = folder.path().join("disk.img");
            fill(&path).with_context(|| path.display().to_string())?;
            image.path = Some(path);
            image._folder = Some(folder);
        }
        Ok(image)
    }
}

fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = File::create(path)?;
    let mut chunk = vec![0u8; 1 << 20];
    for (at, byte) in chunk.iter_mut().enumerate() {
        *byte = at.to_le_bytes()[0] | 1;
    }
    for _ in 0..BYTES >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(())
}
