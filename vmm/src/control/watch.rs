//! `berth ctl PATH watch`: what queues and I/O threads do, again and again.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{CtlConfig, CtlError, Output, ask};

/// Moves to the upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Counters at one time.
struct Look {
    time: Instant,
    stats: Value,
}

/// Prints a table each `interval` until nobody reads it.
///
/// # Errors
/// berth cannot be asked, or has ended.
pub fn run(config: &CtlConfig, interval: Duration) -> Result<(), CtlError> {
    let look = || {
        let stats = ask(config, "info stats")?;
        let time = Instant::now();
        Ok(Look { time, stats })
    };
    let clear = if io::stdout().is_terminal() {
        CLEAR
    } else {
        ""
    };
    let mut before = look()?;
    let json = config.output == Output::Json;
    loop {
        // The interval itself is what is asked for.
        std::thread::sleep(interval);
        let now = look()?;
        let text = if json {
            format!("{}\n", now.stats)
        } else {
            format!("{clear}{}\n", table(&before, &now))
        };
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).is_err() || out.flush().is_err() {
            return Ok(());
        }
        before = now;
    }
}

/// A list of a reply; empty if it has none.
fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// One with the same `keys` in an earlier list.
fn earlier<'a>(all: &'a [Value], one: &Value, keys: &[&str]) -> Option<&'a Value> {
    all.iter()
        .find(|other| keys.iter().all(|&key| other[key] == one[key]))
}

/// What a row's counters grew by. A queue that was made anew begins at 0.
struct Growth<'a> {
    before: Option<&'a Value>,
    now: &'a Value,
}

impl Growth<'_> {
    fn of(&self, key: &str) -> f64 {
        let get = |value: &Value| value[key].as_u64().unwrap_or(0);
        let (before, now) = (self.before.map_or(0, get), get(self.now));
        let grown = now.checked_sub(before).unwrap_or(now);
        // Far below 2^52 in an interval.
        #[allow(clippy::cast_precision_loss)]
        let grown = grown as f64;
        grown
    }
}

fn table(before: &Look, now: &Look) -> String {
    let seconds = now.time.duration_since(before.time).as_secs_f64();
    let width = id_width(now);
    let parts = [
        controllers(before, now, seconds, width),
        namespaces(before, now, seconds, width),
        threads(before, now, seconds, width),
    ];
    parts.join("\n")
}

/// Width of the first column: all tables have it, so that they stand beneath each other.
fn id_width(now: &Look) -> usize {
    let ids = ["controllers", "namespaces"].map(|key| list(&now.stats, key));
    let ids = ids.into_iter().flatten().map(|row| name(&row["id"]).len());
    ids.max().unwrap_or(0).max("controller".len())
}

fn controllers(before: &Look, now: &Look, seconds: f64, width: usize) -> String {
    let mut text = format!(
        "{:<width$}{:>6}{:>7}{:>10}{:>10}{:>10}{:>9}{:>10}{:>8}\n",
        "controller",
        "queue",
        "thread",
        "in flight",
        "IOPS",
        "MB/s",
        "exits/IO",
        "events/IO",
        "irqs/IO"
    );
    for controller in list(&now.stats, "controllers") {
        let old = earlier(list(&before.stats, "controllers"), controller, &["id"]);
        let old = old.map_or(&[][..], |old| list(old, "queues"));
        let mut rows = String::new();
        let mut all = Rates::default();
        for queue in list(controller, "queues") {
            let before = earlier(old, queue, &["sqid", "cqid"]);
            let rates = Rates::of(&Growth { before, now: queue });
            let _ = writeln!(
                rows,
                "{:<width$}{:>6}{:>7}{:>10}{}",
                "",
                number(&queue["sqid"]),
                number(&queue["io_thread"]),
                number(&queue["in_flight"]),
                rates.text(seconds)
            );
            // Admin commands are no I/O.
            if queue["sqid"] != 0 {
                all.add(&rates);
            }
        }
        let _ = writeln!(
            text,
            "{:<width$}{:>13}{:>10}{}",
            name(&controller["id"]),
            name(&controller["state"]),
            number(&controller["in_flight"]),
            all.text(seconds)
        );
        text += &rows;
    }
    text
}

/// What grew in a row, or in all rows of a controller.
#[derive(Debug, Default)]
struct Rates {
    commands: f64,
    bytes: f64,
    costs: [f64; 3],
}

