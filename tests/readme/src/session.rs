//! A shell that goes through blocks: each starts in the folder and with the exported variables that
//! the one before it left.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Error, Process, Stdin, Stream, TempDir};

use crate::block::{Block, Kind, Place, Run, Talk};
use crate::transcript::{self, Shell, Step};

/// Longest run of a block that builds something.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Longest run of a block that boots guests, and of a wait for a prompt.
const GUEST_LIMIT: Duration = Duration::from_secs(8 * 60);

/// How long a guest may take until it shows what a transcript says.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs `block` between what the last one left and what the next one finds.
/// Cargo sets the variables that are taken away for a program that it runs.
const FRAME: &str = r#"set -e
unset CARGO CARGO_MANIFEST_DIR CARGO_MANIFEST_PATH BERTH_BIN ${!CARGO_PKG_@}
if [ -e "$README_STATE/left" ]; then . "$README_STATE/left"; fi
. "$README_STATE/block"
{ export -p; printf 'cd %q\n' "$PWD"; } >"$README_STATE/left"
"#;

/// How a block went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the README has it.
    Passed,
    /// Not so, and why.
    Failed(String),
    /// It was not run, and why.
    Skipped(String),
}

/// A line with a result, in the form that all of berth's tests have.
#[must_use]
pub fn result_line(block: &Block, verdict: &Verdict, taken: Duration) -> String {
    let name = format!("TEST readme::line_{}", block.line);
    match verdict {
        Verdict::Passed => format!("{name} ... ok ({:.1} s)", taken.as_secs_f32()),
        Verdict::Failed(why) => format!("{why}\n{name} ... FAILED"),
        Verdict::Skipped(why) => format!("{name} ... skipped: {why}"),
    }
}

/// What blocks leave to those that follow.
pub struct Session {
    folder: PathBuf,
    environment: Vec<(String, String)>,
    state: TempDir,
    terminal: Option<Terminal>,
}

/// A guest that stays while other blocks run.
struct Terminal {
    line: usize,
    process: Process,
}

impl Session {
    /// A shell that begins in `folder`, with these variables beside its own.
    ///
    /// # Errors
    /// Those of making a scratch folder.
    pub fn new(folder: &Path, environment: &[(&str, String)]) -> Result<Self> {
        let state = harness::scratch()?;
        let mut all = vec![(
            "README_STATE".to_owned(),
            state.path().display().to_string(),
        )];
        let own = environment.iter();
        all.extend(own.map(|(key, value)| ((*key).to_owned(), value.clone())));
        Ok(Self {
            folder: folder.to_owned(),
            environment: all,
            state,
            terminal: None,
        })
    }

