//! Get Log Page (NVMe Base 2.0c, 5.16).

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use zerocopy::{FromZeros, IntoBytes};

use super::super::error::CommandError;
use super::super::spec::{
    AdminOpcode, CHANGED_NAMESPACES_MAX, CommandEffect, CommandEffectsLog, CriticalWarning,
    ErrorEntry, FirmwareSlotLog, GetLogCdw10, GetLogCdw11, GetLogCdw14, LogId, NvmOpcode,
    SUPPORTED_PAGES_SIZE, SmartLog, Sqe, Status, ascii,
};
use super::super::stats::SqStats;
use super::ERROR_LOG_ENTRIES;
use super::features::TEMPERATURE;

/// I/O done by queues that are gone.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Totals {
    /// Adds a queue's counters.
    pub fn add(&mut self, stats: &SqStats) {
        self.reads += stats.reads.get();
        self.writes += stats.writes.get();
        self.read_bytes += stats.read_bytes.get();
        self.written_bytes += stats.written_bytes.get();
    }
}

/// What the logs are made from.
#[derive(Debug)]
pub struct Logs {
    power_on: Instant,
    errors: VecDeque<ErrorEntry>,
    error_count: u64,
    changed: BTreeSet<u32>,
}

impl Logs {
    /// Logs of a controller that was just powered on.
    pub fn new() -> Self {
        Self {
            power_on: Instant::now(),
            errors: VecDeque::new(),
            error_count: 0,
            changed: BTreeSet::new(),
        }
    }

    /// Notes an admin command that failed.
    pub fn add_error(&mut self, sqe: &Sqe, error: CommandError) {
        self.error_count += 1;
        self.errors.push_front(ErrorEntry {
            error_count: self.error_count,
            cid: sqe.cid(),
            status: error.status().0 << 1,
            parameter_error_location: u16::MAX,
            nsid: sqe.nsid,
            ..ErrorEntry::default()
        });
        self.errors.truncate(usize::from(ERROR_LOG_ENTRIES));
    }

    /// Notes namespaces that came, went or changed.
    pub fn add_changed(&mut self, nsids: &[u32]) {
        self.changed.extend(nsids);
    }

    /// The Changed Namespace List was read: it starts anew.
    pub fn clear_changed(&mut self) {
        self.changed.clear();
    }

    fn errors(&self) -> Vec<u8> {
        let mut entries = [ErrorEntry::default(); ERROR_LOG_ENTRIES as usize];
        for (to, entry) in entries.iter_mut().zip(&self.errors) {
            *to = *entry;
        }
        entries.as_bytes().to_vec()
    }

    fn changed(&self) -> Vec<u8> {
        let mut list = [0u32; CHANGED_NAMESPACES_MAX];
        if self.changed.len() > CHANGED_NAMESPACES_MAX {
            list[0] = u32::MAX;
        } else {
            for (to, nsid) in list.iter_mut().zip(&self.changed) {
                *to = *nsid;
            }
        }
        list.as_bytes().to_vec()
    }

    fn smart(&self, totals: Totals, warning: bool) -> Vec<u8> {
        // Thousands of 512-byte units, rounded up.
        let units = |bytes: u64| bytes.div_ceil(512_000);
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = CriticalWarning::new().with_temperature(warning);
        log.temperature = TEMPERATURE.to_le_bytes();
        log.available_spare = 100;
        log.spare_threshold = 10;
        log.data_units_read = units(totals.read_bytes).into();
        log.data_units_written = units(totals.written_bytes).into();
        log.host_reads = totals.reads.into();
        log.host_writes = totals.writes.into();
        log.power_cycles = 1.into();
        log.power_on_hours = (self.power_on.elapsed().as_secs() / 3600).into();
        log.error_log_entries = self.error_count.into();
        log.as_bytes().to_vec()
    }

    /// The part of a log that a Get Log Page command asks for, filled up with zeroes.
    ///
    /// # Errors
    /// An unknown log, a part that starts outside of it, or more than `max_transfer` bytes.
    pub fn read(
        &self,
        request: &LogRequest,
        source: &LogSource<'_>,
    ) -> Result<Vec<u8>, CommandError> {
        let log = match request.id {
            LogId::SUPPORTED_PAGES => supported_pages(),
            LogId::ERROR_INFORMATION => self.errors(),
            LogId::SMART => {
                if request.nsid != 0 && request.nsid != u32::MAX {
                    return Err(Status::INVALID_FIELD.into());
                }
                self.smart(source.totals, source.temperature_warning)
            }
            LogId::FIRMWARE_SLOT => firmware_slots(source.firmware),
            LogId::CHANGED_NAMESPACES => self.changed(),
            LogId::COMMAND_EFFECTS => command_effects(),
            _ => return Err(Status::INVALID_LOG_PAGE.into()),
        };
        let start = usize::try_from(request.offset).ok();
        let rest = start.and_then(|start| log.get(start..));
        let rest = rest.ok_or(Status::INVALID_FIELD)?;
        let mut part = vec![0; request.len];
        let len = part.len().min(rest.len());
        part[..len].copy_from_slice(&rest[..len]);
        Ok(part)
    }
}

