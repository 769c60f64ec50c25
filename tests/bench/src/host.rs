//! fio on the host with the same file: what a guest could reach at best.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::Process;
use serde_json::Value;

use crate::files::Image;
use crate::plan::{Place, Plan};
use crate::sample::Sample;

/// How much longer than its load fio may take.
const EXTRA: Duration = Duration::from_secs(60);

/// One sample for each depth.
///
/// # Errors
/// fio failed.
pub fn fio(plan: &Plan, image: &Image, engine: &str) -> Result<Vec<Sample>> {
    plan.depths
        .iter()
        .map(|depth| {
            let iops = measure(plan, image, engine, *depth)?;
            Ok(Sample {
                iops,
                per_io: BTreeMap::new(),
            })
        })
        .collect()
}

fn measure(plan: &Plan, image: &Image, engine: &str, depth: u32) -> Result<f64> {
    let path = image.path.as_ref().context("fio needs a file")?;
    let limit = Duration::from_millis(plan.ms);
    let done = Process::builder("fio")
        .args(["--name=bench", "--output-format=json", "--time_based"])
        .args(["--norandommap", "--randrepeat=0", "--invalidate=0"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--rw={}", plan.rw))
        .arg(format!("--bs={}", plan.block))
        .arg(format!("--iodepth={depth}"))
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
    let side = if plan.rw.contains("write") {
        "write"
    } else {
        "read"
    };
    let iops = report["jobs"][0][side]["iops"].as_f64().unwrap_or(0.0);
    ensure!(iops > 0.0, "fio {engine} did nothing:\n{}", done.stdout);
    Ok(iops)
}

/// fio may print warnings before its JSON.
fn parse(text: &str) -> Result<Value> {
    let start = text.find('{').context("fio printed no JSON")?;
    serde_json::from_str(&text[start..]).context("fio's JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_before_the_report_are_skipped() {
        let report = parse("fio: a note\n{\"jobs\": []}").unwrap();
        assert!(report["jobs"].is_array());
        assert!(parse("fio: failed").is_err());
    }
}
