//! fio's job files: what is in them, and the part of one that runs at a time.
//!
//! A file is taken apart as fio does it (HOWTO, "Job file format"): `[global]` sections apply to the
//! jobs below them, `include` is read in place, `${NAME}` is the environment's, and a job with `stonewall`
//! waits for those before it. Jobs that run together are a [`Phase`]; each phase becomes a job file of
//! its own, so that it can be measured alone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::plain;
use crate::grammar::parse_size;

/// Larger files are no job files.
const MAX_BYTES: u64 = 1 << 20;
/// How deep files may include each other.
const MAX_INCLUDES: usize = 8;
/// Engines that have one I/O out at a time, whatever `iodepth` says.
const SYNCHRONOUS: [&str; 8] = [
    "sync",
    "psync",
    "vsync",
    "pvsync",
    "pvsync2",
    "mmap",
    "falloc",
    "ftruncate",
];
/// Options by which a job says where its files are.
const PLACES: [&str; 5] = [
    "filename",
    "directory",
    "filename_format",
    "opendir",
    "nrfiles",
];
/// fio's second names of options that are looked at here.
const ALIASES: [(&str, &str); 4] = [
    ("readwrite", "rw"),
    ("blocksize", "bs"),
    ("timeout", "runtime"),
    ("wait_for_previous", "stonewall"),
];

/// Engines that change a file whatever `rw` says.
const CHANGING: [&str; 2] = ["falloc", "ftruncate"];
/// Engines and options that are no I/O on the one file that the host has for jobs, and why.
const NOT_ON_HOST: [(&str, &str); 7] = [
    ("filecreate", "makes files"),
    ("filedelete", "deletes the file"),
    ("dircreate", "makes folders"),
    ("dirdelete", "deletes folders"),
    ("unlink", "deletes the file"),
    ("unlink_each_loop", "deletes the file"),
    ("read_iolog", "works on the files that the log names"),
];
/// Options by which `guest.sh` has fio tell what is measured. With others of a job's own the figures would
/// be of something else: of a tenth of a second, of one process, in another file.
const TELLING: [&str; 19] = [
    "write_iops_log",
    "write_bw_log",
    "write_lat_log",
    "write_hist_log",
    "log_avg_msec",
    "log_hist_msec",
    "log_max_value",
    "log_window_value",
    "log_offset",
    "log_prio",
    "log_unix_epoch",
    "log_alternate_epoch",
    "log_compression",
    "log_store_compressed",
    "per_job_logs",
    "group_reporting",
    "lat_percentiles",
    "clat_percentiles",
    "slat_percentiles",
];
/// Longest time of a job that is believed: 10 years. Its limit is made of it.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Options by name; a flag has an empty value.
pub type Options = BTreeMap<String, String>;

/// Why a job file cannot be used. Starts with its path.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct JobError {
    path: PathBuf,
    problem: String,
}

/// A job file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name without folder and `.fio`.
    pub name: String,
    /// What runs together, in order; at least one.
    pub phases: Vec<Phase>,
}

/// Jobs that run at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The names of the jobs, joined with `+`.
    pub name: String,
    /// Options of the jobs, `[global]` ones included; where jobs differ, their values joined with `+`.
    pub options: Options,
    /// I/Os that may be out at a time, of all jobs together.
    pub depth: u32,
    /// What each of the jobs does.
    jobs: Vec<Options>,
    sections: Vec<Section>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    name: String,
    options: Vec<(String, String)>,
}

impl Section {
    /// As fio takes it: whatever begins so is a global section.
    fn is_global(&self) -> bool {
        self.name.starts_with("global")
    }

    fn is_set(&self, option: &str) -> bool {
        let all = self.options.iter();
        let last = all.rev().find(|(key, _)| key == option);
        last.is_some_and(|(_, value)| value != "0")
    }
}

impl JobFile {
    /// Reads the file at `path`, with the options `set` in the place of its own; of its jobs those that
    /// `only` names, or all if it names none.
    ///
    /// # Errors
    /// It cannot be read, or has no such job.
    pub fn read(path: &Path, set: &[(String, String)], only: &[String]) -> Result<Self, JobError> {
        let mut reader = Reader::default();
        reader.read(path, 0)?;
        let mut sections = reader.sections;
        let names = job_names(&sections);
        if !only.is_empty() {
            sections.retain(|section| section.is_global() || only.contains(&section.name));
        }
        if !set.is_empty() {
            replace(&mut sections, set);
        }
        let phases = phases(&sections);
        if phases.is_empty() {
            let problem = match only {
                [] => "has no job, a section such as [randread]".to_owned(),
                missing => {
                    let missing = missing.join(", ");
                    format!("has none of the jobs {missing}; it has {names}")
                }
            };
            return Err(error(path, problem));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            path: path.to_owned(),
            name: name.into_owned(),
            phases,
        })
    }

    /// Whether it has a job of that name, of those that were chosen.
    pub fn has(&self, name: &str) -> bool {
        let all = self.phases.iter().flat_map(|phase| &phase.sections);
        all.into_iter()
            .any(|section| !section.is_global() && section.name == name)
    }

    /// Whether a job of it may write or discard what is on its disk.
    pub fn writes(&self) -> bool {
        self.phases.iter().any(Phase::writes)
    }
}

