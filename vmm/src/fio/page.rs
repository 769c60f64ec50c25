//! `index.html`: one page that needs nothing else, and `results.md`.

use std::fmt::Write;

use super::chart::Escaped;
use super::compare::{self, Comparison};
use super::results::{Results, Setting};
use super::summary;
use super::{pictures, table};
use crate::guest_command::tail::printable;

/// How it looks.
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--soft:#e4e4e4;--rule:#888;--code:#f6f6f6}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--ink:#e6e6e6;--soft:#33373c;--rule:#8a8f96;--code:#202327}
figure.chart path,figure.chart rect,figure.chart circle{filter:brightness(1.25)}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2em auto;max-width:1440px;padding:0 1.5em}
h1{font-size:1.6em;margin-bottom:.2em}h2{font-size:1.25em;margin-top:2em;border-bottom:1px solid var(--rule);padding-bottom:.2em}
h3{font-size:1.05em;margin:1.4em 0 .3em}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(400px,100%),1fr));gap:1em 1.5em}
figure.chart{margin:0}figcaption{font-weight:600;font-size:.93em;margin:.3em 0}
svg.chart{width:100%;height:auto;overflow:visible}
svg text{font:12px system-ui,sans-serif;fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.grid{stroke:var(--soft);stroke-width:1;fill:none}.frame{stroke:var(--rule);stroke-width:1;fill:none}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.whisker{fill:none;stroke-width:1.1}
.mark{stroke:var(--paper);stroke-width:.8}
.legend{margin:.1em 0 0;font-size:.86em}.legend span{margin-right:1.1em;white-space:nowrap}.legend svg{vertical-align:-1px;fill:none}
.table{overflow-x:auto;margin:.6em 0}table{border-collapse:collapse;font-size:.86em}
th,td{padding:.2em .6em;text-align:right;border-bottom:1px solid var(--soft);white-space:nowrap}
th{border-bottom:1px solid var(--rule)}th.word,td.word{text-align:left}
.failed{border-left:4px solid #d55e00;padding-left:1em}.failed td{white-space:normal}
pre{background:var(--code);padding:.6em;overflow-x:auto;font-size:.86em}details{margin:.3em 0}
code{overflow-wrap:anywhere}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#ddd;--rule:#666;--code:#fff}
body{max-width:none;margin:0;padding:0;font-size:11px}.charts{grid-template-columns:repeat(2,1fr)}
figure.chart path,figure.chart rect,figure.chart circle{filter:none}
figure.chart,tr{break-inside:avoid}h2,h3{break-after:avoid}.table{overflow:visible}th,td{padding:.1em .3em}}
";

/// The page of the results, with `old` ones beside them if there are.
pub fn html(results: &Results, old: Option<&Results>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{0}: fio on berth</title>\n\
         <style>\n{STYLE}</style></head>\n<body>\n<h1>{0}</h1>\n",
        Escaped(&results.name)
    );
    let _ = writeln!(
        page,
        "<p>{}</p>\n<p><code>{}</code></p>",
        Escaped(&summary_line(results)),
        Escaped(&command_line(results))
    );
    if let Some(failures) = table::failures(results) {
        let _ = write!(
            page,
            "<section class=\"failed\"><h2>Failed</h2>\n{}</section>\n",
            failures.html()
        );
    }
    page += "<h2>Settings</h2>\n";
    for setting in &results.settings {
        page += &setting_html(setting);
    }
    for comparison in comparisons(results, old) {
        page += &comparison_html(&comparison);
    }
    for load in summary::loads(results) {
        let _ = write!(
            page,
            "<section><h2>{}</h2>\n<div class=\"charts\">\n{}</div>\n{}",
            Escaped(&load.title),
            pictures::over_depth(&load, results).concat(),
            table::load(&load, results).html()
        );
        for row in &load.rows {
            let _ = write!(
                page,
                "<h3>{}: queue depth {}</h3>\n<p><code>{}</code></p>\n<div class=\"charts\">\n{}</div>\n",
                Escaped(&row.title),
                row.depth,
                Escaped(&row.options()),
                pictures::of_job(row, load.direction, results).concat()
            );
        }
        page += "</section>\n";
    }
    page += "<p>Where jobs ran in several rounds, lines and bars are medians, and whiskers reach from the \
             slowest to the fastest. Latency is from a job's decision to submit an I/O until its end (fio's \
             lat). CPU use and counts are of the time from just before fio began until \
             it had ended, its ramp time included.</p>\n</body></html>\n";
    page
}

