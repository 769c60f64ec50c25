//! Controllers come and go under I/O, orderly and by surprise: nothing may be left of them, and what
//! others have is served on.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use bare_tests::{LIMIT, Machine};
use harness::{Process, Stream};

/// How often a controller goes and comes.
const ROUNDS: usize = 50;

struct Host {
    berth: Process,
    socket: PathBuf,
}

impl Host {
    /// The reply to a command, or what it was refused with.
    fn ask(&self, command: &str) -> Result<String, String> {
        let done = Process::builder(harness::berth_binary().unwrap())
            .arg("ctl")
            .arg(&self.socket)
            .args(command.split(' '))
            .run(LIMIT)
            .unwrap();
        if done.exit.success() {
            Ok(done.stdout)
        } else {
            Err(done.stderr)
        }
    }

    #[track_caller]
    fn ok(&self, command: &str) -> String {
        match self.ask(command) {
            Ok(reply) => reply,
            Err(why) => panic!("{command}: {why}{}", self.berth.tail()),
        }
    }

    /// Waits until the guest printed this line once more.
    #[track_caller]
    fn guest_says(&self, line: &str) {
        let found = self
            .berth
            .wait_for(Stream::Stdout, line, LIMIT, |seen| seen.trim_end() == line);
        if let Err(error) = found {
            panic!("{error}");
        }
    }

    /// Adds a controller into a slot that the guest may still be letting go of.
    fn add(&self, id: &str, slot: usize) {
        let command = format!("device_add nvme,id={id},subsys=s,addr={slot:x},max_ioqpairs=4");
        let deadline = Instant::now() + LIMIT;
        while let Err(why) = self.ask(&command) {
            assert!(why.contains("still letting go"), "{why}");
            assert!(Instant::now() < deadline, "{why}");
        }
        self.guest_says(&format!("UP {slot}"));
    }

    /// The numbers with this key in what `info` shows of the controllers, in order.
    fn numbers(&self, key: &str) -> Vec<u64> {
        let reply = self.ok("info nvme");
        let key = format!("\"{key}\": ");
        let parts = reply.split(&key).skip(1);
        let digits = parts.map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap());
        digits.filter_map(|digits| digits.parse().ok()).collect()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            let why = format!("{what}: {}{}", self.ok("info nvme"), self.berth.tail());
            assert!(Instant::now() < deadline, "{why}");
        }
    }

    /// Everything that could leak, by what it is.
    fn held(&self) -> BTreeMap<String, String> {
        let process = format!("/proc/{}", self.berth.pid());
        let threads = fs::read_dir(format!("{process}/task")).unwrap();
        let mut threads: Vec<String> = threads
            .filter_map(|it| fs::read_to_string(it.unwrap().path().join("comm")).ok())
            // It ends with its input; the kernel's own workers come and go.
            .filter(|name| name != "stdin\n" && !name.starts_with("iou-"))
            .collect();
        threads.sort();
        let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().count();
        let stats = self.ok("info stats");
        let kvm = stats.split("\"kvm\"").nth(1).unwrap();
        let kvm = kvm.split('}').next().unwrap().to_owned();
        let subsystem = self.ok("info subsys");
        let places = subsystem.lines().filter(|line| {
            ["\"addr\"", "\"cntlid\"", "\"id\""]
                .iter()
                .any(|key| line.contains(key))
        });
        BTreeMap::from([
            ("descriptors".into(), descriptors.to_string()),
            ("threads".into(), threads.concat()),
            ("kvm".into(), kvm),
            ("slots and CNTLIDs".into(), places.collect()),
        ])
    }
}

