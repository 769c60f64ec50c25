//! Measures berth beside QEMU and beside what the host itself can do with the same file.
//!
//! All contenders take their turn in each round, so that a host that gets slower or faster does so
//! for all of them; figures are medians of the rounds. The guest is the bare-metal one, which runs at
//! native speed on any KVM.

mod boot;
mod contender;
mod cpu;
mod files;
mod guest;
mod host;
mod memcpy;
mod plan;
mod plot;
mod report;
mod sample;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::contender::Contender;
use crate::files::Image;
use crate::guest::QemuDevice;
use crate::plan::{Place, Plan};
use crate::plot::Axis;
use crate::report::Results;
use crate::sample::Sample;

const HELP: &str = "\
cargo xtask bench [KEY=VALUE]...

  rw=randread       or randwrite, randrw, read, write, rw
  mix=50            percent of reads in randrw and rw
  bs=4K             bytes in a command
  qd=1,4,16,32,64,128
                    commands out at a time, on each queue pair
  pairs=1           queue pairs (1-4), all driven by the guest's one vCPU;
                    as many jobs of fio
  io-threads=PAIRS  berth's I/O threads
  io-affinity=LIST  the CPUs that they are bound to; not bound, no more of them
                    are used than there is room for beside the vCPU
  fio-batch=N       adds fio with io_uring that sends N commands at a time
  rounds=5          how often everything is measured, in turn
  ms=1000           length of one measurement
  files=tmpfs,disk,memory,null
                    where the bytes are; the disk is that of the folder which
                    BENCH_DISK names (this one)
  poll-us=N         adds berth with this poll-us; its default and 0 are there
  qemu=on           QEMU's nvme and virtio-blk take part (its firmware takes
                    some 7 s each time)

Ratios are of berth without any option, and of the best setting of others at
each depth. `no shadow` means without shadow doorbells, `ioeventfd` that
property of QEMU's nvme. Its virtio-blk runs in an I/O thread and polls as
QEMU does by default.

Writes bench.json and pictures (SVG) into the folder that BENCH_OUT names.

cargo xtask boot [rounds=20] [qemu-rounds=5]

Time to the first instruction of a guest, beside QEMU's microvm and q35 machines
with the same guest; medians, and berth's own share by phase.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words
        .iter()
        .any(|word| matches!(word.as_str(), "help" | "--help" | "-h"))
    {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let done = match words.split_first() {
        Some((first, rest)) if first == "boot" => boot::Plan::parse(rest).and_then(boot::run),
        _ => Plan::parse(&words).and_then(|plan| run(&plan)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<()> {
    let out = PathBuf::from(std::env::var_os("BENCH_OUT").unwrap_or_else(|| ".".into()));
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let mut all = Vec::new();
    for place in &plan.places {
        let results = measure(plan, *place)?;
        print!("{}", results.table(plan));
        for axis in [Axis::Iops, Axis::Latency] {
            let path = out.join(format!("{place}-{}.svg", axis.name()));
            plot::draw(plan, &results, axis, &path)?;
        }
        all.push(json!({
            "place": results.place, "rows": results.rows, "ratios": results.ratios(plan),
        }));
    }
    let path = out.join("bench.json");
    let text = serde_json::to_string_pretty(&json!({
        "rw": plan.rw, "mix": plan.mix, "block": plan.block, "depths": plan.depths,
        "pairs": plan.pairs, "io_threads": plan.io_threads(), "ms": plan.ms, "places": all,
    }))?;
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!("\nfigures and pictures: {}", out.display());
    Ok(())
}

fn measure(plan: &Plan, place: Place) -> Result<Results> {
    let image = Image::new(place)?;
    let mut results = Results::new(plan, place);
    let start = Instant::now();
    for round in 1..=plan.rounds {
        for row in &mut results.rows {
            eprintln!(
                "[{:5.1} s] {place}, round {round} of {}: {}",
                start.elapsed().as_secs_f64(),
                plan.rounds,
                row.name
            );
            let samples = one(plan, &image, row.contender)
                .with_context(|| format!("{place}, {}", row.name))?;
            for (series, sample) in row.depths.iter_mut().zip(samples) {
                series.samples.push(sample);
            }
        }
    }
    Ok(results)
}

fn one(plan: &Plan, image: &Image, contender: Contender) -> Result<Vec<Sample>> {
    match contender {
        Contender::Berth { shadow, poll_us } => guest::on_berth(plan, image, shadow, poll_us),
        Contender::QemuNvme {
            shadow,
            ioeventfd,
            aio,
        } => guest::on_qemu(plan, image, QemuDevice::Nvme { shadow, ioeventfd }, aio),
        Contender::QemuVirtio { aio } => guest::on_qemu(plan, image, QemuDevice::Virtio, aio),
        Contender::Host(engine) => host::fio(plan, image, engine, None),
        Contender::HostBatch(batch) => host::fio(plan, image, "io_uring", Some(batch)),
        Contender::Memcpy => memcpy::measure(plan, image.bytes),
    }
}
