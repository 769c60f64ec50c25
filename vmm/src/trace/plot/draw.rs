//! The picture of a trace that was counted.

use std::fmt::Write as _;

use super::super::summary::time as in_time;
use super::super::svg::{Anchor, Svg, escape, ticks};
use super::scale::{LATENCY, LEFT, RIGHT, Scale, plain_number};
use super::{ADMIN, COLUMNS, Command, KINDS, OPCODES, Plot};

/// Names and colours of kinds: the palette of Okabe and Ito, which people with any colour vision can
/// tell apart.
const COLOURS: [(&str, &str); KINDS] = [
    (OPCODES[0], "#0072b2"),
    (OPCODES[1], "#e69f00"),
    (OPCODES[2], "#009e73"),
    (OPCODES[3], "#cc79a7"),
    (OPCODES[4], "#56b4e9"),
    ("admin", "#767676"),
    ("other", "#b8a000"),
];
const ERROR: &str = "#d55e00";
/// Percentiles that are drawn: of a hundred, the pen, what it is called.
const PERCENTILES: [(u64, &str, &str); 2] = [
    (50, "", "median of I/O"),
    (99, "stroke-dasharray=\"5 3\"", "99th percentile"),
];
/// Commands that a column must have for these.
const ENOUGH: u64 = 20;
/// Queues that are shown.
const SHOWN_QUEUES: usize = 24;

const WIDTH: f64 = 1200.0;
/// Height of the strip of errors.
const STRIP: f64 = 6.0;
const RATE: (f64, f64) = (480.0, 620.0);
const QUEUES_TOP: f64 = 670.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#222}.title{font-size:18px;font-weight:bold}\
.head{font-size:13px;font-weight:bold}.small{font-size:11px;fill:#555}";

impl Plot {
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
        let lost = self
            .lost
            .iter()
            .fold(0u64, |sum, lost| sum.saturating_add(*lost));
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
            let (name, colour) = COLOURS[kind];
            svg.rect((x, 64.0), (12.0, 12.0), colour, "");
            svg.text((x + 17.0, 75.0), Anchor::Start, "", name);
            x += 35.0 + name.len() as f64 * 7.0;
        }
        if errors > 0 {
            if self.single.is_some() {
                cross(svg, (x + 6.0, 70.0), "");
            } else {
                svg.rect((x, 67.0), (12.0, STRIP), ERROR, "");
            }
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
                        let (_, colour) = COLOURS[command.kind];
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
            let (_, colour) = COLOURS[index / SHADES];
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
            if *kind != ADMIN {
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

    /// Where commands failed and how many, in a strip above the fields, for these do not tell.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn error_marks(&self, svg: &mut Svg, scale: &Scale) {
        let most = self.errors.iter().copied().max().unwrap_or(0).max(1) as f64;
        let errors = self.errors.iter().enumerate();
        for (column, count) in errors.filter(|(_, count)| **count > 0) {
            let (x, w) = scale.column(column);
            let (y, opacity) = (LATENCY.0 - STRIP, 0.3 + 0.7 * *count as f64 / most);
            svg.raw(format_args!(
                r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{STRIP:.1}" fill="{ERROR}" fill-opacity="{opacity:.2}"><title>{count} errors or abandoned</title></rect>"#
            ));
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
            svg.path(path, &format!(r#"fill="{}""#, COLOURS[kind].1));
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
        let mut head =
            "In flight, by controller and submission queue (0: admin, without requests for events)"
                .to_owned();
        if self.single.is_none() {
            head += "; top: the highest mean of a column, at least 1";
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

    /// The number in flight over time, on average in each column; the highest fills the lane, unless it is
    /// below 1.
    #[allow(clippy::cast_precision_loss)] // a picture
    fn area(&self, svg: &mut Svg, scale: &Scale, lane: &Lane) {
        let busy = &self.queues[lane.queue].busy;
        let base = lane.top + lane.height;
        let most = busy.iter().copied().max().unwrap_or(0).max(self.width) as f64;
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
        let (_, colour) = COLOURS[command.kind];
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

fn cross(svg: &mut Svg, (x, y): (f64, f64), title: &str) {
    svg.raw(format_args!(
        r#"<path d="M{:.1} {:.1}l7 7m0 -7l-7 7" stroke="{ERROR}" stroke-width="2" fill="none">{title}</path>"#,
        x - 3.5,
        y - 3.5
    ));
}

fn thousands(value: f64) -> String {
    match value {
        small if small < 1e3 => plain_number(small),
        small if small < 1e6 => format!("{}k", plain_number(small / 1e3)),
        large => format!("{}M", plain_number(large / 1e6)),
    }
}

fn three(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}
