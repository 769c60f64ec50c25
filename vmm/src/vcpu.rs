//! vCPUs: their first state, their threads, and what their exits mean.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use boot::cpu::{CpuState, Segment};
use devices::bus::Bus;
use devices::ioevent::CoalescedWrites;
use devices::legacy::serial::SerialPort;
use devices::ram::GuestRam;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{KvmRunWrapper, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::coalesced::CoalescedMmio;
use crate::cpuid::Template;
use crate::exit::{ExitReason, Outcome};
use crate::host::{SOFTWARE_KVM, kvm_is_software};
use crate::kvm::{KvmError, refused};
use crate::startup::Startup;
use crate::string_io::{PAGE, take_rest};

/// How often a vCPU thread is told again to stop.
const KICK_INTERVAL: Duration = Duration::from_millis(20);
/// x86 instructions are at most this long.
const MAX_INSTRUCTION: usize = 15;

/// What all vCPUs of a machine share.
#[derive(Clone)]
pub struct Shared {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Writes that KVM keeps.
    pub coalesced: Arc<CoalescedMmio>,
    /// Guest memory, to show the instruction that failed.
    pub ram: GuestRam,
    /// Where the end of the run is reported.
    pub outcome: Arc<Outcome>,
    /// A port whose string output is taken in parts.
    pub strings: Option<StringPort>,
}

/// A serial port that takes string output in parts.
#[derive(Clone)]
pub struct StringPort {
    /// Its transmit register.
    pub port: u16,
    /// What is behind it.
    pub serial: Arc<SerialPort>,
}

/// A vCPU that has not started.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    /// A second mapping of the vCPU's page, for what kvm-ioctls does not pass on.
    page: KvmRunWrapper,
    run_size: usize,
}

impl Vcpu {
    /// Makes vCPU `id` with its CPUID and the MSRs that firmware would have set.
    ///
    /// # Errors
    /// KVM refused something.
    pub fn new(vm: &VmFd, id: u8, cpuid: &Template) -> Result<Self, KvmError> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(refused("create a vCPU"))?;
        fd.set_cpuid2(&cpuid.for_vcpu(id)?)
            .map_err(refused("set a vCPU's CPUID"))?;
        set_msrs(&fd);
        set_local_interrupts(&fd)?;
        let run_size = vm.run_size();
        let page =
            KvmRunWrapper::mmap_from_fd(&fd, run_size).map_err(refused("map a vCPU's page"))?;
        Ok(Self {
            id,
            fd,
            page,
            run_size,
        })
    }

    /// Makes the ring of the machine's kept writes known, which any vCPU can show.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn attach(&self, coalesced: &CoalescedMmio) -> io::Result<()> {
        coalesced.attach(&self.fd)
    }

    /// Lets this vCPU start in `state`. The others wait for the guest to start them.
    ///
    /// # Errors
    /// KVM refused the registers.
    pub fn set_entry(&self, state: &CpuState) -> Result<(), KvmError> {
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(refused("read a vCPU's segments"))?;
        set_segments(&mut sregs, state);
        self.fd
            .set_sregs(&sregs)
            .map_err(refused("set a vCPU's segments"))?;
        self.fd
            .set_regs(&kvm_regs {
                rip: state.rip,
                rsi: state.rsi,
                rbx: state.rbx,
                rflags: state.rflags,
                ..Default::default()
            })
            .map_err(refused("set a vCPU's registers"))
    }
}

fn set_segments(sregs: &mut kvm_sregs, state: &CpuState) {
    sregs.cs = segment(&state.cs);
    let data = segment(&state.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&state.tr);
    sregs.gdt.base = state.gdt_base;
    sregs.gdt.limit = state.gdt_limit;
    // No interrupt can be taken before the kernel has its own table.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = state.cr0;
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.efer = state.efer;
}

fn segment(from: &Segment) -> kvm_segment {
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.type_,
        present: from.present,
        dpl: from.dpl,
        db: from.db,
        s: from.s,
        l: from.l,
        g: from.g,
        ..Default::default()
    }
}

