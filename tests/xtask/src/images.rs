//! The kit: kernels, initramfs archives and disk images for Linux guests,
//! and the image that carries all of it into the outer machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use harness::Tree;

use crate::progress::Tool;
use crate::{Context, kernels, packages, roots};

/// Raised when what the images hold changes without a change of their inputs.
const FORMAT: u32 = 3;

/// What QEMU loads for a guest with a kernel, an NVMe device and serial ports, on a PC and on microvm.
const FIRMWARE: [&str; 4] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
];

/// The root file system's image. The tree takes about 12 MiB.
const ROOT_IMAGE_SIZE: &str = "48M";

/// Makes what is missing or out of date, and returns the kit's folder.
///
/// # Errors
/// When a package, a kernel or a tool is not to be had; the message says which.
pub fn prepare(context: &Context) -> Result<PathBuf> {
    packages::ensure(context)?;
    let kit = context.cache().join("kit");
    fs::create_dir_all(&kit)?;
    kernels::ensure(context, &kit)?;
    let inputs = Inputs::find(context, &kit)?;
    let stamp = context.cache().join("kit.stamp");
    let key = inputs.key()?;
    let image = context.cache().join("kit.img");
    if fs::read_to_string(&stamp).is_ok_and(|old| old == key) && image.is_file() {
        return Ok(kit);
    }
    context.progress.step("building the guest images");
    inputs.build(&kit)?;
    pack(&kit, &image)?;
    fs::write(&stamp, key)?;
    context.progress.step("guest images are ready");
    Ok(kit)
}

/// Copies a guest for people into `folder`: `bzImage`, `initrd.img` and `rootfs.img`. The last one is
/// left as it is if it is there, for a guest may have written to it.
///
/// # Errors
/// When there is no kit, or the folder cannot be written to.
pub fn guest(context: &Context, folder: &Path) -> Result<()> {
    let kit = prepare(context)?;
    let kernel = kernels::newest(&kit)?;
    fs::create_dir_all(folder)?;
    for (name, from) in [
        ("bzImage", kernel.join("vmlinuz")),
        ("initrd.img", kit.join("full.cpio")),
        ("rootfs.img", kit.join("root.img")),
    ] {
        let to = folder.join(name);
        if name == "rootfs.img" && to.exists() {
            println!("{}: is there already, and stays as it is", to.display());
            continue;
        }
        fs::copy(&from, &to).with_context(|| to.display().to_string())?;
        println!("{}", to.display());
    }
    Ok(())
}

/// All that the images are made of.
struct Inputs {
    busybox: PathBuf,
    fio: PathBuf,
    nvme: PathBuf,
    mke2fs: PathBuf,
    e2fsck: PathBuf,
    /// For guests on QEMU, to compare with.
    qemu: PathBuf,
    /// `resources/fio`
    jobs: PathBuf,
    /// `resources/guest`
    scripts: PathBuf,
    /// Release names with their folder of modules.
    kernels: Vec<(String, PathBuf)>,
}

impl Inputs {
    fn find(context: &Context, kit: &Path) -> Result<Self> {
        let mut kernels = Vec::new();
        for entry in fs::read_dir(kit)? {
            let dir = entry?.path();
            if let Ok(release) = fs::read_to_string(dir.join("release")) {
                kernels.push((release, dir.join("modules")));
            }
        }
        kernels.sort();
        Ok(Self {
            busybox: packages::program("busybox")?,
            fio: packages::program("fio")?,
            nvme: packages::program("nvme")?,
            mke2fs: packages::program("mke2fs")?,
            e2fsck: packages::program("e2fsck")?,
            qemu: packages::program("qemu-system-x86_64")?,
            jobs: context.root.join("resources/fio"),
            scripts: context.root.join("resources/guest"),
            kernels,
        })
    }

    /// A text that changes when an input does.
    fn key(&self) -> Result<String> {
        let programs = [
            &self.busybox,
            &self.fio,
            &self.nvme,
            &self.mke2fs,
            &self.e2fsck,
            &self.qemu,
        ];
        let mut files: Vec<PathBuf> = programs.into_iter().cloned().collect();
        files.extend(FIRMWARE.map(PathBuf::from));
        files.sort();
        let mut key = format!("format {FORMAT}\n");
        for file in files {
            let data = fs::metadata(&file)?;
            let line = format!(
                "{} {} {}.{}\n",
                file.display(),
                data.len(),
                data.mtime(),
                data.mtime_nsec()
            );
            key.push_str(&line);
        }
        // By what is in them: another checkout of the same has the same images.
        for folder in [&self.scripts, &self.jobs] {
            let mut files = Vec::new();
            list_files(folder, &mut files)?;
            files.sort();
            for file in files {
                let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                let name = file.strip_prefix(folder).unwrap_or(&file).display();
                key.push_str(&format!("{name}\n{text}\n"));
            }
        }
        for (release, _) in &self.kernels {
            key.push_str(&format!("kernel {release}\n"));
        }
        Ok(key)
    }

