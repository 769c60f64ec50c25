//! Files that are missing, of the wrong kind, or not permitted.

use std::fs;

use super::super::testing::{K, files, parse_in, refused};

#[test]
fn wrong_files_are_refused() {
    refused(
        1,
        &[
            (
                "run --kernel DIR/none",
                "--kernel DIR/none: no such file or directory",
            ),
            (
                "run --kernel DIR/dir",
                "--kernel DIR/dir: is a directory, must be a regular file",
            ),
            (
                "run --kernel DIR/fifo",
                "--kernel DIR/fifo: is a FIFO, must be a regular file",
            ),
            (
                "run --kernel /dev/null",
                "--kernel /dev/null: is a character device, must be a regular file",
            ),
            (
                "run --kernel DIR/kernel/x",
                "--kernel DIR/kernel/x: not a directory",
            ),
            (
                &format!("{K} --initrd DIR/none"),
                "--initrd DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --disk DIR/none,ro"),
                "--disk DIR/none,ro: DIR/none: no such file or directory; make one: truncate -s 1G DIR/none",
            ),
            (
                &format!("{K} --disk DIR/dir"),
                "--disk DIR/dir: DIR/dir: is a directory, must be an image or a block device",
            ),
            (
                &format!("{K} --disk /dev/null"),
                "--disk /dev/null: /dev/null: is a character device, must be an image or a block device",
            ),
            (
                &format!("{K} --device nvme,drive=d0"),
                "--device nvme,drive=d0: d0: no such file or directory; drive= takes the id of a --drive, or the path of an image",
            ),
            (
                &format!("{K} --device nvme-ns,file=DIR/none"),
                "--device nvme-ns,file=DIR/none: DIR/none: no such file or directory; make one: truncate -s 1G DIR/none",
            ),
            (
                &format!("{K} --com2 DIR/dir"),
                "--com2 DIR/dir: is a directory, must be a file, FIFO or device",
            ),
            (
                &format!("{K} --trace DIR/socket"),
                "--trace DIR/socket: is a socket, must be a file, FIFO or device",
            ),
            (
                &format!("{K} --com2 DIR/none/x"),
                "--com2 DIR/none/x: DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --control-pipe DIR/base"),
                "--control-pipe DIR/base: DIR/base.in is a regular file, not a FIFO; remove it or choose another path",
            ),
            (
                &format!("{K} --control-pipe DIR/half"),
                "--control-pipe DIR/half: DIR/half.out is a regular file, not a FIFO; remove it or choose another path",
            ),
            (
                &format!("{K} --control-pipe DIR/none/p"),
                "--control-pipe DIR/none/p: DIR/none: no such file or directory",
            ),
            (
                &format!("{K} --control-socket DIR/a.img"),
                "--control-socket DIR/a.img: is a regular file, not a socket; remove it or choose another path",
            ),
            (
                &format!("{K} --control-socket DIR/none/s"),
                "--control-socket DIR/none/s: DIR/none: no such file or directory",
            ),
        ],
    );
    let long = format!("/tmp/{}", "x".repeat(103));
    let line = format!("{K} --control-socket {long}");
    let expected = format!(
        "--control-socket {long}: the path of a socket has at most 107 bytes, this has 108"
    );
    refused(1, &[(&line, &expected)]);
    let line = format!("{K} --control-pipe DIR/p --control-socket DIR/p.in");
    refused(
        35,
        &[(
            &line,
            "--control-socket DIR/p.in: --control-pipe DIR/p has a FIFO there",
        )],
    );
}

#[test]
fn images_of_other_formats_are_refused_unless_they_are_raw() {
    let dir = files();
    let base = dir.path().to_str().unwrap();
    fs::write(dir.path().join("b.img"), b"QFI\xfb\0\0\0\x03").unwrap();
    for option in [
        "--disk DIR/b.img",
        "--device nvme,file=DIR/b.img",
        "--device nvme,drive=d --drive id=d,file=DIR/b.img",
    ] {
        let error = parse_in(&dir, &format!("{K} {option}")).unwrap_err();
        let told = format!("{base}/b.img: is a qcow2 image, berth takes raw ones; ");
        assert!(error.to_string().contains(&told), "{error}");
        assert_eq!(error.status(), 1);
        let raw = option.replace("b.img", "b.img,format=raw");
        parse_in(&dir, &format!("{K} {raw}")).unwrap();
    }
}

#[test]
fn com2_empties_none_of_the_guests_files() {
    let dir = files();
    fs::hard_link(dir.path().join("a.img"), dir.path().join("link")).unwrap();
    let base = dir.path().to_str().unwrap();
    for (line, input) in [
        ("--com2 DIR/kernel", "--kernel DIR/kernel"),
        ("--trace DIR/kernel", "--kernel DIR/kernel"),
        ("--initrd DIR/a.img --com2 DIR/a.img", "--initrd DIR/a.img"),
        ("--disk DIR/a.img,ro --com2 DIR/link", "--disk DIR/a.img"),
        (
            "--device nvme,file=DIR/link --com2 DIR/a.img",
            "--device DIR/link",
        ),
    ] {
        let error = parse_in(&dir, &format!("{K} {line}")).expect_err(line);
        let input = input.replace("DIR", base);
        let expected = format!("would empty the file of {input}; give another path");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert_eq!(error.status(), 35);
    }
    parse_in(&dir, &format!("{K} --disk DIR/a.img --com2 DIR/half.out")).unwrap();
    parse_in(&dir, &format!("{K} --disk DIR/a.img --com2 /dev/null")).unwrap();
}

/// Root may do everything, so that this says something only for others.
#[test]
fn files_without_permission_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = files();
    let base = dir.path().to_str().unwrap();
    fs::set_permissions(dir.path().join("a.img"), fs::Permissions::from_mode(0o400)).unwrap();
    let probe = fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("a.img"));
    let result = parse_in(&dir, &format!("{K} --disk DIR/a.img"));
    match probe {
        Ok(_) => assert!(result.is_ok(), "{result:?}"),
        Err(_) => assert_eq!(
            result.unwrap_err().to_string(),
            format!(
                "--disk {base}/a.img: {base}/a.img: cannot be written (permission denied); add ,ro to read only"
            )
        ),
    }
    parse_in(&dir, &format!("{K} --disk DIR/a.img,ro")).unwrap();
}
