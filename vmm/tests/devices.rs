//! `--disk`, `--device` and the control commands that show what came of them.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::{Guest, HALT, Killed, kvm, print};

const COM1: u16 = 0x3f8;

/// A guest that sleeps, with a control socket.
struct Machine {
    child: Killed,
    guest: Guest,
}

impl Machine {
    fn start(arguments: &[&str]) -> Self {
        let guest = Guest::new(&[&print(COM1, "!")[..], &HALT].concat());
        let socket = guest.directory.path().join("socket");
        let mut command = guest.command(arguments);
        command.arg("--control-socket").arg(&socket);
        let mut child = Killed(command.spawn().unwrap());
        let mut byte = [0];
        let stdout = child.0.stdout.as_mut().unwrap();
        if stdout.read_exact(&mut byte).is_err() {
            panic!("{:?}", child.finish());
        }
        Self { child, guest }
    }

    fn ctl(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .arg("ctl")
            .arg(self.guest.directory.path().join("socket"))
            .args(words)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    fn quit(self) {
        assert_eq!(self.ctl(&["quit"]).0, Some(0));
        let (status, _, err) = self.child.finish();
        assert_eq!(status, 0, "{err}");
    }
}

fn image(path: &Path) -> String {
    File::create(path).unwrap().set_len(1 << 20).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn disks_share_one_subsystem_and_controller() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| image(&directory.path().join(name)));
    let machine = Machine::start(&["--disk", &a, "--disk", &b]);
    let (status, tree) = machine.ctl(&["info", "qtree"]);
    assert_eq!(status, Some(0), "{tree}");
    for (line, count) in [
        ("dev: nvme-subsys, id \"subsys0\"", 1),
        ("dev: nvme, id \"nvme0\"", 1),
        ("dev: nvme-ns, id \"ns0\"", 1),
        ("dev: nvme-ns, id \"ns1\"", 1),
        ("attached = [\"nvme0\"]", 2),
        ("subsys = \"subsys0\"", 1),
    ] {
        assert_eq!(tree.matches(line).count(), count, "{line} in\n{tree}");
    }
    machine.quit();
}

#[test]
fn namespaces_find_their_subsystem() {
    if !kvm() {
        return;
    }
    let machine = Machine::start(&[
        "--device",
        "nvme-subsys,id=s",
        "--device",
        "nvme,id=a,subsys=s",
        "--device",
        "nvme,id=b,subsys=s",
        "--device",
        "nvme-ns,id=by-subsystem,bus=s,null=1G",
        "--device",
        "nvme-ns,id=by-controller,bus=a,null=1G,shared=off",
        "--device",
        "nvme-ns,id=last,null=1G,shared=off",
        "--device",
        "nvme-ns,id=detached,bus=s,null=1G,detached",
        "--device",
        "nvme,id=alone",
        "--device",
        "nvme-ns,id=behind,memory=1M",
        "--device",
        "nvme,id=one,addr=0x10",
    ]);
    let (status, text) = machine.ctl(&["info", "qtree", "json"]);
    assert_eq!(status, Some(0), "{text}");
    let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
    let attached = |subsystem: usize, namespace: usize| {
        let bus = &tree["devices"][subsystem]["bus"];
        let device = &bus["devices"][namespace];
        (
            device["id"].as_str().unwrap().to_owned(),
            device["properties"]["attached"].to_string(),
        )
    };
    let expected = [
        ((0, 0), "by-subsystem", "[\"a\",\"b\"]"),
        ((0, 1), "by-controller", "[\"a\"]"),
        ((0, 2), "last", "[\"b\"]"),
        ((0, 3), "detached", "[]"),
        ((1, 0), "behind", "[\"alone\"]"),
    ];
    for ((subsystem, namespace), id, controllers) in expected {
        assert_eq!(
            attached(subsystem, namespace),
            (id.into(), controllers.into()),
            "{text}"
        );
    }
    assert!(text.contains("0000:00:10.0"), "{text}");
    for subject in ["status", "nvme", "subsys", "iothreads", "stats"] {
        let (status, text) = machine.ctl(&["info", subject]);
        assert_eq!(status, Some(0), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value.is_object(), "{text}");
    }
    machine.quit();
}

