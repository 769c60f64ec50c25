//! Records as lines of JSON.
//!
//! By hand, for a machine that does a million commands a second has two of them for each.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use devices::nvme::spec::{
    AbortCdw10, AdminOpcode, CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, DsmCdw10,
    FeaturesCdw10, GetLogCdw10, IdentifyCdw10, NvmOpcode, ReadWriteCdw12, Status,
};
use devices::nvme::trace::{Record, TraceEvent, TracedCommand, Tracer};
use serde_json::{Value, json};

use super::VERSION;

/// Lines that wait to be written.
pub struct Lines {
    tracer: Arc<Tracer>,
    bytes: Vec<u8>,
    records: u64,
    // Numbers of controllers with their ids as JSON has them.
    controllers: Vec<(u32, String)>,
    // Of the last line.
    time: u64,
}

impl Lines {
    /// Begins with the header.
    pub fn new(header: &Value, tracer: &Arc<Tracer>) -> Self {
        Self {
            tracer: Arc::clone(tracer),
            bytes: first_line(header).into_bytes(),
            records: 0,
            controllers: Vec::new(),
            time: 0,
        }
    }

    /// What there is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many of the lines are records.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// It is written.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
    }

    /// Adds a record, and its controller before if it is new.
    pub fn record(&mut self, record: &Record) {
        self.time = record.time;
        self.records += 1;
        let known = |(number, _): &(u32, String)| *number == record.command.controller;
        let index = match self.controllers.iter().position(known) {
            Some(index) => index,
            None => self.meet(record.command.controller),
        };
        let mut line = Line(&mut self.bytes);
        line.number("{\"t\":", record.time);
        line.raw(match record.event {
            TraceEvent::Fetched { .. } => ",\"event\":\"fetch\"",
            TraceEvent::Completed { .. } => ",\"event\":\"complete\"",
            TraceEvent::Abandoned { .. } => ",\"event\":\"abandon\"",
        });
        line.raw(",\"ctrl\":");
        line.raw(&self.controllers[index].1);
        line.command(&record.command);
        line.event(&record.command, &record.event);
        line.raw("}\n");
    }

    /// Introduces a controller; its index.
    fn meet(&mut self, number: u32) -> usize {
        let controller = self.tracer.controller(number);
        // It is told before the first record can be made.
        let id = controller.as_ref().map_or("?", |known| known.id.as_str());
        let line = json!({
            "t": self.time,
            "event": "controller",
            "ctrl": id,
            "cntlid": controller.as_ref().map(|known| known.cntlid),
            "subsys": controller.as_ref().map(|known| known.subsystem.as_str()),
        });
        self.bytes.extend_from_slice(format!("{line}\n").as_bytes());
        let id = Value::from(id).to_string();
        self.controllers.push((number, id));
        self.controllers.len() - 1
    }

    /// Tells that records are missing.
    pub fn lost(&mut self, count: u32) {
        let line = json!({ "t": self.time, "event": "lost", "lost": count });
        self.bytes.extend_from_slice(format!("{line}\n").as_bytes());
    }

    /// Ends the trace in order.
    pub fn end(&mut self, records: u64, lost: u64) {
        let time = self.tracer.now();
        let line = json!({ "t": time, "event": "end", "records": records, "lost": lost });
        self.bytes.extend_from_slice(format!("{line}\n").as_bytes());
    }
}

/// The version first, whatever the order of keys.
fn first_line(header: &Value) -> String {
    let rest = header.to_string();
    let rest = rest.trim_start_matches('{');
    format!("{{\"berth_trace\":{VERSION},{rest}\n")
}

/// A line that is being made. Keys come with their punctuation.
struct Line<'a>(&'a mut Vec<u8>);

