//! Who takes part, and in what order.

use std::fmt;

use crate::plan::{Place, Plan};

/// Who does the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// The bench guest on berth.
    Berth {
        /// With shadow doorbells.
        shadow: bool,
        /// The controller's `poll-us`, or nothing for what users get.
        poll_us: Option<u64>,
    },
    /// The bench guest on QEMU's NVMe.
    QemuNvme {
        /// With shadow doorbells.
        shadow: bool,
        /// The device's `ioeventfd`.
        ioeventfd: bool,
        /// The drive's `aio`.
        aio: &'static str,
    },
    /// The bench guest on QEMU's virtio-blk, in an I/O thread that polls as QEMU's default is.
    QemuVirtio {
        /// The drive's `aio`.
        aio: &'static str,
    },
    /// fio on the host, with this engine.
    Host(&'static str),
    /// fio on the host with `io_uring`, which sends so many commands at a time.
    HostBatch(u32),
    /// One host thread that copies memory.
    Memcpy,
}

impl Contender {
    /// berth as its users get it, which is what others are compared with.
    pub const DEFAULT: Self = Self::Berth {
        shadow: true,
        poll_us: None,
    };

    /// The same for a guest without shadow doorbells.
    pub const PLAIN: Self = Self::Berth {
        shadow: false,
        poll_us: None,
    };

    /// All of them in one place, in the order of a round.
    pub fn all(plan: &Plan, place: Place) -> Vec<Self> {
        let polling = |poll_us| Self::Berth {
            shadow: true,
            poll_us: Some(poll_us),
        };
        let mut all = vec![Self::DEFAULT, polling(0)];
        all.extend(plan.poll_us.map(polling));
        all.push(Self::PLAIN);
        if place == Place::Memory {
            all.push(Self::Memcpy);
        }
        if place.is_file() {
            all.extend(["psync", "libaio", "io_uring"].map(Self::Host));
            all.extend(plan.fio_batch.map(Self::HostBatch));
            if plan.qemu {
                all.extend(Self::on_qemu(place));
            }
        }
        all
    }

    fn on_qemu(place: Place) -> Vec<Self> {
        // QEMU's `native` wants direct I/O.
        let engines = match place {
            Place::Disk => ["native", "io_uring"],
            _ => ["threads", "io_uring"],
        };
        let nvme = |shadow, ioeventfd, aio| Self::QemuNvme {
            shadow,
            ioeventfd,
            aio,
        };
        let mut all = Vec::new();
        for aio in engines {
            all.extend([nvme(true, true, aio), nvme(true, false, aio)]);
        }
        all.push(nvme(false, false, engines[0]));
        all.extend(engines.map(|aio| Self::QemuVirtio { aio }));
        all
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |shadow: bool| if shadow { "" } else { ", no shadow" };
        match self {
            Self::Berth { shadow, poll_us } => {
                f.write_str("berth")?;
                if let Some(poll_us) = poll_us {
                    write!(f, " poll-us={poll_us}")?;
                }
                f.write_str(plain(*shadow))
            }
            Self::QemuNvme {
                shadow,
                ioeventfd,
                aio,
            } => {
                let switch = if *ioeventfd { ", ioeventfd" } else { "" };
                write!(f, "QEMU nvme {aio}{switch}{}", plain(*shadow))
            }
            Self::QemuVirtio { aio } => write!(f, "QEMU virtio-blk {aio}"),
            Self::Host(engine) => write!(f, "host fio {engine}"),
            Self::HostBatch(batch) => write!(f, "host fio io_uring, by {batch}"),
            Self::Memcpy => f.write_str("host memcpy, one thread"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plan: &Plan, place: Place) -> Vec<String> {
        let all = Contender::all(plan, place);
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_files_have_other_contenders() {
        let plan = Plan::default();
        let own = ["berth", "berth poll-us=0", "berth, no shadow"];
        assert_eq!(names(&plan, Place::Null), own);
        let memory = names(&plan, Place::Memory);
        assert_eq!(memory[..3], own);
        assert_eq!(memory[3..], ["host memcpy, one thread"]);
        let disk = names(&plan, Place::Disk);
        assert_eq!(disk.len(), 13);
        for name in ["QEMU nvme native, ioeventfd", "QEMU virtio-blk io_uring"] {
            assert!(disk.iter().any(|it| it == name), "{name} in {disk:?}");
        }
    }

    #[test]
    fn qemu_can_stay_away_and_a_poll_time_joins() {
        let plan = Plan {
            qemu: false,
            poll_us: Some(50),
            ..Plan::default()
        };
        let tmpfs = names(&plan, Place::Tmpfs);
        assert_eq!(tmpfs.len(), 7);
        assert!(tmpfs.iter().any(|it| it == "berth poll-us=50"), "{tmpfs:?}");
    }
}