impl Rates {
    fn of(growth: &Growth<'_>) -> Self {
        Self {
            commands: growth.of("commands"),
            bytes: growth.of("read_bytes") + growth.of("written_bytes"),
            costs: ["doorbell_exits", "ioeventfd_wakeups", "interrupts"].map(|key| growth.of(key)),
        }
    }

    fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.bytes += other.bytes;
        for (sum, cost) in self.costs.iter_mut().zip(other.costs) {
            *sum += cost;
        }
    }

    /// Commands and megabytes a second, and for each command what it cost.
    fn text(&self, seconds: f64) -> String {
        let mut text = format!(
            "{:>10.0}{:>10.1}",
            self.commands / seconds,
            self.bytes / seconds / 1e6
        );
        for (cost, width) in self.costs.into_iter().zip([9, 10, 8]) {
            text += &if self.commands > 0.0 {
                format!("{:>width$.3}", cost / self.commands)
            } else {
                format!("{:>width$}", "-")
            };
        }
        text
    }
}

/// Reads and writes of each namespace, over all controllers.
fn namespaces(before: &Look, now: &Look, seconds: f64, width: usize) -> String {
    let mut text = format!(
        "{:<width$}{:>6}{:>10}{:>10}{:>10}{:>10}{:>10}  {}\n",
        "namespace", "nsid", "in flight", "reads/s", "MB/s", "writes/s", "MB/s", "attached to"
    );
    for namespace in list(&now.stats, "namespaces") {
        // Of another one with this id all counts begin anew.
        let keys = ["id", "uuid"];
        let before = earlier(list(&before.stats, "namespaces"), namespace, &keys);
        let growth = Growth {
            before,
            now: namespace,
        };
        let rate = |key: &str| growth.of(key) / seconds;
        let attached = list(namespace, "attached").iter().map(name);
        let attached: Vec<&str> = attached.collect();
        let _ = writeln!(
            text,
            "{:<width$}{:>6}{:>10}{:>10.0}{:>10.1}{:>10.0}{:>10.1}  {}: {}",
            name(&namespace["id"]),
            number(&namespace["nsid"]),
            number(&namespace["in_flight"]),
            rate("reads"),
            rate("read_bytes") / 1e6,
            rate("writes"),
            rate("written_bytes") / 1e6,
            name(&namespace["subsys"]),
            if attached.is_empty() {
                "-".to_owned()
            } else {
                attached.join(" ")
            }
        );
    }
    text
}

fn threads(before: &Look, now: &Look, seconds: f64, width: usize) -> String {
    let mut text = format!(
        "{:<width$}{:>13}{:>10}{:>10}{:>10}\n",
        "I/O thread", "requests/s", "enters/s", "sleeps/s", "finds/s"
    );
    for thread in list(&now.stats, "iothreads") {
        // Controllers with threads of their own count these from 0, too.
        let keys = ["controller", "index"];
        let before = earlier(list(&before.stats, "iothreads"), thread, &keys);
        let growth = Growth {
            before,
            now: thread,
        };
        let index = number(&thread["index"]);
        let name = match thread["controller"].as_str() {
            Some(controller) => format!("{controller}/{index}"),
            None => index,
        };
        let _ = write!(text, "{name:<width$}");
        for (key, width) in [
            ("submissions", 13),
            ("enters", 10),
            ("sleeps", 10),
            ("polled", 10),
        ] {
            let _ = write!(text, "{:>width$.0}", growth.of(key) / seconds);
        }
        text.push('\n');
    }
    text
}

fn number(value: &Value) -> String {
    value
        .as_u64()
        .map_or("-".into(), |number| number.to_string())
}