impl Line<'_> {
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, key: &str, value: impl Into<u64>) {
        self.raw(key);
        self.raw(itoa::Buffer::new().format(value.into()));
    }

    fn hex(&mut self, key: &str, value: impl Into<u64>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let value: u64 = value.into();
        self.raw(key);
        self.raw("\"0x");
        // At least one digit.
        let digits = (67 - (value | 1).leading_zeros()) / 4;
        for digit in (0..digits).rev() {
            self.0.push(DIGITS[(value >> (digit * 4) & 15) as usize]);
        }
        self.raw("\"");
    }

    /// A name of the specification in small letters; the number if it has none.
    fn name(&mut self, key: &str, name: Option<&str>, value: impl Into<u64>) {
        let Some(name) = name else {
            return self.hex(key, value);
        };
        self.raw(key);
        self.raw("\"");
        let small = |byte: u8| match byte {
            b'_' => b'-',
            other => other.to_ascii_lowercase(),
        };
        self.0.extend(name.bytes().map(small));
        self.raw("\"");
    }

    fn command(&mut self, command: &TracedCommand) {
        self.number(",\"sqid\":", command.sqid);
        self.number(",\"cqid\":", command.cqid);
        self.number(",\"cid\":", command.cid);
        self.number(",\"opc\":", command.opcode);
        let name = if command.sqid == 0 {
            AdminOpcode(command.opcode).name()
        } else {
            NvmOpcode(command.opcode).name()
        };
        self.name(",\"op\":", name, command.opcode);
        self.number(",\"nsid\":", command.nsid);
        self.number(",\"bytes\":", command.bytes);
    }

    fn event(&mut self, command: &TracedCommand, event: &TraceEvent) {
        match *event {
            TraceEvent::Fetched { prp1, prp2, cdw } => {
                self.hex(",\"prp1\":", prp1);
                self.hex(",\"prp2\":", prp2);
                if command.sqid == 0 {
                    self.admin(AdminOpcode(command.opcode), cdw);
                } else {
                    self.io(NvmOpcode(command.opcode), cdw);
                }
            }
            TraceEvent::Completed {
                latency,
                status,
                dnr,
                dw0,
            } => {
                self.number(",\"latency\":", latency);
                self.status(status, dnr);
                if dw0 != 0 {
                    self.number(",\"dw0\":", dw0);
                }
            }
            TraceEvent::Abandoned { latency } => self.number(",\"latency\":", latency),
        }
    }

    fn status(&mut self, status: Status, dnr: bool) {
        self.name(",\"status\":", status.name(), status.0);
        if status != Status::SUCCESS {
            self.number(",\"sct\":", status.0 >> 8);
            self.number(",\"sc\":", status.0 & 0xff);
            self.raw(if dnr {
                ",\"dnr\":true"
            } else {
                ",\"dnr\":false"
            });
        }
    }

    fn io(&mut self, opcode: NvmOpcode, cdw: [u32; 3]) {
        match opcode {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES => {
                let cdw12 = ReadWriteCdw12::from_bits(cdw[2]);
                self.number(",\"slba\":", u64::from(cdw[1]) << 32 | u64::from(cdw[0]));
                self.number(",\"nlb\":", cdw12.blocks());
                if cdw12.fua() {
                    self.raw(",\"fua\":true");
                }
            }
            NvmOpcode::DATASET_MANAGEMENT => {
                let ranges = u64::from(DsmCdw10::from_bits(cdw[0]).nr_z()) + 1;
                self.number(",\"ranges\":", ranges);
            }
            NvmOpcode::FLUSH => {}
            _ => self.dwords(cdw),
        }
    }

    fn dwords(&mut self, cdw: [u32; 3]) {
        self.hex(",\"cdw10\":", cdw[0]);
        self.hex(",\"cdw11\":", cdw[1]);
        self.hex(",\"cdw12\":", cdw[2]);
    }

    fn admin(&mut self, opcode: AdminOpcode, cdw: [u32; 3]) {
        self.dwords(cdw);
        let queue = CreateQueueCdw10::from_bits(cdw[0]);
        match opcode {
            AdminOpcode::CREATE_CQ => {
                self.new_queue(queue);
                let cdw11 = CreateCqCdw11::from_bits(cdw[1]);
                if cdw11.ien() {
                    self.number(",\"vector\":", cdw11.iv());
                }
            }
            AdminOpcode::CREATE_SQ => {
                self.new_queue(queue);
                self.number(",\"feeds\":", CreateSqCdw11::from_bits(cdw[1]).cqid());
            }
            AdminOpcode::DELETE_SQ | AdminOpcode::DELETE_CQ => {
                self.number(",\"qid\":", queue.qid());
            }
            AdminOpcode::GET_FEATURES | AdminOpcode::SET_FEATURES => {
                self.number(",\"fid\":", FeaturesCdw10::from_bits(cdw[0]).fid());
            }
            AdminOpcode::GET_LOG_PAGE => {
                self.number(",\"lid\":", GetLogCdw10::from_bits(cdw[0]).lid());
            }
            AdminOpcode::IDENTIFY => {
                self.number(",\"cns\":", IdentifyCdw10::from_bits(cdw[0]).cns());
            }
            AdminOpcode::ABORT => {
                let abort = AbortCdw10::from_bits(cdw[0]);
                self.number(",\"abort_sqid\":", abort.sqid());
                self.number(",\"abort_cid\":", abort.cid());
            }
            _ => {}
        }
    }

    fn new_queue(&mut self, queue: CreateQueueCdw10) {
        self.number(",\"qid\":", queue.qid());
        self.number(",\"entries\":", u64::from(queue.qsize_z()) + 1);
    }
}

/// A time as RFC 3339 has it, in UTC, to the nanosecond.
pub fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of the day that is so many days behind 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}
