//! The control socket: the same protocol for many clients at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::{CommandError, ErrorClass};
use super::line::{Inbound, LineReader};
use super::outbox::Outbox;
use super::poller::{Interest, Poller};
use super::{ControlError, directory, kind, plain, protocol, sys};

/// Clients at once.
pub const MAX_CLIENTS: usize = 64;

/// Bytes read at once from one client: bounds the commands done before others have their turn.
const READ_SIZE: usize = 4096;

/// How long another berth may take to start on the same directory.
const START_LIMIT: Duration = Duration::from_secs(2);

/// Whether a socket can be made at `path`, as far as that can be told without touching it.
///
/// # Errors
/// Something else is there, the path is too long, or the directory may not be written.
pub fn check(path: &Path) -> Result<(), ControlError> {
    check_path(path).map_err(|problem| error(path, problem))
}

fn check_path(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().as_bytes().len();
    if length > sys::MAX_SOCKET_PATH {
        return Err(format!(
            "the path of a socket has at most {} bytes, this has {length}",
            sys::MAX_SOCKET_PATH
        ));
    }
    match fs::metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(format!(
            "is {}, not a socket; remove it or choose another path",
            kind(found.file_type())
        )),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(plain(&error)),
        _ => {
            let directory = directory(path);
            sys::access(directory, libc::W_OK | libc::X_OK)
                .map_err(|error| format!("{}: {}", directory.display(), plain(&error)))
        }
    }
}

fn error(path: &Path, problem: String) -> ControlError {
    ControlError {
        argument: format!("--control-socket {}", path.display()),
        problem,
    }
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    lines: LineReader,
    outbox: Outbox,
    /// The client may still send.
    reading: bool,
    /// It takes nothing any more.
    gone: bool,
    /// Commands of it whose replies are still to come.
    begun: u32,
}

/// The listener and its clients.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode of the socket file, which the listener holds.
    made: Option<(u64, u64)>,
    listener: UnixListener,
    clients: BTreeMap<u64, Client>,
    next_key: u64,
    /// Given up to accept, and turn away, a client when the process has no descriptor left: one that
    /// is not accepted would keep the listener readable for ever.
    spare: Option<File>,
    /// Lines dropped for clients that are gone.
    dropped: u64,
}

impl Socket {
    /// Listens at `path`. A socket that a dead berth left there is replaced.
    ///
    /// # Errors
    /// The path cannot be used, or somebody listens there.
    pub fn open(path: &Path, poller: &Poller) -> Result<Self, ControlError> {
        let listener = listen(path).map_err(|problem| error(path, problem))?;
        let made = fs::symlink_metadata(path)
            .ok()
            .map(|found| (found.dev(), found.ino()));
        poller
            .add(&listener, Poller::LISTENER, Interest::Read)
            .map_err(|failed| error(path, plain(&failed)))?;
        Ok(Self {
            path: path.to_owned(),
            made,
            listener,
            clients: BTreeMap::new(),
            next_key: Poller::FIRST_CLIENT,
            spare: spare(),
            dropped: 0,
        })
    }

    /// Clients now.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether this client is still there.
    pub fn has(&self, key: u64) -> bool {
        self.clients.contains_key(&key)
    }

    /// Lines that did not fit a client's queue.
    pub fn dropped(&self) -> u64 {
        let now = self.clients.values().map(|client| client.outbox.dropped());
        now.fold(self.dropped, u64::saturating_add)
    }

