//! What the control commands do to the machine.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::legacy::acpi::AcpiRegisters;
use devices::pci::root::bdf;
use devices::subsystem::{NamespaceInfo, Traffic};
use serde::Serialize;
use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass, Info};
use crate::control::{Answer, Command, CommandSink, Ticket};
use crate::exit::{ExitReason, Outcome};
use crate::interrupt::Interrupts;
use crate::live::Live;
use crate::qtree;
use crate::registry::{Object, Registry};
use crate::startup::Startup;
use crate::trace::Tracing;
use crate::waits::Condition;

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
    /// What is written of the guest's NVMe commands.
    pub tracing: Rc<Tracing>,
    /// When the guest was started.
    pub started: Instant,
    /// How long that took.
    pub startup: Arc<Startup>,
}

impl CommandSink for Commands {
    fn execute(&mut self, command: Command) -> Result<Answer, CommandError> {
        let done = match command {
            Command::Info(info) => self.info(info)?,
            Command::SystemPowerdown => {
                self.acpi.power_button();
                Value::Null
            }
            Command::SystemReset => {
                self.outcome.end(ExitReason::Reset);
                Value::Null
            }
            Command::Quit => {
                self.outcome.end(ExitReason::Quit);
                Value::Null
            }
            Command::DeviceAdd(form, parsed) => self.live.add(form.command(), &parsed)?,
            Command::DriveAdd(parsed) => self.live.add_drive(parsed)?,
            Command::DriveDel { id } => self.live.remove_drive(&id)?,
            Command::ObjectDel { id } => self.live.remove_object(&id)?,
            Command::DeviceDel { id, surprise, wait } => {
                return self.device_del(&id, surprise, wait);
            }
            Command::Wait { event, id, timeout } => return self.wait(event, id, timeout),
            Command::NsResize {
                namespace,
                size,
                shrink,
            } => self.live.resize(&namespace, size, shrink)?,
            Command::Trace(Some(file)) => self.tracing.on(&file, &self.live.registry())?,
            Command::Trace(None) => self.tracing.off(&self.live.registry())?,
            Command::NsAttach {
                namespace,
                controller,
            } => self
                .live
                .set_attached("ns_attach", &namespace, &controller, true)?,
            Command::NsDetach {
                namespace,
                controller,
            } => self
                .live
                .set_attached("ns_detach", &namespace, &controller, false)?,
        };
        Ok(Answer::Done(done))
    }

    fn forget(&mut self, ticket: Ticket) {
        self.live.forget(ticket);
    }
}

impl Commands {
    fn device_del(
        &self,
        id: &str,
        surprise: bool,
        wait: Option<Duration>,
    ) -> Result<Answer, CommandError> {
        let Some(limit) = wait else {
            return self.live.remove(id, surprise).map(Answer::Done);
        };
        let command = format!("device_del {id} wait={}", limit.as_secs());
        let condition = Condition::Removal(id.to_owned());
        // First what may fail: a removal that has begun is not taken back.
        let ticket = self.live.later(command, condition, limit)?;
        let begun = self.live.remove(id, surprise);
        let answer = begun.map(|_| Answer::Later(ticket));
        answer.inspect_err(|_| self.live.forget(ticket))
    }

    fn wait(
        &self,
        name: &'static str,
        id: Option<String>,
        limit: Duration,
    ) -> Result<Answer, CommandError> {
        if let Some(value) = self.live.already(name, id.as_deref())? {
            return Ok(Answer::Done(value));
        }
        let about = id.as_deref().map_or(String::new(), |id| format!(" {id}"));
        let command = format!("wait {name}{about} timeout={}", limit.as_secs());
        let condition = Condition::Event { name, id };
        let ticket = self.live.later(command, condition, limit)?;
        Ok(Answer::Later(ticket))
    }

    fn info(&self, info: Info) -> Result<Value, CommandError> {
        self.live.refresh_sizes();
        let registry = &*self.live.registry();
        match info {
            Info::Status => Ok(self.status()),
            Info::Qtree { json: false } => Ok(Value::String(qtree::text(registry))),
            Info::Qtree { json: true } => Ok(qtree::json(registry)),
            Info::Subsys => Ok(json!({ "subsystems": subsystems(registry)? })),
            Info::Nvme => Ok(json!({ "controllers": controllers(registry)? })),
            Info::Block => Ok(json!({ "drives": drives(registry) })),
            Info::IoThreads => Ok(json!({ "iothreads": io_threads(registry)? })),
            Info::Stats => Ok(json!({
                "controllers": controllers(registry)?,
                "namespaces": namespaces(registry)?,
                "iothreads": io_threads(registry)?,
                "kvm": to_value(&self.interrupts.held())?,
                "trace": self.tracing.info(),
            })),
        }
    }

