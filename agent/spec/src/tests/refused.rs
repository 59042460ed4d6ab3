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
