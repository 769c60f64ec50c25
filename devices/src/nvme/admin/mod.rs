//! The admin queue and the controller's life: enable, reset, shutdown.
//!
//! All of it runs on the main thread, from [`Admin::service`]. It never waits: what I/O threads have
//! to do is sent to them, and goes on when their [`Event`] comes.

mod events;
mod features;
mod identify;
mod log;
mod moves;
mod queues;
mod recording;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ram::GuestSlice;
use crate::subsystem::{AttachmentTable, MAX_NSID, Namespace};

use super::controller::{Controller, ControllerState};
use super::core::{DoorbellError, Event};
use super::doorbell::{DoorbellId, Shadow};
use super::error::CommandError;
use super::group::Group;
use super::io::Message;
use super::prp;
use super::queue::{CompletionQueue, Reservation, SubmissionQueue};
use super::spec::{AbortCdw10, AdminOpcode, Cc, ShutdownStatus, Sqe, Status};
use super::stats::{CqStats, QueueInfo, SqStats};
use super::trace::Recorder;
use events::{AsyncEvent, AsyncEvents};
use features::Features;
use log::{LogRequest, LogSource, Logs};
use queues::IoQueues;
use recording::Recording;

/// Index of the admin submission queue in its group.
const ADMIN: usize = 0;
/// Admin commands served before other events have their turn.
const BATCH: usize = 64;
/// Abort commands that can be outstanding (ACL + 1).
const ABORT_LIMIT: u8 = 4;
/// Entries of the Error Information log (ELPE + 1).
const ERROR_LOG_ENTRIES: u8 = 16;

/// The namespaces as admin commands see them.
#[derive(Debug)]
pub struct Namespaces<'a>(&'a AttachmentTable);

impl Namespaces<'_> {
    /// NSIDs of the attached namespaces, ascending.
    fn active(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|namespace| namespace.nsid())
    }

    /// Refuses NSIDs that can never name one namespace.
    fn check_range(&self, nsid: u32) -> Result<(), CommandError> {
        if (1..=MAX_NSID).contains(&nsid) {
            Ok(())
        } else {
            Err(Status::INVALID_NAMESPACE.into())
        }
    }

    /// The attached namespace; `None` for an inactive NSID.
    fn get(&self, nsid: u32) -> Result<Option<&Namespace>, CommandError> {
        self.check_range(nsid)?;
        Ok(self.0.get(nsid).map(|namespace| &**namespace))
    }

    /// Refuses NSIDs that name no attached namespace.
    fn check_one(&self, nsid: u32) -> Result<(), CommandError> {
        self.get(nsid)?
            .map(|_| ())
            .ok_or(Status::INVALID_FIELD.into())
    }
}

/// Whether the controller runs.
#[derive(Debug)]
enum State {
    Disabled,
    /// The admin queues, and I/O queues if the guest made some.
    Enabled(Box<Group>),
    /// Waits for these I/O threads to let go of the guest's memory.
    Stopping {
        threads: BTreeSet<usize>,
        then: Then,
    },
    /// No queue is served until the next reset, even if the guest leaves CC.EN set (3.6).
    ShutDown,
}

/// Why the queues are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Disabled,
    ShutDown,
}

/// Why a command is not completed yet.
#[derive(Debug, PartialEq, Eq)]
enum Waiting {
    SqDeletion(u16),
    CqDeletion(u16),
    Abort,
}

/// How a command went on.
#[derive(Debug)]
enum Outcome {
    /// It is done, with dword 0 of the completion.
    Done(u32),
    /// It is completed when an I/O thread has done its part.
    Later(Waiting),
    /// It is completed by an asynchronous event.
    Held,
}

#[derive(Debug)]
struct Pending {
    waiting: Waiting,
    cid: u16,
    room: Reservation,
}

