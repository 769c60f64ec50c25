//! The user's terminal: raw while the guest has it, itself again on every way out.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::stderr;

/// The settings to go back to, while standard input is raw. Global, because the panic hook needs it.
static SAVED: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Whether standard input is a terminal.
pub fn is_terminal() -> bool {
    // SAFETY: takes a descriptor number; any value is allowed.
    unsafe { libc::isatty(libc::STDIN_FILENO) == 1 }
}

/// Whether this process may use the terminal now, that is, is not in the background.
fn in_foreground() -> bool {
    // SAFETY: both take no pointers.
    unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) == libc::getpgrp() }
}

/// Raw mode until dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Makes standard input raw if it is a terminal, and tells the user how to leave.
    ///
    /// # Errors
    /// The terminal refused.
    pub fn start() -> io::Result<Option<Self>> {
        if !is_terminal() {
            return Ok(None);
        }
        install_panic_hook();
        if enter()? {
            stderr::say("berth: the terminal belongs to the guest; Ctrl-a x leaves");
        }
        Ok(Some(Self(())))
    }

    /// Stops this process as the shell asked (SIGTSTP), with the terminal as it was before.
    pub fn suspend(&self) {
        restore();
        stop_process();
        self.resume();
    }

    /// Takes the terminal again after this process was continued in the foreground (SIGCONT).
    pub fn resume(&self) {
        if let Err(error) = enter() {
            tracing::warn!("the terminal cannot be made raw again: {error}");
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Stops this process until the shell continues it.
pub fn stop_process() {
    // SAFETY: sends a signal to this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
}

/// Goes raw, unless in the background (then [`RawMode::resume`] tries again). Whether it did.
fn enter() -> io::Result<bool> {
    let mut saved = saved();
    if !in_foreground() {
        return Ok(false);
    }
    let before = match *saved {
        // The shell may have set its own mode meanwhile; ours is to come back all the same.
        Some(before) => before,
        None => attributes()?,
    };
    let mut raw = before;
    // SAFETY: changes the fields of the structure.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    // The guest sends CR and LF itself; this is for berth's own lines on the same terminal.
    raw.c_oflag |= libc::OPOST;
    set_attributes(&raw)?;
    *saved = Some(before);
    Ok(true)
}

/// Puts the terminal back as it was. Does nothing if it is not raw.
pub fn restore() {
    restore_saved(saved());
}

fn restore_saved(mut saved: MutexGuard<'_, Option<libc::termios>>) {
    if let Some(before) = saved.take() {
        // There is nobody left to tell.
        let _ = set_attributes(&before);
    }
}

fn saved() -> MutexGuard<'static, Option<libc::termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attributes() -> io::Result<libc::termios> {
    let mut termios = MaybeUninit::uninit();
    // SAFETY: the pointer is to a termios that the call fills.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, termios.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled all of it.
    Ok(unsafe { termios.assume_init() })
}

fn set_attributes(termios: &libc::termios) -> io::Result<()> {
    loop {
        // SAFETY: the pointer is to a live termios.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, termios) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A panic aborts the process: the hook is the last chance.
fn install_panic_hook() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // The panic may have come while the lock was held.
        if let Ok(saved) = SAVED.try_lock() {
            restore_saved(saved);
        }
        next(info);
    }));
}
