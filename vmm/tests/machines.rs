//! The machine descriptions in `resources/machines` boot.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs::{self, File};
use std::path::Path;

use common::{Guest, Killed, kvm, power_off};

#[test]
fn every_description_boots() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/machines");
    let guest = Guest::new(&power_off());
    for image in ["disk.img", "root.img"] {
        let image = File::create(guest.directory.path().join(image)).unwrap();
        image.set_len(1 << 20).unwrap();
    }
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        println!("{}", file.display());
        let run = |more: &[&str]| {
            let mut command = guest.command(&["--machine", file.to_str().unwrap()]);
            command.args(more).current_dir(guest.directory.path());
            Killed(command.spawn().unwrap()).finish()
        };
        let (status, stdout, stderr) = run(&["--dry-run"]);
        assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
        let text = fs::read_to_string(&file).unwrap();
        let namespaces = text.matches("\"nvme-ns\"").count() + text.matches("[[disk]]").count();
        assert_eq!(
            stdout.matches("\nshared = ").count(),
            namespaces + text.matches("\"nvme-subsys\"").count()
        );
        if kvm() {
            let (status, _, stderr) = run(&[]);
            assert_eq!(status, 0, "{stderr}");
        }
        count += 1;
    }
    assert_eq!(
        count, 6,
        "one disk, root, multipath, two subsystems, many namespaces, fio"
    );
}
