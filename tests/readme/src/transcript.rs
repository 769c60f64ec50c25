//! Transcripts: commands behind prompts, with what they print. Where that differs from run to run the
//! README has an ellipsis: within a line it stands for any text, on a line of its own for any lines.

use anyhow::{Context, Result, bail};

/// Stands for what differs from run to run.
const ANY: &str = "…";

/// Prompt of the reader's shell.
const HOST: &str = "$ ";

/// Prompt of the shell in the guest that stays.
const GUEST: &str = "guest# ";

/// Whose prompt a command stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// The reader's.
    Host,
    /// The guest's.
    Guest,
}

/// One command, and what it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it is typed.
    pub shell: Shell,
    /// The command; lines that end with a backslash go on with the next.
    pub command: String,
    /// What it prints, in lines.
    pub printed: Vec<String>,
}

/// The steps of a transcript.
///
/// # Errors
/// It does not begin with a prompt, or ends within a command.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let (shell, first) = match (line.strip_prefix(HOST), line.strip_prefix(GUEST)) {
            (Some(command), _) => (Shell::Host, command),
            (_, Some(command)) => (Shell::Guest, command),
            (None, None) => {
                let last = steps.last_mut();
                let last = last.with_context(|| format!("no prompt before {line:?}"))?;
                last.printed.push(line.to_owned());
                continue;
            }
        };
        let mut command = first.to_owned();
        while command.ends_with('\\') {
            let Some(next) = lines.next() else {
                bail!("the command does not end: {command}");
            };
            command.push('\n');
            command.push_str(next);
        }
        steps.push(Step {
            shell,
            command,
            printed: Vec::new(),
        });
    }
    Ok(steps)
}

impl Step {
    /// Whether `found` is what the README says, blanks at the ends of lines aside.
    #[must_use]
    pub fn matches(&self, found: &str) -> bool {
        let expected: Vec<&str> = self.printed.iter().map(|line| line.trim_end()).collect();
        let found: Vec<&str> = found.lines().map(str::trim_end).collect();
        lines_match(&expected, &found)
    }
}

fn lines_match(expected: &[&str], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((line, rest)) if line.trim() == ANY => {
            (0..=found.len()).any(|skipped| lines_match(rest, &found[skipped..]))
        }
        Some((line, rest)) => found
            .split_first()
            .is_some_and(|(first, others)| line_matches(line, first) && lines_match(rest, others)),
    }
}

fn line_matches(expected: &str, found: &str) -> bool {
    let Some((start, rest)) = expected.split_once(ANY) else {
        return expected == found;
    };
    let Some(mut left) = found.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split(ANY).collect();
    // A split has at least one part.
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = left.split_once(part) else {
            return false;
        };
        left = behind;
    }
    left.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_a_shell_a_command_and_lines() {
        let text = "$ berth ctl x \\\n    info status\nrunning\n\nguest# ls\n$ true\n";
        let step = |shell, command: &str, printed: &[&str]| Step {
            shell,
            command: command.into(),
            printed: printed.iter().map(|line| (*line).to_owned()).collect(),
        };
        assert_eq!(
            parse(text).unwrap(),
            [
                step(
                    Shell::Host,
                    "berth ctl x \\\n    info status",
                    &["running", ""]
                ),
                step(Shell::Guest, "ls", &[]),
                step(Shell::Host, "true", &[]),
            ]
        );
        assert!(parse("ls\n").is_err());
        assert!(parse("$ ls \\\n").is_err());
    }

    #[test]
    fn an_ellipsis_stands_for_text_or_lines_and_nothing_else_does() {
        let matches = |printed: &str, found: &str| {
            let step = Step {
                shell: Shell::Host,
                command: String::new(),
                printed: printed.lines().map(str::to_owned).collect(),
            };
            step.matches(found)
        };
        for (printed, found) in [
            ("", ""),
            ("a", "a  \n"),
            ("a…c", "abbc"),
            ("…c", "c"),
            ("a…b…c", "a1b2b3c"),
            ("a\n…\nz", "a\nz"),
            ("a\n  …\nz", "a\n1\n2\nz"),
        ] {
            assert!(matches(printed, found), "{printed:?} {found:?}");
        }
        for (printed, found) in [
            ("", "a"),
            ("a", ""),
            ("a", "ab"),
            ("a…c", "ab"),
            ("ab…bc", "abc"),
            ("a…b…c", "acb"),
            ("a\n…\nz", "a\nz\ny"),
            ("a…\nb", "a1\n2\nb"),
        ] {
            assert!(!matches(printed, found), "{printed:?} {found:?}");
        }
    }
}
