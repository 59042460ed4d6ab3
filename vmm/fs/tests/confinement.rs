//! What the server can see and do: the shared tree, and nothing else.
#![allow(unsafe_code)] // A test makes a mount namespace of its own.
#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails the test.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cloister_vmm_api::fs::{Export, Reply};
use common::fuse::{ATTR_SUBMOUNT, ROOT, opcode};
use common::{Server, config, export, guest, share};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use virtiofsd::fuse::SetattrIn;

/// What is mounted from here on goes with the test.
fn own_mounts() {
    // SAFETY: the thread depends on no other's working directory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn mountinfo(server: &Server) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", server.process.id())).unwrap();
    let place = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
    let mut places: Vec<_> = text.lines().map(place).collect();
    places.sort();
    places
}

#[test]
fn the_process_sees_the_exports_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hosts");
    fs::write(&file, "127.0.0.1 localhost\n").unwrap();
    let (server, mut guest) = share(&[("rootfs", directory.path(), false), ("hosts", &file, true)]);
    assert_eq!(mountinfo(&server), ["/", "/hosts", "/rootfs"]);
    let mut names = guest.list(ROOT, false);
    names.sort();
    assert_eq!(names, [".", "..", "hosts", "rootfs"]);
    assert_eq!(guest.contents("hosts"), b"127.0.0.1 localhost\n");
    let id = server.process.id();
    let root: PathBuf = format!("/proc/{id}/root/").into();
    let mut seen: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    seen.sort();
    assert_eq!(seen, ["hosts", "rootfs"]);
    assert_eq!(
        fs::read_link(format!("/proc/{id}/cwd")).unwrap(),
        Path::new("/")
    );
}