/// The admin queue's owner.
#[derive(Debug)]
pub struct Admin {
    state: State,
    features: Features,
    events: AsyncEvents,
    logs: Logs,
    io: IoQueues,
    pending: Vec<Pending>,
    recording: Recording,
    // Scratch.
    slices: Vec<GuestSlice>,
}

impl Admin {
    /// A controller as after power-on, with `pairs` I/O queue pairs at most.
    pub fn new(pairs: u16) -> Self {
        Self {
            state: State::Disabled,
            features: Features::new(pairs),
            events: AsyncEvents::default(),
            logs: Logs::new(),
            io: IoQueues::default(),
            pending: Vec::new(),
            recording: Recording::default(),
            slices: Vec::new(),
        }
    }

    /// Records commands that are fetched from now on, or no more.
    pub fn set_trace(&mut self, recorder: Option<Recorder>) {
        self.recording.set(recorder);
    }

    /// Does whatever there is to do.
    pub fn service(&mut self, controller: &Controller) {
        for event in controller.core().take_events() {
            self.handle(controller, event);
        }
        self.follow_registers(controller);
        self.note_changes(controller);
        let more = self.serve(controller);
        if let State::Enabled(_) = self.state {
            self.io.rebalance(controller);
        }
        if let State::Enabled(group) = &mut self.state {
            // Admin commands keep no table, and must keep no namespace that was removed.
            group.snapshots.refresh();
            self.events.report(group, &mut self.recording);
            group.interrupt();
        }
        if more {
            controller.core().wake();
        }
    }

    fn handle(&mut self, controller: &Controller, event: Event) {
        match event {
            Event::SqDeleted { sqid } => {
                self.io.sq_deleted(sqid);
                self.finish(
                    |pending| pending.waiting == Waiting::SqDeletion(sqid),
                    Ok(0),
                );
            }
            Event::CqDeleted { cqid } => {
                self.io.cq_deleted(cqid);
                self.finish(
                    |pending| pending.waiting == Waiting::CqDeletion(cqid),
                    Ok(0),
                );
            }
            Event::AbortTried { cid, aborted } => {
                let is_it =
                    |pending: &Pending| pending.waiting == Waiting::Abort && pending.cid == cid;
                // Bit 0 says that the command was not aborted.
                self.finish(is_it, Ok(u32::from(!aborted)));
            }
            Event::CqGivenUp { group } => {
                // A reset that has begun since takes these queues, too: nobody gets them.
                if let State::Enabled(_) = self.state {
                    self.io.moved(controller, group);
                }
            }
            Event::CqKept { cqid } => {
                // What waits for the queue must not come behind the reset.
                if let State::Enabled(_) = self.state {
                    self.io.kept(controller, cqid);
                }
            }
            Event::Quiesced { thread } => {
                if let State::Stopping { threads, then } = &mut self.state {
                    threads.remove(&thread);
                    match *then {
                        _ if !threads.is_empty() => {}
                        Then::Disabled => self.reset_done(controller),
                        Then::ShutDown => self.shutdown_done(controller),
                    }
                }
            }
        }
    }

    /// Completes a command that waited.
    fn finish(&mut self, which: impl Fn(&Pending) -> bool, end: Result<u32, CommandError>) {
        let State::Enabled(group) = &mut self.state else {
            return;
        };
        if let Some(index) = self.pending.iter().position(which) {
            let pending = self.pending.remove(index);
            self.recording.completed(&group.core, pending.cid, end);
            group.complete(ADMIN, pending.cid, pending.room, end);
        }
    }

    /// Does what the guest asked for in CC.
    fn follow_registers(&mut self, controller: &Controller) {
        let mut registers = controller.registers();
        let reset = registers.take_reset_asked();
        let (cc, aqa, asq, acq) = (registers.cc, registers.aqa, registers.asq, registers.acq);
        drop(registers);
        if reset {
            self.begin_reset(controller);
        }
        if let State::Disabled = self.state
            && cc.en()
            && !controller.is_stopped()
            && !controller.registers().csts.cfs()
        {
            let sizes = (u32::from(aqa.asqs_z()) + 1, u32::from(aqa.acqs_z()) + 1);
            self.enable(controller, enable(controller, cc, (asq, acq), sizes));
        }
        self.follow_shutdown(controller, cc);
    }

