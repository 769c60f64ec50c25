//! `berth run … -- COMMAND` with stock kernels.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Finished, Process, Stdin};

use crate::kit::{Form, Kit, Version};

/// Longest run of a command with its guest's start and end, in the outer machine.
const LIMIT: Duration = Duration::from_secs(240);

/// `berth run` with a kernel of the kit.
struct Runner<'a> {
    kit: &'a Kit,
    version: Version,
}

impl Runner<'_> {
    /// Runs a command to its end: options first, then `--`, then the command.
    fn run(&self, words: &[&str], stdin: Stdin) -> Result<Finished> {
        let started = Instant::now();
        let done = Process::builder(harness::berth_binary()?)
            .args(["run", "-m", "768M", "--kernel"])
            .arg(self.kit.kernel(self.version, Form::BzImage)?)
            .args(words)
            .stdin(stdin)
            .run(LIMIT)?;
        println!(
            "berth run {}: {} after {:.1} s",
            words.join(" "),
            done.exit,
            started.elapsed().as_secs_f32()
        );
        Ok(done)
    }

    /// The same, with a status that is to come out.
    fn ends(&self, words: &[&str], status: i32) -> Result<Finished> {
        let done = self.run(words, Stdin::Null)?;
        ensure!(
            done.exit.status == Some(status),
            "{words:?} ended with {}, expected {status}\n{}{}",
            done.exit,
            done.stdout,
            done.stderr
        );
        Ok(done)
    }

    /// The same, with what is to be printed on standard output and nothing on the other.
    fn prints(&self, words: &[&str], expected: &str) -> Result<()> {
        let done = self.ends(words, 0)?;
        ensure!(
            done.stdout == expected && done.stderr.is_empty(),
            "{words:?} printed {:?}, and {:?} on standard error",
            done.stdout,
            done.stderr
        );
        Ok(())
    }
}

fn newest(kit: &Kit) -> Runner<'_> {
    Runner {
        kit,
        version: Version::Newest,
    }
}

