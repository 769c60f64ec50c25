//! The grammar of every device argument: `DRIVER,key=value,flag`, as QEMU's `-device` has it.
//!
//! `,,` is a literal comma in a value, a key without `=` means `key=on`. Sizes take K, M, G and T
//! (powers of 1024), numbers are decimal or `0x…`. A driver's specification *takes* the properties it
//! knows from [`Properties`], and [`Properties::finish`] refuses what is left: the set of allowed keys
//! is written nowhere but in the code that reads them.

use std::ops::RangeInclusive;

/// Longest id in bytes.
pub const MAX_ID_LEN: usize = 64;

/// What is wrong with a device argument. Starts with the argument as it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{argument}: {problem}")]
pub struct SpecError {
    /// The argument as it was given.
    pub argument: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What becomes of a property of QEMU's that berth does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// It is left out, with a warning that says why.
    Ignored(&'static str),
    /// It is refused, unless its value asks for nothing: `off`, `no`, `false`, 0.
    Absent,
    /// It is refused, with what to do instead.
    Refused(&'static str),
}

/// Hints by key; a trailing dot stands for a family of properties (`zoned.`).
pub type Hints = [(&'static str, Hint)];

/// See [`SpecError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing between two commas, or a `=` without a key before it.
    #[error("empty property (a comma in a value is written \",,\")")]
    EmptyProperty,
    /// The argument does not begin with a driver.
    #[error("the driver is missing; known drivers: {0}")]
    NoDriver(&'static str),
    /// No such driver.
    #[error("unknown driver \"{driver}\"{}; known drivers: {known}", suggestion(.near))]
    UnknownDriver {
        /// The name given.
        driver: String,
        /// The nearest known driver, if one is near.
        near: Option<&'static str>,
        /// All drivers.
        known: &'static str,
    },
    /// The same key twice.
    #[error("{0} is given twice")]
    Duplicate(String),
    /// Two keys that mean the same thing.
    #[error("{0} and {1} mean the same; give one of them")]
    Synonyms(&'static str, &'static str),
    /// A key that the driver does not have.
    #[error("unknown property \"{key}\" of {driver}{}; allowed: {}", suggestion(.near), allowed.join(", "))]
    UnknownKey {
        /// The key given.
        key: String,
        /// The driver it was given to.
        driver: String,
        /// The nearest known key, if one is near.
        near: Option<&'static str>,
        /// All keys of the driver, sorted.
        allowed: Vec<&'static str>,
    },
    /// A key of QEMU's or of a later berth.
    #[error("{key}: {hint}")]
    Unsupported {
        /// The key given.
        key: String,
        /// Why not, and what to do.
        hint: &'static str,
    },
    /// A value that does not fit its key.
    #[error("{key}={value}: {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value given.
        value: String,
        /// What it should have been.
        expected: String,
    },
    /// A key that must be there.
    #[error("{key} is missing; {why}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it is for.
        why: &'static str,
    },
    /// Properties that do not go together.
    #[error("{0}")]
    Conflict(&'static str),
}

/// What to add to a message about an unknown word.
fn suggestion(near: &Option<&'static str>) -> String {
    near.map_or_else(String::new, |near| format!(" (did you mean \"{near}\"?)"))
}

/// The nearest of `candidates` as a remark to add to a message; empty if none is near.
#[must_use]
pub fn did_you_mean(given: &str, candidates: &[&'static str]) -> String {
    suggestion(&nearest(given, candidates))
}

/// The properties of one argument, each to be taken once by who knows it.
#[derive(Debug)]
pub struct Properties {
    argument: String,
    driver: String,
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Properties {
    /// Splits `argument`. A first piece without `=` is the value of `implied` (`driver` for
    /// `--device`, `file` for `--disk`).
    ///
    /// # Errors
    /// Empty pieces, and keys that are given twice.
    pub fn parse(argument: &str, implied: &'static str) -> Result<Self, SpecError> {
        let mut properties = Self {
            argument: argument.to_owned(),
            driver: String::new(),
            left: Vec::new(),
            known: Vec::new(),
        };
        for (index, piece) in split(argument).into_iter().enumerate() {
            let (key, value) = match piece.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None if index == 0 => (implied.to_owned(), piece),
                None => (piece, "on".to_owned()),
            };
            if key.is_empty() || (index == 0 && value.is_empty() && key == implied) {
                return Err(properties.error(Problem::EmptyProperty));
            }
            if properties.left.iter().any(|(other, _)| *other == key) {
                return Err(properties.error(Problem::Duplicate(key)));
            }
            properties.left.push((key, value));
        }
        Ok(properties)
    }

    /// Takes the driver, the value of `key`, which no list of allowed keys names.
    ///
    /// # Errors
    /// The name is empty.
    pub fn take_driver(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        let driver = self.take_text(key)?;
        self.known.clear();
        Ok(driver)
    }

    /// Names in messages what the properties belong to.
    pub fn set_driver(&mut self, driver: &str) {
        driver.clone_into(&mut self.driver);
    }

    /// An error about this argument.
    #[must_use]
    pub fn error(&self, problem: Problem) -> SpecError {
        SpecError {
            argument: self.argument.clone(),
            problem,
        }
    }

    /// An error about one value of this argument.
    #[must_use]
    pub fn value_error(&self, key: &str, value: &str, expected: impl Into<String>) -> SpecError {
        self.error(Problem::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: expected.into(),
        })
    }

    /// Whether `key` was given and not taken yet.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.left.iter().any(|(given, _)| given == key)
    }

    /// Makes `synonym` mean `key`.
    ///
    /// # Errors
    /// Both are given.
    pub fn synonym(&mut self, synonym: &'static str, key: &'static str) -> Result<(), SpecError> {
        if self.has(synonym) && self.has(key) {
            return Err(self.error(Problem::Synonyms(synonym, key)));
        }
        if let Some(entry) = self.left.iter_mut().find(|(given, _)| given == synonym) {
            key.clone_into(&mut entry.0);
        }
        Ok(())
    }

    /// Takes a text that is not empty.
    ///
    /// # Errors
    /// The value is empty.
    pub fn take_text(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        self.known.push(key);
        let Some(index) = self.left.iter().position(|(given, _)| given == key) else {
            return Ok(None);
        };
        let (_, value) = self.left.remove(index);
        if value.is_empty() {
            return Err(self.value_error(key, "", "the value is empty"));
        }
        Ok(Some(value))
    }

    /// Takes a value through `parse`, whose error says what was expected.
    ///
    /// # Errors
    /// The value is empty or `parse` refuses it.
    pub fn take_with<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SpecError> {
        let Some(value) = self.take_text(key)? else {
            return Ok(None);
        };
        match parse(&value) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(expected) => Err(self.value_error(key, &value, expected)),
        }
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// The value is none of on, off, yes, no, true, false.
    pub fn take_bool(&mut self, key: &'static str) -> Result<Option<bool>, SpecError> {
        self.take_with(key, parse_bool)
    }

    /// Takes a number inside `range`.
    ///
    /// # Errors
    /// The value is not a number or is outside of `range`.
    pub fn take_number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, SpecError> {
        self.take_with(key, |value| parse_number(value, range))
    }

    /// Takes an id.
    ///
    /// # Errors
    /// The value is not an id, see [`check_id`].
    pub fn take_id(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        self.take_with(key, |value| check_id(value).map(|()| value.to_owned()))
    }

    /// Refuses a property that nobody took. `hints` is about keys that users of QEMU expect; what is
    /// left out by them is returned, as warnings.
    ///
    /// # Errors
    /// A property is left that is no such key, or one that is refused.
    pub fn finish(mut self, hints: &Hints) -> Result<Vec<String>, SpecError> {
        let mut ignored = Vec::new();
        for (key, value) in std::mem::take(&mut self.left) {
            let hint = hints
                .iter()
                .find(|(name, _)| *name == key || (name.ends_with('.') && key.starts_with(name)));
            let hint = match hint {
                None => return Err(self.unknown_key(key)),
                Some((_, Hint::Ignored(why))) => {
                    ignored.push(format!("{key}={value} is ignored: {why}"));
                    continue;
                }
                Some((_, Hint::Absent)) if asks_for_nothing(&value) => continue,
                Some((_, Hint::Absent)) => "not supported by berth",
                Some((_, Hint::Refused(why))) => why,
            };
            return Err(self.error(Problem::Unsupported { key, hint }));
        }
        Ok(ignored)
    }

    fn unknown_key(&mut self, key: String) -> SpecError {
        self.known.sort_unstable();
        self.error(Problem::UnknownKey {
            near: nearest(&key, &self.known),
            key,
            driver: self.driver.clone(),
            allowed: self.known.clone(),
        })
    }
}

/// Whether a property of this value leaves things as they are without it.
fn asks_for_nothing(value: &str) -> bool {
    matches!(parse_bool(value), Ok(false)) || matches!(parse_number(value, 0..=0), Ok(0))
}

/// Splits at single commas; `,,` becomes a comma.
fn split(argument: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    let mut chars = argument.chars().peekable();
    while let Some(c) = chars.next() {
        if c != ',' {
            piece.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            piece.push(',');
        } else {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    pieces.push(piece);
    pieces
}

/// Checks an id against QEMU's rule: a letter, then letters, digits, `-`, `.` and `_`; at most
/// [`MAX_ID_LEN`] characters.
///
/// # Errors
/// Says the rule.
pub fn check_id(id: &str) -> Result<(), String> {
    let tail_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    let mut bytes = id.bytes();
    if !bytes.next().is_some_and(|b| b.is_ascii_alphabetic()) || !bytes.all(tail_ok) {
        return Err("an id is a letter, then letters, digits, \"-\", \".\" and \"_\"".into());
    }
    if id.len() > MAX_ID_LEN {
        return Err(format!("an id has at most {MAX_ID_LEN} characters"));
    }
    Ok(())
}

/// Parses a boolean as QEMU does.
///
/// # Errors
/// Says what is allowed.
pub fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err("must be on or off (or yes, no, true, false)".into()),
    }
}

/// Parses digits in base 10, or in base 16 after `0x`. Unlike `from_str_radix`, takes no sign.
fn parse_digits(value: &str) -> Option<u64> {
    let (digits, radix) = match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// Parses a number inside `range`, decimal or `0x…`.
///
/// # Errors
/// Says the range.
pub fn parse_number(value: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let (low, high) = (*range.start(), *range.end());
    parse_digits(value)
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("must be a number from {low} to {high}"))
}

/// Parses a size: bytes, or with K, M, G or T behind it powers of 1024.
///
/// # Errors
/// Says the form, or that the size does not fit 64 bits.
pub fn parse_size(value: &str) -> Result<u64, String> {
    let shift = match value.as_bytes().last() {
        Some(b'k' | b'K') => 10,
        Some(b'm' | b'M') => 20,
        Some(b'g' | b'G') => 30,
        Some(b't' | b'T') => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        value
    } else {
        &value[..value.len() - 1]
    };
    if shift != 0 && !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SIZE_FORM.into());
    }
    let number = parse_digits(digits).ok_or(SIZE_FORM)?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "the size does not fit 64 bits".into())
}

