//! What a program of the host tells of itself, within limits.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a program may take to answer.
const LIMIT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};
/// Bytes of its answer that are looked at.
const MAX_ANSWER: u64 = 1 << 20;

/// What a program printed.
#[derive(Debug)]
pub struct Answer {
    /// Whether it ended with status 0.
    pub success: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs a command without input, and returns what it prints.
///
/// # Errors
/// It cannot be started, or does not end within 20 seconds.
pub fn ask(command: &mut Command) -> io::Result<Answer> {
    ask_within(command, &LIMIT)
}

fn ask_within(command: &mut Command, limit: &Timespec) -> io::Result<Answer> {
    // Nobody has to read these while it runs.
    let file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
    let (out, err) = (file("out")?, file("err")?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()?;
    let ended = wait(&child, limit);
    if ended.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    ended?;
    Ok(Answer {
        success: status.success(),
        out: text(out)?,
        err: text(err)?,
    })
}

fn wait(child: &Child, limit: &Timespec) -> io::Result<()> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let wait = || poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(limit));
    match rustix::io::retry_on_intr(wait)? {
        0 => Err(io::Error::new(
            ErrorKind::TimedOut,
            format!("does not answer within {} s", limit.tv_sec),
        )),
        _ => Ok(()),
    }
}

fn text(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_whole_and_apart() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 200000 /dev/zero | tr '\\0' x; echo no >&2; exit 3",
        ]);
        let answer = ask(&mut command).unwrap();
        assert_eq!((answer.out.len(), answer.err.as_str()), (200_000, "no\n"));
        assert!(!answer.success);
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended() {
        let mut command = Command::new("sleep");
        let limit = Timespec::default();
        let error = ask_within(command.arg("1000"), &limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
