//! Get Features and Set Features (NVMe Base 2.0c, 5.15 and 5.27; NVM 4.1.3).

use super::super::core::Core;
use super::super::error::CommandError;
use super::super::spec::{
    Arbitration, AsyncEventConfig, BROADCAST, FeatureCapabilities, FeatureId, FeaturesCdw10,
    InterruptCoalescing, InterruptVectorConfig, NumberOfQueues, PowerManagement, Select, Sqe,
    Status, TemperatureThreshold, VolatileWriteCache,
};
use super::Namespaces;

/// Composite temperature that is reported, in kelvins (40 °C).
pub const TEMPERATURE: u16 = 313;
/// Composite temperature from which on a warning is due, in kelvins (70 °C).
pub const WARNING_TEMPERATURE: u16 = 343;

/// The admin completion queue's vector; there is no coalescing for it.
const ADMIN_VECTOR: u16 = 0;

/// Values in force. A controller reset brings the defaults back: nothing is saveable.
#[derive(Debug, Clone)]
pub struct Features {
    arbitration: Arbitration,
    power: PowerManagement,
    over_temperature: u16,
    under_temperature: u16,
    // By NSID; absent means default.
    error_recovery: std::collections::BTreeMap<u32, u16>,
    write_cache: VolatileWriteCache,
    queues: NumberOfQueues,
    coalescing: InterruptCoalescing,
    // By vector: coalescing disabled.
    vectors: Vec<bool>,
    write_atomicity: u32,
    /// Which asynchronous events the guest wants.
    pub async_events: AsyncEventConfig,
}

impl Features {
    /// Defaults for a controller with `pairs` I/O queue pairs and one vector more.
    pub fn new(pairs: u16) -> Self {
        Self {
            arbitration: Arbitration::new().with_ab(Arbitration::NO_LIMIT),
            power: PowerManagement::new(),
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: Default::default(),
            write_cache: VolatileWriteCache::new().with_wce(true),
            queues: NumberOfQueues::new()
                .with_nsq_z(pairs - 1)
                .with_ncq_z(pairs - 1),
            coalescing: InterruptCoalescing::new(),
            vectors: (0..=pairs).map(|vector| vector == ADMIN_VECTOR).collect(),
            write_atomicity: 0,
            async_events: AsyncEventConfig::new(),
        }
    }

    /// Highest I/O submission queue identifier that may be created.
    pub fn max_sqid(&self) -> u16 {
        self.queues.nsq_z().saturating_add(1)
    }

    /// Highest I/O completion queue identifier that may be created.
    pub fn max_cqid(&self) -> u16 {
        self.queues.ncq_z().saturating_add(1)
    }

    /// Puts what I/O threads go by into force. They have to look afterwards.
    pub fn apply(&self, core: &Core) {
        core.set_write_through(!self.write_cache.wce());
        core.set_arbitration(self.arbitration);
        core.coalescing.set(self.coalescing);
        for (vector, &disabled) in (0..).zip(&self.vectors) {
            core.coalescing.set_disabled(vector, disabled);
        }
    }

    /// Whether the reported temperature is over or under a threshold.
    pub fn temperature_warning(&self) -> bool {
        TEMPERATURE >= self.over_temperature || TEMPERATURE <= self.under_temperature
    }

    /// Answers Get Features.
    ///
    /// # Errors
    /// An unknown feature or selection, or a namespace that does not fit.
    pub fn get(&self, sqe: &Sqe, namespaces: &Namespaces<'_>) -> Result<u32, CommandError> {
        let cdw10 = FeaturesCdw10::from_bits(sqe.cdw10);
        let fid = FeatureId(cdw10.fid());
        let capabilities = capabilities(fid).ok_or(Status::INVALID_FIELD)?;
        match Select(cdw10.sel()) {
            Select::SUPPORTED_CAPABILITIES => Ok(capabilities.into_bits()),
            Select::CURRENT => self.current(fid, sqe, namespaces),
            // Nothing was ever saved: the default is what comes back.
            Select::DEFAULT | Select::SAVED => self.defaults().current(fid, sqe, namespaces),
            _ => Err(Status::INVALID_FIELD.into()),
        }
    }