#[test]
fn fifty_controllers_leave_nothing_behind() {
    let machine = Machine::with(&["--device", "nvme-subsys,id=s"]).unwrap();
    let socket = machine.folder().join("control");
    let image = harness::image(machine.folder(), "disk.img", 1 << 20).unwrap();
    let namespace = format!("nvme-ns,id=n,bus=s,file={}", image.display());
    let machine = machine.and(&[
        "--device",
        "nvme,id=a,subsys=s,addr=1,max_ioqpairs=4",
        "--device",
        "nvme,id=b,subsys=s,addr=2,max_ioqpairs=4",
        "--device",
        &namespace,
        "--control-socket",
        socket.to_str().unwrap(),
    ]);
    let Some(berth) = machine.start("test=hotplug").unwrap() else {
        return;
    };
    let host = Host { berth, socket };
    host.guest_says("UP 1");
    host.guest_says("UP 2");
    let before = host.held();
    // There is something to lose.
    assert!(before["kvm"].contains("\"gsis\": 10"), "{before:?}");
    assert!(!before["kvm"].contains("\"ioeventfds\": 0"), "{before:?}");
    for round in 0..ROUNDS {
        let (id, slot) = [("a", 1), ("b", 2)][round % 2];
        if round / 2 % 2 == 0 {
            host.ok(&format!("device_del {id} wait=60"));
        } else {
            host.ok(&format!("device_del {id} surprise wait=60"));
            host.guest_says(&format!("GONE {slot}"));
        }
        host.guest_says(&format!("EJECTED {slot}"));
        assert!(host.ok("info qtree").contains("id \"n\""));
        host.add(id, slot);
    }
    assert_eq!(host.held(), before);
    for id in ["a", "b"] {
        host.ok(&format!("device_del {id} wait=60"));
    }
    let finished = host.berth.finish(LIMIT).unwrap();
    let all = format!("{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.exit.status, Some(0), "{all}");
    assert!(all.contains("TEST hotplug ... ok"), "{all}");
    assert!(all.contains(" 24 controllers pulled"), "{all}");
}

/// Two queue pairs on one I/O thread, beside a controller whose queues are on the other: when that is
/// removed, one pair moves, under I/O.
#[test]
fn a_queue_under_io_moves_to_a_thread_that_another_controller_leaves() {
    let machine = Machine::with(&["--device", "nvme-subsys,id=s"]).unwrap();
    let socket = machine.folder().join("control");
    let image = harness::image(machine.folder(), "disk.img", 1 << 20).unwrap();
    let namespace = format!("nvme-ns,id=n,bus=s,file={}", image.display());
    let machine = machine.io_threads(2).and(&[
        "--device",
        "nvme,id=a,subsys=s,addr=1,max_ioqpairs=4",
        "--device",
        "nvme,id=b,subsys=s,addr=2,max_ioqpairs=4",
        "--device",
        &namespace,
        "--control-socket",
        socket.to_str().unwrap(),
    ]);
    let Some(berth) = machine.start("test=moves").unwrap() else {
        return;
    };
    let host = Host { berth, socket };
    host.guest_says("READING");
    assert_eq!(host.numbers("io_thread"), [0, 0, 1, 1]);
    assert_eq!(host.numbers("ioeventfds"), [0, 4]);
    let tree = host.ok("info qtree");
    for threads in ["{\"1\":0,\"2\":0}", "{\"1\":1,\"2\":1}"] {
        assert!(tree.contains(&format!("iothread = {threads}")), "{tree}");
    }
    host.ok("device_del a wait=60");
    host.guest_says("EJECTED 1");
    host.wait_until("a queue to move", |host| host.numbers("moves") != [0; 3]);
    let mut threads = host.numbers("io_thread");
    threads.sort_unstable();
    assert_eq!(threads, [0, 1]);
    assert_eq!(host.numbers("ioeventfds"), [4]);
    assert_eq!(host.numbers("moves").iter().sum::<u64>(), 1);
    // Both go on, without exits.
    let before = host.numbers("commands");
    let exits = host.numbers("doorbell_exits");
    host.wait_until("more reads", |host| {
        let now = host.numbers("commands");
        (1..3).all(|queue| now[queue] >= before[queue] + 1000)
    });
    assert_eq!(host.numbers("doorbell_exits")[1..], exits[1..]);
    host.ok("device_del b wait=60");
    let finished = host.berth.finish(LIMIT).unwrap();
    let all = format!("{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.exit.status, Some(0), "{all}");
    assert!(all.contains("TEST moves ... ok"), "{all}");
}
