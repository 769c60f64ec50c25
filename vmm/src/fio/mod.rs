//! `berth fio`: runs fio's jobs in guests, beside each other and beside the host, and reports.
//!
//! A job file runs in a guest of its own for each machine, phase by phase (`guest.sh`); every phase is
//! measured from outside too. What is known is on disk after every phase.

mod chart;
mod child;
mod compare;
mod cost;
mod job;
mod machines;
mod output;
mod page;
mod pictures;
mod private;
mod progress;
mod results;
#[cfg(test)]
mod samples;
mod session;
mod summary;
mod sys;
mod table;
mod tool;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use self::job::{JobFile, Phase};
pub use self::job::{canonical, is_berths};
pub use self::machines::{Machine, Vary, machines};
use self::private::Folder;
use self::progress::Progress;
use self::results::{Outcome, Place, Results, Run, SCHEMA, Setting, VERSION};
use self::session::{Done, Interrupted, Launch, Session};
use crate::control::plain;
use crate::signals::Signals;
use crate::stderr;

/// What runs in guests, and on the host.
const SCRIPT: &str = include_str!("guest.sh");
/// Where it is in guests, with the phases beside it.
const GUEST_FOLDER: &str = "/berth-fio";
/// Name of the host's setting.
const HOST: &str = "host";

/// What `berth fio` was asked for: checked, plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FioConfig {
    /// Job files, at least one.
    pub jobs: Vec<PathBuf>,
    /// Folder for the results.
    pub out: PathBuf,
    /// What the guests are; none if only the host is measured.
    pub machines: Vec<Machine>,
    /// Names of the jobs to run; all if empty.
    pub only: Vec<String>,
    /// Options of fio's that replace the job files'.
    pub set: Vec<(String, String)>,
    /// Whether and where jobs run on the host.
    pub host: HostRuns,
    /// Older results to compare with.
    pub compare: Option<PathBuf>,
    /// Rounds, 1 to 100.
    pub repeat: u32,
    /// What the results are called; the folder's name unless given.
    pub name: Option<String>,
    /// Limit of a phase, instead of one that is made from its runtime.
    pub limit: Option<Duration>,
    /// The arguments as they were given.
    pub arguments: Vec<String>,
}

/// Where jobs run on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostRuns {
    /// Nowhere.
    No,
    /// On the files of the machines' disks.
    Disks,
    /// On this file, which jobs may write if so allowed.
    File {
        /// The file or block device.
        path: PathBuf,
        /// Jobs may write it.
        writable: bool,
    },
}

/// One of the things that are compared, ready to run.
struct Target {
    setting: Setting,
    /// The host's file.
    file: Option<PathBuf>,
    /// What replaces the jobs' `direct`.
    direct: Option<bool>,
}

/// Runs everything and returns the exit status: 0 if every job has figures, 1 if one has none, and for a
/// signal 128 plus its number.
pub fn run(config: &FioConfig) -> u8 {
    match Bench::new(config).and_then(|mut bench| bench.run()) {
        Ok(status) => status,
        Err(error) => {
            stderr::say(format_args!("berth fio: {error:#}"));
            1
        }
    }
}

