//! Kernel modules of the host's files: where they are, what they depend on, unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::elf::Elf;

/// Longer files are no modules.
const MAX_MODULE: u64 = 256 << 20;
/// Memory to unpack an xz file, in KiB; the kernel's own limit is far lower.
const XZ_MEMORY: u32 = 256 << 10;

/// Why a module cannot be brought along.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The kernel does not tell its version.
    #[error(
        "{} does not tell its version (a bzImage does), so that its modules cannot be found",
        .0.display()
    )]
    NoVersion(PathBuf),
    /// No folder of modules.
    #[error("no modules of {version}: looked for {}", places(.looked))]
    NoTree {
        /// The kernel's version.
        version: String,
        /// Where they could have been.
        looked: Vec<PathBuf>,
    },
    /// No such module.
    #[error("{} has no module {name}{}", tree.display(), needed_by(.by))]
    NoModule {
        /// The folder of modules.
        tree: PathBuf,
        /// The module.
        name: String,
        /// Who depends on it.
        by: Option<String>,
    },
    /// A file cannot be read or unpacked.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

fn places(looked: &[PathBuf]) -> String {
    let looked: Vec<_> = looked
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    looked.join(", ")
}

fn needed_by(by: &Option<String>) -> String {
    by.as_ref()
        .map_or_else(String::new, |by| format!(", which {by} needs"))
}

/// A module that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file, unpacked.
    pub bytes: Vec<u8>,
}

/// The modules of one version of Linux.
#[derive(Debug)]
pub struct ModuleTree {
    path: PathBuf,
    /// By name.
    files: BTreeMap<String, PathBuf>,
    /// Names of what is built in; nothing where that is not said.
    built_in: Option<BTreeSet<String>>,
}

/// A module is loaded by a name with underscores, whatever its file is called.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The module that a path names: that of its file up to `.ko`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, packing) = file.rsplit_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst" | ".gz").then(|| normal(name))
}

impl ModuleTree {
    /// The modules of `kernel`: beside it as in an unpacked package, else those of the host's system.
    ///
    /// # Errors
    /// There are none, or they cannot be listed.
    pub fn of_kernel(kernel: &Path) -> Result<Self, ModuleError> {
        let version = super::kernel::version(kernel)
            .ok_or_else(|| ModuleError::NoVersion(kernel.to_owned()))?;
        let absolute = std::path::absolute(kernel).unwrap_or_else(|_| kernel.to_owned());
        let above = absolute.parent().and_then(Path::parent);
        let beside = above.unwrap_or(Path::new("/"));
        let mut looked = Vec::new();
        for root in [beside, Path::new("/")] {
            for lib in ["lib/modules", "usr/lib/modules"] {
                let path = root.join(lib).join(&version);
                if path.is_dir() {
                    return Self::open(path);
                }
                if !looked.contains(&path) {
                    looked.push(path);
                }
            }
        }
        Err(ModuleError::NoTree { version, looked })
    }

    fn open(path: PathBuf) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        list(&path, &mut files).map_err(|source| ModuleError::File {
            path: path.clone(),
            source,
        })?;
        let built_in = fs::read_to_string(path.join("modules.builtin")).ok();
        let built_in = built_in.map(|text| {
            let names = text.lines().filter_map(|line| name_of(Path::new(line)));
            names.collect()
        });
        Ok(Self {
            path,
            files,
            built_in,
        })
    }

    /// Whether the kernel is known to have this module built in.
    #[must_use]
    pub fn is_built_in(&self, name: &str) -> bool {
        let names = self.built_in.as_ref();
        names.is_some_and(|names| names.contains(&normal(name)))
    }

    /// Whether the kernel is known to have this only as a module.
    #[must_use]
    pub fn must_load(&self, name: &str) -> bool {
        self.built_in.is_some() && !self.is_built_in(name) && self.has(name)
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(&normal(name))
    }

    /// These modules and what they depend on, each behind those that it needs. A name with a slash is
    /// the path of a file. What is built in is left out.
    ///
    /// # Errors
    /// One is missing or cannot be read.
    pub fn with_dependencies(&self, names: &[String]) -> Result<Vec<Module>, ModuleError> {
        let mut done = BTreeSet::new();
        let mut modules = Vec::new();
        for name in names {
            self.add(name, None, &mut done, &mut modules)?;
        }
        Ok(modules)
    }

    fn add(
        &self,
        name: &str,
        by: Option<&str>,
        done: &mut BTreeSet<String>,
        modules: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        let by_path = name.contains('/').then(|| PathBuf::from(name));
        let known = by_path.as_deref().and_then(name_of);
        let name = known.unwrap_or_else(|| normal(name));
        if by_path.is_none() && self.is_built_in(&name) || !done.insert(name.clone()) {
            return Ok(());
        }
        let file = by_path.or_else(|| self.files.get(&name).cloned());
        let file = file.ok_or_else(|| ModuleError::NoModule {
            tree: self.path.clone(),
            name: name.clone(),
            by: by.map(str::to_owned),
        })?;
        let failed = |source| ModuleError::File {
            path: file.clone(),
            source,
        };
        let bytes = unpacked(&file).map_err(failed)?;
        let needed = Dependencies::of(&bytes).map_err(failed)?;
        for soft in needed.soft {
            // An algorithm of the kernel's is by its name in a module for any processor.
            let candidates = [format!("{soft}_generic"), soft];
            if let Some(soft) = candidates.iter().find(|name| self.has(name)) {
                self.add(soft, Some(&name), done, modules)?;
            }
        }
        for needed in needed.hard {
            self.add(&needed, Some(&name), done, modules)?;
        }
        modules.push(Module { name, bytes });
        Ok(())
    }
}

fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Links lead to the sources.
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else if let Some(name) = name_of(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The modules that are to be loaded before, in a module's own words.
#[derive(Default)]
struct Dependencies {
    /// It cannot be loaded without these (`depends=`).
    hard: Vec<String>,
    /// It may ask for these later, which nobody answers in the guest (`softdep=pre:`).
    soft: Vec<String>,
}

impl Dependencies {
    fn of(module: &[u8]) -> io::Result<Self> {
        let elf = Elf::open(module).ok_or_else(|| io::Error::other("is no kernel module"))?;
        let info = elf.section(".modinfo")?.unwrap_or_default();
        let mut found = Self::default();
        for field in info.split(|byte| *byte == 0) {
            let field = String::from_utf8_lossy(field);
            if let Some(list) = field.strip_prefix("depends=") {
                let names = list.split(',').filter(|name| !name.is_empty());
                found.hard.extend(names.map(normal));
            }
            if let Some(list) = field.strip_prefix("softdep=pre:") {
                let names = list.split_whitespace();
                let names = names.take_while(|word| !word.ends_with(':'));
                found.soft.extend(names.map(normal));
            }
        }
        Ok(found)
    }
}

fn unpacked(path: &Path) -> io::Result<Vec<u8>> {
    let file = super::open_regular(path)?;
    let mut bytes = Vec::new();
    let packing = path.extension().and_then(|extension| extension.to_str());
    let mut read = |reader: &mut dyn Read| reader.take(MAX_MODULE).read_to_end(&mut bytes);
    match packing {
        Some("xz") => read(&mut lzma_rust2::XzReader::new_mem_limit(
            file, true, XZ_MEMORY,
        ))?,
        Some("gz") => read(&mut flate2::read::MultiGzDecoder::new(file))?,
        Some("zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            read(&mut decoder.map_err(io::Error::other)?)?
        }
        _ => read(&mut &file)?,
    };
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::bzimage;
    use super::*;
    use std::process::Command;

    /// An ELF file with nothing but a section `.modinfo`.
    fn module(info: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = file.len() as u64;
        file.extend(info.bytes());
        let names_at = file.len() as u64;
        file.extend(names);
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3c] = 3;
        file[0x3e] = 2;
        let parts = [
            (0, 0, 0),
            (1, info_at, info.len()),
            (10, names_at, names.len()),
        ];
        for (name, offset, length) in parts {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&u32::to_le_bytes(name));
            header[0x18..0x20].copy_from_slice(&u64::to_le_bytes(offset));
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    /// A kernel as in an unpacked package, with these modules.
    fn package(modules: &[(&str, &str)], built_in: Option<&str>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("boot/vmlinuz-1.2.3");
        let tree = dir.path().join("lib/modules/1.2.3");
        fs::create_dir_all(dir.path().join("boot")).unwrap();
        fs::create_dir_all(tree.join("kernel/drivers")).unwrap();
        fs::write(&kernel, bzimage("1.2.3 #1")).unwrap();
        for (file, info) in modules {
            fs::write(tree.join("kernel/drivers").join(file), module(info)).unwrap();
        }
        if let Some(text) = built_in {
            fs::write(tree.join("modules.builtin"), text).unwrap();
        }
        (dir, kernel)
    }

    fn names(tree: &ModuleTree, wanted: &[&str]) -> Result<Vec<String>, String> {
        let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        let modules = tree.with_dependencies(&wanted);
        let modules = modules.map_err(|error| error.to_string())?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_dir, kernel) = package(
            &[
                ("a.ko", "license=GPL\0depends=b-x,c\0"),
                ("b-x.ko", "depends=d\0name=b_x\0"),
                ("c.ko", "depends=b_x,builtin\0"),
                ("d.ko", "depends=\0"),
                ("lonely.ko", "depends=absent\0"),
            ],
            Some("kernel/fs/builtin.ko\nkernel/x/other-thing.ko\n"),
        );
        let tree = ModuleTree::of_kernel(&kernel).unwrap();
        assert_eq!(names(&tree, &["a"]).unwrap(), ["d", "b_x", "c", "a"]);
        assert_eq!(names(&tree, &["d", "b_x", "d"]).unwrap(), ["d", "b_x"]);
        assert_eq!(names(&tree, &["other-thing"]).unwrap(), [""; 0]);
        assert!(tree.must_load("c") && !tree.must_load("builtin") && !tree.must_load("absent"));
        let error = names(&tree, &["lonely"]).unwrap_err();
        assert!(
            error.ends_with("has no module absent, which lonely needs"),
            "{error}"
        );
        let error = names(&tree, &["nonsense"]).unwrap_err();
        assert!(
            error.ends_with("lib/modules/1.2.3 has no module nonsense"),
            "{error}"
        );
    }

    /// As ext4 has it, which asks for its checksum when it mounts.
    #[test]
    fn what_a_module_asks_for_later_comes_first() {
        let (_dir, kernel) = package(
            &[
                (
                    "fs.ko",
                    "depends=\0softdep=pre: crc32c absent other post: late\0",
                ),
                ("crc32c-intel.ko", "depends=\0"),
                ("crc32c_generic.ko", "depends=\0"),
                ("other.ko", "depends=\0softdep=pre: fs\0"),
                ("late.ko", "depends=\0"),
            ],
            None,
        );
        let tree = ModuleTree::of_kernel(&kernel).unwrap();
        let expected = ["crc32c_generic", "other", "fs"];
        assert_eq!(names(&tree, &["fs"]).unwrap(), expected);
    }

    #[test]
    fn a_module_can_be_a_file() {
        let (dir, kernel) = package(&[("b.ko", "depends=\0")], None);
        let own = dir.path().join("my-own.ko");
        fs::write(&own, module("depends=b\0")).unwrap();
        let tree = ModuleTree::of_kernel(&kernel).unwrap();
        assert_eq!(
            names(&tree, &[own.to_str().unwrap()]).unwrap(),
            ["b", "my_own"]
        );
        assert!(!tree.must_load("b"), "nothing is known of what is built in");
    }

    #[test]
    fn what_is_missing_is_named() {
        let (dir, kernel) = package(&[], None);
        fs::remove_dir_all(dir.path().join("lib")).unwrap();
        let error = ModuleTree::of_kernel(&kernel).unwrap_err().to_string();
        assert!(
            error.starts_with("no modules of 1.2.3: looked for /"),
            "{error}"
        );
        assert!(error.contains(", /lib/modules/1.2.3"), "{error}");
        fs::write(&kernel, "no kernel").unwrap();
        let error = ModuleTree::of_kernel(&kernel).unwrap_err().to_string();
        assert!(error.contains("does not tell its version"), "{error}");
    }

    /// With the host's own programs, as modules are packed by distributions.
    #[test]
    fn packed_modules_are_unpacked() {
        let (dir, kernel) = package(&[], None);
        let folder = dir.path().join("lib/modules/1.2.3/kernel");
        let plain = module("depends=\0");
        for (name, tool) in [("x", "xz"), ("z", "zstd"), ("g", "gzip")] {
            let path = folder.join(format!("{name}.ko"));
            fs::write(&path, &plain).unwrap();
            let mut command = Command::new(tool);
            if tool == "xz" {
                // What the kernel's own decompressor can take.
                command.args(["--check=crc32", "--lzma2=dict=1MiB"]);
            }
            match command.arg("-q").arg(&path).status() {
                Ok(status) if status.success() => {}
                other => {
                    println!("skipped: {tool}: {other:?}");
                    continue;
                }
            }
            // zstd keeps its input.
            let _ = fs::remove_file(&path);
            let tree = ModuleTree::of_kernel(&kernel).unwrap();
            let found = tree.with_dependencies(&[name.to_owned()]).unwrap();
            assert_eq!(
                found,
                [Module {
                    name: name.into(),
                    bytes: plain.clone()
                }]
            );
            let packed = tree.files[name].clone();
            fs::write(&packed, "damaged").unwrap();
            let error = tree.with_dependencies(&[name.to_owned()]).unwrap_err();
            assert!(
                error.to_string().starts_with(packed.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
