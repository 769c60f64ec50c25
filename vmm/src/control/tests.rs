//! The server and its clients over real FIFOs and sockets. Every wait has a limit.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use tempfile::TempDir;
use vmm_sys_util::eventfd::EventFd;

use super::client::{Action, CtlConfig, CtlError};
use super::line::MAX_LINE;
use super::outbox::MAX_WAITING;
use super::*;
use crate::control::command::ErrorClass;

/// Far more than anything here takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A machine that counts, answers `info stats` with a number and `info nvme` with a long text. What
/// waits is named by the count.
#[derive(Default)]
struct Machine {
    executed: u64,
    forgotten: Vec<Ticket>,
}

const LONG: usize = 100_000;

impl CommandSink for Machine {
    fn execute(&mut self, command: Command) -> Result<Answer, CommandError> {
        self.executed += 1;
        Ok(Answer::Done(match command {
            Command::Info(command::Info::Status) => json!({ "executed": self.executed }),
            Command::Info(command::Info::Stats) => self.executed.into(),
            Command::Info(command::Info::Nvme) => "x".repeat(LONG).into(),
            Command::Wait { .. } => return Ok(Answer::Later(Ticket(self.executed))),
            Command::DeviceDel { id, .. } => {
                let why = format!("no device {id}");
                return Err(CommandError::new(ErrorClass::NotFound, why));
            }
            _ => Value::Null,
        }))
    }

    fn forget(&mut self, ticket: Ticket) {
        self.forgotten.push(ticket);
    }
}

/// Calls the server until it has nothing left to do. A descriptor that stays readable without a cause
/// would make the main loop spin, and fails here.
fn settle(server: &mut ControlServer, machine: &mut Machine) {
    let deadline = Instant::now() + LIMIT;
    while readable(server) {
        server.handle(machine);
        assert!(Instant::now() < deadline, "the server never comes to rest");
    }
}

fn readable(server: &ControlServer) -> bool {
    // SAFETY: the server keeps its descriptor open, and outlives this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(server.as_raw_fd()) };
    sys::poll([(fd, libc::POLLIN)], Instant::now()).unwrap() != [0]
}

/// A server on its own thread, as a main loop would drive it.
struct Running {
    thread: Option<JoinHandle<Machine>>,
    events: Sender<Event>,
    wake: EventFd,
    stop: Sender<()>,
}

impl Running {
    fn start(server: ControlServer) -> Self {
        let (events, queued) = channel();
        let (stop, stopped) = channel();
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let woken = wake.try_clone().unwrap();
        let thread = std::thread::spawn(move || main_loop(server, &woken, &queued, &stopped));
        Self {
            thread: Some(thread),
            events,
            wake,
            stop,
        }
    }

    fn tell(&self, event: Event) {
        self.events.send(event).unwrap();
        self.wake.write(1).unwrap();
    }

    fn stop(mut self) -> Machine {
        self.end().unwrap()
    }