fn name(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn look(time: Instant, commands: u64, exits: u64, sleeps: u64) -> Look {
        let stats = json!({
            "controllers": [{
                "id": "c0", "state": "ready", "in_flight": 7, "queues": [
                    { "sqid": 0, "cqid": 0, "io_thread": null, "commands": 8 },
                    { "sqid": 1, "cqid": 1, "io_thread": 0, "commands": commands,
                      "in_flight": 6, "read_bytes": commands * 4000, "written_bytes": commands * 96,
                      "doorbell_exits": exits, "ioeventfd_wakeups": 0, "interrupts": commands },
                ]
            }],
            "namespaces": [
                { "id": "n1", "subsys": "s", "nsid": 3, "in_flight": 7, "attached": ["c0", "c1"],
                  "reads": commands * 3, "read_bytes": commands * 3 * 4096,
                  "writes": commands / 4, "written_bytes": commands / 4 * 8192 },
                { "id": "n2", "subsys": "s", "nsid": 4, "in_flight": 0, "attached": [] },
            ],
            "iothreads": [{ "index": 0, "submissions": commands, "sleeps": sleeps }],
        });
        Look { time, stats }
    }

    fn lines(before: &Look, now: &Look) -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        table(before, now).lines().map(words).collect()
    }

    #[test]
    fn counters_become_rates() {
        let start = Instant::now();
        let before = look(start, 1000, 10, 5);
        let now = look(start + Duration::from_secs(2), 3000, 110, 25);
        let lines = lines(&before, &now);
        let rates = ["1000", "4.1", "0.050", "0.000", "1.000"];
        assert_eq!(lines[1], [&["c0", "ready", "7"][..], &rates].concat());
        assert_eq!(lines[2], ["0", "-", "-", "0", "0.0", "-", "-", "-"]);
        assert_eq!(lines[3], [&["1", "0", "6"][..], &rates].concat());
        assert_eq!(lines[4], [""; 0]);
        let rates = ["3000", "12.3", "250", "2.0"];
        let ends = ["s:", "c0", "c1"];
        assert_eq!(lines[6], [&["n1", "3", "7"][..], &rates, &ends].concat());
        assert_eq!(
            lines[7],
            ["n2", "4", "0", "0", "0.0", "0", "0.0", "s:", "-"]
        );
        assert_eq!(lines[10], ["0", "1000", "0", "10", "0"]);
    }

    #[test]
    fn tables_fit_the_usual_terminal_and_their_columns_stand_apart() {
        let start = Instant::now();
        let mut before = look(start, 0, 0, 0);
        let mut now = look(start + Duration::from_secs(1), 0, 0, 0);
        // As fast as `null=` is, with a command of 128 KiB each time.
        let most = [
            ("commands", 20_000_000_u64),
            ("read_bytes", 99_000_000_000),
            ("in_flight", 65_535),
        ];
        for (key, value) in most {
            before.stats["controllers"][0]["queues"][1][key] = 0.into();
            now.stats["controllers"][0]["queues"][1][key] = json!(value);
        }
        let n1 = &mut now.stats["namespaces"][0];
        for (key, value) in [("reads", 9_999_999), ("read_bytes", 99_000_000_000_u64)] {
            n1[key] = json!(value);
        }
        for (key, value) in [("writes", 9_999_999), ("written_bytes", 99_000_000_000_u64)] {
            n1[key] = json!(value);
        }
        let text = table(&before, &now);
        for line in text.lines() {
            // What is attached is a list without a limit.
            let fixed = line.split("  s: ").next().unwrap();
            assert!(fixed.len() <= 80, "{line}");
        }
        assert!(text.contains(" 20000000   99000.0 "), "{text}");
        assert!(
            text.contains("   9999999   99000.0   9999999   99000.0  s: c0 c1"),
            "{text}"
        );
        let long = "a-controller-with-a-long-id";
        now.stats["controllers"][0]["id"] = long.into();
        let text = table(&before, &now);
        assert!(text.contains(&format!("\n{long}        ready ")), "{text}");
    }

    #[test]
    fn threads_of_a_controller_are_told_from_those_of_the_machine() {
        let look = |time, machine, own| Look {
            time,
            stats: json!({ "iothreads": [
                { "index": 0, "sleeps": machine },
                { "index": 0, "sleeps": own, "controller": "c1" },
            ]}),
        };
        let start = Instant::now();
        let before = look(start, 1000, 5);
        let now = look(start + Duration::from_secs(1), 1002, 1008);
        let lines = lines(&before, &now);
        assert_eq!(lines[5], ["0", "0", "0", "2", "0"]);
        assert_eq!(lines[6], ["c1/0", "0", "0", "1003", "0"]);
    }

    #[test]
    fn what_is_new_or_made_anew_begins_at_zero() {
        let start = Instant::now();
        let before = look(start, 5000, 0, 9);
        let now = look(start + Duration::from_secs(1), 300, 0, 9);
        assert_eq!(lines(&before, &now)[3][3], "300");
        let nothing = Look {
            time: start,
            stats: json!({}),
        };
        assert_eq!(lines(&nothing, &now)[3][3], "300");
        assert_eq!(lines(&now, &nothing).len(), 5, "three heads, apart");
    }
}
