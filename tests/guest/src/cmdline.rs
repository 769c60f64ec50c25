//! The kernel command line: words and `key=value` pairs; unknown ones are ignored.

use core::fmt;

/// The command line.
#[derive(Clone, Copy)]
pub struct CommandLine(&'static str);

impl CommandLine {
    /// Wraps the text that the loader passed.
    pub fn new(text: &'static str) -> Self {
        Self(text)
    }

    /// Whether the bare word is there.
    pub fn has(self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|it| it == word)
    }

    /// The value of the last `key=value`.
    pub fn get(self, key: &str) -> Option<&'static str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .rfind(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The number in `key=value`, with an optional suffix K, M or G (powers of 1,024).
    pub fn number(self, key: &str) -> Option<u64> {
        let text = self.get(key)?;
        let (digits, shift) = match text.as_bytes().last()? {
            b'K' | b'k' => (&text[..text.len() - 1], 10),
            b'M' | b'm' => (&text[..text.len() - 1], 20),
            b'G' | b'g' => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
