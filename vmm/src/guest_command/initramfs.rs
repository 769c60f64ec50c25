//! The initramfs that a command runs in: berth itself as the first process, and either a small system
//! around the command's program or the content of a directory.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use super::asked::ask;
use super::cpio::{Contents, Entry, Tree, file_type};
use super::elf::Elf;
use super::libraries::needed_by;
use super::modules::Module;
use super::task::{HOME, INIT, Task};
use super::{Error, With, on_path, task};

/// The working directory of the command, and its home.
pub const WORKING_DIRECTORY: &str = "/root";
/// The dynamic linker of berth in the guest. Shorter than any that a program names.
const LINKER: &str = "/.berth/ld.so";
/// The libraries of berth in the guest.
pub const LIBRARIES: &str = "/.berth/lib";
/// What the dynamic linker remembers of directories beyond its usual ones.
const LINKER_CACHE: &str = "/etc/ld.so.cache";
/// Shells that are busybox, so that a script finds the same commands everywhere.
const SHELLS: [&str; 2] = ["sh", "ash"];

/// An initramfs in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    tree: Tree,
}

impl Initramfs {
    /// An initramfs with nothing but berth as its first process, and what that is to do.
    ///
    /// # Errors
    /// berth's own files cannot be read.
    pub fn new(berth: &Path) -> Result<Self, Error> {
        let mut tree = Tree::default();
        for directory in ["dev", "proc", "sys", "run"] {
            tree.directory(directory, 0o755);
        }
        tree.directory("tmp", 0o1777);
        tree.directory(WORKING_DIRECTORY, 0o700);
        console(&mut tree);
        tree.file(INIT, 0o755, with_linker(berth)?);
        let linker = interpreter_of(berth);
        for library in needed_by(berth)? {
            let Some(name) = library.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let path = if linker.as_ref() == Some(&library) {
                LINKER.to_owned()
            } else {
                format!("{LIBRARIES}/{name}")
            };
            tree.add(&path, host_file(&library, 0o755)?);
        }
        Ok(Self { tree })
    }

    /// Says what the first process is to do, and brings its modules.
    pub fn task(&mut self, mut task: Task, modules: Vec<Module>) {
        for module in modules {
            let path = format!("{HOME}/modules/{}.ko", module.name);
            self.tree.file(&path, 0o644, module.bytes);
            task.modules.push(path);
        }
        // A structure of texts: it can be written.
        let text = serde_json::to_vec(&task).unwrap_or_default();
        self.tree.file(task::FILE, 0o600, text);
    }

    /// Adds a small system: busybox with all its applets, and what programs expect. Returns where the
    /// program of the command is in the guest.
    ///
    /// # Errors
    /// There is no busybox, the program is not there or cannot be executed, a library is missing.
    pub fn small_system(&mut self, command: &str) -> Result<String, Error> {
        let busybox = on_path("busybox").ok_or(Error::NoBusybox)?;
        let applets = applets(&busybox)?;
        let tree = &mut self.tree;
        for directory in ["etc", "mnt", "var/tmp", "usr/bin", "sbin"] {
            tree.directory(directory, 0o755);
        }
        tree.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");
        tree.file("etc/group", 0o644, "root:x:0:\n");
        tree.symlink("etc/mtab", "/proc/self/mounts");
        if Path::new(LINKER_CACHE).is_file() {
            let entry = host_file(Path::new(LINKER_CACHE), 0o644)?;
            tree.add(LINKER_CACHE, entry);
        }
        for library in needed_by(&busybox)? {
            self.host_path(&library)?;
        }
        self.tree.add("bin/busybox", host_file(&busybox, 0o755)?);
        for applet in &applets {
            self.tree.symlink(&format!("bin/{applet}"), "busybox");
        }
        let is_applet = applets.iter().any(|applet| applet == command);
        let program = match find(command) {
            _ if SHELLS.contains(&command) && is_applet => None,
            Found::Program(path) => Some(path),
            Found::NotExecutable(path) => return Err(Error::NotExecutable(path)),
            Found::Nothing if is_applet => None,
            Found::Nothing if command.contains('/') => {
                return Err(Error::NoFile(command.to_owned()));
            }
            Found::Nothing => return Err(Error::NotFound(command.to_owned())),
        };
        match program {
            Some(path) => self.program(&path),
            None => Ok(format!("/bin/{command}")),
        }
    }

