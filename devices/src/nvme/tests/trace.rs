//! What a trace has of a guest's commands.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
use super::harness::*;
use super::held::{InFlight, stubborn_namespace, wait};
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Status};
use crate::nvme::trace::{Record, TraceEvent, TraceReader, Traced, Tracer};
use crate::storage::testing::Mode;

/// A machine whose controllers are traced, and who reads that.
struct Watched {
    machine: Arc<Machine>,
    tracer: Arc<Tracer>,
    reader: TraceReader,
}

impl Watched {
    fn new() -> Self {
        let machine = Machine::new();
        let (tracer, reader) = Tracer::begin().unwrap();
        machine.io_threads.set_trace(Some(&tracer));
        Self {
            machine,
            tracer,
            reader,
        }
    }

    fn records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let take = |traced| match traced {
            Traced::Record(record) => {
                records.push(record);
                Ok(())
            }
            lost @ Traced::Lost(_) => panic!("{lost:?}"),
        };
        self.reader.read(take).unwrap();
        records
    }

    /// What happened since the last look: queue, opcode, identifier, what.
    fn events(&mut self) -> Vec<(u16, u8, u16, &'static str)> {
        let records = self.records();
        let event = |record: &Record| {
            let what = match record.event {
                TraceEvent::Fetched { .. } => "fetched",
                TraceEvent::Completed { .. } => "completed",
                TraceEvent::Abandoned { .. } => "abandoned",
            };
            let command = record.command;
            (command.sqid, command.opcode, command.cid, what)
        };
        records.iter().map(event).collect()
    }
}

/// The status, and dword 0, of a command that was completed.
fn end(record: &Record) -> (Status, u32) {
    match record.event {
        TraceEvent::Completed { status, dw0, .. } => (status, dw0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_is_recorded_as_it_is_fetched_and_completed() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let control = machine.test_namespace();
    control.set_mode(Mode::Hold);
    let guest = machine.enabled("c");
    let (mut sq, mut cq) = guest.create_pair(3, 16);
    watched.records();

    let page = machine.page();
    let read = transfer(NvmOpcode::READ, 7, 9, 4, (page, 0));
    guest.submit(&mut sq, &read);
    control.wait_held(1).unwrap();
    let records = watched.records();
    let [fetched] = records.as_slice() else {
        panic!("{records:?}");
    };
    let command = fetched.command;
    assert_eq!((command.sqid, command.cqid, command.cid), (3, 3, 7));
    assert_eq!((command.opcode, command.nsid), (NvmOpcode::READ.0, 1));
    assert_eq!(command.bytes, 4 * 512);
    let event = TraceEvent::Fetched {
        prp1: page,
        prp2: 0,
        cdw: [9, 0, 3],
    };
    assert_eq!(fetched.event, event);
    let controller = watched.tracer.controller(command.controller).unwrap();
    assert_eq!(controller.id, "c");
    assert_eq!(controller.cntlid, guest.controller.cntlid());
    assert_eq!(controller.subsystem, "subsys0");

    assert!(control.release_one());
    assert_eq!(guest.wait_cqe(&mut cq).status(), Status::SUCCESS);
    let records = watched.records();
    let [completed] = records.as_slice() else {
        panic!("{records:?}");
    };
    assert_eq!(completed.command, command);
    assert_eq!(end(completed), (Status::SUCCESS, 0));
    let TraceEvent::Completed { latency, .. } = completed.event else {
        unreachable!();
    };
    assert_eq!(completed.time - latency, fetched.time);

    // Commands that are refused end at once.
    control.set_mode(Mode::Inline);
    let beyond = transfer(NvmOpcode::WRITE, 8, 1 << 40, 1, (page, 0));
    let elsewhere = nvm(NvmOpcode::FLUSH, 9, 77);
    for (sqe, status) in [
        (beyond, Status::LBA_OUT_OF_RANGE),
        (elsewhere, Status::INVALID_FIELD),
    ] {
        guest.submit(&mut sq, &sqe);
        assert_eq!(guest.wait_cqe(&mut cq).status(), status);
        let records = watched.records();
        assert_eq!(records.len(), 2, "{records:?}");
        assert_eq!(end(&records[1]), (status, 0));
        assert_eq!(records[0].command, records[1].command);
    }
}

#[test]
fn admin_commands_are_recorded() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let guest = machine.enabled("c");
    assert_eq!(watched.events(), []);
    guest.identify(1, 0, 0, 0).unwrap();
    let records = watched.records();
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(records[0].command.opcode, AdminOpcode::IDENTIFY.0);
    assert_eq!(records[0].command.bytes, 4096);
    assert_eq!(end(&records[1]), (Status::SUCCESS, 0));
    // Number of queues: the answer is in dword 0.
    let granted = guest.admin_ok(set_feature(7, 0x0001_0001));
    assert_eq!(end(&watched.records()[1]), (Status::SUCCESS, granted));
    guest.create_pair(1, 8);
    let opcodes = watched.records();
    let opcodes: Vec<u8> = opcodes.iter().map(|it| it.command.opcode).collect();
    let [cq, sq] = [AdminOpcode::CREATE_CQ.0, AdminOpcode::CREATE_SQ.0];
    assert_eq!(opcodes, [cq, cq, sq, sq]);
    // The answers of these two come later.
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 1));
    let ends = watched.records();
    let ends: Vec<&Record> = ends.iter().skip(1).step_by(2).collect();
    assert_eq!(ends.len(), 2);
    assert!(ends.iter().all(|it| end(it) == (Status::SUCCESS, 0)));
    assert_eq!(
        guest.admin(admin(AdminOpcode(0x55))).status(),
        Status::INVALID_OPCODE
    );
    let unknown = watched.records();
    assert_eq!(unknown[0].command.opcode, 0x55);
    assert_eq!(end(&unknown[1]), (Status::INVALID_OPCODE, 0));
}

