//! A child process with captured output, a time limit on every wait, and no
//! way to outlive its test.
//!
//! The child leads a process group of its own. The group is killed when the
//! [`Process`] is dropped, when its leader ends, and (leader only) when the
//! test program itself dies.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How many of the last lines of each stream an error shows.
const TAIL_LINES: usize = 40;

/// How long the output of a child that ended may take to reach us.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What the child reads as its standard input.
#[derive(Debug, Clone, Default)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe that stays open and empty until [`Process::send`] or
    /// [`Process::close_stdin`].
    Held,
    /// A pipe with these bytes and then end of file.
    Given(Vec<u8>),
}

/// One of the two captured streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a process ended: exactly one of the two is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, if it exited.
    pub status: Option<i32>,
    /// Number of the signal that ended it, if one did.
    pub signal: Option<i32>,
}

/// A process that ended, with all it wrote.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// All of its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// All of its standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// Why a process did not do what was awaited. Every message carries the end
/// of the output.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The program asked for.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It did not come in time. The process still runs.
    #[error("{program}: no {what} within {} s\n{tail}", limit.as_secs_f32())]
    Timeout {
        /// The program.
        program: String,
        /// What was awaited.
        what: String,
        /// How long.
        limit: Duration,
        /// The end of the output.
        tail: String,
    },
    /// The process ended before it came.
    #[error("{program}: ended with {exit} before {what}\n{tail}")]
    Ended {
        /// The program.
        program: String,
        /// What was awaited.
        what: String,
        /// How it ended.
        exit: Exit,
        /// The end of the output.
        tail: String,
    },
    /// It does not take input any more, or never did.
    #[error("{program}: cannot write to its standard input: {source}\n{tail}")]
    Input {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
        /// The end of the output.
        tail: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.signal) {
            (Some(status), _) => write!(f, "status {status}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("neither status nor signal"),
        }
    }
}

impl Exit {
    /// True for status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.status == Some(0)
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self {
            status: status.code(),
            signal: status.signal(),
        }
    }
}

/// What is to be started; see [`Process::builder`].
#[derive(Debug)]
pub struct Builder {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    dir: Option<OsString>,
    stdin: Stdin,
    echo: bool,
}

/// A running or ended child. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    program: String,
    pid: i32,
    stdin: Option<ChildStdin>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stdout: Captured,
    stderr: Captured,
    exit: Option<Exit>,
}

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    /// What `wait_for` has already looked past.
    seen: usize,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A reader that panicked left the bytes it had: still worth showing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stream(&mut self, which: Stream) -> &mut Captured {
        match which {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn drained(&self) -> bool {
        self.exit.is_some() && self.stdout.ended && self.stderr.ended
    }

    fn tail(&self) -> String {
        let mut text = String::new();
        for (name, captured) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let all = String::from_utf8_lossy(&captured.bytes);
            let lines: Vec<&str> = all.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            text.push_str(&format!(
                "--- {name}, last {} lines ---\n",
                lines.len() - from
            ));
            for line in &lines[from..] {
                text.push_str(line.trim_end_matches('\r'));
                text.push('\n');
            }
        }
        text
    }
}

impl Captured {
    /// Finds the first line not yet looked past that `wanted` accepts, and
    /// looks past it. The last line counts even if unfinished (a prompt).
    fn find(&mut self, wanted: &mut dyn FnMut(&str) -> bool) -> Option<String> {
        let mut start = self.seen;
        while start < self.bytes.len() {
            let rest = &self.bytes[start..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let length = end.unwrap_or(rest.len());
            let line = String::from_utf8_lossy(&rest[..length]);
            let line = line.trim_end_matches('\r');
            let next = start + length + usize::from(end.is_some());
            if wanted(line) {
                let line = line.to_owned();
                self.seen = next;
                return Some(line);
            }
            if end.is_none() {
                break;
            }
            start = next;
            self.seen = next;
        }
        None
    }
}

impl Builder {
    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable for the child.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (key.as_ref().to_owned(), value.as_ref().to_owned());
        self.envs.push(pair);
        self
    }