    /// Adds a program of the host at its own path with everything that it needs; returns the path.
    fn program(&mut self, path: &Path) -> Result<String, Error> {
        let path = normal(&absolute(path)?);
        for file in needed_by(&path)? {
            self.host_path(&file)?;
        }
        self.host_path(&path)?;
        text(&path)
    }

    /// Adds a file of the host at its own path. Where that leads through links, the file stands at its
    /// true place, with a link at the path: programs look for things beside their true place.
    fn host_path(&mut self, path: &Path) -> Result<(), Error> {
        let path = normal(path);
        let canonical = fs::canonicalize(&path).map_err(Error::file(&path))?;
        let entry = host_file(&canonical, 0o755)?;
        self.tree.add(&text(&canonical)?, entry);
        if canonical != path {
            let target = text(&canonical)?;
            self.tree.symlink(&text(&path)?, &target);
        }
        Ok(())
    }

    /// Adds the content of a directory as the root.
    ///
    /// # Errors
    /// Something in it cannot be read.
    pub fn root(&mut self, directory: &Path) -> Result<(), Error> {
        self.directory(directory, "/", false)?;
        // Exported containers have a plain file there.
        console(&mut self.tree);
        Ok(())
    }

    /// Adds what `--with` names. Programs bring their libraries if there are none yet.
    ///
    /// # Errors
    /// It is not there or cannot be read, or a library is missing.
    pub fn with(&mut self, with: &With, libraries: bool) -> Result<(), Error> {
        let from = match fs::metadata(&with.from) {
            Ok(_) => with.from.clone(),
            // A name alone is that of a program as well.
            Err(error) => match (with.from.to_str(), &with.to) {
                (Some(name), None) if !name.contains('/') && on_path(name).is_some() => {
                    self.program(&on_path(name).unwrap_or_default())?;
                    return Ok(());
                }
                _ => return Err(Error::file(&with.from)(error)),
            },
        };
        let to = match &with.to {
            Some(to) => to.clone(),
            None => default_place(&from)?,
        };
        if from.is_dir() {
            return self.directory(&from, &to, libraries);
        }
        self.regular(&from, &to, libraries)
    }

    fn regular(&mut self, from: &Path, to: &str, libraries: bool) -> Result<(), Error> {
        let metadata = fs::metadata(from).map_err(Error::file(from))?;
        let entry = host_file(from, metadata.permissions().mode() & 0o7777)?;
        if libraries && metadata.permissions().mode() & 0o111 != 0 {
            for file in needed_by(from)? {
                self.host_path(&file)?;
            }
        }
        self.tree.add(to, entry);
        Ok(())
    }

    /// Adds all that is in a directory, links as links.
    fn directory(&mut self, from: &Path, to: &str, libraries: bool) -> Result<(), Error> {
        let failed = |error| Error::file(from)(error);
        self.tree.directory(to, 0o755);
        // Its own directories keep their permissions, so they come before what is in them.
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| Error::Name(path.clone()))?;
            let to = format!("{}/{name}", to.trim_end_matches('/'));
            let metadata = fs::symlink_metadata(&path).map_err(Error::file(&path))?;
            let file_type = metadata.file_type();
            if file_type.is_dir() {
                self.tree.add(&to, described(&metadata, Contents::Nothing));
                self.directory(&path, &to, libraries)?;
            } else if file_type.is_file() && libraries {
                self.regular(&path, &to, true)?;
            } else if file_type.is_file() {
                let contents = Contents::HostFile(path);
                self.tree.add(&to, described(&metadata, contents));
            } else if file_type.is_symlink() {
                let target = fs::read_link(&path).map_err(Error::file(&path))?;
                let contents = Contents::Bytes(text(&target)?.into_bytes());
                self.tree.add(&to, described(&metadata, contents));
            } else if !file_type.is_socket() {
                self.tree.add(&to, described(&metadata, Contents::Nothing));
            }
        }
        Ok(())
    }

    /// Bytes of the files in it.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn size(&self) -> Result<u64, Error> {
        self.tree.size().map_err(Error::Archive)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// A file cannot be read, or `out` fails.
    pub fn write(&self, out: impl io::Write) -> Result<(), Error> {
        self.tree.write(out).map_err(Error::Archive)
    }
}

