//! Root file systems that are images, as containerd's blockfile and EROFS snapshotters hand them over: the shim makes each
//! a loop device.

use std::fs;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;

use crate::harness::{Cmd, behind_loop_devices, busybox_rootfs, eventually};

use super::peer::{ID, Peer, limit, refused};

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
    let mut refuse = |mount: api::Mount, why: &str| {
        creation.rootfs = vec![mount];
        let asked = peer.tasks.create(limit(), &creation);
        refused(asked, Code::UNKNOWN, why);
    };
    // What only containerd's mount manager makes is refused before anything is mounted.
    let mut unmade = mount.clone();
    unmade.options.push("X-containerd.mkfs.size=1".into());
    refuse(unmade, "\"X-containerd.mkfs.size=1\" is not supported");
    assert!(!behind_loop_devices().contains(&image));
    // Nor is a device left that is there when its file turns out to be of another kind.
    let mut other = mount.clone();
    other.type_ = if kind == "ext4" { "erofs" } else { "ext4" }.into();
    refuse(other, "Invalid argument");
    eventually("the device is gone", || {
        !behind_loop_devices().contains(&image)
    });
    creation.rootfs = vec![mount];
    peer.tasks.create(limit(), &creation).expect("a task");
    assert!(behind_loop_devices().contains(&image));
    peer.start("").expect("a start");
    let wait = api::WaitRequest {
        id: ID.into(),
        ..Default::default()
    };
    let ended = peer.tasks.wait(limit(), &wait).expect("an end");
    peer.delete("").expect("a deletion");
    eventually("the device is gone", || {
        !behind_loop_devices().contains(&image)
    });
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
