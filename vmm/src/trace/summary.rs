//! `berth trace summary`: the figures of a trace.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::io::BufRead;

use serde_json::{Value, json};

use super::histogram::Latencies;
use super::read::{Condition, Event, Header, Kind, ReadError, scan};

/// Slowest commands that are told.
const SLOWEST: usize = 10;
/// Different sizes that are told apart; berth's controllers have fewer.
const MOST_SIZES: usize = 1 << 16;
/// Opcodes that a table shows.
const SHOWN_OPCODES: usize = 24;
/// Sizes that a table shows.
const SHOWN_SIZES: usize = 16;
/// Commands in flight that are kept in mind; more than a machine with 31 controllers is likely to have.
const MOST_IN_FLIGHT: usize = 1 << 20;

/// Commands of one kind.
#[derive(Debug, Default)]
struct Group {
    latencies: Latencies,
    errors: u64,
    abandoned: u64,
    bytes: u64,
}

impl Group {
    fn add(&mut self, event: &Event<'_>) {
        if event.event == Kind::Abandon {
            self.abandoned += 1;
            return;
        }
        self.latencies.add(event.latency);
        if event.is_error() {
            self.errors += 1;
        } else {
            self.bytes = self.bytes.saturating_add(event.bytes);
        }
    }

    /// However they ended.
    fn all(&self) -> u64 {
        self.latencies.count() + self.abandoned
    }

    fn json(&self, key: Value, seconds: f64) -> Value {
        let mut value = key;
        value["count"] = self.latencies.count().into();
        value["errors"] = self.errors.into();
        value["abandoned"] = self.abandoned.into();
        value["bytes"] = self.bytes.into();
        value["iops"] = rate(self.latencies.count(), seconds).into();
        value["bytes_per_second"] = rate(self.bytes, seconds).into();
        value["latency_ns"] = self.latencies.json();
        value
    }
}

/// One of the slowest commands; ordered by latency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slow {
    latency: u64,
    // When it was fetched.
    t: u64,
    ctrl: String,
    sqid: u16,
    cid: u16,
    op: String,
    nsid: u32,
    slba: Option<u64>,
    bytes: u64,
    status: String,
}

/// Names by number, in order of appearance: so that only a new one is kept, not each that is met.
#[derive(Debug, Default)]
struct Names(Vec<String>);

impl Names {
    fn number_of(&mut self, name: &str) -> u16 {
        let known = self.0.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.0.push(name.to_owned());
            self.0.len() - 1
        });
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    fn get(&self, number: u16) -> &str {
        self.0.get(usize::from(number)).map_or("?", String::as_str)
    }
}

impl Slow {
    fn row(&self) -> [String; 9] {
        let status = if self.status.is_empty() {
            "(abandoned)"
        } else {
            &self.status
        };
        [
            self.op.clone(),
            time(self.latency as f64),
            format!("{:.6} s", seconds(self.t)),
            format!("{} {}", self.ctrl, self.sqid),
            self.cid.to_string(),
            self.nsid.to_string(),
            self.slba.map_or("-".into(), |slba| slba.to_string()),
            self.bytes.to_string(),
            status.to_owned(),
        ]
    }
}

/// Commands in flight: of I/O queues, from what was fetched and what ended.
#[derive(Debug, Default)]
struct Depth {
    // First blocks, by controller, queue and identifier.
    open: HashMap<(u16, u16, u16), Option<u64>>,
    most: usize,
}

/// The figures of a trace.
#[derive(Debug, Default)]
pub struct Summary {
    header: Header,
    condition: Condition,
    // Admin commands have names of their own.
    by_opcode: BTreeMap<(bool, u16), Group>,
    by_queue: BTreeMap<(u16, u16), Group>,
    controllers: Names,
    opcodes: Names,
    statuses: BTreeMap<String, u64>,
    // By opcode and bytes.
    sizes: BTreeMap<(u16, u64), u64>,
    slowest: BinaryHeap<std::cmp::Reverse<Slow>>,
    depth: Depth,
    /// Of I/O commands: the first that was fetched, the last that ended.
    span: Option<(u64, u64)>,
    // Of all commands.
    last: u64,
    lost: u64,
}