    fn defaults(&self) -> Self {
        // One vector more than queue pairs, and never none.
        #[allow(clippy::cast_possible_truncation)]
        Self::new(self.vectors.len() as u16 - 1)
    }

    fn current(
        &self,
        fid: FeatureId,
        sqe: &Sqe,
        namespaces: &Namespaces<'_>,
    ) -> Result<u32, CommandError> {
        Ok(match fid {
            FeatureId::ARBITRATION => self.arbitration.into_bits(),
            FeatureId::POWER_MANAGEMENT => self.power.into_bits(),
            FeatureId::TEMPERATURE_THRESHOLD => {
                let threshold = TemperatureThreshold::from_bits(sqe.cdw11);
                match (threshold.tmpsel(), threshold.thsel()) {
                    (0, 0) => u32::from(self.over_temperature),
                    (0, 1) => u32::from(self.under_temperature),
                    _ => return Err(Status::INVALID_FIELD.into()),
                }
            }
            FeatureId::ERROR_RECOVERY => {
                namespaces.check_one(sqe.nsid)?;
                u32::from(self.error_recovery.get(&sqe.nsid).copied().unwrap_or(0))
            }
            FeatureId::VOLATILE_WRITE_CACHE => self.write_cache.into_bits(),
            FeatureId::NUMBER_OF_QUEUES => self.queues.into_bits(),
            FeatureId::INTERRUPT_COALESCING => self.coalescing.into_bits(),
            FeatureId::INTERRUPT_VECTOR_CONFIG => {
                let config = InterruptVectorConfig::from_bits(sqe.cdw11);
                let disabled = self.vectors.get(usize::from(config.iv()));
                let disabled = *disabled.ok_or(Status::INVALID_FIELD)?;
                config.with_cd(disabled).into_bits() & 0x1_ffff
            }
            FeatureId::WRITE_ATOMICITY => self.write_atomicity,
            FeatureId::ASYNC_EVENT_CONFIG => self.async_events.into_bits(),
            FeatureId::IO_COMMAND_SET_PROFILE => 0,
            _ => return Err(Status::INVALID_FIELD.into()),
        })
    }

