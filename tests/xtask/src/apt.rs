//! Packages of a suite that this machine may not be set up for, fetched
//! without root and without touching the machine's own configuration.
//!
//! The mirrors are those of the machine's own sources; only the suite is
//! another. Package lists and state are kept in a folder of the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::progress::Tool;

/// Suites of Debian's main archive, by which its mirrors are told from other
/// sources.
const MAIN_SUITES: [&str; 9] = [
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
];

/// A private apt for one suite.
pub struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Sets it up under `dir` and gets the suite's package lists.
    ///
    /// # Errors
    /// When the machine names no Debian mirror, or the mirror lacks the suite.
    pub fn new(dir: &Path, suite: &str) -> Result<Self> {
        let dir = dir.join(suite);
        fs::create_dir_all(dir.join("lists/partial"))?;
        fs::create_dir_all(dir.join("cache/archives/partial"))?;
        let mirrors = machine_mirrors();
        if mirrors.is_empty() {
            bail!("no Debian mirror among this machine's apt sources");
        }
        let sources = dir.join("suite.list");
        let lines: Vec<String> = mirrors.iter().map(|mirror| mirror.line(suite)).collect();
        fs::write(&sources, lines.join(""))?;
        let mut options = Vec::new();
        for option in [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", dir.join("lists").display()),
            format!("Dir::Cache={}", dir.join("cache").display()),
            // The unprivileged downloader may not be able to enter our folder.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            options.push("-o".to_owned());
            options.push(option);
        }
        let apt = Self { dir, options };
        // By default apt takes a missing suite for a passing trouble.
        apt.call(
            "apt-get",
            &["-q", "-o", "APT::Update::Error-Mode=any", "update"],
        )
        .run()
        .with_context(|| format!("no package lists for {suite}"))?;
        Ok(apt)
    }

    /// The first package that `package` depends on and whose name starts with
    /// `prefix`.
    ///
    /// # Errors
    /// When there is none.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let text = self.call("apt-cache", &["depends", package]).run()?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{package} depends on no package {prefix}*"))
    }

    /// Downloads a package and unpacks it into the folder `into`.
    ///
    /// # Errors
    /// When it is not there, or cannot be unpacked.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let downloads = self.dir.join("downloads");
        if downloads.exists() {
            fs::remove_dir_all(&downloads)?;
        }
        fs::create_dir_all(&downloads)?;
        self.call("apt-get", &["-q", "download", package])
            .inside(&downloads)
            .seconds(300)
            .run()?;
        let file = fs::read_dir(&downloads)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|end| end == "deb"))
            .with_context(|| format!("apt-get download {package} left no file"))?;
        Tool::new("dpkg-deb", &["-x"])
            .path(&file)
            .path(into)
            .run()?;
        fs::remove_dir_all(&downloads)?;
        Ok(())
    }

    fn call(&self, name: &str, words: &[&str]) -> Tool {
        let mut args: Vec<&str> = self.options.iter().map(String::as_str).collect();
        args.extend(words);
        Tool::new(name, &args).seconds(180)
    }
}

/// One mirror of Debian's main archive.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

impl Mirror {
    fn line(&self, suite: &str) -> String {
        let options = match &self.signed_by {
            Some(keyring) => format!("[signed-by={keyring}] "),
            None => String::new(),
        };
        format!("deb {options}{} {suite} main\n", self.uri)
    }
}

fn machine_mirrors() -> Vec<Mirror> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        let mirrors = match file.extension().and_then(|end| end.to_str()) {
            Some("sources") => deb822_mirrors(&text),
            Some("list") => one_line_mirrors(&text),
            _ => Vec::new(),
        };
        for mirror in mirrors {
            if !found.contains(&mirror) {
                found.push(mirror);
            }
        }
    }
    found
}

/// The `*.sources` form: paragraphs of `Field: value`.
fn deb822_mirrors(text: &str) -> Vec<Mirror> {
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let value = |field: &str| {
            paragraph
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case(field))
                .map(|(_, value)| value.trim())
        };
        let main = value("Suites").is_some_and(|suites| suites.split(' ').any(is_main));
        let enabled = value("Enabled") != Some("no");
        if !(main && enabled) {
            continue;
        }
        for uri in value("URIs").unwrap_or_default().split_whitespace() {
            found.push(Mirror {
                uri: uri.to_owned(),
                signed_by: value("Signed-By")
                    .filter(|keyring| keyring.starts_with('/'))
                    .map(str::to_owned),
            });
        }
    }
    found
}

/// The `*.list` form: `deb [options] URI suite component…`.
fn one_line_mirrors(text: &str) -> Vec<Mirror> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else {
            continue;
        };
        let (options, rest) = match rest.trim().strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap_or_default(),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next())
            && is_main(suite)
        {
            found.push(Mirror {
                uri: uri.to_owned(),
                signed_by: options
                    .split_whitespace()
                    .find_map(|option| option.strip_prefix("signed-by="))
                    .map(str::to_owned),
            });
        }
    }
    found
}

fn is_main(suite: &str) -> bool {
    MAIN_SUITES.contains(&suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deb822_sources_give_the_main_archive_only() {
        let text = "Types: deb\n# a comment: here\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n\nTypes: deb\nURIs: https://other.example/x\nSuites: nodistro\n";
        let found = deb822_mirrors(text);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].line("trixie"),
            "deb [signed-by=/k.gpg] http://mirror.example/debian trixie main\n"
        );
    }

    #[test]
    fn one_line_sources_give_the_main_archive_only() {
        let text = "# deb http://a.example/debian trixie main\ndeb-src http://a.example/debian trixie main\ndeb [arch=amd64 signed-by=/k.gpg] http://b.example/debian trixie main\ndeb http://c.example/debian trixie main\ndeb http://d.example stable-security main\n";
        let lines: Vec<String> = one_line_mirrors(text)
            .iter()
            .map(|mirror| mirror.line("s"))
            .collect();
        assert_eq!(
            lines,
            [
                "deb [signed-by=/k.gpg] http://b.example/debian s main\n",
                "deb http://c.example/debian s main\n"
            ]
        );
    }
}
