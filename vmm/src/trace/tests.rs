//! Lines, files that are read again, figures and pictures.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::time::{Duration, UNIX_EPOCH};

use devices::nvme::spec::{AdminOpcode, NvmOpcode, Status};
use devices::nvme::trace::{Record, TraceEvent, TracedCommand, TracedController, Tracer};
use serde_json::{Value, json};

use super::line::{Lines, utc};
use super::plot::Plot;
use super::read::{Condition, ReadError, scan};
use super::sink::Sink;
use super::summary::Summary;

const HEADER: &str = r#"{"berth_trace":1,"berth":"0.1.0","time":"T","pid":1}"#;

fn command(sqid: u16, opcode: u8) -> TracedCommand {
    TracedCommand {
        controller: 7,
        sqid,
        cqid: sqid,
        cid: 0x10,
        opcode,
        nsid: 1,
        bytes: 4096,
    }
}

/// The lines of records, without the header.
fn lines(records: &[Record]) -> Vec<String> {
    let (tracer, _reader) = Tracer::begin().unwrap();
    let told = TracedController {
        id: "c\"0".into(),
        cntlid: 3,
        subsystem: "s".into(),
    };
    tracer.add_controller(7, told);
    let mut lines = Lines::new(&json!({ "berth": "x" }), &tracer);
    records.iter().for_each(|record| lines.record(record));
    let text = String::from_utf8(lines.bytes().to_vec()).unwrap();
    assert!(
        text.starts_with("{\"berth_trace\":1,\"berth\":\"x\"}\n"),
        "{text}"
    );
    text.lines().skip(1).map(str::to_owned).collect()
}

fn line(command: TracedCommand, event: TraceEvent) -> String {
    lines(&[Record::new(5, command, event)])[1].clone()
}

fn fetched(cdw: [u32; 3]) -> TraceEvent {
    TraceEvent::Fetched {
        prp1: 0x1234_5000,
        prp2: 0,
        cdw,
    }
}

#[test]
fn records_become_lines() {
    let io = |event, rest: &str| {
        format!(
            "{{\"t\":5,\"event\":\"{event}\",\"ctrl\":\"c\\\"0\",\"sqid\":2,\"cqid\":2,\"cid\":16,\
             {rest}}}"
        )
    };
    let read = command(2, NvmOpcode::READ.0);
    let head = "\"opc\":2,\"op\":\"read\",\"nsid\":1,\"bytes\":4096";
    assert_eq!(
        line(read, fetched([8, 1, 1 << 30 | 7])),
        io(
            "fetch",
            &format!(
                "{head},\"prp1\":\"0x12345000\",\"prp2\":\"0x0\",\"slba\":4294967304,\"nlb\":8,\
                 \"fua\":true"
            )
        )
    );
    let completed = |status, dnr, dw0| TraceEvent::Completed {
        latency: 1000,
        status,
        dnr,
        dw0,
    };
    assert_eq!(
        line(read, completed(Status::SUCCESS, false, 0)),
        io(
            "complete",
            &format!("{head},\"latency\":1000,\"status\":\"success\"")
        )
    );
    assert_eq!(
        line(read, completed(Status::LBA_OUT_OF_RANGE, true, 0)),
        io(
            "complete",
            &format!(
                "{head},\"latency\":1000,\"status\":\"lba-out-of-range\",\"sct\":0,\"sc\":128,\
                 \"dnr\":true"
            )
        )
    );
    assert_eq!(
        line(read, TraceEvent::Abandoned { latency: 9 }),
        io("abandon", &format!("{head},\"latency\":9"))
    );
    // What berth has no name for.
    let odd = line(command(2, 0x9f), fetched([0xabc, 0, 1]));
    assert!(odd.contains("\"opc\":159,\"op\":\"0x9f\""), "{odd}");
    assert!(
        odd.ends_with("\"cdw10\":\"0xabc\",\"cdw11\":\"0x0\",\"cdw12\":\"0x1\"}"),
        "{odd}"
    );
    let odd = line(read, completed(Status(0x3ff), false, 0));
    assert!(
        odd.contains("\"status\":\"0x3ff\",\"sct\":3,\"sc\":255,"),
        "{odd}"
    );
}