    fn end(&mut self) -> Option<Machine> {
        let thread = self.thread.take()?;
        self.stop.send(()).unwrap();
        self.wake.write(1).unwrap();
        Some(thread.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn main_loop(
    mut server: ControlServer,
    wake: &EventFd,
    events: &Receiver<Event>,
    stopped: &Receiver<()>,
) -> Machine {
    let mut machine = Machine::default();
    loop {
        // SAFETY: both descriptors are open as long as their owners here.
        let fds =
            unsafe { [server.as_raw_fd(), wake.as_raw_fd()].map(|fd| BorrowedFd::borrow_raw(fd)) };
        sys::poll(fds.map(|fd| (fd, libc::POLLIN)), Instant::now() + LIMIT).unwrap();
        let _ = wake.read();
        for event in events.try_iter() {
            server.broadcast(&event);
        }
        if stopped.try_recv().is_ok() {
            return machine;
        }
        server.handle(&mut machine);
    }
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn pipe(&self) -> ControlServer {
        ControlServer::new(Some(&self.path("p")), None).unwrap()
    }

    fn socket(&self) -> ControlServer {
        ControlServer::new(None, Some(&self.path("s"))).unwrap()
    }

    fn both(&self) -> ControlServer {
        ControlServer::new(Some(&self.path("p")), Some(&self.path("s"))).unwrap()
    }

    /// Opens `p.in` as `echo … > p.in` does.
    fn commands(&self) -> File {
        let options = libc::O_NONBLOCK;
        OpenOptions::new()
            .write(true)
            .custom_flags(options)
            .open(self.path("p.in"))
            .unwrap()
    }

    /// Opens `p.out` as `cat p.out` does.
    fn replies(&self) -> File {
        let options = libc::O_NONBLOCK;
        OpenOptions::new()
            .read(true)
            .custom_flags(options)
            .open(self.path("p.out"))
            .unwrap()
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path("s")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        BufReader::new(stream)
    }

    fn ctl(&self, name: &str, command: &str, timeout: Duration) -> Result<String, CtlError> {
        let config = CtlConfig {
            path: self.path(name),
            action: Action::Command(command.to_owned()),
            timeout,
            output: client::Output::Text,
        };
        client::ask(&config, command).map(|reply| client::printable(&reply))
    }
}

/// Everything that can be read now.
fn drain(file: &mut File) -> String {
    let mut bytes = Vec::new();
    match file.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    String::from_utf8(bytes).unwrap()
}

/// The lines of a text as JSON; the text ends with a newline.
fn json_lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn read_reply(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn the_pipe_answers_in_order() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    let (mut commands, mut replies) = (place.commands(), place.replies());
    commands
        .write_all(b"@a info stats\n\n\r\n@b device_del x\r\nnonsense\n@c info stats\n")
        .unwrap();
    settle(&mut server, &mut machine);
    let lines = json_lines(&drain(&mut replies));
    assert_eq!(lines[0], json!({ "token": "a", "ok": true, "result": 1 }));
    let error = json!({ "class": "NotFound", "message": "no device x" });
    assert_eq!(
        lines[1],
        json!({ "token": "b", "ok": false, "error": error })
    );
    assert_eq!(lines[2]["error"]["class"], "UnknownCommand");
    assert_eq!(lines[3], json!({ "token": "c", "ok": true, "result": 3 }));
    assert_eq!(lines.len(), 4);
}

#[test]
fn the_pipe_takes_lines_of_4096_bytes_and_no_longer_ones() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    let (mut commands, mut replies) = (place.commands(), place.replies());
    let mut send = |line: &[u8]| {
        commands.write_all(line).unwrap();
        settle(&mut server, &mut machine);
        json_lines(&drain(&mut replies))
    };
    let padded = |length: usize| {
        let mut line = b"@t info stats".to_vec();
        line.resize(length - 1, b' ');
        line.push(b'\n');
        line
    };
    assert_eq!(send(&padded(MAX_LINE))[0]["result"], 1);
    let reply = send(&padded(MAX_LINE + 1));
    assert_eq!(reply.len(), 1);
    assert_eq!(
        (&reply[0]["token"], &reply[0]["error"]["class"]),
        (&json!("t"), &json!("Protocol"))
    );
    // Longer than the server reads at once, and two of them.
    let replies = send(&[padded(20_000), padded(40_000), b"info stats\n".to_vec()].concat());
    assert_eq!(replies.len(), 3);
    assert_eq!(replies[2]["result"], 2);
    // A line that comes in pieces.
    assert_eq!(send(b"info "), Vec::<Value>::new());
    assert_eq!(send(b"stats\n")[0]["result"], 3);
}

#[test]
fn the_pipe_survives_garbage() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    let (mut commands, mut replies) = (place.commands(), place.replies());
    // A multiplicative generator: all byte values, no order, the same every time.
    let mut state = 1_u32;
    for _ in 0..40 {
        let garbage: Vec<u8> = (0..3000)
            .map(|_| {
                state = state.wrapping_mul(48_271) % 0x7fff_ffff;
                state.to_le_bytes()[1]
            })
            .collect();
        commands.write_all(&garbage).unwrap();
        settle(&mut server, &mut machine);
        for reply in json_lines(&drain(&mut replies)) {
            assert_eq!(reply["ok"], false);
        }
    }
    commands.write_all(b"\n@end info stats\n").unwrap();
    settle(&mut server, &mut machine);
    let replies = json_lines(&drain(&mut replies));
    assert_eq!(replies.last().unwrap()["token"], "end");
    assert_eq!(machine.executed, 1);
}

#[test]
fn replies_without_a_reader_are_counted_and_a_later_reader_is_served() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    let mut commands = place.commands();
    commands
        .write_all(b"info stats\ninfo stats\nnonsense\n")
        .unwrap();
    settle(&mut server, &mut machine);
    server.broadcast(&Event::new("guest_reset"));
    assert_eq!(machine.executed, 2);
    for round in 1..4_u64 {
        let mut replies = place.replies();
        commands.write_all(b"info status\n").unwrap();
        settle(&mut server, &mut machine);
        let lines = json_lines(&drain(&mut replies));
        assert_eq!(lines.len(), 1, "nothing old comes");
        let control = json!({ "clients": 0, "dropped_pipe": 3 + round, "dropped_socket": 0 });
        assert_eq!(lines[0]["result"]["control"], control);
        drop(replies);
        // The reader has gone, the server notices, and rests.
        settle(&mut server, &mut machine);
        server.broadcast(&Event::new("guest_reset"));
    }
}

