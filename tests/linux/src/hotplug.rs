//! Scenarios in which devices come and go. The guest waits for each change and says so by its phases,
//! and only then comes the next.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::control::Control;
use crate::guest::{Guest, Running};
use crate::iolog::Completions;
use crate::kit::Kit;
use crate::scenarios::SHORT;

/// Controllers removed beneath one run of fio.
const UNPLUGS: usize = 50;

/// Namespaces added and deleted beneath one run of fio.
const CYCLES: u32 = 100;

/// Longest time in which fio may see no completion.
const HICCUP: Duration = Duration::from_secs(1);

/// For guests with one vCPU that lose a path. Linux (6.1, 6.12) sets the size of a path's disk to 0
/// while another task may just have chosen that path: its I/O then ends with an error that no other
/// path is tried for ("set BIO_REMAPPED on bios remapped to per-path namespace disks", linux-nvme,
/// May 2026). Between choice and check that task can be preempted, or run on another vCPU; with
/// this and one vCPU it cannot. Without, fio failed in 3 of 7 runs of 50 removals; that this race
/// is why is inferred.
pub const NO_PREEMPTION: &str = "preempt=none";

/// How often a run with a longer one is repeated.
const ATTEMPTS: u32 = 3;

/// The controllers of a multipath namespace with their slots.
const PATHS: [(&str, u8); 2] = [("one", 1), ("two", 2)];

/// A guest with two controllers, and a namespace behind both.
fn two_paths(kit: &Kit, task: &'static str) -> Result<Guest> {
    let mut guest = Guest::new(kit, task)?
        .initrd(Some(kit.file("full.cpio")))
        .append(NO_PREEMPTION)
        .device("nvme-subsys,id=sub");
    for (id, slot) in PATHS {
        guest = guest.device(format!("nvme,id={id},subsys=sub,addr={slot}"));
    }
    let image = guest.image("shared.img", 64 << 20)?;
    Ok(guest.device(format!("nvme-ns,id=ns,bus=sub,file={}", image.display())))
}

/// Controllers of a multipath namespace go and return in turn, orderly and by
/// surprise: fio notices nothing, and nothing leaks.
pub fn multipath_survives_unplugs(kit: &Kit) -> Result<()> {
    let mut guest = two_paths(kit, "multipath_unplugs")?
        .append(format!("berth.rounds={UNPLUGS}"))
        .start()?;
    guest.phase("begin", SHORT)?;
    let mut control = guest.connect()?;
    let before = Held::read(&guest, &mut control)?;
    guest.go()?;
    let start = Instant::now();
    for round in 1..=UNPLUGS {
        let (id, slot) = PATHS[round % 2];
        guest.phase(&format!("remove{round}"), SHORT)?;
        if round % 4 < 2 {
            control.pull(id)?;
        } else {
            control.remove(id)?;
        }
        guest.go()?;
        guest.phase(&format!("add{round}"), SHORT)?;
        // Its old slot is refused until the guest has let go of it.
        until(&format!("{id} is back in slot {slot}"), || {
            control.ask(&format!("device_add nvme,id={id},subsys=sub,addr={slot}"))
        })?;
        guest.go()?;
    }
    guest.phase("end", SHORT)?;
    let took = start.elapsed();
    let after = Held::read(&guest, &mut control)?;
    println!("{UNPLUGS} removals in {took:.1?}; held after them: {after:?}");
    ensure!(before == after, "something leaked; held before: {before:?}");
    guest.go()?;
    let ended = guest.succeed(SHORT)?;
    ensure!(
        ended.results.matches("ok: fio ran beneath removal").count() == UNPLUGS,
        "fio did not run beneath all removals:\n{}",
        ended.results
    );
    for line in ended
        .results
        .lines()
        .filter(|line| line.starts_with("fio:"))
    {
        println!("{line}");
    }
    Ok(())
}

/// What could leak when a controller goes.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// What the descriptors lead to, and how many.
    descriptors: BTreeMap<String, usize>,
    /// Names of the threads, but the kernel's io workers, which come and go.
    threads: Vec<String>,
    /// ioeventfds, GSIs and irqfds.
    kvm: Value,
    /// Controllers with CNTLID and slot.
    controllers: Vec<String>,
}

impl Held {
    fn read(guest: &Running, control: &mut Control) -> Result<Self> {
        // An answer says that berth accepted the connection, which takes a descriptor too.
        control.ask("info status")?;
        let process = format!("/proc/{}", guest.pid());
        let process = Path::new(&process);
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(process.join("fd"))? {
            let target = fs::read_link(entry?.path())?;
            *descriptors
                .entry(kind(&target.to_string_lossy()))
                .or_insert(0) += 1;
        }
        let mut threads = Vec::new();
        for entry in fs::read_dir(process.join("task"))? {
            // A worker may end in between.
            let name = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
            threads.push(name.trim().to_owned());
        }
        threads.retain(|name| !name.is_empty() && !name.starts_with("iou-wrk-"));
        threads.sort();
        let kvm = control.ask("info stats")?["kvm"].take();
        ensure!(kvm.is_object(), "info stats tells nothing of KVM");
        Ok(Self {
            descriptors,
            threads,
            kvm,
            controllers: controllers(&control.ask("info qtree json")?),
        })
    }
}