#[test]
fn a_detached_mount_is_taken_over() {
    own_mounts();
    let directory = tempfile::tempdir().unwrap();
    tmpfs(directory.path());
    fs::write(directory.path().join("file"), "text").unwrap();
    let clone = rustix::mount::open_tree(
        rustix::fs::CWD,
        directory.path(),
        rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
            | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .unwrap();
    // Nothing else leads there any more.
    rustix::mount::unmount(directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let server = Server::spawn();
    let export = Export {
        detached: true,
        ..export("data", true)
    };
    let socket = server.ask(config(vec![export]), &[clone.as_fd()]);
    assert_eq!(server.reply(), Some(Reply::Ready));
    drop(clone);
    let mut guest = guest::Guest::new(socket);
    guest.init();
    assert_eq!(mountinfo(&server), ["/", "/data"]);
    assert_eq!(guest.contents("data/file"), b"text");
    let data = guest.walk("data");
    assert_eq!(guest.create(data, "new", 0o644).unwrap_err(), libc::EROFS);
}

#[test]
fn the_process_keeps_only_the_powers_and_descriptors_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let (server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    guest.create(data, "file", 0o644).unwrap();
    let id = server.process.id();
    // Every thread, since each has its own.
    for task in fs::read_dir(format!("/proc/{id}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        // chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap.
        assert_eq!(field("CapPrm:"), "00000000880000db");
        assert_eq!(field("CapEff:"), "00000000880000db");
        assert_eq!(field("CapInh:"), "0000000000000000");
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
    }
    // The shell left a descriptor open on the host's root.
    let host = fs::metadata("/").unwrap();
    for entry in fs::read_dir(format!("/proc/{id}/fd")).unwrap() {
        let path = entry.unwrap().path();
        let (Ok(target), Ok(inside)) = (fs::read_link(&path), fs::metadata(&path)) else {
            continue;
        };
        assert_ne!(
            (inside.dev(), inside.ino()),
            (host.dev(), host.ino()),
            "{target:?}"
        );
    }
}

#[test]
fn symbolic_links_lead_nowhere_on_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(directory.path().join("outside"), "secret").unwrap();
    symlink("/etc/passwd", data.join("absolute")).unwrap();
    symlink("../outside", data.join("relative")).unwrap();
    symlink("/etc", data.join("etc")).unwrap();
    symlink("/proc/self/fd/3", data.join("magic")).unwrap();
    let (_server, mut guest) = share(&[("data", &data, false)]);
    for name in ["absolute", "relative", "etc", "magic"] {
        let node = guest.walk(&format!("data/{name}"));
        assert_eq!(
            guest.getattr(node).unwrap().mode & libc::S_IFMT,
            libc::S_IFLNK
        );
        for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_PATH] {
            assert_eq!(guest.open(node, flags).err(), Some(libc::EBADF), "{name}");
        }
        assert!(guest.lookup(node, "passwd").is_err(), "{name}");
        assert!(guest.create(node, "new", 0o644).is_err(), "{name}");
    }
    // Creating through a link that is there does not follow it either.
    let data_node = guest.walk("data");
    assert!(guest.create(data_node, "relative", 0o644).is_err());
    assert_eq!(
        fs::read(directory.path().join("outside")).unwrap(),
        b"secret"
    );
}

#[test]
fn a_name_is_one_component() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(directory.path().join("outside"), "secret").unwrap();
    fs::write(data.join("sub/file"), "inside").unwrap();
    let (_server, mut guest) = share(&[("data", &data, false)]);
    let node = guest.walk("data");
    for name in [
        "..",
        ".",
        "",
        "sub/file",
        "../outside",
        "/etc/passwd",
        "sub/",
        "/",
    ] {
        assert_eq!(
            guest.lookup(node, name).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.create(node, name, 0o644).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.mkdir(node, name, 0o755).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.mknod(node, name, libc::S_IFREG, 0).err(),
            Some(libc::EINVAL)
        );
        assert_eq!(
            guest.symlink(node, name, "x").err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.unlink(node, name).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.rmdir(node, name).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
        assert_eq!(
            guest.rename((node, name), (node, "x"), 0).err(),
            Some(libc::EINVAL)
        );
        assert_eq!(
            guest.rename((node, "sub"), (node, name), 0).err(),
            Some(libc::EINVAL)
        );
        assert_eq!(
            guest.link(node, node, name).err(),
            Some(libc::EINVAL),
            "{name:?}"
        );
    }
    assert_eq!(
        fs::read(directory.path().join("outside")).unwrap(),
        b"secret"
    );
    assert_eq!(fs::read(data.join("sub/file")).unwrap(), b"inside");
}

#[test]
fn the_root_of_the_tree_is_not_the_guest_s_to_change() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    assert_eq!(guest.create(ROOT, "file", 0o644).err(), Some(libc::EROFS));
    assert_eq!(guest.mkdir(ROOT, "dir", 0o755).err(), Some(libc::EROFS));
    assert!(guest.rmdir(ROOT, "data").is_err());
    let arguments = SetattrIn {
        valid: 1,
        mode: 0o777,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(ROOT, arguments).err(), Some(libc::EROFS));
    let node = guest.walk("data");
    guest.create(node, "file", 0o644).unwrap();
}

#[test]
fn a_read_only_export_refuses_every_change_also_below_it() {
    own_mounts();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    tmpfs(&data.join("mounted"));
    fs::write(data.join("file"), "as it was").unwrap();
    fs::write(data.join("mounted/file"), "as it was").unwrap();
    let (_server, mut guest) = share(&[("data", &data, true)]);
    for parent in ["data", "data/mounted"] {
        let node = guest.walk(parent);
        let file = guest.walk(&format!("{parent}/file"));
        assert_eq!(
            guest.create(node, "new", 0o644).err(),
            Some(libc::EROFS),
            "{parent}"
        );
        assert_eq!(
            guest.mkdir(node, "new", 0o755).err(),
            Some(libc::EROFS),
            "{parent}"
        );
        assert_eq!(
            guest.unlink(node, "file").err(),
            Some(libc::EROFS),
            "{parent}"
        );
        assert_eq!(
            guest.open(file, libc::O_RDWR).err(),
            Some(libc::EROFS),
            "{parent}"
        );
        assert_eq!(
            guest.setxattr(file, "user.x", b"y").err(),
            Some(libc::EROFS),
            "{parent}"
        );
        let chmod = SetattrIn {
            valid: 1,
            mode: 0o777,
            ..SetattrIn::default()
        };
        assert_eq!(
            guest.setattr(file, chmod).err(),
            Some(libc::EROFS),
            "{parent}"
        );
        let truncate = SetattrIn {
            valid: 8,
            ..SetattrIn::default()
        };
        assert_eq!(
            guest.setattr(file, truncate).err(),
            Some(libc::EROFS),
            "{parent}"
        );
        assert_eq!(guest.contents(&format!("{parent}/file")), b"as it was");
    }
    // The host's own mounts are as writable as before.
    fs::write(data.join("mounted/file"), "changed").unwrap();
}

