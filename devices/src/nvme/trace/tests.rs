//! Rings, their order and their losses.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::nvme::error::CommandError;
use crate::nvme::spec::{Cdw0, NvmOpcode, Sqe, Status};

const PLACE: Place = Place {
    controller: 5,
    sqid: 1,
    cqid: 1,
};

fn sqe(cid: u16) -> Sqe {
    Sqe {
        cdw0: Cdw0::new().with_opc(NvmOpcode::READ.0).with_cid(cid),
        ..Sqe::default()
    }
}

fn all(reader: &mut TraceReader) -> Vec<Traced> {
    let mut all = Vec::new();
    let mut take = |traced| {
        all.push(traced);
        Ok(())
    };
    reader.read(&mut take).unwrap();
    all
}

/// Identifiers of commands, and minus the number of records that are missing.
fn shape(all: &[Traced]) -> Vec<i64> {
    let shape = |traced: &Traced| match traced {
        Traced::Record(record) => i64::from(record.command.cid),
        Traced::Lost(count) => -i64::from(*count),
    };
    all.iter().map(shape).collect()
}

#[test]
fn losses_are_told_where_they_are() {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorder = tracer.recorder(1).unwrap();
    let room = u16::try_from(FEWEST_RECORDS).unwrap();
    for cid in 0..room + 3 {
        recorder.fetched_io(PLACE, &sqe(cid), None);
    }
    let first: Vec<i64> = (0..i64::from(room)).collect();
    assert_eq!(shape(&all(&mut reader)), first);
    assert_eq!(
        all(&mut reader),
        [],
        "what is missing is told with what follows"
    );
    recorder.fetched_io(PLACE, &sqe(9), None);
    assert_eq!(shape(&all(&mut reader)), [-3, 9]);
    for cid in 0..room + 2 {
        recorder.fetched_io(PLACE, &sqe(cid), None);
    }
    // Nothing follows any more.
    let mut last = Vec::new();
    reader
        .finish(|traced| {
            last.push(traced);
            Ok(())
        })
        .unwrap();
    assert_eq!(shape(&last)[usize::from(room)..], [-2]);
    assert!(tracer.recorder(1).is_none(), "nobody reads");
}

#[test]
fn a_recorder_that_goes_tells_its_losses() {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorder = tracer.recorder(1).unwrap();
    let room = u16::try_from(FEWEST_RECORDS).unwrap();
    for cid in 0..=room {
        recorder.fetched_io(PLACE, &sqe(cid), None);
    }
    drop(recorder);
    assert_eq!(shape(&all(&mut reader)).last(), Some(&-1));
    assert!(reader.is_empty());
    assert_eq!(tracer.lock_rings().free, ALL_RECORDS);
}

#[test]
fn rings_are_read_in_order_of_time() {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorders = [(); 3].map(|()| tracer.recorder(IO_RECORDS).unwrap());
    for cid in 0..300 {
        recorders[usize::from(cid) * 7 % 3].fetched_io(PLACE, &sqe(cid), None);
    }
    let order: Vec<i64> = (0..300).collect();
    assert_eq!(shape(&all(&mut reader)), order);
}

#[test]
fn all_rings_together_have_a_limit() {
    let (tracer, _reader) = Tracer::begin().unwrap();
    let recorders: Vec<Recorder> = (0..300)
        .map(|_| tracer.recorder(IO_RECORDS).unwrap())
        .collect();
    assert_eq!(recorders[0].capacity(), IO_RECORDS);
    assert_eq!(recorders[299].capacity(), FEWEST_RECORDS);
    let all: usize = recorders.iter().map(Recorder::capacity).sum();
    assert!(all <= ALL_RECORDS + 300 * FEWEST_RECORDS, "{all}");
}

#[test]
fn a_failed_reader_finds_the_rest() {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorder = tracer.recorder(IO_RECORDS).unwrap();
    for cid in 0..3 {
        recorder.fetched_io(PLACE, &sqe(cid), None);
    }
    let refuse = |_| Err(io::Error::from(io::ErrorKind::StorageFull));
    reader.read(refuse).unwrap_err();
    assert_eq!(shape(&all(&mut reader)), [1, 2]);
}

#[test]
fn ends_carry_what_is_known_of_the_command() {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorder = tracer.recorder(IO_RECORDS).unwrap();
    let open = recorder.fetched_io(PLACE, &sqe(1), Some(12));
    recorder.completed(&open, Err(CommandError::transient(Status::ABORT_REQUESTED)));
    let records = all(&mut reader);
    let [Traced::Record(fetched), Traced::Record(completed)] = records.as_slice() else {
        panic!("{records:?}");
    };
    assert_eq!(fetched.command, completed.command);
    assert_eq!(completed.command.bytes, 4096);
    let latency = completed.time - fetched.time;
    let event = TraceEvent::Completed {
        latency,
        status: Status::ABORT_REQUESTED,
        dnr: false,
        dw0: 0,
    };
    assert_eq!(completed.event, event);
}

/// Threads that record as fast as they can, and a reader that is too slow.
#[test]
fn every_record_is_read_or_counted() {
    const EACH: u64 = 200_000;
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut recorder = tracer.recorder(1 << 12).unwrap();
            std::thread::spawn(move || {
                for number in 0..EACH {
                    #[allow(clippy::cast_possible_truncation)] // around and around
                    recorder.fetched_io(PLACE, &sqe(number as u16), None);
                }
            })
        })
        .collect();
    let (mut records, mut lost) = (0, 0);
    let mut count = |traced| {
        match traced {
            Traced::Record(_) => records += 1,
            Traced::Lost(more) => lost += u64::from(more),
        }
        Ok(())
    };
    let joiner = {
        let (done, tracer) = (Arc::clone(&done), Arc::clone(&tracer));
        std::thread::spawn(move || {
            for thread in threads {
                thread.join().unwrap();
            }
            done.store(true, Ordering::Release);
            tracer.wake();
        })
    };
    while !done.load(Ordering::Acquire) {
        reader.wait(std::time::Duration::from_secs(10));
        reader.read(&mut count).unwrap();
    }
    joiner.join().unwrap();
    reader.finish(&mut count).unwrap();
    assert_eq!(records + lost, 2 * EACH);
    assert!(records > 0);
}

/// A queue that moves from thread to thread and back, command by command.
#[test]
fn what_moves_between_recorders_stays_in_order() {
    const ALL: u64 = 300_000;
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut recorders = [(); 2].map(|()| tracer.recorder(IO_RECORDS).unwrap());
    let mover = std::thread::spawn(move || {
        for number in 0..ALL {
            let recorder = &mut recorders[usize::from(number % 2 == 1)];
            let sqe = Sqe {
                prp1: number,
                ..sqe(0)
            };
            recorder.fetched_io(PLACE, &sqe, None);
        }
    });
    let mut last = None;
    let mut look = |traced| {
        if let Traced::Record(Record {
            event: TraceEvent::Fetched { prp1, .. },
            ..
        }) = traced
        {
            assert!(last < Some(prp1), "{prp1} behind {last:?}");
            last = Some(prp1);
        }
        Ok(())
    };
    while !mover.is_finished() {
        reader.read(&mut look).unwrap();
    }
    mover.join().unwrap();
    reader.finish(&mut look).unwrap();
    assert!(last.is_some());
}