/// The machine's I/O threads and those of a controller of its own, with their CPUs.
#[test]
fn io_threads_show_their_cpus_and_their_controller() {
    if !kvm() {
        return;
    }
    let cpu = devices::affinity::allowed().unwrap()[0];
    let own = format!("nvme,id=own,io-threads=1,io-affinity={cpu}-{cpu}");
    let list = format!("{cpu},{cpu}");
    let arguments = ["--io-threads", "3", "--io-affinity", &list];
    let machine = Machine::start(&[&arguments[..], &["--device", &own]].concat());
    let (status, text) = machine.ctl(&["info", "iothreads"]);
    assert_eq!(status, Some(0), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let threads = value["iothreads"].as_array().unwrap();
    let shown: Vec<_> = threads
        .iter()
        .map(|thread| {
            assert_eq!(thread["cpus"], serde_json::json!([cpu]), "{text}");
            assert_eq!(thread["completion_queues"], 0, "{text}");
            (
                thread["index"].as_u64().unwrap(),
                thread["controller"].as_str(),
            )
        })
        .collect();
    assert_eq!(shown, [(0, None), (1, None), (2, None), (0, Some("own"))]);
    machine.quit();
    // One thread more than CPUs is one too many for any number of vCPUs.
    let many = (devices::affinity::allowed().unwrap().len() + 1).to_string();
    let machine = Machine::start(&["--io-threads", &many]);
    assert_eq!(machine.ctl(&["quit"]).0, Some(0));
    let (_, _, err) = machine.child.finish();
    let told = format!("--io-threads={many}: queues go to ");
    assert!(
        err.contains(&told) && err.contains("--io-affinity"),
        "{err}"
    );
    let guest = Guest::new(&HALT);
    let output = guest.command(&["--io-affinity", "77777"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(35), "{err}");
    let told = "--io-affinity 77777: CPU 77777 is not there for berth; allowed: ";
    assert!(err.contains(told), "{err}");
}

/// What QEMU wants in one order is taken in any.
#[test]
fn the_order_of_devices_does_not_matter() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = image(&directory.path().join("image"));
    let drive = format!("if=none,id=d,file={file}");
    let machine = Machine::start(&[
        "-device",
        "nvme-ns,id=first,drive=d",
        "-device",
        "nvme-ns,id=on-b,bus=b,null=1G,shared=off",
        "-device",
        "nvme,id=a,subsys=s",
        "-device",
        "nvme,id=b,subsys=t,addr=1",
        "-device",
        "nvme-subsys,id=t",
        "-device",
        "nvme-ns,id=last,null=1G",
        "-object",
        "nvme-subsys,id=s",
        "-object",
        "nvme-ns,id=object,subsys=s,null=1G",
        "-drive",
        &drive,
    ]);
    let (_, text) = machine.ctl(&["info", "qtree", "json"]);
    let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
    let on = |subsystem: &str| {
        let devices = tree["devices"].as_array().unwrap();
        let found = devices.iter().find(|device| device["id"] == subsystem);
        let namespaces = found.unwrap()["bus"]["devices"].as_array().unwrap().clone();
        let mut seen: Vec<_> = namespaces
            .iter()
            .map(|namespace| {
                let attached = &namespace["properties"]["attached"];
                format!("{} {attached}", namespace["id"].as_str().unwrap())
            })
            .collect();
        seen.sort();
        seen
    };
    assert_eq!(on("s"), ["first [\"a\"]", "object [\"a\"]"], "{text}");
    assert_eq!(on("t"), ["last [\"b\"]", "on-b [\"b\"]"], "{text}");
    // The slot that one asks for is not given to another one before it.
    let (_, text) = machine.ctl(&["info", "subsys"]);
    assert!(text.contains("0000:00:01.0") && text.contains("0000:00:02.0"));
    machine.quit();
}

#[test]
fn com2_does_not_empty_an_image_in_use() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory.path().join("image"));
    let machine = Machine::start(&["--disk", &path]);
    let (status, _, err) = Guest::new(&HALT).run(&["--com2", &path]);
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("is in use by another process"), "{err}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    machine.quit();
}