impl Phase {
    /// Whether one of its jobs says by itself on which file or device it works.
    pub fn has_place(&self) -> bool {
        let names = |job: &Options| PLACES.iter().any(|place| job.contains_key(*place));
        self.jobs.iter().any(names)
    }

    /// Whether one of its jobs may write or discard what is on its disk.
    pub fn writes(&self) -> bool {
        self.jobs.iter().any(|job| {
            let rw = direction(job);
            !matches!(rw, "read" | "randread") || CHANGING.contains(&engine(job))
        })
    }

    /// What of its jobs must not run on the host's file, and what it does there.
    pub fn unfit_for_host(&self) -> Option<(&'static str, &'static str)> {
        let does = |job: &Options, name: &str| {
            engine(job) == name || job.get(name).is_some_and(|value| value != "0")
        };
        let unfit = |(name, _): &(&str, &str)| self.jobs.iter().any(|job| does(job, name));
        NOT_ON_HOST.into_iter().find(unfit)
    }

    /// How long its jobs say that they take; `None` if they end when their work is done.
    pub fn duration(&self) -> Option<Duration> {
        let of = |job: &Options| {
            let runtime = time(job.get("runtime")?).filter(|time| !time.is_zero())?;
            let more = ["ramp_time", "startdelay"].into_iter();
            let more = more.filter_map(|key| time(job.get(key)?));
            Some(runtime.saturating_add(more.fold(Duration::ZERO, Duration::saturating_add)))
        };
        let all: Option<Vec<Duration>> = self.jobs.iter().map(of).collect();
        all?.into_iter().max().map(|all| all.min(MAX_TIME))
    }

    /// As a job file of its own. With `file`, its jobs work on that file instead of what they say, and
    /// `direct` replaces what they say about `direct`.
    pub fn text(&self, file: Option<&str>, direct: Option<bool>) -> String {
        let mut text = String::new();
        let dropped = |key: &str| {
            TELLING.contains(&key)
                || (file.is_some() && PLACES.contains(&key))
                || (direct.is_some() && key == "direct")
        };
        // Writing to a string does not fail.
        if let Some(file) = file {
            // What fio takes for a separator of files.
            let _ = writeln!(text, "[global]\nfilename={}", file.replace(':', "\\:"));
        }
        if let Some(direct) = direct {
            let _ = writeln!(text, "[global]\ndirect={}", u8::from(direct));
        }
        for section in &self.sections {
            let _ = writeln!(text, "[{}]", section.name);
            for (key, value) in section.options.iter().filter(|(key, _)| !dropped(key)) {
                let _ = match value.as_str() {
                    "" => writeln!(text, "{key}"),
                    value => writeln!(text, "{key}={value}"),
                };
            }
        }
        text
    }
}

/// What a job does to its disk, by fio's name: `randread`.
pub fn direction(options: &Options) -> &str {
    let rw = options.get("rw").map_or("read", String::as_str);
    // `randread:8` changes the offset every 8 I/Os.
    match rw.split(':').next().unwrap_or_default() {
        "readwrite" => "rw",
        rw => rw,
    }
}

fn engine(options: &Options) -> &str {
    options.get("ioengine").map_or("psync", String::as_str)
}

/// `iodepth` where the engine has one.
fn depth(options: &Options) -> u32 {
    if SYNCHRONOUS.contains(&engine(options)) {
        return 1;
    }
    count(options, "iodepth")
}

fn count(options: &Options, key: &str) -> u32 {
    // fio takes `1k`, too.
    let size = |value: &String| parse_size(&value.to_ascii_uppercase()).ok();
    let value = options.get(key).and_then(size).unwrap_or(1);
    u32::try_from(value).unwrap_or(u32::MAX).max(1)
}

/// What an option is that is not given, where that is known.
fn default(key: &str) -> &'static str {
    match key {
        "bs" => "4k",
        "rw" => "read",
        "ioengine" => "psync",
        "iodepth" | "numjobs" => "1",
        _ => "",
    }
}