/// The kernel opens it before anything is mounted.
fn console(tree: &mut Tree) {
    tree.character_device("dev/console", 0o600, (5, 1));
}

/// What the host has by the name of a command.
enum Found {
    Program(PathBuf),
    NotExecutable(PathBuf),
    Nothing,
}

fn find(command: &str) -> Found {
    if !command.contains('/') {
        return on_path(command).map_or(Found::Nothing, Found::Program);
    }
    let path = PathBuf::from(command);
    match fs::metadata(&path) {
        Err(_) => Found::Nothing,
        Ok(metadata) if super::is_executable(&metadata) => Found::Program(path),
        Ok(_) => Found::NotExecutable(path),
    }
}

/// Where a file stands in the guest if that is not said: in the working directory by its relative path,
/// or at its absolute path.
fn default_place(from: &Path) -> Result<String, Error> {
    let leaves = from.components().any(|part| part == Component::ParentDir);
    let place = match from.file_name() {
        _ if from.is_absolute() => normal(from),
        Some(name) if leaves => Path::new(WORKING_DIRECTORY).join(name),
        _ => normal(&Path::new(WORKING_DIRECTORY).join(from)),
    };
    text(&place)
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(Error::file(path))
}

/// The path without `.` and `..`, which are taken as they are written.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts
}

fn text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Error::Name(path.to_owned()))
}

fn host_file(path: &Path, permissions: u32) -> Result<Entry, Error> {
    let metadata = fs::metadata(path).map_err(Error::file(path))?;
    if !metadata.is_file() {
        return Err(Error::NotRegular(path.to_owned()));
    }
    let contents = Contents::HostFile(path.to_owned());
    Ok(Entry::new(file_type::REGULAR | permissions, contents))
}

/// A file as the host has it. What belongs to this user belongs to root in the guest, as the files of a
/// file system that was unpacked without root should.
fn described(metadata: &Metadata, contents: Contents) -> Entry {
    let own = rustix::process::geteuid().as_raw();
    let owner = if metadata.uid() == own {
        (0, 0)
    } else {
        (metadata.uid(), metadata.gid())
    };
    let device = rustix::fs::major(metadata.rdev());
    Entry {
        mode: metadata.mode(),
        owner,
        device: (device, rustix::fs::minor(metadata.rdev())),
        contents,
    }
}

fn interpreter_of(program: &Path) -> Option<PathBuf> {
    let file = fs::File::open(program).ok()?;
    let interpreter = Elf::open(&file)?.interpreter().ok()??;
    Some(interpreter.into())
}

