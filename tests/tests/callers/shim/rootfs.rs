//! Root file systems that are images, as containerd's blockfile and EROFS snapshotters hand them over: the shim makes each
//! a loop device.

use std::fs;

use containerd_shim_protos::api;

use crate::harness::{Cmd, busybox_rootfs, eventually};

use super::peer::{ID, Peer, limit, refused};

/// The files behind loop devices.
fn behind_devices() -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let files = blocks.map(|block| block.path().join("loop/backing_file"));
    files
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

/// Runs `script` to its end on an image.
fn run(kind: &str, options: &[&str], make: impl Fn(&str) -> Cmd, script: &str) -> u32 {
    let peer = Peer::with(script, |spec| {
        spec["root"]["path"] = "rootfs".into();
        spec["root"]["readonly"] = options.contains(&"ro").into();
    });
    fs::create_dir(peer.bundle().join("rootfs")).expect("a directory");
    let image = peer.bundle().join("image").display().to_string();
    make(&image).run().ok();
    let mount = api::Mount {
        type_: kind.into(),
        source: image.clone(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    };
    let mut creation = peer.creation();
    // What only containerd's mount manager makes is refused before anything is mounted.
    let mut unmade = mount.clone();
    unmade.options.push("X-containerd.mkfs.size=1".into());
    creation.rootfs = vec![unmade];
    let asked = peer.tasks.create(limit(), &creation);
    refused(
        asked,
        containerd_shim_protos::ttrpc::Code::UNKNOWN,
        "\"X-containerd.mkfs.size=1\" is not supported",
    );
    assert!(!behind_devices().contains(&image));
    // Nor is a device left that is there when its file turns out to be of another kind.
    let mut other = mount.clone();
    other.type_ = if kind == "ext4" { "erofs" } else { "ext4" }.into();
    creation.rootfs = vec![other];
    let asked = peer.tasks.create(limit(), &creation);
    refused(
        asked,
        containerd_shim_protos::ttrpc::Code::UNKNOWN,
        "Invalid argument",
    );
    eventually("the device is gone", || !behind_devices().contains(&image));
    creation.rootfs = vec![mount];
    peer.tasks.create(limit(), &creation).expect("a task");
    assert!(behind_devices().contains(&image));
    peer.start("").expect("a start");
    let wait = api::WaitRequest {
        id: ID.into(),
        ..Default::default()
    };
    let ended = peer.tasks.wait(limit(), &wait).expect("an end");
    peer.delete("").expect("a deletion");
    eventually("the device is gone", || !behind_devices().contains(&image));
    ended.exit_status
}

#[test]
fn a_file_that_can_be_written() {
    let make = |image: &str| {
        let rootfs = busybox_rootfs().display().to_string();
        Cmd::new("mkfs.ext4").args(["-q", "-d", &rootfs, image, "32M"])
    };
    let script = "echo kept >/new && test \"$(cat /new)\" = kept && exit 7";
    assert_eq!(run("ext4", &["rw", "loop"], make, script), 7);
}

#[test]
fn a_file_that_is_read_only() {
    let make = |image: &str| {
        let rootfs = busybox_rootfs().display().to_string();
        Cmd::new("mkfs.erofs").args(["--quiet", image, &rootfs])
    };
    let script = "if touch /new; then exit 1; fi; exit 7";
    assert_eq!(run("erofs", &["ro", "loop"], make, script), 7);
}
