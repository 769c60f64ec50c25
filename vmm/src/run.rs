//! `berth run`: one machine from its start to its exit status.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;

use crate::cli::RunConfig;
use crate::commands::Commands;
use crate::console;
use crate::control::{ControlServer, Event};
use crate::event_loop::{EventLoop, EventSet, Watch};
use crate::exit::{ExitReason, Outcome};
use crate::guest_command::{self, Session};
use crate::live::{Announcement, Live};
use crate::machine::{Machine, MachineError};
use crate::signals::Signals;
use crate::startup::{Phase, Stopwatch};
use crate::stderr;
use crate::terminal::{self, RawMode};
use crate::trace::Tracing;

/// Runs a machine and returns the exit status; the reason goes to standard error. `watch` runs since
/// berth's start.
pub fn run(config: &RunConfig, mut watch: Stopwatch) -> u8 {
    watch.lap(Phase::Options);
    start_logging(config.verbosity);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match run_machine(config, watch) {
        Ok(Ended {
            reason,
            session: None,
        }) => {
            stderr::say(format_args!("berth: {reason}"));
            reason.status()
        }
        Ok(Ended {
            reason,
            session: Some(session),
        }) => session.conclude(&reason),
        Err(error) => {
            stderr::say(format_args!("berth: {}", in_words(&error)));
            status(&error)
        }
    }
}

/// How a run ended, and what there was of a command.
struct Ended {
    reason: ExitReason,
    session: Option<Session>,
}

fn status(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<guest_command::Error>() {
        return error.status();
    }
    error
        .downcast_ref::<MachineError>()
        .map_or(1, MachineError::status)
}

/// The error with those of its causes that it does not name itself.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if text.contains(&format!("(os error {})", libc::EMFILE)) {
        text.push_str("; raise the limit on open files (ulimit -Hn), or use fewer devices");
    }
    text
}

