//! The command line of `berth fio`.

use std::path::PathBuf;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::values::{number, optional_path, path};
use super::{CliError, Invocation};
use crate::fio::{FioConfig, HostRuns, Vary, canonical, is_berths, machines};

const MAX_REPEAT: u32 = 100;
const MAX_LIMIT: u64 = 7 * 24 * 3600;
/// Why guests have no other root.
pub const ROOT: &str = "the guests of \"berth fio\" have a root of their own, of busybox and this host's fio; leave \
                        it out, bring files along with --with and load modules with --module; fio in another root \
                        runs with \"berth run --rootfs FOLDER -- fio JOBFILE\"";

/// Run fio's job files in guests, and report: results.json, results.md and index.html, a page with
/// pictures. A guest is booted for each machine, job file and round, and takes fio from this host. Jobs
/// that name no file work on the guest's first namespace: their writes reach its image.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "fio",
    help_triggers("-h", "--help"),
    usage = "JOBFILE... --out DIR [OPTION...]",
    note = "\
--vary KEY=VALUE,VALUE repeats all with each value of: append, cpus, io-affinity (its values with
colons between them), io-threads, memory, overcommit; of every controller max_ioqpairs, mdts, mqes,
poll-us; of every disk cache, logical_block_size. Two of them make all combinations. What is written in
DIR of a run stays there if a later one fails, or berth fio is ended.",
    example = "\
berth fio depths.fio --out first --disk disk.img
berth fio depths.fio --out second --machine tuned.toml --vary poll-us=0,50 --host --compare first",
    error_code(0, "every job has figures"),
    error_code(1, "a job failed, or berth: a file, fio"),
    error_code(35, "the command line is wrong")
)]
pub struct FioArgs {
    /// folder for the results; one that has some already is refused
    #[argh(option, arg_name = "DIR")]
    out: Option<String>,
    /// what the results are called (the folder's name)
    #[argh(option, arg_name = "NAME")]
    name: Option<String>,
    /// machine description, as for "berth run"; repeatable, each is one setting. Without any, the
    /// machine is what the options below say, with a disk of 256M in memory unless they name one
    #[argh(option, arg_name = "FILE")]
    machine: Vec<String>,
    /// repeat with each of several values, see below; repeatable
    #[argh(option, arg_name = "KEY=VALUES")]
    vary: Vec<String>,
    /// of the job files this job only; repeatable
    #[argh(option, arg_name = "NAME")]
    section: Vec<String>,
    /// option of fio's, in the place of what the job files say; repeatable
    #[argh(option, arg_name = "KEY=VALUE")]
    set: Vec<String>,
    /// run the jobs on the host too, on the file of the machine's disk
    #[argh(switch)]
    host: bool,
    /// run the jobs on the host too, on this file; also --host=FILE
    #[argh(option, arg_name = "FILE")]
    host_file: Option<String>,
    /// run the jobs on the host alone
    #[argh(switch)]
    host_only: bool,
    /// let jobs write to the file of --host-file
    #[argh(switch)]
    allow_write: bool,
    /// earlier results, a folder or its results.json, to be compared with
    #[argh(option, arg_name = "OLD")]
    compare: Option<String>,
    /// rounds of everything, 1 to 100 (1)
    #[argh(option, arg_name = "NUMBER")]
    repeat: Option<String>,
    /// limit for each job; unless given, half as long again as its runtime says, and two minutes
    #[argh(option, arg_name = "SECONDS")]
    limit: Option<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "FILE")]
    kernel: Option<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "TEXT")]
    append: Option<String>,
    /// as for "berth run"
    #[argh(option, short = 'm', arg_name = "SIZE")]
    memory: Option<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "NUMBER")]
    cpus: Option<String>,
    /// as for "berth run"; repeatable
    #[argh(option, arg_name = "FILE")]
    disk: Vec<String>,
    /// as for "berth run"; repeatable
    #[argh(option, arg_name = "DEVICE")]
    device: Vec<String>,
    /// as for "berth run"; repeatable
    #[argh(option, arg_name = "OBJECT")]
    object: Vec<String>,
    /// as for "berth run"; repeatable
    #[argh(option, arg_name = "DRIVE")]
    drive: Vec<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "NUMBER")]
    io_threads: Option<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "CPUS")]
    io_affinity: Option<String>,
    /// as for "berth run"
    #[argh(option, arg_name = "POLICY")]
    overcommit: Option<String>,
    /// as for "berth run"; repeatable
    #[argh(option, arg_name = "FILE")]
    with: Vec<String>,
    /// as for "berth run", for kernels that have NVMe as a module: nvme; repeatable
    #[argh(option, arg_name = "NAME")]
    module: Vec<String>,
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Advice for an option that `berth run` has, where it has no place here.
pub fn advice(given: &str) -> Option<&'static str> {
    let name = given.split_once('=').map_or(given, |(name, _)| name);
    match name.trim_start_matches('-') {
        "rootfs" | "initrd" => Some(ROOT),
        "trace" => {
            Some("is an option of \"berth run\"; it would slow what is measured; leave it out")
        }
        _ => None,
    }
}

/// `--host=FILE` is `--host-file FILE`: an option has a value or none.
pub fn split_host(args: &[String]) -> Vec<String> {
    let split = |arg: &String| match arg.strip_prefix("--host=") {
        Some(file) => format!("--host-file={file}"),
        None => arg.clone(),
    };
    args.iter().map(split).collect()
}

