//! Every wrong input: a clear message, exit code 1, nothing left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::harness::{Bundle, Cmd, Residue};

fn refused(bundle: &Bundle, parts: &[&str]) {
    let before = Residue::now();
    bundle.run().fails(1, parts);
    assert!(!bundle.state_root().join("test").exists(), "state was left");
    before.assert_nothing_new();
}

#[test]
fn no_config() {
    let bundle = Bundle::alone(&["true"]);
    fs::remove_file(bundle.config()).expect("config.json");
    refused(&bundle, &["config.json", "not found"]);
}

#[test]
fn malformed_json_has_a_line_and_a_column() {
    let bundle = Bundle::alone(&["true"]);
    fs::write(
        bundle.config(),
        "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}\n",
    )
    .expect("config.json");
    refused(&bundle, &["config.json", "line 3", "column 3"]);
}

#[test]
fn a_wrong_type_is_named() {
    let bundle = Bundle::alone(&["true"]).with(|spec| spec["process"]["args"] = "true".into());
    refused(&bundle, &["process.args"]);
}

#[test]
fn a_missing_rootfs_is_named() {
    let bundle = Bundle::alone(&["true"]).with(|spec| spec["root"]["path"] = "nowhere".into());
    refused(&bundle, &["nowhere"]);
}

#[test]
fn missing_args_are_named() {
    let bundle = Bundle::alone(&["true"]).with(|spec| spec["process"]["args"] = json!([]));
    refused(&bundle, &["process.args"]);
}