#[test]
fn a_reader_that_goes_takes_what_it_left_unread_with_it() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    let mut commands = place.commands();
    let lazy = place.replies();
    commands
        .write_all(b"@lazy info nvme\n@lazy info stats\n")
        .unwrap();
    settle(&mut server, &mut machine);
    drop(lazy);
    settle(&mut server, &mut machine);
    let mut replies = place.replies();
    commands.write_all(b"@next info status\n").unwrap();
    settle(&mut server, &mut machine);
    let text = drain(&mut replies);
    let lines = json_lines(&text);
    assert_eq!((lines.len(), &lines[0]["token"]), (1, &json!("next")));
    assert_eq!(lines[0]["result"]["control"]["dropped_pipe"], 2);
}

#[test]
fn a_hundred_thousand_unread_replies_never_block() {
    const COUNT: u64 = 100_000;
    let place = Place::new();
    let (mut server, mut machine) = (place.both(), Machine::default());
    let (mut commands, mut replies) = (place.commands(), place.replies());
    let mut silent = place.connect();
    let batch = b"info stats\n".repeat(100);
    let start = Instant::now();
    for _ in 0..COUNT / 100 {
        commands.write_all(&batch).unwrap();
        silent.get_mut().write_all(&batch).unwrap();
        settle(&mut server, &mut machine);
    }
    assert_eq!(machine.executed, 2 * COUNT);
    assert!(start.elapsed() < LIMIT, "took {:?}", start.elapsed());

    // Both clients wake up: whole lines, and what is missing was counted.
    let mut text = String::new();
    loop {
        let more = drain(&mut replies);
        if more.is_empty() {
            break;
        }
        text += &more;
        settle(&mut server, &mut machine);
    }
    let received = json_lines(&text).len() as u64;
    assert!(text.len() > MAX_WAITING / 2);
    commands.write_all(b"info status\n").unwrap();
    settle(&mut server, &mut machine);
    let status = &json_lines(&drain(&mut replies))[0]["result"]["control"];
    assert_eq!(status["clients"], 1);
    assert_eq!(status["dropped_pipe"], COUNT - received);
    let dropped = status["dropped_socket"].as_u64().unwrap();
    assert!(dropped > 0);
    let running = Running::start(server);
    for _ in 0..COUNT - dropped {
        assert_eq!(read_reply(&mut silent)["ok"], true);
    }
    silent.get_mut().write_all(b"@last info stats\n").unwrap();
    assert_eq!(read_reply(&mut silent)["token"], "last");
    running.stop();
}

