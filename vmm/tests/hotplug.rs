//! Devices that come and go while the machine runs, with a guest that only sleeps: it never lets go
//! of anything by itself.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test file uses its own part.
mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Guest, HALT, Killed, kvm, print};

const COM1: u16 = 0x3f8;
const LIMIT: Duration = Duration::from_secs(20);

/// A machine and one client of its control socket.
struct Machine {
    child: Killed,
    guest: Guest,
    client: BufReader<UnixStream>,
    events: Vec<String>,
}

impl Machine {
    fn start(arguments: &[&str]) -> Self {
        let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
        let socket = guest.directory.path().join("socket");
        let mut command = guest.command(arguments);
        command.arg("--control-socket").arg(&socket);
        let mut child = Killed(command.spawn().unwrap());
        let mut byte = [0];
        let stdout = child.0.stdout.as_mut().unwrap();
        if stdout.read_exact(&mut byte).is_err() {
            panic!("{:?}", child.finish());
        }
        let client = UnixStream::connect(&socket).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            child,
            guest,
            client: BufReader::new(client),
            events: Vec::new(),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.client.read_line(&mut line).unwrap();
        line
    }

    /// Sends a command whose reply comes later, see [`Self::reply`].
    fn send(&mut self, token: &str, command: &str) {
        writeln!(self.client.get_mut(), "@{token} {command}").unwrap();
    }

    /// The reply to a command with this token; what comes before it is kept.
    fn reply(&mut self, token: &str) -> String {
        let token = format!("{{\"token\":\"{token}\",");
        let kept = |line: &String| line.starts_with(&token);
        if let Some(at) = self.events.iter().position(kept) {
            return self.events.remove(at);
        }
        loop {
            let line = self.line();
            if line.starts_with(&token) {
                return line;
            }
            assert!(!line.is_empty(), "berth ended before its reply");
            self.events.push(line);
        }
    }

    fn ask(&mut self, command: &str) -> String {
        self.send("ask", command);
        self.reply("ask")
    }

    #[track_caller]
    fn ok(&mut self, command: &str) -> String {
        let reply = self.ask(command);
        assert!(reply.contains("\"ok\":true"), "{command}: {reply}");
        reply
    }

    #[track_caller]
    fn refused(&mut self, command: &str, class: &str, why: &str) {
        let reply = self.ask(command);
        assert!(reply.contains(&format!("\"class\":\"{class}\"")), "{reply}");
        assert!(reply.contains(why), "{reply}");
    }

    /// Waits for an event about a device.
    fn wait(&mut self, event: &str, id: &str) {
        let is_it = |line: &String| {
            line.contains(&format!("\"event\":\"{event}\""))
                && line.contains(&format!("\"id\":\"{id}\""))
        };
        while !self.events.iter().any(is_it) {
            let line = self.line();
            assert!(!line.is_empty(), "berth ended before {event} of {id}");
            self.events.push(line);
        }
        self.events.retain(|line| !line.contains("\"event\":"));
    }

    fn quit(mut self) {
        self.ok("quit");
        let (status, _, err) = self.child.finish();
        assert_eq!(status, 0, "{err}");
        assert!(err.ends_with("berth: left on request\n"), "{err}");
    }
}

fn image(path: &Path) -> String {
    File::create(path).unwrap().set_len(1 << 20).unwrap();
    path.to_str().unwrap().into()
}

/// Names of the threads that stay.
fn threads(process: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("{process}/task")).unwrap();
    let mut threads: Vec<String> = threads
        // One may end while they are listed.
        .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
        // It ends by itself at the end of its input; the kernel's own workers come and go.
        .filter(|name| name != "stdin\n" && !name.starts_with("iou-"))
        .collect();
    threads.sort();
    threads
}

