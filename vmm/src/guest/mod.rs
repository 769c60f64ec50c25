//! berth as the first process of its guest: sets the system up, runs the command, reports how it ended.
//!
//! What it is to do stands in a file of the initramfs ([`Task`]); it talks to berth outside over COM2
//! ([`crate::guest_command::frames`]).

mod forward;
mod link;
mod ports;
mod system;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use self::forward::Forwarder;
use self::link::Link;
use crate::guest_command::frames::{Short, VERSION};
use crate::guest_command::task::{self, Task};

/// Exit status where the guest could not be made ready.
const NOT_READY: u8 = 255;

/// Why there is no command that runs: the exit status that this has, and the reason.
#[derive(Debug)]
struct NotRun(u8, String);

impl NotRun {
    fn unready(what: &str, error: impl std::fmt::Display) -> Self {
        Self(NOT_READY, format!("in the guest: {what}: {error}"))
    }
}

/// Whether this process is the first one of a guest that berth made.
pub fn is_first_process() -> bool {
    let name = std::env::args_os().next();
    std::process::id() == 1 && name.as_deref() == Some(OsStr::new(task::INIT))
}

/// Does what the first process does. Never returns: the kernel would panic.
pub fn run() -> ! {
    match run_task() {
        Ok(()) => {}
        // On the console, which berth shows if the guest dies.
        Err(error) => eprintln!("berth: the channel to the host is gone: {error}"),
    }
    // berth outside ends the machine. Whoever else runs this guest finds it switched off.
    thread::sleep(Duration::from_secs(10));
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

/// An error is one of the channel; others are reported through it.
fn run_task() -> io::Result<()> {
    let mounted = system::mount_all("");
    let mut link = Link::open()?;
    let started = mounted.and_then(|()| start());
    let child = match started {
        Ok(child) => child,
        Err(NotRun(status, why)) => return link.short(&Short::Failed(status, why)),
    };
    let port = link.takes_input_at_port();
    link.short(&Short::Ready(VERSION, port))?;
    let status = Forwarder::new(link, child)?.run()?;
    system::settle();
    status.report()
}

/// Makes the guest ready and starts the command.
fn start() -> Result<Child, NotRun> {
    let text = fs::read(task::FILE).map_err(|error| NotRun::unready(task::FILE, error))?;
    let task: Task =
        serde_json::from_slice(&text).map_err(|error| NotRun::unready(task::FILE, error))?;
    // It is a name like any other if there is none.
    let _ = rustix::system::sethostname(b"berth");
    for module in &task.modules {
        system::load(module)?;
    }
    if let Some(root) = &task.root {
        system::enter(root)?;
    }
    spawn(&task)
}

fn spawn(task: &Task) -> Result<Child, NotRun> {
    let Some((name, arguments)) = task.words.split_first() else {
        return Err(NotRun::unready("the command", "is empty"));
    };
    let directory = ["/root", "/"]
        .into_iter()
        .find(|path| fs::metadata(path).is_ok());
    let program = task.program.as_ref().unwrap_or(name);
    let started = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(task.environment.iter().map(|(key, value)| (key, value)))
        .current_dir(directory.unwrap_or("/"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    // As a shell tells it.
    started.map_err(|error| match error.kind() {
        ErrorKind::NotFound if is_there(program, &task.environment) => NotRun(
            127,
            format!("{name}: its interpreter or dynamic linker is not in the guest"),
        ),
        ErrorKind::NotFound => NotRun(127, format!("{name}: not found in the guest")),
        _ => {
            let text = error.to_string();
            let text = text
                .split(" (os error")
                .next()
                .unwrap_or(&text)
                .to_lowercase();
            NotRun(
                126,
                format!("{name}: cannot be executed in the guest: {text}"),
            )
        }
    })
}

/// Whether there is a file by the name of this program.
fn is_there(program: &str, environment: &[(String, String)]) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let mut folders = path.map_or("", |(_, path)| path).split(':');
    folders.any(|folder| Path::new(folder).join(program).exists())
}
