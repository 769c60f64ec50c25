//! The guest's end of `berth run … -- COMMAND`, without a system: frames on COM2 (vmm/src/guest_command/frames.rs
//! has their form). The word `act=` on the command line says what is played.

use super::Machine;
use crate::check::{Outcome, ensure, fail};
use crate::exit;
use crate::io;
use crate::serial::println;
use crate::time::Deadline;

const COM2: u16 = 0x2f8;
const LINE_STATUS: u16 = COM2 + 5;
const DATA_READY: u8 = 1;
/// Longest wait for a frame.
const LIMIT_MS: u64 = 120_000;
/// Data of a frame, at most.
const PART: usize = 32 << 10;

const READY: u8 = 1;
const STDIN: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const STDIN_END: u8 = 5;
const CREDIT: u8 = 6;
const CLOSED: u8 = 7;
const EXIT: u8 = 8;
const FAILED: u8 = 9;
const INPUT: u8 = 10;

/// Version of the frames.
const VERSION: u8 = 2;
/// Where input can be taken with string instructions.
const INPUT_PORT: u16 = 0x2f0;
/// Input that is on its way at once, at most.
const INPUT_WINDOW: usize = 16 << 10;

/// Sends a frame.
fn send(kind: u8, contents: &[u8]) {
    let [low, high, ..] = contents.len().to_le_bytes();
    io::out_string(COM2, &[kind, low, high]);
    io::out_string(COM2, contents);
}

fn receive_byte() -> Outcome<u8> {
    let deadline = Deadline::after_ms(LIMIT_MS);
    while io::in8(LINE_STATUS) & DATA_READY == 0 {
        ensure!(!deadline.passed(), "nothing came on COM2");
    }
    Ok(io::in8(COM2))
}

/// Waits for a frame; its contents go into `buffer`.
fn receive(buffer: &mut [u8; 1024]) -> Outcome<(u8, usize)> {
    let kind = receive_byte()?;
    let length = usize::from(u16::from_le_bytes([receive_byte()?, receive_byte()?]));
    ensure!(
        length <= buffer.len(),
        "a frame of kind {kind} with {length} bytes"
    );
    for byte in &mut buffer[..length] {
        *byte = receive_byte()?;
    }
    Ok((kind, length))
}

/// Ends as berth's own first process does: with a status, and then nothing.
fn end(status: u8) -> ! {
    send(EXIT, &[status]);
    loop {
        crate::interrupts::halt();
    }
}

/// Plays the part that `act=` names.
pub fn run(machine: &Machine) -> Outcome {
    let act = machine.line.get("act").unwrap_or("exit");
    println!("the act is {act}");
    match act {
        "failed" => send(FAILED, b"\x7fnothing: not found"),
        "nonsense" => send(99, b"?"),
        "take" => send(READY, &[VERSION, 1]),
        _ => send(READY, &[VERSION, 0]),
    }
    match act {
        "exit" => {
            send(STDOUT, b"to stdout\n\xff\x00\r\n");
            send(STDERR, b"to stderr\n");
            end(7);
        }
        "bulk" => bulk(machine.line.number("bytes").unwrap_or(1 << 20))?,
        "dies" => {
            send(STDOUT, b"the last words\n");
            println!("cannot go on");
            exit::reset();
        }
        "off" => exit::power_off(),
        "fault" => exit::triple_fault(),
        "yes" => until_closed()?,
        "greedy" => loop {
            send(STDOUT, &[b'x'; PART]);
        },
        "echo" => echo()?,
        "take" => take()?,
        "spin" => loop {
            core::hint::spin_loop();
        },
        "failed" | "nonsense" => loop {
            crate::interrupts::halt();
        },
        other => fail!("there is no act {other}"),
    }
    end(0)
}

/// Sends so many bytes of a pattern, as credit allows.
fn bulk(bytes: u64) -> Outcome {
    let mut part = [0; PART];
    let (mut sent, mut credit) = (0, 256 << 10);
    let mut buffer = [0; 1024];
    while sent < bytes {
        if credit < PART as u64 {
            match receive(&mut buffer)? {
                (CREDIT, 5) if buffer[0] == 1 => {
                    let [_, a, b, c, d, ..] = buffer;
                    credit += u64::from(u32::from_le_bytes([a, b, c, d]));
                }
                // The end of an input that nobody reads.
                (STDIN_END, _) => {}
                (kind, _) => fail!("a frame of kind {kind}"),
            }
            continue;
        }
        let count = (bytes - sent).min(PART as u64);
        for (byte, at) in part.iter_mut().zip(sent..) {
            *byte = (at % 251) as u8;
        }
        send(STDOUT, &part[..count as usize]);
        sent += count;
        credit -= count;
    }
    Ok(())
}

/// Sends until nobody reads, and ends as a program does that the signal for this ends.
fn until_closed() -> Outcome {
    let mut buffer = [0; 1024];
    let mut lines = [b'y'; 1024];
    lines
        .iter_mut()
        .skip(1)
        .step_by(2)
        .for_each(|it| *it = b'\n');
    let mut credit = 256 << 10;
    loop {
        while credit >= 1024 {
            send(STDOUT, &lines);
            credit -= 1024;
        }
        match receive(&mut buffer)? {
            (CREDIT, 5) => {
                let [_, a, b, c, d, ..] = buffer;
                credit += u32::from_le_bytes([a, b, c, d]);
            }
            (CLOSED, 1) if buffer[0] == 1 => end(141),
            (STDIN_END, _) => {}
            (kind, _) => fail!("a frame of kind {kind}"),
        }
    }
}

/// Sends the input back until its end.
fn echo() -> Outcome {
    let mut buffer = [0; 1024];
    loop {
        match receive(&mut buffer)? {
            (STDIN, length) => {
                send(STDOUT, &buffer[..length]);
                let [a, b, ..] = length.to_le_bytes();
                send(CREDIT, &[0, a, b, 0, 0]);
            }
            (STDIN_END, 0) => return Ok(()),
            (CREDIT, _) => {}
            (kind, _) => fail!("a frame of kind {kind}"),
        }
    }
}

/// Sends the input back that it takes at its port, until its end.
fn take() -> Outcome {
    let mut buffer = [0; 1024];
    let mut input = [0; INPUT_WINDOW];
    let mut credit = 256 << 10;
    loop {
        match receive(&mut buffer)? {
            (INPUT, 2) => {
                let [a, b, ..] = buffer;
                let length = usize::from(u16::from_le_bytes([a, b]));
                let input = &mut input[..length];
                let start = io::in32(INPUT_PORT);
                // As if the first half had been lost.
                io::in_string(INPUT_PORT, &mut input[..length / 2]);
                io::out32(INPUT_PORT, start);
                io::in_string(INPUT_PORT, input);
                ensure!(
                    io::in32(INPUT_PORT).wrapping_sub(start) == length as u32,
                    "the place is not behind the input"
                );
                ensure!(credit >= length, "no credit");
                send(STDOUT, input);
                credit -= length;
                send(CREDIT, &[0, a, b, 0, 0]);
            }
            (STDIN_END, 0) => return Ok(()),
            (CREDIT, 5) if buffer[0] == 1 => {
                let [_, a, b, c, d, ..] = buffer;
                credit += u32::from_le_bytes([a, b, c, d]) as usize;
            }
            (kind, _) => fail!("a frame of kind {kind}"),
        }
    }
}
