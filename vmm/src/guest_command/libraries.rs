//! What a program of the host needs besides itself: its interpreter, its shared libraries.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::asked::ask;
use super::elf::Elf;
use super::open_regular;
use crate::control::plain;

/// Interpreters of interpreters, at most; Linux has the same limit.
const MAX_SCRIPTS: u32 = 4;
/// Longest first line of a script that is looked at, as in Linux.
const MAX_LINE: u64 = 256;
/// Where systems keep their dynamic linkers.
const LINKER_FOLDERS: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/nix/store",
    "/gnu/store",
];

/// Why a program cannot be brought along.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A library is nowhere.
    #[error("{}: the shared library {library} is not found on this host", path.display())]
    Missing {
        /// The program.
        path: PathBuf,
        /// The name of the library.
        library: String,
    },
    /// It names a dynamic linker of its own.
    #[error(
        "{}: its dynamic linker {interpreter} is none of this host's system, and berth does not run it to \
         list the libraries; give a root that has them, --rootfs DIR",
        path.display()
    )]
    Stranger {
        /// The program.
        path: PathBuf,
        /// The linker.
        interpreter: String,
    },
    /// Its interpreter does not tell its libraries.
    #[error("{}: its interpreter {interpreter} cannot list its libraries: {problem}", path.display())]
    Interpreter {
        /// The program.
        path: PathBuf,
        /// The interpreter.
        interpreter: String,
        /// What it said.
        problem: String,
    },
}

/// Everything that the program at `path` needs to start, as the paths by which it is found: the dynamic
/// linker and all libraries of an ELF file; of a script its interpreter and what that needs.
///
/// # Errors
/// A file cannot be read, or a library is missing.
pub fn needed_by(path: &Path) -> Result<BTreeSet<PathBuf>, LibraryError> {
    let mut needed = BTreeSet::new();
    let mut programs = vec![(path.to_owned(), 0)];
    while let Some((program, depth)) = programs.pop() {
        let failed = |source| LibraryError::File {
            path: program.clone(),
            source,
        };
        let file = open_regular(&program).map_err(failed)?;
        if let Some(elf) = Elf::open(&file) {
            if let Some(interpreter) = elf.interpreter().map_err(failed)? {
                needed.extend(libraries(&program, &interpreter)?);
                needed.insert(interpreter.into());
            }
            continue;
        }
        let mut line = Vec::new();
        let start = (&file).take(MAX_LINE).read_to_end(&mut line);
        start.map_err(failed)?;
        if depth < MAX_SCRIPTS {
            for interpreter in script_interpreters(&line) {
                needed.insert(interpreter.clone());
                programs.push((interpreter, depth + 1));
            }
        }
    }
    Ok(needed)
}

/// The interpreter that the first line of a script names; behind `env` also the program that it is to
/// find.
fn script_interpreters(start: &[u8]) -> Vec<PathBuf> {
    let line = start.strip_prefix(b"#!").unwrap_or_default();
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let mut all: Vec<PathBuf> = words.next().map(PathBuf::from).into_iter().collect();
    if all.iter().any(|interpreter| interpreter.ends_with("env")) {
        let name = words.find(|word| !word.starts_with('-') && !word.contains('='));
        all.extend(name.and_then(super::on_path));
    }
    all
}

/// Whether this is a dynamic linker of the host's system. Another one would be a program that the author of
/// the file chose, and berth would run it here.
fn is_of_the_system(interpreter: &Path) -> bool {
    let name = interpreter.file_name().unwrap_or_default();
    let folder = interpreter.parent().map(fs::canonicalize);
    let Some(Ok(folder)) = folder else {
        return false;
    };
    name.as_encoded_bytes().starts_with(b"ld-")
        && LINKER_FOLDERS.iter().any(|it| folder.starts_with(it))
}

/// What the dynamic linker would load. It is asked itself, as ldd(1) does, and runs nothing of the program.
fn libraries(program: &Path, interpreter: &str) -> Result<Vec<PathBuf>, LibraryError> {
    if !is_of_the_system(Path::new(interpreter)) {
        return Err(LibraryError::Stranger {
            path: program.to_owned(),
            interpreter: interpreter.to_owned(),
        });
    }
    let refused = |problem: String| LibraryError::Interpreter {
        path: program.to_owned(),
        interpreter: interpreter.to_owned(),
        problem,
    };
    // A path without a slash would be looked for elsewhere.
    let program_path = std::path::absolute(program).unwrap_or_else(|_| program.to_owned());
    let mut command = Command::new(interpreter);
    command.arg("--list").arg(program_path);
    // The guest has neither.
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD");
    let answer = ask(&mut command).map_err(|error| refused(plain(&error)))?;
    match parse(&answer.out) {
        Err(library) => Err(LibraryError::Missing {
            path: program.to_owned(),
            library,
        }),
        Ok(found) if answer.success => Ok(found),
        Ok(_) => Err(refused(answer.err.trim().to_owned())),
    }
}

