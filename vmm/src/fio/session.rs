//! Runs the phases of a job file one after the other, and deals with what goes wrong.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::child::{Event, Message, Running};
use super::cost::Look;
use super::job::{JobFile, Phase};
use super::output::{Logs, OutputError, figures};
use super::progress::{Progress, Status};
use super::results::{Failure, Figures, Outcome, System};
use crate::guest_command::tail::printable;
use crate::signals::Signals;
use crate::terminal;

/// How long a guest may take until fio can be started in it.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How much longer than it says a phase may take, besides half as long again.
const PHASE_SLACK: Duration = Duration::from_secs(120);
/// How long a phase may take that does not say.
const ENDLESS: Duration = Duration::from_secs(3600);
/// How long a guest may take to power off.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const END_LOOK: Duration = Duration::from_millis(20);
/// Messages that wait to be dealt with, some 32 MiB each at most: whoever sends more has to wait, a hostile
/// guest too.
const QUEUE: usize = 8;
/// Lines that are kept of what was said last.
const TAIL: usize = 12;

/// A signal told berth to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(pub i32);

/// What came of a phase.
pub struct Done {
    /// Its number in the file.
    pub phase: usize,
    /// fio's own output.
    pub raw: Option<String>,
    /// The system that it ran in.
    pub system: Option<System>,
    /// Figures, or why there are none.
    pub outcome: Outcome,
}

/// How phases are started.
pub struct Launch<'l> {
    /// The command that runs all phases from this one on.
    pub command: &'l dyn Fn(usize) -> Command,
    /// The control socket of the berth that it is, if it is one.
    pub socket: Option<&'l Path>,
    /// Limit of a phase, instead of one that is made from its runtime.
    pub limit: Option<Duration>,
}

/// Where everything that happens is waited for.
pub struct Session {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    serial: u64,
    /// The line that the user sees.
    pub progress: Progress,
}

/// Why a child is of no more use.
enum End {
    /// It ended, or cannot go on.
    Broken {
        /// It had started the phase.
        started: bool,
        failure: Failure,
    },
    Interrupted(Interrupted),
}

/// What a phase has sent so far.
#[derive(Default)]
struct Phasing {
    before: Option<Look>,
    raw: Option<String>,
    logs: Logs,
}