    /// Takes the clients that wait, at most as many as there can be.
    pub fn accept(&mut self, poller: &Poller) {
        for _ in 0..MAX_CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, poller),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    tracing::warn!("control socket: a client was turned away: {error}");
                    self.spare = None;
                    drop(self.listener.accept());
                    self.spare = spare();
                    return;
                }
                // The client's own affair, such as ECONNABORTED.
                Err(_) => {}
            }
        }
    }

    fn admit(&mut self, mut stream: UnixStream, poller: &Poller) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() >= MAX_CLIENTS {
            let full = format!("all {MAX_CLIENTS} places for clients are taken");
            let line = protocol::reply(None, Err(CommandError::new(ErrorClass::Failed, full)));
            // An empty socket has room for it.
            let _ = io::Write::write(&mut stream, &line);
            return;
        }
        let key = self.next_key;
        if poller.add(&stream, key, Interest::Read).is_ok() {
            self.next_key += 1;
            let client = Client {
                stream,
                lines: LineReader::default(),
                outbox: Outbox::default(),
                reading: true,
                gone: false,
                begun: 0,
            };
            self.clients.insert(key, client);
        }
    }

    /// Reads what fits one turn of one client, which may have hung up.
    pub fn receive(&mut self, key: u64, hung_up: bool) -> Vec<Inbound> {
        let mut lines = Vec::new();
        let Some(client) = self.clients.get_mut(&key) else {
            return lines;
        };
        client.gone |= hung_up;
        let mut buffer = [0; READ_SIZE];
        match client.stream.read(&mut buffer) {
            Ok(0) => {
                client.reading = false;
                lines.extend(client.lines.finish());
            }
            Ok(count) => client.lines.feed(&buffer[..count], &mut lines),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => client.reading = false,
        }
        lines
    }

    /// Queues a line for one client.
    pub fn send(&mut self, key: u64, line: &[u8]) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.outbox.push(line);
        }
    }

    /// A reply to this client is to come.
    pub fn begin(&mut self, key: u64) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.begun += 1;
        }
    }

    /// Queues a reply that was to come.
    pub fn finish(&mut self, key: u64, line: &[u8]) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.begun = client.begun.saturating_sub(1);
            client.outbox.push(line);
        }
    }

    /// Sends a line to all clients.
    pub fn broadcast(&mut self, line: &[u8], poller: &Poller) {
        let keys: Vec<u64> = self.clients.keys().copied().collect();
        for key in keys {
            self.send(key, line);
            self.settle(key, poller);
        }
    }

    /// Writes what one client takes, and closes it when both sides are done.
    pub fn settle(&mut self, key: u64, poller: &Poller) {
        let Some(client) = self.clients.get_mut(&key) else {
            return;
        };
        let written = client.outbox.write_to(&mut client.stream);
        let interest = match (client.reading, client.outbox.is_empty()) {
            (true, true) => Interest::Read,
            (true, false) => Interest::ReadWrite,
            (false, false) => Interest::Write,
            // It only stopped sending, and waits.
            (false, true) if client.begun > 0 && !client.gone => Interest::Errors,
            (false, true) => return self.close(key),
        };
        if written
            .and_then(|()| poller.modify(&client.stream, key, interest))
            .is_err()
        {
            self.close(key);
        }
    }

    /// Forgets a client.
    pub fn close(&mut self, key: u64) {
        if let Some(mut client) = self.clients.remove(&key) {
            client.outbox.clear();
            self.dropped = self.dropped.saturating_add(client.outbox.dropped());
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path)
            .ok()
            .map(|found| (found.dev(), found.ino()));
        if self.made.is_some() && self.made == found {
            // Nobody is left to tell should this fail.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Replaces a dead socket, refuses a live one. Two that start at once take turns by a lock on the
/// directory, which leaves nothing behind; where it cannot be locked they have to be lucky.
fn listen(path: &Path) -> Result<UnixListener, String> {
    check_path(path)?;
    let _turn = File::open(directory(path)).ok().filter(|directory| {
        super::lock_until(directory, Instant::now() + START_LIMIT).unwrap_or(false)
    });
    match sys::connect(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| plain(&error))?;
        }
        Ok(_) => return Err("is in use by another berth".into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            return Err("is in use by another berth".into());
        }
        Err(error) => return Err(plain(&error)),
    }
    sys::listen(path).map_err(|error| plain(&error))
}