#[test]
fn event_requests_end_with_their_event_or_a_reset() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let guest = machine.enabled("c");
    let [first, second] = [(); 2].map(|()| guest.submit_admin(event_request()));
    // Namespace attribute notices.
    guest.admin_ok(set_feature(0x0b, 1 << 8));
    let opcode = AdminOpcode::ASYNC_EVENT_REQUEST.0;
    let requests = watched.events();
    let fetched = [first, second].map(|cid| (0, opcode, cid, "fetched"));
    assert_eq!(&requests[..2], fetched);
    machine.memory_namespace(4096, 512);
    guest.wait_admin(first);
    assert_eq!(watched.events(), [(0, opcode, first, "completed")]);
    guest.disable();
    assert_eq!(watched.events(), [(0, opcode, second, "abandoned")]);
}

#[test]
fn what_a_reset_or_a_removal_ends_is_abandoned() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let _held = InFlight::start(&guest, &control, 1, 3);
    watched.records();
    guest.write32(CC, CC_ENABLE & !1);
    backend.wait_cancels(3);
    assert_eq!(watched.events(), [], "the storage still has them");
    assert_eq!(control.release_all(), 3);
    guest.wait_csts("the reset", 1, 0);
    let read = NvmOpcode::READ.0;
    let mut abandoned = watched.events();
    abandoned.sort_unstable();
    assert_eq!(abandoned, [0, 1, 2].map(|cid| (1, read, cid, "abandoned")));

    guest.enable();
    let _held = InFlight::start(&guest, &control, 1, 1);
    watched.records();
    let quiet = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest.controller.stop(quiet.try_clone().unwrap());
    backend.wait_cancels(4);
    assert_eq!(control.release_all(), 1);
    wait(&quiet);
    assert_eq!(watched.events(), [(1, read, 0, "abandoned")]);
}

#[test]
fn aborted_commands_have_their_status() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let _held = InFlight::start(&guest, &control, 1, 1);
    watched.records();
    assert_eq!(guest.admin_ok(abort(1, 0)), 0);
    let records = watched.records();
    let io = records.iter().find(|it| it.command.sqid == 1).unwrap();
    assert_eq!(end(io), (Status::ABORT_REQUESTED, 0));
    assert_eq!(records.len(), 3, "{records:?}");
}

#[test]
fn it_is_turned_on_and_off_under_io() {
    let mut watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    machine.io_threads.set_trace(None);
    guest.controller.set_trace(None);
    let mut held = InFlight::start(&guest, &control, 1, 1);
    watched.records();
    // On again: what was fetched before is not in it, what comes is.
    machine.io_threads.set_trace(Some(&watched.tracer));
    guest.controller.set_trace(Some(&watched.tracer));
    control.set_mode(Mode::Inline);
    assert_eq!(
        guest.io(&mut held.pair, &flush(9)).status(),
        Status::SUCCESS
    );
    assert!(control.release_one());
    guest.wait_cqe(&mut held.pair.1);
    let flush = NvmOpcode::FLUSH.0;
    let both = [(1, flush, 9, "fetched"), (1, flush, 9, "completed")];
    assert_eq!(watched.events(), both);
}

#[test]
fn a_trace_that_nobody_reads_any_more_stops_nothing() {
    let watched = Watched::new();
    let machine = Arc::clone(&watched.machine);
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 64);
    let recorders = watched.tracer.recorders();
    assert_eq!(recorders, 3, "two threads and an admin queue");
    drop(watched.reader);
    for cid in 0..3000 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).status(), Status::SUCCESS);
    }
    // Nor is there anybody who records for it but the thread that has nothing to do.
    guest.identify(1, 0, 0, 0).unwrap();
    assert_eq!(watched.tracer.recorders(), 1);
    // Nor does a controller that comes later.
    let other = machine.enabled("d");
    wait_until("its identification", || other.identify(1, 0, 0, 0).is_ok());
}
