//! `berth trace plot`: a picture of a trace.
//!
//! Three panels over one time: latency of each command, commands a second, and what each queue has in
//! flight. A trace of few commands shows each of them; a longer one is counted into fields of time and
//! latency whose width doubles whenever the trace outgrows them, so that memory does not grow with its
//! length, and one pass is enough.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::BufRead;

use super::read::{Condition, Event, Header, Kind, ReadError, scan};
use super::summary::time as in_time;
use super::svg::{Anchor, Svg, escape, ticks};

/// Commands that are shown one by one.
const SINGLE: usize = 3000;
/// Percentiles that are drawn: of a hundred, the pen, what it is called.
const PERCENTILES: [(u64, &str, &str); 2] = [
    (50, "", "median of I/O"),
    (99, "stroke-dasharray=\"5 3\"", "99th percentile"),
];
/// Commands that a column must have for these.
const ENOUGH: u64 = 20;
/// Columns of time.
const COLUMNS: usize = 480;
/// Width of a column in nanoseconds, before it doubles.
const FIRST_WIDTH: u64 = 64;
/// Rows of latency for each doubling.
const ROWS: f64 = 6.0;
/// Queues that are told apart.
const MOST_QUEUES: usize = 512;
/// Queues that are shown.
const SHOWN_QUEUES: usize = 24;

/// The palette of Okabe and Ito, which people with any colour vision can tell apart.
const COLOURS: [(&str, &str); 5] = [
    ("read", "#0072b2"),
    ("write", "#e69f00"),
    ("flush", "#009e73"),
    ("write-zeroes", "#cc79a7"),
    ("dataset-management", "#56b4e9"),
];
const ADMIN: (&str, &str) = ("admin", "#767676");
const OTHER: (&str, &str) = ("other", "#b8a000");
const ERROR: &str = "#d55e00";
/// Names and colours in the order of [`kind_of`].
const KINDS: usize = COLOURS.len() + 2;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 1170.0;
const LATENCY: (f64, f64) = (110.0, 430.0);
const RATE: (f64, f64) = (480.0, 620.0);
const QUEUES_TOP: f64 = 670.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#222}.title{font-size:18px;font-weight:bold}\
.head{font-size:13px;font-weight:bold}.small{font-size:11px;fill:#555}";

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
        return COLOURS.len();
    }
    let known = COLOURS.iter().position(|(name, _)| *name == op);
    known.unwrap_or(COLOURS.len() + 1)
}