/// A descriptor's target without the number that tells sockets and pipes apart.
fn kind(target: &str) -> String {
    target
        .trim_end_matches(|c: char| c.is_ascii_digit() || c == ']')
        .to_owned()
}

/// The controllers in the device tree, sorted.
fn controllers(tree: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for device in devices(tree) {
        if device["driver"] == "nvme" {
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (id, addr) = (word(&device["id"]), word(&device["properties"]["addr"]));
            let cntlid = &device["properties"]["cntlid"];
            found.push(format!("{id} at {addr} with CNTLID {cntlid}"));
        }
    }
    found.sort();
    found
}

/// All devices on a bus and on those within.
fn devices(bus: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    for device in bus["devices"].as_array().into_iter().flatten() {
        found.push(device);
        found.extend(devices(&device["bus"]));
    }
    found
}

/// Namespaces come and go beneath fio on another one of the same controller.
///
/// An emulated outer machine stands still now and then, whatever berth does: a hiccup counts if no
/// attempt is without one.
pub fn namespaces_come_and_go(kit: &Kit) -> Result<()> {
    let mut gap = Duration::MAX;
    for attempt in 1..=ATTEMPTS {
        gap = longest_gap_of_cycles(kit)?;
        if gap <= HICCUP {
            return Ok(());
        }
        println!("attempt {attempt} of {ATTEMPTS}: no completion for {gap:?}");
    }
    bail!("no completion for {gap:?}, and for more than {HICCUP:?} in each attempt")
}

/// The longest time in which fio saw no completion.
fn longest_gap_of_cycles(kit: &Kit) -> Result<Duration> {
    let guest = Guest::new(kit, "namespaces_come_and_go")?
        .initrd(Some(kit.file("full.cpio")))
        .cpus(2)
        .append(format!("berth.rounds={CYCLES}"));
    let disk = guest.image("disk.img", 64 << 20)?;
    // The guest leaves fio's log there: as text over a serial port it would take minutes.
    let log = guest.image("log.img", 32 << 20)?;
    let mut guest = guest
        .device("nvme,id=ctrl")
        .device(format!("nvme-ns,bus=ctrl,nsid=1,file={}", disk.display()))
        .device(format!("nvme-ns,bus=ctrl,nsid=3,file={}", log.display()))
        .start()?;
    guest.phase("begin", SHORT)?;
    let mut control = guest.connect()?;
    guest.go()?;
    let start = Instant::now();
    for round in 1..=CYCLES {
        guest.phase(&format!("add{round}"), SHORT)?;
        control.ask("device_add nvme-ns,id=second,bus=ctrl,nsid=2,memory=16M")?;
        guest.go()?;
        guest.phase(&format!("delete{round}"), SHORT)?;
        control.remove("second")?;
        guest.go()?;
    }
    guest.phase("end", SHORT)?;
    let took = start.elapsed();
    guest.go()?;
    guest.phase("logged", SHORT)?;
    let completions = Completions::parse(&fs::read(&log)?)?;
    println!("{CYCLES} cycles in {took:.1?}; fio: {completions:?}");
    guest.go()?;
    guest.succeed(SHORT)?;
    ensure!(
        completions.span >= took,
        "fio's log does not cover all cycles"
    );
    Ok(completions.longest_gap)
}

/// The only controller goes with a mounted file system behind it, and returns
/// to the same namespace.
pub fn controller_comes_back(kit: &Kit) -> Result<()> {
    let guest = Guest::new(kit, "controller_comes_back")?.initrd(Some(kit.file("full.cpio")));
    let image = guest.image("disk.img", 64 << 20)?;
    let mut guest = guest
        .device("nvme-subsys,id=sub")
        .device("nvme,id=one,subsys=sub")
        .device(format!(
            "nvme-ns,id=ns,bus=sub,nguid=00112233445566778899aabbccddeeff,\
             eui64=0x0011223344556677,file={}",
            image.display()
        ))
        .start()?;
    guest.phase("begin", SHORT)?;
    let mut control = guest.connect()?;
    let namespace = namespace_in_trees(&mut control)?;
    guest.go()?;
    for round in 1..=3 {
        guest.phase(&format!("remove{round}"), SHORT)?;
        let how = if round % 2 == 0 { " surprise" } else { "" };
        control.ask(&format!("device_del one{how}"))?;
        let leaving = namespace_in_trees(&mut control)?;
        control.ask("wait device_deleted one")?;
        let alone = namespace_in_trees(&mut control)?;
        guest.go()?;
        guest.phase(&format!("add{round}"), SHORT)?;
        control.ask("device_add nvme,id=one,subsys=sub")?;
        let returned = namespace_in_trees(&mut control)?;
        guest.go()?;
        for later in [leaving, alone, returned] {
            ensure!(later == namespace, "{namespace} became {later}");
        }
    }
    guest.succeed(SHORT)?;
    Ok(())
}