    fn enable(&mut self, controller: &Controller, queues: Result<Group, EnableError>) {
        let done = controller.registers().enable_done(queues.is_ok());
        match queues {
            Ok(group) if done => {
                // What was written to doorbells of no queue before is no news to this driver.
                self.events = AsyncEvents::default();
                controller.core().begin_use();
                let _ = controller.core().take_doorbell_errors();
                self.state = State::Enabled(Box::new(group));
            }
            // The reset that came in between is next.
            Ok(_) => {}
            Err(why) => {
                crate::guest_warn!("controller '{}': cannot be enabled: {why}", controller.id());
            }
        }
    }

    fn begin_reset(&mut self, controller: &Controller) {
        let core = controller.core();
        core.doorbells.reset();
        self.events = AsyncEvents::default();
        self.features = Features::new(controller.config().max_ioqpairs);
        self.features.apply(core);
        match std::mem::replace(&mut self.state, State::Disabled) {
            State::Enabled(_) => self.stop_queues(controller, Then::Disabled),
            // The threads are at it already.
            State::Stopping { threads, .. } => {
                let then = Then::Disabled;
                self.state = State::Stopping { threads, then };
            }
            State::Disabled | State::ShutDown => self.reset_done(controller),
        }
    }

    /// Has nothing reach guest memory any more; goes on when the I/O threads have told so.
    fn stop_queues(&mut self, controller: &Controller, then: Then) {
        let core = controller.core();
        core.doorbells.reset();
        self.pending.clear();
        self.recording.abandon(core);
        let threads = (0..controller.io_threads().count()).collect();
        self.state = State::Stopping { threads, then };
        let message = || Message::Reset {
            core: Arc::clone(core),
        };
        controller.io_threads().send_all(message);
    }

    fn reset_done(&mut self, controller: &Controller) {
        self.io.clear();
        self.state = State::Disabled;
        controller.core().end_halt();
        controller.registers().reset_done();
    }

    /// Does what CC.SHN asks for. Every completed write is in the backend, where it outlives the
    /// guest. The guest takes its queues' memory back without another word, so they stop.
    fn follow_shutdown(&mut self, controller: &Controller, cc: Cc) {
        let status = match self.state {
            _ if cc.shn() == 0 => return,
            State::Stopping { .. } | State::ShutDown => return,
            State::Disabled => ShutdownStatus::Complete,
            State::Enabled(_) => {
                self.stop_queues(controller, Then::ShutDown);
                ShutdownStatus::Occurring
            }
        };
        controller.registers().set_shutdown(status);
    }

    fn shutdown_done(&mut self, controller: &Controller) {
        self.io.clear();
        self.state = State::ShutDown;
        controller
            .registers()
            .set_shutdown(ShutdownStatus::Complete);
    }

    /// Turns what others noted into events.
    fn note_changes(&mut self, controller: &Controller) {
        let config = self.features.async_events;
        for error in controller.core().take_doorbell_errors() {
            let event = match error {
                DoorbellError::Register => AsyncEvent::InvalidDoorbellRegister,
                DoorbellError::Value => AsyncEvent::InvalidDoorbellValue,
            };
            self.events.raise(event, config);
        }
        let changed = controller.take_changed_namespaces();
        if !changed.is_empty() {
            self.logs.add_changed(&changed);
            self.events
                .raise(AsyncEvent::NamespaceAttributeChanged, config);
        }
    }