/// The options of jobs that run together as one.
fn together(jobs: &[Options]) -> Options {
    let mut all = Options::new();
    for key in jobs.iter().flat_map(Options::keys) {
        let value = |job: &'_ Options| job.get(key).cloned().unwrap_or(default(key).into());
        let mut values: Vec<String> = jobs.iter().map(value).collect();
        values.dedup();
        all.insert(key.clone(), values.join("+"));
    }
    all
}

/// Whether `berth fio` needs the option for itself.
pub fn is_berths(key: &str) -> bool {
    TELLING.contains(&key)
}

/// A time of fio's: `30`, `30s`, `1m`, `500ms`.
fn time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = |unit: u64| Some(Duration::from_secs(number.checked_mul(unit)?));
    match unit.trim().to_ascii_lowercase().as_str() {
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        "ms" => Some(Duration::from_millis(number)),
        "us" => Some(Duration::from_micros(number)),
        _ => None,
    }
}

/// The first names of jobs, for people.
fn job_names(sections: &[Section]) -> String {
    const SHOWN: usize = 20;
    let jobs = sections.iter().filter(|section| !section.is_global());
    let names: Vec<&str> = jobs.map(|section| section.name.as_str()).collect();
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

fn error(path: &Path, problem: impl Into<String>) -> JobError {
    JobError {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

/// Takes the options out of all sections and puts their new values in front, for all jobs.
fn replace(sections: &mut Vec<Section>, set: &[(String, String)]) {
    for section in sections.iter_mut() {
        let options = &mut section.options;
        options.retain(|(key, _)| set.iter().all(|(other, _)| other != key));
    }
    let first = Section {
        name: "global".into(),
        options: set.to_vec(),
    };
    sections.insert(0, first);
}

/// Groups jobs that run together, each group with the global sections above it.
fn phases(sections: &[Section]) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut globals: Vec<Section> = Vec::new();
    let mut global = Options::new();
    for section in sections {
        if section.is_global() {
            global.extend(section.options.iter().cloned());
            globals.push(section.clone());
            continue;
        }
        let mut options = global.clone();
        options.extend(section.options.iter().cloned());
        let walls = globals.iter().any(|section| section.is_set("stonewall"));
        let walls = walls || section.is_set("stonewall");
        match phases.last_mut() {
            Some(phase) if !walls => phase.add(section, options),
            _ => phases.push(Phase::new(&globals, section, options)),
        }
    }
    for phase in &mut phases {
        phase.options = together(&phase.jobs);
    }
    phases
}

impl Phase {
    fn new(globals: &[Section], section: &Section, options: Options) -> Self {
        let mut phase = Self {
            name: String::new(),
            options: Options::new(),
            depth: 0,
            jobs: Vec::new(),
            sections: globals.to_vec(),
        };
        phase.add(section, options);
        phase
    }

    fn add(&mut self, section: &Section, options: Options) {
        if !self.name.is_empty() {
            self.name.push('+');
        }
        self.name += &section.name;
        let out = depth(&options).saturating_mul(count(&options, "numjobs"));
        self.depth = self.depth.saturating_add(out);
        self.jobs.push(options);
        self.sections.push(section.clone());
    }
}

/// Puts files together.
#[derive(Default)]
struct Reader {
    sections: Vec<Section>,
}

impl Reader {
    fn read(&mut self, path: &Path, level: usize) -> Result<(), JobError> {
        let failed = |problem: std::io::Error| error(path, plain(&problem));
        let found = fs::metadata(path).map_err(failed)?;
        if !found.is_file() || found.len() > MAX_BYTES {
            let problem = "is no job file, which is a regular file of at most 1 MiB; a file for jobs on the \
                           host is given with \"=\", --host=FILE";
            return Err(error(path, problem));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        for (line, number) in text.lines().zip(1..) {
            self.line(path, number, line, level)?;
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, number: u32, line: &str, level: usize) -> Result<(), JobError> {
        let wrong = |problem: &str| error(path, format!("line {number}: {problem}"));
        // A comment may follow an option.
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        if line.is_empty() {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest
                .strip_suffix(']')
                .ok_or_else(|| wrong("\"]\" is missing"))?;
            self.sections.push(Section {
                name: name.to_owned(),
                options: Vec::new(),
            });
            return Ok(());
        }
        let include = line.strip_prefix("include");
        if let Some(other) = include.filter(|rest| rest.starts_with([' ', '\t'])) {
            if level == MAX_INCLUDES {
                return Err(wrong("files include each other without an end"));
            }
            let other = Path::new(other.trim());
            // fio looks beside the file first.
            let beside = path.parent().unwrap_or(Path::new("")).join(other);
            let found = if beside.exists() { &beside } else { other };
            return self.read(found, level + 1);
        }
        let section = self.sections.last_mut();
        let section = section.ok_or_else(|| wrong("an option outside of a [section]"))?;
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        section
            .options
            .push((canonical(key), substituted(value.trim())));
        Ok(())
    }
}

/// The name that is looked for here.
pub fn canonical(key: &str) -> String {
    let key = key.trim().to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    alias.map_or(key, |(_, name)| (*name).to_owned())
}

/// `${NAME}` as the environment has it. What it has not is left to fio, which complains.
fn substituted(value: &str) -> String {
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, behind)) = rest.split_once("${") {
        text += before;
        let Some((name, after)) = behind.split_once('}') else {
            rest = &rest[before.len()..];
            break;
        };
        match std::env::var(name) {
            Ok(value) => text += &value,
            Err(_) => {
                let _ = write!(text, "${{{name}}}");
            }
        }
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn read(text: &str, set: &[(&str, &str)]) -> Result<JobFile, JobError> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("load.fio");
        fs::write(&path, text).unwrap();
        fs::write(dir.path().join("more.inc"), "bs=16k\n").unwrap();
        let set: Vec<_> = set
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect();
        JobFile::read(&path, &set, &[])
    }

    #[test]
    fn jobs_are_chosen_by_name() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("load.fio");
        fs::write(&path, "[global]\nrw=read\n[a]\nbs=1k\n[b]\nstonewall\n").unwrap();
        let read = |only: &str| JobFile::read(&path, &[], &[only.to_owned()]);
        let file = read("b").unwrap();
        assert_eq!(file.phases.len(), 1);
        assert_eq!(
            file.phases[0].text(None, None),
            "[global]\nrw=read\n[b]\nstonewall\n"
        );
        let error = read("c").unwrap_err().to_string();
        assert!(
            error.ends_with("load.fio: has none of the jobs c; it has a, b"),
            "{error}"
        );
    }

    #[test]
    fn jobs_with_a_stonewall_wait_for_those_before() {
        let file = read(
            "; first\n[global]\nIOENGINE = io_uring ; a comment\nruntime=2\nramp_time=500ms\n\
             [a]\nreadwrite=randread:8\niodepth=4\nnumjobs=2\n[b]\nrw=randread\niodepth=3\n\
             [global]\niodepth=32\n[c]\nwait_for_previous\nrw=write\ninclude\tmore.inc\n",
            &[],
        )
        .unwrap();
        let names: Vec<_> = file
            .phases
            .iter()
            .map(|phase| phase.name.as_str())
            .collect();
        assert_eq!((file.name.as_str(), names), ("load", vec!["a+b", "c"]));
        let [first, second] = &file.phases[..] else {
            panic!()
        };
        assert_eq!((first.depth, second.depth), (11, 32));
        assert_eq!((first.writes(), second.writes()), (false, true));
        assert!(file.writes());
        assert_eq!(direction(&first.options), "randread");
        assert_eq!(first.duration(), Some(Duration::from_millis(2500)));
        // The second global section is below the first jobs, and must not reach them.
        assert_eq!(
            first.text(None, None),
            "[global]\nioengine=io_uring\nruntime=2\nramp_time=500ms\n[a]\nrw=randread:8\niodepth=4\n\
             numjobs=2\n[b]\nrw=randread\niodepth=3\n"
        );
        assert!(
            second
                .text(None, None)
                .ends_with("[global]\niodepth=32\n[c]\nstonewall\nrw=write\nbs=16k\n")
        );
    }

    #[test]
    fn a_global_stonewall_makes_every_job_wait() {
        let text = "[global]\nstonewall\nioengine=psync\niodepth=8\n[a]\nrw=trim\n[b]\nloops=3\n";
        let file = read(text, &[]).unwrap();
        assert_eq!(file.phases.len(), 2);
        assert_eq!(file.phases[0].depth, 1, "psync has one I/O out");
        assert!(file.phases[0].writes());
        assert!(!file.phases[1].writes(), "rw is read unless given");
        assert_eq!(file.phases[1].duration(), None);
    }

    #[test]
    fn the_place_and_direct_io_can_be_replaced() {
        let text = "[global]\nfilename=/dev/sda\ndirect=1\n[a]\nrw=read\ndirectory=/x\nnrfiles=3\n";
        let file = read(text, &[]).unwrap();
        assert!(file.phases[0].has_place());
        assert_eq!(
            file.phases[0].text(Some("/a:b"), Some(false)),
            "[global]\nfilename=/a\\:b\n[global]\ndirect=0\n[global]\n[a]\nrw=read\n"
        );
        let free = read("[a]\nrw=read\n", &[]).unwrap();
        assert!(!free.phases[0].has_place());
    }

    #[test]
    fn set_options_win_over_the_files() {
        let text = "[global]\nruntime=30\n[a]\nrw=read\nruntime=40\n";
        let file = read(text, &[("runtime", "1")]).unwrap();
        assert_eq!(file.phases[0].duration(), Some(Duration::from_secs(1)));
        assert_eq!(
            file.phases[0].text(None, None),
            "[global]\nruntime=1\n[global]\n[a]\nrw=read\n"
        );
    }

    #[test]
    fn the_environment_fills_names_that_it_has() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(substituted("a${PATH}b"), format!("a{path}b"));
        for same in ["${BERTH_HAS_NO_SUCH}", "${", "a$b", ""] {
            assert_eq!(substituted(same), same);
        }
    }

    #[test]
    fn jobs_that_run_together_have_the_options_of_all() {
        let text =
            "[global]\nbs=4k\nrw=randread\n[a]\niodepth=4\n[b]\nbs=16k\nrw=write\n[c]\nsync=1\n";
        let options = read(text, &[]).unwrap().phases.remove(0).options;
        let of = |key: &str| options[key].as_str();
        assert_eq!(
            (of("bs"), of("rw")),
            ("4k+16k+4k", "randread+write+randread")
        );
        assert_eq!((of("iodepth"), of("sync")), ("4+1", "+1"));
    }

    #[test]
    fn how_fio_tells_its_figures_is_not_the_jobs() {
        let text = "[global]\nlog_avg_msec=100\nrw=read\n[a]\nwrite_lat_log=mine\nlog_unix_epoch=1\nbs=8k\n";
        let file = read(text, &[]).unwrap();
        assert_eq!(
            file.phases[0].text(None, None),
            "[global]\nrw=read\n[a]\nbs=8k\n"
        );
    }

    #[test]
    fn what_deletes_or_changes_files_is_known() {
        let phase = |text: &str| {
            read(&format!("[a]\nrw=read\n{text}\n"), &[])
                .unwrap()
                .phases
                .remove(0)
        };
        for (text, name) in [
            ("unlink=1", "unlink"),
            ("unlink", "unlink"),
            ("ioengine=filedelete", "filedelete"),
            ("read_iolog=log", "read_iolog"),
        ] {
            assert_eq!(phase(text).unfit_for_host().unwrap().0, name);
        }
        assert_eq!(phase("unlink=0").unfit_for_host(), None);
        assert!(phase("ioengine=ftruncate").writes() && !phase("ioengine=libaio").writes());
    }

    #[test]
    fn depths_have_fios_units() {
        let depth = |text: &str| {
            let text = format!("[a]\nrw=read\nioengine=libaio\n{text}\n");
            read(&text, &[]).unwrap().phases[0].depth
        };
        assert_eq!(depth("iodepth=1k"), 1024);
        assert_eq!(depth("iodepth=0x10\nnumjobs=2"), 32);
        assert_eq!(depth("iodepth=9999999999"), u32::MAX);
        assert_eq!(depth("iodepth=many"), 1);
    }

    #[test]
    fn a_time_without_an_end_is_a_limit_that_clocks_have() {
        let file = read("[a]\nrw=read\nruntime=999999999999d\nramp_time=9h\n", &[]).unwrap();
        let limit = file.phases[0].duration().unwrap();
        assert!(std::time::Instant::now().checked_add(limit * 2).is_some());
    }

    #[test]
    fn mistakes_name_file_and_line() {
        for (text, why) in [
            ("", "load.fio: has no job"),
            ("[global]\nrw=read\n", "load.fio: has no job"),
            ("rw=read\n", "load.fio: line 1: an option outside"),
            ("[a\n", "load.fio: line 1: \"]\" is missing"),
            ("[a]\ninclude none.inc\n", "none.inc: no such file"),
            (
                "[a]\ninclude load.fio\n",
                "load.fio: line 2: files include each other",
            ),
        ] {
            let error = read(text, &[]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn times_have_fios_units() {
        for (text, millis) in [
            ("7", 7000),
            ("7s", 7000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("5ms", 5),
        ] {
            assert_eq!(time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "s", "1y", "99999999999999999999"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }
}
