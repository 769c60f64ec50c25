//! The loop of an I/O thread: reap → fetch → check → submit → complete → one interrupt a batch.

mod moving;
mod recording;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::ram::GuestSlice;
#[cfg(test)]
use crate::storage::EngineStats;
use crate::storage::{BackendError, Cancel, Completion, Engine, Token};

use crate::subsystem::Namespace;

use super::super::core::{Core, Event, same};
use super::super::error::CommandError;
use super::super::group::{Group, State};
use super::super::queue::Reservation;
use super::super::snapshots::Epoch;
use super::super::spec::{Sqe, Status};
use super::alarm::Alarm;
use super::command::{self, Kind};
use super::polling::Polling;
use super::slots::{Key, Slots};
use super::{Message, Shared};
use moving::Leaving;

pub(super) use moving::MOVE_LIMIT;
pub(super) use recording::Recording;

/// Commands fetched from one queue before completions are looked at.
const BATCH: usize = 64;

/// Bytes of commands that end at once after which a queue's turn is over: they are moved on this thread,
/// and other queues and the interrupt wait for it.
const INLINE_BYTES: u64 = 1 << 20;

/// How often a thread that waits for a reset's last commands says so, in milliseconds.
const RESET_NOTICE_MS: i32 = 5_000;

const KICK: u64 = 0;
const DOORBELL: u64 = 1;
const ENGINE: u64 = 2;
const ALARM: u64 = 3;

/// A command that a backend works on.
#[derive(Debug)]
struct InFlight {
    group: usize,
    sq: usize,
    cid: u16,
    nsid: u32,
    kind: Kind,
    epoch: Epoch,
    room: Reservation,
    // Requests to backends that have not ended.
    parts: u32,
    error: Option<BackendError>,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    On,
    Stop,
}

/// What there was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Commands or completions.
    Worked,
    /// Nothing.
    Idle,
    /// The thread is to end.
    Stop,
}

/// An I/O thread's own state.
pub struct Worker {
    shared: Arc<Shared>,
    engine: Engine,
    epoll: Epoll,
    // Indices are stable: commands in flight name their group by it.
    groups: Vec<Option<Group>>,
    in_flight: Slots<InFlight>,
    // Controllers whose queues are being dropped.
    resets: Vec<Arc<Core>>,
    // Groups that another thread is to have.
    leaving: Vec<Leaving>,
    // If commands are recorded.
    recording: Option<Box<Recording>>,
    polling: Polling,
    // For interrupts that are put off.
    alarm: Alarm,
    // Bytes of commands that ended at once, since the queues were last looked at.
    inline: u64,
    // Reused from command to command.
    completions: Vec<Completion>,
    data: Vec<GuestSlice>,
}

