//! `cargo xtask release`: berth for other machines, as one archive.
//!
//! The binary is linked statically, so that it runs on distributions with an older libc than this
//! machine's. Two runs on the same commit make the same bytes: times, order and owners of the files are
//! fixed, and the binary holds no path of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use harness::{HostKind, Placement};

use crate::progress::Tool;
use crate::suite::{self, Tally};
use crate::{Context, build, packages};

/// Named, so that flags for it are not those of build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Most bytes the binary may have.
const BINARY_LIMIT: u64 = 6 << 20;

/// Where each completion script belongs, below the archive's folder.
const COMPLETIONS: [(&str, &str); 4] = [
    ("bash", "share/bash-completion/completions/berth"),
    ("fish", "share/fish/vendor_completions.d/berth.fish"),
    ("nushell", "share/berth/completions/berth.nu"),
    ("zsh", "share/zsh/site-functions/_berth"),
];

/// What is taken from the repository, and where it belongs.
const FILES: [(&str, &str); 6] = [
    ("README.md", "share/doc/berth/README.md"),
    ("CHANGELOG.md", "share/doc/berth/CHANGELOG.md"),
    ("LICENSE", "share/doc/berth/LICENSE"),
    ("docs", "share/doc/berth/docs"),
    ("resources/machines", "share/berth/machines"),
    ("resources/jobs", "share/berth/jobs"),
];

/// Makes `berth-VERSION-x86_64-linux.tar.gz` and its `.sha256` in `out`; returns the archive.
///
/// # Errors
/// When berth does not build, is too large or not static, or a tool fails.
pub fn make(context: &Context, out: &Path) -> Result<PathBuf> {
    let berth = binary(context)?;
    let version = Tool::new(&berth.display().to_string(), &["--version"]).run()?;
    let version = version.trim().trim_start_matches("berth ");
    let name = format!("berth-{version}-x86_64-linux");
    let scratch = harness::scratch()?;
    fill(context, &berth, &scratch.path().join(&name))?;
    fs::create_dir_all(out)?;
    let out = out.canonicalize()?;
    let archive = out.join(format!("{name}.tar.gz"));
    let tar = scratch.path().join("tar");
    // Any time would do that both runs agree on.
    let time = Tool::new("git", &["log", "-1", "--format=@%ct"])
        .inside(&context.root)
        .run()
        .unwrap_or_else(|_| "@0".to_owned());
    let time = format!("--mtime={}", time.trim());
    let fixed = ["--sort=name", "--format=ustar", "--owner=0", "--group=0"];
    let numbers = ["--numeric-owner", "--mode=u=rwX,go=rX", &time, "-cf"];
    Tool::new("tar", &[fixed, numbers].concat())
        .path(&tar)
        .path(Path::new(&name))
        .inside(scratch.path())
        .run()?;
    Tool::new("sh", &["-c", r#"gzip -9 -n <"$0" >"$1""#])
        .path(&tar)
        .path(&archive)
        .run()?;
    let file = archive.file_name().unwrap_or_default().to_string_lossy();
    let sum = Tool::new("sha256sum", &[&file]).inside(&out).run()?;
    fs::write(out.join(format!("{file}.sha256")), sum)?;
    Ok(archive)
}

/// Builds the static binary.
fn binary(context: &Context) -> Result<PathBuf> {
    context.progress.step("building berth (release, static)");
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo_home = std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={cargo_home}=cargo"),
        format!("--remap-path-prefix={}=berth", context.root.display()),
    ];
    let args = ["build", "--release", "-p", "vmm", "--target", TARGET];
    let status = build::cargo(context, &args)
        // Between flags that may hold blanks.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo build ended with {status}");
    let berth = context.target.join(TARGET).join("release/berth");
    let bytes = fs::metadata(&berth)?.len();
    ensure!(
        bytes <= BINARY_LIMIT,
        "berth has {bytes} bytes, more than {BINARY_LIMIT}"
    );
    let dynamic = Tool::new("readelf", &["-W", "-d", "-l"])
        .path(&berth)
        .run()?;
    ensure!(
        !dynamic.contains("(NEEDED)") && !dynamic.contains("INTERP"),
        "berth is not static:\n{dynamic}"
    );
    context.progress.step(&format!("built: {bytes} bytes"));
    Ok(berth)
}

/// Puts everything where it belongs below `folder`.
fn fill(context: &Context, berth: &Path, folder: &Path) -> Result<()> {
    let place = |to: &str| -> Result<PathBuf> {
        let to = folder.join(to);
        fs::create_dir_all(to.parent().context("no folder")?)?;
        Ok(to)
    };
    let bin = place("bin/berth")?;
    fs::copy(berth, &bin)?;
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755))?;
    let print = |words: &[&str]| Tool::new(&bin.display().to_string(), words).run();
    fs::write(place("share/man/man1/berth.1")?, print(&["man"])?)?;
    for (shell, to) in COMPLETIONS {
        fs::write(place(to)?, print(&["completion", shell])?)?;
    }
    for (from, to) in FILES {
        let from = context.root.join(from);
        Tool::new("cp", &["-r"])
            .path(&from)
            .path(&place(to)?)
            .run()?;
    }
    Ok(())
}

