//! An idle machine costs nothing, however busy it was a moment ago.

#![allow(clippy::unwrap_used)] // All of this file is a test.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use bare_tests::Machine;
use harness::{Process, Stdin, Stream};

const LIMIT: Duration = Duration::from_secs(60);

/// Load has ended for so long when all threads must be at rest.
const REST: Duration = Duration::from_secs(1);

/// What a thread did so far: sleeps that ended, and clock ticks of CPU time.
type Done = (u64, u64);

/// All threads of berth but the vCPU, which waits for the console in a loop of the guest's.
fn threads(berth: &Process) -> BTreeMap<String, Done> {
    let folder = format!("/proc/{}/task", berth.pid());
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(folder).unwrap() {
        let task = task.unwrap().path();
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap();
        let name = read("comm").trim().to_owned();
        if !name.starts_with("vcpu") {
            threads.insert(name, (sleeps(&read("status")), ticks(&read("stat"))));
        }
    }
    threads
}

fn sleeps(status: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// User and system time: fields 14 and 15, the 12th and 13th behind the name (proc(5)).
fn ticks(stat: &str) -> u64 {
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    fields[11..13]
        .iter()
        .map(|it| it.parse::<u64>().unwrap())
        .sum()
}

fn rests_after_load(shadow: &str) {
    let machine = Machine::with(&[]).unwrap().io_threads(2).and(&[
        "--device",
        "nvme,id=c",
        "--device",
        "nvme-ns,bus=c,memory=64M",
    ]);
    let words = format!("test=bench qd=1 ms=200 hold shadow={shadow}");
    let Some(mut berth) = machine.start_with(&words, Stdin::Held).unwrap() else {
        return;
    };
    let holds = |line: &str| line.trim() == "HOLD";
    berth
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    berth.send(b"\n").unwrap();
    berth
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    let end = Instant::now();
    let mut last = threads(&berth);
    assert!(last.len() >= 3, "main and two I/O threads: {last:?}");
    let busy = |threads: &BTreeMap<String, Done>| threads.values().map(|done| done.0).max();
    assert!(busy(&last) > Some(0), "the load shows: {last:?}");
    // Whoever does something in this window was not at rest in time.
    while end.elapsed() < REST * 2 {
        std::thread::sleep(Duration::from_millis(50));
        let now = threads(&berth);
        assert!(now == last || end.elapsed() < REST, "{last:?}\n{now:?}");
        last = now;
    }
    berth.send(b"\n").unwrap();
    let finished = berth.finish(LIMIT).unwrap();
    assert!(finished.exit.success(), "{}", finished.stderr);
}

#[test]
fn threads_rest_after_load_with_shadow_doorbells() {
    rests_after_load("on");
}

#[test]
fn threads_rest_after_load_without_shadow_doorbells() {
    rests_after_load("off");
}