    /// Serves the admin queue. `true` if it may hold more.
    fn serve(&mut self, controller: &Controller) -> bool {
        for _ in 0..BATCH {
            let State::Enabled(group) = &mut self.state else {
                return false;
            };
            let Some((sqe, room)) = group.fetch(ADMIN) else {
                // Nothing there; asks to be rung, and looks once more.
                return group.prepare_sleep();
            };
            self.recording.fetched(&group.core, &sqe);
            let outcome = self.execute(controller, &sqe);
            self.settle(&sqe, room, outcome);
        }
        true
    }

    fn settle(&mut self, sqe: &Sqe, room: Reservation, outcome: Result<Outcome, CommandError>) {
        let State::Enabled(group) = &mut self.state else {
            return;
        };
        let recording = &mut self.recording;
        match outcome {
            Ok(Outcome::Done(dw0)) => {
                recording.completed(&group.core, sqe.cid(), Ok(dw0));
                group.complete(ADMIN, sqe.cid(), room, Ok(dw0));
            }
            Ok(Outcome::Later(waiting)) => self.pending.push(Pending {
                waiting,
                cid: sqe.cid(),
                room,
            }),
            // A request may wait for ever and must not take room from others.
            Ok(Outcome::Held) => group.forget(ADMIN, room),
            Err(error) => {
                self.logs.add_error(sqe, error);
                recording.completed(&group.core, sqe.cid(), Err(error));
                group.complete(ADMIN, sqe.cid(), room, Err(error));
            }
        }
    }

    fn execute(&mut self, controller: &Controller, sqe: &Sqe) -> Result<Outcome, CommandError> {
        if sqe.cdw0.fuse() != 0 || sqe.cdw0.psdt() != 0 {
            return Err(Status::INVALID_FIELD.into());
        }
        let table = controller.core().table();
        let namespaces = Namespaces(&table);
        let done = |()| Outcome::Done(0);
        match AdminOpcode(sqe.cdw0.opc()) {
            AdminOpcode::IDENTIFY => {
                let page = identify::identify(controller, sqe, &namespaces)?;
                self.return_data(controller, sqe, &page).map(done)
            }
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(controller, sqe).map(done),
            AdminOpcode::GET_FEATURES => self.features.get(sqe, &namespaces).map(Outcome::Done),
            AdminOpcode::SET_FEATURES => self
                .set_features(controller, sqe, &namespaces)
                .map(Outcome::Done),
            AdminOpcode::CREATE_CQ => self.io.create_cq(controller, &self.features, sqe).map(done),
            AdminOpcode::CREATE_SQ => self.io.create_sq(controller, &self.features, sqe).map(done),
            AdminOpcode::DELETE_SQ => {
                let sqid = self.io.delete_sq(controller, sqe)?;
                Ok(Outcome::Later(Waiting::SqDeletion(sqid)))
            }
            AdminOpcode::DELETE_CQ => {
                let cqid = self.io.delete_cq(controller, sqe)?;
                Ok(Outcome::Later(Waiting::CqDeletion(cqid)))
            }
            AdminOpcode::ABORT => self.abort(controller, sqe),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if self.events.request(sqe.cid()) {
                    Ok(Outcome::Held)
                } else {
                    Err(Status::ASYNC_EVENT_LIMIT_EXCEEDED.into())
                }
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG => {
                self.doorbell_buffer_config(controller, sqe).map(done)
            }
            _ => Err(Status::INVALID_OPCODE.into()),
        }
    }

    fn return_data(
        &mut self,
        controller: &Controller,
        sqe: &Sqe,
        bytes: &[u8],
    ) -> Result<(), CommandError> {
        let ram = &controller.core().ram;
        prp::copy_out(ram, sqe.prp1, sqe.prp2, bytes, &mut self.slices)
    }

