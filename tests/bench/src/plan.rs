//! What is to be measured: loads and files.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// Most commands out at a time, the bench guest's limit.
const MAX_DEPTH: u32 = 256;
/// Most queue pairs, the same.
const MAX_PAIRS: u32 = 4;

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

/// All that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `randread`, `randwrite`, `randrw`, `read`, `write` or `rw`.
    pub rw: String,
    /// Percent of reads in `randrw` and `rw`.
    pub mix: u64,
    /// Bytes in a command.
    pub block: u64,
    /// Commands out at a time on each queue pair, one measurement each.
    pub depths: Vec<u32>,
    /// Queue pairs.
    pub pairs: u32,
    /// berth's I/O threads, if not as many as queue pairs.
    pub io_threads: Option<u32>,
    /// The CPUs that they are bound to, as in `--io-affinity`.
    pub io_affinity: Option<String>,
    /// How many commands fio sends at a time with `io_uring` in one more row, as berth does.
    pub fio_batch: Option<u32>,
    /// How often everything is measured, in turn.
    pub rounds: usize,
    /// Length of one measurement in milliseconds.
    pub ms: u64,
    /// Where the bytes are.
    pub places: Vec<Place>,
    /// Whether QEMU takes part.
    pub qemu: bool,
    /// A `poll-us` to be measured beside the default and none.
    pub poll_us: Option<u64>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rw: "randread".into(),
            mix: 50,
            block: 4096,
            depths: vec![1, 4, 16, 32, 64, 128],
            pairs: 1,
            io_threads: None,
            io_affinity: None,
            fio_batch: None,
            rounds: 5,
            ms: 1000,
            places: Place::ALL.map(|(_, place)| place).to_vec(),
            qemu: true,
            poll_us: None,
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
                let known = ["randread", "randwrite", "randrw", "read", "write", "rw"];
                ensure!(
                    known.contains(&value),
                    "must be one of {}",
                    known.join(", ")
                );
                self.rw = value.to_owned();
            }
            "mix" => self.mix = number(value, 0, 100)?,
            "bs" => {
                self.block = number(value, 512, 512 << 10)?;
                ensure!(self.block.is_multiple_of(512), "must be a multiple of 512");
            }
            "qd" => {
                let depth = |text| narrow(text, 1, MAX_DEPTH);
                self.depths = value.split(',').map(depth).collect::<Result<_>>()?;
            }
            "pairs" => self.pairs = narrow(value, 1, MAX_PAIRS)?,
            "io-affinity" => self.io_affinity = Some(value.to_owned()),
            "fio-batch" => self.fio_batch = Some(narrow(value, 2, MAX_DEPTH)?),
            "io-threads" => self.io_threads = Some(narrow(value, 1, 64)?),
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
            "poll-us" => self.poll_us = Some(number(value, 1, 1000)?),
            "qemu" => {
                self.qemu = match value {
                    "on" => true,
                    "off" => false,
                    _ => bail!("must be on or off"),
                }
            }
            _ => bail!(
                "unknown key; known: rw, mix, bs, qd, pairs, io-threads, io-affinity, fio-batch, rounds, ms, files, poll-us, qemu"
            ),
        }
        Ok(())
    }

    /// berth's I/O threads.
    pub fn io_threads(&self) -> u32 {
        self.io_threads.unwrap_or(self.pairs)
    }

    /// Whether all commands write.
    pub fn only_writes(&self) -> bool {
        matches!(self.rw.as_str(), "write" | "randwrite")
    }

    /// Whether commands read and write.
    pub fn is_mixed(&self) -> bool {
        matches!(self.rw.as_str(), "rw" | "randrw")
    }

    /// Whether commands go in order.
    pub fn is_sequential(&self) -> bool {
        matches!(self.rw.as_str(), "read" | "write" | "rw")
    }

    /// The load in words, without its depths.
    pub fn load(&self) -> String {
        let mix = if self.is_mixed() {
            format!(" with {} % reads", self.mix)
        } else {
            String::new()
        };
        let pairs = match self.pairs {
            1 => "1 queue pair".into(),
            // A guest with more processors could be faster.
            pairs => format!("{pairs} queue pairs of one vCPU"),
        };
        format!("{}{mix} of {} bytes, {pairs}", self.rw, self.block)
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

/// As [`number`], for small ones.
fn narrow(text: &str, low: u32, high: u32) -> Result<u32> {
    Ok(u32::try_from(number(text, low.into(), high.into())?)?)
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
        let plan = parse(
            "rw=rw mix=70 bs=128K qd=1,32 pairs=2 io-threads=3 io-affinity=0-1 fio-batch=14 rounds=3 ms=250 files=null,disk \
             qemu=off poll-us=20",
        )
        .unwrap();
        let expected = Plan {
            rw: "rw".into(),
            mix: 70,
            block: 128 << 10,
            depths: vec![1, 32],
            pairs: 2,
            io_threads: Some(3),
            io_affinity: Some("0-1".into()),
            fio_batch: Some(14),
            rounds: 3,
            ms: 250,
            places: vec![Place::Null, Place::Disk],
            qemu: false,
            poll_us: Some(20),
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
            ("mix=101", "must be from 0 to 100"),
            ("pairs=5", "must be from 1 to 4"),
            ("io-threads=0", "must be from 1 to 64"),
        ] {
            let error = format!("{:#}", parse(word).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_load_is_told_in_words() {
        let plan = parse("").unwrap();
        assert_eq!(plan.load(), "randread of 4096 bytes, 1 queue pair");
        assert_eq!(plan.io_threads(), 1);
        let plan = parse("rw=randrw mix=70 pairs=2").unwrap();
        let words = "randrw with 70 % reads of 4096 bytes, 2 queue pairs of one vCPU";
        assert_eq!(plan.load(), words);
        assert_eq!(plan.io_threads(), 2);
    }
}
