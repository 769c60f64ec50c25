//! Signals as a file descriptor of the main loop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Signals that berth acts on: the first four end it, the others stop and continue it.
const HANDLED: [libc::c_int; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Blocked so that the terminal answers with an error instead of stopping a process in the background.
const TERMINAL: [libc::c_int; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// Readable when a signal came.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in this thread and those that it starts: call it before any other thread
    /// exists. Signals that were ignored (nohup, jobs of a script) stay ignored; so is SIGXFSZ from now
    /// on, because a file at its size limit (setrlimit(2), `RLIMIT_FSIZE`) is an error to report.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn block() -> io::Result<Self> {
        // SAFETY: changes the action of one signal, for which no handler is installed.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let handled = HANDLED.into_iter().filter(|signal| !is_ignored(*signal));
        let handled: Vec<_> = handled.collect();
        let watched = set_of(&handled);
        let blocked = set_of(&[&handled[..], &TERMINAL].concat());
        // SAFETY: the set is initialised, and the old mask is not asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is initialised, and the result is checked.
        let fd = unsafe {
            libc::signalfd(
                -1,
                &raw const watched,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The same signals, through another descriptor.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Waits for the next signal; `None` if waiting failed.
    pub fn wait(&self) -> Option<libc::c_int> {
        let mut polled = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one live structure.
        unsafe { libc::poll(&raw mut polled, 1, -1) };
        self.next()
    }

    /// The next signal that came, if there is one.
    pub fn next(&self) -> Option<libc::c_int> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the pointer and the size are of one structure.
        let count = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(count) != Ok(size) {
            return None;
        }
        // SAFETY: the kernel filled all of it.
        let info = unsafe { info.assume_init() };
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the old action is written to a structure of its type; nothing is changed.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the call filled it if it succeeded.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for &signal in signals {
        // SAFETY: the set is initialised, and the numbers are valid signals.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}
