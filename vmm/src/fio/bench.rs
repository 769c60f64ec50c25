//! A run of `berth fio`: everything in turn, and what is told of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use super::job::{JobFile, Phase};
use super::private::Folder;
use super::progress::Progress;
use super::results::{self, Outcome, Results, SCHEMA, VERSION};
use super::session::{Done, Interrupted, Launch, Session};
use super::targets::{self, Target};
use super::{FioConfig, chart, machines, page, store, tool};
use crate::control::plain;
use crate::signals::Signals;
use crate::stderr;

/// What runs in guests, and on the host.
const SCRIPT: &str = include_str!("guest.sh");
/// Where it is in guests, with the phases beside it.
const GUEST_FOLDER: &str = "/berth-fio";
/// What is in the folder of one run: the job files, and the machine's description.
const JOBS: &str = "jobs";
const MACHINE: &str = "machine.toml";

/// A run of `berth fio`.
pub struct Bench<'c> {
    config: &'c FioConfig,
    files: Vec<JobFile>,
    targets: Vec<Target>,
    old: Option<Results>,
    results: Results,
    session: Session,
    folder: Folder,
}

impl<'c> Bench<'c> {
    /// Finds out everything that can go wrong before anything runs.
    ///
    /// # Errors
    /// It is wrong.
    pub fn new(config: &'c FioConfig) -> anyhow::Result<Self> {
        let signals = Signals::block().context("cannot watch signals")?;
        let old = config.compare.as_deref().map(Results::read).transpose();
        let old = old.context("--compare")?;
        let fio = tool::version()?;
        let folder = Folder::new().context("cannot make a folder for temporary files")?;
        let mut files = Vec::new();
        for path in &config.jobs {
            let file = JobFile::read(path, &config.set, &config.only)?;
            tool::check(&file, folder.path())?;
            files.push(file);
        }
        let missing = |name: &&String| files.iter().all(|file| !file.has(name));
        if let Some(name) = config.only.iter().find(missing) {
            bail!("--section {name}: no job of that name is in the job files");
        }
        distinct(&mut files);
        let targets = targets::targets(config, &files)?;
        store::prepare_out(&config.out)?;
        let rounds = usize::try_from(config.repeat).unwrap_or(usize::MAX);
        let phases: usize = files.iter().map(|file| file.phases.len()).sum();
        let progress = Progress::new(phases * targets.len() * rounds);
        let results = Results {
            schema: SCHEMA.to_owned(),
            version: VERSION,
            name: config
                .name
                .clone()
                .unwrap_or_else(|| store::name_of(&config.out)),
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            berth: env!("CARGO_PKG_VERSION").to_owned(),
            fio,
            arguments: config.arguments.clone(),
            host: results::host(),
            settings: targets
                .iter()
                .map(|target| target.setting.clone())
                .collect(),
            runs: Vec::new(),
        };
        Ok(Self {
            config,
            files,
            targets,
            old,
            results,
            session: Session::new(Some(signals), progress).context("cannot start a thread")?,
            folder,
        })
    }

