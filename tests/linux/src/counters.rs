//! berth's counters of I/O queues, by `info stats`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::guest::Running;

/// Longest time in which counters come to rest.
const REST_LIMIT: Duration = Duration::from_secs(30);

/// Counters of one or more queue pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Commands fetched.
    pub commands: u64,
    /// Completions posted.
    pub completions: u64,
    /// Doorbell writes that left the guest for berth.
    pub doorbell_exits: u64,
    /// Times an I/O thread was woken by the kernel for a doorbell.
    pub wakeups: u64,
    /// Interrupts raised.
    pub interrupts: u64,
}

/// An I/O queue pair.
#[derive(Debug, Clone, Copy)]
pub struct IoQueue {
    /// Submission queue identifier.
    pub sqid: u64,
    /// Index of its I/O thread.
    pub io_thread: Option<u64>,
    /// Its counters.
    pub counters: IoCounters,
}

impl IoCounters {
    /// The sum over all I/O queues, the admin queue left out.
    ///
    /// # Errors
    /// When berth does not answer, or shows no I/O queue.
    pub fn read(guest: &Running) -> Result<Self> {
        Ok(Self::sum(&io_queues(guest)?))
    }

    /// The same, once no command is out and nothing changes: after a load its last interrupt may
    /// still be on its way.
    ///
    /// # Errors
    /// As [`Self::read`], or when they do not come to rest.
    pub fn at_rest(guest: &Running) -> Result<Self> {
        let start = Instant::now();
        let mut last = Self::read(guest)?;
        loop {
            let now = Self::read(guest)?;
            if now == last && now.commands == now.completions {
                return Ok(now);
            }
            ensure!(
                start.elapsed() < REST_LIMIT,
                "counters do not rest: {now:?}"
            );
            last = now;
        }
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            commands: self.commands - before.commands,
            completions: self.completions - before.completions,
            doorbell_exits: self.doorbell_exits - before.doorbell_exits,
            wakeups: self.wakeups - before.wakeups,
            interrupts: self.interrupts - before.interrupts,
        }
    }

    fn sum(queues: &[IoQueue]) -> Self {
        let mut sum = Self::default();
        for IoQueue { counters, .. } in queues {
            sum.commands += counters.commands;
            sum.completions += counters.completions;
            sum.doorbell_exits += counters.doorbell_exits;
            sum.wakeups += counters.wakeups;
            sum.interrupts += counters.interrupts;
        }
        sum
    }
}

/// All I/O queues, the admin queue left out.
///
/// # Errors
/// When berth does not answer, or shows none.
pub fn io_queues(guest: &Running) -> Result<Vec<IoQueue>> {
    parse(&guest.control("info stats")?)
}

fn parse(reply: &Value) -> Result<Vec<IoQueue>> {
    let mut queues = Vec::new();
    for_each_queue(reply, &mut |queue| {
        let number = |key: &str| queue.get(key).and_then(Value::as_u64).unwrap_or(0);
        if number("sqid") != 0 {
            queues.push(IoQueue {
                sqid: number("sqid"),
                io_thread: queue.get("io_thread").and_then(Value::as_u64),
                counters: IoCounters {
                    commands: number("commands"),
                    completions: number("completions"),
                    doorbell_exits: number("doorbell_exits"),
                    wakeups: number("ioeventfd_wakeups"),
                    interrupts: number("interrupts"),
                },
            });
        }
    });
    ensure!(!queues.is_empty(), "info stats shows no I/O queue: {reply}");
    Ok(queues)
}

/// Visits every object with a `sqid`, wherever it is in the reply.
fn for_each_queue(value: &Value, visit: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("sqid") {
                visit(value);
            }
            for field in fields.values() {
                for_each_queue(field, visit);
            }
        }
        Value::Array(items) => {
            for item in items {
                for_each_queue(item, visit);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counters_leave_the_admin_queue_out() {
        let reply = json!({"ok": true, "result": {"controllers": [{"id": "c", "queues": [
            {"sqid": 0, "commands": 9, "doorbell_exits": 18, "interrupts": 9},
            {"sqid": 1, "commands": 5, "doorbell_exits": 2, "interrupts": 4, "io_thread": 1},
            {"sqid": 2, "commands": 7, "doorbell_exits": 0, "interrupts": 1}]}]}});
        let queues = parse(&reply).unwrap();
        assert_eq!(queues[0].io_thread, Some(1));
        let counters = IoCounters::sum(&queues);
        assert_eq!(counters.commands, 12);
        assert_eq!(counters.doorbell_exits, 2);
        assert_eq!(counters.interrupts, 5);
        assert!(parse(&json!({})).is_err());
    }
}
