//! The device tree, as `info qtree` shows it.

use std::fmt::Write;

use devices::pci::root::bdf;
use serde_json::{Map, Value, json};

use crate::registry::{Object, Registry};

/// A device with its properties and the buses that it has.
struct Node {
    driver: &'static str,
    id: String,
    properties: Map<String, Value>,
    bus: Option<Bus>,
}

struct Bus {
    name: String,
    kind: &'static str,
    devices: Vec<Node>,
}

/// The tree as indented text.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    write_bus(&mut text, &system_bus(registry), 0);
    text
}

/// The tree as nested objects.
pub fn json(registry: &Registry) -> Value {
    bus_json(&system_bus(registry))
}

/// The system bus: subsystems with their own buses, and the PCI root with bus 0.
fn system_bus(registry: &Registry) -> Bus {
    let mut devices: Vec<_> = registry
        .iter()
        .filter(|(_, object)| matches!(object, Object::Subsystem(_)))
        .map(|(id, object)| node(registry, id, object))
        .collect();
    let controllers = registry
        .iter()
        .filter(|(_, object)| matches!(object, Object::Controller { .. }))
        .map(|(id, object)| node(registry, id, object));
    devices.push(Node {
        driver: "pci-root",
        id: "pci".into(),
        properties: Map::new(),
        bus: Some(Bus {
            name: "pci.0".into(),
            kind: "PCIE",
            devices: controllers.collect(),
        }),
    });
    Bus {
        name: "main-system-bus".into(),
        kind: "System",
        devices,
    }
}

fn node(registry: &Registry, id: &str, object: &Object) -> Node {
    let (properties, bus) = match object {
        Object::Subsystem(subsystem) => {
            let namespaces = registry.iter().filter(|(_, object)| {
                matches!(object, Object::Namespace { subsystem: on, .. } if on.id() == id)
            });
            let bus = Bus {
                name: id.into(),
                kind: "nvme-subsys",
                devices: namespaces
                    .map(|(id, object)| node(registry, id, object))
                    .collect(),
            };
            let properties = json!({ "nqn": subsystem.nqn(), "shared": subsystem.shared() });
            (properties, Some(bus))
        }
        Object::Namespace {
            namespace,
            subsystem,
        } => {
            let own = subsystem.namespace_info(namespace.nsid());
            let value = own.and_then(|info| serde_json::to_value(info).ok());
            (value.unwrap_or_default(), None)
        }
        Object::Controller {
            controller,
            subsystem,
            slot,
            ..
        } => {
            let mut properties = json!({
                "addr": bdf(*slot),
                "subsys": subsystem.id(),
                "cntlid": controller.cntlid(),
            });
            // The thread of each completion queue.
            for queue in controller.info().queues {
                if let Some(thread) = queue.io_thread {
                    properties["iothread"][queue.cqid.to_string()] = thread.into();
                }
            }
            (properties, None)
        }
    };
    let mut properties = match properties {
        Value::Object(properties) => properties,
        _ => Map::new(),
    };
    properties.remove("id");
    Node {
        driver: object.driver(),
        id: id.into(),
        properties,
        bus,
    }
}

fn write_bus(text: &mut String, bus: &Bus, depth: usize) {
    let indent = "  ".repeat(depth);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{indent}bus: {}", bus.name);
    let _ = writeln!(text, "{indent}  type {}", bus.kind);
    for device in &bus.devices {
        let _ = writeln!(
            text,
            "{indent}  dev: {}, id \"{}\"",
            device.driver, device.id
        );
        for (key, value) in &device.properties {
            let _ = writeln!(text, "{indent}    {key} = {value}");
        }
        if let Some(bus) = &device.bus {
            write_bus(text, bus, depth + 2);
        }
    }
}

fn bus_json(bus: &Bus) -> Value {
    let devices: Vec<_> = bus.devices.iter().map(node_json).collect();
    json!({ "bus": bus.name, "type": bus.kind, "devices": devices })
}

fn node_json(node: &Node) -> Value {
    let mut value = json!({
        "driver": node.driver,
        "id": node.id,
        "properties": node.properties,
    });
    if let Some(bus) = &node.bus {
        value["bus"] = bus_json(bus);
    }
    value
}
