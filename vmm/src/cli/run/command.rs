//! The options that go with a command for the guest.

use std::fs;

use super::{CliError, RunArgs};
use crate::guest_command::{GuestCommand, RootFs, RootKind, With};
use crate::spec::{BackendSpec, NamespaceSpec};

/// The command and what it needs, if there is one.
///
/// # Errors
/// The command is empty, or an option goes with a command only, or with none.
pub fn from_args(
    args: &RunArgs,
    words: Option<Vec<String>>,
    warnings: &mut Vec<String>,
) -> Result<Option<GuestCommand>, CliError> {
    let Some(words) = words else {
        return without(args).map(|()| None);
    };
    if words.first().is_none_or(String::is_empty) {
        let problem = "the COMMAND is missing; for example \"berth run --disk a.img -- nvme list\"";
        return Err(CliError::usage("--", problem));
    }
    if let Some(word) = words.iter().find(|word| word.contains('\0')) {
        return Err(CliError::usage(word, "contains NUL"));
    }
    refuse_conflicts(args)?;
    let rootfs = args.rootfs.as_ref();
    let rootfs = rootfs.map(|argument| parse_rootfs(argument, warnings));
    let rootfs = rootfs.transpose()?;
    let is_disk = |root: &RootFs| matches!(root.kind, RootKind::Disk(_));
    if let (Some(with), true) = (args.with.first(), rootfs.as_ref().is_some_and(is_disk)) {
        let problem = "has no place in an image; put the file into the image of --rootfs";
        return Err(CliError::usage(format!("--with {with}"), problem));
    }
    Ok(Some(GuestCommand {
        words,
        rootfs,
        with: parse_with(&args.with)?,
        modules: args.module.clone(),
    }))
}

/// Options without a command that they could be for.
fn without(args: &RunArgs) -> Result<(), CliError> {
    let options = [
        ("--rootfs", args.rootfs.as_ref()),
        ("--with", args.with.first()),
        ("--module", args.module.first()),
    ];
    for (option, given) in options {
        if let Some(value) = given {
            let problem = "needs a COMMAND behind \"--\"";
            return Err(CliError::usage(format!("{option} {value}"), problem));
        }
    }
    Ok(())
}

/// Options whose place a command takes.
fn refuse_conflicts(args: &RunArgs) -> Result<(), CliError> {
    if let Some(initrd) = &args.initrd {
        let problem = "a COMMAND has an initramfs of berth's own; use --rootfs or --with";
        return Err(CliError::usage(format!("--initrd {initrd}"), problem));
    }
    if let Some(com2) = &args.com2 {
        let problem = "COM2 carries the output of the COMMAND, which is on stdout and stderr";
        return Err(CliError::usage(format!("--com2 {com2}"), problem));
    }
    Ok(())
}

fn parse_rootfs(argument: &str, warnings: &mut Vec<String>) -> Result<RootFs, CliError> {
    if argument.is_empty() {
        return Err(CliError::usage("--rootfs", "the path is empty"));
    }
    let kind = if fs::metadata(argument).is_ok_and(|found| found.is_dir()) {
        RootKind::Directory(argument.into())
    } else {
        let parsed = NamespaceSpec::from_disk(argument)
            .map_err(|error| CliError::spec("--rootfs", &error))?;
        if !matches!(parsed.spec.disk.backend, BackendSpec::File { .. }) {
            let problem = "must be a directory or an image";
            return Err(CliError::usage(format!("--rootfs {argument}"), problem));
        }
        let ignored = parsed.ignored.iter();
        warnings.extend(ignored.map(|why| format!("--rootfs {argument}: {why}")));
        RootKind::Disk(Box::new(parsed.spec))
    };
    Ok(RootFs {
        argument: argument.to_owned(),
        kind,
    })
}

fn parse_with(arguments: &[String]) -> Result<Vec<With>, CliError> {
    let mut all = Vec::new();
    for argument in arguments {
        let with = With::parse(argument);
        if with.from.as_os_str().is_empty() {
            return Err(CliError::usage(
                format!("--with {argument}"),
                "the path is empty",
            ));
        }
        all.push(with);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{K, config, refused};
    use super::*;

    #[test]
    fn a_command_is_left_as_it_is() {
        let command = |line| config(line).command.unwrap();
        let plain = command("-v -- sh -c exit~7 --kernel -- -v");
        assert_eq!(plain.words, ["sh", "-c", "exit 7", "--kernel", "--", "-v"]);
        assert_eq!((plain.rootfs, plain.with), (None, Vec::new()));
        let full = command("--with a --with=b=/c --module m --rootfs DIR -- x");
        assert_eq!(full.modules, ["m"]);
        assert_eq!(full.with, [With::parse("a"), With::parse("b=/c")]);
        assert!(matches!(full.rootfs.unwrap().kind, RootKind::Directory(_)));
        let image = command("--rootfs DIR/a.img,ro -- x").rootfs.unwrap();
        let RootKind::Disk(spec) = image.kind else {
            panic!("no disk")
        };
        assert!(spec.disk.ro);
    }

    #[test]
    fn a_command_without_its_options_or_the_other_way_round_is_refused() {
        refused(
            35,
            &[
                (
                    "run --kernel x --",
                    "--: the COMMAND is missing; for example \"berth run --disk a.img -- nvme list\"",
                ),
                (
                    &format!("{K} --initrd DIR/a.img -- true"),
                    "--initrd DIR/a.img: a COMMAND has an initramfs of berth's own; use --rootfs or --with",
                ),
                (
                    &format!("{K} --com2 DIR/x -- true"),
                    "--com2 DIR/x: COM2 carries the output of the COMMAND, which is on stdout and stderr",
                ),
                (
                    &format!("{K} --rootfs DIR"),
                    "--rootfs DIR: needs a COMMAND behind \"--\"",
                ),
                (
                    &format!("{K} --module nvme"),
                    "--module nvme: needs a COMMAND behind \"--\"",
                ),
                (
                    &format!("{K} --with a"),
                    "--with a: needs a COMMAND behind \"--\"",
                ),
                (
                    &format!("{K} --with a --rootfs DIR/a.img -- true"),
                    "--with a: has no place in an image; put the file into the image of --rootfs",
                ),
                (
                    &format!("{K} --rootfs memory=1M -- true"),
                    "--rootfs memory=1M: must be a directory or an image",
                ),
                (
                    &format!("{K} --rootfs DIR/a.img,bogus=1 -- true"),
                    "--rootfs DIR/a.img,bogus=1: unknown property \"bogus\" of a disk; allowed: bus, cache, ctrl, \
                     detached, drive, eui64, file, format, id, logical_block_size, memory, nguid, nsid, null, ro, shared, uuid",
                ),
            ],
        );
    }
}
