//! What is compared: guests, and the host.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::job::JobFile;
use super::machines::{self, Machine};
use super::results::{Place, Setting};
use super::{FioConfig, HostRuns, sys};
use crate::control::plain;

/// Name of the host's setting.
const HOST: &str = "host";

/// One of the things that are compared, ready to run.
pub struct Target {
    /// What the results call it.
    pub setting: Setting,
    /// The host's file.
    pub file: Option<PathBuf>,
    /// What replaces the jobs' `direct`.
    pub direct: Option<bool>,
}

/// The guests, and behind them the host.
///
/// # Errors
/// The jobs are not for the host, or its file cannot be used.
pub fn targets(config: &FioConfig, files: &[JobFile]) -> anyhow::Result<Vec<Target>> {
    let guest = |machine: &Machine| Target {
        setting: Setting {
            name: machine.name.clone(),
            place: Place::Guest,
            description: machine.text.clone(),
            system: None,
            notes: Vec::new(),
        },
        file: None,
        direct: None,
    };
    let mut targets: Vec<Target> = config.machines.iter().map(guest).collect();
    if config.host != HostRuns::No {
        refuse_unfit(files)?;
    }
    let paths = match &config.host {
        HostRuns::No => Vec::new(),
        HostRuns::Disks => disks(&config.machines)?,
        HostRuns::File { path, writable } => {
            if let (false, Some(file)) = (writable, files.iter().find(|file| file.writes())) {
                bail!(
                    "--host={}: {} writes, and what is there would be lost; give --allow-write, or a \
                     file for it",
                    path.display(),
                    file.path.display()
                );
            }
            vec![path.clone()]
        }
    };
    for (path, number) in paths.iter().zip(1..) {
        let name = if number == 1 {
            HOST.to_owned()
        } else {
            format!("{HOST} {number}")
        };
        targets.push(host(path, name)?);
    }
    Ok(targets)
}

/// Refuses jobs that would do more on the host than read and write its file.
fn refuse_unfit(files: &[JobFile]) -> anyhow::Result<()> {
    for file in files {
        for phase in &file.phases {
            if let Some((what, why)) = phase.unfit_for_host() {
                bail!(
                    "--host: {}, job {}: {what} {why}; run it in guests only, or leave it out",
                    file.path.display(),
                    phase.name
                );
            }
        }
    }
    Ok(())
}

/// The file that each machine's only disk is on.
fn disks(machines: &[Machine]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for machine in machines {
        let path = match machines::namespaces(&machine.text).as_slice() {
            [Some(path)] => path.clone(),
            [None] => bail!(
                "--host: the disk of {} is in no file of the host; name one, --host=FILE",
                machine.name
            ),
            _ => bail!(
                "--host: {} has several disks; name a file, --host=FILE",
                machine.name
            ),
        };
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn host(path: &Path, name: String) -> anyhow::Result<Target> {
    let failed = |error: io::Error| anyhow::anyhow!("--host={}: {}", path.display(), plain(&error));
    let path = path.canonicalize().map_err(failed)?;
    // fio would take the part before that for the name, and write to a file of that name.
    if path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .any(|byte| b";#\n".contains(byte))
    {
        bail!(
            "--host={}: fio takes what is behind \";\" or \"#\" for a comment; give the file and its folder \
             another name",
            path.display()
        );
    }
    let direct = sys::takes_direct_io(&path).map_err(failed)?;
    let mut notes = Vec::new();
    if !direct {
        notes.push("direct=0, for the file system has no O_DIRECT".to_owned());
    }
    Ok(Target {
        setting: Setting {
            name,
            place: Place::Host,
            description: path.display().to_string(),
            system: None,
            notes,
        },
        file: Some(path),
        direct: (!direct).then_some(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_one_place_for_each_disk() {
        let machine = |name: &str, text: &str| Machine {
            name: name.into(),
            text: text.into(),
        };
        let one = machine("one", "[[disk]]\nfile = 'a.img'\n");
        let same = machine("same", "[[device]]\ndriver = 'nvme-ns'\nfile = 'a.img'\n");
        let memory = machine("mem", "[[device]]\ndriver = 'nvme'\nmemory = '1G'\n");
        let two = machine("two", "[[disk]]\nfile = 'a.img'\n[[disk]]\nnull = '1G'\n");
        assert_eq!(disks(&[one.clone(), same]).unwrap(), [Path::new("a.img")]);
        let refused = |machine| disks(&[one.clone(), machine]).unwrap_err().to_string();
        assert!(refused(memory).contains("the disk of mem is in no file"));
        assert!(refused(two).contains("two has several disks"));
    }
}
