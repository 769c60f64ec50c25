//! Tiny guests as ELF files with a PVH note, and berth runs of them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longest that any of these guests may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Where the code of a guest lies and starts.
const CODE: u64 = 0x10_0000;

/// A directory with a guest's kernel, gone when dropped.
pub struct Guest {
    /// The directory, for more files.
    pub directory: tempfile::TempDir,
    kernel: PathBuf,
}

/// Whether guests can run here; prints why not.
pub fn kvm() -> bool {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm: {error}");
            false
        }
    }
}

impl Guest {
    /// A guest that runs `code` in 32-bit protected mode.
    pub fn new(code: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("guest.elf");
        fs::write(&kernel, elf(code)).unwrap();
        Self { directory, kernel }
    }

    /// `berth run` with this guest, 64 MiB and `arguments`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["run", "-m", "64M", "--kernel"]);
        command.arg(&self.kernel).args(arguments);
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        default_signals(&mut command);
        command
    }

    /// Runs to the end: status, standard output, standard error.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        println!("berth run {arguments:?}");
        let child = Killed(self.command(arguments).spawn().unwrap());
        child.finish()
    }
}

/// Undoes what the tests inherited: under nohup or in a shell's background some signals are ignored,
/// which berth honours.
fn default_signals(command: &mut Command) {
    let reset = || {
        for signal in [
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGTERM,
            libc::SIGPIPE,
        ] {
            // SAFETY: between fork and exec, setting a disposition is allowed.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure calls only async-signal-safe functions and allocates nothing.
    unsafe { command.pre_exec(reset) };
}

/// A child that does not outlive its test.
pub struct Killed(pub Child);

impl Killed {
    /// Waits for the end and collects the output, which must fit into a pipe.
    pub fn finish(mut self) -> (i32, String, String) {
        let status = self.wait();
        let out = std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap();
        let err = std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap();
        let code = status.code().unwrap_or_else(|| panic!("{status}: {err}"));
        (code, out, err)
    }

    /// Waits for the end, for a limited time.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < LIMIT, "berth does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Code that prints `text` on the serial port at `port`.
pub fn print(port: u16, text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba]; // mov dx, port
    code.extend(port.to_le_bytes());
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

/// Code that writes `value` to I/O port `port`.
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let mut code = vec![0x66, 0xba]; // mov dx, port
    code.extend(port.to_le_bytes());
    code.extend([0xb0, value, 0xee]); // mov al, value; out dx, al
    code
}

/// ACPI S5.
pub fn power_off() -> Vec<u8> {
    out(0x600, 0x34)
}

/// Sleeps for ever.
pub const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp to hlt

/// An empty interrupt table and an invalid instruction.
pub const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0, 0, 0x30, 0, 0x0f, 0x0b];

/// A 64-bit ELF file: one segment with the code, one note with the PVH entry point.
fn elf(code: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    const FILE_CODE: u64 = 0x1000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // executable
    half(&mut file, 62); // x86-64
    word(&mut file, 1);
    long(&mut file, CODE);
    long(&mut file, 64); // program headers
    long(&mut file, 0);
    word(&mut file, 0);
    for value in [64, 56, 2, 64, 0, 0] {
        half(&mut file, value);
    }
    let note_len = 12 + 4 + 4;
    for (kind, offset, address, len) in [
        (1, FILE_CODE, CODE, code.len() as u64),
        (4, NOTE, 0, note_len),
    ] {
        word(&mut file, kind);
        word(&mut file, 7);
        for value in [offset, address, address, len, len, 4] {
            long(&mut file, value);
        }
    }
    for value in [4, 4, 18] {
        word(&mut file, value); // lengths of name and value, XEN_ELFNOTE_PHYS32_ENTRY
    }
    file.extend(b"Xen\0");
    word(&mut file, u32::try_from(CODE).unwrap());
    file.resize(usize::try_from(FILE_CODE).unwrap(), 0);
    file.extend(code);
    file
}
