//! The file system tree: root, mounts, devices, masked and read-only paths.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    ("writes_show_outside", writes_show_outside),
    ("read_only_root", read_only_root),
    ("the_default_mounts", the_default_mounts),
    (
        "nothing_of_the_outside_is_mounted",
        nothing_of_the_outside_is_mounted,
    ),
    ("default_devices", default_devices),
    ("listed_devices", listed_devices),
    ("devices_that_do_not_exist", devices_that_do_not_exist),
    (
        "a_listed_device_meets_another_file",
        a_listed_device_meets_another_file,
    ),
    ("masked_paths", masked_paths),
    ("read_only_paths", read_only_paths),
    ("bind_mounts", bind_mounts),
    ("bind_mounts_of_files", bind_mounts_of_files),
    (
        "recursive_binds_and_recursive_options",
        recursive_binds_and_recursive_options,
    ),
    (
        "bind_keeps_the_flags_of_its_source",
        bind_keeps_the_flags_of_its_source,
    ),
    ("mount_options_take_effect", mount_options_take_effect),
    ("propagation_takes_effect", propagation_takes_effect),
    ("root_propagation", root_propagation),
    (
        "tmpfs_takes_the_mode_of_its_directory",
        tmpfs_takes_the_mode_of_its_directory,
    ),
    ("read_only_tmpfs", read_only_tmpfs),
    ("tmpfs_copies_up", tmpfs_copies_up),
    ("remount", remount),
    ("cgroup_is_the_containers_own", cgroup_is_the_containers_own),
    (
        "links_in_the_image_do_not_escape",
        links_in_the_image_do_not_escape,
    ),
    ("links_to_procfs_are_refused", links_to_procfs_are_refused),
    ("procfs_is_not_mounted_over", procfs_is_not_mounted_over),
    ("dangling_links_are_filled", dangling_links_are_filled),
    ("mounts_in_order", mounts_in_order),
];

fn writes_show_outside() {
    let bundle = Bundle::script("echo inside > /tmp/file; chown 5:6 /tmp/file")
        .set("/process/capabilities/effective", json!(["CAP_CHOWN"]))
        .set("/process/capabilities/permitted", json!(["CAP_CHOWN"]))
        .set("/process/capabilities/bounding", json!(["CAP_CHOWN"]));
    bundle.run().lines();
    let file = bundle.rootfs().join("tmp/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "inside\n");
    let owner = rustix::fs::stat(&file).unwrap();
    assert_eq!((owner.st_uid, owner.st_gid), (5, 6));
}

fn read_only_root() {
    let script = "touch /x 2>&1; touch /dev/shm/x && echo shm";
    let outcome = Bundle::script(script)
        .set("/root/readonly", json!(true))
        .run();
    assert_eq!(outcome.lines(), ["touch: /x: Read-only file system", "shm"]);
}

/// Mount point, options, type, super block options and source of each mount.
fn mountinfo(lines: &[&str]) -> Vec<[String; 5]> {
    lines
        .iter()
        .map(|line| {
            let (front, back) = line.split_once(" - ").unwrap();
            let front: Vec<&str> = front.split(' ').collect();
            let back: Vec<&str> = back.split(' ').collect();
            [front[4], front[5], back[0], back[2], back[1]].map(str::to_owned)
        })
        .collect()
}

fn find<'a>(mounts: &'a [[String; 5]], point: &str) -> &'a [String; 5] {
    mounts
        .iter()
        .rfind(|mount| mount[0] == point)
        .unwrap_or_else(|| panic!("no {point}: {mounts:?}"))
}

const MOUNTS: &str = "cat /proc/self/mountinfo";

