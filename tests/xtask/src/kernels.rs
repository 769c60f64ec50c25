//! Debian's cloud kernels: as packaged, as plain ELF, and the modules used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::Context;
use crate::apt::Apt;
use crate::progress::Tool;

/// A kernel the tests use.
struct Kernel {
    /// Name of its folder in the kit.
    name: &'static str,
    /// Its version must start with this.
    version: &'static str,
    /// Suites that have it, the preferred first.
    suites: &'static [&'static str],
}

const KERNELS: [Kernel; 2] = [
    Kernel {
        name: "debian-6.1",
        version: "6.1.",
        suites: &["bookworm"],
    },
    Kernel {
        name: "debian-6.12",
        version: "6.12.",
        suites: &["bookworm-backports", "trixie"],
    },
];

/// Modules for the outer machine (KVM) and for guests (power button).
const MODULES: [&str; 5] = ["irqbypass", "kvm", "kvm-amd", "button", "evdev"];

/// Modules that stay as they are packaged, where berth finds them for a command: `lib/modules` beside the
/// kernel's folder: file systems, and two of which one needs the other, with all that they need.
const PACKAGED: [&str; 9] = [
    "dm-mod",
    "dm-crypt",
    "squashfs",
    "xfs",
    "btrfs",
    "libcrc32c",
    "xor",
    "raid6_pq",
    "zstd_compress",
];

/// The package whose dependency is the current cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Sees to it that each kernel is in `kit`: `NAME/{vmlinuz,vmlinux,release}`,
/// `NAME/modules/*.ko` and `lib/modules/RELEASE`, or `NAME.skipped` saying why
/// not.
///
/// # Errors
/// When not a single kernel could be had.
pub fn ensure(context: &Context, kit: &Path) -> Result<()> {
    let mut got = 0;
    for kernel in &KERNELS {
        let dir = kit.join(kernel.name);
        let skipped = kit.join(format!("{}.skipped", kernel.name));
        if is_whole(kit, &dir) {
            got += 1;
            continue;
        }
        context
            .progress
            .step(&format!("fetching the kernel {}", kernel.name));
        match fetch(context, kernel, &dir) {
            Ok(()) => {
                got += 1;
                let _ = fs::remove_file(&skipped);
            }
            Err(error) => {
                let why = format!("{error:#}");
                let why = why.lines().next().unwrap_or_default();
                context
                    .progress
                    .step(&format!("skipped: kernel {}: {error:#}", kernel.name));
                fs::write(&skipped, why)?;
            }
        }
    }
    if got == 0 {
        bail!("no guest kernel could be fetched; see above");
    }
    Ok(())
}

fn is_whole(kit: &Path, dir: &Path) -> bool {
    let release = fs::read_to_string(dir.join("release")).unwrap_or_default();
    let modules = kit.join("lib/modules").join(&release);
    let has = |name: &str| matches!(find_packaged(&modules, name), Ok(Some(_)));
    let packaged = packaged(&modules).unwrap_or_default();
    !release.is_empty() && !packaged.is_empty() && packaged.iter().all(|name| has(name))
}

/// Folder of the newest kernel in `kit`.
///
/// # Errors
/// When there is none.
pub fn newest(kit: &Path) -> Result<PathBuf> {
    KERNELS
        .iter()
        .rev()
        .map(|kernel| kit.join(kernel.name))
        .find(|dir| dir.join("release").is_file())
        .context("the kit has no kernel")
}

fn fetch(context: &Context, kernel: &Kernel, dir: &Path) -> Result<()> {
    let mut last = anyhow!("no suite has it");
    for suite in kernel.suites {
        match fetch_from(context, kernel, suite, dir) {
            Ok(()) => return Ok(()),
            Err(error) => last = error.context(format!("from {suite}")),
        }
    }
    Err(last)
}

fn fetch_from(context: &Context, kernel: &Kernel, suite: &str, dir: &Path) -> Result<()> {
    let apt = Apt::new(&context.cache().join("apt"), suite)?;
    let prefix = format!("linux-image-{}", kernel.version);
    let package = apt.dependency(META_PACKAGE, &prefix)?;
    let unpacked = harness::scratch()?;
    apt.unpack(&package, unpacked.path())?;
    let release = package.trim_start_matches("linux-image-");

    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir.join("modules"))?;
    let image = unpacked.path().join(format!("boot/vmlinuz-{release}"));
    fs::copy(&image, dir.join("vmlinuz"))?;
    extract_elf(&image, &dir.join("vmlinux"))?;
    let modules = unpacked.path().join("lib/modules").join(release);
    for module in MODULES {
        copy_module(&modules, module, &dir.join("modules"))?;
    }
    let kit = dir.parent().context("the kit is nowhere")?;
    pack_modules(&modules, &kit.join("lib/modules").join(release))?;
    // Written last: it marks the folder as complete.
    fs::write(dir.join("release"), release)?;
    context
        .progress
        .step(&format!("{} is {release}", kernel.name));
    Ok(())
}