    /// Runs everything, prints the tables and returns the exit status.
    ///
    /// # Errors
    /// A run could not be prepared. What ran before is printed and written all the same.
    pub fn run(&mut self) -> anyhow::Result<u8> {
        self.warn_of_writes();
        let end = self.run_all();
        self.session.progress.clear();
        let written = self.write();
        let printed = crate::cli::print(&page::text(&self.results, self.old.as_ref()));
        match &written {
            Ok(()) => {
                let page = self.config.out.join("index.html");
                stderr::say(format_args!("berth fio: {}", page.display()));
            }
            Err(error) => stderr::say(format_args!("berth fio: {error:#}")),
        }
        printed.context("standard output")?;
        if let Err(Interrupted(signal)) = end? {
            stderr::say(format_args!(
                "berth fio: ended by signal {signal}; what ran is kept"
            ));
            return Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX));
        }
        let failed = self.results.failures().count();
        if failed > 0 {
            let all = self.results.runs.len();
            stderr::say(format_args!("berth fio: {failed} of {all} runs failed"));
        }
        Ok(u8::from(failed > 0 || written.is_err()))
    }

    /// Rounds take turns, so that what drifts on the host is the same for all.
    fn run_all(&mut self) -> anyhow::Result<Result<(), Interrupted>> {
        for round in 1..=self.config.repeat {
            for target in 0..self.targets.len() {
                for file in 0..self.files.len() {
                    if let Err(interrupted) = self.run_file(round, target, file)? {
                        return Ok(Err(interrupted));
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// One job file in a guest of its own, or on the host.
    fn run_file(
        &mut self,
        round: u32,
        target: usize,
        file: usize,
    ) -> anyhow::Result<Result<(), Interrupted>> {
        let (target, file) = (&self.targets[target], &self.files[file]);
        let place = self.folder.path().join("run");
        prepare_run(&place, file, target).map_err(|error| {
            let place = place.display();
            anyhow::anyhow!("{place}: {}; TMPDIR can be another folder", plain(&error))
        })?;
        let (jobs, machine) = (place.join(JOBS), place.join(MACHINE));
        let socket = place.join("control");
        let berth = std::env::current_exe().context("cannot find berth's own file")?;
        let command = |from: usize| match &target.file {
            Some(path) => on_host(&jobs, path, from, file.phases.len(), &place),
            None => in_guest(&berth, &machine, &socket, &jobs, from, file.phases.len()),
        };
        let launch = Launch {
            command: &command,
            socket: target.file.is_none().then_some(socket.as_path()),
            limit: self.config.limit,
        };
        let (name, repeat) = (target.setting.name.clone(), self.config.repeat);
        let title = |phase: &Phase| {
            let round = if repeat > 1 {
                format!(", round {round}")
            } else {
                String::new()
            };
            format!("{name}, {}{round}", phase.name)
        };
        let (out, old, results) = (&self.config.out, self.old.as_ref(), &mut self.results);
        let mut sink = |progress: &mut Progress, done: Done| {
            let phase = &file.phases[done.phase];
            progress.end(&in_words(&done.outcome));
            let kept = store::keep(out, results, &name, file, phase, round, done);
            // There may be room again when the next job has ended.
            if let Err(error) = kept.and_then(|()| store::write_all(out, results, old)) {
                progress.say(&format!("berth fio: {error:#}"));
            }
        };
        Ok(self.session.run(file, &launch, &title, &mut sink))
    }

    fn write(&self) -> anyhow::Result<()> {
        store::write_all(&self.config.out, &self.results, self.old.as_ref())
    }

    /// A disk image is the user's own.
    fn warn_of_writes(&self) {
        let writing = self.files.iter().filter(|file| file.writes());
        let writing: Vec<&str> = writing.map(|file| file.name.as_str()).collect();
        if writing.is_empty() {
            return;
        }
        let guests = self.targets.iter().filter(|target| target.file.is_none());
        let images = guests.flat_map(|target| machines::namespaces(&target.setting.description));
        let hosts = self.targets.iter().filter_map(|target| target.file.clone());
        let mut images: Vec<PathBuf> = images.flatten().chain(hosts).collect();
        images.sort();
        images.dedup();
        let verb = if writing.len() == 1 {
            "writes"
        } else {
            "write"
        };
        for image in images {
            let jobs = writing.join(", ");
            stderr::say(format_args!(
                "berth fio: {jobs} {verb} to {}",
                image.display()
            ));
        }
    }
}

/// Job files in different folders may have the same name.
fn distinct(files: &mut [JobFile]) {
    for at in 0..files.len() {
        let name = files[at].name.clone();
        let before = files[..at].iter().filter(|file| file.name == name).count();
        if before > 0 {
            files[at].name = format!("{name}-{}", before + 1);
        }
    }
}

/// Makes the folder of one run, with its job files and the machine.
fn prepare_run(place: &Path, file: &JobFile, target: &Target) -> io::Result<()> {
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    let jobs = place.join(JOBS);
    fs::create_dir_all(&jobs)?;
    write_jobs(file, target, &jobs)?;
    fs::write(place.join(MACHINE), &target.setting.description)
}

/// The phases of a file as `guest.sh` expects them.
fn write_jobs(file: &JobFile, target: &Target, folder: &Path) -> io::Result<()> {
    fs::write(folder.join("guest.sh"), SCRIPT)?;
    let path = target.file.as_ref().map(|path| path.display().to_string());
    for (phase, number) in file.phases.iter().zip(0..) {
        let text = phase.text(path.as_deref(), target.direct);
        fs::write(folder.join(format!("{number}.fio")), text)?;
        if path.is_some() || phase.has_place() {
            fs::write(folder.join(format!("{number}.own")), "")?;
        }
        if !phase.writes() {
            fs::write(folder.join(format!("{number}.reads")), "")?;
        }
    }
    Ok(())
}

fn on_host(jobs: &Path, file: &Path, from: usize, count: usize, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg(jobs.join("guest.sh")).arg(jobs).arg(file);
    command.args([from.to_string(), count.to_string()]);
    command.env("TMPDIR", folder);
    command
}

fn in_guest(
    berth: &Path,
    machine: &Path,
    socket: &Path,
    jobs: &Path,
    from: usize,
    count: usize,
) -> Command {
    let mut command = Command::new(berth);
    command.arg("run").arg("--machine").arg(machine);
    command.arg("--control-socket").arg(socket);
    command.args([
        "--with",
        "fio",
        "--with",
        &format!("{}={GUEST_FOLDER}", jobs.display()),
    ]);
    command.args([
        "--",
        "sh",
        &format!("{GUEST_FOLDER}/guest.sh"),
        GUEST_FOLDER,
        "-",
    ]);
    command.args([from.to_string(), count.to_string()]);
    command
}

fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(failure) => {
            let said: Vec<&str> = failure.said.lines().collect();
            let said = said.join("\n  ");
            let what = &failure.what;
            if said.is_empty() {
                format!("FAILED: {what}")
            } else {
                format!("FAILED: {what}\n  {said}")
            }
        }
        Outcome::Done(figures) => {
            let all = figures.directions().map(|(name, it)| {
                // Latencies are far below 2^52 ns. A job may have turned them off.
                let tail = it.percentile(99.0).map(|tail| chart::time(tail as f64));
                let tail = tail.map_or(String::new(), |tail| format!(", 99 % within {tail}"));
                format!("{name} {} IOPS{tail}", chart::short(it.iops))
            });
            all.collect::<Vec<_>>().join("; ")
        }
    }
}
