//! What the control commands do to the machine.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use devices::legacy::acpi::AcpiRegisters;
use serde::Serialize;
use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass, Info};
use crate::control::{Command, CommandSink};
use crate::exit::{ExitReason, Outcome};
use crate::interrupt::Interrupts;
use crate::live::Live;
use crate::qtree;
use crate::registry::{Object, Registry};

/// The machine as [`CommandSink`] sees it.
pub struct Commands {
    /// Where the end of the run is reported.
    pub outcome: Arc<Outcome>,
    /// Power button.
    pub acpi: Arc<AcpiRegisters>,
    /// The devices.
    pub live: Rc<Live>,
    /// What they hold of KVM.
    pub interrupts: Arc<Interrupts>,
    /// vCPUs of the machine.
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// When the guest was started.
    pub started: Instant,
}

impl CommandSink for Commands {
    fn execute(&mut self, command: Command) -> Result<Value, CommandError> {
        match command {
            Command::Info(info) => self.info(info),
            Command::SystemPowerdown => {
                self.acpi.power_button();
                Ok(Value::Null)
            }
            Command::SystemReset => {
                self.outcome.end(ExitReason::Reset);
                Ok(Value::Null)
            }
            Command::Quit => {
                self.outcome.end(ExitReason::Quit);
                Ok(Value::Null)
            }
            Command::DeviceAdd(spec) => self.live.add(&spec),
            Command::DeviceDel { wait: Some(_), .. } => Err(CommandError::new(
                ErrorClass::Unsupported,
                "device_del wait=: not supported yet; wait for the event device_deleted",
            )),
            Command::DeviceDel { id, surprise, .. } => self.live.remove(&id, surprise),
            Command::NsAttach {
                namespace,
                controller,
            } => self
                .live
                .set_attached("ns_attach", &namespace, &controller, true),
            Command::NsDetach {
                namespace,
                controller,
            } => self
                .live
                .set_attached("ns_detach", &namespace, &controller, false),
        }
    }
}

impl Commands {
    fn info(&self, info: Info) -> Result<Value, CommandError> {
        let registry = &*self.live.registry();
        registry.refresh_sizes();
        match info {
            Info::Status => Ok(self.status()),
            Info::Qtree { json: false } => Ok(Value::String(qtree::text(registry))),
            Info::Qtree { json: true } => Ok(qtree::json(registry)),
            Info::Subsys => {
                let subsystems = registry.iter().filter_map(|(_, object)| match object {
                    Object::Subsystem(subsystem) => Some(subsystem.info()),
                    _ => None,
                });
                to_value(&json!({ "subsystems": list(subsystems)? }))
            }
            Info::Nvme => Ok(json!({ "controllers": controllers(registry)? })),
            Info::IoThreads => Ok(json!({ "iothreads": to_value(&registry.io_threads().info())? })),
            Info::Stats => Ok(json!({
                "controllers": controllers(registry)?,
                "iothreads": to_value(&registry.io_threads().info())?,
                "kvm": to_value(&self.interrupts.held())?,
            })),
        }
    }

    fn status(&self) -> Value {
        json!({
            "status": if self.outcome.reason().is_some() { "ended" } else { "running" },
            "uptime_seconds": self.started.elapsed().as_secs_f64(),
            "cpus": self.cpus,
            "memory": self.memory,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

fn controllers(registry: &Registry) -> Result<Vec<Value>, CommandError> {
    list(registry.iter().filter_map(|(_, object)| match object {
        Object::Controller { controller, .. } => Some(controller.info()),
        _ => None,
    }))
}

fn list<T: Serialize>(items: impl Iterator<Item = T>) -> Result<Vec<Value>, CommandError> {
    items.map(|item| to_value(&item)).collect()
}

fn to_value(value: &impl Serialize) -> Result<Value, CommandError> {
    serde_json::to_value(value)
        .map_err(|error| CommandError::new(ErrorClass::Failed, format!("info: {error}")))
}
