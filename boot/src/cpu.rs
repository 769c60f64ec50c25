//! Processor state at kernel entry, and what it points to in guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout;

/// CR0.PE: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0.ET: reads as one on every processor since the 486.
const CR0_ET: u64 = 1 << 4;
/// CR0.PG: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE: 64-bit page-table entries.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME: long mode enabled.
const EFER_LME: u64 = 1 << 8;
/// EFER.LMA: long mode active.
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Page-table entry bits (SDM volume 3, 4.5).
const PTE_PRESENT: u64 = 1 << 0;
const PTE_WRITE: u64 = 1 << 1;
const PTE_PAGE_SIZE: u64 = 1 << 7;

/// `__BOOT_CS` of the Linux boot protocol.
const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS` of the Linux boot protocol.
const DATA_SELECTOR: u16 = 0x18;
/// The task register must hold a busy TSS for VMX to enter the guest.
const TSS_SELECTOR: u16 = 0x20;
/// Two unused entries, code, data, and a TSS that takes two in long mode.
const GDT_ENTRIES: u16 = 6;

/// A segment register with its hidden part; the fields are `kvm_segment`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset, in bytes.
    pub limit: u32,
    /// Visible part.
    pub selector: u16,
    /// Segment type (SDM volume 3, 3.4.5.1).
    pub type_: u8,
    /// Present.
    pub present: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Default operand size: 1 for 32 bits.
    pub db: u8,
    /// 1 for code and data, 0 for system segments.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// Limit counts 4 KiB pages in the descriptor.
    pub g: u8,
}

impl Segment {
    const fn flat(selector: u16, type_: u8, long: bool) -> Self {
        Self {
            base: 0,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl: 0,
            db: !long as u8,
            s: 1,
            l: long as u8,
            g: 1,
        }
    }

    /// Read-write data, all 4 GiB.
    const DATA: Self = Self::flat(DATA_SELECTOR, 0x3, false);
    /// 64-bit execute-read code.
    const CODE_64: Self = Self::flat(CODE_SELECTOR, 0xB, true);
    /// 32-bit execute-read code, all 4 GiB.
    const CODE_32: Self = Self::flat(CODE_SELECTOR, 0xB, false);
    /// Busy TSS, as short as allowed. Nothing ever switches to it.
    const TSS: Self = Self {
        base: 0,
        limit: 0x67,
        selector: TSS_SELECTOR,
        type_: 0xB,
        present: 1,
        dpl: 0,
        db: 0,
        s: 0,
        l: 0,
        g: 0,
    };

    /// The segment descriptor in memory (SDM volume 3, 3.4.5). The upper half
    /// of a 64-bit system descriptor, base bits 63:32, is not part of it.
    #[must_use]
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g == 1 {
            self.limit >> 12
        } else {
            self.limit
        });
        let access = u64::from(self.type_)
            | u64::from(self.s) << 4
            | u64::from(self.dpl) << 5
            | u64::from(self.present) << 7;
        let flags = u64::from(self.l) << 1 | u64::from(self.db) << 2 | u64::from(self.g) << 3;
        (limit & 0xFFFF)
            | (self.base & 0xFF_FFFF) << 16
            | access << 40
            | (limit >> 16 & 0xF) << 48
            | flags << 52
            | (self.base >> 24 & 0xFF) << 56
    }
}

/// Registers of the boot processor at kernel entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuState {
    /// Instruction pointer.
    pub rip: u64,
    /// `boot_params` for Linux, else zero.
    pub rsi: u64,
    /// `hvm_start_info` for PVH, else zero.
    pub rbx: u64,
    /// Flags: interrupts off.
    pub rflags: u64,
    /// Code segment.
    pub cs: Segment,
    /// For DS, ES, FS, GS and SS alike.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Guest address of the GDT.
    pub gdt_base: u64,
    /// GDT limit: its length in bytes minus one.
    pub gdt_limit: u16,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the page-table root, or zero.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
}

impl CpuState {
    /// State for the Linux 64-bit boot protocol: long mode, the first 4 GiB
    /// mapped one to one.
    pub(crate) fn linux64(rip: u64, boot_params: u64) -> Self {
        Self {
            rsi: boot_params,
            cs: Segment::CODE_64,
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: layout::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..Self::pvh(rip, 0)
        }
    }

    /// State for the x86/HVM direct boot ABI: flat 32-bit segments, no paging.
    pub(crate) fn pvh(rip: u64, start_info: u64) -> Self {
        Self {
            rip,
            rsi: 0,
            rbx: start_info,
            rflags: RFLAGS_RESERVED,
            cs: Segment::CODE_32,
            data: Segment::DATA,
            tr: Segment::TSS,
            gdt_base: layout::GDT,
            gdt_limit: GDT_ENTRIES * 8 - 1,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        }
    }

    /// Writes the GDT and, for long mode, the page tables.
    pub(crate) fn write_tables(&self, ram: &GuestMemoryMmap) -> Result<(), Error> {
        let gdt: [u64; GDT_ENTRIES as usize] = [
            0,
            0,
            self.cs.descriptor(),
            self.data.descriptor(),
            self.tr.descriptor(),
            0,
        ];
        write_entries(ram, self.gdt_base, gdt)?;
        if self.cr3 != 0 {
            write_identity_map(ram, self.cr3)?;
        }
        Ok(())
    }
}

/// Maps the first 4 GiB one to one with 2 MiB pages. The tables start at
/// `root` and end at [`layout::PAGE_TABLES_END`].
fn write_identity_map(ram: &GuestMemoryMmap, root: u64) -> Result<(), Error> {
    let pointers = root + layout::PAGE_SIZE;
    let directories = pointers + layout::PAGE_SIZE;
    write_entries(ram, root, [pointers | PTE_PRESENT | PTE_WRITE])?;
    write_entries(
        ram,
        pointers,
        (0..4).map(|i| (directories + i * layout::PAGE_SIZE) | PTE_PRESENT | PTE_WRITE),
    )?;
    write_entries(
        ram,
        directories,
        (0..4 * 512).map(|i| (i << 21) | PTE_PRESENT | PTE_WRITE | PTE_PAGE_SIZE),
    )
}

fn write_entries(
    ram: &GuestMemoryMmap,
    start: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<(), Error> {
    for (address, entry) in (start..).step_by(8).zip(entries) {
        ram.write_obj(entry, GuestAddress(address))?;
    }
    Ok(())
}
