//! I/O queues: many, tiny, full, shared, deleted with commands in them, and refused.

use super::Machine;
use super::flow::Flow;
use crate::check::{Outcome, ensure, ensure_eq, fail};
use crate::memory::{self, PAGE};
use crate::nvme::{Buffer, Command, CompletionQueue, Controller, Pair, admin, io, status};
use crate::serial::println;

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    let pairs = controller.request_queues(64)?;
    println!(
        "{pairs} queue pairs, at most {} entries",
        controller.max_entries()
    );
    refusals(&mut controller)?;
    sizes(&mut controller)?;
    many(&mut controller, pairs as u16)?;
    small_completion_queue(&mut controller)?;
    shared_completion_queue(&mut controller, pairs as u16)?;
    delete_busy(&mut controller)
}

/// Create and Delete with wrong arguments.
fn refusals(controller: &mut Controller) -> Outcome {
    let most = controller.max_entries();
    let sq = controller.new_sq(1, 16);
    let cq = controller.new_cq(1, 16);
    let create_cq = Controller::create_cq_command(&cq, None);
    let create_sq = Controller::create_sq_command(&sq, 1);
    // "Should be" an invalid identifier by the specification; QEMU says that the CQ is invalid.
    let no_queue = [status::INVALID_QUEUE_ID, status::CQ_INVALID];

    controller.admin_refused("SQ without its CQ", create_sq, &[status::CQ_INVALID])?;
    for (what, command) in [("SQ", create_sq), ("CQ", create_cq)] {
        for id in [0, 0xffff] {
            let command = command.dword(10, 15 << 16 | id);
            controller.admin_refused(what, command, &no_queue)?;
        }
    }
    for size in [0, most.min(0xffff)] {
        if size == 0 || most <= 0xffff {
            let command = create_cq.dword(10, size << 16 | 1);
            controller.admin_refused("CQ size", command, &[status::INVALID_QUEUE_SIZE])?;
        }
    }
    let vector = create_cq.dword(11, 3 | 2048 << 16);
    controller.admin_refused("vector 2048", vector, &[status::INVALID_VECTOR])?;

    controller.admin_ok("Create CQ", create_cq)?;
    controller.admin_refused("a second CQ 1", create_cq, &[status::INVALID_QUEUE_ID])?;
    controller.admin_refused("SQ on CQ 0", create_sq.dword(11, 1), &no_queue)?;
    let other = create_sq.dword(11, 2 << 16 | 1);
    controller.admin_refused("SQ on CQ 2", other, &[status::CQ_INVALID])?;
    let size = create_sq.dword(10, 1);
    controller.admin_refused("SQ of one entry", size, &[status::INVALID_QUEUE_SIZE])?;
    controller.admin_ok("Create SQ", create_sq)?;
    controller.admin_refused("a second SQ 1", create_sq, &[status::INVALID_QUEUE_ID])?;
    refused_deletions(controller)
}

/// Deletion of what is in use or is not there. Queue pair 1 exists before and not after.
fn refused_deletions(controller: &mut Controller) -> Outcome {
    let delete_cq = Command::new(admin::DELETE_CQ).dword(10, 1);
    let in_use = [status::INVALID_QUEUE_DELETION];
    controller.admin_refused("deletion of a CQ with an SQ", delete_cq, &in_use)?;
    // QEMU says "completion queue invalid" where the specification says "identifier".
    let codes = [status::INVALID_QUEUE_ID, status::CQ_INVALID];
    let codes = &codes[..if controller.is_qemu() { 2 } else { 1 }];
    for opcode in [admin::DELETE_SQ, admin::DELETE_CQ] {
        for id in [0, 2, 0x7fff, 0xffff] {
            let command = Command::new(opcode).dword(10, id);
            controller.admin_refused("deletion of no queue", command, codes)?;
        }
    }
    controller.delete_pair(1)?;
    let again = Command::new(admin::DELETE_SQ).dword(10, 1);
    controller.admin_refused("a second deletion", again, codes)
}

