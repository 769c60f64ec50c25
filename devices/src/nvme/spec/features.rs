//! Features (5.27.1; NVM 4.1.3).

use bitfield_struct::bitfield;

use super::open_enum;

open_enum! {
    /// Feature identifiers.
    FeatureId: u8 {
        /// Arbitration.
        ARBITRATION = 0x01,
        /// Power Management.
        POWER_MANAGEMENT = 0x02,
        /// Temperature Threshold.
        TEMPERATURE_THRESHOLD = 0x04,
        /// Error Recovery (NVM).
        ERROR_RECOVERY = 0x05,
        /// Volatile Write Cache.
        VOLATILE_WRITE_CACHE = 0x06,
        /// Number of Queues.
        NUMBER_OF_QUEUES = 0x07,
        /// Interrupt Coalescing.
        INTERRUPT_COALESCING = 0x08,
        /// Interrupt Vector Configuration.
        INTERRUPT_VECTOR_CONFIG = 0x09,
        /// Write Atomicity Normal (NVM).
        WRITE_ATOMICITY = 0x0a,
        /// Asynchronous Event Configuration.
        ASYNC_EVENT_CONFIG = 0x0b,
        /// I/O Command Set Profile.
        IO_COMMAND_SET_PROFILE = 0x19,
    }
}

open_enum! {
    /// Which value Get Features wants (SEL).
    Select: u8 {
        /// The value in force.
        CURRENT = 0,
        /// The value after a reset.
        DEFAULT = 1,
        /// The value that was saved.
        SAVED = 2,
        /// What can be done with the feature.
        SUPPORTED_CAPABILITIES = 3,
    }
}

/// What can be done with a feature (figure 195).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FeatureCapabilities {
    /// It can be saved.
    pub saveable: bool,
    /// It has a value for each namespace.
    pub namespace_specific: bool,
    /// It can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Power Management, dword 11.
#[bitfield(u32)]
pub struct PowerManagement {
    /// Power state.
    #[bits(5)]
    pub ps: u8,
    /// Workload hint.
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold, dword 11.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// Threshold in kelvins.
    pub tmpth: u16,
    /// Sensor; 0 for the composite temperature, 15 for all.
    #[bits(4)]
    pub tmpsel: u8,
    /// Type: 0 over, 1 under the threshold.
    #[bits(2)]
    pub thsel: u8,
    #[bits(10)]
    __: u16,
}

/// Volatile Write Cache, dword 11.
#[bitfield(u32)]
pub struct VolatileWriteCache {
    /// Volatile write cache enable.
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues, dword 11 and the result.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues.
    pub nsq_z: u16,
    /// I/O completion queues.
    pub ncq_z: u16,
}

/// Arbitration, dword 11.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Arbitration {
    /// Most commands of one submission queue at a time, as a power of two; 7 for no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// Weights less one, which round robin has no use for.
    #[bits(24)]
    pub weights_z: u32,
}

impl Arbitration {
    /// The burst that is none.
    pub const NO_LIMIT: u8 = 7;
}

/// Interrupt Coalescing, dword 11. A zero in either field turns it off.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// Aggregation threshold: completions for an interrupt, less one.
    pub thr_z: u8,
    /// Aggregation time: longest delay in 100 microseconds.
    pub time: u8,
    #[bits(16)]
    __: u16,
}

/// Interrupt Vector Configuration, dword 11.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptVectorConfig {
    /// Interrupt vector.
    pub iv: u16,
    /// Coalescing disable.
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Asynchronous Event Configuration, dword 11.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventConfig {
    /// SMART: available spare.
    pub smart_spare: bool,
    /// SMART: temperature.
    pub smart_temperature: bool,
    /// SMART: reliability.
    pub smart_reliability: bool,
    /// SMART: read-only media.
    pub smart_read_only: bool,
    /// SMART: volatile memory backup.
    pub smart_backup: bool,
    /// SMART: persistent memory region.
    pub smart_pmr: bool,
    #[bits(2)]
    __: u8,
    /// Notice: namespace attribute changed.
    pub namespace_attribute: bool,
    #[bits(23)]
    __: u32,
}

open_enum! {
    /// Asynchronous event types (5.2.1).
    EventType: u8 {
        /// Error status.
        ERROR = 0,
        /// SMART / health status.
        SMART = 1,
        /// Notice.
        NOTICE = 2,
    }
}

/// Result of an Asynchronous Event Request (5.2.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventResult {
    /// Event type.
    #[bits(3)]
    pub event_type: u8,
    #[bits(5)]
    __: u8,
    /// Event information.
    pub info: u8,
    /// Log page that tells more.
    pub lid: u8,
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_has_them() {
        assert!(AsyncEventConfig::from_bits(1 << 8).namespace_attribute());
        assert!(AsyncEventConfig::from_bits(1 << 1).smart_temperature());
        let result = AsyncEventResult::new()
            .with_event_type(EventType::NOTICE.0)
            .with_lid(4);
        assert_eq!(result.into_bits(), 0x0004_0002);
        let threshold = TemperatureThreshold::from_bits(0x0010_0157);
        assert_eq!((threshold.tmpth(), threshold.thsel()), (0x157, 1));
    }
}
