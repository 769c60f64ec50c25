//! The fenced blocks of a README, each with what the test is told about it.

use anyhow::{Context, Result, bail, ensure};

/// Languages of blocks that hold no commands.
const PLAIN: [&str; 3] = ["json", "text", "toml"];

/// How a comment for the test begins.
const COMMENT: &str = "<!-- test:";

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Commands.
    Script,
    /// Commands behind prompts, each with what it prints.
    Transcript,
}

/// What a block's commands need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    #[default]
    Host,
    /// `/dev/kvm`, of hardware or software.
    Kvm,
    /// A place where stock Linux guests boot.
    Guest,
    /// The same, and a kernel of the host's own in `/boot`.
    OwnKernel,
}

/// How a block is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Run {
    /// To its end, before the next one.
    #[default]
    Through,
    /// In a terminal of its own, with a guest that stays there.
    Stays,
    /// Not at all, and why.
    Skipped(String),
}

/// One step of what the test and a guest's shell say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Talk {
    /// The test types a line at the next prompt.
    Types(String),
    /// The guest prints a line that contains this.
    Shows(String),
}

/// Another command for one of a block's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replacement {
    /// The README's.
    pub command: String,
    /// The test's.
    pub instead: String,
    /// Why.
    pub because: String,
}

/// One fenced block with commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Line of its opening fence, from 1.
    pub line: usize,
    /// Script or transcript.
    pub kind: Kind,
    /// What it needs.
    pub place: Place,
    /// How it is run.
    pub run: Run,
    /// What is typed in its guest and awaited from it, in order.
    pub talk: Vec<Talk>,
    /// What is run instead of some of its commands.
    pub replacements: Vec<Replacement>,
    /// Its lines, as the README has them.
    pub text: String,
}

/// What a comment says of the block that follows it.
#[derive(Debug, Default)]
struct Notes {
    place: Place,
    run: Run,
    talk: Vec<Talk>,
    replacements: Vec<Replacement>,
}

/// All blocks with commands, in order.
///
/// # Errors
/// A fence without a known language or without an end, a comment for the test that it does not
/// understand or that no such block follows; the message has the line.
pub fn parse(readme: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines().enumerate();
    let mut notes = None;
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        if let Some(first) = line.strip_prefix(COMMENT) {
            let text = until(&mut lines, first, "-->")
                .with_context(|| format!("line {number}: the comment does not end"))?;
            let parsed = parse_notes(&text);
            notes = Some(parsed.with_context(|| format!("line {number}"))?);
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            ensure!(
                notes.is_none(),
                "line {number}: a block should follow the comment for the test"
            );
            ensure!(
                !line.trim_start().starts_with("```"),
                "line {number}: an indented fence"
            );
            continue;
        };
        let text =
            fenced(&mut lines).with_context(|| format!("line {number}: the block does not end"))?;
        let Some(kind) = kind(language).with_context(|| format!("line {number}"))? else {
            ensure!(
                notes.is_none(),
                "line {number}: the comment before it is for commands"
            );
            continue;
        };
        let block = block(number, kind, notes.take().unwrap_or_default(), text);
        blocks.push(block.with_context(|| format!("line {number}"))?);
    }
    ensure!(
        notes.is_none(),
        "a block should follow the last comment for the test"
    );
    Ok(blocks)
}

/// Whether a language is one of commands.
fn kind(language: &str) -> Result<Option<Kind>> {
    Ok(match language {
        "sh" => Some(Kind::Script),
        "console" => Some(Kind::Transcript),
        plain if PLAIN.contains(&plain) => None,
        other => bail!(
            "the language {other:?} is neither sh, console nor one of {}",
            PLAIN.join(", ")
        ),
    })
}

fn block(line: usize, kind: Kind, notes: Notes, text: String) -> Result<Block> {
    let Notes {
        place,
        run,
        talk,
        replacements,
    } = notes;
    for replacement in &replacements {
        ensure!(
            text.contains(&replacement.command),
            "no such command in the block: {}",
            replacement.command
        );
    }
    if kind == Kind::Transcript {
        ensure!(
            talk.is_empty() && replacements.is_empty() && run != Run::Stays,
            "a transcript says itself what is run"
        );
    }
    Ok(Block {
        line,
        kind,
        place,
        run,
        talk,
        replacements,
        text,
    })
}

type Numbered<'a> = std::iter::Enumerate<std::str::Lines<'a>>;

/// Text from `first` up to `end`, over as many lines as it takes.
fn until(lines: &mut Numbered, first: &str, end: &str) -> Option<String> {
    let mut text = first.to_owned();
    while !text.contains(end) {
        let (_, line) = lines.next()?;
        text.push('\n');
        text.push_str(line);
    }
    let (inside, behind) = text.split_once(end)?;
    behind.trim().is_empty().then(|| inside.to_owned())
}

/// The lines up to the closing fence.
fn fenced(lines: &mut Numbered) -> Option<String> {
    let mut text = String::new();
    loop {
        let (_, line) = lines.next()?;
        if line == "```" {
            return Some(text);
        }
        text.push_str(line);
        text.push('\n');
    }
}