/// Descriptors and threads of berth, and what it holds of KVM: what could leak.
fn held(machine: &mut Machine) -> (usize, Vec<String>, String) {
    // Its answer says that the client was accepted, which takes a descriptor too.
    machine.ok("info status");
    let process = format!("/proc/{}", machine.child.0.id());
    let descriptors = std::fs::read_dir(format!("{process}/fd")).unwrap().count();
    let deadline = Instant::now() + LIMIT;
    let mut threads = threads(&process);
    // One that just started still has the main thread's name.
    while threads.iter().filter(|name| *name == "berth\n").count() > 1 {
        assert!(Instant::now() < deadline, "{threads:?}");
        threads = self::threads(&process);
    }
    let stats = machine.ok("info stats");
    let at = stats.find("\"kvm\":").unwrap();
    (descriptors, threads, stats[at..].into())
}

#[test]
fn namespaces_come_and_go_and_leave_nothing() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&[
        "--device",
        "nvme-subsys,id=s",
        "--device",
        "nvme,id=c,subsys=s",
    ]);
    let file = image(&machine.guest.directory.path().join("disk"));
    let add = format!("device_add nvme-ns,id=n,bus=s,file={file}");
    let before = held(&mut machine);
    for _ in 0..100 {
        let reply = machine.ok(&add);
        assert!(reply.contains("\"nsid\":1"), "{reply}");
        machine.wait("device_added", "n");
        machine.refused(&add, "Exists", "id=n is in use by another device");
        machine.ok("device_del n");
        machine.wait("device_deleted", "n");
    }
    assert_eq!(held(&mut machine), before);
    machine.refused("device_del n", "NotFound", "no device has this id");
    machine.quit();
}

/// Lets berth have descriptors below `limit` only, or all that it may have.
fn limit_descriptors(machine: &Machine, limit: Option<usize>) {
    let pid = libc::pid_t::try_from(machine.child.0.id()).unwrap();
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let none = std::ptr::null();
    // SAFETY: the pointers are to a structure of the right type and to nothing.
    let read = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, none, &raw mut limits) };
    assert_eq!(read, 0, "{}", std::io::Error::last_os_error());
    limits.rlim_cur = limit.map_or(limits.rlim_max, |limit| limit as u64);
    let none = std::ptr::null_mut();
    // SAFETY: as above.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limits, none) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// Does a command with every number of descriptors up to what it needs; the failures, of which there
/// are some, leave nothing.
#[track_caller]
fn until_descriptors_suffice(machine: &mut Machine, command: &str) {
    let before = held(machine);
    let descriptors = format!("/proc/{}/fd", machine.child.0.id());
    let free = |number: &usize| !Path::new(&format!("{descriptors}/{number}")).exists();
    let first = (0..).find(free).unwrap();
    for more in 0..100 {
        limit_descriptors(machine, Some(first + more));
        let reply = machine.ask(command);
        limit_descriptors(machine, None);
        if reply.contains("\"ok\":true") {
            assert_ne!(more, 0, "{command} needs no descriptor");
            return;
        }
        assert!(reply.contains("\"class\":\"Failed\""), "{reply}");
        let deadline = Instant::now() + LIMIT;
        // I/O threads let go of it in their own time.
        while held(machine) != before {
            assert!(Instant::now() < deadline, "{command}: {more}: {reply}");
        }
    }
    panic!("{command} fails for another reason");
}

#[test]
fn what_fails_for_want_of_descriptors_leaves_nothing() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme-subsys,id=s"]);
    let file = image(&machine.guest.directory.path().join("disk"));
    let before = held(&mut machine);
    for _ in 0..2 {
        let add = "device_add nvme,id=c,subsys=s,addr=5,max_ioqpairs=1,memory=1M";
        until_descriptors_suffice(&mut machine, add);
        let add = format!("device_add nvme-ns,id=n,bus=s,file={file}");
        until_descriptors_suffice(&mut machine, &add);
        for (command, id) in [
            ("device_del n", "n"),
            ("device_del ns0", "ns0"),
            ("device_del c surprise", "c"),
        ] {
            until_descriptors_suffice(&mut machine, command);
            machine.wait("device_deleted", id);
        }
        assert_eq!(held(&mut machine), before);
    }
    machine.quit();
}

