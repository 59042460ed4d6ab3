//! What the guest can do with files, seen from the host.
#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails the test.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::fuse::{FOPEN_KEEP_CACHE, opcode};
use common::share;
use virtiofsd::fuse::SetattrIn;

const WRITE_KILL_SUIDGID: u32 = 4;
const FATTR_MODE: u32 = 1;
const FATTR_SIZE: u32 = 8;
const FATTR_KILL_SUIDGID: u32 = 1 << 11;

fn writable_by_all() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn what_the_guest_writes_is_on_the_host_at_once_and_owned_by_its_user() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    (guest.uid, guest.gid) = (1234, 5678);
    let (node, fh) = guest.create(data, "note", 0o640).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"hello"), Ok(5));
    let path = directory.path().join("note");
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    assert_eq!(mode(&path), 0o640);
    assert_eq!(guest.read(node, fh, 1, 100).unwrap(), b"ello");
}

#[test]
fn everything_a_user_makes_is_theirs() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    (guest.uid, guest.gid) = (1234, 5678);
    guest.mkdir(data, "dir", 0o1750).unwrap();
    guest.symlink(data, "link", "/etc/passwd").unwrap();
    guest.mknod(data, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    for name in ["dir", "link", "fifo"] {
        let metadata = fs::symlink_metadata(directory.path().join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678), "{name}");
    }
    assert_eq!(mode(&directory.path().join("dir")), 0o1750);
}

#[test]
fn a_user_with_a_supplementary_group_can_use_it() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(0), Some(4321)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    (guest.uid, guest.gid) = (1234, 5678);
    assert_eq!(guest.create(data, "without", 0o600), Err(libc::EACCES));
    // fuse_ext_header of FUSE_EXT_GROUPS with one group, padded to 8 bytes.
    let extension: Vec<u8> = [16u32, 32, 1, 4321]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    guest.extension = extension;
    guest.create(data, "with", 0o600).unwrap();
    assert_eq!(
        fs::metadata(directory.path().join("with")).unwrap().gid(),
        5678
    );
    assert_eq!(
        guest.create(data, "again-without", 0o600),
        Err(libc::EACCES)
    );
}

#[test]
fn root_of_the_guest_is_root_everywhere() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(directory.path().join("secret"), "of user 1000").unwrap();
    std::os::unix::fs::chown(directory.path().join("secret"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(
        directory.path().join("secret"),
        fs::Permissions::from_mode(0o0),
    )
    .unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    assert_eq!(guest.contents("data/secret"), b"of user 1000");
    let node = guest.walk("data/secret");
    let arguments = SetattrIn {
        valid: 6, // FATTR_UID | FATTR_GID
        uid: 77.into(),
        gid: 88.into(),
        ..SetattrIn::default()
    };
    guest.setattr(node, arguments).unwrap();
    let metadata = fs::metadata(directory.path().join("secret")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (77, 88));
}

#[test]
fn the_umask_yields_to_a_default_acl() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    guest.create_with(data, "plain", 0o666, 0o027).unwrap();
    assert_eq!(mode(&directory.path().join("plain")), 0o640);
    // Version 2; user::rwx, group::rwx, other::r-x: what acl(5) calls a minimal ACL.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1u16, 7u16), (4, 7), (32, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match guest.setxattr(data, "system.posix_acl_default", &acl) {
        Err(libc::EOPNOTSUPP) => eprintln!("skipped: the host's file system has no ACLs"),
        outcome => {
            outcome.unwrap();
            guest.create_with(data, "shared", 0o666, 0o027).unwrap();
            assert_eq!(mode(&directory.path().join("shared")), 0o664);
        }
    }
}

#[test]
fn setuid_and_file_capabilities_are_kept_and_go_with_a_write() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "tool", 0o755).unwrap();
    let path = directory.path().join("tool");
    let arguments = SetattrIn {
        valid: FATTR_MODE,
        mode: libc::S_IFREG | 0o6755,
        ..SetattrIn::default()
    };
    guest.setattr(node, arguments).unwrap();
    assert_eq!(mode(&path), 0o6755);
    // vfs_cap_data, revision 2, CAP_NET_RAW permitted and effective.
    let capability: Vec<u8> = [0x0200_0001u32, 1 << 13, 0, 0, 0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    guest
        .setxattr(node, "security.capability", &capability)
        .unwrap();
    assert_eq!(
        guest.getxattr(node, "security.capability").unwrap(),
        capability
    );
    guest
        .write_with(node, fh, 0, b"new", WRITE_KILL_SUIDGID)
        .unwrap();
    assert_eq!(mode(&path), 0o755);
    assert_eq!(
        guest.getxattr(node, "security.capability"),
        Err(libc::ENODATA)
    );
    // The next request of the same worker has its powers back.
    let (_, _) = guest.create(data, "other", 0o755).unwrap();
    guest.setattr(node, arguments).unwrap();
    assert_eq!(mode(&path), 0o6755);
    let truncate = SetattrIn {
        valid: FATTR_SIZE | FATTR_KILL_SUIDGID,
        size: 0,
        ..SetattrIn::default()
    };
    guest.setattr(node, truncate).unwrap();
    assert_eq!(mode(&path), 0o755);
}