/// berth's own file, which names the dynamic linker that it brings: the root may have none, or another.
fn with_linker(berth: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = fs::read(berth).map_err(Error::file(berth))?;
    let Some(linker) = interpreter_of(berth) else {
        return Ok(bytes);
    };
    let named = [linker.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let own = [LINKER.as_bytes(), b"\0"].concat();
    let at = bytes.windows(named.len()).position(|part| part == named);
    match at {
        Some(at) if named.len() >= own.len() => {
            bytes[at..at + own.len()].copy_from_slice(&own);
            Ok(bytes)
        }
        _ => Err(Error::Linker(linker)),
    }
}

fn applets(busybox: &Path) -> Result<Vec<String>, Error> {
    let answer = ask(Command::new(busybox).arg("--list"));
    let answer = answer.map_err(Error::file(busybox))?;
    let names = answer.out.lines().filter(|name| *name != "busybox");
    Ok(names.map(str::to_owned).collect())
}

/// The environment of the command.
pub fn environment() -> Vec<(String, String)> {
    let mut variables = BTreeMap::from([
        ("HOME".to_owned(), "/root".to_owned()),
        (
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ),
        ("USER".to_owned(), "root".to_owned()),
    ]);
    if let Ok(terminal) = std::env::var("TERM") {
        variables.insert("TERM".to_owned(), terminal);
    }
    variables.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::parsed;
    use super::*;

    type Files = BTreeMap<String, (u32, Vec<u8>)>;

    fn files(initramfs: &Initramfs) -> Files {
        let mut archive = Vec::new();
        initramfs.write(&mut archive).unwrap();
        parsed(&archive)
    }

    fn empty() -> Initramfs {
        Initramfs::new(&std::env::current_exe().unwrap()).unwrap()
    }

    /// What is at a path, through links.
    fn at<'a>(files: &'a Files, path: &str) -> &'a [u8] {
        let mut path = path.trim_start_matches('/').to_owned();
        for _ in 0..9 {
            let (mode, contents) = files.get(&path).unwrap_or_else(|| panic!("no {path}"));
            if mode & file_type::MASK != file_type::SYMLINK {
                return contents;
            }
            let target = std::str::from_utf8(contents).unwrap();
            path = if let Some(target) = target.strip_prefix('/') {
                target.to_owned()
            } else {
                let (above, _) = path.rsplit_once('/').unwrap();
                format!("{above}/{target}")
            };
        }
        panic!("links without end");
    }

    #[test]
    fn the_first_process_has_a_linker_and_libraries_of_its_own() {
        let mut initramfs = empty();
        let task = Task {
            program: Some("/bin/true".into()),
            words: vec!["true".into(), "\u{1f980} \"'\n".into()],
            environment: environment(),
            modules: Vec::new(),
            root: None,
        };
        let module = Module {
            name: "loop".into(),
            bytes: b"module".to_vec(),
        };
        initramfs.task(task.clone(), vec![module]);
        let files = files(&initramfs);
        let init = at(&files, INIT);
        let linker = Elf::open(init).unwrap().interpreter().unwrap().unwrap();
        assert_eq!(linker, LINKER);
        let own = interpreter_of(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(at(&files, LINKER), fs::read(own).unwrap());
        let is_libc = |name: &&String| name.starts_with(".berth/lib/libc.");
        assert!(
            files.keys().any(|name| is_libc(&name)),
            "{:?}",
            files.keys()
        );
        let written: Task = serde_json::from_slice(at(&files, task::FILE)).unwrap();
        assert_eq!(written.words, task.words);
        assert_eq!(written.modules, ["/.berth/modules/loop.ko"]);
        assert_eq!(at(&files, &written.modules[0]), b"module");
        assert_eq!(files["tmp"].0, 0o041_777);
        assert_eq!(files["dev/console"].0, 0o020_600);
    }

    /// A program of this test's own: the test.
    #[test]
    fn a_program_brings_what_it_needs() {
        let mut initramfs = empty();
        let this = std::env::current_exe().unwrap();
        let program = initramfs.program(&this).unwrap();
        assert_eq!(Path::new(&program), this);
        let files = files(&initramfs);
        let true_place = fs::canonicalize(&this).unwrap();
        assert_eq!(
            at(&files, true_place.to_str().unwrap()).len(),
            fs::read(&this).unwrap().len()
        );
        for library in needed_by(&this).unwrap() {
            let expected = fs::read(&library).unwrap();
            assert!(
                at(&files, library.to_str().unwrap()) == expected,
                "{library:?}"
            );
        }
    }

    #[test]
    fn the_small_system_has_the_applets_and_finds_the_program() {
        let Some(busybox) = on_path("busybox") else {
            println!("skipped: no busybox");
            return;
        };
        let mut initramfs = empty();
        assert_eq!(initramfs.small_system("sh").unwrap(), "/bin/sh");
        let files = files(&initramfs);
        assert!(at(&files, "/bin/sh") == fs::read(busybox).unwrap());
        assert_eq!(files["bin/sh"].1, b"busybox");
        let env = initramfs.small_system("env").unwrap();
        assert_eq!(Path::new(&env), normal(&on_path("env").unwrap()));
        let missing = initramfs.small_system("no-such-command").unwrap_err();
        assert_eq!(missing.status(), 127);
        assert!(
            missing
                .to_string()
                .starts_with("no-such-command: not found"),
            "{missing}"
        );
        let missing = initramfs.small_system("./no/file").unwrap_err();
        assert_eq!(missing.status(), 127);
        assert!(missing.to_string().starts_with("./no/file: no such file"));
        let plain = initramfs.small_system("/etc/passwd").unwrap_err();
        assert_eq!(plain.status(), 126);
        assert!(plain.to_string().starts_with("/etc/passwd: "), "{plain}");
    }

    #[test]
    fn files_stand_where_they_are_expected() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("tree");
        fs::create_dir_all(base.join("sub")).unwrap();
        fs::write(base.join("sub/data"), "data").unwrap();
        std::os::unix::fs::symlink("sub/data", base.join("link")).unwrap();
        let mut initramfs = empty();
        let mut with = |from: &Path, to: Option<&str>| {
            let with = With {
                from: from.to_owned(),
                to: to.map(str::to_owned),
            };
            initramfs.with(&with, true)
        };
        with(&base, Some("/data")).unwrap();
        with(&base.join("sub/data"), None).unwrap();
        with(&base.join("sub/data"), Some("/etc/x")).unwrap();
        let absent = with(Path::new("no/such/file"), None).unwrap_err();
        assert!(absent.to_string().starts_with("no/such/file: "), "{absent}");
        let files = files(&initramfs);
        assert_eq!(at(&files, "/data/sub/data"), b"data");
        assert_eq!(at(&files, "/data/link"), b"data");
        assert_eq!(files["data/link"].0, 0o120_777);
        assert_eq!(at(&files, base.join("sub/data").to_str().unwrap()), b"data");
        assert_eq!(at(&files, "/etc/x"), b"data");
        for (from, to) in [
            ("job.fio", "/root/job.fio"),
            ("./a/../b/job.fio", "/root/job.fio"),
            ("./b/job.fio", "/root/b/job.fio"),
            ("/etc//hosts", "/etc/hosts"),
        ] {
            assert_eq!(default_place(Path::new(from)).unwrap(), to, "{from}");
        }
    }

    #[test]
    fn a_directory_becomes_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("usr/bin")).unwrap();
        std::os::unix::fs::symlink("usr/bin", path("bin")).unwrap();
        fs::write(path("usr/bin/tool"), "tool").unwrap();
        fs::set_permissions(path("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir(path("root")).unwrap();
        fs::create_dir(path("dev")).unwrap();
        fs::write(path("dev/console"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(path("socket")).unwrap());
        let mut initramfs = empty();
        initramfs.root(dir.path()).unwrap();
        let with = With {
            from: path("usr/bin/tool"),
            to: Some("/bin/other".into()),
        };
        initramfs.with(&with, false).unwrap();
        let files = files(&initramfs);
        assert_eq!(files["usr/bin/tool"], (0o104_755, b"tool".to_vec()));
        assert_eq!(files["usr/bin/other"].1, b"tool");
        assert_eq!(files["bin"].0, 0o120_777);
        assert!(!files.contains_key("socket"));
        assert_eq!(files["dev/console"].0, 0o020_600);
        assert!(files.contains_key(".berth/init"));
    }
}