/// A run of `berth fio`.
struct Bench<'c> {
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
    fn new(config: &'c FioConfig) -> anyhow::Result<Self> {
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
        let targets = targets(config, &files)?;
        prepare_out(&config.out)?;
        let rounds = usize::try_from(config.repeat).unwrap_or(usize::MAX);
        let phases: usize = files.iter().map(|file| file.phases.len()).sum();
        let progress = Progress::new(phases * targets.len() * rounds);
        let results = Results {
            schema: SCHEMA.to_owned(),
            version: VERSION,
            name: config.name.clone().unwrap_or_else(|| name_of(&config.out)),
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

    fn run(&mut self) -> anyhow::Result<u8> {
        self.warn_of_writes();
        let end = self.run_all()?;
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
        if let Err(Interrupted(signal)) = end {
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
        let jobs = place.join("jobs");
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::create_dir_all(&jobs)?;
        write_jobs(file, target, &jobs).context("cannot write the job files")?;
        let machine = place.join("machine.toml");
        fs::write(&machine, &target.setting.description)?;
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
            let kept = keep(out, results, &name, file, phase, round, done);
            // There may be room again when the next job has ended.
            if let Err(error) = kept.and_then(|()| write_all(out, results, old)) {
                progress.say(&format!("berth fio: {error:#}"));
            }
        };
        Ok(self.session.run(file, &launch, &title, &mut sink))
    }

    fn write(&self) -> anyhow::Result<()> {
        write_all(&self.config.out, &self.results, self.old.as_ref())
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

/// The guests, and behind them the host.
fn targets(config: &FioConfig, files: &[JobFile]) -> anyhow::Result<Vec<Target>> {
    let guest = |machine: &Machine| Target {
        setting: Setting {
            name: machine.name.clone(),
            place: Place::Guest,
            description: machine.text.clone(),
            system: None,
            notes: Vec::new(),
        },
        file: None,
        direct: None,
    };
    let mut targets: Vec<Target> = config.machines.iter().map(guest).collect();
    if config.host != HostRuns::No {
        refuse_unfit(files)?;
    }
    let paths = match &config.host {
        HostRuns::No => Vec::new(),
        HostRuns::Disks => disks(&config.machines)?,
        HostRuns::File { path, writable } => {
            if let (false, Some(file)) = (writable, files.iter().find(|file| file.writes())) {
                bail!(
                    "--host={}: {} writes, and what is there would be lost; give --allow-write, or a \
                     file for it",
                    path.display(),
                    file.path.display()
                );
            }
            vec![path.clone()]
        }
    };
    for (path, number) in paths.iter().zip(1..) {
        let name = if number == 1 {
            HOST.to_owned()
        } else {
            format!("{HOST} {number}")
        };
        targets.push(host(path, name)?);
    }
    Ok(targets)
}

/// Refuses jobs that would do more on the host than read and write its file.
fn refuse_unfit(files: &[JobFile]) -> anyhow::Result<()> {
    for file in files {
        for phase in &file.phases {
            if let Some((what, why)) = phase.unfit_for_host() {
                bail!(
                    "--host: {}, job {}: {what} {why}; run it in guests only, or leave it out",
                    file.path.display(),
                    phase.name
                );
            }
        }
    }
    Ok(())
}

/// The file that each machine's only disk is on.
fn disks(machines: &[Machine]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for machine in machines {
        let path = match machines::namespaces(&machine.text).as_slice() {
            [Some(path)] => path.clone(),
            [None] => bail!(
                "--host: the disk of {} is in no file of the host; name one, --host=FILE",
                machine.name
            ),
            _ => bail!(
                "--host: {} has several disks; name a file, --host=FILE",
                machine.name
            ),
        };
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn host(path: &Path, name: String) -> anyhow::Result<Target> {
    let failed = |error: io::Error| anyhow::anyhow!("--host={}: {}", path.display(), plain(&error));
    let path = path.canonicalize().map_err(failed)?;
    // fio would take the part before that for the name, and write to a file of that name.
    if path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .any(|byte| b";#\n".contains(byte))
    {
        bail!(
            "--host={}: fio takes what is behind \";\" or \"#\" for a comment; give the file and its folder \
             another name",
            path.display()
        );
    }
    let direct = sys::takes_direct_io(&path).map_err(failed)?;
    let mut notes = Vec::new();
    if !direct {
        notes.push("direct=0, for the file system has no O_DIRECT".to_owned());
    }
    Ok(Target {
        setting: Setting {
            name,
            place: Place::Host,
            description: path.display().to_string(),
            system: None,
            notes,
        },
        file: Some(path),
        direct: (!direct).then_some(false),
    })
}

/// Makes the folder. One with results in it is somebody's.
fn prepare_out(out: &Path) -> anyhow::Result<()> {
    if out.join(results::FILE).exists() {
        bail!(
            "--out {}: has results already; give another folder",
            out.display()
        );
    }
    let raw = out.join("raw");
    fs::create_dir_all(&raw)
        .map_err(|error| anyhow::anyhow!("--out {}: {}", out.display(), plain(&error)))
}

fn name_of(out: &Path) -> String {
    let name = out.canonicalize().unwrap_or_else(|_| out.to_owned());
    name.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
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

/// Adds what came of a phase to the results.
fn keep(
    out: &Path,
    results: &mut Results,
    setting: &str,
    file: &JobFile,
    phase: &Phase,
    round: u32,
    done: Done,
) -> anyhow::Result<()> {
    let number = results.runs.len() + 1;
    let raw = raw_name(number, &[setting, &file.name, &phase.name]);
    let written = done.raw.map(|text| replace(out, &raw, text.as_bytes()));
    // Its figures are kept even if fio's own output cannot be.
    let raw = Some(raw).filter(|_| matches!(written, Some(Ok(()))));
    if let Some(known) = results.settings.iter_mut().find(|it| it.name == setting)
        && known.system.is_none()
    {
        known.system = done.system;
    }
    results.runs.push(Run {
        setting: setting.to_owned(),
        file: file.name.clone(),
        job: phase.name.clone(),
        round,
        depth: phase.depth,
        options: phase.options.clone(),
        raw,
        outcome: done.outcome,
    });
    written.unwrap_or(Ok(()))
}

/// `raw/003-tuned-load-qd32.json`, of letters that every file system takes.
fn raw_name(number: usize, words: &[&str]) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '=') {
            c
        } else {
            '-'
        }
    };
    let name: String = words.join("-").chars().map(plain).take(120).collect();
    PathBuf::from(format!("raw/{number:03}-{name}.json"))
}

/// Writes all that is made of the results so far.
fn write_all(out: &Path, results: &Results, old: Option<&Results>) -> anyhow::Result<()> {
    replace(out, Path::new(results::FILE), &results.json()?)?;
    let markdown = page::markdown(results, old);
    replace(out, Path::new("results.md"), markdown.as_bytes())?;
    let page = page::html(results, old);
    replace(out, Path::new("index.html"), page.as_bytes())
}

/// Writes a file of the results anew.
fn replace(out: &Path, name: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let path = out.join(name);
    results::replace(&path, bytes)
        .map_err(|error| anyhow::anyhow!("{}: {}", path.display(), plain(&error)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain() {
        let name = raw_name(7, &["tuned poll-us=0", "../x", "a+b\"é"]);
        assert_eq!(name, Path::new("raw/007-tuned-poll-us=0-..-x-a-b--.json"));
        assert_eq!(
            raw_name(1, &[&"x".repeat(500)]).to_str().unwrap().len(),
            4 + 4 + 120 + 5
        );
    }

    #[test]
    fn the_host_has_one_place_for_each_disk() {
        let machine = |name: &str, text: &str| Machine {
            name: name.into(),
            text: text.into(),
        };
        let one = machine("one", "[[disk]]\nfile = 'a.img'\n");
        let same = machine("same", "[[device]]\ndriver = 'nvme-ns'\nfile = 'a.img'\n");
        let memory = machine("mem", "[[device]]\ndriver = 'nvme'\nmemory = '1G'\n");
        let two = machine("two", "[[disk]]\nfile = 'a.img'\n[[disk]]\nnull = '1G'\n");
        assert_eq!(disks(&[one.clone(), same]).unwrap(), [Path::new("a.img")]);
        let refused = |machine| disks(&[one.clone(), machine]).unwrap_err().to_string();
        assert!(refused(memory).contains("the disk of mem is in no file"));
        assert!(refused(two).contains("two has several disks"));
    }
}
