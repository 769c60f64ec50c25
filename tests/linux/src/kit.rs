//! The kit that `cargo xtask fetch` makes: kernels, initramfs archives, images.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Which of Debian's cloud kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Debian 12's.
    V6_1,
    /// Debian 13's, also in Debian 12's backports.
    V6_12,
    /// The newest there is.
    Newest,
}

/// In which form the kernel is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As packaged.
    BzImage,
    /// The ELF inside, entered through PVH.
    Elf,
}

/// A scenario cannot run here, and why. Not a failure.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// The kit's folder.
#[derive(Debug)]
pub struct Kit {
    dir: PathBuf,
}

impl Kit {
    /// Opens the kit in `dir`, or beside this program's profile folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(dir: Option<&Path>) -> Result<Self> {
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => std::env::current_exe()?
                .ancestors()
                .nth(2)
                .unwrap_or(Path::new("target"))
                .join("guest/kit"),
        };
        if !dir.join("small.cpio").is_file() {
            bail!("{}: no kit; `cargo xtask fetch` makes it", dir.display());
        }
        Ok(Self { dir })
    }

    /// A kernel to boot.
    ///
    /// # Errors
    /// [`Skipped`] when it could not be fetched.
    pub fn kernel(&self, version: Version, form: Form) -> Result<PathBuf> {
        let file = match form {
            Form::BzImage => "vmlinuz",
            Form::Elf => "vmlinux",
        };
        Ok(self.kernel_dir(version)?.join(file))
    }

    /// Folder of a kernel: `vmlinuz`, `vmlinux`, `release`, `modules/`.
    ///
    /// # Errors
    /// [`Skipped`] when it could not be fetched.
    pub fn kernel_dir(&self, version: Version) -> Result<PathBuf> {
        let names: &[&str] = match version {
            Version::V6_1 => &["debian-6.1"],
            Version::V6_12 => &["debian-6.12"],
            Version::Newest => &["debian-6.12", "debian-6.1"],
        };
        let found = names
            .iter()
            .map(|name| self.dir.join(name))
            .find(|dir| dir.join("release").is_file());
        found.ok_or_else(|| {
            let note = self.dir.join(format!("{}.skipped", names[0]));
            let why = std::fs::read_to_string(note).unwrap_or_default();
            Skipped(format!("no kernel {}: {why}", names[0])).into()
        })
    }

    /// A file of the kit by name: `small.cpio` (busybox, nvme-cli),
    /// `full.cpio` (fio and e2fsprogs too), `root.img`, `busybox`, and the folder
    /// `qemu` (`qemu-system-x86_64`, `lib/`, `firmware/`).
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The image of the whole kit, for the outer machine.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.with_extension("img")
    }
}
