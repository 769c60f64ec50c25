//! `berth run --trace` while a guest does I/O.

// All of this file is a test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use bare_tests::Machine;
use harness::{Process, Stdin, Stream};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Runs berth beside the machine; what it prints.
fn berth(words: &[&str]) -> String {
    let done = Process::builder(harness::berth_binary().unwrap())
        .args(words)
        .run(LIMIT)
        .unwrap();
    assert!(done.exit.success(), "{words:?}: {}", done.stderr);
    done.stdout
}

/// The lines of a trace, the header first.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let line =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    text.lines().map(line).collect()
}

/// How many events of a kind each queue has.
fn by_queue(lines: &[Value], event: &str) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for line in lines.iter().filter(|line| line["event"] == event) {
        *counts.entry(line["sqid"].as_u64().unwrap()).or_default() += 1;
    }
    counts
}

/// Runs a load with a trace. What `info stats` told behind it, the trace's lines, and whoever reads more of
/// the trace.
fn traced(words: &str, then: impl FnOnce(&Value, &[Value], &str)) {
    let machine = Machine::with_image("").unwrap();
    let path = |name: &str| machine.folder().join(name).to_str().unwrap().to_owned();
    let (trace, socket) = (path("trace"), path("socket"));
    let machine = machine.and(&[
        "--io-threads",
        "2",
        "--trace",
        &trace,
        "--control-socket",
        &socket,
    ]);
    let words = format!("test=bench hold {words}");
    let Some(mut guest) = machine.start_with(&words, Stdin::Held).unwrap() else {
        return;
    };
    let holds = |line: &str| line.trim() == "HOLD";
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    guest.send(b"\n").unwrap();
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    let reply = berth(&["ctl", "--json", &socket, "info", "stats"]);
    assert_eq!(reply.lines().count(), 1, "{reply}");
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(reply["ok"], true);
    guest.send(b"\n").unwrap();
    let finished = guest.finish(LIMIT).unwrap();
    assert!(finished.exit.success(), "{}", finished.stderr);
    then(&reply["result"], &lines(Path::new(&trace)), &trace);
}

#[test]
fn every_command_that_is_counted_is_in_the_trace() {
    traced(
        "qd=8 pairs=2 count=3000 warmup=0 rw=randrw",
        |stats, lines, trace| {
            assert_eq!(lines[0]["berth_trace"], 1, "{}", lines[0]);
            assert_eq!(lines[0]["controllers"][0]["id"], "nvme0");
            let end = lines.last().unwrap();
            assert_eq!(end["event"], "end", "{end}");
            assert_eq!(end["lost"], 0);
            let (fetched, completed) = (by_queue(lines, "fetch"), by_queue(lines, "complete"));
            assert_eq!(fetched, completed);
            let records = fetched.values().sum::<u64>() * 2;
            assert_eq!(end["records"], records);

            let queues = stats["controllers"][0]["queues"].as_array().unwrap();
            assert_eq!(queues.len(), 3, "admin and two pairs");
            let mut io = 0;
            for queue in queues {
                let sqid = queue["sqid"].as_u64().unwrap();
                let commands = queue["commands"].as_u64().unwrap();
                if sqid == 0 {
                    assert!(fetched[&0] >= commands, "the guest goes on");
                } else {
                    assert_eq!(fetched[&sqid], commands, "queue {sqid}");
                    io += commands;
                }
            }
            assert!(io >= 3000, "{io}");

            // Addresses and sizes are those of a guest with 256 MiB that reads and writes 4 KiB.
            for line in lines
                .iter()
                .filter(|line| line["event"] == "fetch" && line["sqid"] != 0)
            {
                assert_eq!(line["bytes"], 4096, "{line}");
                assert!(line["op"] == "read" || line["op"] == "write", "{line}");
                let prp1 = line["prp1"].as_str().unwrap().trim_start_matches("0x");
                assert!(u64::from_str_radix(prp1, 16).unwrap() < 256 << 20, "{line}");
            }
            let ops = lines.iter().filter_map(|line| line["op"].as_str());
            let ops: Vec<&str> = ops.collect();
            for op in ["identify", "set-features", "create-cq", "create-sq"] {
                assert!(ops.contains(&op), "{op}");
            }

            let summary = berth(&["trace", "summary", "--json", trace]);
            let summary: Value = serde_json::from_str(&summary).unwrap();
            assert_eq!(summary["io"]["count"], io);
            assert_eq!(summary["io"]["errors"], 0);
            assert_eq!(summary["complete"], true);
            let most = summary["io"]["depth"]["max"].as_u64().unwrap();
            assert!((8..=16).contains(&most), "{most} in flight");
        },
    );
}

