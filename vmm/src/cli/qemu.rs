//! Options of QEMU's, cloud-hypervisor's and virtme-ng's that berth has by another name, or needs not.

const CONSOLE: &str = "the guest's console always is on the terminal; leave it out";
const DEFAULT: &str = "berth always does so; leave it out";
const ONE_MACHINE: &str = "berth has one kind of machine; leave it out";
const IMAGE: &str = "give an image with --disk FILE";
const CONTROL: &str = "berth is controlled by --control-socket PATH or --control-pipe PATH, see berth \
    ctl --help";
const NO_NETWORK: &str = "berth has no network; leave it out";
const NO_FIRMWARE: &str = "berth starts the kernel itself, without firmware; leave it out";

const NOTHING_LIKE_IT: &str = "berth has nothing like it; leave it out";
const COMMAND: &str = "a command stands behind all options: -- COMMAND";
const COPIES: &str = "files are brought along with --with FILE, a whole root with --rootfs DIR";

/// Names without dashes, and what to do instead.
type Options = &'static [(&'static [&'static str], &'static str)];

const QEMU: Options = &[
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
    (&["name", "uuid", "rtc", "usb"], NOTHING_LIKE_IT),
];

const CLOUD_HYPERVISOR: Options = &[
    (
        &["cmdline"],
        "give the kernel's command line with --append TEXT",
    ),
    (
        &["initramfs"],
        "give the initial RAM disk with --initrd FILE",
    ),
    (&["api-socket"], CONTROL),
    (&["event-monitor"], CONTROL),
    (&["firmware"], NO_FIRMWARE),
    (&["console"], CONSOLE),
    (
        &[
            "rng", "pmem", "vsock", "fs", "balloon", "watchdog", "tpm", "vdpa", "numa", "platform",
        ],
        NOTHING_LIKE_IT,
    ),
];

const VIRTME_NG: Options = &[
    (&["exec", "script-sh"], COMMAND),
    (
        &["run", "kimg", "kdir"],
        "give the kernel with --kernel FILE",
    ),
    (&["rw", "rwdir", "rodir", "pwd", "root-release"], COPIES),
    (&["user"], "commands run as the guest's root; leave it out"),
    (&["mods"], "name a module with --module NAME"),
    (&["qemu-opts"], "berth is not made of QEMU; leave it out"),
];

/// Whose options they are.
const ALL: [(&str, Options); 3] = [
    ("QEMU", QEMU),
    ("cloud-hypervisor", CLOUD_HYPERVISOR),
    ("virtme-ng", VIRTME_NG),
];

/// What to do instead of another program's option, which is given as it was typed.
pub fn advice(typed: &str) -> Option<String> {
    let name = typed
        .strip_prefix("--")
        .or_else(|| typed.strip_prefix('-'))?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    ALL.iter().find_map(|(program, options)| {
        let (_, advice) = options.iter().find(|(names, _)| names.contains(&name))?;
        Some(format!("is {program}'s; {advice}"))
    })
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
        let expected = "is cloud-hypervisor's; give the initial RAM disk with --initrd FILE";
        assert_eq!(advice("--initramfs").as_deref(), Some(expected));
        for typed in ["smp", "-smpx", "-", "---smp", "-m"] {
            assert_eq!(advice(typed), None, "{typed}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = ALL
            .iter()
            .flat_map(|(_, options)| *options)
            .flat_map(|(names, _)| *names)
            .copied()
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
