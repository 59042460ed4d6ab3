//! The security context of pods and containers.

use std::fs;

use protobuf::MessageField;

use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod};

/// Starts a container that waits, with a security context.
fn container(
    pod: &Pod,
    name: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Container {
    pod.start_with(name, "exec sleep 1000", |config| {
        let linux = config.linux.mut_or_insert_default();
        change(linux.security_context.mut_or_insert_default());
    })
}

fn id(value: i64) -> MessageField<cri::Int64Value> {
    MessageField::some(cri::Int64Value {
        value,
        ..cri::Int64Value::default()
    })
}

fn profile(kind: cri::security_profile::ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: kind.into(),
        ..cri::SecurityProfile::default()
    }
}

/// A field of the status of a process that runs in it.
fn status(container: &Container, name: &str) -> String {
    let field = container.sh(&format!(
        "sed -n 's/^{name}:[[:space:]]*//p' /proc/self/status"
    ));
    field.trim().to_owned()
}

fn effective_capabilities(container: &Container) -> u64 {
    let text = status(container, "CapEff");
    u64::from_str_radix(&text, 16).unwrap_or_else(|e| panic!("{e}: {text}"))
}

pub(crate) fn users_and_groups(case: &Case) {
    let pod = case.pod("users");
    let guest = container(&pod, "guest", |security| {
        security.run_as_user = id(1000);
        security.run_as_group = id(1000);
        security.supplemental_groups = vec![3000, 4000];
        security.no_new_privs = true;
        security.readonly_rootfs = true;
        security.masked_paths = vec!["/proc/kcore".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    });
    assert_eq!(guest.sh("id -u; id -g"), "1000\n1000\n");
    let groups = guest.sh("id -G");
    for group in ["1000", "3000", "4000"] {
        assert!(groups.split_whitespace().any(|g| g == group), "{groups}");
    }
    assert_eq!(status(&guest, "NoNewPrivs"), "1");
    assert_eq!(effective_capabilities(&guest), 0);
    let root = container(&pod, "root", |security| {
        security.readonly_rootfs = true;
        security.masked_paths = vec!["/proc/kcore".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    });
    assert_eq!(status(&root, "NoNewPrivs"), "0");
    root.sh("! touch /file; test ! -s /proc/kcore; ! sh -c 'echo 1 >/proc/sys/vm/swappiness'");
    assert_eq!(root.sh("touch /dev/shm/file && echo shared"), "shared\n");
}

pub(crate) fn capabilities(case: &Case) {
    const CHOWN: u64 = 1;
    const NET_ADMIN: u64 = 1 << 12;
    let pod = case.pod("caps");
    let usual = container(&pod, "usual", |_| ());
    let effective = effective_capabilities(&usual);
    assert_eq!(effective & (CHOWN | NET_ADMIN), CHOWN, "{effective:x}");
    let chosen = container(&pod, "chosen", |security| {
        security.capabilities = MessageField::some(cri::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["CHOWN".into()],
            ..cri::Capability::default()
        });
    });
    let effective = effective_capabilities(&chosen);
    assert_eq!(effective & (CHOWN | NET_ADMIN), NET_ADMIN, "{effective:x}");
    chosen.sh("ip link add dummy0 type dummy || ip link set lo mtu 1400");
    chosen.sh("! chown 1000 /etc/passwd");
}

pub(crate) fn privileged(case: &Case) {
    let pod = case.pod_with("privileged", |config| {
        let linux = config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default().privileged = true;
    });
    let privileged = container(&pod, "c", |security| security.privileged = true);
    let last: u32 = privileged
        .sh("cat /proc/sys/kernel/cap_last_cap")
        .trim()
        .parse()
        .expect("a number");
    assert_eq!(effective_capabilities(&privileged), (1 << (last + 1)) - 1);
    assert_eq!(status(&privileged, "Seccomp"), "0");
    privileged.sh("mkdir /m && mount -t tmpfs tmpfs /m && touch /m/x && umount /m");
    privileged.sh("echo 7 >/proc/sys/net/core/somaxconn");
    // It is the guest's kernel that obeys.
    let outside = fs::read_to_string("/proc/sys/net/core/somaxconn").expect("a sysctl");
    assert_ne!(outside.trim(), "7");
}

pub(crate) fn seccomp(case: &Case) {
    use cri::security_profile::ProfileType;

    let pod = case.pod("seccomp");
    let usual = container(&pod, "usual", |security| {
        security.seccomp = MessageField::some(profile(ProfileType::RuntimeDefault));
    });
    assert_eq!(status(&usual, "Seccomp"), "2");
    let free = container(&pod, "free", |security| {
        security.seccomp = MessageField::some(profile(ProfileType::Unconfined));
    });
    assert_eq!(status(&free, "Seccomp"), "0");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let rules = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    });
    fs::write(file.path(), rules.to_string()).expect("a profile");
    let own = container(&pod, "own", |security| {
        security.seccomp = MessageField::some(cri::SecurityProfile {
            localhost_ref: file.path().display().to_string(),
            ..profile(ProfileType::Localhost)
        });
    });
    own.sh("touch /tmp/file && ! mkdir /tmp/dir");
}

pub(crate) fn sysctls(case: &Case) {
    let pod = case.pod_with("sysctls", |config| {
        let linux = config.linux.mut_or_insert_default();
        let sysctls = [
            ("net.core.somaxconn", "77"),
            ("kernel.shm_rmid_forced", "1"),
        ];
        linux.sysctls = sysctls.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    });
    let container = pod.start("c", "exec sleep 1000");
    let look = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(container.sh(look), "77\n1\n");
}