#[test]
fn mounts_are_file_systems_of_their_own_in_the_guest() {
    own_mounts();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    tmpfs(&data.join("one"));
    tmpfs(&data.join("two"));
    fs::write(data.join("one/file"), "1").unwrap();
    fs::write(data.join("two/file"), "2").unwrap();
    fs::create_dir(data.join("plain")).unwrap();
    let again = directory.path().join("again");
    fs::create_dir(&again).unwrap();
    mount_bind(&data, &again).unwrap();
    let (_server, mut guest) = share(&[("data", &data, false), ("again", &again, false)]);
    let flags = |guest: &mut common::guest::Guest, parent: &str, name: &str| {
        let parent = if parent.is_empty() {
            ROOT
        } else {
            guest.walk(parent)
        };
        guest.lookup(parent, name).unwrap().attr.flags
    };
    assert_eq!(flags(&mut guest, "", "data"), ATTR_SUBMOUNT);
    assert_eq!(flags(&mut guest, "", "again"), ATTR_SUBMOUNT);
    assert_eq!(flags(&mut guest, "data", "one"), ATTR_SUBMOUNT);
    assert_eq!(flags(&mut guest, "data", "plain"), 0);
    // Two tmpfs give their files the same inode number.
    let one = guest.walk("data/one/file");
    let two = guest.walk("data/two/file");
    assert_eq!(
        guest.getattr(one).unwrap().ino,
        guest.getattr(two).unwrap().ino
    );
    assert_ne!(one, two);
    assert_eq!(guest.contents("data/one/file"), b"1");
    assert_eq!(guest.contents("data/two/file"), b"2");
    // A mount that was bound without what is mounted in it shows without.
    let plain = guest.walk("again/one");
    assert_eq!(guest.lookup(plain, "file").err(), Some(libc::ENOENT));
}

#[test]
fn devices_and_links_in_the_tree_are_dead_to_the_server_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _guest) = share(&[("data", directory.path(), false)]);
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", server.process.id())).unwrap();
    for line in text.lines() {
        let options: Vec<_> = line.split(' ').nth(5).unwrap().split(',').collect();
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(options.contains(&option), "{line}");
        }
        assert!(
            !line.contains("shared:") && !line.contains("master:"),
            "{line}"
        );
        if line.split(' ').nth(4) == Some("/data") {
            assert!(options.contains(&"nosymfollow"), "{line}");
        }
    }
}

#[test]
fn requests_about_nodes_and_handles_that_are_not_there_fail() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    for node in [0, 2, 999, u64::MAX] {
        assert_eq!(guest.getattr(node).err(), Some(libc::EBADF));
        assert_eq!(guest.lookup(node, "x").err(), Some(libc::EBADF));
        assert_eq!(guest.open(node, 0).err(), Some(libc::EBADF));
    }
    let file = guest.walk("data/file");
    let data = guest.walk("data");
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(file, fh + 1, 0, 10), Err(libc::EBADF));
    // A handle works with the file it was opened for only.
    assert_eq!(guest.read(data, fh, 0, 10), Err(libc::EBADF));
    assert_eq!(
        guest.call(opcode::READ + 1000, file, &[], 0),
        Err(libc::ENOSYS)
    );
}
