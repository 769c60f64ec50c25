//! Which kind of host the tests run on, and where guests go on it.
//!
//! | kind | how to tell | stock Linux guests | bare-metal guests |
//! |---|---|---|---|
//! | hardware KVM | `/dev/kvm` opens, CPU has `vmx` or `svm` | directly | directly |
//! | software KVM | `/dev/kvm` opens, CPU has neither | outer machine | directly |
//! | no KVM | `/dev/kvm` does not open | outer machine | outer machine |
//!
//! The environment variable `BERTH_TEST_HOST` overrides the choice for every
//! guest: `direct` (on this host's `/dev/kvm`), `outer` (inside an emulated
//! machine) or `skip` (not at all, said aloud).

use std::fmt;
use std::fs::OpenOptions;
use std::io;

/// Environment variable that overrides where guests run.
pub const OVERRIDE: &str = "BERTH_TEST_HOST";

/// The CPUs that this process may run on, in the form of `--io-affinity` (proc_pid_status(5)).
///
/// # Panics
/// `/proc` is not what it is on Linux.
#[must_use]
pub fn cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.expect("Cpus_allowed_list").trim().to_owned()
}

/// What `/dev/kvm` and the CPU of this host offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// `/dev/kvm` opens and the CPU has VT-x or AMD-V.
    HardwareKvm,
    /// `/dev/kvm` opens, but the CPU has neither: ring 0 is emulated, and
    /// stock kernels do not boot.
    SoftwareKvm,
    /// `/dev/kvm` is missing or not permitted.
    NoKvm,
}

/// Where a guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// On this host's `/dev/kvm`.
    Direct,
    /// Inside an emulated outer machine.
    Outer,
    /// Nowhere, and why.
    Skip(String),
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HardwareKvm => "hardware KVM",
            Self::SoftwareKvm => "software KVM",
            Self::NoKvm => "no KVM",
        })
    }
}

impl HostKind {
    /// Looks at this host.
    #[must_use]
    pub fn detect() -> Self {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::judge(kvm.is_ok(), &cpuinfo)
    }

    fn judge(kvm_opens: bool, cpuinfo: &str) -> Self {
        match (kvm_opens, has_virtualization_flag(cpuinfo)) {
            (true, true) => Self::HardwareKvm,
            (true, false) => Self::SoftwareKvm,
            (false, _) => Self::NoKvm,
        }
    }

    /// Where stock Linux guests run on this kind of host, unless overridden.
    ///
    /// # Errors
    /// When `BERTH_TEST_HOST` holds something else than it may.
    pub fn linux_placement(self) -> io::Result<Placement> {
        let default = match self {
            Self::HardwareKvm => Placement::Direct,
            Self::SoftwareKvm | Self::NoKvm => Placement::Outer,
        };
        Ok(override_from_env()?.unwrap_or(default))
    }

    /// Where bare-metal guests run on this kind of host, unless overridden.
    ///
    /// # Errors
    /// When `BERTH_TEST_HOST` holds something else than it may.
    pub fn bare_placement(self) -> io::Result<Placement> {
        let default = match self {
            Self::HardwareKvm | Self::SoftwareKvm => Placement::Direct,
            Self::NoKvm => Placement::Outer,
        };
        Ok(override_from_env()?.unwrap_or(default))
    }

    /// One line for people: the kind of host and where `what` runs, and why.
    #[must_use]
    pub fn announce(self, what: &str, placement: &Placement) -> String {
        let because = if std::env::var_os(OVERRIDE).is_some() {
            format!(" ({OVERRIDE} says so)")
        } else {
            String::new()
        };
        match placement {
            Placement::Direct => {
                format!("host: {self}; {what} run directly on /dev/kvm{because}")
            }
            Placement::Outer => {
                format!("host: {self}; {what} run inside an emulated outer machine{because}")
            }
            Placement::Skip(why) => format!("host: {self}; {what} skipped: {why}"),
        }
    }
}

fn has_virtualization_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn override_from_env() -> io::Result<Option<Placement>> {
    match std::env::var(OVERRIDE) {
        Ok(value) => parse_override(&value).map(Some),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(io::Error::other(format!("{OVERRIDE}: {error}"))),
    }
}

fn parse_override(value: &str) -> io::Result<Placement> {
    match value {
        "direct" => Ok(Placement::Direct),
        "outer" => Ok(Placement::Outer),
        "skip" => Ok(Placement::Skip(format!("{OVERRIDE}=skip"))),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{OVERRIDE}={other}: must be direct, outer or skip"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_kvm_and_the_cpu_flags() {
        let plain = "processor : 0\nflags\t\t: fpu vme svm_lock\nbugs : vmx";
        let amd = "flags\t\t: fpu svm npt\n";
        let intel = "flags\t\t: vmx fpu\n";
        assert_eq!(HostKind::judge(true, amd), HostKind::HardwareKvm);
        assert_eq!(HostKind::judge(true, intel), HostKind::HardwareKvm);
        assert_eq!(HostKind::judge(true, plain), HostKind::SoftwareKvm);
        assert_eq!(HostKind::judge(false, amd), HostKind::NoKvm);
    }

    #[test]
    fn the_override_takes_three_words_and_names_them_otherwise() {
        assert_eq!(parse_override("direct").unwrap(), Placement::Direct);
        assert_eq!(parse_override("outer").unwrap(), Placement::Outer);
        assert!(matches!(
            parse_override("skip").unwrap(),
            Placement::Skip(_)
        ));
        let error = parse_override("inner").unwrap_err().to_string();
        assert!(error.contains("direct, outer or skip"), "{error}");
    }
}
