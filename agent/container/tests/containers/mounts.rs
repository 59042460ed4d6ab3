//! Options of mounts that the container sees, and mounts of odd sources and destinations.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use serde_json::{Value, json};

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    (
        "ids_of_a_source_are_left_as_they_are",
        ids_of_a_source_are_left_as_they_are,
    ),
    (
        "ids_of_a_new_file_system_are_mapped",
        ids_of_a_new_file_system_are_mapped,
    ),
    ("ids_that_cannot_be_mapped", ids_that_cannot_be_mapped),
    ("a_link_is_mounted_over", a_link_is_mounted_over),
    (
        "destinations_through_links_stay_inside",
        destinations_through_links_stay_inside,
    ),
    (
        "options_that_the_file_system_does_not_know",
        options_that_the_file_system_does_not_know,
    ),
    ("file_systems_from_nothing", file_systems_from_nothing),
    ("every_recursive_attribute", every_recursive_attribute),
    ("contradicting_options", contradicting_options),
    (
        "a_version_1_cgroup_mount_is_version_2",
        a_version_1_cgroup_mount_is_version_2,
    ),
];

fn mapping(container: u32, host: u32, size: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": size}])
}

/// A directory with a file of user 1000 and group 1001 in it.
fn source(bundle: &Bundle) -> String {
    let source = bundle.dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "").unwrap();
    chown(source.join("file"), Some(1000), Some(1001)).unwrap();
    source.to_str().unwrap().into()
}

/// The host has mapped them.
fn ids_of_a_source_are_left_as_they_are() {
    for options in [
        json!(["bind", "idmap"]),
        json!(["rbind", "ridmap"]),
        json!(["bind"]),
    ] {
        let bundle = Bundle::script("stat -c '%u %g' /data/file");
        let source = source(&bundle);
        let bundle = bundle.mount(json!({
            "destination": "/data", "source": source, "options": options,
            "uidMappings": mapping(1000, 2000, 1), "gidMappings": mapping(1001, 2001, 1),
        }));
        assert_eq!(bundle.run().lines(), ["1000 1001"], "{options}");
    }
}

fn ids_of_a_new_file_system_are_mapped() {
    let outcome = Bundle::script("touch /t/file; stat -c '%u %g' /t /t/file")
        .mount(json!({
            "destination": "/t", "type": "tmpfs", "source": "tmpfs",
            "options": ["idmap", "uid=1000", "gid=1000", "mode=777"],
            "uidMappings": [
                {"containerID": 1000, "hostID": 3000, "size": 1},
                {"containerID": 0, "hostID": 0, "size": 1},
            ],
            "gidMappings": mapping(0, 0, 2000),
        }))
        .run();
    assert_eq!(outcome.lines(), ["3000 1000", "0 0"]);
}

fn ids_that_cannot_be_mapped() {
    // procfs has no owners to map.
    let error = Bundle::script("true")
        .mount(json!({
            "destination": "/p", "type": "proc", "source": "proc", "options": ["idmap"],
            "uidMappings": mapping(0, 1, 1), "gidMappings": mapping(0, 1, 1),
        }))
        .error();
    assert_eq!(
        error,
        "mounts[7].uidMappings: map the ids of the mount: its file system cannot be id-mapped"
    );
    // Two mappings of the same id.
    let error = Bundle::script("true")
        .mount(json!({
            "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["idmap"],
            "uidMappings": mapping(0, 1, 1),
            "gidMappings": [
                {"containerID": 0, "hostID": 1, "size": 1},
                {"containerID": 0, "hostID": 2, "size": 1},
            ],
        }))
        .error();
    assert_eq!(
        error,
        "mounts[7].gidMappings: map the ids of the mount: invalid argument"
    );
}

fn a_link_is_mounted_over() {
    let run = |options: Value| {
        let bundle = Bundle::script("cat /target /link");
        fs::write(bundle.rootfs().join("target"), "target\n").unwrap();
        symlink("target", bundle.rootfs().join("link")).unwrap();
        let file = bundle.dir.path().join("file");
        fs::write(&file, "mounted\n").unwrap();
        let outcome = bundle
            .mount(json!({"destination": "/link", "source": file, "options": options}))
            .run();
        outcome.lines().join(" ")
    };
    assert_eq!(run(json!(["bind"])), "mounted mounted");
    assert_eq!(run(json!(["bind", "dest-nofollow"])), "target mounted");
}