#[test]
fn admin_commands_say_what_they_are_about() {
    for (opcode, cdw, expected) in [
        (
            AdminOpcode::CREATE_CQ,
            [0x00ff_0003, 0x0005_0003, 0],
            json!({ "qid": 3, "entries": 256, "vector": 5 }),
        ),
        (
            AdminOpcode::CREATE_SQ,
            [0x000f_0004, 0x0003_0001, 0],
            json!({ "qid": 4, "entries": 16, "feeds": 3 }),
        ),
        (AdminOpcode::DELETE_SQ, [4, 0, 0], json!({ "qid": 4 })),
        (
            AdminOpcode::SET_FEATURES,
            [7, 0x0001_0001, 0],
            json!({ "fid": 7, "cdw11": "0x10001" }),
        ),
        (
            AdminOpcode::GET_LOG_PAGE,
            [2 | 0x7f << 16, 0, 0],
            json!({ "lid": 2 }),
        ),
        (AdminOpcode::IDENTIFY, [1, 0, 0], json!({ "cns": 1 })),
        (
            AdminOpcode::ABORT,
            [0x0009_0001, 0, 0],
            json!({ "abort_sqid": 1, "abort_cid": 9 }),
        ),
    ] {
        let line: Value = serde_json::from_str(&line(command(0, opcode.0), fetched(cdw))).unwrap();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&line[key], value, "{line}");
        }
    }
    let answered = TraceEvent::Completed {
        latency: 1,
        status: Status::SUCCESS,
        dnr: false,
        dw0: 0x0003_0003,
    };
    let line = line(command(0, AdminOpcode::SET_FEATURES.0), answered);
    assert!(
        line.contains("\"op\":\"set-features\"") && line.ends_with("\"dw0\":196611}"),
        "{line}"
    );
}

/// A guest may fetch any 64 bytes, and every status can be the answer.
#[test]
fn every_line_is_json_whatever_the_command() {
    let mut records = Vec::new();
    for (sqid, opcode) in (0..=255).flat_map(|opcode| [(0, opcode), (u16::MAX, opcode)]) {
        let odd = TracedCommand {
            cid: u16::MAX,
            nsid: u32::MAX,
            bytes: u32::MAX,
            ..command(sqid, opcode)
        };
        for cdw in [
            [0; 3],
            [u32::MAX; 3],
            [0x2222_2222, 0x5c5c_5c5c, 0x0a0a_0a0a],
        ] {
            let event = TraceEvent::Fetched {
                prp1: u64::MAX,
                prp2: u64::MAX,
                cdw,
            };
            records.push(Record::new(u64::MAX, odd, event));
        }
        records.push(Record::new(
            1,
            odd,
            TraceEvent::Abandoned { latency: u64::MAX },
        ));
    }
    for status in 0..=0x7ff {
        let event = TraceEvent::Completed {
            latency: 0,
            status: Status(status),
            dnr: status % 2 == 0,
            dw0: u32::MAX,
        };
        records.push(Record::new(1, command(1, 2), event));
    }
    let lines = lines(&records);
    // The controller's is the first.
    assert_eq!(lines.len(), records.len() + 1);
    for (line, record) in lines[1..].iter().zip(&records) {
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|why| panic!("{line}: {why}"));
        assert_eq!(parsed["opc"], record.command.opcode, "{line}");
        assert!(!parsed["op"].as_str().unwrap().is_empty(), "{line}");
        let keys = line.matches("\":").count();
        assert_eq!(
            parsed.as_object().unwrap().len(),
            keys,
            "no key twice: {line}"
        );
    }
}

