//! Opens a page in headless Chromium and sees to it that its pictures are drawn.
//!
//! A script at the end of a copy of the page measures what the browser made of each `svg.chart`, and
//! what is wrong with it. The page itself needs no script.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{self, Process};

/// Names of the browser, in Debian and elsewhere.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// Longest that it may take; on a busy machine its start takes seconds.
const LIMIT: Duration = Duration::from_secs(180);
/// Measures the pictures.
const SCRIPT: &str = include_str!("browser.js");

/// What a browser made of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// The page's pictures.
    pub charts: Vec<Chart>,
    /// What is wrong with them.
    pub faults: Vec<String>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Lines.
    pub lines: usize,
    /// Bars.
    pub bars: usize,
    /// Marks of points.
    pub marks: usize,
}

/// Why there is nothing to judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The browser.
    #[error("{0}")]
    Process(#[from] process::Error),
    /// It ended without a result.
    #[error("the browser did not run the script: {0}")]
    NoResult(String),
}

/// Where the browser is; `None` if it is not installed.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let places = NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.into_iter().find(|place| place.is_file())
}

/// Opens `page` and measures its pictures.
///
/// # Errors
/// The browser cannot be started, or does not end.
pub fn look(browser: &Path, page: &str) -> Result<Drawn, Error> {
    let folder = crate::scratch()?;
    let copy = folder.path().join("page.html");
    std::fs::write(&copy, format!("{page}\n<script>\n{SCRIPT}\n</script>\n"))?;
    let done = Process::builder(browser)
        .args([
            "--headless",
            // Its sandbox does not work for root.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=1400,1000",
        ])
        .arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ))
        .arg("--dump-dom")
        .arg(format!("file://{}", copy.display()))
        .run(LIMIT)?;
    let result = done.stdout.split("<pre id=\"berth-check\">").nth(1);
    let result = result.and_then(|rest| rest.split("</pre>").next());
    let result = result.ok_or_else(|| Error::NoResult(done.stderr.clone()))?;
    Ok(parse(result))
}

fn parse(result: &str) -> Drawn {
    let mut drawn = Drawn {
        charts: Vec::new(),
        faults: Vec::new(),
    };
    for line in result.lines() {
        if let Some(fault) = line.strip_prefix("FAULT ") {
            drawn.faults.push(fault.to_owned());
        }
        if let Some(chart) = line.strip_prefix("CHART ").and_then(chart) {
            drawn.charts.push(chart);
        }
    }
    drawn
}

/// `LINES BARS MARKS TITLE`.
fn chart(text: &str) -> Option<Chart> {
    let mut words = text.splitn(4, ' ');
    let mut number = || words.next()?.parse().ok();
    Some(Chart {
        lines: number()?,
        bars: number()?,
        marks: number()?,
        title: words.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "<body><svg class=\"chart\" aria-label=\"two points\" viewBox=\"0 0 440 270\" \
        style=\"width:440px;fill:none\"><g><path class=\"line\" stroke=\"#000\" d=\"M70 100L200 50\"/>\
        <circle class=\"mark\" cx=\"70\" cy=\"100\" r=\"3\"/><circle class=\"mark\" cx=\"200\" cy=\"50\" r=\"3\"/></g>\
        <rect class=\"bar\" data-value=\"2\" x=\"210\" y=\"60\" width=\"10\" height=\"20\" fill=\"#00f\"/>\
        <rect class=\"bar\" data-value=\"4\" x=\"230\" y=\"40\" width=\"10\" height=\"40\" fill=\"#00f\"/>\
        <text class=\"axis\" x=\"100\" y=\"200\">seconds</text></svg></body>";

    #[test]
    fn good_pictures_pass_and_broken_ones_do_not() {
        let Some(browser) = find() else {
            println!("skipped: no chromium in PATH");
            return;
        };
        let drawn = look(&browser, GOOD).unwrap();
        let chart = Chart {
            title: "two points".into(),
            lines: 1,
            bars: 2,
            marks: 2,
        };
        assert_eq!(
            (drawn.faults.as_slice(), drawn.charts.as_slice()),
            (&[][..], &[chart][..])
        );
        for (good, bad, why) in [
            ("M70 100L200 50", "", "a line is empty"),
            ("M70 100L200 50", "M70 100L70 100", "a line has no length"),
            ("M70 100L200 50", "M70 100L900 50", "a line is outside"),
            ("M70 100L200 50", "M70 100LNaN 50", "a line"),
            (
                "stroke=\"#000\"",
                "stroke=\"none\"",
                "a line cannot be seen",
            ),
            (
                "<circle class=\"mark\" cx=\"70\" cy=\"100\" r=\"3\"/>",
                "",
                "1 marks on 2 points",
            ),
            (
                "height=\"40\" fill",
                "height=\"0\" fill",
                "a bar has no size",
            ),
            (
                "data-value=\"2\"",
                "data-value=\"7\"",
                "a bar of 7 is lower than one of 4",
            ),
            ("y=\"200\"", "y=\"300\"", "a text is outside: seconds"),
            (
                "</svg>",
                "<text class=\"tick\" x=\"110\" y=\"203\">over</text></svg>",
                "texts overlap: seconds, over",
            ),
            (">seconds<", "><", "no axis has a title"),
            ("class=\"chart\"", "class=\"other\"", "there is no picture"),
            (
                "<body>",
                "<body><img src=\"none.png\">",
                "the page loads something",
            ),
        ] {
            let page = GOOD.replacen(good, bad, 1);
            assert_ne!(page, GOOD, "{good}");
            let faults = look(&browser, &page).unwrap().faults;
            assert!(
                faults.iter().any(|fault| fault.contains(why)),
                "{why}: {faults:?}"
            );
        }
    }
}
