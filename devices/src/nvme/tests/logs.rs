//! Get Log Page and asynchronous events.

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Sqe, Status};

/// Identifier and size of every log.
const LOGS: [(u8, u64); 6] = [
    (0x00, 1024),
    (0x01, 16 * 64),
    (0x02, 512),
    (0x03, 512),
    (0x04, 4096),
    (0x05, 4096),
];

/// Result of an event about the Changed Namespace List.
const NAMESPACE_CHANGED: u32 = 0x0004_0002;
const INVALID_REGISTER: u32 = 0x0001_0000;
const INVALID_VALUE: u32 = 0x0001_0100;

fn read_log(guest: &Guest, lid: u8, len: u64, retain: bool) -> Vec<u8> {
    let buffer = guest.machine.alloc(len);
    guest.admin_ok(get_log(lid, 0, len, buffer, retain));
    guest.machine.read(buffer, len as usize)
}

fn changed(guest: &Guest, retain: bool) -> Vec<u32> {
    let list = read_log(guest, 4, 4096, retain);
    let numbers = list
        .chunks(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    numbers.take_while(|nsid| *nsid != 0).collect()
}

fn enable_notices(guest: &Guest) {
    guest.admin_ok(set_feature(0x0b, 1 << 8));
}

#[test]
fn every_log_can_be_read_in_parts_and_not_behind_its_end() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let buffer = machine.alloc(0x2000);
    for (lid, size) in LOGS {
        // Errors would change the log of errors between two reads.
        let whole = read_log(&guest, lid, size, true);
        for offset in [0, 4, size / 2, size - 4] {
            guest.admin_ok(get_log(lid, offset, size, buffer, true));
            let mut expected = whole[offset as usize..].to_vec();
            expected.resize(size as usize, 0);
            assert_eq!(
                machine.read(buffer, size as usize),
                expected,
                "{lid} at {offset}"
            );
        }
        guest.admin_ok(get_log(lid, size, 8, buffer, true));
        assert_eq!(machine.read(buffer, 8), [0; 8], "the end of {lid}");
    }
    for (lid, size) in LOGS {
        for offset in [size + 4, 1 << 32, u64::MAX - 3, 2, size - 1] {
            let cqe = guest.admin(get_log(lid, offset, 4, buffer, true));
            assert_eq!(cqe.status(), Status::INVALID_FIELD, "{lid} at {offset:#x}");
        }
    }
}

#[test]
fn the_number_of_dwords_is_bounded_by_mdts() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let page = machine.page();
    for (lid, _) in LOGS {
        machine.write(page, &[0xee; 8]);
        guest.admin_ok(get_log(lid, 0, 4, page, true));
        assert_eq!(machine.read(page + 4, 4), [0xee; 4], "one dword only");
        for bytes in [(4096 << 5) + 4, 1 << 34] {
            let cqe = guest.admin(get_log(lid, 0, bytes, page, true));
            assert_eq!(cqe.status(), Status::INVALID_FIELD);
        }
    }
    // As much as MDTS allows, with a list of pages; behind the log there are zeroes.
    let (data, list) = (machine.alloc(4096 << 5), machine.page());
    machine.write(data, &[0xee; 4096 << 5]);
    for index in 0..31 {
        machine
            .ram
            .write(list + index * 8, &(data + 4096 * (index + 1)))
            .unwrap();
    }
    let sqe = get_log(5, 0, 4096 << 5, data, true);
    guest.admin_ok(Sqe { prp2: list, ..sqe });
    assert_eq!(machine.read(data + 4096, 4096 * 31), vec![0; 4096 * 31]);
}

#[test]
fn unknown_logs_and_index_offsets_are_refused() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let buffer = machine.page();
    for lid in (0u8..=0xff).filter(|lid| !LOGS.iter().any(|log| log.0 == *lid)) {
        let cqe = guest.admin(get_log(lid, 0, 4, buffer, false));
        assert_eq!((cqe.status(), cqe.dnr()), (Status::INVALID_LOG_PAGE, true));
    }
    let by_index = Sqe {
        cdw14: 1 << 23,
        ..get_log(5, 0, 4, buffer, false)
    };
    assert_eq!(guest.admin(by_index).status(), Status::INVALID_FIELD);
    let of_namespace = Sqe {
        nsid: 1,
        ..get_log(2, 0, 512, buffer, false)
    };
    assert_eq!(guest.admin(of_namespace).status(), Status::INVALID_FIELD);
}

#[test]
fn the_list_of_logs_is_the_list_of_logs() {
    let guest = Machine::new().enabled("c");
    let log = read_log(&guest, 0, 1024, false);
    for (lid, entry) in (0..=0xff).zip(log.chunks(4)) {
        let known = LOGS.iter().any(|log| log.0 == lid);
        assert_eq!(entry[0] & 1 == 1, known, "{lid:#x}");
    }
}