impl Summary {
    /// Reads a trace to its end. Memory does not grow with its length.
    ///
    /// # Errors
    /// It cannot be read, or is no trace.
    pub fn read(input: impl BufRead) -> Result<Self, ReadError> {
        let mut summary = Self::default();
        let (header, condition) = scan(input, |event| summary.take(event))?;
        summary.header = header;
        summary.condition = condition;
        Ok(summary)
    }

    /// What should be known before the figures are believed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.condition.notes();
        if self.lost > 0 {
            notes.push(format!(
                "{} records were lost while the trace was written; figures are of the others",
                self.lost
            ));
        }
        notes
    }

    fn take(&mut self, event: &Event<'_>) {
        self.last = self.last.max(event.t);
        match event.event {
            Kind::Fetch => self.fetched(event),
            Kind::Complete | Kind::Abandon => self.ended(event),
            Kind::Lost => {
                self.lost = self.lost.saturating_add(event.lost);
                // Whose ends are missing would be in flight for ever.
                self.depth.open.clear();
            }
            Kind::End | Kind::Other => {}
        }
    }

    fn fetched(&mut self, event: &Event<'_>) {
        if event.sqid == 0 {
            return;
        }
        let number = self.controllers.number_of(&event.ctrl);
        let key = (number, event.sqid, event.cid);
        let depth = &mut self.depth;
        if depth.open.len() < MOST_IN_FLIGHT {
            depth.open.insert(key, event.slba);
            depth.most = depth.most.max(depth.open.len());
        }
        let start = self.span.map_or(event.t, |(start, _)| start.min(event.t));
        let end = self.span.map_or(event.t, |(_, end)| end);
        self.span = Some((start, end));
    }

    fn ended(&mut self, event: &Event<'_>) {
        let number = self.controllers.number_of(&event.ctrl);
        let opcode = self.opcodes.number_of(&event.op);
        let admin = event.sqid == 0;
        let slba = self.depth.open.remove(&(number, event.sqid, event.cid));
        if let Some((_, end)) = &mut self.span
            && !admin
        {
            *end = (*end).max(event.t);
        }
        let by_opcode = self.by_opcode.entry((admin, opcode));
        by_opcode.or_default().add(event);
        if !event.waits_for_an_event() {
            let by_queue = self.by_queue.entry((number, event.sqid));
            by_queue.or_default().add(event);
        }
        let status = if event.event == Kind::Abandon {
            "(abandoned)"
        } else {
            &event.status
        };
        count(&mut self.statuses, status);
        if event.bytes > 0 && !admin {
            let key = (opcode, event.bytes);
            if self.sizes.len() < MOST_SIZES || self.sizes.contains_key(&key) {
                *self.sizes.entry(key).or_default() += 1;
            }
        }
        if !admin {
            self.note_slow(event, slba.flatten());
        }
    }

    fn note_slow(&mut self, event: &Event<'_>, slba: Option<u64>) {
        let full = self.slowest.len() >= SLOWEST;
        let least = self.slowest.peek().map_or(0, |least| least.0.latency);
        if full && event.latency <= least {
            return;
        }
        if full {
            self.slowest.pop();
        }
        self.slowest.push(std::cmp::Reverse(Slow {
            latency: event.latency,
            t: event.t.saturating_sub(event.latency),
            ctrl: event.ctrl.clone().into_owned(),
            sqid: event.sqid,
            cid: event.cid,
            op: event.op.clone().into_owned(),
            nsid: event.nsid,
            slba,
            bytes: event.bytes,
            status: event.status.clone().into_owned(),
        }));
    }

    fn seconds(&self) -> f64 {
        self.span.map_or(0.0, |(start, end)| seconds(end - start))
    }

    /// Sum over the I/O queues: count, errors, abandoned, bytes, and all latencies together.
    fn totals(&self) -> (u64, u64, u64, u64, u128) {
        let io = self.by_queue.iter().filter(|((_, sqid), _)| *sqid > 0);
        io.fold((0, 0, 0, 0, 0), |total, (_, group)| {
            (
                total.0 + group.latencies.count(),
                total.1 + group.errors,
                total.2 + group.abandoned,
                total.3.saturating_add(group.bytes),
                total.4 + group.latencies.sum(),
            )
        })
    }

    /// By Little's law, from the time that commands took.
    #[allow(clippy::cast_precision_loss)] // a figure for people
    fn mean_depth(&self) -> f64 {
        let (.., sum) = self.totals();
        let length = self.span.map_or(0, |(start, end)| end - start);
        sum as f64 / length.max(1) as f64
    }

    /// Opcode, bytes and count, in order of these.
    fn sizes(&self) -> Vec<(&str, u64, u64)> {
        let sizes = self.sizes.iter();
        let named =
            |((op, bytes), count): (&(u16, u64), &u64)| (self.opcodes.get(*op), *bytes, *count);
        let mut sizes: Vec<_> = sizes.map(named).collect();
        sizes.sort_unstable();
        sizes
    }

    fn slowest(&self) -> Vec<&Slow> {
        let mut slowest: Vec<&Slow> = self.slowest.iter().map(|slow| &slow.0).collect();
        slowest.sort_by_key(|slow| std::cmp::Reverse(slow.latency));
        slowest
    }

    /// All figures. Times are nanoseconds.
    pub fn json(&self) -> Value {
        let seconds = self.seconds();
        let (count, errors, abandoned, bytes, _) = self.totals();
        let opcodes = self.by_opcode.iter().map(|((admin, op), group)| {
            let queue = if *admin { "admin" } else { "io" };
            let key = json!({ "queue": queue, "op": self.opcodes.get(*op) });
            group.json(key, seconds)
        });
        let queues = self.by_queue.iter().map(|((number, sqid), group)| {
            let key = json!({ "ctrl": self.controllers.get(*number), "sqid": sqid });
            group.json(key, seconds)
        });
        let sizes = self.sizes().into_iter();
        let sizes =
            sizes.map(|(op, bytes, count)| json!({ "op": op, "bytes": bytes, "count": count }));
        let slowest = self.slowest().into_iter().map(|slow| {
            json!({
                "latency": slow.latency, "t": slow.t, "ctrl": slow.ctrl, "sqid": slow.sqid,
                "cid": slow.cid, "op": slow.op, "nsid": slow.nsid, "slba": slow.slba,
                "bytes": slow.bytes, "status": slow.status,
            })
        });
        json!({
            "berth": self.header.berth,
            "time": self.header.time,
            "lines": self.condition.lines,
            "bad_lines": self.condition.bad,
            "truncated": self.condition.truncated,
            "complete": self.condition.ended,
            "lost": self.lost,
            "seconds": seconds,
            "io": {
                "count": count, "errors": errors, "abandoned": abandoned, "bytes": bytes,
                "iops": rate(count, seconds), "bytes_per_second": rate(bytes, seconds),
                "depth": { "mean": self.mean_depth(), "max": self.depth.most },
                "in_flight_at_end": self.depth.open.len(),
            },
            "by_opcode": opcodes.collect::<Vec<_>>(),
            "by_queue": queues.collect::<Vec<_>>(),
            "status": self.statuses,
            "sizes": sizes.collect::<Vec<_>>(),
            "slowest": slowest.collect::<Vec<_>>(),
        })
    }

    /// Tables for people.
    pub fn text(&self) -> String {
        let mut text = self.head();
        text += &self.opcode_table();
        text += &self.queue_table();
        text += &self.size_table();
        text += &self.status_table();
        text += &self.slow_table();
        text
    }

    fn head(&self) -> String {
        let seconds = self.seconds();
        let (count, errors, abandoned, bytes, _) = self.totals();
        let mut text = format!(
            "Trace of berth {} from {}: {:.3} s, {count} I/O commands, {errors} errors, \
             {abandoned} abandoned, {} records lost\n",
            self.header.berth, self.header.time, seconds, self.lost
        );
        let _ = writeln!(
            text,
            "{:.0} IOPS, {}/s; in flight: {:.2} on average, {} at most, {} at the end",
            rate(count, seconds),
            size(rate(bytes, seconds)),
            self.mean_depth(),
            self.depth.most,
            self.depth.open.len()
        );
        text
    }

    fn opcode_table(&self) -> String {
        let mut rows: Vec<_> = self.by_opcode.iter().collect();
        // A guest may try every number there is.
        rows.sort_by_key(|((admin, _), group)| (*admin, std::cmp::Reverse(group.all())));
        let left_out = rows.len().saturating_sub(SHOWN_OPCODES);
        let mut text = table_head("by opcode");
        for ((admin, op), group) in rows.into_iter().take(SHOWN_OPCODES) {
            let op = self.opcodes.get(*op);
            let name = if *admin {
                format!("admin {op}")
            } else {
                op.to_owned()
            };
            text += &table_row(&name, group);
        }
        text + &and_more(left_out)
    }

    fn queue_table(&self) -> String {
        let mut text = table_head("by queue");
        let mut rows: Vec<_> = self.by_queue.iter().collect();
        rows.sort_by_key(|((number, sqid), _)| (self.controllers.get(*number), *sqid));
        for ((number, sqid), group) in rows {
            let name = format!("{} {sqid}", self.controllers.get(*number));
            text += &table_row(&name, group);
        }
        text
    }

    fn size_table(&self) -> String {
        if self.sizes.is_empty() {
            return String::new();
        }
        let mut sizes = self.sizes();
        sizes.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        let left_out = sizes.len().saturating_sub(SHOWN_SIZES);
        sizes.truncate(SHOWN_SIZES);
        sizes.sort();
        let mut text = format!("\n{:<28}{:>12}{:>12}\n", "sizes", "bytes", "count");
        for (op, bytes, count) in sizes {
            let _ = writeln!(text, "{op:<28}{bytes:>12}{count:>12}");
        }
        text + &and_more(left_out)
    }

    fn status_table(&self) -> String {
        let bad = self.statuses.iter().filter(|(name, _)| *name != "success");
        let bad: Vec<_> = bad.collect();
        if bad.is_empty() {
            return String::new();
        }
        let mut text = format!("\n{:<40}{:>12}\n", "errors", "count");
        for (status, count) in bad {
            let _ = writeln!(text, "{status:<40}{count:>12}");
        }
        text
    }

    fn slow_table(&self) -> String {
        if self.slowest.is_empty() {
            return String::new();
        }
        let head = [
            "slowest",
            "latency",
            "fetched at",
            "queue",
            "cid",
            "nsid",
            "slba",
            "bytes",
            "status",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.slowest().into_iter().map(Slow::row));
        format!("\n{}", in_columns(&rows))
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

fn and_more(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!("and {count} rarer ones; --json has all\n"),
    }
}