/// Full rings of many sizes, several times around.
fn sizes(controller: &mut Controller) -> Outcome {
    let namespace = controller.namespace()?;
    let page = memory::allocate(2 * PAGE);
    let most = controller.max_entries();
    for entries in [2, 3, 4, 8, 64, 1024, 4096, 65_536] {
        if entries > most {
            break;
        }
        let mark = memory::mark();
        let mut pair = controller.create_pair(1, entries)?;
        let command =
            Command::blocks(io::READ, namespace.id, 0, 1).prp(page.address(0), page.address(PAGE));
        let rounds = if entries > 1024 { 2 } else { 5 };
        for round in 0..rounds {
            full_ring(controller, &mut pair, command, round)?;
        }
        controller.delete_pair(1)?;
        memory::release(mark);
    }
    Ok(())
}

/// Fills the ring, rings once, and takes exactly as many completions.
fn full_ring(controller: &Controller, pair: &mut Pair, command: Command, round: u32) -> Outcome {
    let entries = pair.sq.entries;
    let mut seen = memory::allocate(1 << 16).part(0, 1 << 16);
    let seen = &mut seen;
    let mut sent = 0;
    while let Some(id) = pair.sq.push(command) {
        seen.write8(u64::from(id), 1);
        sent += 1;
    }
    ensure_eq!(sent, entries - 1, "commands in a ring of {entries}");
    pair.sq.ring();
    for done in 0..sent {
        let completion = controller.wait(pair)?;
        ensure!(
            completion.success() && completion.sq_id == pair.sq.id,
            "ring of {entries}, round {round}, completion {done}: queue {}, status {:#x}",
            completion.sq_id,
            completion.status
        );
        let id = u64::from(completion.id);
        ensure_eq!(seen.read8(id), 1, "ring of {entries}: command {id} out");
        seen.write8(id, 0);
        ensure!(
            u32::from(completion.sq_head) < entries,
            "ring of {entries}: SQ head {}",
            completion.sq_head
        );
    }
    ensure_eq!(
        pair.sq.room(),
        entries - 1,
        "room in a ring of {entries} at the end"
    );
    ensure!(
        pair.cq.take().is_none(),
        "ring of {entries}: one completion too many"
    );
    Ok(())
}

/// As many pairs as there are, all busy at once.
fn many(controller: &mut Controller, pairs: u16) -> Outcome {
    let mark = memory::mark();
    let namespace = controller.namespace()?;
    let page = memory::allocate(2 * PAGE);
    let mut all: [Option<Pair>; 64] = [const { None }; 64];
    let command =
        Command::blocks(io::READ, namespace.id, 0, 1).prp(page.address(0), page.address(PAGE));
    for (index, slot) in all.iter_mut().enumerate().take(usize::from(pairs)) {
        *slot = Some(controller.create_pair(index as u16 + 1, 8)?);
    }
    for _round in 0..3 {
        for pair in all.iter_mut().flatten() {
            while pair.sq.push(command).is_some() {}
            pair.sq.ring();
        }
        for pair in all.iter_mut().flatten() {
            for _ in 0..7 {
                let completion = controller.wait(pair)?;
                ensure!(
                    completion.success() && completion.sq_id == pair.sq.id,
                    "queue {}: completion of queue {}, status {:#x}",
                    pair.sq.id,
                    completion.sq_id,
                    completion.status
                );
            }
        }
    }
    for id in (1..=pairs).rev() {
        controller.delete_pair(id)?;
    }
    memory::release(mark);
    Ok(())
}

