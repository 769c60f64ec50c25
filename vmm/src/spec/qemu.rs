//! QEMU's properties that berth does not have, and what becomes of each. The README shows these tables.

use crate::grammar::Hint::{self, Absent, Ignored, Refused};

const LATER: Hint = Refused("not supported by berth yet");
const NO_FIRMWARE: Hint = Ignored("berth starts the kernel itself");
const FIXED_SIZES: Hint = Ignored("a hint on performance, which berth does not give");

/// Of `nvme-subsys`.
pub const SUBSYSTEM_HINTS: &[(&str, Hint)] = &[
    ("pool", LATER),
    ("capacity", LATER),
    ("fdp", Absent),
    ("fdp.", Absent),
];

/// Of `nvme`.
pub const CONTROLLER_HINTS: &[(&str, Hint)] = &[
    (
        "bus",
        Ignored(
            "berth has one PCI bus, all of whose slots can be hot-plugged; choose one with addr=",
        ),
    ),
    (
        "ioeventfd",
        Ignored("doorbells of shadowed queues always are ioeventfds in berth"),
    ),
    ("dbcs", Ignored("always on in berth")),
    ("msix_qsize", Ignored("follows max_ioqpairs in berth")),
    ("aerl", Ignored("fixed in berth")),
    ("aer_max_queued", Ignored("fixed in berth")),
    ("bootindex", NO_FIRMWARE),
    ("rombar", NO_FIRMWARE),
    ("romfile", NO_FIRMWARE),
    ("physical_block_size", FIXED_SIZES),
    ("min_io_size", FIXED_SIZES),
    ("opt_io_size", FIXED_SIZES),
    ("discard_granularity", FIXED_SIZES),
    (
        "nsid",
        Refused("a one-disk controller's namespace is 1; use a nvme-ns device to choose"),
    ),
    ("shared", Refused("belongs to nvme-subsys and nvme-ns")),
    (
        "num_queues",
        Refused("replaced by max_ioqpairs (without the admin queue)"),
    ),
    (
        "iothread",
        Refused("berth has its own I/O threads; use io-threads=NUMBER"),
    ),
    ("write-cache", Refused("use cache= to choose")),
    (
        "share-rw",
        Refused("an image belongs to one namespace; share the namespace instead"),
    ),
    ("pmrdev", Absent),
    ("cmb_size_mb", Absent),
    ("legacy-cmb", Absent),
    ("vsl", Absent),
    ("use-intel-id", Absent),
    ("ocp", Absent),
    ("multifunction", Absent),
    ("msix-exclusive-bar", Absent),
    ("smart_critical_warning", Absent),
    ("spdm_port", Absent),
    ("spdm_trans", Absent),
    ("sriov_max_vfs", Absent),
    ("sriov_vq_flexible", Absent),
    ("sriov_vi_flexible", Absent),
    ("sriov_max_vi_per_vf", Absent),
    ("sriov_max_vq_per_vf", Absent),
    ("ctratt.", Absent),
    ("atomic.", Absent),
    ("zoned.", Absent),
];

/// Of `nvme-ns`.
pub const NAMESPACE_HINTS: &[(&str, Hint)] = &[
    ("bootindex", NO_FIRMWARE),
    ("physical_block_size", FIXED_SIZES),
    ("min_io_size", FIXED_SIZES),
    ("opt_io_size", FIXED_SIZES),
    ("discard_granularity", FIXED_SIZES),
    ("latency", LATER),
    (
        "size",
        Refused("the size is the image's; for memory and null give memory=SIZE or null=SIZE"),
    ),
    ("readonly", Refused("called ro here")),
    ("read-only", Refused("called ro here")),
    ("write-cache", Refused("use cache= to choose")),
    (
        "share-rw",
        Refused("an image belongs to one namespace; share the namespace instead"),
    ),
    ("ms", Absent),
    ("mset", Absent),
    ("pi", Absent),
    ("pil", Absent),
    ("pif", Absent),
    ("mssrl", Absent),
    ("mcl", Absent),
    ("msrc", Absent),
    ("zoned", Absent),
    ("eui64-default", Absent),
    ("zoned.", Absent),
    ("fdp.", Absent),
    ("atomic.", Absent),
];

/// Of `--drive`.
pub const DRIVE_HINTS: &[(&str, Hint)] = &[
    (
        "aio",
        Ignored("berth chooses how it does I/O by what the file can do"),
    ),
    ("discard", Ignored("the guest may always discard")),
    ("index", Ignored("the device says where it is")),
    (
        "detect-zeroes",
        Ignored("zeroes that are written are written"),
    ),
    ("snapshot", Absent),
    ("copy-on-read", Absent),
    ("serial", Refused("belongs to the nvme device")),
    (
        "werror",
        Refused("errors always are the guest's; leave it out"),
    ),
    (
        "rerror",
        Refused("errors always are the guest's; leave it out"),
    ),
    ("throttling.", Absent),
];
