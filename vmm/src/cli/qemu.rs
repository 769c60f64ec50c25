//! Options of QEMU's that berth has by another name, or needs not.

const CONSOLE: &str = "the guest's console always is on the terminal; leave it out";
const DEFAULT: &str = "berth always does so; leave it out";
const ONE_MACHINE: &str = "berth has one kind of machine; leave it out";
const IMAGE: &str = "give an image with --disk FILE";
const CONTROL: &str = "berth is controlled by --control-socket PATH or --control-pipe PATH, see berth \
    ctl --help";
const NO_NETWORK: &str = "berth has no network; leave it out";
const NO_FIRMWARE: &str = "berth starts the kernel itself, without firmware; leave it out";

/// Names without dashes, and what to do instead.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["hda", "hdb", "hdc", "hdd"], IMAGE),
    (
        &["cdrom"],
        "berth has no CD drive; give an image with --disk FILE,ro",
    ),
    (
        &["blockdev"],
        "give an image with --disk FILE, or --device nvme-ns,file=FILE",
    ),
    (&["smp"], "give the number of vCPUs with --cpus NUMBER"),
    (
        &["enable-kvm", "accel"],
        "berth always uses KVM; leave it out",
    ),
    (&["cpu"], "the guest's CPUs are as the host's; leave it out"),
    (&["M"], ONE_MACHINE),
    (&["nographic", "display", "vga", "curses", "sdl"], CONSOLE),
    (
        &["serial"],
        "COM1 always is on the terminal; COM2 goes into a file with --com2 FILE",
    ),
    (&["monitor", "mon", "qmp", "chardev"], CONTROL),
    (&["net", "netdev", "nic"], NO_NETWORK),
    (&["no-reboot", "nodefaults", "no-user-config"], DEFAULT),
    (&["bios", "pflash", "boot"], NO_FIRMWARE),
    (
        &["daemonize"],
        "berth stays in the foreground; put & behind the command",
    ),
    (
        &["snapshot"],
        "what the guest writes stays; give a copy of the image, or --disk FILE,ro",
    ),
    (
        &["s", "S", "gdb"],
        "berth has no debugger's interface; leave it out",
    ),
    (
        &["name", "uuid", "rtc", "usb", "k"],
        "berth has nothing like it; leave it out",
    ),
];

/// What to do instead of an option of QEMU's, which is given as it was typed.
pub fn advice(typed: &str) -> Option<String> {
    let name = typed
        .strip_prefix("--")
        .or_else(|| typed.strip_prefix('-'))?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    let (_, advice) = OPTIONS.iter().find(|(names, _)| names.contains(&name))?;
    Some(format!("is QEMU's; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_with_one_dash_and_two() {
        for typed in ["-smp", "--smp", "-smp=2"] {
            let expected = "is QEMU's; give the number of vCPUs with --cpus NUMBER";
            assert_eq!(advice(typed).as_deref(), Some(expected), "{typed}");
        }
        for typed in ["smp", "-smpx", "-", "---smp", "-m"] {
            assert_eq!(advice(typed), None, "{typed}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = OPTIONS
            .iter()
            .flat_map(|(names, _)| *names)
            .copied()
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