/// Memory is write-back by default and string instructions are fast, as firmware leaves it.
fn set_msrs(fd: &VcpuFd) {
    const IA32_MISC_ENABLE: (u32, u64) = (0x1a0, 1);
    const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
    for (index, data) in [IA32_MISC_ENABLE, MTRR_DEF_TYPE] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let set = Msrs::from_entries(&[entry]).map(|msrs| fd.set_msrs(&msrs));
        // Guests run without: they only lose speed or a warning in their log.
        if !matches!(set, Ok(Ok(1))) {
            tracing::debug!("KVM has no MSR {index:#x}");
        }
    }
}

/// The wiring that the MADT promises: PIC on LINT0, NMI on LINT1.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const EXT_INT: u8 = 7;
    const NMI: u8 = 4;
    let mut lapic = fd
        .get_lapic()
        .map_err(refused("read a local interrupt controller"))?;
    for (register, mode) in [(LVT_LINT0, EXT_INT), (LVT_LINT1, NMI)] {
        // The delivery mode is bits 10:8, which is the low part of the second byte; not masked.
        lapic.regs[register + 1] = lapic.regs[register + 1] & !7 | mode.cast_signed();
        lapic.regs[register + 2] &= !1;
    }
    fd.set_lapic(&lapic)
        .map_err(refused("set a local interrupt controller"))
}

/// The running vCPUs of a machine.
pub struct Threads {
    threads: Vec<Running>,
    stopping: Arc<AtomicBool>,
    ended: mpsc::Receiver<u8>,
}

struct Running {
    id: u8,
    handle: JoinHandle<()>,
    /// The vCPU's page, to tell KVM not to enter the guest again.
    page: Mutex<KvmRunWrapper>,
}

impl Threads {
    /// Starts one thread per vCPU, named `vcpu0` and so on; `startup` is told when that one enters the
    /// guest.
    ///
    /// # Errors
    /// No thread could be made, or a page could not be mapped.
    pub fn start(vcpus: Vec<Vcpu>, shared: &Shared, startup: &Arc<Startup>) -> io::Result<Self> {
        extern "C" fn interrupted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        // Its only purpose is to interrupt KVM_RUN.
        register_signal_handler(SIGRTMIN(), interrupted)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (report, ended) = mpsc::channel();
        let mut threads = Vec::new();
        for vcpu in vcpus {
            let page = KvmRunWrapper::mmap_from_fd(&vcpu.fd, vcpu.run_size)?;
            let id = vcpu.id;
            let runner = Runner {
                vcpu,
                shared: shared.clone(),
                stopping: Arc::clone(&stopping),
            };
            let report = report.clone();
            let startup = (id == 0).then(|| Arc::clone(startup));
            let handle = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || {
                    if let Some(startup) = startup {
                        startup.enter_guest();
                    }
                    runner.run();
                    // The receiver is gone only if nobody waits.
                    let _ = report.send(id);
                })?;
            threads.push(Running {
                id,
                handle,
                page: Mutex::new(page),
            });
        }
        Ok(Self {
            threads,
            stopping,
            ended,
        })
    }

    /// Stops all vCPUs; returns those that did not stop within `limit`.
    pub fn stop(mut self, limit: Duration) -> Vec<u8> {
        self.stopping.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + limit;
        while !self.threads.is_empty() {
            self.threads.iter().for_each(Running::kick);
            match self.ended.recv_timeout(KICK_INTERVAL) {
                Ok(id) => self.threads.retain(|thread| thread.id != id),
                Err(_) if Instant::now() >= deadline => break,
                Err(_) => {}
            }
        }
        self.threads.iter().map(|thread| thread.id).collect()
    }
}

impl Running {
    /// Makes KVM_RUN return, or return at once when it is called next.
    fn kick(&self) {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let flag = &raw mut page.as_mut_ref().immediate_exit;
        // SAFETY: the flag lies in a mapping that `page` owns. KVM reads it concurrently.
        unsafe { ptr::write_volatile(flag, 1) };
        // SAFETY: the thread was not joined, so its id is valid.
        unsafe { libc::pthread_kill(self.handle.as_pthread_t(), SIGRTMIN()) };
    }
}