#[test]
fn extended_attributes_pass_and_trusted_ones_are_kept_aside() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    guest.mkdir(data, "dir", 0o755).unwrap();
    let node = guest.walk("data/dir");
    guest.setxattr(node, "user.colour", b"red").unwrap();
    guest
        .setxattr(node, "trusted.overlay.opaque", b"y")
        .unwrap();
    assert_eq!(guest.getxattr(node, "user.colour").unwrap(), b"red");
    assert_eq!(
        guest.getxattr(node, "trusted.overlay.opaque").unwrap(),
        b"y"
    );
    let mut names = guest.listxattr(node).unwrap();
    names.sort();
    assert_eq!(names, ["trusted.overlay.opaque", "user.colour"]);

    let mut value = [0u8; 16];
    let path = directory.path().join("dir");
    let kept = "user.cloister.trusted.overlay.opaque";
    assert_eq!(rustix::fs::getxattr(&path, kept, &mut value).unwrap(), 1);
    assert!(rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut value).is_err());
    assert_eq!(guest.setxattr(node, kept, b"n"), Err(libc::EPERM));
}

#[test]
fn links_and_renames_are_the_host_s() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "a", 0o644).unwrap();
    guest.write(node, fh, 0, b"a").unwrap();
    assert_eq!(guest.link(node, data, "b"), Ok(node));
    assert_eq!(fs::metadata(directory.path().join("a")).unwrap().nlink(), 2);
    let (other, fh) = guest.create(data, "c", 0o644).unwrap();
    guest.write(other, fh, 0, b"c").unwrap();

    let noreplace = libc::RENAME_NOREPLACE;
    assert_eq!(
        guest.rename((data, "a"), (data, "c"), noreplace),
        Err(libc::EEXIST)
    );
    guest
        .rename((data, "a"), (data, "c"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert_eq!(fs::read(directory.path().join("a")).unwrap(), b"c");
    assert_eq!(fs::read(directory.path().join("c")).unwrap(), b"a");
    guest.rename((data, "c"), (data, "d"), 0).unwrap();
    assert!(!directory.path().join("c").exists());

    guest.symlink(data, "dangling", "../no/where").unwrap();
    let link = guest.walk("data/dangling");
    assert_eq!(guest.readlink(link).unwrap(), "../no/where");
    assert_eq!(
        fs::read_link(directory.path().join("dangling")).unwrap(),
        Path::new("../no/where")
    );
}

#[test]
fn special_files_are_made_and_never_opened_by_the_server() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    // 1:3, /dev/null.
    guest
        .mknod(data, "null", libc::S_IFCHR | 0o666, 0x103)
        .unwrap();
    guest
        .mknod(data, "disk", libc::S_IFBLK | 0o600, 0x701)
        .unwrap();
    guest.mknod(data, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    guest
        .mknod(data, "sock", libc::S_IFSOCK | 0o600, 0)
        .unwrap();
    let kind = |name: &str| {
        fs::symlink_metadata(directory.path().join(name))
            .unwrap()
            .file_type()
    };
    assert!(kind("null").is_char_device());
    assert!(kind("disk").is_block_device());
    assert!(kind("fifo").is_fifo());
    assert!(kind("sock").is_socket());
    assert_eq!(
        fs::metadata(directory.path().join("null")).unwrap().rdev(),
        0x103
    );
    for name in ["null", "disk", "fifo", "sock"] {
        let node = guest.walk(&format!("data/{name}"));
        assert_eq!(
            guest.open(node, libc::O_RDWR).err(),
            Some(libc::EBADF),
            "{name}"
        );
    }
}

#[test]
fn space_is_allocated_punched_and_found() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "sparse", 0o644).unwrap();
    let far = 5 << 40;
    match guest.write(node, fh, far, b"end") {
        Err(libc::EFBIG) => eprintln!("no file of 5 TiB here"),
        written => assert_eq!(written, Ok(3)),
    }
    let (node, fh) = guest.create(data, "file", 0o644).unwrap();
    guest.fallocate(node, fh, 0, (0, 1 << 20)).unwrap();
    assert_eq!(guest.getattr(node).unwrap().size, 1 << 20);
    guest.write(node, fh, 0, &[7; 1 << 16]).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    guest.fallocate(node, fh, punch, (0, 1 << 15)).unwrap();
    assert_eq!(guest.lseek(node, fh, 0, libc::SEEK_DATA), Ok(1 << 15));
    assert_eq!(guest.lseek(node, fh, 0, libc::SEEK_HOLE), Ok(0));
    let statfs = guest.statfs(node).unwrap();
    let host = rustix::fs::statvfs(directory.path()).unwrap();
    assert_eq!(statfs.st.blocks, host.f_blocks);
}