const SIZE_FORM: &str = "must be a size: a number of bytes, or a number with K, M, G or T";

/// A size as people write it: the largest suffix that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    for (shift, suffix) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// The candidate nearest to `given`, if it is near enough to be what was meant.
#[must_use]
pub fn nearest(given: &str, candidates: &[&'static str]) -> Option<&'static str> {
    let limit = (given.chars().count() / 3).clamp(1, 3);
    candidates
        .iter()
        .map(|candidate| (edit_distance(given, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours between two words.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let substitute = last[j] + usize::from(a[i] != b[j]);
            row[j + 1] = substitute.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, SpecError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn properties_are_split_as_qemu_does() {
        let mut properties =
            Properties::parse("nvme,a=1,b,c=x,,y,d=,,,,e=a=b,f=,,,g", "driver").unwrap();
        assert_eq!(properties.take_driver("driver").unwrap().unwrap(), "nvme");
        for (key, value) in [
            ("a", "1"),
            ("b", "on"),
            ("c", "x,y"),
            ("d", ",,e=a=b"),
            ("f", ","),
            ("g", "on"),
        ] {
            assert_eq!(
                properties.take_text(key).unwrap().as_deref(),
                Some(value),
                "{key}"
            );
        }
        assert_eq!(properties.take_text("none").unwrap(), None);
        properties.finish(&[]).unwrap();
    }

    #[test]
    fn empty_and_repeated_pieces_are_refused() {
        let parse = |argument| message(Properties::parse(argument, "driver"));
        let empty = "empty property (a comma in a value is written \",,\")";
        for argument in ["", ",a=1", "nvme,", "nvme,=1", "nvme,a=1,"] {
            assert_eq!(parse(argument), format!("{argument}: {empty}"));
        }
        assert_eq!(parse("nvme,a=1,b,a=1"), "nvme,a=1,b,a=1: a is given twice");
        assert_eq!(
            parse("nvme,driver=x"),
            "nvme,driver=x: driver is given twice"
        );
    }

    #[test]
    fn numbers_take_no_sign_and_no_blank() {
        let number = |text: &str| parse_number(text, 0..=u64::MAX).ok();
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("0x1F"), Some(31));
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        for text in [
            "",
            "0x",
            "+1",
            "-1",
            " 1",
            "1 ",
            "1k",
            "0x+1",
            "1_0",
            "18446744073709551616",
            "٣",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
        let expected = Err("must be a number from 2 to 5".to_owned());
        assert_eq!(parse_number("6", 2..=5), expected);
        assert_eq!(parse_number("1", 2..=5), expected);
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("512", 512),
            ("0x200", 512),
            ("1K", 1 << 10),
            ("3m", 3 << 20),
            ("2G", 2 << 30),
            ("16777215T", 0xff_ffff << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1KB", "1.5G", "-1", "0x1G", "1 G", "1P", "µ", "1µ"] {
            assert_eq!(parse_size(text).unwrap_err(), SIZE_FORM, "{text}");
        }
        assert_eq!(
            parse_size("16777216T").unwrap_err(),
            "the size does not fit 64 bits"
        );
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1536, "1536"),
            (2048, "2K"),
            (1 << 50, "1024T"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn ids_follow_qemus_rule() {
        let longest = "a".repeat(MAX_ID_LEN);
        for id in ["a", "Z9-._", &longest] {
            check_id(id).unwrap();
        }
        for id in [
            "",
            "1a",
            "_a",
            "-a",
            "a b",
            "a/b",
            "ä",
            "a\0",
            &format!("{longest}a"),
        ] {
            check_id(id).unwrap_err();
        }
    }

    #[test]
    fn what_nobody_took_is_explained() {
        let hints = [
            ("old", Hint::Refused("called new now")),
            ("zoned.", Hint::Absent),
            ("fast", Hint::Ignored("always so")),
        ];
        let finish = |argument: &str| {
            let mut properties = Properties::parse(argument, "driver").unwrap();
            properties.take_driver("driver").unwrap();
            properties.set_driver("d");
            properties.take_text("serial").unwrap();
            properties.take_text("model").unwrap();
            properties.finish(&hints)
        };
        assert!(finish("d,serial=1,zoned.max=0").unwrap().is_empty());
        let ignored = finish("d,serial=1,fast=off").unwrap();
        assert_eq!(ignored, ["fast=off is ignored: always so"]);
        let unknown = "d,serail=1: unknown property \"serail\" of d (did you mean \"serial\"?); \
                       allowed: model, serial";
        assert_eq!(message(finish("d,serail=1")), unknown);
        let unknown = "d,x: unknown property \"x\" of d; allowed: model, serial";
        assert_eq!(message(finish("d,x")), unknown);
        assert_eq!(message(finish("d,old=1")), "d,old=1: old: called new now");
        assert_eq!(
            message(finish("d,zoned.max=1")),
            "d,zoned.max=1: zoned.max: not supported by berth"
        );
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["serial", "subsys", "nsid", "logical_block_size"];
        for (given, expected) in [
            ("serail", Some("serial")),
            ("subsystem", Some("subsys")),
            ("nsids", Some("nsid")),
            ("logical-block-size", Some("logical_block_size")),
            ("uuid", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &names), expected, "{given}");
        }
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("nvem", "nvme"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
    }

    #[test]
    fn no_text_makes_the_grammar_panic() {
        let alphabet = [",", "=", "a", "0x", "K", "é", "nvme", "\0", " "];
        for mut number in 0..alphabet.len().pow(5) {
            let mut text = String::new();
            for _ in 0..5 {
                text += alphabet[number % alphabet.len()];
                number /= alphabet.len();
            }
            let _ = parse_size(&text);
            let _ = check_id(&text);
            if let Ok(properties) = Properties::parse(&text, "driver") {
                assert!(properties.left.iter().all(|(key, _)| !key.is_empty()));
            }
        }
    }
}