fn destinations_through_links_stay_inside() {
    let bundle = Bundle::script("cat /real/deep/file; grep -c ' /real/deep ' /proc/self/mountinfo");
    fs::create_dir(bundle.rootfs().join("real")).unwrap();
    symlink("/real", bundle.rootfs().join("absolute")).unwrap();
    symlink("../../../../absolute", bundle.rootfs().join("relative")).unwrap();
    let source = source(&bundle);
    fs::write(format!("{source}/file"), "there\n").unwrap();
    let outcome = bundle
        .mount(json!({"destination": "/relative/deep", "source": source, "options": ["bind"]}))
        .run();
    assert_eq!(outcome.lines(), ["there", "1"]);
}

fn options_that_the_file_system_does_not_know() {
    for (kind, option) in [
        ("tmpfs", "nosuit"),
        ("mqueue", "color=red"),
        ("tmpfs", "context=a:b:c"),
    ] {
        let error = Bundle::script("true")
            .mount(json!({"destination": "/t", "type": kind, "source": kind, "options": [option]}))
            .error();
        let expected =
            format!("mounts[7]: {kind} on \"/t\": option \"{option}\": invalid argument");
        assert!(error.starts_with(&expected), "{error}");
    }
}

fn file_systems_from_nothing() {
    let outcome = Bundle::script("stat -f -c %T /a /b; grep ' /[ab] ' /proc/self/mounts | cut -d' ' -f2-4")
        .mount(json!({"destination": "/a", "type": "ramfs", "source": "ramfs", "options": ["mode=700"]}))
        .mount(json!({"destination": "/b", "type": "bpf", "source": "bpf", "options": ["nosuid", "mode=700"]}))
        .run();
    let lines = outcome.lines();
    assert!(
        lines.contains(&"/a ramfs rw,relatime,mode=700"),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("/b bpf rw,nosuid,relatime")),
        "{lines:?}"
    );
}

fn every_recursive_attribute() {
    // Where the tests' files are may have attributes of its own.
    let tmpfs = |path: &str| {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, None).unwrap();
    };
    for (option, expected) in [
        ("rro", "ro,relatime"),
        ("rnosuid", "rw,nosuid,relatime"),
        ("rnodev", "rw,nodev,relatime"),
        ("rnoexec", "rw,noexec,relatime"),
        ("rnodiratime", "rw,nodiratime,relatime"),
        ("rnoatime", "rw,noatime"),
        ("rstrictatime", "rw"),
        ("rnosymfollow", "rw,relatime,nosymfollow"),
    ] {
        let bundle = Bundle::script("grep -E ' /data(/sub)? ' /proc/self/mountinfo");
        let source = source(&bundle);
        tmpfs(&source);
        let sub = format!("{source}/sub");
        fs::create_dir(&sub).unwrap();
        tmpfs(&sub);
        let outcome = bundle
            .mount(json!({"destination": "/data", "source": source, "options": ["rbind", option]}))
            .run_with(|_| {});
        for path in [&sub, &source] {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        let outcome = outcome.unwrap();
        let attributes: Vec<_> = outcome
            .lines()
            .iter()
            .filter_map(|line| line.split(' ').nth(5))
            .collect();
        assert_eq!(attributes, [expected, expected], "{option}");
    }
}

fn contradicting_options() {
    // The last one counts.
    for (options, expected) in [
        (json!(["ro", "rw"]), "rw,relatime"),
        (json!(["rw", "ro"]), "ro,relatime"),
        (json!(["nosuid", "suid", "nodev"]), "rw,nodev,relatime"),
        (json!(["noatime", "strictatime"]), "rw"),
        (json!(["noexec", "defaults"]), "rw,noexec,relatime"),
    ] {
        let outcome = Bundle::script("grep ' /t ' /proc/self/mountinfo")
            .mount(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options}))
            .run();
        let line = outcome.lines()[0].to_owned();
        assert_eq!(line.split(' ').nth(5), Some(expected), "{options}");
    }
}

fn a_version_1_cgroup_mount_is_version_2() {
    let bundle = Bundle::script(
        "stat -f -c %t /sys/fs/cgroup; test -f /sys/fs/cgroup/cgroup.procs && echo own",
    );
    assert_eq!(bundle.spec["mounts"][6]["type"], "cgroup");
    let outcome = bundle.run();
    assert_eq!(outcome.lines(), ["63677270", "own"]);
}