#[test]
fn wrong_devices_say_what_is_wrong() {
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    let image = image(&guest.directory.path().join("image"));
    let table: [(&[&str], i32, &str); 11] = [
        (
            &["nvme-subsys,id=s,nqn=x", "nvme-subsys,id=t,nqn=x"],
            35,
            "nqn=nqn.2024-07.internal.berth:x: subsystem 's' has this NQN",
        ),
        (
            &["nvme-subsys,id=s,nqn=subsys0", "nvme,id=c"],
            35,
            "subsystem 's' has this NQN",
        ),
        (&["nvme,subsys=x"], 35, "subsys=x: no device has this id"),
        (
            &["nvme,id=a", "nvme,subsys=a"],
            35,
            "subsys=a: this is a nvme",
        ),
        (
            &["nvme-ns,bus=x,null=1G"],
            35,
            "bus=x: no device has this id",
        ),
        (
            &[
                "nvme,id=c",
                "nvme-ns,nsid=1,null=1G",
                "nvme-ns,nsid=1,null=1G",
            ],
            35,
            "nsid 1 is in use",
        ),
        (
            &[
                "nvme-subsys,id=s,shared=off",
                "nvme,subsys=s",
                "nvme,subsys=s",
            ],
            35,
            "shared=off",
        ),
        (&["nvme,addr=3", "nvme,addr=3"], 35, "slot"),
        (
            &[
                "nvme-subsys,id=s",
                "nvme,subsys=s,cntlid=4",
                "nvme,subsys=s,cntlid=4",
            ],
            35,
            "cntlid 4 is in use",
        ),
        (
            &[
                "nvme,id=c",
                "nvme-subsys,id=s",
                "nvme-ns,bus=s,null=1G,shared=off,ctrl=c",
            ],
            35,
            "this controller is in subsystem",
        ),
        (&["nvme,file=IMAGE", "nvme,file=IMAGE"], 1, "in use"),
    ];
    for (devices, expected, text) in table {
        let mut arguments = Vec::new();
        for device in devices {
            arguments.push("--device".to_owned());
            arguments.push(device.replace("IMAGE", &image));
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (status, _, err) = guest.run(&arguments);
        assert_eq!(status, expected, "{devices:?}: {err}");
        assert!(err.contains(text), "{devices:?}: {err}");
        assert!(err.starts_with("berth: --device "), "{devices:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn commands_end_the_run_and_clean_up() {
    if !kvm() {
        return;
    }
    let machine = Machine::start(&[]);
    let socket = machine.guest.directory.path().join("socket");
    assert!(fs::exists(&socket).unwrap());
    assert_eq!(machine.ctl(&["system_powerdown"]).0, Some(0));
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"system_reset\n").unwrap();
    let mut lines = String::new();
    client.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("\"event\":\"guest_reset\""), "{lines}");
    let Machine { child, guest } = machine;
    let (status, _, err) = child.finish();
    assert_eq!((status, err.as_str()), (32, "berth: guest reset\n"));
    assert!(!fs::exists(guest.directory.path().join("socket")).unwrap());
}

#[test]
fn namespaces_that_the_guest_does_not_see_are_told_of() {
    if !kvm() {
        return;
    }
    let alone = ["--device", "nvme-ns,id=n,memory=1M"];
    let typo = [
        "--device",
        "nvme,id=c",
        "--device",
        "nvme-ns,id=n,memory=1M,shared=off,ctrl=x",
    ];
    let wanted = [
        "--device",
        "nvme,id=c",
        "--device",
        "nvme-ns,id=n,memory=1M,detached",
    ];
    let cases: [(&[&str], &str); 3] = [
        (
            &alone,
            "nvme-ns 'n': the guest does not see it: no controller is in its subsystem: add nvme,subsys=subsys0",
        ),
        (
            &typo,
            "nvme-ns 'n': the guest does not see it: the controller that it is private to does not exist",
        ),
        (&wanted, ""),
    ];
    for (devices, warning) in cases {
        let machine = Machine::start(devices);
        assert_eq!(machine.ctl(&["quit"]).0, Some(0));
        let (_, _, err) = machine.child.finish();
        assert!(err.contains(warning), "{devices:?}: {err}");
        assert_eq!(err.contains("does not see"), !warning.is_empty(), "{err}");
    }
}

#[test]
fn guest_memory_is_locked_on_request() {
    if !kvm() {
        return;
    }
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root may lock as much memory everywhere");
        return;
    }
    let machine = Machine::start(&["--overcommit", "mem-lock=on", "--io-threads", "2"]);
    let (status, threads) = machine.ctl(&["info", "iothreads"]);
    assert_eq!(status, Some(0), "{threads}");
    assert_eq!(
        threads.matches("\"registered_memory\": 67108864").count(),
        2,
        "{threads}"
    );
    assert!(threads.contains("\"engine\": \"io_uring\""), "{threads}");
    machine.quit();
    let machine = Machine::start(&["--overcommit", "mem-lock=off"]);
    let threads = machine.ctl(&["info", "iothreads"]).1;
    assert!(threads.contains("\"registered_memory\": 0"), "{threads}");
    machine.quit();
}