/// The namespace `ns` in `info qtree`, which must be there as text and as JSON:
/// its properties but for attachments.
fn namespace_in_trees(control: &mut Control) -> Result<Value> {
    let text = control.ask("info qtree")?;
    let text = text.as_str().context("info qtree is no text")?;
    ensure!(
        text.contains("dev: nvme-ns, id \"ns\"") && text.contains("disk.img"),
        "the namespace is not in the tree:\n{text}"
    );
    let tree = control.ask("info qtree json")?;
    let found = devices(&tree)
        .into_iter()
        .find(|device| device["id"] == "ns");
    let mut properties = found.context("the namespace is not in the tree")?["properties"].clone();
    let attached = properties
        .as_object_mut()
        .and_then(|map| map.remove("attached"));
    ensure!(attached.is_some(), "the tree tells no attachments: {tree}");
    Ok(properties)
}

/// One path of a multipath namespace goes and returns, without its controller.
pub fn paths_are_detached(kit: &Kit) -> Result<()> {
    let mut guest = two_paths(kit, "paths_are_detached")?.start()?;
    for round in 1..=6 {
        // The guest knows the controllers by their CNTLID, 0 and 1.
        let (id, _) = PATHS[round % 2];
        guest.phase(&format!("detach{round}"), SHORT)?;
        guest.control(&format!("ns_detach ns {id}"))?;
        guest.go()?;
        guest.phase(&format!("attach{round}"), SHORT)?;
        guest.control(&format!("ns_attach ns {id}"))?;
        guest.go()?;
    }
    guest.succeed(SHORT)?;
    Ok(())
}

/// A namespace gets other sizes, and becomes read-only and writable again.
pub fn namespaces_change(kit: &Kit) -> Result<()> {
    let guest = Guest::new(kit, "namespaces_change")?.new_disk(16)?;
    let image = guest.image("second.img", 32 << 20)?;
    let second = format!("nvme-ns,id=second,nsid=2,file={}", image.display());
    let mut guest = guest.device(second.clone()).start()?;
    for size in ["48M", "64M", "32M shrink"] {
        let mebibytes = size.split('M').next().unwrap_or_default();
        guest.phase(&format!("resize{mebibytes}"), SHORT)?;
        guest.control(&format!("ns_resize second {size}"))?;
        guest.go()?;
    }
    for round in 1..=2 {
        for (phase, ro) in [("readonly", "on"), ("writable", "off")] {
            guest.phase(&format!("{phase}{round}"), SHORT)?;
            guest.control("device_del second wait=30")?;
            guest.control(&format!("device_add {second},ro={ro}"))?;
            guest.go()?;
        }
    }
    guest.phase("gone", SHORT)?;
    guest.control("device_del second wait=30")?;
    guest.go()?;
    guest.succeed(SHORT)?;
    Ok(())
}

/// Asks until it succeeds, for a minute.
fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if start.elapsed() > SHORT => return Err(error).context(what.to_owned()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_are_found_in_the_whole_tree() {
        let controller = |id: &str, addr: &str| json!({"driver": "nvme", "id": id, "properties": {"addr": addr, "cntlid": 3}});
        let tree = json!({"bus": "main-system-bus", "devices": [
            {"driver": "nvme-subsys", "id": "sub", "bus": {"bus": "sub", "devices": [
                {"driver": "nvme-ns", "id": "ns", "properties": {}}]}},
            {"driver": "pci-root", "id": "pci", "bus": {"bus": "pci.0", "devices": [
                controller("two", "0000:00:02.0"), controller("one", "0000:00:01.0")]}}]});
        let ids: Vec<_> = devices(&tree)
            .iter()
            .map(|device| device["id"].clone())
            .collect();
        assert_eq!(ids, ["sub", "ns", "pci", "two", "one"]);
        assert_eq!(
            controllers(&tree),
            [
                "one at 0000:00:01.0 with CNTLID 3",
                "two at 0000:00:02.0 with CNTLID 3"
            ]
        );
    }

    #[test]
    fn descriptors_go_by_their_kind() {
        assert_eq!(kind("socket:[4711]"), kind("socket:[4712]"));
        assert_eq!(kind("anon_inode:[eventfd]"), "anon_inode:[eventfd");
        assert_ne!(kind("/tmp/disk.img"), kind("/tmp/log.img"));
    }
}