/// Checks all that can be checked before fio and the files are looked at.
///
/// # Errors
/// An option is missing or wrong, or a machine description.
pub fn config(args: FioArgs, given: &[String]) -> Result<Invocation, CliError> {
    let missing = |what, how| CliError::usage(what, format!("is missing; {how}"));
    if args.words.is_empty() {
        return Err(missing(
            "JOBFILE",
            "for example \"berth fio depths.fio --out DIR\"",
        ));
    }
    let out = args.out.clone();
    let out = out.ok_or_else(|| missing("--out", "name a folder for the results, --out DIR"))?;
    let host = host(&args)?;
    if args.host_only && host == HostRuns::Disks {
        return Err(missing(
            "--host=FILE",
            "without guests, the file has to be named, with \"=\"",
        ));
    }
    if let (true, Some(option)) = (args.host_only, for_guests(&args).first()) {
        let problem = "is for guests, and --host-only runs none";
        return Err(CliError::usage(option, problem));
    }
    let vary: Vec<Vary> = args
        .vary
        .iter()
        .map(|it| Vary::parse(it))
        .collect::<Result<_, _>>()?;
    let machines = if args.host_only {
        Vec::new()
    } else {
        let files = args
            .machine
            .iter()
            .map(|file| path("--machine", file.clone()));
        machines(
            &files.collect::<Result<Vec<_>, _>>()?,
            &machine_options(&args),
            &vary,
        )?
    };
    let limit = match &args.limit {
        Some(limit) => Some(number("--limit", Some(limit), 1, MAX_LIMIT, 1)?),
        None => None,
    };
    Ok(Invocation::Fio(Box::new(FioConfig {
        jobs: args.words.iter().map(PathBuf::from).collect(),
        out: path("--out", out)?,
        machines,
        only: args.section.clone(),
        set: args
            .set
            .iter()
            .map(|it| set(it))
            .collect::<Result<_, _>>()?,
        host,
        compare: optional_path("--compare", args.compare)?,
        repeat: number("--repeat", args.repeat.as_deref(), 1, MAX_REPEAT, 1)?,
        name: args.name,
        limit: limit.map(Duration::from_secs),
        arguments: given.to_vec(),
    })))
}

fn host(args: &FioArgs) -> Result<HostRuns, CliError> {
    match &args.host_file {
        Some(file) => Ok(HostRuns::File {
            path: path("--host=FILE", file.clone())?,
            writable: args.allow_write,
        }),
        None if args.allow_write => {
            let problem = "is for the file of --host=FILE; guests write to their disks anyway";
            Err(CliError::usage("--allow-write", problem))
        }
        None if args.host || args.host_only => Ok(HostRuns::Disks),
        None => Ok(HostRuns::No),
    }
}

/// Options that say what guests there are.
fn for_guests(args: &FioArgs) -> Vec<String> {
    let option = |name: &'static str| move |value: &String| format!("{name} {value}");
    let machines = args.machine.iter().map(option("--machine"));
    let vary = args.vary.iter().map(option("--vary"));
    machines.chain(vary).chain(machine_options(args)).collect()
}

/// What of the options describes a machine, for `berth run`.
fn machine_options(args: &FioArgs) -> Vec<String> {
    let single = [
        ("--kernel", &args.kernel),
        ("--append", &args.append),
        ("--memory", &args.memory),
        ("--cpus", &args.cpus),
        ("--io-threads", &args.io_threads),
        ("--io-affinity", &args.io_affinity),
        ("--overcommit", &args.overcommit),
    ];
    let repeated = [
        ("--disk", &args.disk),
        ("--object", &args.object),
        ("--drive", &args.drive),
        ("--device", &args.device),
        ("--with", &args.with),
        ("--module", &args.module),
    ];
    let single = single
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let repeated = repeated
        .into_iter()
        .flat_map(|(name, all)| all.iter().map(move |it| (name, it)));
    // Joined, for a value may look like an option.
    single
        .chain(repeated)
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn set(argument: &str) -> Result<(String, String), CliError> {
    let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
    if key.trim().is_empty() || argument.contains(['\n', '[', ']']) {
        let problem = "must be KEY=VALUE, an option of a job file";
        return Err(CliError::usage(format!("--set {argument}"), problem));
    }
    let key = canonical(key);
    if is_berths(&key) {
        let problem = "berth fio has fio tell its figures in its own way; leave it out";
        return Err(CliError::usage(format!("--set {argument}"), problem));
    }
    Ok((key, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::refused;
    use super::ROOT;

    #[test]
    fn what_has_no_place_is_refused() {
        refused(
            35,
            &[
                (
                    "fio a.fio --out o --rootfs DIR",
                    &format!("--rootfs: {ROOT}"),
                ),
                (
                    "fio a.fio --out o -rootfs=DIR",
                    &format!("-rootfs=DIR: {ROOT}"),
                ),
                ("fio a.fio --out o --initrd x", &format!("--initrd: {ROOT}")),
                (
                    "fio a.fio --out o --trace x",
                    "--trace: is an option of \"berth run\"; it would slow what is measured; leave it out",
                ),
                (
                    "fio a.fio --out o --com2 x",
                    "--com2: unknown option; see \"berth fio --help\"",
                ),
                (
                    "fio a.fio --out o --host-only --host=x --vary cpus=1,2",
                    "--vary cpus=1,2: is for guests, and --host-only runs none",
                ),
                (
                    "fio a.fio --out o --host-only --host=x -m 1G",
                    "--memory=1G: is for guests, and --host-only runs none",
                ),
                (
                    "fio a.fio --out o --host=",
                    "--host=FILE: the path is empty",
                ),
                (
                    "fio a.fio --out o --host-only --host x",
                    "--host=FILE: is missing; without guests, the file has to be named, with \"=\"",
                ),
                (
                    "fio a.fio --out o --host-only --host=x --set log_avg_msec=1",
                    "--set log_avg_msec=1: berth fio has fio tell its figures in its own way; leave it out",
                ),
            ],
        );
    }
}