/// One vCPU on its thread.
struct Runner {
    vcpu: Vcpu,
    shared: Shared,
    stopping: Arc<AtomicBool>,
}

impl Runner {
    fn run(mut self) {
        while !self.stopping.load(Ordering::SeqCst) && self.shared.outcome.reason().is_none() {
            if let Some(reason) = self.step() {
                self.shared.outcome.end(reason);
            }
        }
    }

    /// Runs the guest until its next exit and handles that; a reason ends the machine.
    fn step(&mut self) -> Option<ExitReason> {
        let Shared {
            ports,
            mmio,
            coalesced,
            ram,
            strings,
            ..
        } = &self.shared;
        let id = self.vcpu.id;
        let exit = match self.vcpu.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return None,
            Err(error) => return Some(failure(id, &format!("KVM_RUN failed: {error}"))),
        };
        // What the guest wrote before this access comes before it.
        coalesced.drain();
        match exit {
            VcpuExit::MmioWrite(address, data) => {
                mmio.write(address, data);
            }
            VcpuExit::MmioRead(address, data) => {
                mmio.read(address, data);
            }
            VcpuExit::IoOut(port, data) => {
                let width = port_width(&self.vcpu.page);
                match strings {
                    Some(strings) if strings.port == port && width == 1 => {
                        strings.serial.transmit(data);
                        let mut page = [0; PAGE];
                        let rest = take_rest(&self.vcpu.fd, ram, &mut page);
                        strings.serial.transmit(rest);
                    }
                    _ => {
                        for item in data.chunks(width) {
                            ports.write(u64::from(port), item);
                        }
                    }
                }
            }
            VcpuExit::IoIn(port, data) => {
                for item in data.chunks_mut(port_width(&self.vcpu.page)) {
                    ports.read(u64::from(port), item);
                }
            }
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
            VcpuExit::Shutdown => {
                return Some(ExitReason::Crash(format!("triple fault on vCPU {id}")));
            }
            VcpuExit::SystemEvent(event, _) => return Some(system_event(id, event)),
            VcpuExit::FailEntry(reason, cpu) => {
                let text = format!(
                    "KVM cannot enter the guest (KVM_EXIT_FAIL_ENTRY, reason {reason:#x}, host CPU \
                     {cpu}): the host's processor refused the vCPU's state"
                );
                return Some(failure(id, &text));
            }
            VcpuExit::InternalError => return Some(self.internal_error()),
            VcpuExit::MemoryFault { gpa, size, .. } => {
                let text = format!("the host cannot provide guest memory at {gpa:#x}+{size:#x}");
                return Some(failure(id, &text));
            }
            other => return Some(failure(id, &format!("unexpected exit: {other:?}"))),
        }
        None
    }

    /// The guest did something that KVM has to emulate and cannot.
    fn internal_error(&self) -> ExitReason {
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let error = unsafe { self.vcpu.page.as_ref().__bindgen_anon_1.internal };
        let id = self.vcpu.id;
        let name = match error.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "instruction emulation failed",
            KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "exit during event delivery",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected hardware exit",
            _ => "unknown",
        };
        let place = self.place().unwrap_or_else(|error| error.to_string());
        let text = format!(
            "KVM_EXIT_INTERNAL_ERROR on vCPU {id}, suberror {} ({name}), {place}",
            error.suberror
        );
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION {
            let why = if kvm_is_software() {
                SOFTWARE_KVM
            } else {
                "KVM cannot emulate this instruction"
            };
            ExitReason::Crash(format!("{text}; {why}"))
        } else {
            ExitReason::Failure(text)
        }
    }

    /// Where the guest is, and the bytes of its instruction as far as they can be read.
    fn place(&self) -> Result<String, kvm_ioctls::Error> {
        let fd = &self.vcpu.fd;
        let rip = fd.get_regs()?.rip;
        let linear = fd.get_sregs()?.cs.base.wrapping_add(rip);
        let bytes: Vec<_> = (0..MAX_INSTRUCTION as u64)
            .map_while(|offset| {
                let at = fd.translate_gva(linear.wrapping_add(offset)).ok()?;
                let byte = self.shared.ram.read::<u8>(at.physical_address).ok();
                byte.filter(|_| at.valid != 0)
            })
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let bytes = if bytes.is_empty() {
            "not readable".into()
        } else {
            bytes.join(" ")
        };
        Ok(format!("RIP {rip:#x}, instruction bytes: {bytes}"))
    }
}