    fn get_log_page(&mut self, controller: &Controller, sqe: &Sqe) -> Result<(), CommandError> {
        let request = LogRequest::new(sqe, controller.core().max_transfer)?;
        let source = LogSource {
            totals: self.io.totals(),
            temperature_warning: self.features.temperature_warning(),
            firmware: &controller.config().firmware,
        };
        let bytes = self.logs.read(&request, &source)?;
        self.return_data(controller, sqe, &bytes)?;
        if !request.rae {
            self.events.log_read(request.id);
            if request.id == super::spec::LogId::CHANGED_NAMESPACES {
                self.logs.clear_changed();
            }
        }
        Ok(())
    }

    fn set_features(
        &mut self,
        controller: &Controller,
        sqe: &Sqe,
        namespaces: &Namespaces<'_>,
    ) -> Result<u32, CommandError> {
        let result = self.features.set(sqe, namespaces, !self.io.is_empty())?;
        self.features.apply(controller.core());
        // Interrupts that wait are judged by what is set now.
        controller.io_threads().wake_all();
        self.events.keep_wanted(self.features.async_events);
        if self.features.temperature_warning() {
            self.events
                .raise(AsyncEvent::Temperature, self.features.async_events);
        }
        Ok(result)
    }

    fn abort(&mut self, controller: &Controller, sqe: &Sqe) -> Result<Outcome, CommandError> {
        let cdw10 = AbortCdw10::from_bits(sqe.cdw10);
        if cdw10.sqid() == 0 {
            return Ok(self.abort_admin(cdw10.cid()));
        }
        let aborts = |pending: &&Pending| pending.waiting == Waiting::Abort;
        if self.pending.iter().filter(aborts).count() >= usize::from(ABORT_LIMIT) {
            return Err(Status::ABORT_LIMIT_EXCEEDED.into());
        }
        // A queue that does not exist has no command to abort.
        let Some(cqid) = self.io.cq_of_sq(cdw10.sqid()) else {
            return Ok(Outcome::Done(1));
        };
        let message = Message::Abort {
            core: Arc::clone(controller.core()),
            sqid: cdw10.sqid(),
            cid: cdw10.cid(),
            abort_cid: sqe.cid(),
        };
        self.io.tell_owner(controller, cqid, message);
        Ok(Outcome::Later(Waiting::Abort))
    }

    /// Of admin commands only event requests wait long enough to be aborted.
    fn abort_admin(&mut self, cid: u16) -> Outcome {
        let State::Enabled(group) = &mut self.state else {
            return Outcome::Done(1);
        };
        if !self.events.has_request(cid) {
            return Outcome::Done(1);
        }
        let Some(room) = group.reserve() else {
            return Outcome::Done(1);
        };
        self.events.withdraw(cid);
        let aborted = CommandError::transient(Status::ABORT_REQUESTED);
        self.recording.completed(&group.core, cid, Err(aborted));
        group.post(ADMIN, cid, room, Err(aborted));
        Outcome::Done(0)
    }

    /// Doorbell Buffer Config (5.8).
    fn doorbell_buffer_config(
        &mut self,
        controller: &Controller,
        sqe: &Sqe,
    ) -> Result<(), CommandError> {
        let core = controller.core();
        if !sqe.prp1.is_multiple_of(prp::PAGE) || !sqe.prp2.is_multiple_of(prp::PAGE) {
            return Err(Status::INVALID_FIELD.into());
        }
        let shadow = Arc::new(Shadow::new(&core.ram, sqe.prp1, sqe.prp2)?);
        core.doorbells.start_shadow(&shadow);
        // Before the completion, and so before the guest leaves a doorbell out.
        controller.io_threads().send_all(|| Message::StartShadow {
            core: Arc::clone(core),
            shadow: Arc::clone(&shadow),
        });
        if let State::Enabled(group) = &mut self.state {
            group.start_shadow(shadow);
        }
        self.io.add_doorbell_events(controller);
        Ok(())
    }