#[test]
fn controllers_are_introduced_once() {
    let record = Record::new(5, command(1, 2), TraceEvent::Abandoned { latency: 0 });
    let lines = lines(&[record, record]);
    assert_eq!(
        lines[0],
        "{\"cntlid\":3,\"ctrl\":\"c\\\"0\",\"event\":\"controller\",\"subsys\":\"s\",\"t\":5}"
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn times_of_day_are_written_as_in_rfc_3339() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000007Z"),
        (951_782_399, "2000-02-28T23:59:59.000000007Z"),
        (951_782_400, "2000-02-29T00:00:00.000000007Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000007Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
    ] {
        let time = UNIX_EPOCH + Duration::new(seconds, 7);
        assert_eq!(utc(time), expected);
    }
}

/// A trace whose lines are these, behind the header.
fn trace(lines: &[&str]) -> String {
    let mut text = format!("{HEADER}\n");
    for line in lines {
        text += line;
        text.push('\n');
    }
    text
}

/// `count` reads of 4 KiB on each of two queues, at a depth of 2 each, of 100 to 199 ns; every tenth of them
/// fails. Nothing is in flight at the end.
struct Load {
    next: u64,
    count: u64,
    left: Vec<u8>,
}

impl Load {
    fn new(count: u64) -> Self {
        Self {
            next: 0,
            count,
            left: format!("{HEADER}\n").into_bytes(),
        }
    }

    fn line(&mut self) -> bool {
        let number = self.next;
        self.next += 1;
        let mut text = String::new();
        for sqid in [1, 2] {
            let head = format!("\"ctrl\":\"c\",\"sqid\":{sqid},\"cqid\":{sqid}");
            let rest = "\"opc\":2,\"op\":\"read\",\"nsid\":1,\"bytes\":4096";
            if number < self.count {
                let (t, cid) = (number * 100, number % 2);
                let _ = writeln!(
                    text,
                    "{{\"t\":{t},\"event\":\"fetch\",{head},\"cid\":{cid},{rest},\"prp1\":\"0x1000\",\
                     \"prp2\":\"0x0\",\"slba\":{number},\"nlb\":8}}"
                );
            }
            if let Some(number) = number.checked_sub(1).filter(|it| *it < self.count) {
                let (latency, cid) = (100 + number % 100, number % 2);
                let t = number * 100 + latency;
                let status = if number.is_multiple_of(10) {
                    "write-fault"
                } else {
                    "success"
                };
                let _ = writeln!(
                    text,
                    "{{\"t\":{t},\"event\":\"complete\",{head},\"cid\":{cid},{rest},\
                     \"latency\":{latency},\"status\":\"{status}\"}}"
                );
            }
        }
        if number == self.count + 1 {
            text = "{\"t\":1,\"event\":\"end\",\"records\":1,\"lost\":0}\n".into();
        }
        self.left = text.into_bytes();
        !self.left.is_empty()
    }
}

impl Read for Load {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() && !self.line() {
            return Ok(0);
        }
        let count = self.left.len().min(into.len());
        into[..count].copy_from_slice(&self.left[..count]);
        self.left.drain(..count);
        Ok(count)
    }
}

/// Reads of 1 to 100 ms.
fn slow_load() -> String {
    let line = |ms: u64| {
        let nanoseconds = ms * 1_000_000;
        format!(
            "{{\"t\":{nanoseconds},\"event\":\"complete\",\"ctrl\":\"c\",\"sqid\":1,\"cid\":0,\
             \"op\":\"read\",\"bytes\":0,\"latency\":{nanoseconds},\"status\":\"success\"}}"
        )
    };
    let lines: Vec<String> = (1..=100).map(line).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    trace(&lines)
}

fn load(count: u64) -> std::io::BufReader<Load> {
    std::io::BufReader::new(Load::new(count))
}