#[test]
fn memory_that_may_not_be_locked_is_explained() {
    const CAP_IPC_LOCK: libc::c_ulong = 14; // linux/capability.h
    if !kvm() {
        return;
    }
    let guest = Guest::new(&HALT);
    let mut command = guest.command(&["--overcommit", "mem-lock=on"]);
    let unprivileged = || {
        let limit = libc::rlimit {
            rlim_cur: 1 << 20,
            rlim_max: 1 << 20,
        };
        // SAFETY: between fork and exec, plain system calls with numbers and a structure that is only
        // read. Users without privileges have none to drop, which is as good.
        unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
        Ok(())
    };
    // SAFETY: see above.
    unsafe { command.pre_exec(unprivileged) };
    let (status, _, err) = Killed(command.spawn().unwrap()).finish();
    assert_eq!(status, 1, "{err}");
    for part in [
        "mem-lock=on",
        "67108864 bytes",
        "RLIMIT_MEMLOCK",
        "ulimit -l",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
}

#[test]
fn ctl_prints_replies_as_they_come_if_asked() {
    if !kvm() {
        return;
    }
    let machine = Machine::start(&["--disk", "null=1M,id=n"]);
    let ask = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["ctl", "--json"])
            .arg(machine.guest.directory.path().join("socket"))
            .args(words)
            .output()
            .unwrap();
        assert_eq!(output.stderr, b"", "{words:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1), "{text:?}");
        let reply: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(reply.get("token"), None);
        (output.status.code(), reply)
    };
    let (status, reply) = ask(&["info", "stats"]);
    assert_eq!((status, &reply["ok"]), (Some(0), &true.into()));
    assert_eq!(reply["result"]["namespaces"][0]["id"], "n");
    assert_eq!(reply["result"]["namespaces"][0]["in_flight"], 0);
    assert!(reply["result"]["trace"].is_null());
    // Text is a string then.
    let (_, reply) = ask(&["info", "qtree"]);
    assert!(reply["result"].as_str().unwrap().contains("dev: nvme"));
    for (words, class) in [
        (&["device_del", "nobody"][..], "NotFound"),
        (&["trace", "off"], "NotFound"),
        (&["trace", "on", "/nowhere/trace"], "Failed"),
        (&["trace", "maybe"], "Argument"),
        (&["nonsense"], "UnknownCommand"),
    ] {
        let (status, reply) = ask(words);
        assert_eq!((status, &reply["ok"]), (Some(1), &false.into()), "{reply}");
        assert_eq!(reply["error"]["class"], class, "{reply}");
    }
    machine.quit();
}
