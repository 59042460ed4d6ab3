//! The root file system and bind mounts are the host's own files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::json;

use super::harness::{Bundle, Cmd, eventually};

#[test]
fn writes_land_on_the_host() {
    let bundle = Bundle::sh(
        "echo data >/var/file; mkdir /var/dir; ln -s file /var/link; chmod 751 /var/file; chown 1000:1000 /var/file; mv /etc/group /etc/moved; rm /etc/passwd",
    )
    .with(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            let set = spec["process"]["capabilities"][set].as_array_mut();
            set.expect("a set").push("CAP_CHOWN".into());
        }
    });
    bundle.run().ok();
    let file = bundle.rootfs().join("var/file");
    assert_eq!(fs::read_to_string(&file).expect("the file"), "data\n");
    let meta = fs::metadata(&file).expect("the file");
    assert_eq!((meta.uid(), meta.gid()), (1000, 1000));
    assert_eq!(meta.permissions().mode() & 0o7777, 0o751);
    assert!(bundle.rootfs().join("var/dir").is_dir());
    let link = fs::read_link(bundle.rootfs().join("var/link")).expect("the link");
    assert_eq!(link.to_str(), Some("file"));
    assert!(bundle.rootfs().join("etc/moved").exists());
    assert!(!bundle.rootfs().join("etc/passwd").exists());
}

#[test]
fn a_user_of_the_container_owns_its_files_on_the_host() {
    let bundle = Bundle::sh("echo mine >/var/mine").with(|spec| {
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o027});
    });
    let var = bundle.rootfs().join("var");
    fs::set_permissions(&var, fs::Permissions::from_mode(0o777)).expect("chmod");
    bundle.run().ok();
    let meta = fs::metadata(var.join("mine")).expect("the file");
    assert_eq!((meta.uid(), meta.gid()), (1000, 1000));
    assert_eq!(meta.permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_read_only_root_refuses_writes() {
    let bundle =
        Bundle::sh("echo x >/var/file").with(|spec| spec["root"]["readonly"] = true.into());
    bundle.run().fails(1, &["Read-only file system"]);
    assert!(!bundle.rootfs().join("var/file").exists());
}

#[test]
fn bind_mounts_show_directories_and_files_of_the_host() {
    let bundle = Bundle::sh("cat /data/in /etc/single; echo out >/data/out; echo no >/ro/x");
    let data = bundle.scratch("data");
    fs::create_dir(&data).expect("data");
    fs::write(data.join("in"), "from the host\n").expect("data");
    let single = bundle.scratch("single");
    fs::write(&single, "one file\n").expect("data");
    let bundle = bundle.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"]}));
        mounts.push(json!({"destination": "/ro", "type": "bind", "source": data, "options": ["bind", "ro"]}));
        mounts.push(json!({"destination": "/etc/single", "source": single, "options": ["bind", "ro"]}));
    });
    let finished = bundle.run();
    assert_eq!(finished.code(), 1, "{finished}");
    assert_eq!(finished.out(), "from the host\none file\n");
    assert!(
        finished.err().contains("Read-only file system"),
        "{finished}"
    );
    assert_eq!(fs::read_to_string(data.join("out")).expect("out"), "out\n");
    assert!(!data.join("x").exists());
}

#[test]
fn a_bind_mount_without_a_source_is_named() {
    let bundle = Bundle::new(&["true"]).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": "/nonexistent/source", "options": ["bind"]}));
    });
    bundle.run().fails(1, &["/nonexistent/source"]);
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    let bundle = Bundle::sh("cat /etc/outside; cat /etc/up");
    symlink("/etc/hostname", bundle.rootfs().join("etc/outside")).expect("link");
    symlink(
        "../../../../../../../etc/hostname",
        bundle.rootfs().join("etc/up"),
    )
    .expect("link");
    bundle.run().fails(1, &["No such file or directory"]);
}

#[test]
fn callers_find_the_containers_files_at_its_pid() {
    let bundle = Bundle::sh("echo inside >/made; exec sleep 1000");
    let source = bundle.scratch("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "of the volume\n").unwrap();
    let bundle = bundle.with(|spec| {
        spec["mounts"].as_array_mut().unwrap().push(serde_json::json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro"],
        }));
    });
    bundle.command("run", &["--detach"], "test").run().ok();
    let pid = bundle.state("test")["pid"].to_string();
    let enter = |script: &str| {
        Cmd::new("nsenter")
            .args(["--mount", "--target", &pid, "/bin/sh", "-c", script])
            .run()
    };
    eventually("the file is made", || {
        enter("cat /made").out() == "inside\n"
    });
    assert_eq!(enter("cat /data/file").ok(), "of the volume\n");
    assert_ne!(
        enter("echo x >/data/file").code(),
        0,
        "the volume is read-only"
    );
    enter("echo outside >/brought").ok();
    let seen = bundle
        .cloister(["exec", "test", "cat", "/brought"])
        .run()
        .ok();
    assert_eq!(seen, "outside\n");
    let root = fs::read_to_string(format!("/proc/{pid}/root/made")).unwrap();
    assert_eq!(root, "inside\n");
    // The runtime itself is where it was.
    bundle.cloister(["kill", "test", "KILL"]).run().ok();
    eventually("it has ended", || bundle.status("test") == "stopped");
}