#[test]
fn a_trace_is_turned_on_and_off_while_the_guest_runs() {
    let machine = Machine::with_image("").unwrap();
    let path = |name: &str| machine.folder().join(name).to_str().unwrap().to_owned();
    let (trace, socket) = (path("with blanks"), path("socket"));
    let machine = machine.and(&["--control-socket", &socket]);
    let words = "test=bench hold qd=4 count=500 warmup=0";
    let Some(mut guest) = machine.start_with(words, Stdin::Held).unwrap() else {
        return;
    };
    let holds = |line: &str| line.trim() == "HOLD";
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    berth(&["ctl", &socket, "trace", "on", &trace]);
    let again = Process::builder(harness::berth_binary().unwrap())
        .args(["ctl", &socket, "trace", "on", "/dev/null"])
        .run(LIMIT)
        .unwrap();
    assert!(again.stderr.contains("trace off"), "{}", again.stderr);
    guest.send(b"\n").unwrap();
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    let off = berth(&["ctl", "--json", &socket, "trace", "off"]);
    let off: Value = serde_json::from_str(&off).unwrap();
    assert_eq!(off["result"]["complete"], true, "{off}");
    let lines = lines(Path::new(&trace));
    assert_eq!(by_queue(&lines, "fetch")[&1], 500);
    assert_eq!(by_queue(&lines, "complete")[&1], 500);
    let size = fs::metadata(&trace).unwrap().len();
    guest.send(b"\n").unwrap();
    let finished = guest.finish(LIMIT).unwrap();
    assert!(finished.exit.success(), "{}", finished.stderr);
    assert_eq!(fs::metadata(&trace).unwrap().len(), size, "it was off");
}

#[test]
fn threads_of_a_controllers_own_are_traced_too() {
    let machine = Machine::with(&[]).unwrap();
    let trace = machine.folder().join("trace");
    let machine = machine.and(&[
        "--device",
        "nvme,id=own,io-threads=2",
        "--device",
        "nvme-ns,bus=own,memory=64M",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    let words = "test=bench qd=4 pairs=2 count=500 warmup=0";
    let Some(report) = machine.run(words).unwrap() else {
        return;
    };
    report.ended_with(0);
    let lines = lines(&trace);
    let fetched = by_queue(&lines, "fetch");
    assert_eq!(fetched[&1] + fetched[&2], 500, "{fetched:?}");
    assert_eq!(fetched, by_queue(&lines, "complete"));
    let own = lines.iter().filter(|line| line["sqid"] == 1);
    assert!(own.into_iter().all(|line| line["ctrl"] == "own"));
}

/// A reader that pauses while the guest does more than the rings hold.
#[test]
fn what_a_slow_reader_misses_is_counted_where_it_is_missing() {
    let machine = Machine::with(&["--disk", "null=1G"]).unwrap();
    let path = |name: &str| machine.folder().join(name).to_str().unwrap().to_owned();
    let (fifo, socket) = (path("fifo"), path("socket"));
    let made = Process::builder("mkfifo").arg(&fifo).run(LIMIT).unwrap();
    assert!(made.exit.success());
    let machine = machine.and(&["--trace", &fifo, "--control-socket", &socket]);
    let writer = fifo.clone();
    let (go_on, paused) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(&fifo).unwrap();
        // The test may have failed, or skipped.
        let _ = paused.recv();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        text
    });
    let words = "test=bench hold qd=32 count=200000 warmup=0";
    let Some(mut guest) = machine.start_with(words, Stdin::Held).unwrap() else {
        // A reader of a FIFO waits for its writer.
        drop(fs::File::options().write(true).open(writer).unwrap());
        return;
    };
    let holds = |line: &str| line.trim() == "HOLD";
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    guest.send(b"\n").unwrap();
    guest
        .wait_for(Stream::Stdout, "HOLD", LIMIT, holds)
        .unwrap();
    let stats = berth(&["ctl", "--json", &socket, "info", "stats"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["result"]["trace"]["state"], "running", "{stats}");
    go_on.send(()).unwrap();
    guest.send(b"\n").unwrap();
    let finished = guest.finish(LIMIT).unwrap();
    assert!(finished.exit.success(), "{}", finished.stderr);
    let text = reader.join().unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    let end = lines.last().unwrap();
    assert_eq!(end["event"], "end");
    let number = |value: &Value| value.as_u64().unwrap();
    let told: u64 = lines
        .iter()
        .filter(|line| line["event"] == "lost")
        .map(|line| number(&line["lost"]))
        .sum();
    let (records, lost) = (number(&end["records"]), number(&end["lost"]));
    assert!(lost > 0 && told == lost, "{told} {end}");
    let there = [by_queue(&lines, "fetch"), by_queue(&lines, "complete")];
    assert_eq!(
        there.iter().flat_map(BTreeMap::values).sum::<u64>(),
        records
    );
    // Two for each, of which some are admin commands.
    let all = records + lost;
    assert!((400_000..400_200).contains(&all), "{all}");
    let note = format!("{lost} records of {all} are missing");
    assert!(finished.stderr.contains(&note), "{}", finished.stderr);
}

#[test]
fn a_full_disk_ends_the_trace_and_not_the_guest() {
    let machine = Machine::with_image("").unwrap();
    let machine = machine.and(&["--trace", "/dev/full"]);
    let words = "test=bench qd=8 count=20000 warmup=0";
    let Some(report) = machine.run(words).unwrap() else {
        return;
    };
    report.says("END bench commands=20000 ");
    report.ended_with(0);
    let told = report
        .finished
        .stderr
        .matches("no space left on device")
        .count();
    assert_eq!(told, 1, "{}", report.finished.stderr);
}

#[test]
fn the_binary_has_its_probes_stripped_or_not() {
    let binary = harness::berth_binary().unwrap();
    let notes = Process::builder("readelf")
        .arg("-n")
        .arg(&binary)
        .run(LIMIT);
    let Ok(notes) = notes else {
        println!("skipped: no readelf");
        return;
    };
    for probe in ["nvme_fetch", "nvme_complete", "nvme_abandon"] {
        let name = format!("Name: {probe}");
        assert!(notes.stdout.contains(&name), "{name} in\n{}", notes.stdout);
    }
    assert!(notes.stdout.contains("Provider: berth"));
}