    /// Does Set Features; `io_queues` says whether I/O queues exist.
    ///
    /// # Errors
    /// An unknown feature, an invalid value, or SV, as nothing can be saved.
    pub fn set(
        &mut self,
        sqe: &Sqe,
        namespaces: &Namespaces<'_>,
        io_queues: bool,
    ) -> Result<u32, CommandError> {
        let cdw10 = FeaturesCdw10::from_bits(sqe.cdw10);
        let fid = FeatureId(cdw10.fid());
        let capabilities = capabilities(fid).ok_or(Status::INVALID_FIELD)?;
        if cdw10.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE.into());
        }
        let no_namespace = sqe.nsid == 0 || sqe.nsid == BROADCAST;
        if !capabilities.namespace_specific() && !no_namespace {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.into());
        }
        match fid {
            FeatureId::ARBITRATION => self.arbitration = Arbitration::from_bits(sqe.cdw11),
            FeatureId::POWER_MANAGEMENT => self.set_power(sqe.cdw11)?,
            FeatureId::TEMPERATURE_THRESHOLD => self.set_temperature(sqe.cdw11)?,
            FeatureId::ERROR_RECOVERY => self.set_error_recovery(sqe, namespaces)?,
            FeatureId::VOLATILE_WRITE_CACHE => {
                self.write_cache = VolatileWriteCache::from_bits(sqe.cdw11 & 1);
            }
            FeatureId::NUMBER_OF_QUEUES => return self.set_queues(sqe.cdw11, io_queues),
            FeatureId::INTERRUPT_COALESCING => {
                self.coalescing = InterruptCoalescing::from_bits(sqe.cdw11 & 0xffff);
            }
            FeatureId::INTERRUPT_VECTOR_CONFIG => {
                self.set_vector(InterruptVectorConfig::from_bits(sqe.cdw11))?;
            }
            FeatureId::WRITE_ATOMICITY => self.write_atomicity = sqe.cdw11 & 1,
            FeatureId::ASYNC_EVENT_CONFIG => {
                // Events that cannot happen here cannot be turned on.
                let mask = AsyncEventConfig::new()
                    .with_smart_temperature(true)
                    .with_namespace_attribute(true);
                self.async_events = AsyncEventConfig::from_bits(sqe.cdw11 & mask.into_bits());
            }
            FeatureId::IO_COMMAND_SET_PROFILE => {
                if sqe.cdw11 & 0x1ff != 0 {
                    return Err(Status::IO_COMMAND_SET_COMBINATION_REJECTED.into());
                }
            }
            _ => return Err(Status::INVALID_FIELD.into()),
        }
        Ok(0)
    }

    fn set_vector(&mut self, config: InterruptVectorConfig) -> Result<(), CommandError> {
        let disabled = self.vectors.get_mut(usize::from(config.iv()));
        let disabled = disabled.ok_or(Status::INVALID_FIELD)?;
        if config.iv() == ADMIN_VECTOR && !config.cd() {
            return Err(Status::FEATURE_NOT_CHANGEABLE.into());
        }
        *disabled = config.cd();
        Ok(())
    }

    fn set_power(&mut self, cdw11: u32) -> Result<(), CommandError> {
        let power = PowerManagement::from_bits(cdw11 & 0xff);
        if power.ps() != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        self.power = power;
        Ok(())
    }

    fn set_temperature(&mut self, cdw11: u32) -> Result<(), CommandError> {
        let threshold = TemperatureThreshold::from_bits(cdw11);
        match (threshold.tmpsel(), threshold.thsel()) {
            (0 | 15, 0) => self.over_temperature = threshold.tmpth(),
            (0 | 15, 1) => self.under_temperature = threshold.tmpth(),
            _ => return Err(Status::INVALID_FIELD.into()),
        }
        Ok(())
    }

    fn set_error_recovery(
        &mut self,
        sqe: &Sqe,
        namespaces: &Namespaces<'_>,
    ) -> Result<(), CommandError> {
        // Bit 16 asks for an error on deallocated blocks, which no namespace offers.
        if sqe.cdw11 & 1 << 16 != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        #[allow(clippy::cast_possible_truncation)] // TLER is the lower half
        let limit = sqe.cdw11 as u16;
        if sqe.nsid == BROADCAST {
            for nsid in namespaces.active() {
                self.error_recovery.insert(nsid, limit);
            }
        } else {
            namespaces.check_one(sqe.nsid)?;
            self.error_recovery.insert(sqe.nsid, limit);
        }
        Ok(())
    }

    fn set_queues(&mut self, cdw11: u32, io_queues: bool) -> Result<u32, CommandError> {
        let wanted = NumberOfQueues::from_bits(cdw11);
        if wanted.nsq_z() == u16::MAX || wanted.ncq_z() == u16::MAX {
            return Err(Status::INVALID_FIELD.into());
        }
        if io_queues {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        let limit = self.defaults().queues;
        self.queues = NumberOfQueues::new()
            .with_nsq_z(wanted.nsq_z().min(limit.nsq_z()))
            .with_ncq_z(wanted.ncq_z().min(limit.ncq_z()));
        Ok(self.queues.into_bits())
    }
}

/// What can be done with a feature, if it exists.
fn capabilities(fid: FeatureId) -> Option<FeatureCapabilities> {
    let changeable = FeatureCapabilities::new().with_changeable(true);
    match fid {
        FeatureId::ERROR_RECOVERY => Some(changeable.with_namespace_specific(true)),
        FeatureId::ARBITRATION
        | FeatureId::POWER_MANAGEMENT
        | FeatureId::TEMPERATURE_THRESHOLD
        | FeatureId::VOLATILE_WRITE_CACHE
        | FeatureId::NUMBER_OF_QUEUES
        | FeatureId::INTERRUPT_COALESCING
        | FeatureId::INTERRUPT_VECTOR_CONFIG
        | FeatureId::WRITE_ATOMICITY
        | FeatureId::ASYNC_EVENT_CONFIG
        | FeatureId::IO_COMMAND_SET_PROFILE => Some(changeable),
        _ => None,
    }
}