/// Keeps some modules as packaged, and the list of those that are built in.
fn pack_modules(modules: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into.join("kernel"))?;
    for module in packaged(modules)? {
        let found = find_packaged(modules, module)?;
        let found = found.with_context(|| format!("the package has no module {module}"))?;
        let name = found.file_name().context("a file without a name")?;
        fs::copy(&found, into.join("kernel").join(name))?;
    }
    let list = "modules.builtin";
    fs::copy(modules.join(list), into.join(list))?;
    Ok(())
}

/// Those of [`PACKAGED`] that this kernel does not have built in.
fn packaged(modules: &Path) -> Result<Vec<&'static str>> {
    let built_in = fs::read_to_string(modules.join("modules.builtin"))?;
    let is_built_in = |name: &str| {
        let file = format!("/{name}.ko");
        built_in.lines().any(|line| line.ends_with(&file))
    };
    let mut packaged = PACKAGED.to_vec();
    packaged.retain(|name| !is_built_in(name));
    Ok(packaged)
}

fn find_packaged(modules: &Path, name: &str) -> Result<Option<PathBuf>> {
    let files = ["ko", "ko.xz"].map(|ending| format!("{name}.{ending}"));
    let mut found = files.iter().map(|file| find_file(modules, file));
    found.find_map(Result::transpose).transpose()
}

fn copy_module(modules: &Path, name: &str, into: &Path) -> Result<()> {
    let plain = into.join(format!("{name}.ko"));
    if let Some(found) = find_file(modules, &format!("{name}.ko"))? {
        fs::copy(found, plain)?;
        return Ok(());
    }
    let packed = find_file(modules, &format!("{name}.ko.xz"))?
        .with_context(|| format!("the kernel package has no module {name}"))?;
    let copy = into.join(format!("{name}.ko.xz"));
    fs::copy(packed, &copy)?;
    Tool::new("xz", &["-d", "-f"]).path(&copy).run()?;
    Ok(())
}

fn find_file(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_file(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Unpacks the ELF inside a bzImage. The boot protocol's `payload_offset`
/// counts from the protected-mode code, which follows the setup sectors; the
/// payload ends with the unpacked size in four bytes.
fn extract_elf(image: &Path, elf: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let payload = payload(&bytes).context("not a bzImage with a payload")?;
    let packed = elf.with_extension("packed");
    let (tool, ending) = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "lz4"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zst"),
        [0xfd, b'7', b'z', ..] => ("xz", "xz"),
        _ => bail!("the payload is neither lz4, zstd nor xz"),
    };
    let packed = packed.with_extension(ending);
    fs::write(&packed, payload)?;
    let script = r#"exec "$0" -d -c "$1" > "$2""#;
    Tool::new("sh", &["-c", script, tool])
        .path(&packed)
        .path(elf)
        .run()?;
    fs::remove_file(&packed)?;
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open(elf)?, &mut magic)?;
    if magic != *b"\x7fELF" {
        bail!("the unpacked kernel is no ELF");
    }
    Ok(())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // Zero stands for four, says the protocol.
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(setup_sectors: u8) -> Vec<u8> {
        let mut image = vec![0; 8192];
        image[0x1f1] = setup_sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
        image
    }

    #[test]
    fn the_payload_follows_the_setup_sectors_without_its_size() {
        let mut two = image(2);
        two[3 * 512 + 16..3 * 512 + 20].copy_from_slice(b"data");
        assert_eq!(payload(&two).unwrap(), b"data");
        let mut none = image(0);
        none[5 * 512 + 16..5 * 512 + 20].copy_from_slice(b"four");
        assert_eq!(payload(&none).unwrap(), b"four");
    }

    #[test]
    fn a_wrong_header_has_no_payload() {
        assert_eq!(payload(&[0; 100]), None);
        let mut far = image(2);
        far[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&far), None);
        let mut short = image(2);
        short[0x24c..0x250].copy_from_slice(&2u32.to_le_bytes());
        assert_eq!(payload(&short), None);
    }
}