#[test]
fn the_effects_log_lists_what_is_executed() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 4);
    let log = read_log(&guest, 5, 4096, false);
    for opcode in 0u8..=0xff {
        let at = usize::from(opcode) * 4;
        let cqe = guest.io(&mut pair, &nvm(NvmOpcode(opcode), 0, 1));
        let executed = cqe.status() != Status::INVALID_OPCODE;
        assert_eq!(log[1024 + at] & 1 == 1, executed, "I/O {opcode:#x}");
        if opcode == AdminOpcode::ASYNC_EVENT_REQUEST.0 {
            continue;
        }
        // An NSID that no command takes keeps all of them from doing anything.
        let sqe = Sqe {
            prp1: 0xe000_0000,
            prp2: 0xe000_0000,
            nsid: 7,
            ..admin(AdminOpcode(opcode))
        };
        let executed = guest.admin(sqe).status() != Status::INVALID_OPCODE;
        assert_eq!(log[at] & 1 == 1, executed, "admin {opcode:#x}");
    }
    let changes = |opcode: NvmOpcode| log[1024 + usize::from(opcode.0) * 4] & 2 != 0;
    assert!(changes(NvmOpcode::WRITE) && changes(NvmOpcode::WRITE_ZEROES));
    assert!(!changes(NvmOpcode::READ) && !changes(NvmOpcode::FLUSH));
}

#[test]
fn errors_are_logged_newest_first() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let cids: Vec<u16> = (0..20)
        .map(|nsid| {
            let sqe = Sqe {
                nsid,
                ..get_feature(0xff, 0, 0)
            };
            guest.admin(sqe).cid
        })
        .collect();
    let log = read_log(&guest, 1, 1024, false);
    for (index, entry) in log.chunks(64).enumerate() {
        let newest = 19 - index;
        assert_eq!(entry[..8], (newest as u64 + 1).to_le_bytes());
        assert_eq!(entry[10..12], cids[newest].to_le_bytes());
        assert_eq!(entry[12..14], (Status::INVALID_FIELD.0 << 1).to_le_bytes());
        assert_eq!(entry[24..28], (newest as u32).to_le_bytes());
    }
    let smart = read_log(&guest, 2, 512, false);
    assert_eq!(smart[176..184], 20u64.to_le_bytes());
}

#[test]
fn smart_counts_commands_and_data_of_all_queues() {
    let machine = Machine::new();
    machine.memory_namespace(4 << 20, 512);
    let guest = machine.enabled("c");
    let buffer = machine.alloc(8192);
    for id in [1, 2] {
        let mut pair = guest.create_pair(id, 4);
        for cid in 0..100 {
            let sqe = transfer(NvmOpcode::WRITE, cid, 0, 16, (buffer, buffer + 4096));
            guest.io(&mut pair, &sqe);
        }
        let sqe = transfer(NvmOpcode::READ, 0, 0, 1, (buffer, 0));
        guest.io(&mut pair, &sqe);
        guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, id));
    }
    let log = read_log(&guest, 2, 512, false);
    let counter = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    assert_eq!((counter(64), counter(80)), (2, 200), "commands");
    // 1,024 bytes and 1,638,400 bytes in thousands of 512 bytes, rounded up.
    assert_eq!((counter(32), counter(48)), (1, 4), "data units");
    assert_eq!(log[0], 0, "no warning");
    assert_eq!(log[1..3], 313u16.to_le_bytes());
    guest.admin_ok(set_feature(4, 300));
    assert_eq!(read_log(&guest, 2, 512, false)[0], 2, "temperature");
}

#[test]
fn a_temperature_over_its_threshold_is_an_event_if_wanted() {
    let guest = Machine::new().enabled("c");
    let request = guest.submit_admin(event_request());
    guest.admin_ok(set_feature(4, 300));
    assert!(guest.take_admin(request).is_none());
    guest.admin_ok(set_feature(0x0b, 2));
    assert_eq!(guest.wait_admin(request).dw0, 0x0002_0101);
}

#[test]
fn namespace_changes_are_events_only_if_wanted() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let request = guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    wait_until("the change to be noted", || changed(&guest, true) == [1]);
    assert!(guest.take_admin(request).is_none());
    assert_eq!(changed(&guest, false), [1]);
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
    assert_eq!(changed(&guest, false), [2]);
    assert_eq!(changed(&guest, false), [0u32; 0]);
}

#[test]
fn an_event_stays_masked_until_its_log_is_read() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    enable_notices(&guest);
    let first = guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(first).dw0, NAMESPACE_CHANGED);

    let second = guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    wait_until("the second change", || changed(&guest, true) == [1, 2]);
    assert!(
        guest.take_admin(second).is_none(),
        "masked, the log was retained"
    );

    // This read tells of both changes: there is nothing left to report.
    assert_eq!(changed(&guest, false), [1, 2]);
    guest.identify(1, 0, 0, 0).unwrap();
    assert!(
        guest.take_admin(second).is_none(),
        "an event about an empty list"
    );

    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(second).dw0, NAMESPACE_CHANGED);
    assert_eq!(changed(&guest, false), [3]);
}