/// What becomes of a command becomes of berth.
pub fn statuses(kit: &Kit) -> Result<()> {
    let runner = newest(kit);
    let done = runner.ends(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"], 7)?;
    ensure!(done.stdout == "out\n" && done.stderr == "err\n", "{done:?}");
    runner.ends(&["--", "sh", "-c", "kill -9 $$"], 128 + 9)?;
    let done = runner.ends(&["--", "no-such-command"], 127)?;
    ensure!(
        done.stderr.contains("no-such-command: not found"),
        "{done:?}"
    );
    // Its first process needs its turn to pass the line on.
    let panic = "echo before; sleep 1; echo c >/proc/sysrq-trigger";
    let done = runner.ends(&["--", "sh", "-c", panic], 255)?;
    ensure!(
        done.stdout == "before\n"
            && done
                .stderr
                .starts_with("berth: guest panicked before the command")
            && done.stderr.contains("Kernel panic - not syncing: sysrq"),
        "{done:?}"
    );
    let done = runner.ends(&["--", "sh", "-c", "poweroff -f; sleep 60"], 255)?;
    ensure!(done.stderr.contains("guest powered off before"), "{done:?}");
    Ok(())
}

/// Standard input and output arrive whole, and an end on either side is one on the other.
pub fn streams(kit: &Kit) -> Result<()> {
    const MEBIBYTES: u64 = 10;
    let runner = newest(kit);
    let script = format!("yes 0123456789abcde | head -c {}", MEBIBYTES << 20);
    let started = Instant::now();
    let done = runner.ends(&["--", "sh", "-c", &script], 0)?;
    let expected = "0123456789abcde\n".repeat(usize::try_from(MEBIBYTES << 16)?);
    ensure!(done.stdout == expected, "{} bytes came", done.stdout.len());
    println!(
        "{MEBIBYTES} MiB of output in {:.1} s with the guest's start",
        started.elapsed().as_secs_f32()
    );
    large_input(&runner)?;
    piped(
        "yes | \"$0\" \"$@\"",
        runner.kit,
        &["--", "head", "-n", "1"],
        "y\n",
    )?;
    piped(
        "\"$0\" \"$@\" | head -n 1",
        runner.kit,
        &["--", "yes"],
        "y\n",
    )?;
    // What it leaves behind does not keep the guest, even if it prints all the time.
    let left = "sleep 1000 & echo here";
    runner.prints(&["--", "sh", "-c", left], "here\n")?;
    let left = "while sleep 0.05; do echo x; done & echo here";
    let done = runner.ends(&["--", "sh", "-c", left], 0)?;
    let mut lines = done.stdout.lines();
    ensure!(
        lines.any(|line| line == "here") && done.stdout.len() < 1000,
        "{done:?}"
    );
    Ok(())
}

/// Input of some size comes to the command as it is.
fn large_input(runner: &Runner<'_>) -> Result<()> {
    const BYTES: u32 = 10 << 20;
    // No part of it is like another.
    let input: Vec<u8> = (0..BYTES / 4).flat_map(u32::to_le_bytes).collect();
    let sum = Process::builder("sha256sum")
        .stdin(Stdin::Given(input.clone()))
        .run(LIMIT)?;
    ensure!(sum.exit.success(), "{sum:?}");
    let done = runner.run(&["--", "sh", "-c", "cat | sha256sum"], Stdin::Given(input))?;
    ensure!(
        done.exit.success() && done.stdout == sum.stdout,
        "{done:?}, expected {}",
        sum.stdout
    );
    Ok(())
}

/// Where the kernel lets no program use I/O ports, everything goes through the terminal of COM2, byte by byte.
pub fn without_ports(kit: &Kit) -> Result<()> {
    let runner = newest(kit);
    // The console is shown, for what the guest says of its ports, but the kernel's own words are not.
    let options = ["-v", "--append", "quiet lockdown=integrity", "--"];
    let with = |words: &[&'static str]| [&options, words].concat();
    let input: String = (0..1000).map(|number| format!("{number}\n")).collect();
    let done = runner.run(&with(&["cat"]), Stdin::Given(input.clone().into_bytes()))?;
    ensure!(
        done.stderr.contains("input and output go byte by byte"),
        "the ports could be used: {done:?}"
    );
    ensure!(done.exit.success() && done.stdout == input, "{done:?}");
    // More than the guest's driver holds at once.
    let script = "yes 0123456789abcde | head -c 16000; echo err >&2; exit 7";
    let done = runner.ends(&with(&["sh", "-c", script]), 7)?;
    ensure!(
        done.stdout == "0123456789abcde\n".repeat(1000),
        "{} bytes came",
        done.stdout.len()
    );
    ensure!(done.stderr.contains("err\n"), "{done:?}");
    Ok(())
}

/// Runs a line of shell whose `"$0" "$@"` is berth with these words; it must end and print `expected`.
fn piped(line: &str, kit: &Kit, words: &[&str], expected: &str) -> Result<()> {
    let kernel = kit.kernel(Version::Newest, Form::BzImage)?;
    let done = Process::builder("sh")
        .args(["-c", line])
        .arg(harness::berth_binary()?)
        .args(["run", "-m", "768M", "--kernel"])
        .arg(kernel)
        .args(words)
        .run(LIMIT)?;
    ensure!(done.stdout == expected, "{line} {words:?}: {done:?}");
    Ok(())
}

/// Programs of the host with their libraries and what is brought along, on both kernels.
pub fn programs(kit: &Kit) -> Result<()> {
    let dir = harness::scratch()?;
    let image = harness::image(dir.path(), "disk.img", 16 << 20)?;
    let image = image.display().to_string();
    for version in [Version::V6_1, Version::V6_12] {
        let runner = Runner { kit, version };
        let done = runner.ends(&["--disk", &image, "--", "nvme", "list"], 0)?;
        ensure!(done.stdout.contains("/dev/nvme0n1"), "{done:?}");
    }
    let data = dir.path().join("data");
    fs::write(&data, "brought along\n")?;
    let with = format!("{}=/etc/data", data.display());
    let words = ["--with", &with, "--", "cat", "/etc/data"];
    newest(kit).prints(&words, "brought along\n")
}

/// A directory and an image as the root.
pub fn roots(kit: &Kit) -> Result<()> {
    let dir = harness::scratch()?;
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(kit.file("busybox"), root.join("bin/busybox"))?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    symlink("busybox", root.join("bin/sh"))?;
    fs::write(root.join("mark"), "of the directory\n")?;
    let root = root.display().to_string();
    let runner = newest(kit);
    let script = "read mark </mark; echo $mark";
    runner.prints(
        &["--rootfs", &root, "--", "sh", "-c", script],
        "of the directory\n",
    )?;
    let done = runner.ends(&["--rootfs", &root, "--", "absent"], 127)?;
    ensure!(
        done.stderr == "berth: absent: not found in the guest\n",
        "{done:?}"
    );
    image_as_root(&runner, dir.path())
}

fn image_as_root(runner: &Runner<'_>, dir: &Path) -> Result<()> {
    let image = dir.join("root.img");
    fs::copy(runner.kit.file("root.img"), &image).context("copying root.img")?;
    let image = image.display().to_string();
    let other = harness::image(dir, "other.img", 16 << 20)?;
    let other = other.display().to_string();
    let script = "grep -c ' / ext4 rw' /proc/mounts; echo written >/mark; ls /dev/nvme0n1";
    let words = [
        "--disk", &other, "--rootfs", &image, "--", "sh", "-c", script,
    ];
    runner.prints(&words, "1\n/dev/nvme0n1\n")?;
    // What was written is there, and was there in time: the file system is clean.
    let read_only = format!("{image},ro");
    let script = "cat /mark; grep -c ' / ext4 ro' /proc/mounts; touch /x 2>/dev/null || echo no";
    let words = ["--rootfs", &read_only, "--", "sh", "-c", script];
    runner.prints(&words, "written\n1\nno\n")
}

/// Roots of the kinds that stock kernels have as modules, packed in one of them.
pub fn file_systems(kit: &Kit) -> Result<()> {
    let dir = harness::scratch()?;
    for version in [Version::V6_1, Version::V6_12] {
        let runner = Runner { kit, version };
        for kind in ["xfs", "btrfs"] {
            let image = dir.path().join(kind);
            fs::copy(kit.file(&format!("root.{kind}")), &image).context(kind)?;
            let image = image.display().to_string();
            let script = format!("grep -c ' / {kind} rw' /proc/mounts; echo written >/x; cat /x");
            let words = ["--rootfs", &image, "--", "sh", "-c", &script];
            runner.prints(&words, "1\nwritten\n")?;
        }
        // It is read only without being told.
        let image = dir.path().join("squashfs");
        fs::copy(kit.file("root.squashfs"), &image).context("squashfs")?;
        let image = image.display().to_string();
        let script = "grep -c ' / squashfs ro' /proc/mounts; echo x >/tmp/x; cat /tmp/x";
        let words = ["--rootfs", &image, "--", "sh", "-c", script];
        runner.prints(&words, "1\nx\n")?;
    }
    Ok(())
}

/// A module of the stock kernel that needs another one.
pub fn modules(kit: &Kit) -> Result<()> {
    for version in [Version::V6_1, Version::V6_12] {
        let runner = Runner { kit, version };
        let script = "cut -d ' ' -f 1 /proc/modules | grep dm_ | sort";
        let words = ["--module", "dm-crypt", "--", "sh", "-c", script];
        runner.prints(&words, "dm_crypt\ndm_mod\n")?;
        let done = runner.ends(&["--module", "nonsense", "--", "true"], 1)?;
        ensure!(done.stderr.contains("has no module nonsense"), "{done:?}");
    }
    Ok(())
}
