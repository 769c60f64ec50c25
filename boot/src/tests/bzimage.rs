//! bzImage: what the kernel finds in memory.

use linux_loader::loader::bootparam::boot_params;

use super::*;
use crate::{InitrdError, KernelError};

fn params(machine: &Machine) -> boot_params {
    machine.read_obj(layout::ZERO_PAGE)
}

#[test]
fn code_and_boot_parameters_are_in_place() {
    let machine = Machine::new(MEMORY);
    let entry = machine
        .load_bytes(&good_bzimage(), "console=ttyS0")
        .unwrap();
    assert_eq!(
        entry,
        Entry::Linux64 {
            rip: LOAD_ADDRESS + 0x200,
            boot_params: layout::ZERO_PAGE
        }
    );
    assert_eq!(machine.read(LOAD_ADDRESS, PAYLOAD), pattern(PAYLOAD));

    let params = params(&machine);
    let header = params.hdr;
    assert_eq!(header.type_of_loader, 0xFF);
    assert_eq!({ header.version }, 0x20F);
    assert_eq!({ header.init_size }, INIT_SIZE as u32);
    assert_eq!({ header.code32_start }, LOAD_ADDRESS as u32);
    assert_eq!({ header.ramdisk_size }, 0);
    assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI_START);
    assert_eq!(machine.read(layout::ACPI_START, 8), b"RSD PTR ");
    let cmdline = u64::from(header.cmd_line_ptr);
    assert_eq!(machine.read(cmdline, 14), b"console=ttyS0\0");
}

#[test]
fn e820_map_has_ram_on_both_sides_of_the_holes() {
    let memory = 3 * 1024 * MIB + 16 * MIB;
    let machine = Machine::new(memory);
    machine.load_bytes(&good_bzimage(), "").unwrap();
    let params = params(&machine);
    let table = params.e820_table;
    let map: Vec<_> = table[..usize::from(params.e820_entries)]
        .iter()
        .map(|entry| (entry.addr, entry.size, entry.r#type))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0xA_0000, 1),
            (0xE_0000, 0x2_0000, 2),
            (0x10_0000, 0xC000_0000 - 0x10_0000, 1),
            (0xE000_0000, 0x10_0000, 2),
            (0xFFFB_C000, 0x4000, 2),
            (0x1_0000_0000, 16 * MIB, 1),
        ]
    );
}

#[test]
fn boot_processor_starts_in_long_mode() {
    let machine = Machine::new(MEMORY);
    let entry = machine.load_bytes(&good_bzimage(), "").unwrap();
    let state = entry.cpu_state();
    assert_eq!(state.rsi, layout::ZERO_PAGE);
    assert_eq!((state.cr4, state.efer), (0x20, 0x500));
    assert_eq!((state.cs.l, state.cs.db), (1, 0));

    let gdt = |selector: u16| machine.read_obj::<u64>(state.gdt_base + u64::from(selector));
    // Flat 64-bit code and flat data, both already marked as accessed.
    assert_eq!(gdt(state.cs.selector), 0x00AF_9B00_0000_FFFF);
    assert_eq!(gdt(state.data.selector), 0x00CF_9300_0000_FFFF);
    assert_eq!(gdt(state.tr.selector), 0x0000_8B00_0000_0067);
    assert!(u64::from(state.tr.selector) + 16 <= u64::from(state.gdt_limit) + 1);

    for address in [0, 0x1234, LOAD_ADDRESS, 0xBFFF_FFFF, 0xFFFF_FFFF] {
        assert_eq!(translate(&machine, state.cr3, address), Some(address));
    }
    assert_eq!(translate(&machine, state.cr3, 1 << 32), None);
}

/// Walks the page tables as the processor does.
fn translate(machine: &Machine, root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    for shift in [39, 30, 21, 12] {
        let index = (address >> shift) & 0x1FF;
        let entry: u64 = machine.read_obj(table + index * 8);
        if entry & 1 == 0 {
            return None;
        }
        table = entry & 0x000F_FFFF_FFFF_F000;
        let is_page = shift == 12 || entry & 0x80 != 0;
        if is_page {
            return Some(table | (address & ((1 << shift) - 1)));
        }
    }
    None
}