    /// Runs a block, whatever its place, and shows it.
    pub fn run(&mut self, block: &Block) -> Verdict {
        if let Run::Skipped(why) = &block.run {
            return Verdict::Skipped(why.clone());
        }
        println!("--- README.md, line {}", block.line);
        for replacement in &block.replacements {
            println!(
                "runs `{}` instead of `{}`: {}",
                replacement.instead, replacement.command, replacement.because
            );
        }
        let done = match (block.kind, &block.run) {
            (Kind::Transcript, _) => self.transcript(block),
            (Kind::Script, Run::Stays) => self.stay(block),
            (Kind::Script, _) => self.script(block),
        };
        if self.terminal.is_some() {
            // Its prompt stands in an unfinished line.
            println!();
        }
        match done {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("README.md, line {}: {error:#}", block.line)),
        }
    }

    /// Ends it: a guest that stayed must have ended by itself, and well.
    ///
    /// # Errors
    /// It has not.
    pub fn close(self) -> Result<()> {
        let Some(Terminal { line, process }) = self.terminal else {
            return Ok(());
        };
        let exit = process
            .wait(SETTLE_LIMIT)
            .with_context(|| format!("the guest of line {line} was not ended"))?;
        ensure!(
            exit.success(),
            "the guest of line {line} ended with {exit}\n{}",
            process.tail()
        );
        Ok(())
    }

    fn start(&self, script: &str) -> Result<Process> {
        fs::write(self.state.path().join("block"), script)?;
        let mut builder = Process::builder("bash")
            .args(["-c", FRAME])
            .current_dir(&self.folder)
            .stdin(Stdin::Held)
            .echo(true);
        for (key, value) in &self.environment {
            builder = builder.env(key, value);
        }
        Ok(builder.spawn()?)
    }

    fn script(&self, block: &Block) -> Result<()> {
        let script = block.script();
        print!("{script}");
        let mut process = self.start(&script)?;
        talk(&mut process, &block.talk)?;
        let limit = match block.place {
            Place::Guest | Place::OwnKernel => GUEST_LIMIT,
            Place::Host | Place::Kvm => BUILD_LIMIT,
        };
        let exit = process.wait(limit)?;
        ensure!(exit.success(), "ended with {exit}\n{}", process.tail());
        Ok(())
    }

    /// Starts a guest and leaves it at its prompt.
    fn stay(&mut self, block: &Block) -> Result<()> {
        if let Some(Terminal { line, process }) = self.terminal.take() {
            let exit = process
                .wait(SETTLE_LIMIT)
                .with_context(|| format!("the guest of line {line} is still there"))?;
            ensure!(exit.success(), "the guest of line {line} ended with {exit}");
        }
        let script = block.script();
        print!("{script}");
        let mut process = self.start(&script)?;
        talk(&mut process, &block.talk)?;
        prompt(&process)?;
        self.terminal = Some(Terminal {
            line: block.line,
            process,
        });
        Ok(())
    }

    fn transcript(&mut self, block: &Block) -> Result<()> {
        for step in transcript::parse(&block.text)? {
            match step.shell {
                Shell::Host => self.on_host(&step)?,
                Shell::Guest => self.in_guest(&step)?,
            }
        }
        Ok(())
    }

    fn on_host(&self, step: &Step) -> Result<()> {
        println!("$ {}", step.command);
        let process = self.start(&step.command)?;
        let exit = process.wait(GUEST_LIMIT)?;
        let printed = process.output(Stream::Stdout) + &process.output(Stream::Stderr);
        ensure!(exit.success(), "{}: ended with {exit}", step.command);
        ensure!(step.matches(&printed), "{}", difference(step, &printed));
        Ok(())
    }

    /// The guest may need a moment to show what happened to it: it is asked until it does.
    fn in_guest(&mut self, step: &Step) -> Result<()> {
        let Some(Terminal { process, .. }) = &mut self.terminal else {
            bail!("{}: there is no guest to type it in", step.command);
        };
        let start = Instant::now();
        loop {
            let before = process.output(Stream::Stdout).len();
            process.send(format!("{}\n", step.command).as_bytes())?;
            match prompt(process) {
                // What ends the guest has no prompt behind it; how it ended is looked at later.
                Err(Error::Ended { .. }) if step.printed.is_empty() => return Ok(()),
                prompted => prompted?,
            }
            let output = process.output(Stream::Stdout);
            let printed = between_prompts(&output[before..]);
            if step.matches(&printed) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < SETTLE_LIMIT,
                "{}",
                difference(step, &printed)
            );
            thread::sleep(PAUSE);
        }
    }
}

fn difference(step: &Step, printed: &str) -> String {
    format!(
        "{}: expected\n{}\nbut it printed\n{printed}",
        step.command,
        step.printed.join("\n")
    )
}

/// Says to a guest what is to be said, and hears what it says.
fn talk(process: &mut Process, talk: &[Talk]) -> Result<(), Error> {
    for step in talk {
        match step {
            Talk::Types(line) => {
                prompt(process)?;
                process.send(format!("{line}\n").as_bytes())?;
            }
            Talk::Shows(text) => {
                let shown = |line: &str| plain(line).contains(text);
                process.wait_for(Stream::Stdout, text, GUEST_LIMIT, shown)?;
            }
        }
    }
    Ok(())
}