impl Session {
    /// With the signals that are to end it.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn new(signals: Option<Signals>, progress: Progress) -> io::Result<Self> {
        let (sender, events) = mpsc::sync_channel(QUEUE);
        if let Some(signals) = signals {
            let sender = sender.clone();
            thread::Builder::new()
                .name("signals".into())
                .spawn(move || watch(&signals, &sender))?;
        }
        Ok(Self {
            events,
            sender,
            serial: 0,
            progress,
        })
    }

    /// Runs all phases of `file`. A phase that fails does not keep others from running; `sink` gets each
    /// as it ends, in order.
    ///
    /// # Errors
    /// A signal came. No process is left then.
    pub fn run(
        &mut self,
        file: &JobFile,
        launch: &Launch<'_>,
        title: &dyn Fn(&Phase) -> String,
        sink: &mut dyn FnMut(&mut Progress, Done),
    ) -> Result<(), Interrupted> {
        let mut next = 0;
        while let Some(phase) = file.phases.get(next) {
            self.progress.begin(&title(phase));
            let mut child = match self.start(launch, next) {
                Ok(child) => child,
                Err(failure) => {
                    self.fail_rest(file, next, &failure, title, sink);
                    return Ok(());
                }
            };
            let mut talk = Talk {
                file,
                launch,
                title,
                next,
                system: None,
                tail: VecDeque::new(),
            };
            let end = self.drive(&mut child, &mut talk, sink);
            next = talk.next;
            match end {
                Ok(()) => self.finish(child)?,
                Err(End::Interrupted(interrupted)) => return Err(interrupted),
                Err(End::Broken {
                    started: true,
                    failure,
                }) => {
                    drop(child);
                    sink(&mut self.progress, failed(next, failure));
                    next += 1;
                }
                Err(End::Broken {
                    started: false,
                    failure,
                }) => {
                    drop(child);
                    self.fail_rest(file, next, &failure, title, sink);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of a child whose phases are over, for a limited time. Neither its status nor what
    /// it says tells anything that the phases have not told.
    fn finish(&self, mut child: Running) -> Result<(), Interrupted> {
        let deadline = Instant::now() + END_LIMIT;
        while child.status(END_LOOK).is_none() && Instant::now() < deadline {
            self.next_message(&child, Instant::now() + END_LOOK)?;
        }
        Ok(())
    }

    fn start(&mut self, launch: &Launch<'_>, next: usize) -> Result<Running, Failure> {
        self.serial += 1;
        let command = (launch.command)(next);
        let program = command.get_program().to_string_lossy().into_owned();
        Running::start(command, self.serial, &self.sender).map_err(|error| Failure {
            what: format!("{program} cannot be started: {error}"),
            ..Failure::default()
        })
    }

    /// What keeps one phase from starting keeps them all.
    fn fail_rest(
        &mut self,
        file: &JobFile,
        from: usize,
        failure: &Failure,
        title: &dyn Fn(&Phase) -> String,
        sink: &mut dyn FnMut(&mut Progress, Done),
    ) {
        for (number, phase) in file.phases.iter().enumerate().skip(from) {
            if number > from {
                self.progress.begin(&title(phase));
            }
            sink(&mut self.progress, failed(number, failure.clone()));
        }
    }

    /// Talks with a child until all phases are over.
    fn drive(
        &mut self,
        child: &mut Running,
        talk: &mut Talk<'_>,
        sink: &mut dyn FnMut(&mut Progress, Done),
    ) -> Result<(), End> {
        let mut phasing: Option<Phasing> = None;
        let mut deadline = Instant::now() + BOOT_LIMIT;
        while talk.next < talk.file.phases.len() {
            let message = match self.next_message(child, deadline) {
                Ok(Some(message)) => message,
                Ok(None) => return Err(talk.late(phasing.is_some())),
                Err(interrupted) => return Err(End::Interrupted(interrupted)),
            };
            match (message, &mut phasing) {
                (Message::System(system), _) => talk.system = Some(system),
                (Message::Ready(number), None) if number == talk.next => {
                    self.progress.state("starts");
                    phasing = Some(Phasing {
                        before: talk.look(child, &mut self.progress),
                        ..Phasing::default()
                    });
                    deadline = Instant::now() + talk.limit();
                    child.go();
                }
                (Message::File { name, content }, Some(phasing)) => phasing.take(&name, content),
                (Message::Ended(number, status), Some(_)) if number == talk.next => {
                    let phasing = phasing.take().unwrap_or_default();
                    let done = talk.done(status, phasing, child, &mut self.progress);
                    sink(&mut self.progress, done);
                    talk.next += 1;
                    talk.tail.clear();
                    deadline = Instant::now() + BOOT_LIMIT;
                    if let Some(phase) = talk.file.phases.get(talk.next) {
                        self.progress.begin(&(talk.title)(phase));
                    }
                    child.go();
                }
                (Message::Said(line), _) => match Status::parse(&line) {
                    Some(status) => self.progress.status(&status),
                    None => talk.keep(&line),
                },
                (Message::Stopped(why), _) => talk.keep(&why),
                (Message::Closed, started) => {
                    let started = started.is_some();
                    // What was said last may still be on its way.
                    let status = child_status(child, self, talk);
                    return Err(talk.broken(started, status));
                }
                // A child that is out of step is not worth a word more: its time will run out.
                (Message::Ready(_) | Message::Ended(..) | Message::File { .. }, _) => {}
            }
        }
        Ok(())
    }

    /// The child's next message; `None` if there was none in time.
    fn next_message(
        &self,
        child: &Running,
        deadline: Instant,
    ) -> Result<Option<Message>, Interrupted> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Signal(signal)) => return Err(Interrupted(signal)),
                Ok(Event::Child(serial, message)) if serial == child.serial => {
                    return Ok(Some(message));
                }
                // Of a child that was given up.
                Ok(Event::Child(..)) => {}
                // The session holds a sender itself, so that there is always one.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// The child's exit status once its output has ended, with the last that it says.
fn child_status(child: &mut Running, session: &Session, talk: &mut Talk<'_>) -> Option<ExitStatus> {
    let status = child.status(END_LIMIT);
    let deadline = Instant::now() + Duration::from_millis(500);
    while let Ok(Some(message)) = session.next_message(child, deadline) {
        if let Message::Said(line) = message
            && Status::parse(&line).is_none()
        {
            talk.keep(&line);
        }
    }
    status
}

fn failed(phase: usize, failure: Failure) -> Done {
    Done {
        phase,
        raw: None,
        system: None,
        outcome: Outcome::Failed(failure),
    }
}

impl Phasing {
    fn take(&mut self, name: &str, content: String) {
        match name {
            "fio.json" => self.raw = Some(content),
            "iops" => self.logs.iops = content,
            "bandwidth" => self.logs.bandwidth = content,
            "latency" => self.logs.latency = content,
            _ => {}
        }
    }
}

/// One child's talk.
struct Talk<'t> {
    file: &'t JobFile,
    launch: &'t Launch<'t>,
    title: &'t dyn Fn(&Phase) -> String,
    /// The phase that runs, or is to run next.
    next: usize,
    system: Option<System>,
    /// The last that was said.
    tail: VecDeque<String>,
}

impl Talk<'_> {
    fn keep(&mut self, line: &str) {
        // It will be on a terminal, and may be a hostile guest's.
        let line = printable(line);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn said(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    /// Longest time of the phase that runs.
    fn limit(&self) -> Duration {
        let duration = self.file.phases.get(self.next).and_then(Phase::duration);
        self.launch.limit.unwrap_or_else(|| match duration {
            Some(duration) => duration + duration / 2 + PHASE_SLACK,
            None => ENDLESS,
        })
    }

    /// berth's counters, if it is a guest that fio runs in.
    fn look(&self, child: &Running, progress: &mut Progress) -> Option<Look> {
        let look = Look::take(child.pid(), self.launch.socket?);
        look.inspect_err(|error| progress.say(&format!("berth fio: no counters: {error}")))
            .ok()
    }

    fn done(
        &mut self,
        status: i32,
        phasing: Phasing,
        child: &Running,
        progress: &mut Progress,
    ) -> Done {
        let cost = phasing.before.and_then(|before| {
            let after = self.look(child, progress)?;
            Some(after.since(&before))
        });
        let raw = phasing.raw.unwrap_or_default();
        let outcome = match figures(&raw) {
            Ok(mut figures) if status == 0 => {
                phasing.logs.add_to(&mut figures);
                figures.cost = cost;
                Outcome::Done(Box::new(figures))
            }
            result => Outcome::Failed(self.fio_failed(status, result, &raw)),
        };
        Done {
            phase: self.next,
            raw: Some(raw).filter(|raw| !raw.is_empty()),
            system: self.system.clone(),
            outcome,
        }
    }

    fn fio_failed(&self, status: i32, result: Result<Figures, OutputError>, raw: &str) -> Failure {
        let what = match result {
            Err(error @ (OutputError::Job { .. } | OutputError::Idle | OutputError::Empty)) => {
                error.to_string()
            }
            Err(error) if status == 0 => error.to_string(),
            _ if status == 127 => "fio was not found".to_owned(),
            _ => format!("fio ended with status {status}"),
        };
        // With --output, fio says some of its errors there, in front of its JSON.
        let mut said = self.said();
        let preface = raw.split("\n{").next().unwrap_or_default();
        let lines = preface.lines().take(TAIL).map(printable);
        let preface = lines.collect::<Vec<_>>().join("\n");
        if !preface.starts_with('{') && !said.contains(&preface) {
            said = format!("{preface}\n{said}");
        }
        Failure {
            what,
            fio: Some(status),
            berth: None,
            said: said.trim().to_owned(),
        }
    }

    fn late(&self, started: bool) -> End {
        let what = if started {
            format!("no end within {} s", self.limit().as_secs())
        } else {
            format!("fio could not be started within {} s", BOOT_LIMIT.as_secs())
        };
        End::Broken {
            started,
            failure: Failure {
                what,
                said: self.said(),
                ..Failure::default()
            },
        }
    }

    fn broken(&self, started: bool, status: Option<ExitStatus>) -> End {
        let guest = self.launch.socket.is_some();
        let berth = status.and_then(|status| status.code()).filter(|_| guest);
        let status = status.map_or("without a status".into(), |status| match status.code() {
            Some(code) => format!("with status {code}"),
            None => status.to_string(),
        });
        let what = match (guest, started) {
            (true, true) => format!("the guest ended beneath fio; berth ended {status}"),
            (true, false) => format!("the guest did not get to fio; berth ended {status}"),
            (false, true) => format!("fio was ended {status}"),
            (false, false) => format!("fio could not be started; its script ended {status}"),
        };
        End::Broken {
            started,
            failure: Failure {
                what,
                fio: None,
                berth,
                said: self.said(),
            },
        }
    }
}

/// Passes signals on.
fn watch(signals: &Signals, events: &SyncSender<Event>) {
    loop {
        match signals.wait() {
            Some(libc::SIGTSTP) => terminal::stop_process(),
            Some(libc::SIGCONT) | None => {}
            Some(signal) => {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const JOBS: &str = "[global]\nstonewall\n[a]\nruntime=1\n[b]\nruntime=1\n[c]\nruntime=1\n";
    const JSON: &str = r#"{"fio version":"fio-9","jobs":[{"jobname":"a","error":0,"usr_cpu":1.5,"read":
        {"total_ios":4,"iops":2,"bw_bytes":8192,"clat_ns":{"N":4,"mean":5,"bins":{"5":4}}}}]}"#;

    /// Runs the jobs with a script in the place of `guest.sh`; `$1` is the first phase. Returns what
    /// came of each, and how often it was started.
    fn run(script: &str, limit: Duration) -> (Vec<Done>, u32) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("load.fio");
        fs::write(&path, JOBS).unwrap();
        fs::write(dir.path().join("json"), JSON).unwrap();
        let file = JobFile::read(&path, &[], &[]).unwrap();
        let helper = "phase() { echo ready $1; read -r _; }\n\
                      result() { echo file fio.json $(wc -c <json); cat json; echo ended $1 $2; read -r _; }\n";
        let starts = std::cell::Cell::new(0);
        let command = |from: usize| {
            starts.set(starts.get() + 1);
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{helper}{script}"), "sh", &from.to_string()]);
            command.current_dir(dir.path());
            command
        };
        let launch = Launch {
            command: &command,
            socket: None,
            limit: Some(limit),
        };
        let mut session = Session::new(None, Progress::new(3)).unwrap();
        let mut all = Vec::new();
        let result = session.run(
            &file,
            &launch,
            &|phase| phase.name.clone(),
            &mut |_, done| {
                all.push(done);
            },
        );
        assert_eq!(result, Ok(()));
        (all, starts.get())
    }

    #[test]
    fn a_signal_is_seen_while_a_guest_powers_off() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("load.fio");
        fs::write(&path, "[a]\nruntime=1\n").unwrap();
        let file = JobFile::read(&path, &[], &[]).unwrap();
        let command = |_| {
            let mut command = Command::new("sh");
            command.args([
                "-c",
                "echo ready 0; read -r _; echo ended 0 1; exec sleep 1000",
            ]);
            command
        };
        let launch = Launch {
            command: &command,
            socket: None,
            limit: Some(LONG),
        };
        let mut session = Session::new(None, Progress::new(1)).unwrap();
        let sender = session.sender.clone();
        let start = Instant::now();
        let title = |phase: &Phase| phase.name.clone();
        let result = session.run(&file, &launch, &title, &mut |_, _| {
            sender.send(Event::Signal(libc::SIGINT)).unwrap();
        });
        assert_eq!(result, Err(Interrupted(libc::SIGINT)));
        assert!(start.elapsed() < END_LIMIT);
    }

    const LONG: Duration = Duration::from_secs(30);

    fn failure(done: &Done) -> &Failure {
        match &done.outcome {
            Outcome::Failed(failure) => failure,
            Outcome::Done(figures) => panic!("{figures:?}"),
        }
    }

    fn good(done: &Done) -> bool {
        matches!(&done.outcome, Outcome::Done(figures) if figures.read.as_ref().unwrap().ios == 4)
    }

    #[test]
    fn phases_run_in_one_child() {
        let (all, starts) = run(
            "echo system 6.1 2 4096 /dev/x; for n in 0 1 2; do phase $n; result $n 0; done",
            LONG,
        );
        assert_eq!((all.len(), starts), (3, 1));
        assert!(all.iter().all(good));
        assert_eq!(all[2].phase, 2);
        assert_eq!(all[0].system.as_ref().unwrap().cpus, 2);
    }

    #[test]
    fn a_phase_that_fails_does_not_keep_others_from_running() {
        let (all, starts) = run(
            "for n in 0 1 2; do phase $n; \
             if [ $n = 1 ]; then printf 'fio: \\033[2Jengine foo\\n' >&2; sleep 0.2; echo ended 1 1; read -r _; \
             else result $n 0; fi; done",
            LONG,
        );
        assert_eq!(starts, 1);
        assert!(good(&all[0]) && good(&all[2]));
        let failure = failure(&all[1]);
        assert_eq!(failure.what, "fio ended with status 1");
        assert_eq!(
            (failure.fio, failure.said.as_str()),
            (Some(1), "fio: [2Jengine foo")
        );
    }

    #[test]
    fn a_guest_that_dies_costs_one_phase() {
        let (all, starts) = run(
            "n=$1; while [ $n -lt 3 ]; do phase $n; \
             if [ $n = 1 ]; then echo 'guest panicked' >&2; exit 34; fi; result $n 0; n=$((n+1)); done",
            LONG,
        );
        assert_eq!(starts, 2);
        assert!(good(&all[0]) && good(&all[2]));
        assert_eq!(failure(&all[1]).what, "fio was ended with status 34");
        assert_eq!(failure(&all[1]).said, "guest panicked");
    }

    #[test]
    fn what_cannot_start_is_tried_once() {
        let (all, starts) = run("echo 'stopped no disk'; exit 1", LONG);
        assert_eq!((all.len(), starts), (3, 1));
        for done in &all {
            assert_eq!(
                failure(done).what,
                "fio could not be started; its script ended with status 1"
            );
            assert_eq!(failure(done).said, "no disk");
        }
    }

    #[test]
    fn a_phase_that_hangs_is_ended() {
        let (all, starts) = run(
            "n=$1; while [ $n -lt 3 ]; do phase $n; [ $n = 0 ] && sleep 1000; result $n 0; n=$((n+1)); done",
            Duration::from_secs(1),
        );
        assert_eq!(starts, 2);
        assert_eq!(failure(&all[0]).what, "no end within 1 s");
        assert!(good(&all[1]) && good(&all[2]));
    }

    #[test]
    fn output_that_is_cut_is_a_failure() {
        let (all, _) = run(
            "for n in 0 1 2; do phase $n; echo file fio.json 9; echo '{\"jobs\":'; echo ended $n 0; read -r _; done",
            LONG,
        );
        assert!(
            failure(&all[0]).what.contains("fio's output has no jobs"),
            "{:?}",
            failure(&all[0])
        );
    }

    #[test]
    fn limits_are_made_of_the_runtime() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("load.fio");
        fs::write(
            &path,
            "[global]\nstonewall\n[a]\nruntime=60\nramp_time=10\n[b]\nsize=1m\n",
        )
        .unwrap();
        let file = JobFile::read(&path, &[], &[]).unwrap();
        let limit = |next, limit| {
            let launch = Launch {
                command: &|_| Command::new("true"),
                socket: None,
                limit,
            };
            let talk = Talk {
                file: &file,
                launch: &launch,
                title: &|phase| phase.name.clone(),
                next,
                system: None,
                tail: VecDeque::new(),
            };
            talk.limit().as_secs()
        };
        assert_eq!((limit(0, None), limit(1, None)), (105 + 120, 3600));
        assert_eq!(limit(1, Some(Duration::from_secs(9))), 9);
    }
}
