//! The image that the callers run: BusyBox, made here, since there is no registry.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::Cmd;

/// A tar file of a root file system with BusyBox and its applets, a user `guest` and an empty `/data`.
pub(crate) fn busybox_tar() -> &'static Path {
    static TAR: OnceLock<PathBuf> = OnceLock::new();
    TAR.get_or_init(|| {
        let dir = PathBuf::from("/var/lib/callers-image");
        // An earlier run in the same bed has left its own.
        fs::remove_dir_all(&dir).ok();
        let rootfs = dir.join("rootfs");
        build(&rootfs);
        let tar = dir.join("busybox.tar");
        Cmd::new("tar")
            .args([Path::new("-cf"), &tar, Path::new("-C"), &rootfs])
            .args(["."])
            .run()
            .ok();
        tar
    })
}

/// The directory that it is made of.
pub(crate) fn busybox_rootfs() -> PathBuf {
    busybox_tar().with_file_name("rootfs")
}

/// The same as an image, named `busybox`.
pub(crate) fn image_archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
        pack(busybox_tar(), "docker.io/library/busybox:latest", &config)
    })
}

/// An image of one program, which is all that its root file system has.
pub(crate) fn program_archive(program: &Path, reference: &str, config: &Value) -> PathBuf {
    let name = program.file_name().expect("a program");
    let layer = busybox_tar().with_file_name(name).with_extension("tar");
    Cmd::new("tar")
        .args([Path::new("-cf"), &layer, Path::new("-C")])
        .args([program.parent().expect("a directory"), Path::new(name)])
        .run()
        .ok();
    pack(&layer, reference, config)
}

/// An image of a directory, made in another one.
pub(crate) fn directory_archive(
    rootfs: &Path,
    work: &Path,
    reference: &str,
    config: &Value,
) -> PathBuf {
    fs::create_dir_all(work).expect("a directory");
    let layer = work.join("layer-of-all.tar");
    Cmd::new("tar")
        .args([Path::new("-cf"), &layer, Path::new("-C"), rootfs])
        .args(["."])
        .run()
        .ok();
    pack(&layer, reference, config)
}

/// Makes an image of one layer, in the form that `docker save` writes.
fn pack(layer: &Path, reference: &str, config: &Value) -> PathBuf {
    let dir = layer.with_extension("image");
    fs::create_dir_all(&dir).expect("a directory");
    fs::copy(layer, dir.join("layer.tar")).expect("the layer");
    let sum = Cmd::new("sha256sum").args([layer]).run().ok();
    let digest = sum.split(' ').next().expect("a checksum");
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [],
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [reference],
        "Layers": ["layer.tar"],
    }]);
    fs::write(dir.join("config.json"), config.to_string()).expect("config.json");
    fs::write(dir.join("manifest.json"), manifest.to_string()).expect("manifest.json");
    let archive = dir.with_extension("image.tar");
    Cmd::new("tar")
        .args([Path::new("-cf"), &archive, Path::new("-C"), &dir])
        .args(["manifest.json", "config.json", "layer.tar"])
        .run()
        .ok();
    archive
}

/// Makes such a directory.
pub(crate) fn build(rootfs: &Path) {
    for dir in [
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "root",
        "var",
        "run",
        "data",
        "home/guest",
    ] {
        fs::create_dir_all(rootfs.join(dir)).expect("a directory");
    }
    let everybody = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(rootfs.join("tmp"), everybody).expect("/tmp's mode");
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    let applets = Cmd::new("/bin/busybox").args(["--list"]).run().ok();
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("an applet");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).expect("passwd");
    let group = "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n";
    fs::write(rootfs.join("etc/group"), group).expect("group");
}