#[test]
fn a_subsystem_goes_when_it_is_empty() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&[]);
    machine.ok("device_add nvme-subsys,id=s");
    machine.ok("device_add nvme-ns,id=n,bus=s,memory=1M");
    machine.ok("device_add nvme,id=c,subsys=s");
    machine.refused(
        "device_del s",
        "InUse",
        "nvme-ns 'n', nvme 'c': remove these first",
    );
    machine.ok("device_del n");
    machine.wait("device_deleted", "n");
    machine.refused("device_del s", "InUse", "nvme 'c'");
    machine.ok("device_del c surprise");
    machine.wait("device_deleted", "c");
    machine.ok("device_del s");
    machine.wait("device_deleted", "s");
    machine.ok("device_add nvme-subsys,id=s,shared=off");
    machine.ok("device_add nvme,id=c,subsys=s");
    machine.refused("device_add nvme,id=d,subsys=s", "InUse", "has shared=off");
    machine.quit();
}

#[test]
fn controllers_come_and_go_and_namespaces_stay() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&[
        "--device",
        "nvme-subsys,id=s",
        "--device",
        "nvme-ns,id=n,bus=s,memory=1M",
    ]);
    let before = held(&mut machine);
    for _ in 0..50 {
        let reply = machine.ok("device_add nvme,id=c,subsys=s,max_ioqpairs=4,addr=7");
        assert!(reply.contains("\"addr\":\"0000:00:07.0\""), "{reply}");
        assert!(reply.contains("\"cntlid\":0"), "{reply}");
        assert!(machine.ok("info subsys").contains("\"attached\":[\"c\"]"));
        machine.ok("device_del c surprise");
        machine.wait("device_deleted", "c");
        assert!(machine.ok("info subsys").contains("\"attached\":[]"));
    }
    assert_eq!(held(&mut machine), before);
    machine.quit();
}

#[test]
fn a_guest_that_does_not_let_go_keeps_its_controller() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme,id=c,memory=1M"]);
    assert!(
        machine
            .ok("device_del c")
            .contains("\"state\":\"requested\"")
    );
    // Again, while it is pending: asked for, not gone.
    assert!(
        machine
            .ok("device_del c")
            .contains("\"state\":\"requested\"")
    );
    machine.refused("device_add nvme,id=c,memory=1M", "Exists", "id=c is in use");
    assert!(machine.ok("info qtree").contains("nvme, id \\\"c\\\""));
    machine.ok("device_del c surprise");
    machine.wait("device_deleted", "c");
    machine.ok("device_add nvme,id=c,subsys=subsys0");
    assert!(
        machine.ok("info subsys").contains("\"attached\":[\"c\"]"),
        "its own disk is back"
    );
    machine.quit();
}

#[test]
fn namespaces_are_attached_and_detached() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&[
        "--device",
        "nvme-subsys,id=s",
        "--device",
        "nvme,id=a,subsys=s",
        "--device",
        "nvme,id=b,subsys=s",
        "--device",
        "nvme-ns,id=n,bus=s,memory=1M",
    ]);
    machine.ok("ns_detach n a");
    machine.wait("ns_changed", "n");
    assert!(machine.ok("info subsys").contains("\"attached\":[\"b\"]"));
    machine.refused(
        "ns_detach n a",
        "Argument",
        "is not attached to controller 'a'",
    );
    machine.ok("ns_attach n a");
    machine.refused("ns_attach n x", "NotFound", "x: no device has this id");
    machine.refused("ns_attach a n", "Argument", "a: this is no namespace");
    machine.refused(
        "ns_attach n",
        "Argument",
        "usage: ns_attach NAMESPACE CONTROLLER",
    );
    machine.quit();
}