fn parse_notes(text: &str) -> Result<Notes> {
    let mut notes = Notes::default();
    for entry in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (key, value) = match entry.split_once(": ") {
            Some((key, value)) => (key, value.trim().to_owned()),
            None => (entry, String::new()),
        };
        match (key, value.is_empty()) {
            ("host", true) => notes.place = Place::Host,
            ("kvm", true) => notes.place = Place::Kvm,
            ("guest", true) => notes.place = Place::Guest,
            ("own-kernel", true) => notes.place = Place::OwnKernel,
            ("stays", true) => notes.run = Run::Stays,
            ("skip", false) => notes.run = Run::Skipped(value),
            ("types", false) => notes.talk.push(Talk::Types(value)),
            ("shows", false) => notes.talk.push(Talk::Shows(value)),
            ("instead of", false) => notes.replacements.push(Replacement {
                command: value,
                ..Replacement::default()
            }),
            ("runs" | "because", false) => {
                let last = notes.replacements.last_mut();
                let last = last.with_context(|| format!("{key}: instead of what?"))?;
                if key == "runs" {
                    last.instead = value;
                } else {
                    last.because = value;
                }
            }
            _ => bail!("not understood: {entry:?}"),
        }
    }
    for replacement in &notes.replacements {
        ensure!(
            !replacement.instead.is_empty() && !replacement.because.is_empty(),
            "what is run instead of {}, and because of what?",
            replacement.command
        );
    }
    Ok(notes)
}

impl Block {
    /// Whether it is run where Linux guests are.
    #[must_use]
    pub fn boots_linux(&self) -> bool {
        let place = matches!(self.place, Place::Guest | Place::OwnKernel);
        place && !matches!(self.run, Run::Skipped(_))
    }

    /// Its commands, with the replacements in place of what they replace.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = self.text.clone();
        for replacement in &self.replacements {
            text = text.replace(&replacement.command, &replacement.instead);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(readme: &str) -> String {
        format!("{:#}", parse(readme).unwrap_err())
    }

    /// Long before it is run.
    #[test]
    fn the_readme_is_understood() {
        let blocks = parse(include_str!("../../../README.md")).unwrap();
        let transcripts = blocks
            .iter()
            .filter(|block| block.kind == Kind::Transcript)
            .map(|block| crate::transcript::parse(&block.text).unwrap().len());
        assert!(transcripts.sum::<usize>() > 3);
    }

    #[test]
    fn blocks_come_in_order_with_their_lines_and_notes() {
        let readme = "# x\n```sh\ntrue\n```\n\
            <!-- test: guest\ntypes: nvme list\nshows: /dev/x\ntypes: exit -->\n```sh\nberth run\n```\n\
            ```toml\na = 1\n```\n<!-- test: skip: it sings -->\n```console\n$ sing\nla\n```\n\
            <!-- test: own-kernel -->\n```sh\nberth run -- true\n```\n";
        let blocks = parse(readme).unwrap();
        let lines: Vec<_> = blocks.iter().map(|block| block.line).collect();
        assert_eq!(lines, [2, 9, 16, 21]);
        assert_eq!(blocks[0].place, Place::Host);
        assert_eq!(blocks[0].text, "true\n");
        assert_eq!(blocks[1].place, Place::Guest);
        let talk = [
            Talk::Types("nvme list".into()),
            Talk::Shows("/dev/x".into()),
            Talk::Types("exit".into()),
        ];
        assert_eq!(blocks[1].talk, talk);
        assert_eq!(blocks[2].kind, Kind::Transcript);
        assert_eq!(blocks[2].run, Run::Skipped("it sings".into()));
        assert_eq!(blocks[3].place, Place::OwnKernel);
        let linux: Vec<_> = blocks.iter().map(Block::boots_linux).collect();
        assert_eq!(linux, [false, true, false, true]);
    }

    #[test]
    fn replacements_are_of_what_is_there() {
        let notes = "<!-- test: host\ninstead of: wait long\nruns: wait\nbecause: time -->\n";
        let good = format!("{notes}```sh\nwait long  # x\n```\n");
        assert_eq!(parse(&good).unwrap()[0].script(), "wait  # x\n");
        let gone = format!("{notes}```sh\nwait a bit\n```\n");
        assert_eq!(
            refusal(&gone),
            "line 5: no such command in the block: wait long"
        );
    }

    #[test]
    fn what_would_not_be_run_by_mistake_is_refused() {
        for (readme, why) in [
            ("```\nls\n```\n", "line 1: the language \"\" is neither"),
            ("```bash\nls\n```\n", "line 1: the language \"bash\""),
            ("* x\n  ```sh\n  ls\n", "line 2: an indented fence"),
            ("```sh\nls\n", "line 1: the block does not end"),
            ("<!-- test: guest\n", "line 1: the comment does not end"),
            (
                "<!-- test: guest -->\n\n```sh\n```\n",
                "line 2: a block should follow",
            ),
            (
                "<!-- test: host -->\n```toml\n```\n",
                "line 2: the comment before it is for commands",
            ),
            (
                "<!-- test: host -->",
                "a block should follow the last comment",
            ),
            (
                "<!-- test: somewhere -->\n```sh\n```\n",
                "line 1: not understood: \"somewhere\"",
            ),
            (
                "<!-- test: skip -->\n```sh\n```\n",
                "line 1: not understood: \"skip\"",
            ),
            ("<!-- test: runs: x -->\n```sh\n```\n", "instead of what?"),
            (
                "<!-- test: instead of: x -->\n```sh\nx\n```\n",
                "what is run instead of x",
            ),
            (
                "<!-- test: stays -->\n```console\n$ x\n```\n",
                "a transcript says itself",
            ),
        ] {
            let error = refusal(readme);
            assert!(error.contains(why), "{readme}: {error}");
        }
    }
}
