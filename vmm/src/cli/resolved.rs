//! A machine as it was understood (`--dry-run`): a description that `--machine` takes.

use devices::nvme::MemoryLock;
use toml::{Table, Value};

use super::RunConfig;
use crate::grammar::format_size;
use crate::guest_command::GuestCommand;
use crate::spec::{
    BackendSpec, ControllerSpec, DeviceSpec, DiskSpec, DriveSpec, Format, NamespaceSpec,
    SubsystemSpec,
};

/// Properties in the order in which people read them.
#[derive(Default)]
struct Properties(Vec<(&'static str, Value)>);

impl Properties {
    fn add(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.push((key, value.into()));
    }

    fn maybe(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    fn text(&self) -> String {
        // A table of one key at a time, for a whole one would be sorted.
        let line = |(key, value): &(&str, Value)| {
            let table = Table::from_iter([((*key).to_owned(), value.clone())]);
            table.to_string()
        };
        self.0.iter().map(line).collect()
    }
}

/// The machine with all its defaults, as TOML. What berth chooses when the machine is made (slots,
/// identifiers, serial numbers) is not in it unless it was given.
pub fn text(config: &RunConfig) -> String {
    let mut machine = Properties::default();
    let path = |path: &std::path::Path| path.display().to_string();
    machine.add("kernel", path(&config.kernel));
    machine.maybe("initrd", config.initrd.as_deref().map(path));
    machine.add("append", config.append.clone());
    machine.add("memory", format_size(config.memory));
    machine.add("cpus", i64::from(config.cpus));
    machine.add("io-threads", i64::from(config.io_threads));
    machine.maybe("io-affinity", affinity(&config.io_affinity));
    let lock = match config.memory_lock {
        MemoryLock::On => "mem-lock=on",
        MemoryLock::Off => "mem-lock=off",
    };
    machine.add("overcommit", lock);
    machine.maybe("com2", config.com2.as_deref().map(path));
    if let Some(command) = &config.command {
        guest_command(&mut machine, command);
    }
    machine.maybe("trace", config.trace.as_deref().map(path));
    machine.maybe("control-pipe", config.control_pipe.as_deref().map(path));
    machine.maybe("control-socket", config.control_socket.as_deref().map(path));
    // What was left out, and why.
    let warning = |warning: &String| format!("# {}\n", warning.replace('\n', " "));
    let mut text: String = config.warnings.iter().map(warning).collect();
    text += &machine.text();
    let mut table = |name: &str, properties: &Properties| {
        text += &format!("\n[[{name}]]\n{}", properties.text());
    };
    for spec in &config.disks {
        let mut properties = Properties::default();
        namespace(&mut properties, spec);
        table("disk", &properties);
    }
    for spec in config.drives.values() {
        let mut properties = Properties::default();
        drive(&mut properties, spec);
        table("drive", &properties);
    }
    for (name, first, specs) in [
        ("object", "qom-type", &config.objects),
        ("device", "driver", &config.devices),
    ] {
        for spec in specs {
            let mut properties = Properties::default();
            properties.add(first, spec.driver());
            match spec {
                DeviceSpec::Subsystem(spec) => subsystem(&mut properties, spec),
                DeviceSpec::Controller(spec) => controller(&mut properties, spec),
                DeviceSpec::Namespace(spec) => namespace(&mut properties, spec),
            }
            table(name, &properties);
        }
    }
    text
}

fn guest_command(p: &mut Properties, command: &GuestCommand) {
    let list = |texts: Vec<String>| (!texts.is_empty()).then_some(texts);
    let with = command.with.iter().map(|with| {
        let from = with.from.display();
        let to = with.to.as_ref();
        to.map_or_else(|| from.to_string(), |to| format!("{from}={to}"))
    });
    p.maybe(
        "rootfs",
        command.rootfs.as_ref().map(|root| root.argument.clone()),
    );
    p.maybe("with", list(with.collect()));
    p.maybe("module", list(command.modules.clone()));
    p.add("command", command.words.clone());
}

/// CPUs in order, as `--io-affinity` and `io-affinity` take them; nothing for any.
fn affinity(cpus: &[usize]) -> Option<String> {
    let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
    (!cpus.is_empty()).then(|| cpus.join(","))
}

fn subsystem(p: &mut Properties, spec: &SubsystemSpec) {
    p.add("id", spec.id.clone());
    p.add("nqn", spec.nqn.clone());
    p.add("shared", spec.shared);
}

fn controller(p: &mut Properties, spec: &ControllerSpec) {
    p.maybe("id", spec.id.clone());
    p.maybe("subsys", spec.subsys.clone());
    p.maybe("addr", spec.addr.map(|slot| format!("{slot:x}")));
    p.maybe("serial", spec.serial.clone());
    p.maybe("model", spec.model.clone());
    p.maybe("firmware", spec.firmware.clone());
    p.add("max_ioqpairs", i64::from(spec.max_ioqpairs));
    p.add("mqes", i64::from(spec.mqes));
    p.add("mdts", i64::from(spec.mdts));
    if let Some(own) = &spec.io_threads {
        p.add("io-threads", i64::from(own.count));
        p.maybe("io-affinity", affinity(&own.cpus));
    }
    p.add("poll-us", i64::from(spec.poll_us));
    p.maybe("cntlid", spec.cntlid.map(i64::from));
    if let Some(spec) = &spec.disk {
        disk(p, spec);
    }
}

fn namespace(p: &mut Properties, spec: &NamespaceSpec) {
    p.maybe("id", spec.id.clone());
    p.maybe("bus", spec.bus.clone());
    p.maybe("nsid", spec.nsid.map(i64::from));
    disk(p, &spec.disk);
    p.add("shared", spec.shared);
    p.add("detached", spec.detached);
    p.maybe("ctrl", spec.ctrl.clone());
    let uuid = |bytes| uuid::Uuid::from_bytes(bytes).to_string();
    p.maybe("uuid", spec.uuid.map(uuid));
    p.maybe("eui64", spec.eui64.map(|number| format!("{number:#018x}")));
    let nguid = |bytes| uuid::Uuid::from_bytes(bytes).simple().to_string();
    p.maybe("nguid", spec.nguid.map(nguid));
}

fn disk(p: &mut Properties, spec: &DiskSpec) {
    match &spec.backend {
        BackendSpec::File { path, cache } => {
            p.add("file", path.display().to_string());
            p.add("cache", cache.to_string());
        }
        BackendSpec::Drive { drive, cache } => {
            p.add("drive", drive.clone());
            p.maybe("cache", cache.map(|cache| cache.to_string()));
        }
        BackendSpec::Memory(bytes) => p.add("memory", format_size(*bytes)),
        BackendSpec::Null(bytes) => p.add("null", format_size(*bytes)),
    }
    p.add("logical_block_size", i64::from(spec.logical_block_size));
    p.add("ro", spec.ro);
    format(p, spec.format);
}

/// Only where it was given.
fn format(p: &mut Properties, format: Format) {
    if format == Format::Raw {
        p.add("format", "raw");
    }
}

/// In devices their files stand already; devices that come later name them.
fn drive(p: &mut Properties, spec: &DriveSpec) {
    p.add("file", spec.file.display().to_string());
    p.add("id", spec.id.clone());
    p.add("cache", spec.cache.to_string());
    p.add("readonly", spec.ro);
    format(p, spec.format);
}