#[test]
fn directories_list_what_is_in_them() {
    let directory = writable_by_all();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for number in 0..300 {
        let name = format!("file-with-a-rather-long-name-{number:04}");
        fs::write(directory.path().join(&name), "").unwrap();
        expected.push(name);
    }
    expected.sort();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    for plus in [false, true] {
        let mut names = guest.list(data, plus);
        names.sort();
        assert_eq!(names, expected, "plus: {plus}");
    }
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "gone", 0o644).unwrap();
    guest.write(node, fh, 0, b"still here").unwrap();
    guest.unlink(data, "gone").unwrap();
    assert!(!directory.path().join("gone").exists());
    assert_eq!(guest.getattr(node).unwrap().nlink, 0);
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"still here");
    guest.release(node, fh);
    guest.forget(node, 1);
    assert_eq!(guest.getattr(node).err(), Some(libc::EBADF));
}

#[test]
fn only_what_has_not_changed_since_the_start_stays_cached() {
    let directory = writable_by_all();
    let path = directory.path().join("file");
    fs::write(&path, "old").unwrap();
    // Changed times ago: beyond the margin for coarse clocks.
    std::thread::sleep(Duration::from_millis(1100));
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let node = guest.walk("data/file");
    let keep = |guest: &mut common::guest::Guest| {
        guest.open(node, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE != 0
    };
    assert!(keep(&mut guest));
    // A change that leaves size and modification time as they were.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "new").unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    assert!(!keep(&mut guest));
    assert_eq!(guest.contents("data/file"), b"new");
}

#[test]
fn what_the_host_changes_is_seen() {
    let directory = writable_by_all();
    let conf = directory.path().join("resolv.conf");
    fs::write(&conf, "nameserver 192.0.2.1\n").unwrap();
    let (_server, mut guest) = share(&[
        ("resolv.conf", &conf, false),
        ("data", directory.path(), true),
    ]);
    assert_eq!(guest.contents("resolv.conf"), b"nameserver 192.0.2.1\n");
    // In place, as Docker does it.
    fs::write(&conf, "nameserver 192.0.2.2\n").unwrap();
    assert_eq!(guest.contents("resolv.conf"), b"nameserver 192.0.2.2\n");
    let data = guest.walk("data");
    assert_eq!(guest.lookup(data, "later").err(), Some(libc::ENOENT));
    fs::write(directory.path().join("later"), "").unwrap();
    guest.lookup(data, "later").unwrap();
    fs::remove_file(directory.path().join("later")).unwrap();
    assert_eq!(guest.lookup(data, "later").err(), Some(libc::ENOENT));
    // ENOENT is an answer without a lifetime, and the others are trusted for a second.
    let entry = guest.lookup(data, "resolv.conf").unwrap();
    assert_eq!((entry.entry_valid, entry.attr_valid), (1, 1));
}

#[test]
fn many_files_can_be_open() {
    let directory = writable_by_all();
    let (server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    // Each takes two descriptors, one for the file and one to be found by.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = limit.map_or(3000, |limit| (limit / 3).min(3000));
    for number in 0..files {
        guest.create(data, &number.to_string(), 0o644).unwrap();
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.process.id()))
        .unwrap()
        .count();
    assert!(descriptors as u64 > 2 * files, "{descriptors}");
}

#[test]
fn a_tmpfile_is_refused_as_unsupported() {
    let directory = writable_by_all();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    assert_eq!(
        guest.call(opcode::TMPFILE, data, &[0; 16], 256),
        Err(libc::ENOSYS)
    );
}

#[test]
fn a_host_tool_agrees_about_what_is_there() {
    let directory = writable_by_all();
    symlink("target", directory.path().join("link")).unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "big", 0o600).unwrap();
    for chunk in 0..32u64 {
        let block = vec![u8::try_from(chunk).unwrap(); 1 << 16];
        guest.write(node, fh, chunk << 16, &block).unwrap();
    }
    let sum = Command::new("cksum")
        .arg(directory.path().join("big"))
        .output()
        .unwrap();
    let mut expected = Vec::new();
    for chunk in 0..32u64 {
        expected.extend(guest.read(node, fh, chunk << 16, 1 << 16).unwrap());
    }
    let copy = directory.path().join("copy");
    fs::write(&copy, expected).unwrap();
    let copied = Command::new("cksum").arg(&copy).output().unwrap();
    let first = |output: &[u8]| {
        String::from_utf8_lossy(output)
            .split(' ')
            .next()
            .map(str::to_owned)
    };
    assert_eq!(first(&sum.stdout), first(&copied.stdout));
}
