//! What the guest can do with files, seen from the host.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::share;

#[test]
fn what_the_guest_writes_is_on_the_host_at_once_and_owned_by_its_user() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    guest.uid = 1234;
    guest.gid = 5678;
    let (node, fh) = guest.create(data, "note", 0o640).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"hello"), Ok(5));
    let path = directory.path().join("note");
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!(guest.read(node, fh, 1, 100).unwrap(), b"ello");
}