    fn status(&self) -> Value {
        json!({
            "status": if self.outcome.reason().is_some() { "ended" } else { "running" },
            "uptime_seconds": self.started.elapsed().as_secs_f64(),
            "startup_us": self.startup.to_json(),
            "cpus": self.cpus,
            "memory": self.memory,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// Each subsystem with its controllers, where they are and how they are, and its namespaces.
fn subsystems(registry: &Registry) -> Result<Vec<Value>, CommandError> {
    let mut values = Vec::new();
    for (_, object) in registry.iter() {
        let Object::Subsystem(subsystem) = object else {
            continue;
        };
        let info = subsystem.info();
        let members = info.controllers.iter();
        let members = members.map(|(cntlid, id)| member(registry, *cntlid, id));
        let members = members.collect::<Result<Vec<Value>, _>>()?;
        let mut value = to_value(&info)?;
        value["controllers"] = members.into();
        values.push(value);
    }
    Ok(values)
}

fn member(registry: &Registry, cntlid: u16, id: &str) -> Result<Value, CommandError> {
    let mut value = json!({ "cntlid": cntlid, "id": id });
    // One that is being added or removed right now is in one of the two only.
    if let Some(Object::Controller {
        controller, slot, ..
    }) = registry.get(id)
    {
        let info = controller.info();
        value["addr"] = bdf(*slot).into();
        value["state"] = to_value(&info.state)?;
        value["in_flight"] = info.in_flight.into();
        value["leaving"] = registry.leaving(id).is_some().into();
    }
    Ok(value)
}

fn controllers(registry: &Registry) -> Result<Vec<Value>, CommandError> {
    list(registry.iter().filter_map(|(_, object)| match object {
        Object::Controller { controller, .. } => Some(controller.info()),
        _ => None,
    }))
}

/// A namespace with its subsystem and its counters.
#[derive(Serialize)]
struct NamespaceStats<'a> {
    #[serde(flatten)]
    info: &'a NamespaceInfo,
    #[serde(flatten)]
    traffic: Traffic,
    subsys: &'a str,
}

/// Each namespace with its subsystem and its counters.
fn namespaces(registry: &Registry) -> Result<Vec<Value>, CommandError> {
    let mut values = Vec::new();
    for (_, object) in registry.iter() {
        let Object::Namespace {
            namespace,
            subsystem,
        } = object
        else {
            continue;
        };
        // None for one that is on its way out.
        if let Some(info) = subsystem.namespace_info(namespace.nsid()) {
            values.push(to_value(&NamespaceStats {
                traffic: info.traffic,
                info: &info,
                subsys: subsystem.id(),
            })?);
        }
    }
    Ok(values)
}

/// Each image that `drive=` of a device may name.
fn drives(registry: &Registry) -> Vec<Value> {
    let drives = registry.drives().values();
    drives
        .map(|drive| json!({ "id": drive.id, "file": drive.file.display().to_string(), "ro": drive.ro }))
        .collect()
}

/// The machine's I/O threads, and behind them those of controllers that have their own.
fn io_threads(registry: &Registry) -> Result<Vec<Value>, CommandError> {
    let shared = registry.io_threads();
    let mut values = list(shared.info().into_iter())?;
    for (id, object) in registry.iter() {
        let Object::Controller { controller, .. } = object else {
            continue;
        };
        if std::ptr::eq(&raw const **controller.io_threads(), shared) {
            continue;
        }
        for thread in controller.io_threads().info() {
            let mut value = to_value(&thread)?;
            value["controller"] = id.into();
            values.push(value);
        }
    }
    Ok(values)
}

fn list<T: Serialize>(items: impl Iterator<Item = T>) -> Result<Vec<Value>, CommandError> {
    items.map(|item| to_value(&item)).collect()
}

fn to_value(value: &impl Serialize) -> Result<Value, CommandError> {
    serde_json::to_value(value)
        .map_err(|error| CommandError::new(ErrorClass::Failed, format!("info: {error}")))
}