    /// The queues' counters, the admin queue first.
    pub fn queue_info(&self, controller: &Controller) -> Vec<QueueInfo> {
        let mut queues = Vec::new();
        if let State::Enabled(group) = &self.state {
            let exits = |id| {
                controller
                    .core()
                    .doorbells
                    .get(id)
                    .map_or(0, |bell| bell.exits())
            };
            let commands = |sq: &super::group::Sq| sq.stats.commands.get();
            queues.push(QueueInfo {
                sqid: 0,
                cqid: 0,
                entries: u32::from(controller.registers().aqa.asqs_z()) + 1,
                io_thread: None,
                vector: Some(0),
                doorbell_exits: exits(DoorbellId::sq(0)) + exits(DoorbellId::cq(0)),
                coalesced_doorbells: 0,
                ioeventfd_wakeups: 0,
                commands: group.sqs.iter().flatten().map(commands).sum(),
                in_flight: group.in_flight(),
                read_bytes: 0,
                written_bytes: 0,
                completions: group.cq_stats.completions.get(),
                interrupts: group.cq_stats.interrupts.get(),
                moves: group.cq_stats.moves.get(),
            });
        }
        queues.extend(self.io.info(controller));
        queues
    }

    /// Whether there is no queue, and none that is being let go of.
    pub fn is_disabled(&self) -> bool {
        matches!(self.state, State::Disabled)
    }

    /// What the controller is doing, as its registers and queues have it.
    pub fn controller_state(&self, controller: &Controller) -> ControllerState {
        let registers = controller.registers();
        match self.state {
            _ if controller.is_stopped() => ControllerState::Stopped,
            State::Disabled if registers.csts.cfs() => ControllerState::Failed,
            State::Disabled if registers.cc.en() => ControllerState::Starting,
            State::Disabled => ControllerState::Disabled,
            State::Enabled(_) => ControllerState::Ready,
            State::Stopping { then, .. } => match then {
                Then::Disabled => ControllerState::Resetting,
                Then::ShutDown => ControllerState::ShuttingDown,
            },
            State::ShutDown => ControllerState::Shutdown,
        }
    }
}

/// Why CC.EN = 1 cannot be followed.
#[derive(Debug, thiserror::Error)]
enum EnableError {
    #[error("CC.CSS = {0}: only 0 (NVM) and 6 (all) are offered")]
    CommandSet(u8),
    #[error("CC.MPS = {0}: only 0 (4 KiB pages) is offered")]
    PageSize(u8),
    #[error("CC.AMS = {0}: only 0 (round robin) is offered")]
    Arbitration(u8),
    #[error("AQA: admin queues of {0} and {1} entries, but 2 is the least")]
    Size(u32, u32),
    #[error("ASQ or ACQ: {0}")]
    Address(#[from] crate::ram::NotRam),
}

/// Makes the admin queues (3.5.1).
fn enable(
    controller: &Controller,
    cc: Cc,
    (asq, acq): (u64, u64),
    (sq_entries, cq_entries): (u32, u32),
) -> Result<Group, EnableError> {
    if cc.css() != 0 && cc.css() != 6 {
        return Err(EnableError::CommandSet(cc.css()));
    }
    if cc.mps() != 0 {
        return Err(EnableError::PageSize(cc.mps()));
    }
    if cc.ams() != 0 {
        return Err(EnableError::Arbitration(cc.ams()));
    }
    if sq_entries < 2 || cq_entries < 2 {
        return Err(EnableError::Size(sq_entries, cq_entries));
    }
    let core = controller.core();
    let sq = SubmissionQueue::new(&core.ram, 0, asq, sq_entries)?;
    let cq = CompletionQueue::new(&core.ram, 0, acq, cq_entries, Some(0))?;
    core.doorbells.open(DoorbellId::sq(0), sq_entries, 0);
    core.doorbells.open(DoorbellId::cq(0), cq_entries, 0);
    let mut group = Group::new(Arc::clone(core), cq, Arc::new(CqStats::default()));
    group.add_sq(sq, Arc::new(SqStats::default()));
    Ok(group)
}