/// Waits for the prompt of a guest's shell.
fn prompt(process: &Process) -> Result<(), Error> {
    let what = "prompt of the guest's shell";
    let is_prompt = |line: &str| plain(line).ends_with("# ");
    process
        .wait_for(Stream::Stdout, what, GUEST_LIMIT, is_prompt)
        .map(drop)
}

/// What a command printed: without its own echo before it and the prompt behind it.
fn between_prompts(output: &str) -> String {
    let text = plain(output);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.pop();
    lines.drain(..lines.len().min(1));
    lines.join("\n")
}

/// Text without the sequences by which a terminal is driven (ECMA-48, 5.4).
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '\x1b' => {
                if rest.next() == Some('[') {
                    rest.by_ref().find(|end| ('@'..='~').contains(end));
                }
            }
            '\r' => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn run(readme: &str) -> (Vec<Verdict>, Result<()>) {
        let folder = harness::scratch().unwrap();
        let mut session = Session::new(folder.path(), &[("GIVEN", "g".into())]).unwrap();
        let blocks = parse(readme).unwrap();
        let verdicts = blocks.iter().map(|block| session.run(block)).collect();
        (verdicts, session.close())
    }

    #[test]
    fn what_a_block_leaves_is_there_for_the_next_one() {
        let (verdicts, end) = run("```sh\nexport A=\"a b\"; mkdir sub; cd sub\n```\n\
             ```sh\ntest \"$A$GIVEN\" = \"a bg\"\n: > file\n```\n\
             ```console\n$ pwd; ls\n…/sub\nfile\n$ echo 1 >&2\n1\n```\n");
        assert_eq!(
            verdicts,
            [Verdict::Passed, Verdict::Passed, Verdict::Passed]
        );
        end.unwrap();
    }

    #[test]
    fn a_failing_line_fails_its_block() {
        let (verdicts, _) = run("```sh\nfalse\ntrue\n```\n```console\n$ echo 1\n2\n```\n\
             ```console\n$ false\n```\n<!-- test: skip: why not -->\n```sh\nfalse\n```\n");
        for (verdict, why) in verdicts.iter().zip([
            "line 1: ended with status 1",
            "expected\n2\nbut it printed\n1",
            "ended with status 1",
        ]) {
            assert!(
                matches!(verdict, Verdict::Failed(text) if text.contains(why)),
                "{verdict:?}"
            );
        }
        assert_eq!(verdicts[3], Verdict::Skipped("why not".into()));
    }

    /// A shell stands for a guest here: its prompt is what is waited for.
    #[test]
    fn lines_are_typed_at_prompts_and_a_guest_can_stay() {
        // With -v it repeats what it reads, as a terminal does.
        let shell = "bash --norc --noediting -v -i 2>&1";
        let stays = format!(
            "<!-- test: guest\ntypes: echo $((6 * 7)) | tee typed\nshows: 42\ntypes: exit -->\n\
             ```sh\nexport PS1='x# '\n{shell}\n```\n\
             <!-- test: stays -->\n```sh\n{shell}\n```\n\
             ```console\n$ cat typed\n42\nguest# (sleep 1; echo 1 >came) &\n…\n\
             guest# cat came\n1\nguest# pwd\n/…\n```\n"
        );
        let (verdicts, end) = run(&format!("{stays}```console\nguest# exit\n```\n"));
        assert_eq!(verdicts, vec![Verdict::Passed; 4]);
        end.unwrap();
        let (verdicts, end) = run(&format!("{stays}```console\nguest# exit 3\n```\n"));
        assert_eq!(verdicts, vec![Verdict::Passed; 4]);
        let why = end.unwrap_err().to_string();
        assert!(
            why.starts_with("the guest of line 10 ended with status 3"),
            "{why}"
        );
    }
}
