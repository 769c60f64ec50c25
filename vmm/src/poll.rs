//! Waiting for several descriptors on a thread of one's own.

use std::os::fd::RawFd;

/// Waits until one of the descriptors that are given can be read, or has an error or an end to tell; says
/// of each whether that is so. A signal can end the wait with none.
pub fn readable<const N: usize>(fds: [Option<RawFd>; N]) -> [bool; N] {
    let mut watched = fds.map(|fd| libc::pollfd {
        // A negative descriptor is skipped.
        fd: fd.unwrap_or(-1),
        events: libc::POLLIN,
        revents: 0,
    });
    // There are a few.
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: the pointer and the count are of one live array.
    let ready = unsafe { libc::poll(watched.as_mut_ptr(), count, -1) };
    watched.map(|fd| ready > 0 && fd.revents != 0)
}
