//! What the README claims: tests, pages and commands that it names exist.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// All Rust sources below `folder`, in one text.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Words in backquotes.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_row_beside_qemu_names_tests_that_exist() {
    let (root, readme) = (root(), readme());
    let section = readme.split("### Beside QEMU").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    let rows: Vec<&str> = rows.collect();
    let mut text = String::new();
    for folder in ["devices", "vmm", "tests"] {
        sources(&root.join(folder), &mut text);
    }
    assert!(rows.len() > 15, "{rows:?}");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 5, "{row}");
        let tests = names(cells[4]);
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            let function = text.contains(&format!("#[test]\nfn {test}("));
            let inner = text.contains(&format!("#[test]\n    fn {test}("));
            let scenario = text.contains(&format!("name: \"{test}\""));
            assert!(
                function || inner || scenario,
                "no test is called {test}: {row}"
            );
        }
    }
}

#[test]
fn linked_files_exist() {
    let readme = readme();
    let links: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains("://"))
        .collect();
    assert!(links.len() > 3, "{links:?}");
    for link in links {
        assert!(root().join(link).is_file(), "{link}");
    }
}

/// Those in running text; those in blocks are run by `cargo xtask test readme`, and tables have mistakes, too.
#[test]
fn commands_of_berth_exist() {
    let readme = readme();
    let text = readme.lines().filter(|line| !line.starts_with('|'));
    let text = text.collect::<Vec<_>>().join("\n");
    let commands: Vec<&str> = text
        .split("`berth ")
        .skip(1)
        .filter_map(|rest| rest.split([' ', '`', '\n']).next())
        .filter(|word| !word.starts_with('-'))
        .collect();
    assert!(commands.contains(&"ctl"), "{commands:?}");
    for command in commands {
        let help = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args([command, "--help"])
            .output()
            .unwrap();
        assert!(help.status.success(), "berth {command}: {help:?}");
    }
}
