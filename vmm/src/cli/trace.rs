//! The command line of `berth trace`.

use argh::{ArgsInfo, FromArgs};

use super::values::path;
use super::{CliError, Invocation};
use crate::grammar::did_you_mean;
use crate::trace::command::{TraceAction, TraceConfig, default_out};

/// Tell what a trace says that "berth run --trace FILE" wrote: "summary" prints latencies by opcode
/// and by queue, IOPS, depth, sizes and the slowest commands; "plot" draws them over time. FILE may
/// be "-", for standard input.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "trace",
    help_triggers("-h", "--help"),
    usage = "summary [--json] FILE | plot [--out FILE.html|FILE.svg] FILE",
    example = "\
berth trace summary /tmp/trace
berth trace plot /tmp/trace --out trace.html",
    error_code(0, "the trace was read"),
    error_code(1, "it cannot be read, or is no trace"),
    error_code(35, "the command line is wrong")
)]
pub struct TraceArgs {
    /// print the summary as JSON
    #[argh(switch)]
    json: bool,
    /// where the picture goes: a page, or what ends in .svg; "-" is standard output (FILE.html)
    #[argh(option, arg_name = "FILE")]
    out: Option<String>,
    #[argh(positional, greedy, hidden_help)]
    words: Vec<String>,
}

/// Checks the command line.
///
/// # Errors
/// A word is missing or wrong, or an option.
pub fn config(args: TraceArgs) -> Result<Invocation, CliError> {
    let [what, file] = args.words.as_slice() else {
        let problem = match args.words.get(2) {
            Some(extra) => return Err(CliError::usage(extra, "unexpected argument")),
            None => {
                "name what to make of it and the trace; for example \"berth trace summary FILE\""
            }
        };
        return Err(CliError::usage("trace", problem));
    };
    let file = Some(path("FILE", file.clone())?).filter(|file| file.as_os_str() != "-");
    let action = match what.as_str() {
        "summary" if args.out.is_some() => {
            return Err(CliError::usage("--out", "belongs to plot"));
        }
        "plot" if args.json => return Err(CliError::usage("--json", "belongs to summary")),
        "summary" => TraceAction::Summary { json: args.json },
        "plot" => TraceAction::Plot {
            out: match args.out {
                Some(out) => Some(path("--out", out)?).filter(|out| out.as_os_str() != "-"),
                None => file.as_deref().map(default_out),
            },
        },
        other => {
            let near = did_you_mean(other, &["summary", "plot"]);
            let problem = format!("unknown{near}; known: summary, plot");
            return Err(CliError::usage(format!("trace {other}"), problem));
        }
    };
    Ok(Invocation::Trace(TraceConfig { file, action }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{files, parse_in, refused};
    use super::*;

    #[test]
    fn traces_are_read_as_asked() {
        let invocation = |line: &str| match parse_in(&files(), line).unwrap() {
            Invocation::Trace(config) => config,
            other => panic!("{other:?}"),
        };
        let summary = |file: Option<&str>, json| TraceConfig {
            file: file.map(Into::into),
            action: TraceAction::Summary { json },
        };
        assert_eq!(invocation("trace summary /t"), summary(Some("/t"), false));
        assert_eq!(invocation("trace --json summary -"), summary(None, true));
        for (line, file, out) in [
            ("trace plot /t", Some("/t"), Some("/t.html")),
            ("trace plot /t --out=x.svg", Some("/t"), Some("x.svg")),
            ("trace plot --out - /t", Some("/t"), None),
            ("trace plot -", None, None),
        ] {
            let out = out.map(Into::into);
            let action = TraceAction::Plot { out };
            let file = file.map(Into::into);
            assert_eq!(invocation(line), TraceConfig { file, action }, "{line}");
        }
        let name = "trace: name what to make of it and the trace; for example \"berth trace summary FILE\"";
        refused(
            35,
            &[
                ("trace", name),
                ("trace summary", name),
                ("trace plot a b", "b: unexpected argument"),
                ("trace summary /t --out x", "--out: belongs to plot"),
                ("trace plot /t --json", "--json: belongs to summary"),
                (
                    "trace sumary /t",
                    "trace sumary: unknown (did you mean \"summary\"?); known: summary, plot",
                ),
            ],
        );
    }
}