impl Worker {
    /// Watches the thread's events; does not run yet.
    pub fn new(shared: Arc<Shared>, engine: Engine) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |fd: RawFd, set: EventSet, data: u64| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, data))
        };
        // Edge-triggered events need no read to be armed again.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(shared.kick.as_raw_fd(), edge, KICK)?;
        watch(shared.doorbell.as_raw_fd(), edge, DOORBELL)?;
        let alarm = Alarm::new()?;
        watch(alarm.as_raw_fd(), edge, ALARM)?;
        for fd in engine.wake_fds() {
            watch(fd, EventSet::IN, ENGINE)?;
        }
        Ok(Self {
            shared,
            engine,
            epoll,
            groups: Vec::new(),
            in_flight: Slots::default(),
            resets: Vec::new(),
            leaving: Vec::new(),
            recording: None,
            polling: Polling::default(),
            alarm,
            inline: 0,
            completions: Vec::new(),
            data: Vec::new(),
        })
    }

    /// What its engine has counted.
    #[cfg(test)]
    pub fn engine_stats(&self) -> Arc<EngineStats> {
        self.engine.stats()
    }

    /// Serves until told to stop.
    pub fn run(&mut self) {
        loop {
            match self.turn() {
                Turn::Stop => return,
                Turn::Worked => {
                    if self.polling.work() {
                        self.shared.stats.polled.add(1);
                    }
                }
                Turn::Idle => {
                    if !self.engine.must_poll() && !self.polling.look_again(self.poll_limit()) {
                        self.sleep();
                    }
                }
            }
        }
    }

    /// Serves everything once.
    pub fn turn(&mut self) -> Turn {
        if self.take_messages() == Run::Stop {
            return Turn::Stop;
        }
        self.keep_late();
        let reaped = self.reap();
        let fetched = self.serve_queues();
        self.engine.kick();
        for group in self.groups.iter_mut().flatten() {
            group.interrupt();
        }
        if reaped || fetched {
            Turn::Worked
        } else {
            Turn::Idle
        }
    }

    fn take_messages(&mut self) -> Run {
        if !self.shared.has_messages() {
            return Run::On;
        }
        let messages = self.shared.take_messages();
        for message in messages {
            if let Message::Stop = message {
                return Run::Stop;
            }
            self.handle(message);
        }
        Run::On
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::AddCq { core, queue, stats } => self.add_group(Group::new(core, queue, stats)),
            Message::AddSq {
                core,
                queue,
                cqid,
                stats,
            } => {
                if let Some(group) = self.group_of_cq(&core, cqid) {
                    group.add_sq(queue, stats);
                }
            }
            Message::DeleteSq { core, sqid } => self.delete_sq(&core, sqid),
            Message::DeleteCq { core, cqid } => self.delete_cq(&core, cqid),
            Message::GiveUp { core, cqid } => self.give_up(&core, cqid),
            // Its doorbells are looked at before the thread sleeps, whoever was rung for them.
            Message::Adopt { group } => {
                self.shared.stats.moves.add(1);
                self.add_group(*group);
            }
            Message::StartShadow { core, shadow } => {
                for group in self.groups.iter_mut().flatten() {
                    if same(&group.core, &core) {
                        group.start_shadow(Arc::clone(&shadow));
                    }
                }
            }
            Message::Abort {
                core,
                sqid,
                cid,
                abort_cid,
            } => {
                let aborted = self.abort(&core, sqid, cid);
                core.post(Event::AbortTried {
                    cid: abort_cid,
                    aborted,
                });
            }
            Message::AbortNamespace { core, namespace } => self.abort_namespace(&core, &namespace),
            Message::Reset { core } => self.reset(&core),
            Message::Trace(recording) => self.recording = recording,
            Message::Stop => {}
        }
    }

    fn add_group(&mut self, group: Group) {
        match self.groups.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(group),
            None => self.groups.push(Some(group)),
        }
    }

    fn group_of_cq(&mut self, core: &Arc<Core>, cqid: u16) -> Option<&mut Group> {
        let mut groups = self.groups.iter_mut().flatten();
        groups.find(|group| same(&group.core, core) && group.cq.id() == cqid)
    }

    fn find_sq(&self, core: &Arc<Core>, sqid: u16) -> Option<(usize, usize)> {
        self.groups.iter().enumerate().find_map(|(index, group)| {
            let group = group.as_ref().filter(|group| same(&group.core, core))?;
            Some((index, group.find_sq(sqid)?))
        })
    }

    /// Serves every queue, at most [`BATCH`] commands each and one turn if many bytes were moved in it.
    /// `true` if there was a command.
    fn serve_queues(&mut self) -> bool {
        for group in self.groups.iter_mut().flatten() {
            group.snapshots.refresh();
        }
        self.inline = 0;
        let mut turn = 0;
        while self.inline < INLINE_BYTES && self.serve_turn(turn) {
            turn += 1;
        }
        turn > 0
    }

    /// Serves every queue once, at most an arbitration burst (5.27.1.1) of commands each. `true` if
    /// there was a command.
    fn serve_turn(&mut self, turn: usize) -> bool {
        let mut any = false;
        for group in 0..self.groups.len() {
            let Some((burst, queues)) = self.groups[group]
                .as_ref()
                .map(|group| (group.core.burst(), group.sqs.len()))
            else {
                continue;
            };
            let limit = BATCH.saturating_sub(burst.saturating_mul(turn)).min(burst);
            if limit == 0 {
                continue;
            }
            for sq in 0..queues {
                any |= self.serve_queue(group, sq, limit);
            }
        }
        any
    }

    fn serve_queue(&mut self, group: usize, sq: usize, limit: usize) -> bool {
        let mut any = false;
        let inline = self.inline;
        for _ in 0..limit {
            if !self.engine.has_room() || self.inline - inline >= INLINE_BYTES {
                break;
            }
            let fetched = self.groups[group]
                .as_mut()
                .and_then(|group| group.fetch(sq));
            let Some((sqe, room)) = fetched else { break };
            any = true;
            self.start(group, sq, &sqe, room);
        }
        any
    }

    /// Starts a command; completes it at once if nothing is left to wait for.
    fn start(&mut self, index: usize, sq: usize, sqe: &Sqe, room: Reservation) {
        let Some(group) = self.groups[index].as_mut() else {
            return;
        };
        group.snapshots.refresh();
        let epoch = group.snapshots.enter(sqe.nsid);
        let key = self.in_flight.insert(InFlight {
            group: index,
            sq,
            cid: sqe.cid(),
            nsid: sqe.nsid,
            kind: Kind::of(sqe),
            epoch,
            room,
            parts: 0,
            error: None,
        });
        if let Some(recording) = &mut self.recording {
            recording.fetched(key, group, sq, sqe);
            if !recording.is_read() {
                self.recording = None;
            }
        }
        recording::probe_fetched(group, sq, sqe);
        let started = command::start(
            &mut command::Context {
                engine: &mut self.engine,
                data: &mut self.data,
                core: &group.core,
                namespaces: group.snapshots.current(),
                token: Token(key.to_raw()),
            },
            sqe,
        );
        match started {
            Err(error) => self.finish(key, Err(error)),
            Ok(started) if started.pending == 0 => {
                self.inline = self.inline.saturating_add(started.bytes);
                self.count(index, sq, sqe.nsid, started.counted);
                let end = started
                    .error
                    .map_or(Ok(0), |error| Err(Kind::of(sqe).error(error)));
                self.finish(key, end);
            }
            Ok(started) => {
                self.count(index, sq, sqe.nsid, started.counted);
                if let Some(command) = self.in_flight.get_mut(key) {
                    command.parts = started.pending;
                    command.error = started.error;
                }
                self.engine.kick_early();
            }
        }
    }

    fn count(&mut self, group: usize, sq: usize, nsid: u32, counted: command::Counted) {
        if let Some(group) = self.groups[group].as_mut()
            && let Some(Some(sq)) = group.sqs.get(sq)
        {
            counted.add_to(&sq.stats, &mut group.snapshots, nsid);
        }
    }

    /// Takes what the backends completed. `true` if there was something.
    fn reap(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.reap(&mut completions);
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            self.part_ended(completion);
        }
        self.completions = completions;
        any
    }

    fn part_ended(&mut self, completion: Completion) {
        let key = Key::from_raw(completion.token.0);
        // A command that was aborted is not here any more.
        let Some(command) = self.in_flight.get_mut(key) else {
            return;
        };
        if let Err(error) = completion.result {
            command.error.get_or_insert(error);
        }
        command.parts = command.parts.saturating_sub(1);
        if command.parts == 0 {
            let end = command
                .error
                .map_or(Ok(0), |error| Err(command.kind.error(error)));
            self.finish(key, end);
        }
    }

    /// Ends a command: posts its completion, unless its controller is being reset.
    fn finish(&mut self, key: Key, end: Result<u32, CommandError>) {
        let Some(command) = self.in_flight.remove(key) else {
            return;
        };
        let Some(group) = self.groups[command.group].as_mut() else {
            return;
        };
        group.snapshots.leave(command.epoch, command.nsid);
        // Recorded first, so that all that the guest knows of is.
        if group.state == State::Resetting {
            if let Some(recording) = &mut self.recording {
                recording.abandoned(key);
            }
            recording::probe_abandoned(group, command.sq, command.cid);
            group.forget(command.sq, command.room);
        } else {
            if let Some(recording) = &mut self.recording {
                recording.completed(key, end);
            }
            recording::probe_completed(group, command.sq, command.cid, end);
            group.complete(command.sq, command.cid, command.room, end);
        }
        self.sweep(command.group, command.sq);
    }

    /// Lets go of a queue that was only waiting for its last command.
    fn sweep(&mut self, index: usize, sq: usize) {
        let Some(group) = self.groups[index].as_mut() else {
            return;
        };
        let deleted = group
            .sq_mut(sq)
            .filter(|sq| sq.state == State::Deleting && sq.in_flight() == 0)
            .map(|sq| sq.queue.id());
        if let Some(sqid) = deleted
            && group.state != State::Resetting
        {
            group.sqs[sq] = None;
            // The guest must find the queue's last completions before it hears of the deletion.
            group.interrupt_now();
            group.core.post(Event::SqDeleted { sqid });
        }
        if group.state == State::Resetting && group.in_flight() == 0 {
            self.groups[index] = None;
            self.sweep_resets();
        }
        self.leave_if_idle(index);
    }

    /// Tells the controllers whose last queue is gone.
    fn sweep_resets(&mut self) {
        let groups = &self.groups;
        let index = self.shared.index;
        self.resets.retain(|core| {
            let busy = groups.iter().flatten().any(|group| same(&group.core, core));
            if !busy {
                core.post(Event::Quiesced { thread: index });
            }
            busy
        });
    }

    fn delete_sq(&mut self, core: &Arc<Core>, sqid: u16) {
        let Some((group, sq)) = self.find_sq(core, sqid) else {
            core.post(Event::SqDeleted { sqid });
            return;
        };
        if let Some(sq) = self.groups[group]
            .as_mut()
            .and_then(|group| group.sq_mut(sq))
        {
            sq.state = State::Deleting;
        }
        self.cancel_where(
            |command| command.group == group && command.sq == sq,
            Status::ABORTED_SQ_DELETION,
        );
        self.sweep(group, sq);
    }

    fn delete_cq(&mut self, core: &Arc<Core>, cqid: u16) {
        let is_it = |group: &Group| same(&group.core, core) && group.cq.id() == cqid;
        for slot in &mut self.groups {
            if slot.as_ref().is_some_and(is_it) {
                *slot = None;
            }
        }
        core.post(Event::CqDeleted { cqid });
    }

    fn abort(&mut self, core: &Arc<Core>, sqid: u16, cid: u16) -> bool {
        let Some((group, sq)) = self.find_sq(core, sqid) else {
            return false;
        };
        let is_it =
            |command: &InFlight| command.group == group && command.sq == sq && command.cid == cid;
        self.cancel_where(is_it, Status::ABORT_REQUESTED) > 0
    }

    fn reset(&mut self, core: &Arc<Core>) {
        for group in self.groups.iter_mut().flatten() {
            if same(&group.core, core) {
                group.begin_reset();
            }
        }
        self.resets.push(Arc::clone(core));
        for index in 0..self.groups.len() {
            let mine = |group: &Group| same(&group.core, core);
            if self.groups[index].as_ref().is_some_and(mine) {
                self.forget_move(index);
                self.cancel_where(|command| command.group == index, Status::ABORT_REQUESTED);
                self.sweep(index, 0);
            }
        }
        self.sweep_resets();
    }

    /// Stops those commands that can be stopped at once; the others end by themselves. Commands of
    /// several requests are never stopped half way. Returns how many were stopped.
    fn cancel_where(&mut self, which: impl Fn(&InFlight) -> bool, status: Status) -> usize {
        let chosen: Vec<Key> = self
            .in_flight
            .iter()
            .filter(|(_, command)| command.parts == 1 && which(command))
            .map(|(key, _)| key)
            .collect();
        self.cancel_all(chosen, status)
    }

    fn cancel_all(&mut self, keys: Vec<Key>, status: Status) -> usize {
        let stopped: Vec<Key> = keys
            .into_iter()
            .filter(|&key| self.cancel(key) == Some(Cancel::Cancelled))
            .collect();
        for &key in &stopped {
            self.finish(key, Err(CommandError::transient(status)));
        }
        stopped.len()
    }

    /// Stops the commands of a controller on a namespace that it does not see any more.
    fn abort_namespace(&mut self, core: &Arc<Core>, namespace: &Weak<Namespace>) {
        let groups = &self.groups;
        let on_it = |command: &InFlight| {
            let group = groups[command.group].as_ref()?;
            let table = group.snapshots.get(command.epoch)?;
            let found = table.get(command.nsid)?;
            Some(same(&group.core, core) && std::ptr::eq(Arc::as_ptr(found), namespace.as_ptr()))
        };
        let chosen: Vec<Key> = self
            .in_flight
            .iter()
            .filter(|(_, command)| command.parts == 1 && on_it(command) == Some(true))
            .map(|(key, _)| key)
            .collect();
        self.cancel_all(chosen, Status::INTERNAL_PATH_ERROR);
    }

    fn cancel(&mut self, key: Key) -> Option<Cancel> {
        let command = self.in_flight.get_mut(key)?;
        let table = self.groups[command.group]
            .as_ref()?
            .snapshots
            .get(command.epoch)?;
        let namespace = table.get(command.nsid)?;
        Some(
            namespace
                .backend()
                .cancel(&mut self.engine, Token(key.to_raw())),
        )
    }

    /// Sleeps until something happens, unless it has.
    pub(super) fn sleep(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.sleeper.sleep(self, Self::has_work, Self::wait);
        self.groups.iter_mut().flatten().for_each(Group::end_sleep);
    }

    /// How long to look for work before sleeping: what the most eager controller here asks for.
    fn poll_limit(&self) -> Duration {
        let groups = self.groups.iter().flatten();
        groups
            .map(|group| group.core.poll)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn has_work(&mut self) -> bool {
        let room = self.engine.has_room();
        let mut work = self.shared.has_messages();
        for group in self.groups.iter_mut().flatten() {
            // Without room in the engine its completions wake the thread.
            work |= group.prepare_sleep() && room;
            work |= group.owes_interrupt();
            // A table that changed must be let go of by a thread that sleeps, too.
            group.snapshots.refresh();
        }
        work
    }

    fn wait(&mut self) {
        let timeout = self.sleep_limit();
        self.set_alarm();
        let mut events = [EpollEvent::default(); 4];
        self.shared.stats.sleeps.add(1);
        let start = Instant::now();
        let waited = self.epoll.wait(timeout, &mut events);
        self.polling.slept(start, Instant::now(), self.poll_limit());
        let count = match waited {
            Ok(count) => count,
            // A signal; the loop looks at everything anyway.
            Err(_) => return,
        };
        if count == 0 && !self.is_any_leaving() {
            self.notice_slow_resets();
        }
        for event in &events[..count] {
            match event.data() {
                KICK => self.shared.stats.kicks.add(1),
                DOORBELL => {
                    self.shared.stats.doorbell_wakeups.add(1);
                    for group in self.groups.iter_mut().flatten() {
                        group.count_wakeups();
                    }
                }
                _ => {}
            }
        }
    }

    /// Has the thread woken for the interrupts that are put off.
    fn set_alarm(&mut self) {
        let groups = self.groups.iter().flatten();
        self.alarm.set(groups.filter_map(Group::alarm).min());
    }

    fn notice_slow_resets(&self) {
        for core in &self.resets {
            let mine = self
                .groups
                .iter()
                .flatten()
                .filter(|group| same(&group.core, core));
            let commands: u32 = mine.map(Group::in_flight).sum();
            crate::guest_warn!(
                "controller '{}': its reset waits for {commands} commands that the storage has not \
                 finished",
                core.id
            );
        }
    }
}
