//! The few system calls that the standard library does not offer.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted.
const BACKLOG: libc::c_int = 64;

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes a FIFO that only its owner can use.
pub fn mkfifo(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string.
    check(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }).map(|_| ())
}

/// Whether this process may use `path` as `mode` (`libc::R_OK`, `libc::W_OK`) asks.
pub fn access(path: &Path, mode: libc::c_int) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a valid C string; AT_EACCESS asks for the effective user.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) })
        .map(|_| ())
}

/// Waits until one of `fds` has one of its events (or an error), or the deadline has passed. Returns
/// what each has; all zero when time is up.
pub fn poll<const N: usize>(
    fds: [(BorrowedFd<'_>, libc::c_short); N],
    deadline: Instant,
) -> io::Result<[libc::c_short; N]> {
    let mut polled = fds.map(|(fd, events)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    });
    loop {
        // Rounded up, or the last millisecond would be spent spinning.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let millis = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `polled` is an array of N pollfd, and N is a handful.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) };
        match check(result) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(polled.map(|fd| fd.revents)),
        }
    }
}

// Both are constants that fit: 1 and 110.
#[allow(clippy::cast_possible_truncation)]
const FAMILY: libc::sa_family_t = libc::AF_UNIX as libc::sa_family_t;
#[allow(clippy::cast_possible_truncation)]
const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// A socket address, and how much of it counts.
fn socket_address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = FAMILY;
    if bytes.is_empty() || bytes.len() > MAX_SOCKET_PATH || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok((address, ADDRESS_LENGTH))
}

/// Longest path of a socket in bytes (`sun_path` without its terminating zero).
pub const MAX_SOCKET_PATH: usize = 107;

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A non-blocking listener whose socket file only its owner can connect to. The standard library would
/// leave it open to all that the umask allows.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (address, length) = socket_address(path)?;
    let socket = socket()?;
    let fd = socket.as_raw_fd();
    // Before bind: the mode of the file is that of the socket (unix(7), Linux).
    // SAFETY: `fd` is open, `address` is a sockaddr_un of `length` bytes.
    unsafe {
        check(libc::fchmod(fd, 0o600))?;
        check(libc::bind(fd, (&raw const address).cast(), length))?;
        check(libc::listen(fd, BACKLOG))?;
    }
    Ok(socket.into())
}

/// A non-blocking connection. `WouldBlock` means that somebody listens whose backlog is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, length) = socket_address(path)?;
    let socket = socket()?;
    // SAFETY: the descriptor is open, `address` is a sockaddr_un of `length` bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}
