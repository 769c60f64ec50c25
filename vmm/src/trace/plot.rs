//! `berth trace plot`: a picture of a trace.
//!
//! Three panels over one time: latency of each command, commands a second, and what each queue has in
//! flight. A trace of few commands shows each of them; a longer one is counted into fields of time and
//! latency whose width doubles whenever the trace outgrows them, so that memory does not grow with its
//! length, and one pass is enough.

mod draw;
mod scale;

use std::collections::HashMap;
use std::io::BufRead;

use super::read::{Condition, Event, Header, Kind, ReadError, scan};
use super::summary::time as in_time;

/// Commands that are shown one by one.
const SINGLE: usize = 3000;
/// Columns of time.
const COLUMNS: usize = 480;
/// Width of a column in nanoseconds, before it doubles.
const FIRST_WIDTH: u64 = 64;
/// Rows of latency for each doubling.
const ROWS: f64 = 6.0;
/// Queues that are told apart.
const MOST_QUEUES: usize = 512;
/// Opcodes of I/O commands that are told apart; behind them are [`ADMIN`] and [`OTHER`].
const OPCODES: [&str; 5] = [
    "read",
    "write",
    "flush",
    "write-zeroes",
    "dataset-management",
];
/// The kind of admin commands.
const ADMIN: usize = OPCODES.len();
/// The kind of I/O commands with other opcodes.
const OTHER: usize = ADMIN + 1;
const KINDS: usize = OTHER + 1;

/// One command, while they are few.
#[derive(Debug, Clone)]
struct Command {
    start: u64,
    end: u64,
    queue: usize,
    kind: usize,
    error: bool,
    label: String,
}

/// One queue over time.
#[derive(Debug, Clone)]
struct Queue {
    name: String,
    commands: u64,
    // Nanoseconds that commands were in flight, by column.
    busy: Vec<u64>,
}

/// A trace, counted for a picture.
#[derive(Debug)]
pub struct Plot {
    header: Header,
    condition: Condition,
    // When the first command was fetched.
    origin: Option<u64>,
    last: u64,
    width: u64,
    // Commands by column and kind.
    rates: Vec<[u64; KINDS]>,
    errors: Vec<u64>,
    // Records lost, by column.
    lost: Vec<u64>,
    // Commands by column, row and kind.
    fields: HashMap<(usize, usize, usize), u64>,
    queues: Vec<Queue>,
    // None once they are too many.
    single: Option<Vec<Command>>,
    count: u64,
}

/// Which kind of command it is.
fn kind_of(sqid: u16, op: &str) -> usize {
    if sqid == 0 {
        return ADMIN;
    }
    let known = OPCODES.iter().position(|name| *name == op);
    known.unwrap_or(OTHER)
}

/// Row of a latency.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // at most 64 doublings
fn row_of(latency: u64) -> usize {
    ((latency.max(1) as f64).log2() * ROWS) as usize
}

impl Plot {
    /// Reads a trace to its end.
    ///
    /// # Errors
    /// It cannot be read, or is no trace.
    pub fn read(input: impl BufRead) -> Result<Self, ReadError> {
        let mut plot = Self {
            header: Header::default(),
            condition: Condition::default(),
            origin: None,
            last: 0,
            width: FIRST_WIDTH,
            rates: vec![[0; KINDS]; COLUMNS],
            errors: vec![0; COLUMNS],
            lost: vec![0; COLUMNS],
            fields: HashMap::new(),
            queues: Vec::new(),
            single: Some(Vec::new()),
            count: 0,
        };
        let (header, condition) = scan(input, |event| plot.take(event))?;
        plot.header = header;
        plot.condition = condition;
        Ok(plot)
    }

    /// What should be known before the picture is believed.
    pub fn notes(&self) -> Vec<String> {
        self.condition.notes()
    }

    fn take(&mut self, event: &Event<'_>) {
        match event.event {
            Kind::Fetch => {
                self.origin.get_or_insert(event.t);
            }
            Kind::Complete | Kind::Abandon if event.waits_for_an_event() => {}
            Kind::Complete | Kind::Abandon => self.ended(event),
            Kind::Lost => {
                let column = self.column(event.t);
                self.lost[column] = self.lost[column].saturating_add(event.lost);
            }
            Kind::End | Kind::Other => {}
        }
    }