/// Lines are `name => /path (0x…)`, `/path (0x…)`, `name => not found` or `linux-vdso.so.1 (0x…)`. An
/// error is the name of a library that was not found.
fn parse(listed: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in listed.lines().map(str::trim) {
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place.starts_with("not found") {
            return Err(name.to_owned());
        }
        let path = place.split(" (").next().unwrap_or(place);
        if path.starts_with('/') {
            found.push(path.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn this_test_needs_a_linker_and_the_c_library() {
        let needed = needed_by(&std::env::current_exe().unwrap()).unwrap();
        for part in ["/ld-", "/libc."] {
            let is_it = |path: &&PathBuf| path.to_string_lossy().contains(part);
            let found = needed.iter().find(is_it).expect(part);
            assert!(found.is_file(), "{found:?}");
        }
        // All of them, and nothing else, are needed by the libraries too.
        for library in &needed {
            let theirs = needed_by(library).unwrap();
            assert!(theirs.is_subset(&needed), "{library:?}: {theirs:?}");
        }
    }

    #[test]
    fn scripts_bring_their_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        let this = std::env::current_exe().unwrap();
        fs::write(&script, format!("#!{} -x\n", this.display())).unwrap();
        let needed = needed_by(&script).unwrap();
        assert!(needed.contains(&this));
        assert!(needed.is_superset(&needed_by(&this).unwrap()));
        fs::write(&script, "#!/usr/bin/env -S A=b sh -e\n").unwrap();
        let needed = needed_by(&script).unwrap();
        assert!(needed.contains(Path::new("/usr/bin/env")), "{needed:?}");
        assert!(needed.iter().any(|path| path.ends_with("sh")), "{needed:?}");
        fs::write(&script, "just text\n").unwrap();
        assert!(needed_by(&script).unwrap().is_empty());
        assert!(needed_by(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn interpreters_without_end_are_no_trap() {
        let dir = tempfile::tempdir().unwrap();
        // Each is two programs, itself and what it looks for.
        let env = dir.path().join("env");
        fs::write(&env, format!("#!{} sh\n", env.display())).unwrap();
        assert!(needed_by(&env).unwrap().contains(&env));
        let script = dir.path().join("script");
        fs::write(&script, format!("#!{}\n", script.display())).unwrap();
        assert_eq!(needed_by(&script).unwrap(), BTreeSet::from([script]));
        // Nobody writes to it, so opening it would never end.
        let fifo = dir.path().join("fifo");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        fs::write(&env, format!("#!{}\n", fifo.display())).unwrap();
        let error = needed_by(&env).unwrap_err().to_string();
        assert_eq!(error, format!("{}: is no regular file", fifo.display()));
    }

    /// A file that is brought into a guest has no say on this host.
    #[test]
    fn a_linker_that_the_file_brings_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let (linker, mark) = (dir.path().join("ld-own.so"), dir.path().join("mark"));
        fs::write(&linker, format!("#!/bin/sh\n: >{}\n", mark.display())).unwrap();
        fs::set_permissions(&linker, fs::Permissions::from_mode(0o755)).unwrap();
        let shell = dir.path().join("ld-shell.so");
        std::os::unix::fs::symlink("/bin/sh", &shell).unwrap();
        for linker in [linker.as_path(), &shell, Path::new("ld-own.so")] {
            let program = dir.path().join("program");
            fs::write(&program, elf_with_interpreter(linker)).unwrap();
            let error = needed_by(&program).unwrap_err();
            assert!(matches!(error, LibraryError::Stranger { .. }), "{error}");
        }
        assert!(!mark.exists());
        let own = std::env::current_exe().unwrap();
        let own = Elf::open(&fs::File::open(own).unwrap())
            .unwrap()
            .interpreter();
        assert!(is_of_the_system(Path::new(&own.unwrap().unwrap())));
    }

    /// An ELF file with nothing but the name of its interpreter.
    fn elf_with_interpreter(interpreter: &Path) -> Vec<u8> {
        let name = interpreter.as_os_str().as_encoded_bytes();
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        // One program header, behind this one: its type, where the name is, and its length.
        (file[0x20], file[0x38], file[64]) = (64, 1, 3);
        file[64 + 8] = 64 + 56;
        file[64 + 0x20] = u8::try_from(name.len()).unwrap();
        file.extend(name);
        file
    }

    #[test]
    fn lines_of_the_linker_are_understood() {
        let listed = "\tlinux-vdso.so.1 (0x7ffe)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(listed).unwrap(), expected.map(PathBuf::from));
        assert_eq!(parse("\tstatically linked\n").unwrap(), [] as [PathBuf; 0]);
        let missing = "\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\tlibx.so.1 => not found\n";
        assert_eq!(parse(missing).unwrap_err(), "libx.so.1");
    }
}