#[test]
fn removals_can_be_waited_for() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme,id=c,memory=1M"]);
    let gone = |id: &str| format!("\"id\":\"{id}\",\"state\":\"deleted\"");
    machine.ok("device_add nvme-ns,id=n,bus=c,memory=1M");
    assert!(machine.ok("device_del n wait=20").contains(&gone("n")));
    // The guest sleeps: it does not let go.
    machine.refused("device_del c wait=1", "Timeout", "not gone within 1 s");
    assert!(machine.ok("info qtree").contains("nvme, id \\\"c\\\""));
    // Both who wait hear of it, the second one's pull being what ends it.
    machine.send("first", "device_del c wait=20");
    assert!(
        machine
            .ok("device_del c surprise wait=20")
            .contains(&gone("c"))
    );
    assert!(machine.reply("first").contains(&gone("c")));
    // What is gone at once is answered at once.
    machine.ok("device_add nvme-subsys,id=s");
    assert!(machine.ok("device_del s wait=1").contains(&gone("s")));
    machine.refused("device_del s wait=1", "NotFound", "no device has this id");
    machine.quit();
}

#[test]
fn waits_are_limited_and_end_with_their_client() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme-subsys,id=s"]);
    machine.ok("device_add nvme-ns,id=n,bus=s,memory=1M");
    let before = held(&mut machine);
    let socket = machine.guest.directory.path().join("socket");
    let mut other = BufReader::new(UnixStream::connect(&socket).unwrap());
    for number in 0..=256 {
        writeln!(other.get_mut(), "@{number} wait guest_reset timeout=3600").unwrap();
    }
    let mut full = String::new();
    other.read_line(&mut full).unwrap();
    let limit = "256 commands wait already, which is the limit";
    assert!(full.starts_with("{\"token\":\"256\",") && full.contains(limit));
    // What cannot be waited for is not begun.
    machine.refused("device_del n wait=20", "Failed", limit);
    assert!(machine.ok("info qtree").contains("nvme-ns, id \\\"n\\\""));
    drop(other);
    let deadline = Instant::now() + LIMIT;
    while held(&mut machine) != before {
        assert!(Instant::now() < deadline, "{:?}", held(&mut machine));
    }
    machine.ok("device_del n wait=20");
    machine.quit();
}

#[test]
fn events_can_be_waited_for() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme-subsys,id=s"]);
    machine.refused(
        "wait device_deleted n",
        "NotFound",
        "no device has this id, or had it lately",
    );
    machine.send("w", "wait device_added n");
    machine.ok("device_add nvme-ns,id=n,bus=s,memory=1M");
    let reply = machine.reply("w");
    assert!(reply.contains("\"driver\":\"nvme-ns\""), "{reply}");
    // It is there already.
    machine.ok("wait device_added n");
    machine.refused(
        "wait device_deleted n timeout=1",
        "Timeout",
        "wait device_deleted n timeout=1: it did not happen within 1 s",
    );
    machine.ok("device_del n");
    machine.ok("wait device_deleted n");
    // Too late to see it happen.
    machine.ok("wait device_deleted n");
    machine.send("w", "wait ns_changed");
    machine.send("q", "quit");
    let last = machine.reply("w");
    assert!(last.contains("the run ended first"), "{last}");
    let (status, _, err) = machine.child.finish();
    assert_eq!(status, 0, "{err}");
}

#[test]
fn namespaces_are_resized() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme,id=c"]);
    let path = machine.guest.directory.path().join("disk");
    let file = image(&path);
    machine.ok(&format!("device_add nvme-ns,id=f,bus=c,file={file}"));
    machine.ok("device_add nvme-ns,id=r,bus=c,memory=1M,ro");
    let reply = machine.ok("ns_resize f 4M");
    assert!(reply.contains("\"size\":4194304"), "{reply}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 << 20);
    machine.wait("ns_changed", "f");
    assert!(machine.ok("info qtree json").contains("\"size\":4194304"));
    machine.refused(
        "ns_resize f 2M",
        "Argument",
        "2M is less than the 4M that it has",
    );
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 << 20);
    machine.ok("ns_resize f 2M shrink");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 << 20);
    machine.refused("ns_resize f 2097153", "Argument", "block size 512");
    machine.refused("ns_resize f 0", "Argument", "at least one block");
    machine.refused("ns_resize r 2M", "Argument", "it is read-only");
    machine.refused("ns_resize c 2M", "Argument", "this is no namespace");
    machine.refused("ns_resize x 2M", "NotFound", "no device has this id");
    machine.refused("ns_resize f", "Argument", "usage: ns_resize NAMESPACE SIZE");
    // Somebody else changes the image.
    machine.events.clear();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    machine.ok("info subsys");
    machine.wait("ns_changed", "f");
    machine.quit();
}