    fn build(&self, kit: &Path) -> Result<()> {
        let mut small = self.base()?;
        small
            .program("usr/sbin/nvme", &self.nvme)
            .context("nvme-cli")?;
        small.write_cpio(&kit.join("small.cpio"))?;

        let mut full = small.clone();
        full.program("usr/bin/fio", &self.fio).context("fio")?;
        // busybox has no file system with a journal.
        full.program("usr/sbin/mkfs.ext4", &self.mke2fs)
            .context("mke2fs")?;
        full.program("usr/sbin/e2fsck", &self.e2fsck)
            .context("e2fsck")?;
        full.write_cpio(&kit.join("full.cpio"))?;

        make_root_image(&small, &kit.join("root.img"))?;
        fs::copy(&self.busybox, kit.join("busybox"))?;
        roots::make(&self.busybox, kit)?;
        self.build_qemu(&kit.join("qemu"))
    }

    /// QEMU as a folder of its own, with its libraries and firmware.
    fn build_qemu(&self, folder: &Path) -> Result<()> {
        let mut tree = Tree::new();
        tree.copy("qemu-system-x86_64", 0o755, &self.qemu);
        for library in harness::tree::libraries(&self.qemu)? {
            tree.copy(&format!("lib/{}", name(&library)?), 0o755, &library);
        }
        for file in FIRMWARE.map(Path::new) {
            tree.copy(&format!("firmware/{}", name(file)?), 0o644, file);
        }
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir(folder)?;
        Ok(tree.write_folder(folder)?)
    }

    fn base(&self) -> Result<Tree> {
        let mut tree = Tree::new();
        for folder in ["dev", "proc", "sys", "tmp", "run", "mnt", "root", "sbin"] {
            tree.folder(folder);
        }
        // The kernel opens it before /init mounts devtmpfs.
        tree.char_device("dev/console", 5, 1);
        tree.busybox(&self.busybox)?;
        tree.copy("init", 0o755, &self.scripts.join("init"));
        tree.link("sbin/init", "../init");
        tree.copy("lib/berth.sh", 0o644, &self.scripts.join("lib.sh"));
        tree.scripts("tasks", &self.scripts.join("tasks"))?;
        tree.scripts("fio", &self.jobs)?;
        for (release, modules) in &self.kernels {
            for name in ["button", "evdev"] {
                let path = format!("lib/modules/{release}/{name}.ko");
                tree.copy(&path, 0o644, &modules.join(format!("{name}.ko")));
            }
        }
        Ok(tree)
    }
}

fn name(path: &Path) -> Result<std::borrow::Cow<'_, str>> {
    let name = path.file_name().context("a file without a name")?;
    Ok(name.to_string_lossy())
}

fn make_root_image(tree: &Tree, image: &Path) -> Result<()> {
    let folder = harness::scratch()?;
    // mke2fs gives the root folder the mode of this one.
    fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    tree.write_folder(folder.path())?;
    make_ext4(folder.path(), image, ROOT_IMAGE_SIZE)
}

/// Packs the kit for the outer machine, with room for the file system itself.
fn pack(kit: &Path, image: &Path) -> Result<()> {
    let mut files = Vec::new();
    list_files(kit, &mut files)?;
    let mut bytes = 0;
    for file in files {
        bytes += fs::metadata(file)?.len();
    }
    let mebibytes = bytes.div_ceil(1 << 20) * 11 / 10 + 32;
    make_ext4(kit, image, &format!("{mebibytes}M"))
}

fn make_ext4(from: &Path, image: &Path, size: &str) -> Result<()> {
    if image.exists() {
        fs::remove_file(image)?;
    }
    let from = from.display().to_string();
    let options = ["-q", "-F", "-t", "ext4", "-L", "berth", "-d", &from];
    let image = image.display().to_string();
    let mut args: Vec<&str> = options.to_vec();
    args.extend([image.as_str(), size]);
    Tool::new("mke2fs", &args).seconds(120).run()?;
    Ok(())
}

fn list_files(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), into)?;
        } else {
            into.push(entry.path());
        }
    }
    Ok(())
}