fn the_default_mounts() {
    let outcome = Bundle::script(MOUNTS)
        .set("/root/readonly", json!(true))
        .run();
    let mounts = mountinfo(&outcome.lines());
    for (point, kind, source, options) in [
        ("/proc", "proc", "proc", "rw,relatime"),
        ("/dev", "tmpfs", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "devpts", "rw,nosuid,noexec,relatime"),
        (
            "/dev/shm",
            "tmpfs",
            "shm",
            "rw,nosuid,nodev,noexec,relatime",
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            "rw,nosuid,nodev,noexec,relatime",
        ),
        ("/sys", "sysfs", "sysfs", "ro,nosuid,nodev,noexec,relatime"),
        (
            "/sys/fs/cgroup",
            "cgroup2",
            "cgroup",
            "ro,nosuid,nodev,noexec,relatime",
        ),
    ] {
        let mount = find(&mounts, point);
        assert_eq!(
            (mount[2].as_str(), mount[4].as_str(), mount[1].as_str()),
            (kind, source, options),
            "{point}"
        );
    }
    assert!(find(&mounts, "/")[1].starts_with("ro,"), "{mounts:?}");
    assert!(
        find(&mounts, "/dev")[3].contains("size=65536k,mode=755"),
        "{mounts:?}"
    );
    assert!(
        find(&mounts, "/dev/pts")[3].contains("gid=5,mode=620,ptmxmode=666"),
        "{mounts:?}"
    );
}

fn nothing_of_the_outside_is_mounted() {
    let outcome = Bundle::script(MOUNTS).run();
    let mounts = mountinfo(&outcome.lines());
    let points: Vec<&str> = mounts.iter().map(|mount| mount[0].as_str()).collect();
    let roots = points.iter().filter(|point| **point == "/").count();
    assert_eq!(roots, 1, "{points:?}");
    for point in points {
        let known = ["/", "/proc", "/dev", "/sys"]
            .iter()
            .any(|top| point == *top || point.starts_with(&format!("{top}/")) && *top != "/");
        assert!(known, "{point}");
    }
}

fn default_devices() {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %a %t:%T %u:%g' /dev/$d; done;
        for l in fd stdin stdout stderr core ptmx; do echo $l $(readlink /dev/$l); done;
        echo x > /dev/null && head -c 1 /dev/zero | od -An -tx1; echo x 2>/dev/null > /dev/full || echo full";
    assert_eq!(
        Bundle::script(script).run().lines(),
        [
            "/dev/null 666 1:3 0:0",
            "/dev/zero 666 1:5 0:0",
            "/dev/full 666 1:7 0:0",
            "/dev/random 666 1:8 0:0",
            "/dev/urandom 666 1:9 0:0",
            "/dev/tty 666 5:0 0:0",
            "fd /proc/self/fd",
            "stdin /proc/self/fd/0",
            "stdout /proc/self/fd/1",
            "stderr /proc/self/fd/2",
            "core /proc/kcore",
            "ptmx pts/ptmx",
            " 00",
            "full",
        ]
    );
}

