//! Command lines, through both kinds of kernel.

use super::*;
use crate::CmdlineError;

fn error(kernel: &[u8], cmdline: &str) -> CmdlineError {
    match Machine::new(MEMORY).load_bytes(kernel, cmdline) {
        Err(Error::Cmdline(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_printable_ascii_is_taken() {
    for (cmdline, character, position) in [
        ("a\0b", '\0', 1),
        ("tab\there", '\t', 3),
        ("line\n", '\n', 4),
        ("x=\u{7f}", '\u{7f}', 2),
        ("na\u{ef}ve", '\u{ef}', 2),
    ] {
        assert_eq!(
            error(&good_bzimage(), cmdline),
            CmdlineError::Character {
                character,
                position
            }
        );
    }
}

#[test]
fn length_limit_is_the_kernels() {
    let mut kernel = good_bzimage();
    put(&mut kernel, 0x238, &100u32.to_le_bytes());
    for (kernel, limit) in [(good_bzimage(), 2047), (kernel, 100), (good_elf(), 2047)] {
        let machine = Machine::new(MEMORY);
        machine.load_bytes(&kernel, &"x".repeat(limit)).unwrap();
        let written = machine.read(layout::CMDLINE, limit as u64 + 1);
        assert!(written[..limit].iter().all(|&byte| byte == b'x'));
        assert_eq!(written[limit], 0);
        assert_eq!(
            error(&kernel, &"x".repeat(limit + 1)),
            CmdlineError::TooLong {
                length: limit + 1,
                limit: limit as u64
            }
        );
    }
}

#[test]
fn a_kernel_cannot_ask_for_more_than_the_room_for_it() {
    let mut kernel = good_bzimage();
    put(&mut kernel, 0x238, &u32::MAX.to_le_bytes());
    let room = layout::CMDLINE_CAPACITY as usize - 1;
    Machine::new(MEMORY)
        .load_bytes(&kernel, &"x".repeat(room))
        .unwrap();
    assert_eq!(
        error(&kernel, &"x".repeat(room + 1)),
        CmdlineError::TooLong {
            length: room + 1,
            limit: room as u64
        }
    );
}
