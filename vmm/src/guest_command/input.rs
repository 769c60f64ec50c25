//! The port at which the guest takes the command's standard input, many bytes with one exit.
//!
//! `rep insb` gets up to 1024 bytes with an exit, where COM2 takes two exits for each byte. How many there are
//! is told on COM2 ([`Short::Input`](super::frames::Short::Input)).
//!
//! KVM forgets what a string instruction took if the guest's page turns out to be absent, and the instruction
//! begins again behind it (Linux arch/x86/kvm/emulate.c, `em_in`). So bytes are kept until the guest has
//! passed them on; it can see how many were taken, and go back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::bus::BusDevice;

/// The first of its I/O ports, which a PC has nothing at.
pub const PORT: u16 = 0x2f0;
/// Number of ports.
pub const LEN: u16 = 4;

/// A byte read at the port is the next one of the input. Four bytes are the place in the input, modulo 2^32;
/// writing them goes back to a place.
#[derive(Default)]
pub struct InputPort(Mutex<State>);

#[derive(Default)]
struct State {
    /// What the guest has not passed on: no more than it gave credit for.
    kept: VecDeque<u8>,
    /// The place of the first of these.
    start: u32,
    /// How many bytes behind it the guest has read, or has tried to.
    taken: u32,
}

impl InputPort {
    /// Offers more input, for which there is credit.
    pub fn offer(&self, bytes: &[u8]) {
        self.lock().kept.extend(bytes);
    }

    /// Forgets so many bytes, which the guest has passed on.
    pub fn release(&self, bytes: usize) {
        let mut state = self.lock();
        let bytes = bytes.min(state.kept.len());
        state.kept.drain(..bytes);
        // There is far less than 4 GiB of it.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        state.start = state.start.wrapping_add(bytes);
        state.taken = state.taken.saturating_sub(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for InputPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        match (offset, data) {
            (0, [byte]) => {
                let next = state.kept.get(state.taken as usize);
                *byte = next.copied().unwrap_or(u8::MAX);
                state.taken = state.taken.saturating_add(1);
            }
            (0, data @ [_, _, _, _]) => {
                let place = state.start.wrapping_add(state.taken);
                data.copy_from_slice(&place.to_le_bytes());
            }
            (_, data) => data.fill(u8::MAX),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if let (0, &[a, b, c, d]) = (offset, data) {
            let taken = u32::from_le_bytes([a, b, c, d]).wrapping_sub(state.start);
            if taken as usize <= state.kept.len() {
                state.taken = taken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(port: &InputPort, count: usize) -> Vec<u8> {
        let mut byte = [0];
        let next = |_| {
            port.read(0, &mut byte);
            byte[0]
        };
        (0..count).map(next).collect()
    }

    fn place(port: &InputPort) -> u32 {
        let mut place = [0; 4];
        port.read(0, &mut place);
        u32::from_le_bytes(place)
    }

    #[test]
    fn input_is_there_until_it_was_passed_on() {
        let port = InputPort::default();
        port.offer(b"abc");
        assert_eq!(take(&port, 2), *b"ab");
        assert_eq!(place(&port), 2);
        port.write(0, &0_u32.to_le_bytes());
        port.offer(b"de");
        assert_eq!(take(&port, 5), *b"abcde");
        port.release(3);
        assert_eq!(place(&port), 5);
        // What was passed on is gone.
        port.write(0, &2_u32.to_le_bytes());
        assert_eq!(place(&port), 5);
        port.write(0, &3_u32.to_le_bytes());
        assert_eq!(take(&port, 2), *b"de");
    }

    #[test]
    fn what_is_taken_too_often_shows_in_the_place() {
        let port = InputPort::default();
        port.offer(b"ab");
        assert_eq!(take(&port, 4), *b"ab\xff\xff");
        assert_eq!(place(&port), 4);
        port.write(0, &1_u32.to_le_bytes());
        assert_eq!(take(&port, 1), *b"b");
        // Credit for what was never taken does no harm.
        port.release(100);
        assert_eq!((place(&port), port.lock().kept.len()), (2, 0));
        port.write(0, &u32::MAX.to_le_bytes());
        assert_eq!(place(&port), 2);
    }

    #[test]
    fn the_place_wraps_around() {
        let port = InputPort::default();
        port.lock().start = u32::MAX;
        port.offer(b"abc");
        assert_eq!(take(&port, 3), *b"abc");
        assert_eq!(place(&port), 2);
        port.release(2);
        port.write(0, &1_u32.to_le_bytes());
        assert_eq!(take(&port, 1), *b"c");
    }

    #[test]
    fn other_accesses_do_nothing() {
        let port = InputPort::default();
        port.offer(b"abc");
        for (offset, size) in [(1, 1), (0, 2), (1, 4), (0, 8), (u64::MAX, 1), (0, 0)] {
            let mut data = vec![0; size];
            port.write(offset, &data);
            port.read(offset, &mut data);
            assert_eq!(data, vec![0xff; size]);
        }
        assert_eq!(place(&port), 0);
    }
}