/// Makes the archive twice, and tries what is in it.
///
/// # Errors
/// When it cannot be made.
pub fn test(context: &Context, host: HostKind) -> Result<Tally> {
    packages::ensure(context)?;
    let scratch = harness::scratch()?;
    let [first, second] =
        ["first", "second"].map(|folder| make(context, &scratch.path().join(folder)));
    let (first, second) = (first?, second?);
    let mut tally = Tally::default();
    let mut check = |what: &str, done: Result<()>| {
        match &done {
            Ok(()) => println!("TEST release::{what} ... ok"),
            Err(error) => println!("{error:#}\nTEST release::{what} ... FAILED"),
        }
        tally.passed += u64::from(done.is_ok());
        tally.failed += u64::from(done.is_err());
    };
    check("two_runs_make_the_same", same(&first, &second));
    check("the_checksum_is_right", sum_is_right(&first));
    let unpacked = scratch.path().join("usr");
    check("it_unpacks", unpack(&first, &unpacked));
    check("it_holds_everything", complete(&unpacked));
    check("no_path_of_this_machine", no_path(context, &unpacked));
    tally.add(guests(context, host, &unpacked.join("bin/berth"))?);
    Ok(tally)
}

fn same(first: &Path, second: &Path) -> Result<()> {
    ensure!(
        fs::read(first)? == fs::read(second)?,
        "the two archives differ"
    );
    Ok(())
}

fn sum_is_right(archive: &Path) -> Result<()> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let sum = format!("{name}.sha256");
    let folder = archive.parent().context("no folder")?;
    Tool::new("sha256sum", &["--check", &sum])
        .inside(folder)
        .run()?;
    Ok(())
}

fn unpack(archive: &Path, into: &Path) -> Result<()> {
    fs::create_dir(into)?;
    Tool::new("tar", &["--strip-components=1", "-xzf"])
        .path(archive)
        .inside(into)
        .run()?;
    Ok(())
}

fn complete(folder: &Path) -> Result<()> {
    let berth = folder.join("bin/berth").display().to_string();
    let version = Tool::new(&berth, &["--version"]).run()?;
    ensure!(
        version.starts_with("berth ") && version.trim().ends_with(char::is_numeric),
        "berth --version printed {version:?}"
    );
    for (shell, path) in COMPLETIONS {
        let text = fs::read_to_string(folder.join(path)).context(path)?;
        // They ask berth, or have the options themselves.
        ensure!(
            text.contains("berth complete") || text.contains("control-socket"),
            "{shell}'s completions neither ask berth nor have --control-socket"
        );
    }
    let offered = Tool::new(&berth, &["complete", "run", "--control-s"]).run()?;
    ensure!(
        offered.contains("--control-socket"),
        "berth complete offered {offered:?}"
    );
    let page = fs::read_to_string(folder.join("share/man/man1/berth.1"))?;
    ensure!(page.contains(".SH SYNOPSIS"), "the manual has no synopsis");
    for (_, path) in FILES {
        ensure!(folder.join(path).exists(), "there is no {path}");
    }
    machines(folder, &berth)
}

/// The examples are understood, with images beside them as they name them.
fn machines(folder: &Path, berth: &str) -> Result<()> {
    let images = harness::scratch()?;
    for entry in fs::read_dir(folder.join("share/berth/machines"))? {
        let machine = entry?.path();
        let text = fs::read_to_string(&machine)?;
        for rest in text.split("file = \"").skip(1) {
            let name = rest.split('"').next().unwrap_or_default();
            harness::image(images.path(), name, 1 << 20)?;
        }
        let words = ["run", "--dry-run", "--kernel", berth, "--machine"];
        Tool::new(berth, &words)
            .path(&machine)
            .inside(images.path())
            .run()?;
    }
    Ok(())
}

/// Looks for the folders of this checkout and of cargo in the binary.
fn no_path(context: &Context, folder: &Path) -> Result<()> {
    let bytes = fs::read(folder.join("bin/berth"))?;
    let text = String::from_utf8_lossy(&bytes);
    let root = context.root.display().to_string();
    for path in [root.as_str(), ".cargo/registry"] {
        ensure!(!text.contains(path), "berth holds {path}");
    }
    Ok(())
}

/// Tests with a guest, on the binary of the archive.
fn guests(context: &Context, host: HostKind, berth: &Path) -> Result<Tally> {
    if let Placement::Outer | Placement::Skip(_) = host.bare_placement()? {
        println!("TEST release::device ... skipped: bare-metal guests do not run directly here");
        return Ok(Tally {
            skipped: 1,
            ..Tally::default()
        });
    }
    let guest = build::bare_guest(context)?;
    let words = ["test", "-p", "bare-tests", "--test", "device"];
    let mut command = build::cargo(context, &words);
    command
        .env("BARE_GUEST", guest)
        .env(harness::files::BERTH_BIN, berth);
    suite::cargo_test(&mut command)
}
