//! What a program of the host needs besides itself: its interpreter, its shared libraries.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::elf::Elf;

/// Interpreters of interpreters, at most; Linux has the same limit.
const MAX_SCRIPTS: u32 = 4;
/// Longest first line of a script that is looked at, as in Linux.
const MAX_LINE: u64 = 256;

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
    let mut program = path.to_owned();
    for _ in 0..MAX_SCRIPTS {
        let failed = |source| LibraryError::File {
            path: program.clone(),
            source,
        };
        let file = File::open(&program).map_err(failed)?;
        if let Some(elf) = Elf::open(&file) {
            if let Some(interpreter) = elf.interpreter().map_err(failed)? {
                needed.extend(libraries(&program, &interpreter)?);
                needed.insert(interpreter.into());
            }
            return Ok(needed);
        }
        let mut line = Vec::new();
        (&file)
            .take(MAX_LINE)
            .read_to_end(&mut line)
            .map_err(failed)?;
        let Some(interpreter) = script_interpreter(&line) else {
            return Ok(needed);
        };
        needed.extend(interpreter.iter().cloned());
        // With env it is the second word that runs.
        match interpreter.last() {
            Some(last) => {
                if interpreter.len() > 1 {
                    needed.extend(needed_by(&interpreter[0])?);
                }
                program.clone_from(last);
            }
            None => return Ok(needed),
        }
    }
    Ok(needed)
}

/// The interpreter that the first line of a script names; behind `env` also the program that it is to
/// find.
fn script_interpreter(start: &[u8]) -> Option<Vec<PathBuf>> {
    let line = start.strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let interpreter = PathBuf::from(words.next()?);
    let mut all = vec![interpreter.clone()];
    if interpreter.ends_with("env") {
        let name = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
        all.extend(super::on_path(name));
    }
    Some(all)
}

/// What the dynamic linker would load. It is asked itself, as ldd(1) does, and runs nothing of the program.
fn libraries(program: &Path, interpreter: &str) -> Result<Vec<PathBuf>, LibraryError> {
    let refused = |problem: String| LibraryError::Interpreter {
        path: program.to_owned(),
        interpreter: interpreter.to_owned(),
        problem,
    };
    // A path without a slash would be looked for elsewhere.
    let program_path = std::path::absolute(program).unwrap_or_else(|_| program.to_owned());
    let output = Command::new(interpreter)
        .arg("--list")
        .arg(program_path)
        // The guest has neither.
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("LD_PRELOAD")
        .output()
        .map_err(|error| refused(error.to_string()))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    match parse(&listed) {
        Err(library) => Err(LibraryError::Missing {
            path: program.to_owned(),
            library,
        }),
        Ok(found) if output.status.success() => Ok(found),
        Ok(_) => Err(refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
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
    use std::fs;

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