/// Width of each item of a port access, which string instructions repeat.
fn port_width(page: &KvmRunWrapper) -> usize {
    // SAFETY: called for KVM_EXIT_IO only, for which this member of the union is the valid one.
    let io = unsafe { page.as_ref().__bindgen_anon_1.io };
    usize::from(io.size).max(1)
}

fn failure(id: u8, what: &str) -> ExitReason {
    ExitReason::Failure(format!("vCPU {id}: {what}"))
}

fn system_event(id: u8, event: u32) -> ExitReason {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN => ExitReason::PowerOff,
        KVM_SYSTEM_EVENT_RESET => ExitReason::Reset,
        KVM_SYSTEM_EVENT_CRASH => ExitReason::Panic,
        other => failure(id, &format!("unknown KVM_EXIT_SYSTEM_EVENT {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::{Allocator, Interrupts};
    use crate::startup::Stopwatch;
    use crate::{kvm, memory};
    use boot::{Entry, layout};
    use devices::bus::BusDevice;
    use devices::interrupt::{MsiAllocator, MsiMessage};
    use devices::ioevent::{IoEvents, WriteSink};
    use std::sync::Condvar;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    const CODE: u64 = 0x10_0000;
    const HANDLER: u64 = 0x11_0000;
    const IDT_POINTER: u64 = 0x20_0000;
    const IDT: u64 = 0x20_1000;
    const DOORBELL: u64 = 0xd000_0000;
    const VECTOR: u8 = 0x40;
    const LIMIT: Duration = Duration::from_secs(20);

    /// Remembers each write, and answers reads with the number of writes.
    #[derive(Default)]
    struct Recorder {
        writes: Mutex<Vec<Vec<u8>>>,
        written: Condvar,
    }

    impl BusDevice for Recorder {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(u8::try_from(self.writes.lock().unwrap().len()).unwrap());
        }

        fn write(&self, _: u64, data: &[u8]) {
            self.writes.lock().unwrap().push(data.to_vec());
            self.written.notify_all();
        }
    }

    impl Recorder {
        fn wait_for(&self, count: usize) {
            let writes = self.writes.lock().unwrap();
            let (writes, timeout) = self
                .written
                .wait_timeout_while(writes, LIMIT, |writes| writes.len() < count)
                .unwrap();
            assert!(!timeout.timed_out(), "only {writes:x?} of {count} writes");
        }
    }

    struct Guest {
        threads: Threads,
        outcome: Arc<Outcome>,
        recorder: Arc<Recorder>,
        interrupts: Arc<Interrupts>,
    }

    /// Starts `code` in 32-bit protected mode on the first of `cpus`; `None` where there is no KVM.
    fn start(cpus: u8, code: &[u8]) -> Option<Guest> {
        let kvm = match kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let vm = kvm::create_vm(&kvm, cpus).unwrap();
        let ram = memory::create(&[(0, 64 << 20)]).unwrap();
        ram.write_bytes(CODE, code).unwrap();
        let state = Entry::Pvh {
            rip: CODE,
            start_info: 0x1234,
        }
        .cpu_state();
        write_tables(&ram, &state);
        memory::register(&vm, &ram).unwrap();
        kvm::create_chips(&vm).unwrap();
        let outcome = Arc::new(Outcome::new().unwrap());
        let recorder = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(Arc::clone(&vm)).unwrap();
        let shared = Shared {
            ports: Arc::new(Bus::new()),
            mmio: Arc::new(Bus::new()),
            coalesced: Arc::clone(interrupts.coalesced()),
            ram,
            outcome: Arc::clone(&outcome),
            strings: None,
        };
        shared.ports.insert(0x80, 4, recorder.clone()).unwrap();
        shared.mmio.insert(DOORBELL, 8, recorder.clone()).unwrap();
        let template = Template::new(&kvm, cpus).unwrap();
        let vcpus: Vec<_> = (0..cpus)
            .map(|id| Vcpu::new(&vm, id, &template).unwrap())
            .collect();
        vcpus[0].set_entry(&state).unwrap();
        vcpus[0].attach(interrupts.coalesced()).unwrap();
        let startup = Arc::new(Stopwatch::start().finish());
        Some(Guest {
            threads: Threads::start(vcpus, &shared, &startup).unwrap(),
            outcome,
            recorder,
            interrupts,
        })
    }

    /// A GDT as in the registers, and an IDT with one gate, to [`HANDLER`].
    fn write_tables(ram: &GuestRam, state: &CpuState) {
        for segment in [&state.cs, &state.data] {
            let place = layout::GDT + u64::from(segment.selector);
            ram.write(place, &segment.descriptor()).unwrap();
        }
        let handler = [
            0xb0, 0x55, // mov al, 0x55
            0xe6, 0x81, // out 0x81, al
            0x31, 0xc0, // xor eax, eax
            0xa3, 0xb0, 0x00, 0xe0, 0xfe, // mov [0xfee000b0], eax: end of interrupt
            // What iretd does; software KVM has none at this level.
            0x58, // pop eax: EIP
            0x83, 0xc4, 0x04, // add esp, 4: CS
            0x9d, // popfd
            0xff, 0xe0, // jmp eax
        ];
        ram.write_bytes(HANDLER, &handler).unwrap();
        let gate = (HANDLER & 0xffff)
            | u64::from(state.cs.selector) << 16
            | 0x8e00 << 32
            | (HANDLER >> 16) << 48;
        ram.write(IDT + u64::from(VECTOR) * 8, &gate).unwrap();
        ram.write(IDT_POINTER, &0x7ffu16).unwrap();
        let base = u32::try_from(IDT).unwrap().to_le_bytes();
        ram.write_bytes(IDT_POINTER + 2, &base).unwrap();
    }

    impl Guest {
        fn end(self) -> (ExitReason, Vec<Vec<u8>>) {
            let mut poll = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(self.outcome.event()),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one live structure.
            let count = unsafe { libc::poll(&raw mut poll, 1, 20_000) };
            assert_eq!(count, 1, "the guest did not end");
            assert!(self.threads.stop(LIMIT).is_empty());
            let writes = self.recorder.writes.lock().unwrap().clone();
            (self.outcome.reason().unwrap().clone(), writes)
        }
    }

    /// Ends a guest by a triple fault: an empty interrupt table and an invalid instruction.
    const TRIPLE_FAULT: [u8; 9] = [
        0x0f, 0x01, 0x1d, 0, 0, 0x30, 0, // lidt [0x300000]
        0x0f, 0x0b, // ud2
    ];

    #[test]
    fn port_and_memory_accesses_reach_their_bus() {
        let mut code = vec![
            0x89, 0xd8, // mov eax, ebx
            0xe7, 0x80, // out 0x80, eax
            0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [DOORBELL], eax
            0xa0, 0x00, 0x00, 0x00, 0xd0, // mov al, [DOORBELL]
            0xe6, 0x80, // out 0x80, al
            0xe4, 0x80, // in al, 0x80
            0xe6, 0x81, // out 0x81, al
            0xbf, 0x00, 0x00, 0x38, 0x00, // mov edi, 0x380000
            0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
            0xba, 0x80, 0x00, 0x00, 0x00, // mov edx, 0x80
            0xf3, 0x66, 0x6d, // rep insw
            0xbe, 0x00, 0x00, 0x38, 0x00, // mov esi, 0x380000
            0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
            0xf3, 0x66, 0x6f, // rep outsw
        ];
        code.extend(TRIPLE_FAULT);
        let Some(guest) = start(1, &code) else { return };
        let (reason, writes) = guest.end();
        assert_eq!(reason, ExitReason::Crash("triple fault on vCPU 0".into()));
        let expected: [&[u8]; 7] = [
            &[0x34, 0x12, 0, 0],
            &[0x34, 0x12, 0, 0],
            &[2],
            &[3],
            &[4, 4],
            &[4, 4],
            &[4, 4],
        ];
        assert_eq!(writes, expected);
    }

    #[test]
    fn an_instruction_that_kvm_cannot_emulate_is_shown() {
        // Arithmetic on a device register has to be emulated everywhere, and KVM knows no MMX.
        let code = [
            0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, DOORBELL
            0x0f, 0xfe, 0x03, // paddd mm0, [ebx]
        ];
        let Some(guest) = start(1, &code) else { return };
        let (reason, _) = guest.end();
        assert_eq!(reason.status(), 33);
        let text = reason.to_string();
        for part in [
            "KVM_EXIT_INTERNAL_ERROR",
            "suberror 1",
            "RIP 0x100005",
            "0f fe 03",
            "VT-x",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn vcpus_that_spin_sleep_or_never_started_stop() {
        // hlt with interrupts off; jump to itself.
        for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
            let Some(guest) = start(3, code) else { return };
            assert!(guest.threads.stop(LIMIT).is_empty());
            assert_eq!(guest.outcome.reason(), None);
        }
    }

    #[test]
    fn messages_reach_a_handler_even_if_they_came_before_their_route() {
        let code = [
            0xbc, 0x00, 0x00, 0x08, 0x00, // mov esp, 0x80000
            0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff
            0xa3, 0xf0, 0x00, 0xe0, 0xfe, // mov [0xfee000f0], eax: local APIC on
            0x0f, 0x01, 0x1d, 0x00, 0x00, 0x20, 0x00, // lidt [IDT_POINTER]
            0xfb, // sti
            0xe6, 0x80, // out 0x80, al
            0xf4, // hlt
            0xeb, 0xfd, // jmp to hlt
        ];
        let Some(guest) = start(1, &code) else { return };
        guest.recorder.wait_for(1);
        let vectors = Allocator(Arc::clone(&guest.interrupts))
            .allocate(4)
            .unwrap();
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: u32::from(VECTOR),
        };
        vectors.trigger(3);
        vectors.update(&[(3, Some(message))]).unwrap();
        guest.recorder.wait_for(2);
        vectors.trigger(3);
        guest.recorder.wait_for(3);
        // A disconnected vector interrupts nobody, and forgets what came if told so.
        vectors.update(&[(3, None)]).unwrap();
        vectors.trigger(3);
        vectors.discard();
        vectors
            .update(&[(3, Some(message)), (2, Some(message))])
            .unwrap();
        vectors.trigger(2);
        guest.recorder.wait_for(4);
        assert_eq!(guest.recorder.writes.lock().unwrap().len(), 4);
        assert!(guest.threads.stop(LIMIT).is_empty());
    }

    #[test]
    fn a_doorbell_of_four_bytes_signals_and_others_reach_the_bus() {
        let code = [
            0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax, 7
            0xe6, 0x80, // out 0x80, al
            0xe4, 0x80, // in al, 0x80
            0x3c, 0x02, // cmp al, 2
            0x75, 0xfa, // jne to in
            0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [DOORBELL], eax
            0x66, 0xa3, 0x00, 0x00, 0x00, 0xd0, // mov [DOORBELL], ax
            0xf4, // hlt
        ];
        let Some(guest) = start(1, &code) else { return };
        guest.recorder.wait_for(1);
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        guest.interrupts.register(&event, DOORBELL).unwrap();
        guest.recorder.write(0, &[]);
        guest.recorder.wait_for(3);
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(
            *guest.recorder.writes.lock().unwrap(),
            [&[7][..], &[], &[2, 0]]
        );
        assert!(guest.threads.stop(LIMIT).is_empty());
    }

    /// Keeps what was written where a test can see it.
    #[derive(Default)]
    struct Kept(Mutex<Vec<u32>>);

    impl WriteSink for Kept {
        fn written(&self, value: u32) {
            self.0.lock().unwrap().push(value);
        }
    }

    /// Waits for input 2 at port 0x80, then counts down from `count` at the doorbell, writes it once
    /// more with two bytes only, and ends with `last`.
    fn many_doorbells(count: u32, last: &[u8]) -> Vec<u8> {
        let mut code = vec![
            0xe6, 0x80, // out 0x80, al
            0xe4, 0x80, // in al, 0x80
            0x3c, 0x02, // cmp al, 2
            0x75, 0xfa, // jne to in
            0xb9, // mov ecx, count
        ];
        code.extend(count.to_le_bytes());
        code.extend([
            0x89, 0x0d, 0x00, 0x00, 0x00, 0xd0, // mov [DOORBELL], ecx
            0x49, // dec ecx
            0x75, 0xf7, // jnz to mov
            0x66, 0xa3, 0x02, 0x00, 0x00, 0xd0, // mov [DOORBELL + 2], ax
        ]);
        code.extend(last);
        code.push(0xf4); // hlt
        code
    }

    /// Has the doorbell's writes kept and lets the guest go on; `None` where KVM keeps none.
    fn keep(guest: &Guest) -> Option<Arc<Kept>> {
        guest.recorder.wait_for(1);
        let kept = Arc::<Kept>::default();
        let coalesced = guest.interrupts.coalesced();
        match coalesced.register(DOORBELL, kept.clone()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                println!("skipped: no KVM_CAP_COALESCED_MMIO");
                return None;
            }
            registered => registered.unwrap(),
        }
        assert_eq!(guest.interrupts.held().coalesced, 1);
        guest.recorder.write(0, &[]);
        Some(kept)
    }

    #[test]
    fn writes_that_are_kept_come_in_order_before_the_next_exit() {
        // The second is more than the ring holds.
        for count in [5u32, 1000] {
            let code = many_doorbells(count, &[0xe6, 0x80]); // out 0x80, al
            let Some(guest) = start(1, &code) else { return };
            if let Some(kept) = keep(&guest) {
                let ended = || guest.recorder.writes.lock().unwrap().last() == Some(&vec![2]);
                let deadline = Instant::now() + LIMIT;
                while !ended() {
                    assert!(Instant::now() < deadline, "{:?}", guest.outcome.reason());
                    thread::yield_now();
                }
                let kept = kept.0.lock().unwrap().clone();
                let exits = guest.recorder.writes.lock().unwrap().clone();
                // A ring that is full makes an exit of the next.
                let told = exits
                    .iter()
                    .filter_map(|it| <[u8; 4]>::try_from(&it[..]).ok());
                let told: Vec<_> = told.map(u32::from_le_bytes).collect();
                assert!(told.len() <= count as usize / 100, "{told:?}");
                assert!(kept.is_sorted_by(|a, b| a > b));
                let mut values = [kept, told].concat();
                values.sort_unstable();
                assert!(values.into_iter().eq(1..=count));
                let coalesced = guest.interrupts.coalesced();
                coalesced.unregister(DOORBELL).unwrap();
                assert_eq!(guest.interrupts.held().coalesced, 0);
            }
            assert!(guest.threads.stop(LIMIT).is_empty());
        }
    }

    #[test]
    fn taking_an_address_back_hands_over_what_was_kept() {
        let Some(guest) = start(1, &many_doorbells(3, &[])) else {
            return;
        };
        if let Some(kept) = keep(&guest) {
            let coalesced = guest.interrupts.coalesced();
            let deadline = Instant::now() + LIMIT;
            // The guest gives no sign that it wrote. A write between the two calls is an exit.
            let told = || guest.recorder.writes.lock().unwrap().len() - 2;
            while kept.0.lock().unwrap().len() + told() < 3 {
                assert!(Instant::now() < deadline, "{:?}", kept.0);
                coalesced.unregister(DOORBELL).unwrap();
                coalesced.register(DOORBELL, kept.clone()).unwrap();
            }
        }
        assert!(guest.threads.stop(LIMIT).is_empty());
    }
}
