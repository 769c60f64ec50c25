//! Whether the files that a command line names are there and usable.
//!
//! They are opened later by who uses them, who reports what goes wrong then. This is for telling the
//! user everything that can be told before anything starts.

#[cfg(test)]
mod tests;

use std::fs;
use std::io::ErrorKind;
use std::iter;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{CliError, RunConfig};
use crate::control::{self, directory, kind, plain, sys};
use crate::guest_command::{RootFs, RootKind};
use crate::image;
use crate::spec::{BackendSpec, DiskSpec, Format};

/// Checks everything that `config` names. `arguments` are those of [`RunConfig::devices_by_option`].
///
/// # Errors
/// The first file that is missing, of the wrong kind or not permitted.
pub fn check(config: &RunConfig, arguments: &[String]) -> Result<(), CliError> {
    plain_file("--kernel", &config.kernel)?;
    if let Some(initrd) = &config.initrd {
        plain_file("--initrd", initrd)?;
    }
    for ((_, _, disk), argument) in config.devices_by_option().zip(arguments) {
        if let Some(disk) = disk {
            disk_image(argument, disk)?;
        }
    }
    if let Some(RootFs {
        argument,
        kind: RootKind::Disk(spec),
    }) = rootfs(config)
    {
        disk_image(&format!("--rootfs {argument}"), &spec.disk)?;
    }
    let outputs = [("--com2", &config.com2), ("--trace", &config.trace)];
    for (option, path) in outputs {
        if let Some(path) = path {
            output(option, path)?;
            not_an_input(option, path, config)?;
        }
    }
    if let Some(base) = &config.control_pipe {
        control::pipe::check(base)?;
    }
    if let Some(path) = &config.control_socket {
        control::socket::check(path)?;
    }
    Ok(())
}

fn rootfs(config: &RunConfig) -> Option<&RootFs> {
    config.command.as_ref()?.rootfs.as_ref()
}

/// A regular file that can be read.
fn plain_file(option: &str, path: &Path) -> Result<(), CliError> {
    let error = |problem| CliError::environment(format!("{option} {}", path.display()), problem);
    let found = fs::metadata(path)
        .map_err(|failed| error(plain(&failed)))?
        .file_type();
    if !found.is_file() {
        return Err(error(format!("is {}, must be a regular file", kind(found))));
    }
    sys::access(path, libc::R_OK).map_err(|failed| error(plain(&failed)))
}

/// A regular file or block device with a raw image that can be read, and written unless it is
/// read-only.
fn disk_image(argument: &str, disk: &DiskSpec) -> Result<(), CliError> {
    let BackendSpec::File { path, .. } = &disk.backend else {
        return Ok(());
    };
    let error =
        |problem: String| CliError::environment(argument, format!("{}: {problem}", path.display()));
    let found = fs::metadata(path).map_err(|failed| {
        let hint = match failed.kind() {
            ErrorKind::NotFound if argument.contains("drive=") => {
                "; drive= takes the id of a --drive, or the path of an image".into()
            }
            ErrorKind::NotFound if argument.starts_with("--rootfs") => format!(
                "; a root is a directory, or an image that is made of one: mke2fs -t ext4 -d DIR {} 1G",
                path.display()
            ),
            ErrorKind::NotFound => format!("; make one: truncate -s 1G {}", path.display()),
            _ => String::new(),
        };
        error(plain(&failed) + &hint)
    })?;
    let found = found.file_type();
    if !found.is_file() && !found.is_block_device() {
        return Err(error(format!(
            "is {}, must be an image or a block device",
            kind(found)
        )));
    }
    sys::access(path, libc::R_OK).map_err(|failed| error(plain(&failed)))?;
    if disk.format == Format::Probed {
        image::check(path).map_err(|other| CliError::environment(argument, other.to_string()))?;
    }
    if disk.ro {
        return Ok(());
    }
    sys::access(path, libc::W_OK).map_err(|failed| {
        let why = plain(&failed);
        error(format!("cannot be written ({why}); add ,ro to read only"))
    })
}

/// Refuses to empty a file that this guest boots from or has as a disk.
fn not_an_input(option: &str, output: &Path, config: &RunConfig) -> Result<(), CliError> {
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some((found.dev(), found.ino()))
    };
    let Some(own) = identity(output) else {
        return Ok(());
    };
    let initrd = config.initrd.iter().map(|path| ("--initrd", path));
    let images = config
        .devices_by_option()
        .filter_map(|(option, _, disk)| match &disk?.backend {
            BackendSpec::File { path, .. } => Some((option, path)),
            _ => None,
        });
    let drives = config.drives.values().map(|drive| ("--drive", &drive.file));
    let images = images.chain(drives);
    let mut inputs = iter::once(("--kernel", &config.kernel))
        .chain(initrd)
        .chain(images);
    inputs
        .find(|(_, path)| identity(path) == Some(own))
        .map_or(Ok(()), |(input, path)| {
            let argument = format!("{option} {}", output.display());
            let path = path.display();
            Err(CliError::usage(
                argument,
                format!("would empty the file of {input} {path}; give another path"),
            ))
        })
}

/// A file that can be made or written.
fn output(option: &str, path: &Path) -> Result<(), CliError> {
    let error = |problem| CliError::environment(format!("{option} {}", path.display()), problem);
    match fs::metadata(path) {
        Ok(found) if found.is_dir() || found.file_type().is_socket() => {
            let found = kind(found.file_type());
            Err(error(format!("is {found}, must be a file, FIFO or device")))
        }
        Ok(_) => sys::access(path, libc::W_OK).map_err(|failed| error(plain(&failed))),
        Err(missing) if missing.kind() == ErrorKind::NotFound => {
            let directory = directory(path);
            sys::access(directory, libc::W_OK | libc::X_OK)
                .map_err(|failed| error(format!("{}: {}", directory.display(), plain(&failed))))
        }
        Err(failed) => Err(error(plain(&failed))),
    }
}