/// A completion queue that is full most of the time loses nothing.
fn small_completion_queue(controller: &mut Controller) -> Outcome {
    let namespace = controller.namespace()?;
    let page = memory::allocate(2 * PAGE);
    let cq = controller.create_cq(1, 2, None)?;
    let sq = controller.create_sq(1, 64, 1)?;
    let mut pair = Pair { sq, cq };
    let command =
        Command::blocks(io::READ, namespace.id, 0, 1).prp(page.address(0), page.address(PAGE));
    for round in 0..4 {
        full_ring(controller, &mut pair, command, round)?;
    }
    controller.delete_pair(1)
}

/// Several submission queues on one completion queue.
fn shared_completion_queue(controller: &mut Controller, pairs: u16) -> Outcome {
    let namespace = controller.namespace()?;
    let page = memory::allocate(2 * PAGE);
    let command =
        Command::blocks(io::READ, namespace.id, 0, 1).prp(page.address(0), page.address(PAGE));
    let mut cq = controller.create_cq(1, 16, None)?;
    let mut queues = [const { None }; 4];
    let count = pairs.min(4);
    for (index, slot) in queues.iter_mut().enumerate().take(usize::from(count)) {
        *slot = Some(controller.create_sq(index as u16 + 1, 2 << index, 1)?);
    }
    for _round in 0..20 {
        let mut out = 0;
        for sq in queues.iter_mut().flatten() {
            while sq.push(command).is_some() {
                out += 1;
            }
            sq.ring();
        }
        while out != 0 {
            let completion = wait(controller, &mut cq)?;
            ensure!(completion.success(), "status {:#x}", completion.status);
            let queue = queues
                .iter_mut()
                .flatten()
                .find(|it| it.id == completion.sq_id);
            let Some(queue) = queue else {
                fail!("completion of queue {} on a shared queue", completion.sq_id);
            };
            queue.note(&completion);
            cq.ring();
            out -= 1;
        }
    }
    for id in 1..=count {
        let delete = Command::new(admin::DELETE_SQ).dword(10, u32::from(id));
        controller.admin_ok("Delete SQ", delete)?;
    }
    controller.admin_ok("Delete CQ", Command::new(admin::DELETE_CQ).dword(10, 1))?;
    Ok(())
}

fn wait(controller: &Controller, cq: &mut CompletionQueue) -> Outcome<crate::nvme::Completion> {
    let deadline = Controller::command_deadline();
    loop {
        if let Some(completion) = cq.take() {
            return Ok(completion);
        }
        if deadline.passed() {
            return Err(controller.timeout("a completion"));
        }
    }
}

/// Deletes queues with large commands in flight; afterwards all is quiet and they can be made anew.
fn delete_busy(controller: &mut Controller) -> Outcome {
    let namespace = controller.namespace()?;
    let len = namespace.max_transfer.min(128 << 10);
    let buffer = Buffer::new(len);
    let blocks = (len / namespace.block) as u32;
    let command = buffer.attach(Command::blocks(io::READ, namespace.id, 0, blocks));
    for round in 0..10u32 {
        let mark = memory::mark();
        let mut pair = controller.create_pair(1, 64)?;
        for _ in 0..=(round * 6) {
            pair.sq.push(command);
        }
        pair.sq.ring();
        controller.admin_ok("Delete SQ", Command::new(admin::DELETE_SQ).dword(10, 1))?;
        while let Some(completion) = pair.cq.take() {
            ensure!(
                [0, status::ABORTED_SQ_DELETED, status::ABORTED_BY_REQUEST]
                    .contains(&completion.code()),
                "a command in a deleted queue ended with {:#x}",
                completion.status
            );
        }
        // What is in flight ends before the deletion does.
        buffer.clear();
        controller.expect_silence(&mut pair.cq, 20)?;
        buffer.check_bytes(crate::nvme::CANARY)?;
        controller.admin_ok("Delete CQ", Command::new(admin::DELETE_CQ).dword(10, 1))?;
        memory::release(mark);
    }
    let mut pair = controller.create_pair(1, 8)?;
    Flow::prepare(controller, &mut pair, namespace)?.read(controller, &mut pair, 100, 7, |_| {})?;
    controller.delete_pair(1)
}