/// QEMU's way: a drive, then a device that names it, and the form of its proposed objects.
#[test]
fn qemus_commands_mean_the_same() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&[]);
    let file = image(&machine.guest.directory.path().join("disk"));
    machine.ok("object_add nvme-subsys,id=s");
    let added = machine.ok("device_add nvme,id=c,subsys=s,bus=pcie.0,serial=x");
    assert!(
        added.contains("\"warnings\":[\"bus=pcie.0 is ignored: "),
        "{added}"
    );
    machine.refused(
        "device_add nvme-ns,bus=s,drive=d",
        "Failed",
        "does not exist",
    );
    let add = format!("drive_add 0 if=none,id=d,format=raw,file={file},aio=native");
    let added = machine.ok(&add);
    assert!(added.contains("aio=native is ignored"), "{added}");
    machine.refused(&add, "Exists", "id=d: is in use by another drive");
    machine.ok("device_add nvme-ns,id=n,bus=c,drive=d");
    assert!(machine.ok("info qtree").contains(&format!("file={file}")));
    machine.refused(
        "object_add nvme-ns,id=m,subsys=s,blkdev=d",
        "Failed",
        "object_add nvme-ns,id=m: ",
    );
    machine.ok("drive_del d");
    machine.refused("drive_del d", "NotFound", "no drive has this id");
    machine.ok("object_add nvme-ns,id=m,subsys=s,memory=1M");
    machine.refused("object_del c", "Argument", "use device_del");
    machine.refused(
        "object_del s",
        "InUse",
        "nvme 'c', nvme-ns 'n', nvme-ns 'm'",
    );
    for id in ["n", "m"] {
        machine.ok(&format!("object_del {id}"));
        machine.wait("device_deleted", id);
    }
    machine.ok("device_del c surprise wait=20");
    machine.ok("object_del s");
    machine.refused(
        "object_del s",
        "NotFound",
        "object_del s: no device has this id",
    );
    machine.quit();
}

#[test]
fn one_disk_controllers_may_share_a_subsystem() {
    if !kvm() {
        return;
    }
    let mut machine = Machine::start(&["--device", "nvme-subsys,id=s"]);
    machine.ok("device_add nvme,id=a,subsys=s,memory=1M");
    machine.ok("device_add nvme,id=b,subsys=s,cntlid=5,addr=9,memory=1M");
    let members = machine.ok("info subsys");
    for part in [
        "\"addr\":\"0000:00:01.0\",\"cntlid\":0,\"id\":\"a\",\"in_flight\":0,\"leaving\":false,\"state\":\"disabled\"",
        "\"addr\":\"0000:00:09.0\",\"cntlid\":5,\"id\":\"b\",\"in_flight\":0,\"leaving\":false,\"state\":\"disabled\"",
        "\"attached\":[\"a\"]",
        "\"attached\":[\"b\"]",
    ] {
        assert!(members.contains(part), "{part} in {members}");
    }
    machine.refused(
        "device_add nvme,subsys=s,cntlid=5",
        "Exists",
        "cntlid 5 is in use by controller 'b'",
    );
    machine.refused(
        "device_add nvme,subsys=s,addr=9",
        "Exists",
        "slot 0x9 is in use",
    );
    machine.ok("device_del b");
    assert!(
        machine
            .ok("info subsys")
            .contains("\"id\":\"b\",\"in_flight\":0,\"leaving\":true")
    );
    machine.quit();
}
