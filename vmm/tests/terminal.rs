//! `berth run` on a terminal: raw while it runs, itself again after every way out.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::ptr;

use common::{Guest, HALT, Killed, kvm, out, power_off, print};

const COM1: u16 = 0x3f8;

/// Both ends of a pseudo-terminal.
struct Terminal {
    master: File,
    slave: File,
}

impl Terminal {
    fn new() -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: two places for descriptors; name, settings and size are not asked for.
        let result = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(result, 0);
        // SAFETY: both are new and owned by nobody else.
        unsafe {
            Self {
                master: File::from_raw_fd(master),
                slave: File::from_raw_fd(slave),
            }
        }
    }

    fn flags(&self) -> [libc::tcflag_t; 4] {
        let mut termios = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: a place for the settings.
        let result = unsafe { libc::tcgetattr(self.slave.as_raw_fd(), termios.as_mut_ptr()) };
        assert_eq!(result, 0);
        // SAFETY: filled by the call.
        let t = unsafe { termios.assume_init() };
        [t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag]
    }

    /// Starts the guest in a session whose terminal this is, and waits for its first output byte.
    fn start(&self, guest: &Guest) -> Killed {
        let mut command = guest.command(&[]);
        command.stdin(self.slave.try_clone().unwrap());
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let mut child = Killed(command.spawn().unwrap());
        let mut byte = [0];
        let stdout = child.0.stdout.as_mut().unwrap();
        stdout.read_exact(&mut byte).unwrap();
        child
    }
}

#[test]
fn ctrl_a_x_leaves_a_guest_that_does_not_read() {
    if !kvm() {
        return;
    }
    let mut terminal = Terminal::new();
    let before = terminal.flags();
    let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
    let child = terminal.start(&guest);
    let raw = terminal.flags();
    assert_eq!(raw[3] & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
    assert_ne!(raw[1] & libc::OPOST, 0);
    // More than the port and the terminal hold; the escape comes last.
    terminal.master.write_all(&[b'x'; 3000]).unwrap();
    terminal.master.write_all(b"\x01x").unwrap();
    let (status, _, err) = child.finish();
    assert_eq!(status, 0, "{err}");
    assert!(err.contains("Ctrl-a x leaves"), "{err}");
    assert!(err.ends_with("berth: left on request\n"), "{err}");
    assert_eq!(terminal.flags(), before);
}

#[test]
fn typed_control_characters_reach_the_guest() {
    if !kvm() {
        return;
    }
    // Waits for a byte, sends it back, and powers off after three.
    let receive = [
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xfb, // jz to in
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
    ];
    let code = [
        &print(COM1, "!")[..],
        &receive,
        &receive,
        &receive,
        &power_off(),
    ]
    .concat();
    let mut terminal = Terminal::new();
    let guest = Guest::new(&code);
    let child = terminal.start(&guest);
    // Ctrl-c, Ctrl-a Ctrl-a, Enter.
    terminal.master.write_all(b"\x03\x01\x01\r").unwrap();
    let (status, out, err) = child.finish();
    assert_eq!((status, out.as_str()), (0, "\x03\x01\r"), "{err}");
}

#[test]
fn the_terminal_is_restored_after_signals_and_crashes() {
    if !kvm() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let terminal = Terminal::new();
        let before = terminal.flags();
        let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
        let child = terminal.start(&guest);
        assert_ne!(terminal.flags(), before);
        let pid = libc::pid_t::try_from(child.0.id()).unwrap();
        // SAFETY: the child was not waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        assert_eq!(child.finish().0, 128 + signal);
        assert_eq!(terminal.flags(), before);
    }
    let terminal = Terminal::new();
    let before = terminal.flags();
    let guest = Guest::new(&[&print(COM1, "!")[..], &out(0x64, 0xfe)].concat());
    assert_eq!(terminal.start(&guest).finish().0, 32);
    assert_eq!(terminal.flags(), before);
}

#[test]
fn stopping_gives_the_terminal_back_and_continuing_takes_it() {
    if !kvm() {
        return;
    }
    let mut terminal = Terminal::new();
    let before = terminal.flags();
    let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
    let child = terminal.start(&guest);
    let raw = terminal.flags();
    let pid = libc::pid_t::try_from(child.0.id()).unwrap();
    // SAFETY: the child was not waited for, so the number is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTSTP) }, 0);
    let mut status = 0;
    // SAFETY: a place for the status of a child of this process.
    let stopped = unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) };
    assert_eq!(stopped, pid);
    assert!(libc::WIFSTOPPED(status));
    assert_eq!(terminal.flags(), before);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    // Raw mode does not echo, so the escape is only understood once it is back.
    terminal.wait_for(raw);
    terminal.master.write_all(b"\x01x").unwrap();
    assert_eq!(child.finish().0, 0);
    assert_eq!(terminal.flags(), before);
}

impl Terminal {
    fn wait_for(&self, flags: [libc::tcflag_t; 4]) {
        let start = std::time::Instant::now();
        while self.flags() != flags {
            assert!(
                start.elapsed() < common::LIMIT,
                "the terminal stays as it is"
            );
            std::thread::yield_now();
        }
    }
}
