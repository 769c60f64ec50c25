//! fio on the host with the same file: what a guest could reach at best.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::Process;
use serde_json::Value;

use crate::files::Image;
use crate::plan::{Place, Plan};
use crate::sample::Sample;

/// How much longer than its load fio may take.
const EXTRA: Duration = Duration::from_secs(60);

/// One sample for each depth. With `batch` it sends so many commands at a time, half of the depth at most.
///
/// # Errors
/// fio failed.
pub fn fio(plan: &Plan, image: &Image, engine: &str, batch: Option<u32>) -> Result<Vec<Sample>> {
    let depths = plan.depths.iter();
    depths
        .map(|depth| measure(plan, image, engine, *depth, batch))
        .collect()
}

fn measure(
    plan: &Plan,
    image: &Image,
    engine: &str,
    depth: u32,
    batch: Option<u32>,
) -> Result<Sample> {
    let path = image.path.as_ref().context("fio needs a file")?;
    let limit = Duration::from_millis(plan.ms);
    let done = Process::builder("fio")
        .args(["--name=bench", "--output-format=json", "--time_based"])
        .args(["--norandommap", "--randrepeat=0", "--invalidate=0"])
        .args(["--group_reporting", &format!("--numjobs={}", plan.pairs)])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--rw={}", plan.rw))
        .arg(format!("--rwmixread={}", plan.mix))
        .arg(format!("--bs={}", plan.block))
        .arg(format!("--iodepth={depth}"))
        .args(batch.map_or_else(Vec::new, |batch| batches(depth, batch)))
        // Without fractions of seconds fio would round down to none.
        .arg(format!("--runtime={}ms", plan.ms))
        .arg(format!("--direct={}", u8::from(image.place == Place::Disk)))
        .run(limit + EXTRA)?;
    ensure!(
        done.exit.success(),
        "fio {engine}: {}\n{}{}",
        done.exit,
        done.stdout,
        done.stderr
    );
    let report = parse(&done.stdout)?;
    sample(&report).with_context(|| format!("fio {engine} did nothing:\n{}", done.stdout))
}

/// fio sends `batch` commands whenever so many have ended.
fn batches(depth: u32, batch: u32) -> Vec<String> {
    let batch = batch.min(depth.div_ceil(2));
    vec![
        format!("--iodepth_batch_submit={batch}"),
        format!("--iodepth_low={}", depth - batch),
    ]
}

/// fio may print warnings before its JSON.
fn parse(text: &str) -> Result<Value> {
    let start = text.find('{').context("fio printed no JSON")?;
    serde_json::from_str(&text[start..]).context("fio's JSON")
}

/// Reads and writes of all jobs together.
fn sample(report: &Value) -> Option<Sample> {
    let job = &report["jobs"][0];
    let sum = |name: &str| -> Option<f64> {
        let sides = ["read", "write"].map(|side| job[side][name].as_f64());
        Some(sides[0]? + sides[1]?)
    };
    let (iops, commands) = (sum("iops")?, sum("total_ios")?);
    if iops <= 0.0 || commands <= 0.0 {
        return None;
    }
    // Percentages of the running time of all jobs, which is in milliseconds.
    let percent = job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?;
    let cpu_us = percent / 100.0 * job["job_runtime"].as_f64()? * 1000.0;
    let mut sample = Sample::new(iops);
    sample.per_io.insert("cpu_us", cpu_us / commands);
    Some(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_batch_leaves_half_of_the_commands_out() {
        assert_eq!(batches(32, 14)[1], "--iodepth_low=18");
        assert_eq!(batches(4, 14)[0], "--iodepth_batch_submit=2");
        // fio takes a low of 0 for none; one command at a time is no batch anyway.
        assert_eq!(batches(1, 14)[1], "--iodepth_low=0");
    }

    #[test]
    fn warnings_before_the_report_are_skipped() {
        let report = parse("fio: a note\n{\"jobs\": []}").unwrap();
        assert!(report["jobs"].is_array());
        assert!(parse("fio: failed").is_err());
    }

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn both_sides_of_a_mixed_load_count() {
        let mut report = json!({ "jobs": [{
            "read": { "iops": 300.0, "total_ios": 600 },
            "write": { "iops": 100.0, "total_ios": 200 },
            "usr_cpu": 10.0, "sys_cpu": 30.0, "job_runtime": 4000,
        }] });
        let found = sample(&report).unwrap();
        assert_eq!(found.iops, 400.0);
        // 40 % of 4 s for 800 commands.
        assert_eq!(found.per_io["cpu_us"], 2000.0);
        report["jobs"][0]["read"]["iops"] = json!(0.0);
        report["jobs"][0]["write"]["iops"] = json!(0.0);
        assert_eq!(sample(&report), None);
    }
}
