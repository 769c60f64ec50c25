//! Kernel files that are refused, each with what it is told.

use super::*;

/// A good image with bytes changed at some offsets.
fn patched(mut image: Vec<u8>, patches: &[(usize, &[u8])]) -> Vec<u8> {
    for (offset, bytes) in patches {
        put(&mut image, *offset, bytes);
    }
    image
}

fn cut(mut image: Vec<u8>, length: usize) -> Vec<u8> {
    image.truncate(length);
    image
}

/// Asserts that `path` is refused by name, in words that contain `says`.
fn assert_refused(machine: &Machine, path: &Path, case: &str, says: &str) {
    assert!(crate::check(path, machine.memory).is_err(), "{case}");
    let text = match machine.load(path, None, "") {
        Ok(entry) => panic!("{case}: loaded as {entry:?}"),
        Err(error) => error.to_string(),
    };
    let begins = format!("--kernel {}: ", path.display());
    assert!(text.starts_with(&begins), "{case}: {text}");
    assert!(text.contains(says), "{case}: {text}");
}

#[test]
fn bad_files() {
    let machine = Machine::new(MEMORY);
    let missing = machine.directory.path().join("missing");
    assert_refused(
        &machine,
        &missing,
        "missing",
        "cannot be read: No such file",
    );
    let directory = machine.directory.path();
    assert_refused(&machine, directory, "directory", "is a directory");
    assert_refused(
        &machine,
        Path::new("/dev/zero"),
        "device",
        "is not a regular file",
    );

    let program = std::env::current_exe().unwrap();
    assert_refused(&machine, &program, "this test", "without a PVH note");

    // Opening a pipe that nobody writes to would wait for ever.
    let pipe = directory.join("pipe");
    let status = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(status.success());
    assert_refused(&machine, &pipe, "pipe", "is not a regular file");
}

/// What is wrong, the file, and what the error says.
type Case = (&'static str, Vec<u8>, &'static str);

// A table: one line each.
#[rustfmt::skip]
fn bad_bzimages() -> Vec<Case> {
    let bz = good_bzimage;
    vec![
        ("empty", vec![], "is empty"),
        ("one byte", vec![0x7F], "is not a kernel"),
        ("text", b"#!/bin/sh\necho hello\n".repeat(100), "is not a kernel: it is a script"),
        ("gzip", patched(vec![0; 4096], &[(0, &[0x1F, 0x8B])]), "is not a kernel: it is compressed; an initial RAM disk is given with --initrd"),
        ("xz", b"\xfd7zXZ\0".to_vec(), "is not a kernel: it is compressed;"),
        ("cpio", b"070701".repeat(100), "is not a kernel: it is an initial RAM disk (a cpio archive); give it with --initrd"),
        ("qcow2", b"QFI\xfb\0\0\0\x03".to_vec(), "is not a kernel: it is a disk image; give it with --disk"),
        ("MBR", patched(vec![0; 4096], &[(0x1FE, &[0x55, 0xAA])]), "is not a kernel: it is a disk image; give it with --disk"),
        ("no boot flag", patched(bz(), &[(0x1FE, &[0, 0])]), "is not a kernel: a Linux bzImage or an x86-64 ELF file is wanted"),
        ("no magic", patched(bz(), &[(0x202, b"hdrs")]), "is not a kernel"),
        ("only a boot sector", cut(bz(), 512), "is not a kernel"),
        ("header cut", cut(bz(), 0x240), "is cut short: 576 bytes long, its headers describe at least 612"),
        ("setup cut", cut(bz(), 1000), "is cut short"),
        ("no code", cut(bz(), 1024), "is cut short"),
        ("code cut", cut(bz(), 1024 + 0x2000), "is cut short: 9216 bytes long, its headers describe at least 13297"),
        ("setup longer than file", patched(bz(), &[(0x1F1, &[0xFF])]), "is cut short"),
        ("syssize huge", patched(bz(), &[(0x1F4, &[0xFF; 4])]), "is cut short"),
        ("syssize zero, no entry", cut(patched(bz(), &[(0x1F4, &[0; 4])]), 1024 + 0x200), "is cut short"),
        ("old protocol", patched(bz(), &[(0x206, &[0x0A, 2])]), "speaks boot protocol 2.10; 2.12 or later"),
        ("zImage", patched(bz(), &[(0x211, &[0])]), "is a zImage"),
        ("32-bit bzImage", patched(bz(), &[(0x236, &[0, 0])]), "is a 32-bit kernel"),
        ("loaded at 0", patched(bz(), &[(0x258, &[0; 8])]), "prefers to be loaded at 0x0;"),
        ("loaded over ACPI", patched(bz(), &[(0x258, &0xE_0000u64.to_le_bytes())]), "prefers to be loaded at 0xe0000;"),
        ("loaded at the end of time", patched(bz(), &[(0x258, &[0xFF; 8])]), "needs RAM up to 0xffffffffffffffff; a kernel must end below 0xc0000000"),
        ("loaded above 3 GiB", patched(bz(), &[(0x258, &0xC000_0000u64.to_le_bytes())]), "a kernel must end below 0xc0000000"),
        ("init_size huge", patched(bz(), &[(0x260, &[0xFF; 4])]), "a kernel must end below 0xc0000000"),
        ("init_size over RAM", patched(bz(), &[(0x260, &0x800_0000u32.to_le_bytes())]), "give it at least --memory 130M"),
    ]
}

