//! Lists of CPUs that I/O threads are bound to.

use std::ops::RangeInclusive;

const FORM: &str = "must be CPUs and ranges of CPUs, such as 2-3:5";

/// Parses CPUs and ranges of CPUs with `:` or `,` between them, each of which this process may run on.
///
/// # Errors
/// What it must be instead.
pub fn parse(list: &str) -> Result<Vec<usize>, String> {
    let allowed = devices::affinity::allowed();
    let allowed =
        allowed.map_err(|error| format!("cannot tell the CPUs that there are: {error}"))?;
    parse_from(list, &allowed)
}

fn parse_from(list: &str, allowed: &[usize]) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in list.split([':', ',']) {
        let range = range(part).ok_or(FORM)?;
        // A range of any length ends at its first CPU that is not there.
        for cpu in range {
            if !allowed.contains(&cpu) {
                let allowed = text(allowed);
                return Err(format!(
                    "CPU {cpu} is not there for berth; allowed: {allowed}"
                ));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

fn range(part: &str) -> Option<RangeInclusive<usize>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

/// CPUs, ascending, in the form that [`parse`] takes.
fn text(cpus: &[usize]) -> String {
    let follows = |a: &usize, b: &usize| a + 1 == *b;
    let ranges = cpus.chunk_by(follows).map(|range| match range {
        [first, .., last] => format!("{first}-{last}"),
        [only] => only.to_string(),
        [] => String::new(),
    });
    ranges.collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cpus_and_ranges_in_the_order_given() {
        let allowed: Vec<usize> = (0..8).collect();
        for (list, cpus) in [
            ("0", vec![0]),
            ("2,3", vec![2, 3]),
            ("4-7", vec![4, 5, 6, 7]),
            ("6-7:1:3-3", vec![6, 7, 1, 3]),
            ("1:1", vec![1, 1]),
        ] {
            assert_eq!(parse_from(list, &allowed), Ok(cpus), "{list}");
        }
        for list in [
            "",
            ":",
            "1:",
            "-1",
            "1-",
            "3-2",
            "a",
            "+1",
            "1 ",
            "1-2-3",
            "99999999999999999999",
        ] {
            assert_eq!(parse_from(list, &allowed), Err(FORM.into()), "{list}");
        }
    }

    #[test]
    fn cpus_that_are_not_there_are_told_with_those_that_are() {
        let refused = |list| parse_from(list, &[0, 1, 4, 6, 7]).unwrap_err();
        let allowed = "is not there for berth; allowed: 0-1:4:6-7";
        assert_eq!(refused("2"), format!("CPU 2 {allowed}"));
        assert_eq!(
            refused("0-18446744073709551615"),
            format!("CPU 2 {allowed}")
        );
        assert_eq!(refused("4:6-8"), format!("CPU 8 {allowed}"));
    }
}