#[test]
fn figures_are_those_of_the_lines() {
    let summary = Summary::read(load(1000)).unwrap();
    assert_eq!(summary.notes(), Vec::<String>::new());
    let figures = summary.json();
    assert_eq!(figures["io"]["count"], 2000);
    assert_eq!(figures["io"]["errors"], 200);
    assert_eq!(figures["io"]["bytes"], 1800 * 4096);
    assert_eq!(figures["io"]["depth"]["max"], 3);
    assert_eq!(figures["io"]["in_flight_at_end"], 0);
    // From 0 to the last one's end.
    assert_eq!(figures["seconds"], 100_099e-9);
    let mean = figures["io"]["depth"]["mean"].as_f64().unwrap();
    assert!((mean - 2.0 * 149_500.0 / 100_099.0).abs() < 1e-9, "{mean}");
    let latency = &figures["by_opcode"][0]["latency_ns"];
    assert_eq!(
        (&latency["min"], &latency["max"]),
        (&json!(100), &json!(199))
    );
    assert_eq!(latency["mean"], 149.5);
    for (name, exact) in [("p50", 149.0), ("p90", 189.0), ("p99", 198.0)] {
        let figure = latency[name].as_f64().unwrap();
        assert!((figure - exact).abs() <= 2.0, "{name}: {figure}");
    }
    let latency = &Summary::read(slow_load().as_bytes()).unwrap().json()["by_opcode"][0];
    let p50 = latency["latency_ns"]["p50"].as_f64().unwrap();
    assert!((p50 / 50e6 - 1.0).abs() < 0.01, "{p50}");
    assert_eq!(latency["latency_ns"]["max"], 100_000_000);
    assert_eq!(figures["by_queue"][1]["sqid"], 2);
    assert_eq!(figures["by_queue"][1]["count"], 1000);
    assert_eq!(
        figures["sizes"],
        json!([{ "op": "read", "bytes": 4096, "count": 2000 }])
    );
    assert_eq!(
        figures["status"],
        json!({ "success": 1800, "write-fault": 200 })
    );
    assert_eq!(figures["slowest"].as_array().unwrap().len(), 10);
    assert_eq!(figures["slowest"][0]["latency"], 199);
    let slba = figures["slowest"][0]["slba"].as_u64().unwrap();
    assert_eq!(slba % 100, 99);
    let text = summary.text();
    for part in [
        "2000 I/O commands, 200 errors",
        "c 2",
        "write-fault",
        "149 ns",
        "199 ns",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn losses_and_reused_identifiers_leave_nothing_in_flight_for_ever() {
    let fetch = |t, cid| {
        format!(
            "{{\"t\":{t},\"event\":\"fetch\",\"ctrl\":\"c\",\"sqid\":1,\"cid\":{cid},\"op\":\"read\",\"bytes\":0}}"
        )
    };
    let end = |t, cid, event| {
        format!(
            "{{\"t\":{t},\"event\":\"{event}\",\"ctrl\":\"c\",\"sqid\":1,\"cid\":{cid},\"op\":\"read\",\"latency\":5,\"bytes\":0}}"
        )
    };
    let lost = r#"{"t":9,"event":"lost","lost":7}"#;
    let text = trace(&[
        &fetch(0, 1),
        &fetch(1, 2),
        &fetch(2, 2),
        lost,
        &end(10, 1, "abandon"),
        &fetch(11, 4),
    ]);
    let summary = Summary::read(text.as_bytes()).unwrap();
    let figures = summary.json();
    assert_eq!(figures["lost"], 7);
    assert_eq!(figures["io"]["depth"]["max"], 2);
    assert_eq!(figures["io"]["in_flight_at_end"], 1);
    assert_eq!(figures["io"]["abandoned"], 1);
    assert_eq!(figures["complete"], false);
    let notes = summary.notes().join("\n");
    assert!(
        notes.contains("no end") && notes.contains("7 records were lost"),
        "{notes}"
    );
    let plot = Plot::read(text.as_bytes()).unwrap();
    assert!(plot.svg("t").contains("records lost"));
}

/// Numbers that no trace of berth has: a file may hold anything.
#[test]
fn the_largest_numbers_are_taken() {
    let most = u64::MAX;
    let end = |t: u64, latency: u64| {
        format!(
            "{{\"t\":{t},\"event\":\"complete\",\"ctrl\":\"c\",\"sqid\":1,\"cid\":0,\"op\":\"read\",\
             \"bytes\":{most},\"latency\":{latency},\"status\":\"success\"}}"
        )
    };
    let lost = format!("{{\"t\":{most},\"event\":\"lost\",\"lost\":{most}}}");
    let mut lines = vec![end(5, 1), lost.clone(), lost];
    lines.extend((0..2000).map(|_| end(most, most)));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let text = trace(&lines);
    let summary = Summary::read(text.as_bytes()).unwrap();
    assert_eq!(summary.json()["lost"], most);
    assert_eq!(summary.json()["io"]["bytes"], most);
    summary.text();
    let page = Plot::read(text.as_bytes()).unwrap().html("t");
    is_well_formed(&page).unwrap();
}

/// A request for an event takes as long as nothing happens, and every machine ends with some.
#[test]
fn requests_for_events_spoil_no_figure() {
    let admin = |t: u64, event, op, rest| {
        format!(
            "{{\"t\":{t},\"event\":\"{event}\",\"ctrl\":\"c\",\"sqid\":0,\"cid\":1,\"op\":\"{op}\"{rest}}}"
        )
    };
    let request = "async-event-request";
    let lines = [
        admin(0, "fetch", request, ""),
        admin(5, "fetch", "identify", ""),
        admin(
            9,
            "complete",
            "identify",
            ",\"latency\":4,\"status\":\"success\"",
        ),
        admin(
            3_600_000_000_000,
            "abandon",
            request,
            ",\"latency\":3600000000000",
        ),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let text = trace(&lines);
    let summary = Summary::read(text.as_bytes()).unwrap();
    let figures = summary.json();
    assert_eq!(figures["by_queue"][0]["abandoned"], 0);
    assert_eq!(figures["by_opcode"][1]["op"], request);
    assert_eq!(figures["by_opcode"][1]["abandoned"], 1);
    let row = summary.text();
    let row = row.lines().find(|line| line.contains(request)).unwrap();
    assert_eq!(row.split_whitespace().last(), Some("-"), "{row}");
    let page = Plot::read(text.as_bytes()).unwrap().svg("t");
    assert!(page.contains("1 commands in 9 ns, 0 errors"), "{page}");
    assert!(!page.contains("1000 s"), "{page}");
}

#[test]
fn columns_stand_apart_whatever_a_guest_writes() {
    let line = "{\"t\":9,\"event\":\"complete\",\"ctrl\":\"controller10\",\"sqid\":128,\"cid\":65535,\
                \"op\":\"dataset-management\",\"nsid\":4294967295,\"bytes\":4294967295,\"latency\":5,\
                \"status\":\"invalid-namespace\"}";
    let fetch = line
        .replace("complete", "fetch")
        .replace("\"t\":9", "\"t\":4,\"slba\":18446744073709551615");
    let text = Summary::read(trace(&[&fetch, line]).as_bytes())
        .unwrap()
        .text();
    let row = text.lines().last().unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    let expected = [
        "dataset-management",
        "5",
        "ns",
        "0.000000",
        "s",
        "controller10",
        "128",
        "65535",
        "4294967295",
        "18446744073709551615",
        "4294967295",
        "invalid-namespace",
    ];
    assert_eq!(words, expected, "{text}");
}

fn condition(text: &[u8]) -> Condition {
    scan(text, |_| {}).unwrap().1
}

#[test]
fn bad_lines_are_told_by_number_and_the_rest_is_read() {
    let good = r#"{"t":1,"event":"something-new","with":["more"]}"#;
    let text = trace(&[good, "{\"t\":", good, "[]", "", good]);
    let mut count = 0;
    let (_, condition) = scan(text.as_bytes(), |_| count += 1).unwrap();
    assert_eq!((count, condition.bad, condition.lines), (3, 2, 7));
    let notes = condition.notes();
    assert!(notes[0].starts_with("line 3: is no event ("), "{notes:?}");
    assert!(notes[1].starts_with("line 5: is no event ("), "{notes:?}");

    let text = trace(&["x"; 9]);
    let notes = self::condition(text.as_bytes()).notes();
    assert_eq!(notes[5], "4 more lines could not be understood");
}

#[test]
fn a_cut_off_end_is_told() {
    let whole = trace(&[r#"{"t":1,"event":"end","records":0,"lost":0}"#]);
    assert_eq!(condition(whole.as_bytes()).notes(), Vec::<String>::new());
    // Without its newline it is still whole.
    assert!(condition(whole.trim_end().as_bytes()).ended);
    for cut in 2..20 {
        let condition = condition(&whole.as_bytes()[..whole.len() - cut]);
        assert!(condition.truncated && condition.bad == 0, "{condition:?}");
        assert!(condition.notes()[0].starts_with("line 2: is cut off"));
    }
    let summary = Summary::read(&whole.as_bytes()[..whole.len() - 5]).unwrap();
    assert_eq!(summary.json()["truncated"], true);
}

#[test]
fn what_is_no_trace_is_refused() {
    for (text, why) in [
        (
            "",
            "is no trace of berth: its first line is missing (the file is empty)",
        ),
        ("\n", "first line is not JSON"),
        ("hello\n", "first line is not JSON"),
        ("{}\n", "first line is something else"),
        (
            "{\"berth_trace\":2}\n",
            "has format 2; this berth reads format 1",
        ),
    ] {
        let error: ReadError = scan(text.as_bytes(), |_| {}).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // Nor is a line without end taken into memory.
    let endless = std::io::BufReader::new(std::io::repeat(b'x').take(100 << 20));
    scan(endless, |_| {}).unwrap_err();
    let long = format!("{HEADER}\n{}\n{HEADER}\n", "y".repeat(9 << 20));
    let condition = condition(long.as_bytes());
    assert_eq!((condition.lines, condition.bad), (3, 2));
}

/// Whether markup opens and closes its elements in order.
fn is_well_formed(markup: &str) -> Result<(), String> {
    let mut open = Vec::new();
    for part in markup.split('<').skip(1) {
        let (tag, text) = part.split_once('>').ok_or(format!("no end: {part}"))?;
        if text.contains('>') {
            return Err(format!("stray end: {text}"));
        }
        let name: String = tag
            .split([' ', '/', '\n'])
            .find(|it| !it.is_empty())
            .unwrap_or("")
            .into();
        if tag.starts_with('!') || tag.ends_with('/') || name == "meta" {
            continue;
        }
        if tag.starts_with('/') {
            let last = open.pop();
            if last.as_ref() != Some(&name) {
                return Err(format!("{last:?} is closed as {name}"));
            }
        } else {
            open.push(name);
        }
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err(format!("{open:?} stay open"))
    }
}

#[test]
fn a_short_trace_shows_each_command() {
    let plot = Plot::read(load(500)).unwrap();
    let page = plot.html("a <trace> & more");
    is_well_formed(&page).unwrap();
    assert!(page.contains("NVMe trace a &lt;trace&gt; &amp; more"));
    assert_eq!(page.matches("<circle").count(), 900, "those that succeeded");
    // An axis, a legend and a mark for each that failed.
    assert_eq!(page.matches("l7 7m0 -7l-7 7").count(), 101);
    assert!(
        page.contains("time since the first command in us"),
        "{page}"
    );
    assert!(page.contains(">c 1<") && page.contains(">c 2<"));
    assert!(page.contains("<title>c read cid 1 nsid 1 4096 bytes: 199 ns, success</title>"));
}

#[test]
fn a_long_trace_is_counted_into_fields() {
    let plot = Plot::read(load(60_000)).unwrap();
    let page = plot.svg("t");
    is_well_formed(&page).unwrap();
    assert_eq!(page.matches("<circle").count(), 0);
    assert!(page.contains("99th percentile") && page.contains("L"));
    assert!(
        page.contains("120000 commands in 6.00 ms, 12000 errors"),
        "{}",
        &page[..2000]
    );
    assert!(page.len() < 300_000, "{} bytes", page.len());
    assert_eq!(page.matches(">top: 1.").count(), 2);
    let strip = page.matches("errors or abandoned</title>").count();
    assert!(strip > 100, "one for each column: {strip}");
    assert!(
        !page.contains("l7 7m0 -7l-7 7"),
        "no crosses upon the fields"
    );
    assert!(page.contains("time since the first command in ms"));
}

#[test]
fn a_trace_without_commands_is_a_picture_too() {
    let page = Plot::read(trace(&[]).as_bytes()).unwrap().html("t");
    is_well_formed(&page).unwrap();
    assert!(page.contains("No command ended in this trace."));
    Summary::read(trace(&[]).as_bytes()).unwrap().text();
}

#[test]
fn a_fifo_needs_a_reader_and_its_end_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    crate::control::sys::mkfifo(&path).unwrap();
    let error = Sink::open(&path, Duration::ZERO).unwrap_err();
    assert!(
        error.starts_with("nobody reads this FIFO; start its reader first"),
        "{error}"
    );
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || {
            let mut fifo = fs::File::open(path).unwrap();
            let mut some = [0; 3];
            fifo.read_exact(&mut some).unwrap();
            some
        })
    };
    let mut sink = Sink::open(&path, Duration::from_secs(60)).unwrap();
    sink.write_all(b"abc", || false).unwrap();
    assert_eq!(reader.join().unwrap(), *b"abc");
    let error = sink.write_all(b"def", || false).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_reader_that_pauses_is_waited_for_until_the_trace_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    crate::control::sys::mkfifo(&path).unwrap();
    let _lazy = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut sink = Sink::open(&path, Duration::ZERO).unwrap();
    // More than any pipe holds.
    let error = sink.write_all(&vec![0; 4 << 20], || true).unwrap_err();
    assert_eq!(error.to_string(), "its reader takes nothing");
}

#[test]
fn files_are_emptied_unless_somebody_uses_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace");
    fs::write(&path, "old").unwrap();
    let mut sink = Sink::open(&path, Duration::ZERO).unwrap();
    sink.write_all(b"new line", || false).unwrap();
    let error = Sink::open(&path, Duration::ZERO).unwrap_err();
    assert!(error.contains("in use by another process"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"new line");
    let error = Sink::open(directory.path(), Duration::ZERO).unwrap_err();
    assert_eq!(error, "is a directory");
    // What is a FIFO by the time that it is opened is not waited for.
    let fifo = directory.path().join("fifo");
    crate::control::sys::mkfifo(&fifo).unwrap();
    let error = super::sink::open_file(&fifo).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
    let mut full = Sink::open("/dev/full".as_ref(), Duration::ZERO).unwrap();
    let error = full.write_all(b"x", || false).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}