#[test]
fn an_event_that_is_not_wanted_any_more_is_not_told() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    wait_until("the change to be noted", || changed(&guest, true) == [1]);
    guest.admin_ok(set_feature(0x0b, 0));
    let request = guest.submit_admin(event_request());
    assert_eq!(changed(&guest, true), [1], "the list is kept");
    enable_notices(&guest);
    assert!(guest.take_admin(request).is_none(), "it is not news");
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
    assert_eq!(changed(&guest, false), [1, 2]);
}

#[test]
fn a_hundred_changes_are_a_hundred_events() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let nsid = machine.memory_namespace(4096, 512).nsid();
    enable_notices(&guest);
    changed(&guest, false);
    for round in 0..100 {
        let request = guest.submit_admin(event_request());
        if round % 2 == 0 {
            machine.subsystem.detach(nsid, "c").unwrap();
        } else {
            machine.subsystem.attach(nsid, "c").unwrap();
        }
        assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
        // Retained, it is told once; read, it is told anew.
        assert_eq!(changed(&guest, true), [nsid]);
        assert_eq!(changed(&guest, false), [nsid]);
        assert_eq!(changed(&guest, false), [0u32; 0]);
    }
}

#[test]
fn who_had_a_namespace_hears_that_it_went_and_nobody_else() {
    let machine = Machine::new();
    let nsid = machine.memory_namespace(4096, 512).nsid();
    let guests = ["a", "b", "masked", "without"].map(|id| machine.enabled(id));
    machine.subsystem.detach(nsid, "without").unwrap();
    let requests = guests.each_ref().map(|guest| {
        changed(guest, false);
        if guest.controller.id() != "masked" {
            enable_notices(guest);
        }
        guest.submit_admin(event_request())
    });
    machine.subsystem.remove_namespace(nsid).unwrap();
    for (guest, request) in guests.iter().zip(requests).take(2) {
        assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
        assert_eq!(changed(guest, false), [nsid]);
    }
    let [_, _, masked, without] = &guests;
    wait_until("the change to be noted", || changed(masked, true) == [nsid]);
    assert!(masked.take_admin(requests[2]).is_none());
    assert_eq!(changed(masked, false), [nsid]);
    // All were told under one lock, so this one would know by now.
    assert_eq!(changed(without, false), [0u32; 0]);
    assert!(without.take_admin(requests[3]).is_none());
}

#[test]
fn an_event_waits_for_a_request() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    wait_until("the change to be noted", || changed(&guest, true) == [1]);
    let request = guest.submit_admin(event_request());
    assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
}

#[test]
fn more_requests_than_the_limit_are_refused() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let limit = guest.identify(1, 0, 0, 0).unwrap()[259] + 1;
    let requests: Vec<u16> = (0..limit)
        .map(|_| guest.submit_admin(event_request()))
        .collect();
    let status = guest.admin(event_request()).status();
    assert_eq!(status, Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    // The oldest is completed first; then there is room for another.
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    guest.wait_admin(requests[0]);
    let another = guest.submit_admin(event_request());
    guest.identify(1, 0, 0, 0).unwrap();
    for request in requests[1..].iter().chain([&another]) {
        assert!(guest.take_admin(*request).is_none());
    }
}

#[test]
fn a_request_can_be_aborted() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let requests = [0; 2].map(|_| guest.submit_admin(event_request()));
    assert_eq!(guest.admin_ok(abort(0, requests[0])), 0);
    assert_eq!(
        guest.wait_admin(requests[0]).status(),
        Status::ABORT_REQUESTED
    );
    assert_eq!(
        guest.admin_ok(abort(0, requests[0])),
        1,
        "not aborted twice"
    );
    // Events go to the other one.
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(requests[1]).dw0, NAMESPACE_CHANGED);
}

#[test]
fn a_reset_forgets_requests_events_and_masks() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    enable_notices(&guest);
    let request = guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    guest.wait_admin(request);
    guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    guest.disable();
    guest.enable();
    let request = guest.submit_admin(event_request());
    guest.identify(1, 0, 0, 0).unwrap();
    assert!(guest.take_admin(request).is_none());
    enable_notices(&guest);
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
}

#[test]
fn invalid_doorbell_writes_are_events() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let _pair = guest.create_pair(1, 4);
    let requests = [0; 2].map(|_| guest.submit_admin(event_request()));
    guest.write32(0x1008, 4);
    assert_eq!(guest.wait_admin(requests[0]).dw0, INVALID_VALUE);
    // Both are about the same log.
    guest.write32(0x1010, 1);
    guest.identify(1, 0, 0, 0).unwrap();
    assert!(guest.take_admin(requests[1]).is_none());
    read_log(&guest, 1, 64, false);
    assert_eq!(guest.wait_admin(requests[1]).dw0, INVALID_REGISTER);
}

#[test]
fn doorbells_of_a_disabled_controller_are_no_events() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    guest.write32(0x1000, 1);
    guest.write32(0x1008, 1);
    guest.enable();
    enable_notices(&guest);
    let request = guest.submit_admin(event_request());
    machine.memory_namespace(4096, 512);
    assert_eq!(guest.wait_admin(request).dw0, NAMESPACE_CHANGED);
}
