//! Values that a specification may have, and that Cloister refuses.

use serde_json::json;

use super::{base, verdict, with};

#[test]
fn what_is_refused_names_its_field() {
    for (pointer, value, expected) in [
        (
            "/windows",
            json!({"layerFolders": ["x"]}),
            "windows: refused: it belongs to another platform; Cloister runs Linux containers",
        ),
        (
            "/vm",
            json!({"kernel": {"path": "/k"}}),
            "vm: refused: kernel, image and hypervisor are chosen by Cloister's configuration",
        ),
        (
            "/process/apparmorProfile",
            json!("x"),
            "process.apparmorProfile: \"x\" is refused: the guest kernel has no AppArmor",
        ),
        (
            "/linux/resources/rdma",
            json!({"mlx": {"hcaHandles": 1}}),
            "linux.resources.rdma: refused: the virtual machine has no RDMA devices",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: \"SCMP_ACT_NOTIFY\" is refused: a seccomp agent on the host cannot act inside the virtual machine",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.panic": "1"}),
            "linux.sysctl[\"kernel.panic\"]: refused: it does not belong to a namespace of the container",
        ),
        (
            "/linux/sysctl",
            json!({"kernel/hostname": "x"}),
            "linux.sysctl[\"kernel/hostname\"]: refused: hostname sets it",
        ),
        (
            "/mounts/0/options",
            json!(["bind", "size=1m"]),
            "mounts[0].options[1]: \"size=1m\" is refused: not a mount option that Cloister knows for bind mounts",
        ),
        (
            "/mounts/0/options",
            json!(["bind", "sync"]),
            "mounts[0].options[1]: \"sync\" is refused: it is a property of the file system, which a bind mount does not change",
        ),
        (
            "/mounts/0/options",
            json!(["tmpcopyup"]),
            "mounts[0].options[0]: \"tmpcopyup\" is refused: only tmpfs has it",
        ),
        (
            "/mounts/0/options",
            json!(["rbind", "idmap"]),
            "mounts[0].options[1]: \"idmap\" needs uidMappings and gidMappings, of the mount or of the container",
        ),
        (
            "/mounts/0/type",
            json!("nfs"),
            "mounts[0].type: refused: file system \"nfs\" cannot be mounted inside the virtual machine, only binfmt_misc, bpf, cgroup, cgroup2, devpts, hugetlbfs, mqueue, proc, ramfs, securityfs, sysfs, tmpfs can",
        ),
        (
            "/linux/namespaces/1/type",
            json!("user"),
            "linux.uidMappings: is required with a user namespace; linux.gidMappings: is required with a user namespace",
        ),
    ] {
        assert_eq!(
            with(pointer, value),
            format!("config.json: {expected}"),
            "{pointer}"
        );
    }
    let mut document = base();
    document["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "network");
    assert!(verdict(&document).contains("would join the host's network"));
}

#[test]
fn kernel_parameters_and_their_namespaces() {
    let sysctl = |key: &str, namespaces: &[&str]| {
        let mut document = base();
        let list: Vec<_> = namespaces
            .iter()
            .map(|kind| json!({"type": kind}))
            .collect();
        document["linux"]["namespaces"] = json!(list);
        document["linux"]["sysctl"] = json!({key: "1"});
        if namespaces.contains(&"user") {
            let map = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
            document["linux"]["uidMappings"] = map.clone();
            document["linux"]["gidMappings"] = map;
        }
        document["hostname"] = json!("");
        verdict(&document)
    };
    for (key, namespace) in [
        ("kernel.msgmax", "ipc"),
        ("kernel.msgmnb", "ipc"),
        ("kernel.msgmni", "ipc"),
        ("kernel.sem", "ipc"),
        ("kernel.shmall", "ipc"),
        ("kernel.shmmax", "ipc"),
        ("kernel.shmmni", "ipc"),
        ("kernel.shm_rmid_forced", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.domainname", "uts"),
        ("user.max_user_namespaces", "user"),
        ("net.ipv4.ip_forward", "network"),
        ("net/ipv4/conf/eth0.1/forwarding", "network"),
    ] {
        let all = ["mount", "network", namespace];
        let listed = if namespace == "network" {
            &all[..2]
        } else {
            &all[..]
        };
        assert_eq!(sysctl(key, listed), "accepted", "{key}");
        if namespace != "network" {
            assert_eq!(
                sysctl(key, &all[..2]),
                format!(
                    "config.json: linux.sysctl[{key:?}]: cannot be set without a {namespace} namespace"
                )
            );
        }
    }
    for (key, reason) in [
        ("kernel.hostname", "hostname sets it"),
        (
            "vm.swappiness",
            "it does not belong to a namespace of the container",
        ),
        (
            "kernel.core_pattern",
            "it does not belong to a namespace of the container",
        ),
        (
            "fs.file-max",
            "it does not belong to a namespace of the container",
        ),
    ] {
        assert_eq!(
            sysctl(key, &["mount", "network", "uts", "ipc"]),
            format!("config.json: linux.sysctl[{key:?}]: refused: {reason}")
        );
    }
}

#[test]
fn options_of_mounts_that_are_refused() {
    for (option, reason) in [
        ("mand", "Linux has no mandatory locks since 5.15"),
        ("rmand", "Linux has no mandatory locks since 5.15"),
        (
            "rsync",
            "it is a property of a file system, not of the mounts below",
        ),
        (
            "rdirsync",
            "it is a property of a file system, not of the mounts below",
        ),
        (
            "copy-symlink",
            "links in the source are followed on the host, where the source is shared from",
        ),
        (
            "src-nofollow",
            "links in the source are followed on the host, where the source is shared from",
        ),
        (
            "lazytime",
            "it is a property of the file system, which a bind mount does not change",
        ),
        (
            "mode=755",
            "not a mount option that Cloister knows for bind mounts",
        ),
    ] {
        let mount = json!([{"destination": "/x", "source": "/y", "options": ["bind", option]}]);
        assert_eq!(
            with("/mounts", mount),
            format!("config.json: mounts[0].options[1]: {option:?} is refused: {reason}")
        );
    }
}

#[test]
fn namespaces_that_cannot_be_the_hosts() {
    for (kind, reason) in [
        ("network", "the container would join the host's network"),
        ("mount", "the container would join the sandbox's mounts"),
    ] {
        let mut document = base();
        let namespaces = document["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        assert_eq!(
            verdict(&document),
            format!("config.json: linux.namespaces: refused: without a {kind} namespace {reason}")
        );
    }
}

/// What runc 1.3 and crun 1.2x take as options that are not the file system's.
#[test]
fn every_option_that_other_runtimes_know_has_a_verdict() {
    let known = [
        "async",
        "atime",
        "bind",
        "copy-symlink",
        "defaults",
        "dest-nofollow",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "idmap",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "private",
        "rasync",
        "ratime",
        "rbind",
        "rdev",
        "rdiratime",
        "rdirsync",
        "relatime",
        "remount",
        "rexec",
        "ridmap",
        "rmand",
        "rnoatime",
        "rnodev",
        "rnodiratime",
        "rnoexec",
        "rnomand",
        "rnorelatime",
        "rnostrictatime",
        "rnosuid",
        "rnosymfollow",
        "ro",
        "rprivate",
        "rrelatime",
        "rro",
        "rrw",
        "rshared",
        "rslave",
        "rstrictatime",
        "rsuid",
        "rsymfollow",
        "rsync",
        "runbindable",
        "rw",
        "shared",
        "silent",
        "slave",
        "src-nofollow",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
        "tmpcopyup",
        "unbindable",
    ];
    for option in known {
        assert!(crate::mount_option(option).is_some(), "{option}");
    }
}
