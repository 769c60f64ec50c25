//! The values of options: numbers, sizes, paths, lists.

use std::path::PathBuf;

use devices::nvme::MemoryLock;

use super::CliError;
use crate::affinity;
use crate::grammar::{SpecError, format_size, parse_number, parse_size};
use crate::spec::{DriveSpec, Drives, Parsed as Spec};

const MIN_MEMORY: u64 = 64 << 20;
const MAX_MEMORY: u64 = 1 << 40;
const MEMORY_UNIT: u64 = 2 << 20;

/// A path, which is not empty.
///
/// # Errors
/// It is empty.
pub fn path(option: &str, value: String) -> Result<PathBuf, CliError> {
    if value.is_empty() {
        return Err(CliError::usage(option, "the path is empty"));
    }
    Ok(PathBuf::from(value))
}

/// A path, if one is given.
///
/// # Errors
/// It is empty.
pub fn optional_path(option: &str, value: Option<String>) -> Result<Option<PathBuf>, CliError> {
    value.map(|value| path(option, value)).transpose()
}

/// Parses a number from `low` to `high` in a type that holds `high`.
///
/// # Errors
/// What would be right.
pub fn number<T>(
    option: &str,
    value: Option<&str>,
    low: T,
    high: T,
    default: T,
) -> Result<T, CliError>
where
    T: Into<u64> + TryFrom<u64>,
{
    let Some(value) = value else {
        return Ok(default);
    };
    parse_number(value, low.into()..=high.into())
        // The range has just been checked, so the conversion cannot fail.
        .map(|number| T::try_from(number).unwrap_or(default))
        .map_err(|problem| CliError::usage(format!("{option} {value}"), problem))
}

/// Parses the size of guest memory. A number alone means MiB, as in QEMU.
///
/// # Errors
/// What would be right.
pub fn memory(value: &str) -> Result<u64, CliError> {
    let error = |problem: String| CliError::usage(format!("--memory {value}"), problem);
    let alone = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let with_unit = if alone {
        format!("{value}M")
    } else {
        value.to_owned()
    };
    let bytes = parse_size(&with_unit).map_err(error)?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        let (low, high) = (format_size(MIN_MEMORY), format_size(MAX_MEMORY));
        return Err(error(format!("must be from {low} to {high}")));
    }
    if !bytes.is_multiple_of(MEMORY_UNIT) {
        return Err(error(format!(
            "must be a multiple of {}",
            format_size(MEMORY_UNIT)
        )));
    }
    Ok(bytes)
}

/// Parses `--overcommit`, named and written as QEMU's.
///
/// # Errors
/// What would be right.
pub fn memory_lock(value: Option<&str>) -> Result<MemoryLock, CliError> {
    match value {
        None | Some("mem-lock=off") => Ok(MemoryLock::Off),
        Some("mem-lock=on" | "mem-lock") => Ok(MemoryLock::On),
        Some(value) => Err(CliError::usage(
            format!("--overcommit {value}"),
            "must be mem-lock=on or mem-lock=off",
        )),
    }
}

/// Parses the CPUs of the I/O threads.
///
/// # Errors
/// What would be right.
pub fn io_affinity(list: &str) -> Result<Vec<usize>, CliError> {
    affinity::parse(list)
        .map_err(|problem| CliError::usage(format!("--io-affinity {list}"), problem))
}

/// Parses the values of a repeatable option. What is left out of them is added to `warnings`.
///
/// # Errors
/// What would be right.
pub fn parse_each<T>(
    option: &str,
    arguments: &[String],
    warnings: &mut Vec<String>,
    parse: impl Fn(&str) -> Result<Spec<T>, SpecError>,
) -> Result<Vec<T>, CliError> {
    let mut specs = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let parsed = parse(argument).map_err(|error| CliError::spec(option, &error))?;
        let ignored = parsed.ignored.iter();
        warnings.extend(ignored.map(|why| format!("{option} {argument}: {why}")));
        specs.push(parsed.spec);
    }
    Ok(specs)
}

/// Parses `--drive`, by id.
///
/// # Errors
/// One is wrong, or two have the same id.
pub fn drives(arguments: &[String], warnings: &mut Vec<String>) -> Result<Drives, CliError> {
    let mut drives = Drives::new();
    let specs = parse_each("--drive", arguments, warnings, DriveSpec::parse)?;
    for (spec, argument) in specs.into_iter().zip(arguments) {
        let id = spec.id.clone();
        if drives.insert(id.clone(), spec).is_some() {
            let problem = format!("the id {id} is taken by another --drive");
            return Err(CliError::usage(format!("--drive {argument}"), problem));
        }
    }
    Ok(drives)
}
