//! `berth fio` with a stock kernel: two settings beside each other, and the page in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Process, browser};
use serde_json::Value;

use crate::kit::{Form, Kit, Version};
use crate::outer::EXPORT;

/// The scenario's name.
pub const NAME: &str = "fio_report";

/// Longest run of all guests, in the outer machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Two depths of one load, and a mix that writes.
const JOBS: &str = "[global]\nioengine=io_uring\ndirect=1\ntime_based\nruntime=3\nstonewall\n\
                    norandommap=1\nbs=4k\n[qd1]\nrw=randread\niodepth=1\n\
                    [qd8]\nrw=randread\niodepth=8\n[mixed]\nrw=randrw\nrwmixread=70\niodepth=8\n";

/// Runs the jobs in two machines that differ in one property.
pub fn run(kit: &Kit) -> Result<()> {
    let scratch = harness::scratch()?;
    let exported = std::env::var_os(EXPORT).map(PathBuf::from);
    let out = exported.as_deref().unwrap_or(scratch.path()).join(NAME);
    fs::create_dir_all(out.parent().unwrap_or(Path::new("/")))?;
    let jobs = scratch.path().join("load.fio");
    fs::write(&jobs, JOBS)?;
    let image = harness::image(scratch.path(), "disk.img", 32 << 20)?;
    let device = format!("nvme-ns,bus=c,file={}", image.display());
    let done = Process::builder(harness::berth_binary()?)
        .arg("fio")
        .arg(&jobs)
        .arg("--out")
        .arg(&out)
        .arg("--kernel")
        .arg(kit.kernel(Version::Newest, Form::BzImage)?)
        .args(["-m", "768M", "--append", "quiet", "--vary", "poll-us=0,50"])
        .args(["--device", "nvme,id=c", "--device", &device])
        .echo(true)
        .run(LIMIT)?;
    ensure!(done.exit.success(), "berth fio ended with {}", done.exit);
    let beside = "poll-us=50 beside poll-us=0";
    ensure!(done.stdout.contains(beside), "no comparison");
    if exported.is_none() {
        check(&out)?;
    }
    Ok(())
}

/// Looks at what [`run`] left: figures from guests, and pictures that a browser draws.
pub fn check(out: &Path) -> Result<()> {
    let text = fs::read(out.join("results.json")).with_context(|| out.display().to_string())?;
    let results: Value = serde_json::from_slice(&text)?;
    let runs = results["runs"].as_array().context("no runs")?;
    ensure!(runs.len() == 6, "{} runs of 6", runs.len());
    for run in runs {
        let figures = &run["outcome"]["done"];
        let what = format!("{} {}", run["setting"], run["job"]);
        ensure!(figures.is_object(), "{what}: {}", run["outcome"]);
        let cost = &figures["cost"];
        let count = |key: &str| cost[key].as_u64().unwrap_or(0);
        ensure!(count("commands") > 100, "{what}: {cost}");
        ensure!(
            count("vcpu_time") > 0 && count("io_time") > 0,
            "{what}: {cost}"
        );
        // With shadow doorbells none of them leaves the guest, but for the queues' first ones.
        ensure!(
            count("doorbell_exits") < count("commands") / 10,
            "{what}: {cost}"
        );
        let seconds = figures["read"]["series"].as_array().map_or(0, Vec::len);
        ensure!(seconds > 0, "{what}: not told second by second");
    }
    for setting in results["settings"].as_array().context("no settings")? {
        let system = &setting["system"];
        ensure!(system["device"] == "/dev/nvme0n1", "{system}");
        ensure!(system["bytes"] == 32 << 20, "{system}");
    }
    let page = fs::read_to_string(out.join("index.html"))?;
    let Some(browser) = browser::find() else {
        println!("linux::{NAME}: skipped: no chromium in PATH to open the page with");
        return Ok(());
    };
    let drawn = browser::look(&browser, &page)?;
    ensure!(drawn.faults.is_empty(), "{:#?}", drawn.faults);
    // A comparison of four figures; three loads with five pictures each; four times three of a job.
    let count = drawn.charts.len();
    ensure!(count == 4 + 3 * 5 + 4 * 3, "{:#?}", drawn.charts);
    let broken = page.replacen(" d=\"M", " d=\"\" data-was=\"M", usize::MAX);
    let faults = browser::look(&browser, &broken)?.faults;
    ensure!(!faults.is_empty(), "pictures without lines pass");
    println!("linux::{NAME}: {count} pictures drawn");
    Ok(())
}