// A table: one line each.
#[rustfmt::skip]
fn bad_elfs() -> Vec<Case> {
    let elf = good_elf;
    vec![
        ("ELF magic only", b"\x7fELF".to_vec(), "is cut short: 4 bytes long"),
        ("ELF header cut", cut(elf(), 63), "is cut short: 63 bytes long, its headers describe at least 64"),
        ("ELF 32-bit", patched(elf(), &[(4, &[1])]), "is a 32-bit ELF file"),
        ("ELF big-endian", patched(elf(), &[(5, &[2])]), "is a big-endian ELF file"),
        ("ELF for Arm", patched(elf(), &[(18, &[183])]), "is an ELF file for machine 183"),
        ("ELF object file", patched(elf(), &[(16, &[1])]), "is an ELF file of type 1"),
        ("ELF phentsize", patched(elf(), &[(54, &[32])]), "2 ELF program headers of 32 bytes"),
        ("ELF no headers", patched(elf(), &[(56, &[0])]), "has 0 ELF program headers"),
        ("ELF 65535 headers", patched(elf(), &[(56, &[0xFF, 0xFF])]), "has 65535 ELF program headers"),
        ("ELF headers past the end", patched(elf(), &[(32, &[0xFF; 8])]), "is cut short"),
        ("ELF nothing to load", patched(elf(), &[(ELF_LOAD_HEADER, &[6])]), "with nothing to load"),
        ("ELF segment cut", cut(elf(), ELF_SEGMENT + 0x1000), "is cut short"),
        ("ELF segment offset", patched(elf(), &[(ELF_LOAD_HEADER + 8, &[0xFF; 8])]), "is cut short"),
        ("ELF segment longer in file", patched(elf(), &[(ELF_LOAD_HEADER + 40, &[1, 0])]), "has a segment of 9029 bytes in the file but only 1 in memory"),
        ("ELF segment low", patched(elf(), &[(ELF_LOAD_HEADER + 24, &0xF_FFFFu64.to_le_bytes())]), "has a segment at 0xfffff;"),
        ("ELF segment over RAM", patched(elf(), &[(ELF_LOAD_HEADER + 24, &MEMORY.to_le_bytes())]), "give it at least --memory 65M"),
        ("ELF segment high", patched(elf(), &[(ELF_LOAD_HEADER + 24, &(1u64 << 32).to_le_bytes())]), "a kernel must end below 0xc0000000"),
        ("ELF segment wraps", patched(elf(), &[(ELF_LOAD_HEADER + 24, &[0xFF; 8])]), "needs RAM up to 0xffffffffffffffff"),
        ("ELF no notes", patched(elf(), &[(ELF_NOTE_HEADER, &[0])]), "without a PVH note"),
        ("ELF other notes", elf_with_notes(&note(b"GNU\0", 18, &[0; 8])), "without a PVH note"),
        ("ELF note name runs out", elf_with_notes(&note(b"Xen\0", 18, &[0; 8])[..14]), "damaged ELF notes: a note is longer"),
        ("ELF note desc runs out", elf_with_notes(&note(b"Xen\0", 18, &[0; 8])[..20]), "damaged ELF notes: a note is longer"),
        ("ELF note of 2 bytes", elf_with_notes(&note(b"Xen\0", 18, &[0; 2])), "not 4 or 8 bytes long"),
        ("ELF notes huge", patched(elf(), &[(ELF_NOTE_HEADER + 32, &[0xFF; 8])]), "a note segment is over 1 MiB"),
        ("ELF notes past the end", patched(elf(), &[(ELF_NOTE_HEADER + 8, &[0xFF; 8])]), "is cut short"),
        ("ELF entry outside", elf_with_notes(&note(b"Xen\0", 18, &[0xFF; 8])), "entry point at 0xffffffffffffffff, outside"),
    ]
}

#[test]
fn bad_images() {
    let machine = Machine::new(MEMORY);
    for (case, image, says) in bad_bzimages().into_iter().chain(bad_elfs()) {
        let path = machine.file("kernel", &image);
        assert_refused(&machine, &path, case, says);
    }
}

/// Writes `image` and makes the file 4 GiB long; it takes no room on the disk.
fn huge_file(machine: &Machine, image: &[u8]) -> PathBuf {
    let path = machine.file("huge", image);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4 << 30).unwrap();
    path
}

#[test]
fn bzimage_of_4_gib_is_too_long() {
    let machine = Machine::new(MEMORY);
    let path = huge_file(&machine, &good_bzimage());
    assert_refused(
        &machine,
        &path,
        "4 GiB",
        "a kernel must end below 0xc0000000",
    );
}

#[test]
fn elf_of_4_gib_loads_what_its_segments_hold() {
    let machine = Machine::new(MEMORY);
    let path = huge_file(&machine, &good_elf());
    machine.load(&path, None, "").unwrap();
    let segment = machine.read(LOAD_ADDRESS, ELF_FILE_LENGTH);
    assert_eq!(segment, pattern(ELF_FILE_LENGTH));
}
