//! What the README claims: each test that its table beside QEMU names exists.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
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
