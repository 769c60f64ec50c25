//! How long berth takes to start its guest.
//!
//! Times count from the first line of `main` on (CLOCK_MONOTONIC). What the kernel and the dynamic
//! linker do before it is not in them: the kernel tells when a process started in steps of 10 ms only.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// A part of the start, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The command line, and a look at the files that it names.
    Options,
    /// Logging, signals and the control transports.
    Control,
    /// Guest memory.
    Memory,
    /// `/dev/kvm`, the virtual machine and its interrupt controllers.
    Kvm,
    /// Buses and devices, with their images and I/O threads.
    Devices,
    /// vCPUs.
    Vcpus,
    /// What was left to load of the kernel and the initrd, which began when there was memory.
    Kernel,
    /// Registers, the terminal and the threads.
    Threads,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Options => "options",
            Self::Control => "control",
            Self::Memory => "memory",
            Self::Kvm => "kvm",
            Self::Devices => "devices",
            Self::Kernel => "kernel",
            Self::Vcpus => "vcpus",
            Self::Threads => "threads",
        })
    }
}

/// Measures the phases one after the other.
#[derive(Debug)]
pub struct Stopwatch {
    begun: Instant,
    last: Instant,
    laps: Vec<(Phase, Duration)>,
}

impl Stopwatch {
    /// To be the first thing that happens.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            last: now,
            laps: Vec::with_capacity(8),
        }
    }

    /// `phase` ends now.
    pub fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.laps.push((phase, now - self.last));
        self.last = now;
    }

    /// All that is left is the last phase, [`Phase::Threads`].
    pub fn finish(self) -> Startup {
        Startup {
            watch: self,
            total: OnceLock::new(),
        }
    }
}

/// A start that is complete once the guest was entered.
#[derive(Debug)]
pub struct Startup {
    watch: Stopwatch,
    /// From the start to the first KVM_RUN.
    total: OnceLock<Duration>,
}

impl Startup {
    /// The boot processor is about to run its first instruction.
    pub fn enter_guest(&self) {
        if self.total.set(self.watch.begun.elapsed()).is_ok() {
            tracing::info!("{self}");
        }
    }

    /// The phases, and the last one if it is over.
    fn laps(&self) -> impl Iterator<Item = (Phase, Duration)> {
        let before = self.watch.last - self.watch.begun;
        let last = self.total.get().map(|total| *total - before);
        let laps = self.watch.laps.iter().copied();
        laps.chain(last.map(|last| (Phase::Threads, last)))
    }

    /// Microseconds of each phase, and `total` once the guest was entered.
    pub fn to_json(&self) -> Value {
        let micros = |time: Duration| Value::from(u64::try_from(time.as_micros()).unwrap_or(0));
        let total = self.total.get().map(|total| ("total".to_owned(), *total));
        let laps = self.laps().map(|(phase, time)| (phase.to_string(), time));
        let fields = laps.chain(total).map(|(name, time)| (name, micros(time)));
        Value::Object(fields.collect::<Map<_, _>>())
    }
}

impl fmt::Display for Startup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total.get().copied().unwrap_or_default();
        write!(f, "the guest starts after {} us:", total.as_micros())?;
        for (index, (phase, time)) in self.laps().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {phase} {}", time.as_micros())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_total_once_the_guest_is_entered() {
        let mut watch = Stopwatch::start();
        watch.lap(Phase::Options);
        std::thread::sleep(Duration::from_millis(2));
        watch.lap(Phase::Kernel);
        let startup = watch.finish();
        let before = startup.to_json();
        assert!(before["kernel"].as_u64() >= Some(2000), "{before}");
        assert!(before.get("total").is_none() && before.get("threads").is_none());
        startup.enter_guest();
        let sum: Duration = startup.laps().map(|(_, time)| time).sum();
        assert_eq!(Some(&sum), startup.total.get());
        let after = startup.to_json();
        // Only the first entry counts.
        startup.enter_guest();
        assert_eq!(startup.to_json(), after);
        let text = startup.to_string();
        let expected = format!("the guest starts after {} us: options ", after["total"]);
        assert!(text.starts_with(&expected), "{text}");
        assert!(
            text.ends_with(&format!(", threads {}", after["threads"])),
            "{text}"
        );
    }
}
