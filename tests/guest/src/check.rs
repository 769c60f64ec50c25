//! How a test ends early: with a failure or a reason to skip, in words.

use core::fmt::{self, Write};

/// A short text; what does not fit is cut.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Text {
    const CAPACITY: usize = 240;

    /// The formatted text.
    pub fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            bytes: [0; Self::CAPACITY],
            len: 0,
        };
        // Too long a text is cut, which is all that can go wrong.
        let _ = text.write_fmt(arguments);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let slot = self.bytes.get_mut(self.len).ok_or(fmt::Error)?;
            *slot = if byte.is_ascii_graphic() { byte } else { b' ' };
            self.len += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?"))
    }
}

/// Why a test stopped before its end.
pub enum Stop {
    /// The device or machine did something wrong.
    Failed(Text),
    /// The machine lacks what the test needs.
    Skipped(Text),
}

/// What a test or a part of it returns.
pub type Outcome<T = ()> = Result<T, Stop>;

/// Ends the test as failed.
macro_rules! fail {
    ($($argument:tt)*) => {
        return Err($crate::check::Stop::Failed($crate::check::Text::new(format_args!($($argument)*))))
    };
}

/// Ends the test as skipped.
macro_rules! skip {
    ($($argument:tt)*) => {
        return Err($crate::check::Stop::Skipped($crate::check::Text::new(format_args!($($argument)*))))
    };
}

/// Ends the test as failed unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($argument:tt)*) => {
        if !$condition {
            $crate::check::fail!($($argument)*);
        }
    };
}

/// Ends the test as failed unless both are equal; the text says what was compared.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($argument:tt)*) => {{
        let (left, right) = ($left, $right);
        if left != right {
            $crate::check::fail!("{}: {left:#x?}, not {right:#x?}", format_args!($($argument)*));
        }
    }};
}

pub(crate) use {ensure, ensure_eq, fail, skip};