/// The tables in Markdown.
pub fn markdown(results: &Results, old: Option<&Results>) -> String {
    let line = table::markdown;
    let mut text = format!(
        "# {}\n\n{}\n\n",
        line(&results.name),
        line(&summary_line(results))
    );
    for table in tables(results) {
        text += &table.markdown();
    }
    for comparison in comparisons(results, old) {
        text += &table::comparison(&comparison).markdown();
        for remark in table::remarks(&comparison) {
            let _ = write!(text, "{}\n\n", line(&remark));
        }
    }
    text
}

/// The tables for a terminal.
pub fn text(results: &Results, old: Option<&Results>) -> String {
    let mut text = String::new();
    for table in tables(results) {
        let _ = writeln!(text, "{}", table.text());
    }
    for comparison in comparisons(results, old) {
        text += &table::comparison(&comparison).text();
        for remark in table::remarks(&comparison) {
            let _ = writeln!(text, "{}", printable(&remark));
        }
        text.push('\n');
    }
    text
}

fn tables(results: &Results) -> Vec<table::Table> {
    let loads = summary::loads(results);
    let loads = loads.iter().map(|load| table::load(load, results));
    loads.chain(table::failures(results)).collect()
}

fn comparisons(results: &Results, old: Option<&Results>) -> Vec<Comparison> {
    let mut all: Vec<Comparison> = old
        .map(|old| compare::with_old(old, results))
        .into_iter()
        .collect();
    all.extend(compare::settings(results));
    all
}

fn summary_line(results: &Results) -> String {
    let host = &results.host;
    format!(
        "{}; berth {}, {}; host: {} ({}), {} GiB, Linux {}",
        date(results.started),
        results.berth,
        results.fio,
        cpus(host.cpus),
        host.cpu,
        (host.memory + (1 << 29)) >> 30,
        host.kernel
    )
}

/// How the results were made, as it would be typed.
fn command_line(results: &Results) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=.,:/+@%".contains(c);
    let quoted = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let words: Vec<String> = results.arguments.iter().map(quoted).collect();
    format!("berth fio {}", words.join(" "))
}

fn cpus(count: usize) -> String {
    format!("{count} CPU{}", if count == 1 { "" } else { "s" })
}

fn setting_html(setting: &Setting) -> String {
    let mut text = format!("<details><summary><b>{}</b>", Escaped(&setting.name));
    if let Some(system) = &setting.system {
        let _ = write!(
            text,
            ": Linux {}, {}, {} of {} MiB",
            Escaped(&system.kernel),
            cpus(usize::try_from(system.cpus).unwrap_or(usize::MAX)),
            Escaped(&system.device),
            system.bytes >> 20
        );
    }
    for note in &setting.notes {
        let _ = write!(text, "; {}", Escaped(note));
    }
    let _ = writeln!(
        text,
        "</summary><pre>{}</pre></details>",
        Escaped(&setting.description)
    );
    text
}

fn comparison_html(comparison: &Comparison) -> String {
    let table = table::comparison(comparison);
    let mut text = format!(
        "<section><h2>{}</h2>\n<div class=\"charts\">\n{}</div>\n{}",
        Escaped(&table.title),
        pictures::of_comparison(comparison).concat(),
        table.html()
    );
    for remark in table::remarks(comparison) {
        let _ = writeln!(text, "<p>{}</p>", Escaped(&remark));
    }
    text + "</section>\n"
}

/// Seconds since 1970 as a date and time in UTC (days to date: Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_550_921), "2026-11-24 20:08 UTC");
    }

    #[test]
    fn the_page_needs_nothing_else_and_no_text_is_markup() {
        let results = samples::results();
        let mut results = results;
        results.arguments.push("it's".into());
        let page = html(&results, Some(&results));
        for absent in [
            "<script", "http", "src=", "@import", "url(", "<poll>", "<engine>", "<b> ", "a & b",
        ] {
            assert!(!page.contains(absent), "{absent}");
        }
        for present in [
            "&lt;poll&gt;",
            "no such &lt;engine&gt;",
            "a &amp; b",
            r"berth fio load.fio &#39;it&#39;\&#39;&#39;s&#39;",
            "<code>bs=4k iodepth=32 ioengine=io_uring rw=randread</code>",
            "qd32: queue depth 32",
        ] {
            assert!(page.contains(present), "{present}");
        }
        for tag in [
            "svg", "figure", "section", "table", "g", "p", "details", "title",
        ] {
            let count = |text: &str| page.matches(text).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn tables_are_in_every_form() {
        let results = samples::results();
        let markdown = markdown(&results, None);
        assert!(
            markdown
                .starts_with("# a &amp; b\n\n2026-11-24 20:08 UTC; berth 0.1.0, fio-3.33; host: ")
        );
        assert_eq!(markdown.matches("### ").count(), 3 + 1 + 2);
        let text = text(&results, None);
        assert!(text.contains("host beside poll-us=0\n"), "{text}");
        assert!(!text.contains("Only in"));
    }
}
