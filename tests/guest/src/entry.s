# From the PVH entry (32 bits, paging off) to Rust at CPL 3 with every port open.
#
# Code at CPL 0 is emulated, one instruction at a time, on hosts with software
# KVM, so there is as little of it as can be: tables are laid out by the
# assembler or filled by Rust later, and handlers do one thing and return.

.set STACK_SIZE, 0x40000
.set USER_DATA, 0x1b
.set USER_CODE, 0x23
.set MSI_VECTORS, 64
.set APIC_EOI, 0xfee000b0

# XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader starts the guest.
.section .note.Xen, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_start

.section .text.entry, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov $ring0_stack_top, %esp
    mov %ebx, pvh_start_info
    # Mask both PICs: the only interrupts are the MSIs that a test asks for.
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    # PAE, OSFXSR and OSXMMEXCPT: long mode, and SSE for compiled code.
    mov %cr4, %eax
    or $0x620, %eax
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    # EFER.LME
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    # Paging and MP on, x87 emulation off.
    mov %cr0, %eax
    and $~0x4, %eax
    or $0x80000002, %eax
    mov %eax, %cr0
    # The TSS's address is scattered over its descriptor.
    mov $task_state, %eax
    mov %ax, gdt_task + 2
    shr $16, %eax
    mov %al, gdt_task + 4
    mov %ah, gdt_task + 7
    lgdt gdt_pointer
    ljmp $0x08, $long_mode

.code64
long_mode:
    lidt idt_pointer
    mov $0x28, %eax
    ltr %ax
    xor %eax, %eax
    mov %eax, %ss
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    # Interrupts stay on from here to the end; CPL 3 cannot be surprised by a
    # vector that it did not program.
    pushq $USER_DATA
    pushq $(stack_top - 8)
    pushq $0x202
    pushq $USER_CODE
    pushq $rust_start
    iretq

# Exceptions: note what happened, continue at CPL 3 in `report_fault`.
.macro exception vector, has_error=0
    .balign 16
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
.endm

.balign 16
.global exception_stubs
exception_stubs:
    exception 0
    exception 1
    exception 2
    exception 3
    exception 4
    exception 5
undefined_exception:
    exception 6
    exception 7
    exception 8, 1
    exception 9
    exception 10, 1
    exception 11, 1
    exception 12, 1
    exception 13, 1
    exception 14, 1
    exception 15
    exception 16
    exception 17, 1
    exception 18
    exception 19
    exception 20
    exception 21, 1
    exception 22
    exception 23
    exception 24
    exception 25
    exception 26
    exception 27
    exception 28
    exception 29, 1
    exception 30, 1
    exception 31
    .balign 16

exception_common:
    popq fault_record
    popq fault_record + 8
    mov (%rsp), %rax
    mov %rax, fault_record + 16
    mov 24(%rsp), %rax
    mov %rax, fault_record + 24
    mov %cr2, %rax
    mov %rax, fault_record + 32
    movq $report_fault, (%rsp)
    movq $USER_CODE, 8(%rsp)
    movq $0x202, 16(%rsp)
    movq $(fault_stack_top - 8), 24(%rsp)
    movq $USER_DATA, 32(%rsp)
    iretq

# Message-signalled interrupts: count, acknowledge, return.
.balign 32
.global msi_stubs
msi_stubs:
.set index, 0
.rept MSI_VECTORS
    .balign 32
    incq msi_counters + index * 8
    push %rax
    mov $APIC_EOI, %eax
    movl $0, (%rax)
    pop %rax
    iretq
    .set index, index + 1
.endr

.balign 16
.global spurious_stub
spurious_stub:
    iretq

# Called from CPL 3: sleeps until the next interrupt, unless counter RDI is no
# longer RSI. The undefined instruction is the way into CPL 0, for software KVM
# does not pass software interrupts or system calls on. Interrupts are off in
# its handler, so that none comes between the comparison and the halt.
.balign 16
.global sleep_unless_counted
sleep_unless_counted:
    ud2
    ret

.balign 16
.global undefined_stub
undefined_stub:
    cmpq $sleep_unless_counted, (%rsp)
    jne undefined_exception
    addq $2, (%rsp)
    cmp %rsi, msi_counters(,%rdi,8)
    jne 1f
    sti
    hlt
1:  iretq

.section .data.tables, "aw"
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 08 code, CPL 0, 64 bits
    .quad 0x00cf93000000ffff    # 10 data, CPL 0
    .quad 0x00cff3000000ffff    # 18 data, CPL 3
    .quad 0x00affb000000ffff    # 20 code, CPL 3, 64 bits
gdt_task:
    .quad 0x0000890000002068    # 28 task state
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

.balign 16
task_state:
    .long 0
    .quad ring0_stack_top
    .fill 88, 1, 0
    # Every port is open to CPL 3 by the I/O permission bitmap. IOPL 3 would do
    # on a processor, but software KVM forgets it over some exits.
    .word 0x68
    .fill 8192, 1, 0
    .byte 0xff
    .balign 16

idt_pointer:
    .word 4095
    .quad idt

# 4 GiB mapped one to one in 2 MiB pages, open to CPL 3: cached below 3 GiB,
# uncached above (PCI windows, ECAM, APICs). Rust adds what lies higher.
.balign 4096
.global page_map
page_map:
    .quad page_directory_pointers + 0x7
    .fill 511, 8, 0
page_directory_pointers:
    .quad page_directories + 0x7
    .quad page_directories + 0x1007
    .quad page_directories + 0x2007
    .quad page_directories + 0x3007
    .fill 508, 8, 0
page_directories:
.set page, 0
.rept 1536
    .quad page + 0x87
    .set page, page + 0x200000
.endr
.rept 512
    .quad page + 0x9f
    .set page, page + 0x200000
.endr

.section .bss.tables, "aw", @nobits
.balign 4096
.global idt
idt:
    .skip 4096
    .skip 4096
ring0_stack_top:
    .skip 8192
fault_stack_top:
    .skip STACK_SIZE
stack_top:
.global msi_counters
msi_counters:
    .skip 8 * MSI_VECTORS
.global fault_record
fault_record:
    .skip 8 * 5
.global pvh_start_info
pvh_start_info:
    .skip 8
