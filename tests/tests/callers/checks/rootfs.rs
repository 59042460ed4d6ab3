//! The container's files: its root, mounts and copies.

use std::fs;

use crate::harness::Case;

pub(crate) fn read_only(case: &Case) {
    let finished = case.sh(
        &["--read-only"],
        "touch /etc/new && echo written; touch /dev/shm/ok && echo shm",
    );
    assert_eq!(finished.out(), "shm\n", "{finished}");
    assert!(
        finished.err().contains("Read-only file system"),
        "{finished}"
    );
}

pub(crate) fn tmpfs(case: &Case) {
    let options = ["--read-only", "--tmpfs", "/data:size=1m,mode=1777"];
    let out = case.sh_ok(&options, "dd if=/dev/zero of=/data/f bs=64k count=32 2>/dev/null; stat -c %s /data/f; stat -c %a /data");
    assert_eq!(out, "1048576\n1777\n");
}

pub(crate) fn volumes(case: &Case) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("from-host"), "host\n").expect("a file");
    let place = dir.path().display();
    let writable = format!("{place}:/data");
    let out = case.sh_ok(
        &["-v", &writable],
        "cat /data/from-host; echo guest >/data/from-guest",
    );
    assert_eq!(out, "host\n");
    let written = fs::read_to_string(dir.path().join("from-guest"));
    assert_eq!(written.expect("the guest's file"), "guest\n");
    let fixed = format!("{place}:/data:ro");
    let finished = case.sh(&["-v", &fixed], "cat /data/from-host; echo x >/data/never");
    assert_eq!(finished.out(), "host\n", "{finished}");
    assert!(
        finished.err().contains("Read-only file system"),
        "{finished}"
    );
    assert!(!dir.path().join("never").exists());
}

pub(crate) fn a_file_as_volume(case: &Case) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("settings");
    fs::write(&file, "a=1\n").expect("a file");
    let option = format!("{}:/etc/settings", file.display());
    let out = case.sh_ok(
        &["-v", &option],
        "cat /etc/settings; echo b=2 >>/etc/settings",
    );
    assert_eq!(out, "a=1\n");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "a=1\nb=2\n");
}

pub(crate) fn copy(case: &Case) {
    let dir = tempfile::tempdir().expect("a directory");
    let input = dir.path().join("in");
    fs::write(&input, "copied\n").expect("a file");
    case.detached("box", &[], "sleep 600");
    case.ok(["cp", &input.to_string_lossy(), "box:/data/in"]);
    assert_eq!(case.ok(["exec", "box", "cat", "/data/in"]), "copied\n");
    case.ok(["exec", "box", "sh", "-c", "echo from inside >/data/out"]);
    let output = dir.path().join("out");
    case.ok(["cp", "box:/data/out", &output.to_string_lossy()]);
    assert_eq!(
        fs::read_to_string(&output).expect("the copy"),
        "from inside\n"
    );
}

pub(crate) fn shm(case: &Case) {
    let out = case.sh_ok(
        &["--shm-size", "2m"],
        "df -k /dev/shm | tail -n 1 | awk '{print $2}'",
    );
    assert_eq!(out, "2048\n");
}

pub(crate) fn device(case: &Case) {
    let out = case.sh_ok(
        &["--device", "/dev/zero:/dev/nought"],
        "head -c 4 /dev/nought | wc -c",
    );
    assert_eq!(out, "4\n");
}