fn listed_devices() {
    let script = "for d in /dev/mine /dev/deep/er/zero /dev/null /pipe; do stat -c '%n %F %a %t:%T %u:%g' $d; done";
    let outcome = Bundle::script(script)
        .set(
            "/linux/devices",
            json!([
                {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
                {"path": "/dev/deep/er/zero", "type": "u", "major": 1, "minor": 5},
                {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                {"path": "/pipe", "type": "p", "fileMode": 0o622},
            ]),
        )
        .run();
    assert_eq!(
        outcome.lines(),
        [
            "/dev/mine character special file 640 1:5 7:8",
            "/dev/deep/er/zero character special file 666 1:5 0:0",
            "/dev/null character special file 600 1:3 0:0",
            "/pipe fifo 622 0:0 0:0",
        ]
    );
}

fn a_listed_device_meets_another_file() {
    let device = json!([{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 5}]);
    let error = Bundle::script("true").set("/linux/devices", device).error();
    assert_eq!(error, "linux.devices[0]: /etc/passwd: file exists");
}

fn devices_that_do_not_exist() {
    let outcome = Bundle::script("stat -c '%n %F %t:%T' /dev/x /dev/y; cat /dev/y 2>&1; true")
        .set(
            "/linux/devices",
            json!([
                {"path": "/dev/x", "type": "b", "major": 259, "minor": 4000},
                {"path": "/dev/y", "type": "c", "major": 1, "minor": 4000},
            ]),
        )
        .push(
            "/linux/resources/devices",
            json!({"allow": true, "type": "c", "major": 1, "minor": 4000, "access": "r"}),
        )
        .run();
    assert_eq!(
        outcome.lines(),
        [
            "/dev/x block special file 103:fa0",
            "/dev/y character special file 1:fa0",
            "cat: can't open '/dev/y': No such device or address",
        ]
    );
    assert_eq!(
        outcome.warnings[0],
        "linux.devices: the virtual machine does not have /dev/x (b 259:4000), /dev/y (c 1:4000): such nodes lead nowhere"
    );
}

fn masked_paths() {
    let script = "wc -c < /proc/version; ls /masked | wc -l; touch /masked/x 2>&1; cat /file";
    let bundle = Bundle::script(script).set(
        "/linux/maskedPaths",
        json!([
            "/proc/version",
            "/masked",
            "/file",
            "/not/there",
            "/file/below"
        ]),
    );
    fs::create_dir(bundle.rootfs().join("masked")).unwrap();
    fs::write(bundle.rootfs().join("masked/secret"), "secret").unwrap();
    fs::write(bundle.rootfs().join("file"), "secret").unwrap();
    assert_eq!(
        bundle.run().lines(),
        ["0", "0", "touch: /masked/x: Read-only file system"]
    );
}

fn read_only_paths() {
    let script = "echo 1 > /proc/sys/kernel/ns_last_pid; touch /ro/x 2>&1; touch /rw/x && echo rw";
    let bundle = Bundle::script(script).set(
        "/linux/readonlyPaths",
        json!(["/proc/sys", "/ro", "/not/there"]),
    );
    for name in ["ro", "rw"] {
        fs::create_dir(bundle.rootfs().join(name)).unwrap();
    }
    let outcome = bundle.run();
    let lines = outcome.lines();
    assert_eq!(lines, ["touch: /ro/x: Read-only file system", "rw"]);
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
}

fn with_source(bundle: Bundle, mount: Value) -> Bundle {
    let mut bundle = bundle;
    let source = bundle.dir.path().join("source");
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let position = bundle.spec["mounts"].as_array().unwrap().len();
    bundle.bind_sources.insert(position, source);
    bundle.mount(mount)
}

fn bind_mounts() {
    let script = "cat /data/file; echo more > /data/new; touch /ro/new 2>&1; true";
    let bundle = with_source(
        Bundle::script(script),
        json!({"destination": "/data", "type": "none", "source": "ignored", "options": ["rbind", "rw"]}),
    );
    let bundle = with_source(
        bundle,
        json!({"destination": "ro", "type": "bind", "source": "ignored", "options": ["ro"]}),
    );
    let outcome = bundle.run();
    assert_eq!(
        outcome.lines()[..2],
        ["content", "touch: /ro/new: Read-only file system"]
    );
    assert_eq!(
        outcome.warnings[0],
        "mounts[8].destination: \"ro\" is relative, taken from /"
    );
    assert_eq!(
        fs::read_to_string(bundle.dir.path().join("source/new")).unwrap(),
        "more\n"
    );
}

fn bind_mounts_of_files() {
    let mut bundle = Bundle::script("cat /deep/er/name; stat -c %F /deep/er/name");
    let file = bundle.dir.path().join("file");
    fs::write(&file, "content\n").unwrap();
    bundle = bundle.mount(json!({
        "destination": "/deep/er/name", "source": file, "options": ["bind", "ro", "nosuid", "nodev"],
    }));
    assert_eq!(bundle.run().lines(), ["content", "regular file"]);
    let missing = Bundle::script("true").mount(json!({
        "destination": "/x", "source": "/no/such/source", "options": ["bind"],
    }));
    assert_eq!(
        missing.error(),
        "mounts[7].source: /no/such/source: no such file or directory"
    );
}

fn recursive_binds_and_recursive_options() {
    let script = "touch /tree/x /tree/sub/x 2>&1; ls /flat/sub | wc -l";
    // The source is itself mounted earlier, in the container: a tmpfs in a directory of the image.
    let bundle = Bundle::script(script);
    let source = bundle.dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    let tmpfs = || {
        rustix::mount::mount(
            "tmpfs",
            source.join("sub"),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
    };
    tmpfs().unwrap();
    fs::write(source.join("sub/inner"), "").unwrap();
    let bundle = bundle
        .mount(json!({"destination": "/tree", "source": source, "options": ["rbind", "rro"]}))
        .mount(json!({"destination": "/flat", "source": source, "options": ["bind", "ro"]}));
    let outcome = bundle.try_run();
    rustix::mount::unmount(source.join("sub"), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(
        outcome.unwrap().lines(),
        [
            "touch: /tree/x: Read-only file system",
            "touch: /tree/sub/x: Read-only file system",
            "0",
        ]
    );
}

fn bind_keeps_the_flags_of_its_source() {
    let bundle = Bundle::script("grep ' /data ' /proc/self/mountinfo");
    let source = bundle.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("tmpfs", &source, "tmpfs", flags, None).unwrap();
    let bundle = bundle
        .mount(json!({"destination": "/data", "source": source, "options": ["bind", "ro", "dev"]}));
    let outcome = bundle.try_run();
    rustix::mount::unmount(&source, rustix::mount::UnmountFlags::DETACH).unwrap();
    let outcome = outcome.unwrap();
    let mounts = mountinfo(&outcome.lines());
    // `dev` is a wish, `nosuid` is kept because nobody spoke of it.
    assert_eq!(mounts[0][1], "ro,nosuid,relatime");
}

fn mount_options_take_effect() {
    for (options, expected) in [
        (json!(["noexec", "exec", "nodev"]), "rw,nodev,relatime"),
        (json!(["noatime", "nodiratime"]), "rw,noatime,nodiratime"),
        (json!(["strictatime"]), "rw"),
        (json!(["noatime", "relatime"]), "rw,relatime"),
        (json!(["nosymfollow"]), "rw,relatime,nosymfollow"),
        (json!(["ro", "rw", "defaults", "silent"]), "rw,relatime"),
        (json!(["ro", "nosuid"]), "ro,nosuid,relatime"),
    ] {
        let outcome = Bundle::script("grep ' /t ' /proc/self/mountinfo")
            .mount(json!({"destination": "/t", "type": "tmpfs", "options": options}))
            .run();
        assert_eq!(mountinfo(&outcome.lines())[0][1], expected, "{options}");
    }
    let outcome = Bundle::script("grep ' /t ' /proc/self/mountinfo; stat -c '%a %u' /t")
        .mount(json!({
            "destination": "/t", "type": "tmpfs", "source": "x",
            "options": ["size=1m", "mode=1770", "uid=7", "sync", "nr_inodes=100"],
        }))
        .run();
    let lines = outcome.lines();
    let mount = &mountinfo(&lines[..1])[0];
    assert!(
        mount[3].starts_with("rw,sync,size=1024k,nr_inodes=100,mode=1770,uid=7"),
        "{mount:?}"
    );
    assert_eq!(lines[1], "1770 7");
    let error = Bundle::script("true")
        .mount(json!({"destination": "/t", "type": "tmpfs", "options": ["size=lots"]}))
        .error();
    assert!(
        error.starts_with("mounts[7]: tmpfs on \"/t\": option \"size=lots\": invalid argument"),
        "{error}"
    );
}

fn propagation_takes_effect() {
    for (option, expected) in [
        ("private", ""),
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
    ] {
        let outcome = Bundle::script("grep ' /t ' /proc/self/mountinfo | sed 's/ - .*//'")
            .mount(json!({"destination": "/t", "type": "tmpfs", "options": [option]}))
            .run();
        let lines = outcome.lines();
        let tags: Vec<&str> = lines[0].split(' ').skip(6).collect();
        let expected: Vec<&str> = if expected.is_empty() {
            vec![]
        } else {
            vec![expected]
        };
        assert_eq!(tags.len(), expected.len(), "{option}: {lines:?}");
        assert!(
            tags.iter()
                .zip(&expected)
                .all(|(tag, e)| tag.starts_with(e)),
            "{option}: {lines:?}"
        );
    }
}

fn root_propagation() {
    for (value, expected) in [
        ("shared", "shared:"),
        ("rprivate", ""),
        ("unbindable", "unbindable"),
    ] {
        let outcome = Bundle::script(
            "grep '^[^ ]* [^ ]* [^ ]* [^ ]* / ' /proc/self/mountinfo | sed 's/ - .*//'",
        )
        .set("/linux/rootfsPropagation", json!(value))
        .run();
        let lines = outcome.lines();
        let tags = lines[0].split(' ').skip(6).collect::<Vec<_>>().join(" ");
        assert!(
            tags.starts_with(expected) && tags.is_empty() == expected.is_empty(),
            "{value}: {lines:?}"
        );
    }
}

fn tmpfs_takes_the_mode_of_its_directory() {
    let bundle =
        Bundle::script("stat -c %a /t").mount(json!({"destination": "/t", "type": "tmpfs"}));
    fs::create_dir(bundle.rootfs().join("t")).unwrap();
    fs::set_permissions(
        bundle.rootfs().join("t"),
        fs::Permissions::from_mode(0o1751),
    )
    .unwrap();
    assert_eq!(bundle.run().lines(), ["1751"]);
}

fn read_only_tmpfs() {
    // Devices and mount points are made in it before it is closed.
    let mut bundle = Bundle::script(
        "touch /dev/x 2>&1; ls /dev/null; touch /t/x 2>&1; touch /t/sub/x && echo sub",
    );
    bundle.spec["mounts"][1]["options"] = json!(["ro", "nosuid"]);
    let outcome = bundle
        .mount(json!({"destination": "/t", "type": "tmpfs", "options": ["ro"]}))
        .mount(json!({"destination": "/t/sub", "type": "tmpfs"}))
        .run();
    assert_eq!(
        outcome.lines(),
        [
            "touch: /dev/x: Read-only file system",
            "/dev/null",
            "touch: /t/x: Read-only file system",
            "sub",
        ]
    );
}

fn tmpfs_copies_up() {
    let script = "cat /t/file; stat -c '%a %u' /t/dir/suid; readlink /t/link; touch /t/new";
    let bundle = Bundle::script(script)
        .mount(json!({"destination": "/t", "type": "tmpfs", "options": ["tmpcopyup"]}));
    let below = bundle.rootfs().join("t");
    fs::create_dir_all(below.join("dir")).unwrap();
    fs::write(below.join("file"), "content\n").unwrap();
    fs::write(below.join("dir/suid"), "").unwrap();
    std::os::unix::fs::chown(below.join("dir/suid"), Some(7), Some(7)).unwrap();
    fs::set_permissions(below.join("dir/suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc/shadow", below.join("link")).unwrap();
    assert_eq!(bundle.run().lines(), ["content", "4755 7", "/etc/shadow"]);
    assert!(!below.join("new").exists());
}

fn remount() {
    let outcome = Bundle::script("grep ' /dev/shm ' /proc/self/mountinfo")
        .mount(json!({"destination": "/dev/shm", "type": "none", "options": ["remount", "bind", "ro"]}))
        .run();
    assert_eq!(
        mountinfo(&outcome.lines())[0][1],
        "ro,nosuid,nodev,noexec,relatime"
    );
}

fn cgroup_is_the_containers_own() {
    // With and without a cgroup namespace the mount shows the container's cgroup and nothing above.
    for own in [true, false] {
        let mut bundle = Bundle::script(
            "cat /sys/fs/cgroup/cgroup.procs | grep -c '^1$'; ls /sys/fs/cgroup | grep -c cgroup.kill",
        );
        if !own {
            let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
        }
        // The root cgroup of the hierarchy has no cgroup.kill.
        assert_eq!(bundle.run().lines(), ["1", "1"], "own namespace: {own}");
    }
}

fn links_in_the_image_do_not_escape() {
    let outside = tempfile::tempdir().unwrap();
    let escape = outside.path().join("victim");
    let bundle = Bundle::script("cat /link/mounted/file; cat /up/mounted/file; ls /link/device");
    let root = bundle.rootfs();
    // An absolute link, one with too many parents, and a device below a link.
    symlink(&escape, root.join("link")).unwrap();
    symlink(
        format!("../../../../../..{}", escape.display()),
        root.join("up"),
    )
    .unwrap();
    let mount = |destination: &str| json!({"destination": destination, "type": "bind", "source": "x", "options": ["bind"]});
    let bundle = with_source(bundle, mount("/link/mounted"));
    let bundle = with_source(bundle, mount("/up/mounted"));
    let bundle = bundle.set(
        "/linux/devices",
        json!([{"path": "/link/device", "type": "c", "major": 1, "minor": 3}]),
    );
    assert_eq!(bundle.run().lines(), ["content", "content", "/link/device"]);
    assert!(!escape.exists());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

fn links_to_procfs_are_refused() {
    let bundle = Bundle::script("true");
    fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("/tmp", bundle.rootfs().join("proc")).unwrap();
    assert_eq!(
        bundle.error(),
        "mounts[0].destination: proc must be mounted on ordinary directory, \"/proc\" is reached through a link"
    );
}

fn procfs_is_not_mounted_over() {
    let over = |destination: &str| {
        with_source(
            Bundle::script("true"),
            json!({"destination": destination, "type": "bind", "source": "x", "options": ["bind"]}),
        )
    };
    assert_eq!(
        over("/proc").error(),
        "mounts[7].destination: \"/proc\" can only be a procfs"
    );
    assert_eq!(
        over("/proc/sys/net").error(),
        "mounts[7].destination: \"/proc/sys/net\" cannot be mounted because it is inside /proc"
    );
    // Through a link of the image, too.
    let bundle = over("/sly/self");
    symlink("/proc", bundle.rootfs().join("sly")).unwrap();
    assert!(
        bundle
            .error()
            .ends_with("cannot be mounted because it is inside /proc")
    );
    assert_eq!(
        Bundle::script("true")
            .mount(json!({"destination": "/a/..", "type": "tmpfs"}))
            .error(),
        "mounts[7].destination: the root directory cannot be mounted over"
    );
    // What container engines do mount there.
    let mut bundle = Bundle::script("cat /proc/uptime");
    let file = bundle.dir.path().join("uptime");
    fs::write(&file, "1.00 1.00\n").unwrap();
    bundle =
        bundle.mount(json!({"destination": "/proc/uptime", "source": file, "options": ["bind"]}));
    assert_eq!(bundle.run().lines(), ["1.00 1.00"]);
}

fn dangling_links_are_filled() {
    let bundle = with_source(
        Bundle::script("cat /var/run/x/file; cat /run/x/file"),
        json!({"destination": "/var/run/x", "type": "bind", "source": "x", "options": ["bind"]}),
    );
    fs::create_dir(bundle.rootfs().join("var")).unwrap();
    symlink("/run", bundle.rootfs().join("var/run")).unwrap();
    assert_eq!(bundle.run().lines(), ["content", "content"]);
    let looping = Bundle::script("true").mount(json!({"destination": "/loop/x", "type": "tmpfs"}));
    symlink("loop", looping.rootfs().join("loop")).unwrap();
    assert!(
        looping
            .error()
            .contains("too many levels of symbolic links")
    );
}

fn mounts_in_order() {
    let outcome = Bundle::script("ls /a /a/b; stat -c %a /a/b")
        .mount(json!({"destination": "/a", "type": "tmpfs"}))
        .mount(json!({"destination": "/a/b", "type": "tmpfs", "options": ["mode=700"]}))
        .run();
    assert_eq!(outcome.lines(), ["/a:", "b", "", "/a/b:", "700"]);
}