#[test]
fn made_fifos_are_private_and_go_accepted_ones_stay() {
    let place = Place::new();
    let server = place.pipe();
    assert_eq!(place.names(), ["p.in", "p.out"]);
    for name in ["p.in", "p.out"] {
        let mode = fs::metadata(place.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    drop(server);
    assert!(place.names().is_empty());

    sys::mkfifo(&place.path("p.out")).unwrap();
    drop(place.pipe());
    assert_eq!(place.names(), ["p.out"]);
    sys::mkfifo(&place.path("p.in")).unwrap();
    drop(place.pipe());
    assert_eq!(place.names(), ["p.in", "p.out"]);
}

#[test]
fn what_is_in_the_way_stays_there() {
    let place = Place::new();
    fs::write(place.path("p.out"), "precious").unwrap();
    let error = ControlServer::new(Some(&place.path("p")), None)
        .unwrap_err()
        .to_string();
    let base = place.path("p").display().to_string();
    let expected = format!(
        "--control-pipe {base}: {base}.out is a regular file, not a FIFO; remove it or choose \
         another path"
    );
    assert_eq!(error, expected);
    // The half that was made already has gone again.
    assert_eq!(place.names(), ["p.out"]);
    fs::write(place.path("s"), "precious").unwrap();
    let error = ControlServer::new(None, Some(&place.path("s")))
        .unwrap_err()
        .to_string();
    assert!(error.contains("is a regular file, not a socket"), "{error}");
    assert_eq!(fs::read(place.path("p.out")).unwrap(), b"precious");
    assert_eq!(fs::read(place.path("s")).unwrap(), b"precious");
}

#[test]
fn a_file_that_takes_the_place_of_the_reply_fifo_is_not_written() {
    let place = Place::new();
    let (mut server, mut machine) = (place.pipe(), Machine::default());
    fs::remove_file(place.path("p.out")).unwrap();
    fs::write(place.path("p.out"), "precious").unwrap();
    place.commands().write_all(b"info stats\n").unwrap();
    settle(&mut server, &mut machine);
    drop(server);
    assert_eq!(fs::read(place.path("p.out")).unwrap(), b"precious");
}

#[test]
fn a_second_server_is_refused() {
    let place = Place::new();
    let first = place.both();
    let error = ControlServer::new(Some(&place.path("p")), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("p.in is in use by another berth"),
        "{error}"
    );
    let error = ControlServer::new(None, Some(&place.path("s")))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("is in use by another berth"), "{error}");
    assert_eq!(place.names(), ["p.in", "p.out", "s"]);
    drop(first);
    assert!(place.names().is_empty());
    drop(place.both());
}

#[test]
fn of_many_that_start_at_once_one_wins() {
    let place = Place::new();
    for round in 0..20 {
        // What a dead berth leaves.
        drop(UnixListener::bind(place.path("s")));
        let start = std::sync::Barrier::new(4);
        let winners: Vec<ControlServer> = std::thread::scope(|scope| {
            let try_one = || {
                start.wait();
                ControlServer::new(Some(&place.path("p")), Some(&place.path("s"))).ok()
            };
            let threads = [(); 4].map(|()| scope.spawn(try_one));
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        let _running = Running::start(winners.into_iter().next().unwrap());
        place.ctl("s", "info stats", LIMIT).unwrap();
        place.ctl("p", "info stats", LIMIT).unwrap();
        fs::remove_file(place.path("s")).unwrap();
    }
}

/// Not a test of its own: the berth that [`a_killed_server_leaves_nothing_in_the_way`] kills.
#[test]
fn victim() {
    let Some(base) = std::env::var_os("BERTH_TEST_VICTIM") else {
        return;
    };
    let base = PathBuf::from(base);
    let server = ControlServer::new(Some(&base.join("p")), Some(&base.join("s"))).unwrap();
    println!("\nready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(server);
}

fn start_victim(place: &Place) -> Child {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "control::tests::victim", "--nocapture"])
        .env("BERTH_TEST_VICTIM", place.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Ends at the latest when the child does.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    child
}

#[test]
fn a_killed_server_leaves_nothing_in_the_way() {
    let place = Place::new();
    let mut child = start_victim(&place);
    ControlServer::new(Some(&place.path("p")), None).unwrap_err();
    ControlServer::new(None, Some(&place.path("s"))).unwrap_err();
    // A command that nobody will execute any more.
    place.commands().write_all(b"system_reset\n").unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.names(), ["p.in", "p.out", "s"]);

    let gone = place.ctl("p", "info stats", LIMIT).unwrap_err().to_string();
    assert!(
        gone.contains("p: no berth there: nobody listens; it was killed"),
        "{gone}"
    );
    let gone = place.ctl("s", "info stats", LIMIT).unwrap_err().to_string();
    assert!(
        gone.contains("s: no berth there: nobody listens; it was killed"),
        "{gone}"
    );

    let running = Running::start(place.both());
    assert_eq!(place.ctl("p", "info stats", LIMIT).unwrap(), "1\n");
    assert_eq!(place.ctl("s", "info stats", LIMIT).unwrap(), "2\n");
    assert_eq!(running.stop().executed, 2);
}

#[test]
fn the_socket_serves_many_clients_and_is_private() {
    let place = Place::new();
    let _running = Running::start(place.socket());
    let mode = fs::metadata(place.path("s")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut clients: Vec<_> = (0..socket::MAX_CLIENTS).map(|_| place.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client
            .get_mut()
            .write_all(format!("@{number} info stats\n").as_bytes())
            .unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(read_reply(client)["token"], number.to_string());
    }
    let mut rejected = place.connect();
    let refusal = read_reply(&mut rejected);
    assert_eq!(
        refusal["error"]["message"],
        "all 64 places for clients are taken"
    );
    assert_eq!(rejected.read(&mut [0]).unwrap(), 0);
    // berth may hang up before or after the command was sent.
    for _ in 0..100 {
        let error = place.ctl("s", "info stats", LIMIT).unwrap_err().to_string();
        assert!(error.contains("all 64 places"), "{error}");
    }
    // A place that is given up is free again, at the latest after some tries.
    clients.pop();
    let deadline = Instant::now() + LIMIT;
    while place.ctl("s", "info stats", LIMIT).is_err() {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_client_that_only_stops_sending_gets_its_replies() {
    let place = Place::new();
    let _running = Running::start(place.socket());
    let mut client = place.connect();
    client
        .get_mut()
        .write_all(b"@a info nvme\n@b info nvme\n@c info nvme\n@d info nvme\nquit")
        .unwrap();
    client.get_mut().shutdown(Shutdown::Write).unwrap();
    for token in ["a", "b"] {
        let reply = read_reply(&mut client);
        assert_eq!(reply["token"], token);
        assert_eq!(reply["result"].as_str().unwrap().len(), LONG);
    }
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    let rest = json_lines(&rest);
    let message = "the last line has no newline and was not executed";
    assert_eq!(rest.last().unwrap()["error"]["message"], message);
}

#[test]
fn commands_that_wait_hold_up_nobody() {
    let place = Place::new();
    let (mut server, mut machine) = (place.both(), Machine::default());
    let (mut commands, mut replies) = (place.commands(), place.replies());
    commands
        .write_all(b"@a wait ns_changed\n@b info stats\n@c wait ns_changed\n")
        .unwrap();
    settle(&mut server, &mut machine);
    let told = json_lines(&drain(&mut replies));
    assert_eq!(told, [json!({ "token": "b", "ok": true, "result": 2 })]);
    let late = CommandError::new(ErrorClass::Timeout, "late");
    server.finish(Ticket(3), Err(late));
    server.finish(Ticket(1), Ok("first".into()));
    server.finish(Ticket(1), Ok("never twice".into()));
    server.finish(Ticket(9), Ok("nobody's".into()));
    let told = json_lines(&drain(&mut replies));
    let error = json!({ "class": "Timeout", "message": "late" });
    assert_eq!(
        told,
        [
            json!({ "token": "c", "ok": false, "error": error }),
            json!({ "token": "a", "ok": true, "result": "first" }),
        ]
    );
}

#[test]
fn a_client_that_only_stops_sending_gets_what_it_waits_for() {
    let place = Place::new();
    let (mut server, mut machine) = (place.socket(), Machine::default());
    let mut stopped = place.connect();
    stopped
        .get_mut()
        .write_all(b"@a wait ns_changed\n")
        .unwrap();
    stopped.get_mut().shutdown(Shutdown::Write).unwrap();
    settle(&mut server, &mut machine);
    // One that is gone is not kept, and its reply is nobody's.
    let mut gone = place.connect();
    gone.get_mut().write_all(b"wait ns_changed\n").unwrap();
    settle(&mut server, &mut machine);
    drop(gone);
    settle(&mut server, &mut machine);
    assert_eq!(server.socket.as_ref().unwrap().clients(), 1);
    assert_eq!(machine.forgotten, [Ticket(2)]);
    server.finish(Ticket(2), Ok(Value::Null));
    server.finish(Ticket(1), Ok("now".into()));
    let reply = read_reply(&mut stopped);
    assert_eq!(reply, json!({ "token": "a", "ok": true, "result": "now" }));
    settle(&mut server, &mut machine);
    assert_eq!(server.socket.as_ref().unwrap().clients(), 0);
    assert!(server.begun.is_empty());
}

#[test]
fn clients_that_vanish_leave_nothing() {
    let place = Place::new();
    let (mut server, mut machine) = (place.socket(), Machine::default());
    for round in 0..200 {
        let mut client = place.connect();
        let commands: &[u8] = match round % 4 {
            0 => b"info nvme\ninfo nvme\ninfo nvme\ninfo nvme\n",
            1 => b"info",
            2 => b"",
            _ => b"info stats\n",
        };
        client.get_mut().write_all(commands).unwrap();
        if round % 3 == 0 {
            settle(&mut server, &mut machine);
        }
        drop(client);
        settle(&mut server, &mut machine);
    }
    assert_eq!(server.socket.as_ref().unwrap().clients(), 0);
    assert!(machine.executed >= 250);
    drop(server);
    assert!(place.names().is_empty());
}

#[test]
fn events_reach_every_client() {
    let place = Place::new();
    let running = Running::start(place.both());
    let mut clients = [place.connect(), place.connect()];
    for client in &mut clients {
        client.get_mut().write_all(b"info stats\n").unwrap();
        read_reply(client);
    }
    let mut replies = place.replies();
    running.tell(Event::new("device_deleted").with("id", "nvme1"));
    for client in &mut clients {
        let event = read_reply(client);
        assert_eq!(
            (&event["event"], &event["id"]),
            (&json!("device_deleted"), &json!("nvme1"))
        );
    }
    // Broadcasts go to the pipe first.
    assert_eq!(
        json_lines(&drain(&mut replies))[0]["event"],
        "device_deleted"
    );
}

#[test]
fn ctl_prints_what_people_read() {
    let place = Place::new();
    let running = Running::start(place.both());
    for name in ["p", "s"] {
        assert!(
            place
                .ctl(name, "help quit", LIMIT)
                .unwrap()
                .starts_with("quit\n")
        );
        assert_eq!(place.ctl(name, "system_powerdown", LIMIT).unwrap(), "");
        let status = place.ctl(name, "info status", LIMIT).unwrap();
        assert!(
            status.starts_with("{\n  \"control\": {\n") && status.ends_with("}\n"),
            "{status}"
        );
        assert_eq!(place.ctl(name, "info nvme", LIMIT).unwrap().len(), LONG + 1);
        let refused = place
            .ctl(name, "device_del x wait=1", LIMIT)
            .unwrap_err()
            .to_string();
        assert!(refused.ends_with(": no device x [NotFound]"), "{refused}");
        let refused = place
            .ctl(name, &"x".repeat(MAX_LINE), LIMIT)
            .unwrap_err()
            .to_string();
        assert!(
            refused.ends_with("the command is longer than 4096 bytes"),
            "{refused}"
        );
    }
    running.stop();
    let missing = place
        .ctl("p", "info status", LIMIT)
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("p: no berth there: neither a socket nor a FIFO p.in; it has ended"),
        "{missing}"
    );
    for (name, why) in [
        (
            "half.out",
            "is one FIFO of a pair; give what both names begin with, DIR/half",
        ),
        (
            "file",
            "is a regular file, must be a control socket or the base of a FIFO pair",
        ),
        (
            "",
            "is a directory, must be a control socket or the base of a FIFO pair",
        ),
    ] {
        let path = place.path(name);
        match name {
            "half.out" => sys::mkfifo(&path).unwrap(),
            "file" => fs::write(&path, "").unwrap(),
            _ => {}
        }
        let refused = place.ctl(name, "info status", LIMIT).unwrap_err();
        let why = why.replace(
            "DIR",
            place.path("").display().to_string().trim_end_matches('/'),
        );
        assert!(
            refused.to_string().ends_with(&format!(": {why}")),
            "{refused}"
        );
    }
}

#[test]
fn ctl_clients_of_one_pipe_get_their_own_replies() {
    let place = Place::new();
    let running = Running::start(place.pipe());
    let numbers: Vec<u64> = std::thread::scope(|scope| {
        let work = || -> Vec<u64> {
            let ask = |_| {
                place
                    .ctl("p", "info stats", LIMIT)
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap()
            };
            (0..10).map(ask).collect()
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(work)).collect();
        // Events between the replies disturb nobody.
        for _ in 0..100 {
            running.tell(Event::new("ns_changed").with("text", "y".repeat(200)));
        }
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let distinct: HashSet<u64> = numbers.iter().copied().collect();
    assert_eq!((numbers.len(), distinct.len()), (60, 60));
    assert_eq!(running.stop().executed, 60);
}

#[test]
fn ctl_waits_no_longer_than_told() {
    let place = Place::new();
    let short = Duration::from_millis(50);
    // Somebody is there but does nothing.
    let server = place.both();
    for name in ["p", "s"] {
        let error = place
            .ctl(name, "info stats", short)
            .unwrap_err()
            .to_string();
        assert!(
            error
                .ends_with("no reply within 0 s; berth hangs, or something else reads the replies"),
            "{error}"
        );
    }
    // Another client keeps the pipe.
    let other = place.replies();
    other.try_lock().unwrap();
    let error = place.ctl("p", "info stats", short).unwrap_err().to_string();
    assert!(
        error.contains("other clients kept the pipe busy for 0 s: it serves one at a time"),
        "{error}"
    );
    drop(server);
}

#[test]
fn ctl_notices_that_berth_ends() {
    for name in ["p", "s"] {
        let place = Place::new();
        let (server, mut machine) = (place.both(), Machine::default());
        let error = std::thread::scope(|scope| {
            let client = scope.spawn(|| place.ctl(name, "info stats", LIMIT).unwrap_err());
            // The command is there, or for the socket at least the connection: now berth dies.
            let deadline = Instant::now() + LIMIT;
            while !readable(&server) {
                assert!(Instant::now() < deadline);
                std::thread::yield_now();
            }
            drop(server);
            client.join().unwrap().to_string()
        });
        assert!(
            error.ends_with(": berth ended before it answered"),
            "{error}"
        );
        // The next one starts on the same path as if nothing had been.
        let mut server = place.both();
        settle(&mut server, &mut machine);
        assert_eq!(machine.executed, 0);
    }
}