    fn ended(&mut self, event: &Event<'_>) {
        self.count += 1;
        self.last = self.last.max(event.t);
        let start = event.t.saturating_sub(event.latency);
        self.origin.get_or_insert(start);
        let column = self.column(event.t);
        let kind = kind_of(event.sqid, &event.op);
        self.rates[column][kind] += 1;
        self.errors[column] += u64::from(event.is_error());
        let row = row_of(event.latency);
        *self.fields.entry((column, row, kind)).or_default() += 1;
        if let Some(queue) = self.queue(&event.ctrl, event.sqid) {
            self.add_busy(queue, start, event.t);
            self.add_single(event, queue, kind, start);
        }
    }

    /// The column of a time; columns get wider until it has one.
    fn column(&mut self, t: u64) -> usize {
        let since = t.saturating_sub(self.origin.unwrap_or(t));
        while since / self.width >= COLUMNS as u64 {
            self.widen();
        }
        // Below the number of columns.
        usize::try_from(since / self.width).unwrap_or(COLUMNS - 1)
    }

    fn widen(&mut self) {
        self.width = self.width.saturating_mul(2);
        for column in 0..COLUMNS {
            let rates = std::mem::take(&mut self.rates[column]);
            for (into, count) in self.rates[column / 2].iter_mut().zip(rates) {
                *into += count;
            }
        }
        fold(&mut self.errors);
        fold(&mut self.lost);
        self.queues
            .iter_mut()
            .for_each(|queue| fold(&mut queue.busy));
        let fields = std::mem::take(&mut self.fields);
        for ((column, row, kind), count) in fields {
            *self.fields.entry((column / 2, row, kind)).or_default() += count;
        }
    }

    fn queue(&mut self, ctrl: &str, sqid: u16) -> Option<usize> {
        let is_it = |queue: &Queue| {
            let end = queue.name.strip_prefix(ctrl);
            end.and_then(|end| end.strip_prefix(" ")?.parse().ok()) == Some(sqid)
        };
        if let Some(known) = self.queues.iter().position(is_it) {
            return Some(known);
        }
        if self.queues.len() >= MOST_QUEUES {
            return None;
        }
        self.queues.push(Queue {
            name: format!("{ctrl} {sqid}"),
            commands: 0,
            busy: vec![0; COLUMNS],
        });
        Some(self.queues.len() - 1)
    }

    fn add_busy(&mut self, queue: usize, start: u64, end: u64) {
        // In this order: a later time may make columns wider.
        let last = self.column(end);
        let first = self.column(start);
        let origin = self.origin.unwrap_or(start);
        let queue = &mut self.queues[queue];
        queue.commands += 1;
        for column in first..=last {
            let from = origin.saturating_add((column as u64).saturating_mul(self.width));
            let to = from.saturating_add(self.width);
            let busy = end.min(to).saturating_sub(start.max(from));
            queue.busy[column] = queue.busy[column].saturating_add(busy);
        }
    }

    fn add_single(&mut self, event: &Event<'_>, queue: usize, kind: usize, start: u64) {
        let Some(single) = &mut self.single else {
            return;
        };
        if single.len() >= SINGLE {
            self.single = None;
            return;
        }
        #[allow(clippy::cast_precision_loss)] // a figure for people
        let latency = in_time(event.latency as f64);
        let label = format!(
            "{} {} cid {} nsid {} {} bytes: {latency}, {}",
            event.ctrl,
            event.op,
            event.cid,
            event.nsid,
            event.bytes,
            if event.event == Kind::Abandon {
                "abandoned"
            } else {
                &event.status
            }
        );
        single.push(Command {
            start,
            end: event.t,
            queue,
            kind,
            error: event.is_error(),
            label,
        });
    }
}

/// Adds each pair of columns into one.
fn fold(columns: &mut [u64]) {
    for column in 0..columns.len() {
        let count = std::mem::take(&mut columns[column]);
        columns[column / 2] = columns[column / 2].saturating_add(count);
    }
}
