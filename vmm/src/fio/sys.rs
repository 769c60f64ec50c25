//! The few system calls that the standard library does not offer.

use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Sends a signal to the process group that the process `leader` was started in. That nobody is left
/// in it is no error.
pub fn end_group(leader: u32, signal: libc::c_int) {
    let Ok(group) = libc::pid_t::try_from(leader) else {
        return;
    };
    // 0 and 1 would be groups of others.
    if group > 1 {
        // SAFETY: takes no pointers.
        unsafe { libc::killpg(group, signal) };
    }
}

/// Has the kernel end the process, once it runs, when the thread that starts it has ended: nobody else
/// is left to do so if berth is killed.
pub fn end_with_this_thread(command: &mut Command) {
    let ask = || {
        // SAFETY: takes integers only, and is async-signal-safe. Should it fail, the process is as others.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        Ok(())
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Whether a file can be opened with O_DIRECT where it is.
///
/// # Errors
/// It cannot be opened at all.
pub fn takes_direct_io(path: &Path) -> io::Result<bool> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    match open(libc::O_DIRECT) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0).map(|_| false),
        Err(error) => Err(error),
    }
}

/// Columns of the terminal on standard error, if that is one.
pub fn columns() -> Option<usize> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the pointer is to a structure of the type that the request fills.
    let result = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: all zero is valid, and so is what the kernel fills in.
    let size = unsafe { size.assume_init() };
    (result == 0 && size.ws_col > 0).then(|| usize::from(size.ws_col))
}