#[test]
fn initrd_is_as_high_as_allowed() {
    let machine = Machine::new(MEMORY);
    let initrd = machine.file("initrd", &pattern(5000));
    for (limit, start) in [
        (0x7FFF_FFFF, MEMORY - 2 * 4096),
        (16 * MIB as u32 - 1, 16 * MIB - 2 * 4096),
        (16 * MIB as u32 + 999, 16 * MIB - 4096),
    ] {
        let mut kernel = good_bzimage();
        put(&mut kernel, 0x22C, &limit.to_le_bytes());
        let kernel = machine.file("kernel", &kernel);
        machine.load(&kernel, Some(&initrd), "").unwrap();
        let header = params(&machine).hdr;
        assert_eq!(u64::from(header.ramdisk_image), start, "{limit:#x}");
        assert_eq!({ header.ramdisk_size }, 5000);
        assert_eq!(machine.read(start, 5000), pattern(5000));
    }
}

#[test]
fn initrd_stays_out_of_high_ram() {
    let machine = Machine::new(5 * 1024 * MIB);
    let initrd = machine.file("initrd", b"070701");
    let mut kernel = good_bzimage();
    put(&mut kernel, 0x22C, &u32::MAX.to_le_bytes());
    let kernel = machine.file("kernel", &kernel);
    machine.load(&kernel, Some(&initrd), "").unwrap();
    let header = params(&machine).hdr;
    assert_eq!(u64::from(header.ramdisk_image), layout::LOW_RAM_END - 4096);
}

#[test]
fn initrd_just_fits_or_is_refused_with_both_sizes() {
    let machine = Machine::new(8 * MIB);
    let room = 8 * MIB - LOAD_ADDRESS - INIT_SIZE;
    let kernel = machine.file("kernel", &good_bzimage());

    let fits = machine.file("fits", &vec![7; room as usize]);
    machine.load(&kernel, Some(&fits), "").unwrap();
    let header = params(&machine).hdr;
    assert_eq!(u64::from(header.ramdisk_image), LOAD_ADDRESS + INIT_SIZE);

    let too_big = machine.file("too-big", &vec![7; room as usize + 1]);
    let error = machine.load(&kernel, Some(&too_big), "").unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Initrd { problem: InitrdError::TooBig { length, room: r }, .. }
            if length == room + 1 && r == room),
        "{text}"
    );
    assert!(
        text.contains("too-big: is 2097153 bytes long, but only 2097152 bytes"),
        "{text}"
    );
}

#[test]
fn bad_initrd_files_are_named() {
    let machine = Machine::new(MEMORY);
    let kernel = machine.file("kernel", &good_bzimage());
    let empty = machine.file("empty", b"");
    let missing = machine.directory.path().join("missing");
    for (initrd, says) in [
        (empty.as_path(), "is empty"),
        (missing.as_path(), "cannot be read: No such file"),
        (machine.directory.path(), "is a directory"),
        (Path::new("/dev/null"), "is not a regular file"),
    ] {
        let text = machine
            .load(&kernel, Some(initrd), "")
            .unwrap_err()
            .to_string();
        let begins = format!("--initrd {}: ", initrd.display());
        assert!(text.starts_with(&begins) && text.contains(says), "{text}");
    }
}

#[test]
fn memory_must_hold_init_size() {
    let needed = LOAD_ADDRESS + INIT_SIZE;
    Machine::new(needed)
        .load_bytes(&good_bzimage(), "")
        .unwrap();
    let error = Machine::new(needed - MIB)
        .load_bytes(&good_bzimage(), "")
        .unwrap_err();
    assert!(
        matches!(error, Error::Kernel { problem: KernelError::NotEnoughMemory { end, .. }, .. }
            if end == needed)
    );
    assert!(
        error.to_string().contains("at least --memory 6M"),
        "{error}"
    );
}

#[test]
fn memory_size_is_checked() {
    let machine = Machine::new(MEMORY);
    let kernel = machine.file("kernel", &good_bzimage());
    for memory in [0, MIB, layout::MAX_MEMORY + 1, u64::MAX] {
        let config = Config {
            kernel: &kernel,
            initrd: None,
            cmdline: "",
            memory,
            acpi: &acpi::Config::new(1, MEMORY),
        };
        let error = crate::load(&machine.ram, &config).unwrap_err();
        assert!(matches!(error, Error::MemorySize { .. }), "{error}");
    }
}

#[test]
fn setup_header_bytes_past_its_end_are_not_taken() {
    let mut kernel = good_bzimage();
    kernel[0x201] = 0x66; // ends at 0x268, before kernel_info_offset
    put(&mut kernel, 0x268, &0xDEAD_BEEFu32.to_le_bytes());
    let machine = Machine::new(MEMORY);
    machine.load_bytes(&kernel, "").unwrap();
    assert_eq!({ params(&machine).hdr.kernel_info_offset }, 0);
}