/// Rows beneath each other, however long their words are: a guest may choose any number. The first and
/// the last column are text, those between them numbers.
fn in_columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let mut text = String::new();
    for row in rows {
        for (column, word) in row.iter().enumerate() {
            let width = widest(column).unwrap_or(0);
            let _ = match column {
                0 => write!(text, "{word:<width$}"),
                last if last == N - 1 => write!(text, "  {word}"),
                _ => write!(text, "  {word:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

fn table_head(what: &str) -> String {
    let mut text = format!("\n{what:<28}{:>11}{:>8}", "count", "errors");
    for name in ["min", "p50", "p90", "p99", "p99.9", "max", "mean"] {
        let _ = write!(text, "{name:>10}");
    }
    text.push('\n');
    text
}

fn table_row(name: &str, group: &Group) -> String {
    let errors = group.errors + group.abandoned;
    let mut text = format!("{name:<28}{:>11}{errors:>8}", group.latencies.count());
    let figures = group.latencies.figures().into_iter();
    let figures = figures.map(|(_, figure)| figure as f64);
    for figure in figures.chain([group.latencies.mean()]) {
        // Nothing of this kind was completed.
        let figure = if group.latencies.count() == 0 {
            "-".to_owned()
        } else {
            time(figure)
        };
        let _ = write!(text, "{figure:>10}");
    }
    text.push('\n');
    text
}

#[allow(clippy::cast_precision_loss)] // a figure for people
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// A second; 0 if there is no time.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// Nanoseconds in the unit that suits them, with three digits.
pub(super) fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        small if small < 999.5 => return format!("{small:.0} ns"),
        small if small < 999.5e3 => (small / 1e3, "us"),
        small if small < 999.5e6 => (small / 1e6, "ms"),
        large => (large / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// Bytes in the unit that suits them, with three digits.
pub(super) fn size(bytes: f64) -> String {
    let (value, unit) = match bytes {
        small if small < 1e3 => (small, "B"),
        small if small < 1e6 => (small / 1e3, "kB"),
        small if small < 1e9 => (small / 1e6, "MB"),
        large => (large / 1e9, "GB"),
    };
    format!("{} {unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}