fn start_logging(verbosity: u8) {
    let level = match verbosity {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| stderr::Log)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

fn run_machine(config: &RunConfig, mut watch: Stopwatch) -> anyhow::Result<Ended> {
    raise_file_limit();
    let signals = Signals::block().context("cannot watch signals")?;
    let late_signals = signals.try_clone().context("cannot watch signals")?;
    let command = config.command.as_ref();
    let prepared = command.map(|command| guest_command::prepare(config, command));
    let prepared = prepared.transpose()?;
    let config = prepared
        .as_ref()
        .map_or(config, |prepared| &prepared.config);
    let control = ControlServer::new(
        config.control_pipe.as_deref(),
        config.control_socket.as_deref(),
    )?;
    let events = Rc::new(EventLoop::new().context("cannot make an event loop")?);
    watch.lap(Phase::Control);
    let parts = (signals, late_signals, control);
    let result = run_in(&events, config, watch, parts);
    // Images are closed here, and so free for the next berth: of a process that ended the kernel lets go
    // later.
    events.clear();
    result
}

fn run_in(
    events: &Rc<EventLoop>,
    config: &RunConfig,
    mut watch: Stopwatch,
    (signals, late_signals, control): (Signals, Signals, ControlServer),
) -> anyhow::Result<Ended> {
    let made = Machine::new(config, events, &mut watch);
    let (mut machine, registry) = match made {
        Err(error) if config.command.is_some() => return Err(guest_command::explained(error)),
        made => made?,
    };
    let tracing = Rc::new(Tracing::default());
    if let Some(path) = &config.trace {
        tracing.start(path, &registry)?;
    }
    // A command has the terminal as its input; only a console needs it raw.
    let raw = match &machine.session {
        None => RawMode::start().context("cannot make the terminal raw")?,
        Some(_) => None,
    };
    let raw = Rc::new(raw);
    watch_end(events, &machine.outcome)?;
    watch_signals(events, signals, Rc::clone(&raw), &machine.outcome)?;
    start_input(&machine).context("cannot start reading standard input")?;
    let live = Live::new(
        registry,
        Arc::clone(&machine.hotplug),
        Arc::clone(&machine.slots),
        Rc::clone(events),
    )
    .context("cannot watch the hot-plug slots")?;
    // The devices stay until nothing runs on them any more.
    let _devices = Rc::clone(&live);
    let startup = Arc::new(watch.finish());
    let running = machine.start(&startup)?;
    let commands = Commands {
        outcome: Arc::clone(&machine.outcome),
        acpi: Arc::clone(&machine.acpi),
        live,
        interrupts: Arc::clone(&machine.interrupts),
        cpus: config.cpus,
        memory: config.memory,
        tracing: Rc::clone(&tracing),
        started: Instant::now(),
        startup,
    };
    let result = serve(events, commands, control);
    running.stop();
    tracing.finish();
    machine.finish_output();
    terminal::restore();
    result?;
    let reason = machine.outcome.reason().cloned();
    let reason = reason.context("the event loop ended without a reason")?;
    let session = machine.session.take();
    // Its readers may take their time, unless a signal has no more patience.
    let waits = !matches!(reason, ExitReason::Signal(_));
    let signal = session
        .as_ref()
        .filter(|_| waits)
        .and_then(|session| session.channel.finish(&late_signals));
    let reason = signal.map_or(reason, ExitReason::Signal);
    Ok(Ended { reason, session })
}

fn start_input(machine: &Machine) -> std::io::Result<()> {
    match &machine.session {
        Some(session) => session.channel.start(Arc::clone(&machine.com2)),
        None => {
            let (port, outcome) = (Arc::clone(&machine.com1), Arc::clone(&machine.outcome));
            console::start_input(port, outcome, terminal::is_terminal())
        }
    }
}

/// Serves devices and control clients until the run is over, and tells the clients how it ended.
fn serve(events: &EventLoop, mut commands: Commands, control: ControlServer) -> anyhow::Result<()> {
    let outcome = Arc::clone(&commands.outcome);
    let live = Rc::clone(&commands.live);
    let control = Rc::new(RefCell::new(control));
    let served = Rc::clone(&control);
    let watch = events
        .add(&*control.borrow(), EventSet::IN, move |_| {
            served.borrow_mut().handle(&mut commands);
        })
        .context("cannot watch the control transports")?;
    let announced = watch_announcements(events, &live, &control)?;
    let result = events.run().context("the event loop failed");
    events.remove(announced);
    if let Some(reason) = outcome.reason()
        && let Some(name) = reason.event()
    {
        live.announce(Event::new(name).with("status", reason.status()));
    }
    live.end_waits();
    tell(&live, &control);
    // With its last holder the control server goes, and with it its FIFOs and its socket.
    events.remove(watch);
    result
}

/// Tells all control clients what happens to devices.
fn watch_announcements(
    events: &EventLoop,
    live: &Rc<Live>,
    control: &Rc<RefCell<ControlServer>>,
) -> anyhow::Result<Watch> {
    let (source, control) = (Rc::clone(live), Rc::clone(control));
    events
        .add(live.announced(), EventSet::IN, move |_| {
            tell(&source, &control);
        })
        .context("cannot watch for announcements")
}

fn tell(live: &Live, control: &RefCell<ControlServer>) {
    for announcement in live.take_announcements() {
        let mut control = control.borrow_mut();
        match announcement {
            Announcement::Event(event) => control.broadcast(&event),
            Announcement::Reply(ticket, result) => control.finish(ticket, result),
        }
    }
}

fn watch_end(events: &Rc<EventLoop>, outcome: &Outcome) -> anyhow::Result<()> {
    let inner = Rc::clone(events);
    events
        .add(outcome.event(), EventSet::IN, move |_| inner.stop())
        .context("cannot watch the vCPUs")?;
    Ok(())
}

fn watch_signals(
    events: &EventLoop,
    signals: Signals,
    raw: Rc<Option<RawMode>>,
    outcome: &Arc<Outcome>,
) -> anyhow::Result<()> {
    let outcome = Arc::clone(outcome);
    let fd = signals.try_clone().context("cannot watch signals")?;
    let handler = move |_| {
        // Once the run has ended, signals are for those who wait for its readers.
        while outcome.reason().is_none()
            && let Some(signal) = signals.next()
        {
            match (signal, raw.as_ref()) {
                (libc::SIGTSTP, Some(raw)) => raw.suspend(),
                (libc::SIGTSTP, None) => terminal::stop_process(),
                (libc::SIGCONT, Some(raw)) => raw.resume(),
                (libc::SIGCONT, None) => {}
                _ => outcome.end(ExitReason::Signal(signal)),
            }
        }
    };
    events
        .add(&fd, EventSet::IN, handler)
        .context("cannot watch signals")?;
    Ok(())
}

/// Controllers have an eventfd per queue and vector: take what the host lets this process have.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a structure of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above. Raising the soft limit to the hard one needs no privilege; should it fail, the
    // old limit holds, and running into it is reported where it happens.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
}
