//! `berth fio` as its users call it, on the host alone: guests need a kernel, and are tested in
//! `tests/linux`.

// Helpers are test code too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Each test uses its own part.
mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Finished, Process, Stream, TempDir, browser};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Two depths, one behind the other, a second each.
const JOBS: &str = "[global]\nioengine=libaio\nrw=randread\nbs=4k\ntime_based\nruntime=2\nstonewall\n\
                    [one]\niodepth=1\n[four]\niodepth=4\n";

/// A folder on tmpfs with an image and job files.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = harness::scratch_in(Path::new("/dev/shm")).unwrap();
        File::create(dir.path().join("disk.img"))
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        let place = Self { dir };
        place.job("load.fio", JOBS);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn job(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, line: &str) -> harness::process::Builder {
        Process::builder(env!("CARGO_BIN_EXE_berth"))
            .arg("fio")
            .args(line.split_whitespace())
            .current_dir(self.dir.path())
    }

    fn run(&self, line: &str) -> Finished {
        println!("berth fio {line}");
        let done = self.command(line).run(LIMIT).unwrap();
        println!("{}{}", done.stdout, done.stderr);
        done
    }

    fn results(&self, out: &str) -> Value {
        let text = fs::read(self.path(out).join("results.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn page(&self, out: &str) -> String {
        fs::read_to_string(self.path(out).join("index.html")).unwrap()
    }
}

/// Whether fio is there; prints if not.
fn fio() -> bool {
    let there = Command::new("fio").arg("--version").output().is_ok();
    if !there {
        println!("skipped: fio is not in PATH");
    }
    there
}

fn jobs(results: &Value) -> Vec<(&str, bool)> {
    let runs = results["runs"].as_array().unwrap().iter();
    runs.map(|run| {
        (
            run["job"].as_str().unwrap(),
            run["outcome"]["done"].is_object(),
        )
    })
    .collect()
}

#[test]
fn results_tables_and_pictures_come_of_a_job_file() {
    if !fio() {
        return;
    }
    let place = Place::new();
    let done = place.run("load.fio --out first --host-only --host=disk.img --name <first>");
    assert_eq!(done.exit.status, Some(0));
    let results = place.results("first");
    assert_eq!(jobs(&results), [("one", true), ("four", true)]);
    assert_eq!(
        (&results["version"], &results["name"]),
        (&1.into(), &"<first>".into())
    );
    let read = &results["runs"][1]["outcome"]["done"]["read"];
    assert!(read["iops"].as_f64().unwrap() > 10.0, "{read}");
    assert!(!read["bins"].as_array().unwrap().is_empty());
    assert!(!read["series"].as_array().unwrap().is_empty());
    assert_eq!(read["percentiles"].as_array().unwrap().len(), 4);
    // fio's own percentiles are there to be compared with.
    let raw = results["runs"][1]["raw"].as_str().unwrap();
    let raw: Value =
        serde_json::from_slice(&fs::read(place.path("first").join(raw)).unwrap()).unwrap();
    let own = &raw["jobs"][0]["read"]["lat_ns"]["percentile"];
    assert_eq!(read["percentiles"][2][1], own["99.000000"], "{own}");
    assert_eq!(read["percentiles"][0][1], own["50.000000"], "{own}");
    for text in [
        done.stdout,
        fs::read_to_string(place.path("first/results.md")).unwrap(),
    ] {
        assert!(
            text.contains("randread 4k, libaio") && text.contains("99.9 %"),
            "{text}"
        );
    }
    assert!(
        done.stderr.contains("[2/2] host, four: read "),
        "{}",
        done.stderr
    );

    let done =
        place.run("load.fio --out second --host-only --host=disk.img --repeat 2 --compare first");
    assert_eq!(done.exit.status, Some(0));
    assert!(
        done.stdout.contains("second beside <first>"),
        "{}",
        done.stdout
    );
    assert!(
        done.stdout.contains("host: load/four, depth 4"),
        "{}",
        done.stdout
    );
    assert_eq!(jobs(&place.results("second")).len(), 4);
    look(&place.page("first"), 4 + 2 * 3);
    look(&place.page("second"), 3 + 4 + 2 * 3);
}

/// Opens the page in a browser: so many pictures, all drawn; and broken, if one is emptied.
fn look(page: &str, count: usize) {
    let Some(browser) = browser::find() else {
        println!("skipped: no chromium in PATH to open the page with");
        return;
    };
    let drawn = browser::look(&browser, page).unwrap();
    assert_eq!(drawn.faults, [""; 0], "{:?}", drawn.charts);
    // On the host there is no picture of doorbells and interrupts.
    assert_eq!(drawn.charts.len(), count, "{:?}", drawn.charts);
    assert!(
        drawn
            .charts
            .iter()
            .all(|chart| chart.lines + chart.bars + chart.marks > 0)
    );
    let start = page.find("class=\"line\"").unwrap();
    let path = start + page[start..].find(" d=\"").unwrap() + 4;
    let end = path + page[path..].find('"').unwrap();
    let broken = format!("{}{}", &page[..path], &page[end..]);
    let faults = browser::look(&browser, &broken).unwrap().faults;
    assert!(
        faults
            .iter()
            .any(|fault| fault.ends_with("a line is empty")),
        "{faults:?}"
    );
}

#[test]
fn a_job_that_fails_is_told_and_others_run() {
    if !fio() {
        return;
    }
    let place = Place::new();
    place.job(
        "bad.fio",
        "[global]\nstonewall\nruntime=1\ntime_based\n[good]\nrw=read\n[bad]\nrw=read\noffset=1g\nsize=4k\n\
         [after]\nrw=read\n",
    );
    let done = place.run("bad.fio --out out --host-only --host=disk.img");
    assert_eq!(done.exit.status, Some(1));
    let results = place.results("out");
    assert_eq!(
        jobs(&results),
        [("good", true), ("bad", false), ("after", true)]
    );
    let failure = &results["runs"][1]["outcome"]["failed"];
    assert!(!failure["what"].as_str().unwrap().is_empty(), "{failure}");
    assert!(
        done.stderr.contains("[2/3] host, bad: FAILED: fio"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("berth fio: 1 of 3 runs failed"),
        "{}",
        done.stderr
    );
    assert!(place.page("out").contains("<h2>Failed</h2>"));
}

#[test]
fn what_cannot_be_written_ends_no_run() {
    if !fio() {
        return;
    }
    let place = Place::new();
    // Nothing can be put in its place, as on a disk that is full.
    fs::create_dir_all(place.path("out/index.html")).unwrap();
    let done = place.run("load.fio --out out --host-only --host=disk.img --set runtime=1");
    assert_eq!(done.exit.status, Some(1));
    let told = done
        .stderr
        .matches("berth fio: out/index.html: is a directory")
        .count();
    assert_eq!(told, 3, "after each job and at the end: {}", done.stderr);
    assert_eq!(jobs(&place.results("out")), [("one", true), ("four", true)]);
    assert!(
        done.stdout.contains("randread 4k, libaio"),
        "{}",
        done.stdout
    );
}

/// Each reads 1,000 times a second, in four processes and then in two different jobs.
const STEADY: &str = "[global]\nioengine=libaio\nrw=randread\nrate_iops=1000\ntime_based\nruntime=3\n\
                      log_avg_msec=100\nwrite_lat_log=mine\nlog_unix_epoch=1\n[same]\nnumjobs=4\n\
                      [a]\nstonewall\nbs=4k\n[b]\nbs=16k\n[dumb]\nstonewall\ngtod_reduce=1\n";

#[test]
fn a_jobs_own_logs_and_groups_do_not_change_the_figures() {
    if !fio() {
        return;
    }
    let place = Place::new();
    place.job("steady.fio", STEADY);
    let done = place.run("steady.fio --out out --host-only --host=disk.img");
    assert_eq!(done.exit.status, Some(0));
    let results = place.results("out");
    for (run, rate) in [(0, 4000.0), (1, 2000.0)] {
        let series = &results["runs"][run]["outcome"]["done"]["read"]["series"];
        let series = series.as_array().unwrap();
        assert!(!series.is_empty());
        for second in series {
            let of = |key: &str| second[key].as_f64().unwrap();
            assert!(of("at") < 60.0, "{second}");
            assert!(of("latency") > 0.0, "{second}");
            // Of ten times as many lines the sum would be ten times as much.
            assert!(of("iops") < rate * 1.5, "{rate}: {series:?}");
        }
    }
    assert!(
        done.stdout.contains("randread 4k+16k, libaio"),
        "{}",
        done.stdout
    );
    assert!(!done.stdout.contains("0 ns") && !done.stderr.contains("0 ns"));
}

#[test]
fn the_file_is_the_one_that_is_named() {
    if !fio() {
        return;
    }
    let place = Place::new();
    place.job("write.fio", "[w]\nrw=write\nsize=64k\ndirectory=/nowhere\n");
    let empty = vec![0; 1 << 20];
    for (name, status) in [("a:b.img", 0), ("c#d.img", 1), ("e;f.img", 1)] {
        fs::write(place.path(name), &empty).unwrap();
        let line = format!("write.fio --out {name}.out --allow-write --host-only --host={name}");
        let done = place.run(&line);
        assert_eq!(done.exit.status, Some(status), "{name}");
        let written = fs::read(place.path(name)).unwrap() != empty;
        assert_eq!(written, status == 0, "{name}");
    }
    for other in ["a", "b.img", "c", "e"] {
        assert!(!place.path(other).exists(), "{other} was made");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    if !fio() {
        return;
    }
    let place = Place::new();
    place.job("write.fio", "[w]\nrw=randwrite\nsize=64k\n");
    place.job("wrong.fio", "[w]\nrw=sideways\n");
    place.job("unlink.fio", "[u]\nrw=read\nunlink=1\n");
    place.job("delete.fio", "[d]\nioengine=filedelete\n");
    fs::create_dir(place.path("taken")).unwrap();
    fs::write(place.path("taken/results.json"), "{}").unwrap();
    let host = "--host-only --host=disk.img";
    for (line, status, why) in [
        (
            "--out out --host-only --host=disk.img",
            35,
            "JOBFILE: is missing",
        ),
        (
            "load.fio --host-only --host=disk.img",
            35,
            "--out: is missing",
        ),
        (
            "load.fio --out out --host-only",
            35,
            "--host=FILE: is missing",
        ),
        (
            "load.fio --out out --allow-write",
            35,
            "--allow-write: is for the file of --host=FILE",
        ),
        (
            &format!("load.fio --out out --repeat 0 {host}"),
            35,
            "--repeat 0: ",
        ),
        (
            &format!("load.fio --out out --set [x] {host}"),
            35,
            "--set [x]: must be KEY=VALUE",
        ),
        (
            &format!("none.fio --out out {host}"),
            1,
            "none.fio: no such file",
        ),
        (
            &format!("wrong.fio --out out {host}"),
            1,
            "wrong.fio: fio refuses it: ",
        ),
        (
            &format!("load.fio --out out --section three {host}"),
            1,
            "load.fio: has none of the jobs three",
        ),
        (
            &format!("load.fio --out out --section one --section fuor {host}"),
            1,
            "--section fuor: no job of that name is in the job files",
        ),
        (
            &format!("disk.img --out out {host}"),
            1,
            "disk.img: is no job file",
        ),
        (
            &format!("load.fio --out taken {host}"),
            1,
            "--out taken: has results already",
        ),
        (
            &format!("load.fio --out out --compare taken {host}"),
            1,
            "holds no results of berth fio",
        ),
        (
            "load.fio --out out --host-only --host=none.img",
            1,
            "--host=none.img: no such file",
        ),
        (
            &format!("unlink.fio --out out --allow-write {host}"),
            1,
            "--host: unlink.fio, job u: unlink deletes the file; ",
        ),
        (
            &format!("delete.fio --out out --allow-write {host}"),
            1,
            "--host: delete.fio, job d: filedelete deletes the file; ",
        ),
        (
            &format!("write.fio --out out {host}"),
            1,
            "--host=disk.img: write.fio writes",
        ),
    ] {
        let done = place.run(line);
        assert_eq!(done.exit.status, Some(status), "{line}");
        assert!(done.stderr.contains(why), "{line}: {}", done.stderr);
        assert!(!place.path("out/results.json").exists(), "{line}");
    }
    let untouched = fs::read(place.path("disk.img")).unwrap();
    assert!(
        untouched.iter().all(|byte| *byte == 0),
        "the image was written"
    );

    let done = place.run(&format!("write.fio --out out --allow-write {host}"));
    assert_eq!(done.exit.status, Some(0));
    assert!(
        done.stderr.contains("berth fio: write writes to "),
        "{}",
        done.stderr
    );
    assert_ne!(fs::read(place.path("disk.img")).unwrap(), untouched);
}

#[test]
fn without_fio_its_package_is_named() {
    let place = Place::new();
    let done = place
        .command("load.fio --out out --host-only --host=disk.img")
        .env("PATH", place.dir.path())
        .run(LIMIT)
        .unwrap();
    assert_eq!(done.exit.status, Some(1));
    assert!(
        done.stderr
            .contains("install it (Debian, Fedora, Arch: package fio)"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_guest_that_dies_is_told_with_berths_status_and_the_host_runs() {
    let busybox = Command::new("busybox").output().is_ok();
    if !fio() || !common::kvm() || !busybox {
        println!("skipped: needs fio, busybox and /dev/kvm");
        return;
    }
    let place = Place::new();
    let guest = common::Guest::new(&common::TRIPLE_FAULT);
    let kernel = guest.directory.path().join("guest.elf");
    let line = format!(
        "load.fio --out out --host --set runtime=1 -m 256M --disk disk.img --kernel {}",
        kernel.display()
    );
    let done = place.run(&line);
    assert_eq!(done.exit.status, Some(1));
    let results = place.results("out");
    let expected = [
        ("one", false),
        ("four", false),
        ("one", true),
        ("four", true),
    ];
    assert_eq!(jobs(&results), expected);
    let failure = &results["runs"][0]["outcome"]["failed"];
    assert_eq!(failure["berth"], 255, "{failure}");
    let said = "the guest did not get to fio; berth ended with status 255";
    assert_eq!(failure["what"], said);
    assert!(
        failure["said"].as_str().unwrap().contains("guest crashed"),
        "{failure}"
    );
    // What was asked for is in the results.
    let machine = results["settings"][0]["description"].as_str().unwrap();
    assert!(
        machine.contains("memory = \"256M\"") && machine.contains("disk.img"),
        "{machine}"
    );
}

/// Processes whose arguments name the image.
fn processes(image: &Path) -> usize {
    let image = image.to_str().unwrap();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|it| fs::read(it.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(image))
        .count()
}

#[test]
fn ctrl_c_leaves_what_is_there_and_no_process() {
    if !fio() {
        return;
    }
    let place = Place::new();
    place.job(
        "long.fio",
        &JOBS.replace("[four]\n", "[four]\nruntime=1000\n"),
    );
    let tmp = place.path("tmp");
    fs::create_dir(&tmp).unwrap();
    let image = place.path("disk.img");
    let line = format!("long.fio --out out --host-only --host={}", image.display());
    let running = place.command(&line).env("TMPDIR", &tmp).spawn().unwrap();
    running
        .wait_for(Stream::Stderr, "the second job's status", LIMIT, |line| {
            line.starts_with("[2/2] host, four: [")
        })
        .unwrap();
    assert!(processes(&image) > 1, "fio does not run");
    running.signal(libc::SIGINT);
    let done = running.finish(LIMIT).unwrap();
    assert_eq!(done.exit.status, Some(130), "{}", done.stderr);
    assert_eq!(jobs(&place.results("out")), [("one", true)]);
    assert!(place.path("out/index.html").exists());
    let start = Instant::now();
    while processes(&image) > 0 {
        assert!(start.elapsed() < LIMIT, "a process is left");
    }
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "files are left");
}

#[test]
fn ctrl_c_ends_the_guest_too() {
    let busybox = Command::new("busybox").output().is_ok();
    if !fio() || !common::kvm() || !busybox {
        println!("skipped: needs fio, busybox and /dev/kvm");
        return;
    }
    let place = Place::new();
    let guest = common::Guest::new(&common::HALT);
    let kernel = guest.directory.path().join("guest.elf");
    let line = format!("load.fio --out out -m 256M --kernel {}", kernel.display());
    // Where its guest's description and control socket are.
    let tmp = place.path("tmp");
    fs::create_dir(&tmp).unwrap();
    let running = place.command(&line).env("TMPDIR", &tmp).spawn().unwrap();
    let control = || {
        let folders = fs::read_dir(&tmp).unwrap().flatten();
        folders
            .map(|it| it.path().join("run/control"))
            .any(|socket| socket.exists())
    };
    let start = Instant::now();
    while !control() {
        assert!(
            start.elapsed() < LIMIT && running.try_exit().is_none(),
            "no guest runs"
        );
    }
    assert!(processes(&tmp) > 0);
    running.signal(libc::SIGINT);
    let done = running.finish(LIMIT).unwrap();
    assert_eq!(done.exit.status, Some(130), "{}", done.stderr);
    assert_eq!(
        (processes(&tmp), fs::read_dir(&tmp).unwrap().count()),
        (0, 0)
    );
    assert_eq!(jobs(&place.results("out")), []);
}

#[test]
fn the_jobs_that_come_with_berth_are_jobs() {
    if !fio() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/jobs");
    let mut names = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        let done = Command::new("fio")
            .arg("--parse-only")
            .arg(&file)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}: {}",
            file.display(),
            String::from_utf8_lossy(&done.stderr)
        );
        names.push(file.file_name().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["canonical.fio", "depths.fio"]);
}