    /// Sets the folder it starts in.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.as_os_str().to_owned());
        self
    }

    /// Sets what it reads; [`Stdin::Null`] if not called.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Also passes its output on, as it comes.
    #[must_use]
    pub fn echo(mut self, echo: bool) -> Self {
        self.echo = echo;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::Spawn`]; [`Error::Input`] if given input could not be written.
    pub fn spawn(self) -> Result<Process, Error> {
        let program = self.program.to_string_lossy().into_owned();
        let mut command = self.command();
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = mpsc::sync_channel(1);
        let for_keeper = Arc::clone(&shared);
        let echo = self.echo;
        let failed = |source| Error::Spawn {
            program: program.clone(),
            source,
        };
        thread::Builder::new()
            .name("process-keeper".to_owned())
            .spawn(move || match command.spawn() {
                Ok(child) => keep(child, &for_keeper, echo, &sender),
                Err(error) => drop(sender.send(Err(error))),
            })
            .map_err(failed)?;
        let (pid, stdin) = receiver
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its keeper thread died")))
            .map_err(failed)?;
        let mut process = Process {
            program,
            pid,
            stdin,
            shared,
        };
        match self.stdin {
            Stdin::Given(bytes) => process.give(bytes),
            Stdin::Null => process.stdin = None,
            Stdin::Held => {}
        }
        Ok(process)
    }

    /// Starts it, waits for its end, and returns all it wrote.
    ///
    /// # Errors
    /// As [`Builder::spawn`] and [`Process::finish`].
    pub fn run(self, limit: Duration) -> Result<Finished, Error> {
        self.spawn()?.finish(limit)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(key, value)| (key, value)))
            .stdin(match self.stdin {
                Stdin::Null => Stdio::null(),
                Stdin::Held | Stdin::Given(_) => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let die_with_parent = || {
            // SAFETY: prctl(PR_SET_PDEATHSIG) takes integers only and is
            // async-signal-safe, as pre_exec asks.
            let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if result == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
        // SAFETY: the closure calls only prctl, and allocates nothing unless
        // that fails.
        unsafe { command.pre_exec(die_with_parent) };
        command
    }
}

type Started = io::Result<(i32, Option<ChildStdin>)>;

/// Reads the child's streams and reaps it. Runs on the thread that spawned
/// it and ends with it: the kernel's parent-death signal follows the thread.
fn keep(mut child: Child, shared: &Arc<Shared>, echo: bool, started: &mpsc::SyncSender<Started>) {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    if let Some(pipe) = child.stdout.take() {
        capture(pipe, Stream::Stdout, shared, echo);
    }
    if let Some(pipe) = child.stderr.take() {
        capture(pipe, Stream::Stderr, shared, echo);
    }
    drop(started.send(Ok((pid, child.stdin.take()))));
    wait_without_reaping(pid);
    let mut state = shared.lock();
    // Not yet reaped: the group's number is still ours.
    kill_group(pid, libc::SIGKILL);
    let exit = child.wait().map(Exit::from);
    state.exit = Some(exit.unwrap_or(Exit {
        status: None,
        signal: None,
    }));
    shared.changed.notify_all();
}

fn capture(mut pipe: impl Read + Send + 'static, which: Stream, shared: &Arc<Shared>, echo: bool) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if echo {
                pass_on(which, &buffer[..length]);
            }
            let mut state = shared.lock();
            state
                .stream(which)
                .bytes
                .extend_from_slice(&buffer[..length]);
            shared.changed.notify_all();
        }
        shared.lock().stream(which).ended = true;
        shared.changed.notify_all();
    });
}

/// A closed output of our own is no reason to stop capturing.
fn pass_on(which: Stream, bytes: &[u8]) {
    let _ = match which {
        Stream::Stdout => io::stdout()
            .write_all(bytes)
            .and_then(|()| io::stdout().flush()),
        Stream::Stderr => io::stderr().write_all(bytes),
    };
}

fn wait_without_reaping(pid: i32) {
    loop {
        // SAFETY: an all-zero siginfo_t is a valid value of that plain C
        // structure, and waitid writes only into it.
        let result = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PID,
                libc::id_t::try_from(pid).unwrap_or(0),
                &mut info,
                libc::WEXITED | libc::WNOWAIT,
            )
        };
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

fn kill_group(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers. The caller holds the state lock and
    // the leader is not reaped, so the number names our group and no other.
    unsafe { libc::kill(-pid, signal) };
}

impl Process {
    /// Starts describing a process to run.
    #[must_use]
    pub fn builder(program: impl AsRef<OsStr>) -> Builder {
        Builder {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            dir: None,
            stdin: Stdin::Null,
            echo: false,
        }
    }

    /// Its process id (and that of its group).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn try_exit(&self) -> Option<Exit> {
        self.shared.lock().exit
    }

    /// All it wrote so far, invalid UTF-8 replaced.
    #[must_use]
    pub fn output(&self, stream: Stream) -> String {
        String::from_utf8_lossy(&self.shared.lock().stream(stream).bytes).into_owned()
    }

    /// The last lines of both streams, as the errors show them.
    #[must_use]
    pub fn tail(&self) -> String {
        self.shared.lock().tail()
    }

    /// Writes to its standard input, which must be [`Stdin::Held`].
    ///
    /// # Errors
    /// [`Error::Input`] if it is closed.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = match &mut self.stdin {
            Some(pipe) => pipe.write_all(bytes).and_then(|()| pipe.flush()),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        };
        result.map_err(|source| Error::Input {
            program: self.program.clone(),
            source,
            tail: self.tail(),
        })
    }

    /// Closes its standard input: it reads end of file.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Feeds `bytes` from a thread, for the child may not read them all.
    fn give(&mut self, bytes: Vec<u8>) {
        if let Some(mut pipe) = self.stdin.take() {
            thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
    }

    /// Sends a signal to its whole group, unless it has ended.
    pub fn signal(&self, signal: i32) {
        let state = self.shared.lock();
        if state.exit.is_none() {
            kill_group(self.pid, signal);
        }
    }

    /// Waits for a line of `stream` that `wanted` accepts, after those that
    /// an earlier call returned or passed over. An unfinished last line
    /// counts too. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`, [`Error::Ended`] if the process
    /// ended without such a line.
    pub fn wait_for(
        &self,
        stream: Stream,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Result<String, Error> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(line) = state.stream(stream).find(&mut wanted) {
                return Ok(line);
            }
            if let (true, Some(exit)) = (state.stream(stream).ended, state.exit) {
                return Err(Error::Ended {
                    program: self.program.clone(),
                    what: what.to_owned(),
                    exit,
                    tail: state.tail(),
                });
            }
            state = self.pause(state, deadline, what, limit)?;
        }
    }

    /// Waits for its end; the process stays as it is on a timeout.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<Exit, Error> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(exit) = state.exit {
                break self.drain(state, exit);
            }
            state = self.pause(state, deadline, "end", limit)?;
        }
    }

    /// Waits for its end and returns all it wrote. Kills it on a timeout.
    ///
    /// # Errors
    /// [`Error::Timeout`] after `limit`.
    pub fn finish(self, limit: Duration) -> Result<Finished, Error> {
        let exit = self.wait(limit)?;
        Ok(Finished {
            exit,
            stdout: self.output(Stream::Stdout),
            stderr: self.output(Stream::Stderr),
        })
    }

    /// Lets the readers catch up with what the ended child wrote.
    fn drain(&self, mut state: MutexGuard<'_, State>, exit: Exit) -> Result<Exit, Error> {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while !state.drained() {
            state = self.pause(state, deadline, "end of its output", DRAIN_LIMIT)?;
        }
        Ok(exit)
    }

    fn pause<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
        what: &str,
        limit: Duration,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout {
                program: self.program.clone(),
                what: what.to_owned(),
                limit,
                tail: state.tail(),
            });
        }
        let (state, _) = self
            .shared
            .changed
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(state)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        self.signal(libc::SIGKILL);
        // SIGKILL cannot be refused; the limit guards against a child stuck
        // in the kernel, which no test should wait for.
        let deadline = Instant::now() + DRAIN_LIMIT;
        let mut state = self.shared.lock();
        while state.exit.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Builder {
        Process::builder("/bin/sh").args(["-c", script])
    }

    fn alive(pid: i32) -> bool {
        // SAFETY: signal 0 only asks whether the process exists.
        unsafe { libc::kill(pid, 0) == 0 }
    }

    fn wait_until_gone(pid: i32) {
        let deadline = Instant::now() + LIMIT;
        while alive(pid) {
            assert!(Instant::now() < deadline, "process {pid} still lives");
            thread::yield_now();
        }
    }

    #[test]
    fn status_and_both_streams_come_back() {
        let done = sh("echo out; echo err >&2; exit 33").run(LIMIT).unwrap();
        assert_eq!(done.exit.status, Some(33));
        assert_eq!(done.stdout, "out\n");
        assert_eq!(done.stderr, "err\n");
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        let done = sh("kill -9 $$").run(LIMIT).unwrap();
        assert_eq!(done.exit.signal, Some(9));
        assert_eq!(done.exit.status, None);
    }

    #[test]
    fn given_input_ends_and_held_input_does_not() {
        let done = Process::builder("cat")
            .stdin(Stdin::Given(b"hello".to_vec()))
            .run(LIMIT)
            .unwrap();
        assert_eq!(done.stdout, "hello");

        let mut held = Process::builder("cat").stdin(Stdin::Held).spawn().unwrap();
        held.send(b"one\n").unwrap();
        held.wait_for(Stream::Stdout, "echo", LIMIT, |line| line == "one")
            .unwrap();
        assert_eq!(held.try_exit(), None);
        held.close_stdin();
        assert!(held.wait(LIMIT).unwrap().success());
    }

    #[test]
    fn lines_are_found_in_order_and_a_prompt_counts() {
        let process = sh("echo a; echo b; echo a; printf 'login: '; exec sleep 60")
            .spawn()
            .unwrap();
        let find =
            |text: &str| process.wait_for(Stream::Stdout, text, LIMIT, |line| line.contains(text));
        assert_eq!(find("a").unwrap(), "a");
        assert_eq!(find("a").unwrap(), "a");
        assert_eq!(find("login").unwrap(), "login: ");
        let late = process.wait_for(Stream::Stdout, "b", Duration::from_millis(1), |line| {
            line == "b"
        });
        assert!(matches!(late, Err(Error::Timeout { .. })));
    }

    #[test]
    fn a_line_that_never_comes_shows_the_tail() {
        let process = sh("echo last words; exit 7").spawn().unwrap();
        let error = process
            .wait_for(Stream::Stdout, "a miracle", LIMIT, |line| line == "miracle")
            .unwrap_err()
            .to_string();
        assert!(error.contains("last words"), "{error}");
        assert!(error.contains("status 7"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Process::builder("/no/such/program").spawn().unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }

    #[test]
    fn dropping_kills_the_whole_group() {
        let process = sh("sleep 600 & echo $!; wait").spawn().unwrap();
        let line = process
            .wait_for(Stream::Stdout, "pid", LIMIT, |line| !line.is_empty())
            .unwrap();
        let grandchild: i32 = line.parse().unwrap();
        assert!(alive(grandchild));
        drop(process);
        wait_until_gone(grandchild);
    }

    #[test]
    fn what_a_child_leaves_behind_is_killed_when_it_ends() {
        let done = sh("sleep 600 & echo $!").run(LIMIT).unwrap();
        assert!(done.exit.success());
        wait_until_gone(done.stdout.trim().parse().unwrap());
    }
}
