//! Small root file systems of other kinds than ext4: busybox, and folders to mount at.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use harness::Tree;

use crate::progress::Tool;

/// What has to be there for the kernel's own file systems, and for files.
const FOLDERS: [&str; 6] = ["dev", "proc", "sys", "run", "tmp", "root"];

/// Size of the xfs, which mkfs.xfs makes this small for tests only.
const XFS_SIZE: &str = "size=32m";

/// Makes `root.squashfs`, `root.btrfs` and `root.xfs` in `kit`.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make(busybox: &Path, kit: &Path) -> Result<()> {
    let folder = harness::scratch()?;
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    let mut tree = Tree::new();
    FOLDERS.iter().for_each(|name| tree.folder(name));
    tree.busybox(busybox)?;
    tree.write_folder(&root)?;

    let image = fresh(kit, "root.squashfs")?;
    // Its options come last.
    let script = r#"exec mksquashfs "$0" "$1" -all-root -noappend -quiet -no-progress"#;
    let tool = Tool::new("sh", &["-c", script]).path(&root);
    tool.path(&image).run()?;

    let image = fresh(kit, "root.btrfs")?;
    let tool = Tool::new("mkfs.btrfs", &["-q", "--shrink", "--rootdir"]);
    tool.path(&root).path(&image).run()?;

    let image = fresh(kit, "root.xfs")?;
    let contents = folder.path().join("contents");
    fs::write(&contents, xfs_contents(busybox))?;
    let tool = Tool::new("mkfs.xfs", &["-q", "--unsupported", "-d", XFS_SIZE, "-p"]);
    tool.path(&contents).path(&image).run()?;
    Ok(())
}

/// An empty file, as some of these tools want it.
fn fresh(kit: &Path, name: &str) -> Result<PathBuf> {
    let image = kit.join(name);
    fs::write(&image, "")?;
    Ok(image)
}

/// The contents as mkfs.xfs(8) takes them ("-p protofile").
fn xfs_contents(busybox: &Path) -> String {
    let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
    for folder in FOLDERS {
        text.push_str(&format!("{folder} d--755 0 0\n$\n"));
    }
    text.push_str("bin d--755 0 0\n");
    text.push_str(&format!("busybox ---755 0 0 {}\n", busybox.display()));
    for applet in ["sh", "cat", "grep", "touch"] {
        text.push_str(&format!("{applet} l--777 0 0 busybox\n"));
    }
    text.push_str("$\n$\n");
    text
}
