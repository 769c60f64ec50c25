//! What is to be measured: loads, files and who does them.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// Most commands out at a time, the bench guest's limit.
const MAX_DEPTH: u32 = 256;

/// Where the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A file in memory, through the page cache.
    Tmpfs,
    /// A file on the disk, with O_DIRECT.
    Disk,
    /// berth's memory backend.
    Memory,
    /// berth's null backend.
    Null,
}

impl Place {
    const ALL: [(&'static str, Self); 4] = [
        ("tmpfs", Self::Tmpfs),
        ("disk", Self::Disk),
        ("memory", Self::Memory),
        ("null", Self::Null),
    ];

    /// Whether others than berth can use it.
    pub fn is_file(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Disk)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(_, place)| place == self);
        f.write_str(found.map_or("?", |(name, _)| name))
    }
}

/// Who does the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// The bench guest on berth.
    Berth {
        /// With shadow doorbells.
        shadow: bool,
    },
    /// The bench guest on QEMU's NVMe.
    Qemu {
        /// With shadow doorbells.
        shadow: bool,
        /// The device's `ioeventfd`.
        ioeventfd: bool,
        /// The drive's `aio`.
        aio: &'static str,
    },
    /// fio on the host, with this engine.
    Host(&'static str),
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |shadow: bool| {
            if shadow {
                ""
            } else {
                " without shadow doorbells"
            }
        };
        match self {
            Self::Berth { shadow } => write!(f, "berth{}", plain(*shadow)),
            Self::Qemu {
                shadow,
                ioeventfd,
                aio,
            } => {
                let switch = if *ioeventfd { "on" } else { "off" };
                write!(f, "QEMU ioeventfd={switch} aio={aio}{}", plain(*shadow))
            }
            Self::Host(engine) => write!(f, "host fio {engine}"),
        }
    }
}

/// All that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `randread`, `randwrite`, `read` or `write`.
    pub rw: String,
    /// Bytes in a command.
    pub block: u64,
    /// Commands out at a time, one measurement each.
    pub depths: Vec<u32>,
    /// How often everything is measured, in turn.
    pub rounds: usize,
    /// Length of one measurement in milliseconds.
    pub ms: u64,
    /// Where the bytes are.
    pub places: Vec<Place>,
    /// Whether QEMU takes part.
    pub qemu: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rw: "randread".into(),
            block: 4096,
            depths: vec![1, 4, 16, 32, 64, 128],
            rounds: 5,
            ms: 1000,
            places: Place::ALL.map(|(_, place)| place).to_vec(),
            qemu: true,
        }
    }
}

impl Plan {
    /// Parses `key=value` words.
    ///
    /// # Errors
    /// An unknown key, or a value that does not fit it.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut plan = Self::default();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .with_context(|| format!("{word}: must be key=value"))?;
            plan.set(key, value)
                .with_context(|| format!("{key}={value}"))?;
        }
        Ok(plan)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "rw" => {
                let known = ["randread", "randwrite", "read", "write"];
                ensure!(
                    known.contains(&value),
                    "must be one of {}",
                    known.join(", ")
                );
                self.rw = value.to_owned();
            }
            "bs" => {
                self.block = number(value, 512, 512 << 10)?;
                ensure!(self.block.is_multiple_of(512), "must be a multiple of 512");
            }
            "qd" => {
                let depth = |text| number(text, 1, MAX_DEPTH.into());
                let depths: Result<Vec<u64>> = value.split(',').map(depth).collect();
                // Each is at most MAX_DEPTH.
                self.depths = depths?
                    .iter()
                    .map(|it| u32::try_from(*it).unwrap_or(1))
                    .collect();
            }
            "rounds" => self.rounds = usize::try_from(number(value, 1, 1000)?)?,
            "ms" => self.ms = number(value, 10, 600_000)?,
            "files" => {
                let place = |name: &str| {
                    let found = Place::ALL.iter().find(|(known, _)| *known == name);
                    found.map(|(_, place)| *place).with_context(|| {
                        format!("{name}: must be one of tmpfs, disk, memory, null")
                    })
                };
                self.places = value.split(',').map(place).collect::<Result<_>>()?;
            }
            "qemu" => {
                self.qemu = match value {
                    "on" => true,
                    "off" => false,
                    _ => bail!("must be on or off"),
                }
            }
            _ => bail!("unknown key; known: rw, bs, qd, rounds, ms, files, qemu"),
        }
        Ok(())
    }

    /// Who does the I/O in one place, in the order of a round.
    pub fn contenders(&self, place: Place) -> Vec<Contender> {
        let mut all = vec![
            Contender::Berth { shadow: true },
            Contender::Berth { shadow: false },
        ];
        if !place.is_file() {
            return all;
        }
        all.extend(["psync", "libaio", "io_uring"].map(Contender::Host));
        if !self.qemu {
            return all;
        }
        let engines: &[&str] = match place {
            Place::Disk => &["native", "io_uring"],
            _ => &["threads", "io_uring"],
        };
        for aio in engines {
            for ioeventfd in [true, false] {
                all.push(Contender::Qemu {
                    shadow: true,
                    ioeventfd,
                    aio,
                });
            }
        }
        all.push(Contender::Qemu {
            shadow: false,
            ioeventfd: false,
            aio: engines[0],
        });
        all
    }
}

/// A number from `low` to `high`, with an optional K or M.
fn number(text: &str, low: u64, high: u64) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    let value: u64 = digits
        .parse()
        .with_context(|| format!("{text} is no number"))?;
    let value = value.checked_mul(1 << shift);
    value
        .filter(|value| (low..=high).contains(value))
        .with_context(|| format!("must be from {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Plan::parse(&words)
    }

    #[test]
    fn words_change_the_plan() {
        assert_eq!(parse("").unwrap(), Plan::default());
        let plan =
            parse("rw=write bs=128K qd=1,32 rounds=3 ms=250 files=null,disk qemu=off").unwrap();
        let expected = Plan {
            rw: "write".into(),
            block: 128 << 10,
            depths: vec![1, 32],
            rounds: 3,
            ms: 250,
            places: vec![Place::Null, Place::Disk],
            qemu: false,
        };
        assert_eq!(plan, expected);
    }

    #[test]
    fn wrong_words_are_explained() {
        for (word, why) in [
            ("fast", "fast: must be key=value"),
            ("speed=1", "unknown key"),
            ("qd=0", "must be from 1 to 256"),
            ("qd=1,x", "x is no number"),
            ("bs=1000", "must be a multiple of 512"),
            ("files=floppy", "floppy: must be one of"),
            ("rw=trim", "must be one of randread"),
        ] {
            let error = format!("{:#}", parse(word).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_files_have_other_contenders() {
        let plan = Plan::default();
        assert_eq!(plan.contenders(Place::Null).len(), 2);
        assert_eq!(plan.contenders(Place::Tmpfs).len(), 10);
        let names: Vec<String> = plan
            .contenders(Place::Disk)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(names.contains(&"QEMU ioeventfd=off aio=native".to_owned()));
        assert!(names.contains(&"berth without shadow doorbells".to_owned()));
    }
}