fn name_and_colour(kind: usize) -> (&'static str, &'static str) {
    match COLOURS.get(kind) {
        Some(known) => *known,
        None if kind == COLOURS.len() => ADMIN,
        None => OTHER,
    }
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
            Kind::Complete | Kind::Abandon => self.ended(event),
            Kind::Lost => {
                let column = self.column(event.t);
                self.lost[column] += event.lost;
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
            let from = origin + column as u64 * self.width;
            let to = from + self.width;
            queue.busy[column] += end.min(to).saturating_sub(start.max(from));
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

    /// The picture in a page of its own.
    pub fn html(&self, title: &str) -> String {
        let notes = self.notes();
        let note = |note: &String| format!("<li>{}</li>", escape(note));
        let notes: String = notes.iter().map(note).collect();
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <title>NVMe trace {}</title>\n<style>body{{margin:16px;background:#fff}}\
             svg{{max-width:100%;height:auto}}li{{font:13px sans-serif;color:{ERROR}}}</style></head>\n\
             <body>\n{}<ul>{notes}</ul>\n</body></html>\n",
            escape(title),
            self.svg(title)
        )
    }

    /// The picture alone.
    pub fn svg(&self, title: &str) -> String {
        let mut svg = Svg::default();
        let scale = Scale::new(self);
        let lanes = self.lanes();
        let bottom = lanes
            .last()
            .map_or(QUEUES_TOP, |lane| lane.top + lane.height);
        svg.rect((0.0, 0.0), (WIDTH, bottom + 60.0), "#fff", "");
        self.head(&mut svg, title);
        if self.count > 0 {
            scale.grid(&mut svg, bottom);
            self.losses(&mut svg, &scale, bottom);
            self.latencies(&mut svg, &scale);
            self.rates(&mut svg, &scale);
            self.flights(&mut svg, &scale, &lanes);
        } else {
            let middle = ((LEFT + RIGHT) / 2.0, 300.0);
            svg.text(
                middle,
                Anchor::Middle,
                "head",
                "No command ended in this trace.",
            );
        }
        svg.document((WIDTH, bottom + 60.0), STYLE)
    }

    #[allow(clippy::cast_precision_loss)] // a figure for people
    fn head(&self, svg: &mut Svg, title: &str) {
        svg.text(
            (20.0, 30.0),
            Anchor::Start,
            "title",
            &format!("NVMe trace {title}"),
        );
        let length = self.last.saturating_sub(self.origin.unwrap_or(0));
        let errors: u64 = self.errors.iter().sum();
        let lost: u64 = self.lost.iter().sum();
        let facts = format!(
            "{} commands in {}, {errors} errors, {lost} records lost; berth {}, began {}",
            self.count,
            in_time(length as f64),
            self.header.berth,
            self.header.time
        );
        svg.text((20.0, 50.0), Anchor::Start, "small", &facts);
        let mut x = 20.0;
        for kind in 0..KINDS {
            if self.rates.iter().all(|counts| counts[kind] == 0) {
                continue;
            }
            let (name, colour) = name_and_colour(kind);
            svg.rect((x, 64.0), (12.0, 12.0), colour, "");
            svg.text((x + 17.0, 75.0), Anchor::Start, "", name);
            x += 35.0 + name.len() as f64 * 7.0;
        }
        if errors > 0 {
            cross(svg, (x + 6.0, 70.0), "");
            svg.text((x + 17.0, 75.0), Anchor::Start, "", "error or abandoned");
            x += 150.0;
        }
        if self.single.is_none() {
            for (_, dash, name) in PERCENTILES {
                let pen = format!(r##"stroke="#000" stroke-width="1.3" {dash}"##);
                svg.path(&format!("M{x:.1} 70h22"), &pen);
                svg.text((x + 27.0, 75.0), Anchor::Start, "", name);
                x += 45.0 + name.len() as f64 * 7.0;
            }
        }
        if lost > 0 {
            svg.rect((x, 64.0), (12.0, 12.0), "#000", "fill-opacity=\"0.18\"");
            svg.text((x + 17.0, 75.0), Anchor::Start, "", "records lost");
        }
    }

    /// Grey where records are missing.
    fn losses(&self, svg: &mut Svg, scale: &Scale, bottom: f64) {
        let lost = self.lost.iter().enumerate();
        for (column, count) in lost.filter(|(_, count)| **count > 0) {
            let (x, w) = scale.column(column);
            let title = format!("<title>{count} records lost</title>");
            svg.raw(format_args!(
                r##"<rect x="{x:.1}" y="{:.1}" width="{w:.1}" height="{:.1}" fill="#000" fill-opacity="0.18">{title}</rect>"##,
                LATENCY.0,
                bottom - LATENCY.0
            ));
        }
    }

    fn latencies(&self, svg: &mut Svg, scale: &Scale) {
        scale.latency_axis(svg);
        match &self.single {
            Some(commands) => {
                for command in commands {
                    let latency = command.end - command.start;
                    let at = (scale.x(command.end), scale.y(latency));
                    let title = format!("<title>{}</title>", escape(&command.label));
                    if command.error {
                        cross(svg, at, &title);
                    } else {
                        let (_, colour) = name_and_colour(command.kind);
                        svg.raw(format_args!(
                            r#"<circle cx="{:.1}" cy="{:.1}" r="2.5" fill="{colour}" fill-opacity="0.7">{title}</circle>"#,
                            at.0, at.1
                        ));
                    }
                }
            }
            None => {
                self.density(svg, scale);
                self.percentiles(svg, scale);
                self.error_marks(svg, scale);
            }
        }
    }

    /// Fields that are the darker the more commands are in them.
    fn density(&self, svg: &mut Svg, scale: &Scale) {
        /// Shades of a colour.
        const SHADES: usize = 5;
        let most = self.fields.values().copied().max().unwrap_or(1);
        let mut paths = vec![String::new(); KINDS * SHADES];
        let mut fields: Vec<_> = self.fields.iter().collect();
        fields.sort_unstable();
        for ((column, row, kind), count) in fields {
            let (x, w) = scale.column(*column);
            let (y, h) = scale.row(*row);
            let shade = shade(*count, most, SHADES);
            let _ = write!(
                paths[kind * SHADES + shade],
                "M{x:.1} {y:.1}h{w:.1}v{h:.1}h-{w:.1}z"
            );
        }
        for (index, path) in paths.iter().enumerate() {
            let (_, colour) = name_and_colour(index / SHADES);
            #[allow(clippy::cast_precision_loss)] // a few
            let opacity = 0.35 + 0.65 * (index % SHADES) as f64 / (SHADES - 1) as f64;
            svg.path(
                path,
                &format!(r#"fill="{colour}" fill-opacity="{opacity:.2}""#),
            );
        }
    }

    /// Lines of the median and the 99th percentile of I/O commands, where there are enough of them.
    fn percentiles(&self, svg: &mut Svg, scale: &Scale) {
        let mut rows: Vec<Vec<(usize, u64)>> = vec![Vec::new(); COLUMNS];
        for ((column, row, kind), count) in &self.fields {
            if *kind != COLOURS.len() {
                rows[*column].push((*row, *count));
            }
        }
        for (percent, dash, _) in PERCENTILES {
            let mut path = String::new();
            let mut pen_up = true;
            for (column, rows) in rows.iter_mut().enumerate() {
                let Some(row) = percentile(rows, percent) else {
                    pen_up = true;
                    continue;
                };
                let ((x, w), (y, h)) = (scale.column(column), scale.row(row));
                let (command, x, y) = (if pen_up { "M" } else { "L" }, x + w / 2.0, y + h / 2.0);
                let _ = write!(path, "{command}{x:.1} {y:.1}");
                pen_up = false;
            }
            // On white, to be seen on any colour.
            for (colour, width, opacity) in [("#fff", 3.5, 0.7), ("#000", 1.3, 1.0)] {
                let pen = format!(
                    r#"fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" {dash}"#
                );
                svg.path(&path, &pen);
            }
        }
    }

    /// Where commands failed, above the fields, for these do not tell.
    fn error_marks(&self, svg: &mut Svg, scale: &Scale) {
        let errors = self.errors.iter().enumerate();
        for (column, count) in errors.filter(|(_, count)| **count > 0) {
            let (x, w) = scale.column(column);
            let title = format!("<title>{count} errors or abandoned</title>");
            cross(svg, (x + w / 2.0, LATENCY.0 + 6.0), &title);
        }
    }

    /// Commands a second, one kind on another.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn rates(&self, svg: &mut Svg, scale: &Scale) {
        let (top, bottom) = RATE;
        svg.text(
            (LEFT, top - 10.0),
            Anchor::Start,
            "head",
            "Commands a second",
        );
        let seconds = self.width as f64 / 1e9;
        let rate = |count: u64| count as f64 / seconds;
        let sums = self.rates.iter().map(|counts| counts.iter().sum());
        let most = rate(sums.max().unwrap_or(0));
        let y = |rate: f64| bottom - rate / most.max(1e-9) * (bottom - top);
        for tick in ticks(most, 4.0) {
            svg.line((LEFT, y(tick)), (RIGHT, y(tick)), "#e4e4e4");
            svg.text(
                (LEFT - 8.0, y(tick) + 4.0),
                Anchor::End,
                "small",
                &thousands(tick),
            );
        }
        let mut paths = vec![String::new(); KINDS];
        for (column, counts) in self.rates.iter().enumerate() {
            let (x, w) = scale.column(column);
            let mut below = 0;
            for (kind, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                let (from, to) = (y(rate(below)), y(rate(below + count)));
                let height = (from - to).max(0.3);
                let _ = write!(paths[kind], "M{x:.1} {to:.1}h{w:.1}v{height:.1}h-{w:.1}z");
                below += count;
            }
        }
        for (kind, path) in paths.iter().enumerate() {
            svg.path(path, &format!(r#"fill="{}""#, name_and_colour(kind).1));
        }
        svg.line((LEFT, bottom), (RIGHT, bottom), "#888");
    }

    /// The queues that are shown: those with the most commands, in order of their names.
    fn lanes(&self) -> Vec<Lane> {
        let mut busiest: Vec<usize> = (0..self.queues.len()).collect();
        busiest.sort_by_key(|&queue| std::cmp::Reverse(self.queues[queue].commands));
        busiest.truncate(SHOWN_QUEUES);
        let natural = |queue: &usize| {
            let name = &self.queues[*queue].name;
            let (ctrl, sqid) = name.rsplit_once(' ').unwrap_or((name, ""));
            (ctrl.to_owned(), sqid.parse::<u16>().unwrap_or(0))
        };
        busiest.sort_by_key(natural);
        let height = match busiest.len() {
            0..=6 => 60.0,
            7..=12 => 36.0,
            _ => 22.0,
        };
        let mut top = QUEUES_TOP;
        let lane = |queue| {
            let lane = Lane { queue, top, height };
            top += height + 8.0;
            lane
        };
        busiest.into_iter().map(lane).collect()
    }

    /// What each queue has in flight: its commands as bars, or how many on average.
    fn flights(&self, svg: &mut Svg, scale: &Scale, lanes: &[Lane]) {
        let left_out = self.queues.len() - lanes.len();
        let mut head = "In flight, by controller and submission queue (0: admin)".to_owned();
        if self.single.is_none() {
            head += "; top: the highest mean of a column";
        }
        if left_out > 0 {
            let _ = write!(
                head,
                "; the {left_out} queues with the fewest commands are left out"
            );
        }
        svg.text((LEFT, QUEUES_TOP - 12.0), Anchor::Start, "head", &head);
        for lane in lanes {
            let base = lane.top + lane.height;
            svg.text(
                (LEFT - 8.0, lane.top + lane.height / 2.0 - 1.0),
                Anchor::End,
                "",
                &self.queues[lane.queue].name,
            );
            match &self.single {
                Some(commands) => bars(svg, scale, lane, commands),
                None => self.area(svg, scale, lane),
            }
            svg.line((LEFT, base), (RIGHT, base), "#bbb");
        }
    }

    /// The number in flight over time, on average in each column; the highest fills the lane.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn area(&self, svg: &mut Svg, scale: &Scale, lane: &Lane) {
        let busy = &self.queues[lane.queue].busy;
        let base = lane.top + lane.height;
        let most = busy.iter().copied().max().unwrap_or(0).max(1) as f64;
        let mut path = String::new();
        for (column, busy) in busy.iter().enumerate().filter(|(_, busy)| **busy > 0) {
            let (x, w) = scale.column(column);
            let h = (*busy as f64 / most * lane.height).max(0.5);
            let _ = write!(path, "M{x:.1} {base:.1}v-{h:.1}h{w:.1}v{h:.1}z");
        }
        svg.path(&path, "fill=\"#4d4d4d\"");
        let label = format!("top: {}", three(most / self.width as f64));
        let at = (LEFT - 8.0, lane.top + lane.height / 2.0 + 11.0);
        svg.text(at, Anchor::End, "small", &label);
    }
}

/// Where a queue is drawn.
#[derive(Debug, Clone, Copy)]
struct Lane {
    queue: usize,
    top: f64,
    height: f64,
}

/// Commands as bars, those at the same time beneath each other.
fn bars(svg: &mut Svg, scale: &Scale, lane: &Lane, commands: &[Command]) {
    let mut own: Vec<&Command> = commands
        .iter()
        .filter(|it| it.queue == lane.queue)
        .collect();
    own.sort_by_key(|command| command.start);
    let mut free_from: Vec<u64> = Vec::new();
    let slots: Vec<usize> = own
        .iter()
        .map(|command| {
            let slot = free_from.iter().position(|free| *free <= command.start);
            let slot = slot.unwrap_or_else(|| {
                free_from.push(0);
                free_from.len() - 1
            });
            free_from[slot] = command.end;
            slot
        })
        .collect();
    #[allow(clippy::cast_precision_loss)] // at most 65,536
    let height = (lane.height / free_from.len().max(1) as f64).min(16.0);
    for (command, slot) in own.iter().zip(slots) {
        let (x, end) = (scale.x(command.start), scale.x(command.end));
        #[allow(clippy::cast_precision_loss)] // as above
        let y = lane.top + lane.height - height * (slot + 1) as f64;
        let (_, colour) = name_and_colour(command.kind);
        let stroke = if command.error {
            format!(r#" stroke="{ERROR}" stroke-width="1.5""#)
        } else {
            String::new()
        };
        svg.raw(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{colour}"{stroke}><title>{}</title></rect>"#,
            (end - x).max(0.8),
            (height - 0.5).max(0.5),
            escape(&command.label)
        ));
    }
}

/// From time and latency to the picture.
struct Scale {
    origin: u64,
    length: f64,
    width: f64,
    // Logarithms to base 2.
    low: f64,
    high: f64,
}

impl Scale {
    #[allow(clippy::cast_precision_loss)] // a picture
    fn new(plot: &Plot) -> Self {
        let origin = plot.origin.unwrap_or(0);
        let rows = || plot.fields.keys().map(|(_, row, _)| *row as f64);
        Self {
            origin,
            length: plot.last.saturating_sub(origin).max(1) as f64,
            width: plot.width as f64,
            low: rows().fold(f64::MAX, f64::min) / ROWS - 0.2,
            high: (rows().fold(0.0, f64::max) + 1.0) / ROWS + 0.2,
        }
    }

    #[allow(clippy::cast_precision_loss)] // a picture
    fn x(&self, t: u64) -> f64 {
        self.at(t.saturating_sub(self.origin) as f64)
    }

    fn at(&self, since: f64) -> f64 {
        (LEFT + since / self.length * (RIGHT - LEFT)).min(RIGHT)
    }

    /// Left end and width of a column.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn column(&self, column: usize) -> (f64, f64) {
        let (from, to) = (column as f64 * self.width, (column + 1) as f64 * self.width);
        (self.at(from), (self.at(to) - self.at(from)).max(0.6))
    }

    #[allow(clippy::cast_precision_loss)] // a picture
    fn y(&self, latency: u64) -> f64 {
        self.height_of((latency.max(1) as f64).log2())
    }

    fn height_of(&self, log: f64) -> f64 {
        let (top, bottom) = LATENCY;
        bottom - (log - self.low) / (self.high - self.low) * (bottom - top)
    }

    /// Upper end and height of a row.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn row(&self, row: usize) -> (f64, f64) {
        let (low, high) = (row as f64 / ROWS, (row + 1) as f64 / ROWS);
        let (y, base) = (self.height_of(high), self.height_of(low));
        (y, base - y)
    }

    /// Lines of time through all panels, with their labels.
    fn grid(&self, svg: &mut Svg, bottom: f64) {
        let (unit, name) = match self.length {
            short if short < 1e4 => (1.0, "ns"),
            short if short < 1e7 => (1e3, "us"),
            middle if middle < 1e10 => (1e6, "ms"),
            _ => (1e9, "s"),
        };
        for tick in ticks(self.length / unit, 10.0) {
            let x = self.at(tick * unit);
            svg.line((x, LATENCY.0), (x, bottom + 5.0), "#eee");
            svg.text(
                (x, bottom + 20.0),
                Anchor::Middle,
                "small",
                &plain_number(tick),
            );
        }
        let label = format!("time since the first command in {name}");
        svg.text(
            ((LEFT + RIGHT) / 2.0, bottom + 40.0),
            Anchor::Middle,
            "",
            &label,
        );
    }

    fn latency_axis(&self, svg: &mut Svg) {
        let (top, bottom) = LATENCY;
        let head = "Latency from fetch to completion (logarithmic)";
        svg.text((LEFT, top - 10.0), Anchor::Start, "head", head);
        for power in 0..=12 {
            for factor in [1.0, 2.0, 5.0] {
                let value: f64 = factor * 10f64.powi(power);
                let log = value.log2();
                if log < self.low || log > self.high {
                    continue;
                }
                let y = self.height_of(log);
                let colour = if factor > 1.0 { "#f2f2f2" } else { "#ddd" };
                svg.line((LEFT, y), (RIGHT, y), colour);
                let wide = self.high - self.low > 14.0;
                if !wide || factor < 1.5 {
                    svg.text(
                        (LEFT - 8.0, y + 4.0),
                        Anchor::End,
                        "small",
                        &unit_time(value),
                    );
                }
            }
        }
        svg.line((LEFT, bottom), (RIGHT, bottom), "#888");
    }
}

/// The row up to which so many of a hundred are; none if that says little.
fn percentile(rows: &mut [(usize, u64)], percent: u64) -> Option<usize> {
    rows.sort_unstable();
    let all: u64 = rows.iter().map(|(_, count)| count).sum();
    if all < ENOUGH {
        return None;
    }
    let mut below = 0;
    let reached = |(_, count): &&(usize, u64)| {
        below += count;
        below * 100 >= all * percent
    };
    rows.iter().find(reached).map(|(row, _)| *row)
}

/// The shade of a count, by its logarithm.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // a few
fn shade(count: u64, most: u64, shades: usize) -> usize {
    if most <= 1 {
        return shades - 1;
    }
    let share = (count as f64).ln() / (most as f64).ln();
    ((share * shades as f64) as usize).min(shades - 1)
}

/// Adds each pair of columns into one.
fn fold(columns: &mut [u64]) {
    for column in 0..columns.len() {
        let count = std::mem::take(&mut columns[column]);
        columns[column / 2] += count;
    }
}

fn cross(svg: &mut Svg, (x, y): (f64, f64), title: &str) {
    svg.raw(format_args!(
        r#"<path d="M{:.1} {:.1}l7 7m0 -7l-7 7" stroke="{ERROR}" stroke-width="2" fill="none">{title}</path>"#,
        x - 3.5,
        y - 3.5
    ));
}

/// A round latency, such as 20 us.
fn unit_time(nanoseconds: f64) -> String {
    match nanoseconds {
        small if small < 1e3 => format!("{small:.0} ns"),
        small if small < 1e6 => format!("{:.0} us", small / 1e3),
        small if small < 1e9 => format!("{:.0} ms", small / 1e6),
        large => format!("{:.0} s", large / 1e9),
    }
}

fn thousands(value: f64) -> String {
    match value {
        small if small < 1e3 => plain_number(small),
        small if small < 1e6 => format!("{}k", plain_number(small / 1e3)),
        large => format!("{}M", plain_number(large / 1e6)),
    }
}

/// A round number without what rounding leaves behind the point.
fn plain_number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

fn three(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}