#[test]
fn a_command_that_is_not_there() {
    refused(
        &Bundle::alone(&["no-such-command"]),
        &[r#"exec: \"no-such-command\": executable file not found in $PATH"#],
    );
    refused(
        &Bundle::alone(&["/no/such/file"]),
        &[r#"exec: \"/no/such/file\""#, "no such file or directory"],
    );
}

#[test]
fn a_command_that_is_not_executable() {
    let bundle = Bundle::alone(&["/etc/passwd"]);
    let passwd = bundle.rootfs().join("etc/passwd");
    fs::set_permissions(passwd, fs::Permissions::from_mode(0o644)).expect("chmod");
    refused(&bundle, &[r#"exec: \"/etc/passwd\""#, "permission denied"]);
}

#[test]
fn invalid_ids() {
    let bundle = Bundle::new(&["true"]);
    for id in ["a/b", "..", "", "white space"] {
        bundle
            .command("run", &[], id)
            .run()
            .fails(1, &["invalid container ID format"]);
    }
}

#[test]
fn an_id_in_use() {
    let bundle = Bundle::new(&["sleep", "600"]);
    bundle.command("run", &["--detach"], "twice").run().ok();
    bundle
        .command("run", &[], "twice")
        .run()
        .fails(1, &["twice", "exists"]);
    assert_eq!(bundle.status("twice"), "running");
}

#[test]
fn an_unknown_id() {
    let bundle = Bundle::new(&["true"]);
    for command in ["state", "start", "delete"] {
        bundle
            .cloister([command, "ghost"])
            .run()
            .fails(1, &["ghost", "does not exist"]);
    }
    bundle
        .cloister(["kill", "ghost", "KILL"])
        .run()
        .fails(1, &["does not exist"]);
}

#[test]
fn an_unknown_signal() {
    let bundle = Bundle::new(&["sleep", "600"]);
    bundle.command("run", &["--detach"], "s").run().ok();
    bundle
        .cloister(["kill", "s", "SIGNOPE"])
        .run()
        .fails(1, &["SIGNOPE"]);
    bundle
        .cloister(["kill", "s", "1234"])
        .run()
        .fails(1, &["1234"]);
}

#[test]
fn a_pid_file_in_a_missing_directory() {
    let bundle = Bundle::alone(&["true"]);
    let before = Residue::now();
    let finished = bundle
        .command("run", &["--pid-file", "/nonexistent/dir/pid"], "test")
        .run();
    finished.fails(1, &["/nonexistent/dir"]);
    before.assert_nothing_new();
}

/// Runs with one file of the installation replaced through the environment.
fn run_with(bundle: &Bundle, key: &str, value: &Path) -> super::harness::Finished {
    bundle.command("run", &[], "test").env(key, value).run()
}

#[test]
fn no_kvm_device() {
    let bundle = Bundle::alone(&["true"]);
    let before = Residue::now();
    // Another mount namespace hides the device from the runtime alone.
    let script = format!(
        "busybox mount -t tmpfs none /dev && cloister --root {} run --bundle {} test",
        bundle.state_root().display(),
        bundle.path().display()
    );
    let finished = Cmd::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .run();
    finished.fails(1, &["/dev/kvm"]);
    before.assert_nothing_new();
}

#[test]
fn a_kvm_device_that_is_none() {
    let bundle = Bundle::alone(&["true"]);
    let before = Residue::now();
    let script = format!(
        "busybox mount --bind /dev/null /dev/kvm && cloister --root {} run --bundle {} test",
        bundle.state_root().display(),
        bundle.path().display()
    );
    let finished = Cmd::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .run();
    finished.fails(1, &["KVM"]);
    before.assert_nothing_new();
}

#[test]
fn missing_and_corrupt_guest_images() {
    let bundle = Bundle::alone(&["true"]);
    let corrupt = bundle.scratch("corrupt");
    fs::write(&corrupt, vec![0x5a; 1 << 20]).expect("a file");
    let before = Residue::now();
    let missing = bundle.scratch("missing");
    run_with(&bundle, "CLOISTER_KERNEL", &missing).fails(1, &["kernel", "missing"]);
    run_with(&bundle, "CLOISTER_INITRAMFS", &missing).fails(1, &["initramfs", "missing"]);
    run_with(&bundle, "CLOISTER_KERNEL", &corrupt).fails(1, &["kernel"]);
    run_with(&bundle, "CLOISTER_INITRAMFS", &corrupt).fails(1, &["initramfs"]);
    before.assert_nothing_new();
}

/// An initramfs whose first process is a shell script.
fn initramfs(bundle: &Bundle, script: &str) -> PathBuf {
    let initramfs = bundle.scratch("initramfs.cpio");
    let tree = bundle.scratch("tree");
    fs::create_dir_all(tree.join("bin")).expect("tree");
    fs::create_dir(tree.join("dev")).expect("dev");
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox");
    fs::write(tree.join("init"), format!("#!/bin/busybox sh\n{script}\n")).expect("init");
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let pack = format!(
        "cd {} && mknod dev/console c 5 1 && mknod dev/ttyS0 c 4 64 && find . | busybox cpio -o -H newc >{}",
        tree.display(),
        initramfs.display()
    );
    Cmd::new("sh").args(["-c", &pack]).run().ok();
    initramfs
}

#[test]
fn an_agent_that_never_connects_is_not_waited_for_for_ever() {
    let bundle = Bundle::alone(&["true"]);
    let initramfs = initramfs(
        &bundle,
        "echo last words of the guest >/dev/ttyS0\n/bin/busybox sleep 1000",
    );
    let before = Residue::now();
    let finished = bundle
        .command("run", &[], "test")
        .env("CLOISTER_INITRAMFS", &initramfs)
        .env("CLOISTER_BOOT_TIMEOUT_S", "15")
        .run();
    finished.fails(1, &["agent", "15", "last words of the guest"]);
    before.assert_nothing_new();
}

#[test]
fn a_guest_that_panics_says_so_with_its_last_words() {
    let bundle = Bundle::alone(&["true"]);
    let initramfs = initramfs(&bundle, "echo last words of the guest >/dev/ttyS0\nexit 5");
    let before = Residue::now();
    run_with(&bundle, "CLOISTER_INITRAMFS", &initramfs).fails(
        1,
        &[
            "panic",
            "last words of the guest",
            "Attempted to kill init! exitcode=0x00000500",
        ],
    );
    before.assert_nothing_new();
}

#[test]
fn a_wrong_configuration_key_is_named() {
    let bundle = Bundle::new(&["true"]);
    let config = bundle.scratch("config.toml");
    fs::write(&config, "memory_mib = 128\nmemroy = 1\n").expect("config");
    let option = config.to_string_lossy().into_owned();
    bundle
        .cloister(["--config", &option, "list"])
        .run()
        .fails(1, &["config.toml", "memroy"]);
    bundle
        .command("run", &[], "test")
        .env("CLOISTER_MEMORY_MIB", "many")
        .run()
        .fails(1, &["CLOISTER_MEMORY_MIB", "many"]);
}

#[test]
fn commands_that_do_not_exist_here_are_named() {
    let bundle = Bundle::new(&["true"]);
    for command in ["checkpoint", "restore"] {
        bundle
            .cloister([command, "x"])
            .run()
            .fails(1, &[command, "is not supported"]);
    }
}