/// What logs tell besides what [`Logs`] keeps.
#[derive(Debug)]
pub struct LogSource<'a> {
    /// I/O of all queues.
    pub totals: Totals,
    /// Whether the temperature is out of its thresholds.
    pub temperature_warning: bool,
    /// Firmware revision.
    pub firmware: &'a str,
}

/// A checked Get Log Page command.
#[derive(Debug)]
pub struct LogRequest {
    /// Which log.
    pub id: LogId,
    /// Retain Asynchronous Event.
    pub rae: bool,
    nsid: u32,
    offset: u64,
    len: usize,
}

impl LogRequest {
    /// Checks a command that may transfer `max_transfer` bytes.
    ///
    /// # Errors
    /// Too long, or an offset that is no multiple of 4 or an index.
    pub fn new(sqe: &Sqe, max_transfer: u64) -> Result<Self, CommandError> {
        let cdw10 = GetLogCdw10::from_bits(sqe.cdw10);
        let cdw11 = GetLogCdw11::from_bits(sqe.cdw11);
        let dwords_z = u64::from(cdw11.numdu_z()) << 16 | u64::from(cdw10.numdl_z());
        let len = (dwords_z + 1) * 4;
        let offset = sqe.log_offset();
        let by_index = GetLogCdw14::from_bits(sqe.cdw14).ot();
        if len > max_transfer || by_index || !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD.into());
        }
        Ok(Self {
            id: LogId(cdw10.lid()),
            rae: cdw10.rae(),
            nsid: sqe.nsid,
            offset,
            len: usize::try_from(len).map_err(|_| Status::INVALID_FIELD)?,
        })
    }
}

fn supported_pages() -> Vec<u8> {
    let mut log = vec![0; SUPPORTED_PAGES_SIZE];
    for id in [
        LogId::SUPPORTED_PAGES,
        LogId::ERROR_INFORMATION,
        LogId::SMART,
        LogId::FIRMWARE_SLOT,
        LogId::CHANGED_NAMESPACES,
        LogId::COMMAND_EFFECTS,
    ] {
        log[usize::from(id.0) * 4] = 1;
    }
    log
}

fn firmware_slots(firmware: &str) -> Vec<u8> {
    let mut log = FirmwareSlotLog::new_zeroed();
    log.afi = 1;
    log.frs[0] = ascii(firmware);
    log.as_bytes().to_vec()
}

fn command_effects() -> Vec<u8> {
    let mut log = CommandEffectsLog::new_zeroed();
    let supported = CommandEffect::new().with_csupp(true);
    for opcode in [
        AdminOpcode::DELETE_SQ,
        AdminOpcode::CREATE_SQ,
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::DELETE_CQ,
        AdminOpcode::CREATE_CQ,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::DOORBELL_BUFFER_CONFIG,
    ] {
        log.acs[usize::from(opcode.0)] = supported;
    }
    for opcode in [NvmOpcode::FLUSH, NvmOpcode::READ] {
        log.iocs[usize::from(opcode.0)] = supported;
    }
    for opcode in [
        NvmOpcode::WRITE,
        NvmOpcode::WRITE_ZEROES,
        NvmOpcode::DATASET_MANAGEMENT,
    ] {
        log.iocs[usize::from(opcode.0)] = supported.with_lbcc(true);
    }
    log.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(logs: &Logs) -> Vec<u32> {
        let list = logs.changed();
        assert_eq!(list.len(), 4096);
        let numbers = list
            .chunks(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        numbers.take_while(|nsid| *nsid != 0).collect()
    }

    #[test]
    fn more_changed_namespaces_than_fit_are_told_as_all() {
        let mut logs = Logs::new();
        for round in 0..2 {
            let all: Vec<u32> = (1..=1024).collect();
            // What changes twice is listed once.
            logs.add_changed(&all);
            logs.add_changed(&all[round..]);
            assert_eq!(changed(&logs), all);
            logs.add_changed(&[5000]);
            assert_eq!(changed(&logs), [u32::MAX], "the rest is zero (5.16.1.5)");
            logs.clear_changed();
            assert_eq!(changed(&logs), [0u32; 0]);
        }
    }
}
