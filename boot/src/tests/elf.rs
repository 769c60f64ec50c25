//! ELF with a PVH note: what the kernel finds in memory.

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::*;

#[test]
fn segment_and_start_info_are_in_place() {
    let machine = Machine::new(MEMORY);
    let entry = machine.load_bytes(&good_elf(), "a=b").unwrap();
    assert_eq!(
        entry,
        Entry::Pvh {
            rip: ELF_ENTRY,
            start_info: layout::PVH_START_INFO
        }
    );
    assert_eq!(
        machine.read(LOAD_ADDRESS, ELF_FILE_LENGTH),
        pattern(ELF_FILE_LENGTH)
    );
    let rest = machine.read(
        LOAD_ADDRESS + ELF_FILE_LENGTH,
        ELF_MEMORY_LENGTH - ELF_FILE_LENGTH,
    );
    assert!(rest.iter().all(|&byte| byte == 0));

    let info: hvm_start_info = machine.read_obj(layout::PVH_START_INFO);
    assert_eq!((info.magic, info.version), (0x336E_C578, 1));
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
    assert_eq!(info.rsdp_paddr, layout::ACPI_START);
    assert_eq!(machine.read(info.cmdline_paddr, 4), b"a=b\0");
}

#[test]
fn memory_map_and_initrd_are_listed() {
    let machine = Machine::new(MEMORY);
    let kernel = machine.file("kernel", &good_elf());
    let initrd = machine.file("initrd", &pattern(5000));
    machine.load(&kernel, Some(&initrd), "").unwrap();

    let info: hvm_start_info = machine.read_obj(layout::PVH_START_INFO);
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = machine.read_obj(info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (MEMORY - 2 * 4096, 5000));
    assert_eq!(machine.read(module.paddr, 5000), pattern(5000));

    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|i| machine.read_obj::<hvm_memmap_table_entry>(info.memmap_paddr + i * 24))
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0xA_0000, 1),
            (0xE_0000, 0x2_0000, 2),
            (0x10_0000, MEMORY - 0x10_0000, 1),
            (0xE000_0000, 0x10_0000, 2),
            (0xFFFB_C000, 0x4000, 2),
        ]
    );
}

#[test]
fn boot_processor_starts_without_paging() {
    let machine = Machine::new(MEMORY);
    let state = machine.load_bytes(&good_elf(), "").unwrap().cpu_state();
    assert_eq!(state.rbx, layout::PVH_START_INFO);
    assert_eq!((state.cr0, state.cr3), (0x11, 0));
    assert_eq!((state.cr4, state.efer), (0, 0));
    let code = u64::from(state.cs.selector);
    assert_eq!(
        machine.read_obj::<u64>(state.gdt_base + code),
        0x00CF_9B00_0000_FFFF
    );
}

#[test]
fn entry_may_have_32_bits_and_no_padding() {
    let entry = (ELF_ENTRY as u32).to_le_bytes();
    let kernel = elf_with_notes(&note(b"Xen\0", 18, &entry));
    let loaded = Machine::new(MEMORY).load_bytes(&kernel, "").unwrap();
    assert_eq!(loaded.cpu_state().rip, ELF_ENTRY);
}
