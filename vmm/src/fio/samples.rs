//! Results for tests: two machines, the host, three jobs, some in two rounds.

use super::results::{
    Cost, Direction, Failure, Figures, Latency, Outcome, PERCENTILES, Place, Results, Run, SCHEMA,
    Second, Setting, System, VERSION,
};

fn setting(name: &str, place: Place) -> Setting {
    Setting {
        name: name.into(),
        place,
        description: "memory = \"512M\" # <b>\n".into(),
        system: Some(System {
            kernel: "6.1.0".into(),
            cpus: 1,
            device: "/dev/nvme0n1".into(),
            bytes: 64 << 20,
        }),
        notes: Vec::new(),
    }
}

fn direction(iops: f64) -> Direction {
    let bins = vec![(20_000, 500), (40_000, 400), (160_000, 98), (900_000, 2)];
    let latency = Latency {
        mean: 45_000.0,
        deviation: 30_000.0,
        min: 15_000.0,
        max: 950_000.0,
    };
    let second = |at: u32| Second {
        at: f64::from(at),
        iops: iops + f64::from(at),
        bandwidth: iops * 4096.0,
        latency: 45_000.0,
    };
    Direction {
        iops,
        bandwidth: iops * 4096.0,
        ios: 1000,
        completion: latency,
        submission: latency,
        total: latency,
        percentiles: PERCENTILES
            .into_iter()
            .zip([20_000, 40_000, 160_000, 900_000])
            .collect(),
        bins,
        series: (1..=5).map(second).collect(),
    }
}

fn run(setting: &str, job: &str, round: u32, depth: u32, iops: f64) -> Run {
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mixed = job == "mixed";
    let mut options = vec![
        option("bs", "4k"),
        option("ioengine", "io_uring"),
        option("iodepth", &depth.to_string()),
        option("rw", if mixed { "randrw" } else { "randread" }),
    ];
    if mixed {
        options.push(option("rwmixread", "70"));
    }
    let cost = Cost {
        commands: 10_000,
        doorbell_exits: 12,
        doorbell_wakeups: 4000,
        interrupts: 9000,
        elapsed: 5_000_000_000,
        vcpu_time: 2_000_000_000,
        io_time: 1_000_000_000,
        other_time: 1_000_000,
    };
    let figures = Figures {
        read: Some(direction(iops)),
        write: mixed.then(|| direction(iops * 3.0 / 7.0)),
        trim: None,
        usr_cpu: 3.5,
        sys_cpu: 12.25,
        context_switches: 1000,
        cost: (setting != "host").then_some(cost),
    };
    Run {
        setting: setting.into(),
        file: "load".into(),
        job: job.into(),
        round,
        depth,
        options: options.into_iter().collect(),
        raw: Some("raw/0.json".into()),
        outcome: Outcome::Done(Box::new(figures)),
    }
}

/// The results.
pub fn results() -> Results {
    let mut runs = Vec::new();
    for (setting, factor) in [("poll-us=0", 1.0), ("<poll>", 1.5), ("host", 2.0)] {
        for round in 1..=2 {
            let faster = 1.0 + 0.2 * f64::from(round - 1);
            runs.push(run(setting, "qd1", round, 1, 1000.0 * factor * faster));
            runs.push(run(setting, "qd32", round, 32, 20_000.0 * factor * faster));
        }
        runs.push(run(setting, "mixed", 1, 16, 7000.0 * factor));
    }
    runs.push(Run {
        outcome: Outcome::Failed(Failure {
            what: "fio ended with status 1".into(),
            fio: Some(1),
            berth: None,
            said: "fio: no such <engine>".into(),
        }),
        ..run("host", "broken", 1, 1, 0.0)
    });
    Results {
        schema: SCHEMA.into(),
        version: VERSION,
        name: "a & b".into(),
        started: 1_795_550_921,
        berth: "0.1.0".into(),
        fio: "fio-3.33".into(),
        arguments: vec!["load.fio".into()],
        host: super::results::host(),
        settings: vec![
            setting("poll-us=0", Place::Guest),
            setting("<poll>", Place::Guest),
            setting("host", Place::Host),
        ],
        runs,
    }
}
