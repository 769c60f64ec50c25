//! What a run costs berth: its own counters, and the CPU time of its threads.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::results::Cost;
use crate::control::client::{Action, CtlConfig, CtlError, ask};

/// How long berth may take to tell its counters.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum CostError {
    /// berth does not tell them.
    #[error(transparent)]
    Control(#[from] CtlError),
    /// The host's kernel does not.
    #[error("CPU times of berth: {0}")]
    Times(#[from] io::Error),
}

/// Counters at one time.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    time: Instant,
    counters: Cost,
}

impl Look {
    /// Asks the berth with the process id `pid` at the control socket `socket`.
    ///
    /// # Errors
    /// It does not answer, or has ended.
    pub fn take(pid: u32, socket: &std::path::Path) -> Result<Self, CostError> {
        let config = CtlConfig {
            output: crate::control::client::Output::default(),
            path: socket.to_owned(),
            action: Action::Command(String::new()),
            timeout: PATIENCE,
        };
        let mut counters = queues(&ask(&config, "info stats")?);
        times(pid, &mut counters)?;
        Ok(Self {
            time: Instant::now(),
            counters,
        })
    }

    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> Cost {
        let (now, old) = (&self.counters, &before.counters);
        let elapsed = self.time.saturating_duration_since(before.time);
        // A queue that was made anew begins at 0.
        let grown = |now: u64, old: u64| now.checked_sub(old).unwrap_or(now);
        Cost {
            commands: grown(now.commands, old.commands),
            doorbell_exits: grown(now.doorbell_exits, old.doorbell_exits),
            doorbell_wakeups: grown(now.doorbell_wakeups, old.doorbell_wakeups),
            interrupts: grown(now.interrupts, old.interrupts),
            elapsed: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            vcpu_time: grown(now.vcpu_time, old.vcpu_time),
            io_time: grown(now.io_time, old.io_time),
            other_time: grown(now.other_time, old.other_time),
        }
    }
}

/// The sum over all I/O queues of all controllers.
fn queues(stats: &Value) -> Cost {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut sum = Cost::default();
    for controller in list(stats, "controllers") {
        let queues = list(&controller, "queues");
        for queue in queues.iter().filter(|queue| queue["sqid"] != 0) {
            let count = |key: &str| queue[key].as_u64().unwrap_or(0);
            sum.commands += count("commands");
            sum.doorbell_exits += count("doorbell_exits");
            sum.doorbell_wakeups += count("ioeventfd_wakeups");
            sum.interrupts += count("interrupts");
        }
    }
    sum
}

/// Adds CPU times by the names of threads: the first figure of `schedstat` is ns on a CPU
/// (Documentation/scheduler/sched-stats.rst).
fn times(pid: u32, sum: &mut Cost) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread may end meanwhile.
        let (Ok(name), Ok(stat)) = (
            fs::read_to_string(task.join("comm")),
            fs::read_to_string(task.join("schedstat")),
        ) else {
            continue;
        };
        let used: u64 = stat
            .split(' ')
            .next()
            .and_then(|used| used.parse().ok())
            .unwrap_or(0);
        let number = |prefix: &str| {
            let rest = name.trim_end().strip_prefix(prefix);
            rest.is_some_and(|rest| rest.parse::<u32>().is_ok())
        };
        if number("vcpu") {
            sum.vcpu_time += used;
        } else if number("io") || name.trim_end() == "berth-file" {
            sum.io_time += used;
        } else {
            sum.other_time += used;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn io_queues_are_counted_and_the_admin_queue_is_not() {
        let stats = json!({ "controllers": [
            { "queues": [
                { "sqid": 0, "commands": 90, "doorbell_exits": 180, "interrupts": 90 },
                { "sqid": 1, "commands": 5, "doorbell_exits": 2, "ioeventfd_wakeups": 3,
                  "interrupts": 4 } ] },
            { "queues": [{ "sqid": 2, "commands": 7, "interrupts": 1 }] },
        ]});
        let sum = queues(&stats);
        assert_eq!((sum.commands, sum.doorbell_exits), (12, 2));
        assert_eq!((sum.doorbell_wakeups, sum.interrupts), (3, 5));
        assert_eq!(queues(&json!({})), Cost::default());
    }

    #[test]
    fn threads_are_told_by_their_names() {
        // The kernel counts what a thread has run with the next tick.
        let named = |name: &str, of: fn(&Cost) -> u64| {
            let thread = std::thread::Builder::new().name(name.into());
            let count = move || {
                let start = Instant::now();
                loop {
                    let mut sum = Cost::default();
                    times(std::process::id(), &mut sum).unwrap();
                    if of(&sum) > 0 {
                        return;
                    }
                    assert!(start.elapsed() < PATIENCE, "nothing is counted");
                }
            };
            thread.spawn(count).unwrap().join().unwrap();
        };
        named("vcpu3", |cost| cost.vcpu_time);
        named("io0", |cost| cost.io_time);
        named("iostat", |cost| cost.other_time);
    }

    #[test]
    fn what_is_made_anew_begins_at_zero() {
        let look = |commands, time| Look {
            time,
            counters: Cost {
                commands,
                ..Cost::default()
            },
        };
        let start = Instant::now();
        let second = start + Duration::from_secs(1);
        let cost = look(30, second).since(&look(10, start));
        assert_eq!((cost.commands, cost.elapsed), (20, 1_000_000_000));
        assert_eq!(look(5, second).since(&look(10, start)).commands, 5);
    }
}
