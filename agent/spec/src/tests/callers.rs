//! Specifications as the callers write them: what Docker, Podman, containerd and CRI-O put into a
//! `config.json` on a host without AppArmor and SELinux, down to what they leave empty.

use serde_json::{Value, json};

use crate::{Side, Spec, check};

fn accepted(document: &Value) {
    let bytes = document.to_string();
    for side in [Side::Host, Side::Guest] {
        let checked = check(bytes.as_bytes(), "config.json", side).unwrap();
        assert_eq!(checked.warnings, [] as [String; 0]);
    }
    Spec::parse(bytes.as_bytes(), "config.json").unwrap();
}

fn capabilities() -> Value {
    json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_NET_BIND_SERVICE"
    ])
}

/// The list that they all start from.
fn device_rules() -> Value {
    json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": 136, "access": "rwm"},
        {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ])
}

fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["accept", "read", "write"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 2_114_060_288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            },
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    })
}

#[test]
fn docker() {
    let id = "6cf3bb95a3d8c1a7d3b1ed0f93fa2d1f1c8de6d0f3bd2c94a1a5d9e1a1f3c2b4";
    accepted(&json!({
        "ociVersion": "1.2.1",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["sh"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOSTNAME=6cf3bb95a3d8"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities(), "effective": capabilities(), "permitted": capabilities(),
            },
            "apparmorProfile": "",
            "oomScoreAdj": 0,
        },
        "root": {"path": "/var/lib/docker/overlay2/x/merged"},
        "hostname": "6cf3bb95a3d8",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/var/lib/docker/containers/x/resolv.conf", "options": ["rbind", "rprivate"]},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "rro", "rprivate"]},
        ],
        "hooks": {
            "prestart": [{"path": "/proc/1234/exe", "args": ["libnetwork-setkey", "-exec-root=/var/run/docker", id, "ab12"]}],
        },
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "resources": {
                "devices": device_rules(),
                "memory": {"limit": 268_435_456, "swap": 536_870_912, "disableOOMKiller": false},
                "cpu": {"shares": 0, "quota": 50_000, "period": 100_000, "cpus": "0-1"},
                "pids": {"limit": 100},
                "blockIO": {"weight": 0, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1_048_576}]},
            },
            "cgroupsPath": format!("system.slice:docker:{id}"),
            "namespaces": [
                {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"}, {"type": "cgroup"},
            ],
            "seccomp": seccomp(),
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }));
}

#[test]
fn docker_with_privileges() {
    // All devices of the host, and no confinement.
    accepted(&json!({
        "ociVersion": "1.2.1",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "cwd": "/",
            "apparmorProfile": "unconfined",
            "scheduler": null,
        },
        "root": {"path": "/var/lib/docker/overlay2/x/merged"},
        "hostname": "x",
        "linux": {
            "devices": [
                {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0, "fileMode": 25008, "uid": 0, "gid": 6},
                {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232, "fileMode": 8592, "uid": 0, "gid": 104},
                {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 8630, "uid": 0, "gid": 0},
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 8630, "uid": 0, "gid": 0},
            ],
            "resources": {"devices": [{"allow": true, "access": "rwm"}], "memory": {}, "cpu": {}, "blockIO": {}},
            "cgroupsPath": "/docker/x",
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"}],
        },
    }));
}

#[test]
fn podman() {
    let id = "9f0c8b5b8ee34a94a1d4a4a9f8c5d7b6e1f2a3b4c5d6e7f8091a2b3c4d5e6f70";
    accepted(&json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [0, 1, 10]},
            "args": ["sh"],
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm", "container=podman", "HOME=/root"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities(), "effective": capabilities(), "permitted": capabilities(),
                "inheritable": [], "ambient": [],
            },
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 1_048_576},
                {"type": "RLIMIT_NPROC", "hard": 4_194_304, "soft": 4_194_304},
            ],
            "oomScoreAdj": 0,
            "selinuxLabel": "",
        },
        "root": {"path": "/var/lib/containers/storage/overlay/x/merged"},
        "hostname": "9f0c8b5b8ee3",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/run/.containerenv", "type": "bind", "source": "/run/containers/x/.containerenv", "options": ["bind", "rprivate"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/var/lib/containers/x/shm", "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rprivate", "nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["rprivate", "nosuid", "nodev", "tmpcopyup", "rw"]},
            {"destination": "/vol", "type": "bind", "source": "/var/lib/containers/storage/volumes/v/_data", "options": ["rw", "rprivate", "nosuid", "nodev", "rbind", "exec", "suid", "dev"]},
        ],
        "hooks": {
            "createRuntime": [{"path": "/usr/libexec/hook", "args": ["hook"], "env": ["A=b"], "timeout": 5}],
            "poststop": [],
        },
        "annotations": {"io.podman.annotations.ulimit": "nofile=1048576:1048576", "org.opencontainers.image.stopSignal": "15"},
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"swappiness": null},
                "pids": {"limit": 2048},
            },
            "cgroupsPath": format!("machine.slice:libpod:{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "network", "path": "/run/netns/netns-1b2c"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"},
            ],
            "seccomp": seccomp(),
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/sys/firmware", "/sys/fs/selinux"],
            "readonlyPaths": ["/proc/asound", "/proc/bus", "/proc/sys"],
            "mountLabel": "",
        },
    }));
}

#[test]
fn containerd_for_kubernetes() {
    let uid = "4b2f1c1e-8a50-4ed6-b0a1-0cbb6a8f7a51";
    accepted(&json!({
        "ociVersion": "1.2.1",
        "process": {
            "user": {"uid": 65535, "gid": 65535, "additionalGids": [65535]},
            "args": ["/app"],
            "env": ["PATH=/usr/bin", "HOSTNAME=web-0", "KUBERNETES_PORT=tcp://10.96.0.1:443"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities(), "effective": capabilities(), "permitted": capabilities()},
            "noNewPrivileges": true,
            "oomScoreAdj": 988,
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": format!("/var/lib/kubelet/pods/{uid}/etc-hosts"), "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/x/shm", "options": ["rbind", "rprivate", "rw"]},
            {
                "destination": "/data", "type": "bind", "source": format!("/var/lib/kubelet/pods/{uid}/volumes/data"),
                "options": ["rbind", "rslave", "rw", "idmap"],
                "uidMappings": [{"containerID": 0, "hostID": 65536, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 65536, "size": 65536}],
            },
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "x",
            "io.kubernetes.cri.sandbox-uid": uid,
        },
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": 65536, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 65536, "size": 65536}],
            "resources": {
                "devices": device_rules(),
                "memory": {"limit": 134_217_728, "swap": 134_217_728},
                "cpu": {"shares": 102, "quota": 20_000, "period": 100_000, "cpus": "", "mems": ""},
                "hugepageLimits": [{"pageSize": "1GB", "limit": 0}, {"pageSize": "2MB", "limit": 0}],
                "unified": {"memory.oom.group": "1"},
            },
            "cgroupsPath": format!("kubepods-burstable-pod{}.slice:cri-containerd:x", uid.replace('-', "_")),
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc", "path": "/proc/4242/ns/ipc"},
                {"type": "uts", "path": "/proc/4242/ns/uts"},
                {"type": "mount"},
                {"type": "network", "path": "/var/run/netns/cni-1"},
                {"type": "user", "path": "/proc/4242/ns/user"},
                {"type": "cgroup"},
            ],
            "seccomp": seccomp(),
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs"],
        },
    }));
}

#[test]
fn cri_o() {
    accepted(&json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "umask": 18},
            "args": ["/usr/bin/app"],
            "env": ["PATH=/usr/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities(), "effective": capabilities(), "inheritable": null, "permitted": capabilities(),
            },
            "oomScoreAdj": 1000,
            "selinuxLabel": "",
            "apparmorProfile": "unconfined",
        },
        "root": {"path": "/var/lib/containers/storage/overlay/x/merged"},
        "hostname": "web-0",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/containers/x/resolv.conf", "options": ["ro", "bind", "nodev", "nosuid", "noexec"]},
            {"destination": "/var/run/secrets", "type": "bind", "source": "/var/lib/kubelet/x", "options": ["ro", "rbind", "rprivate", "bind"]},
        ],
        "hooks": {},
        "annotations": {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "x"},
        "linux": {
            "resources": {
                "devices": device_rules(),
                "memory": {"limit": 0, "swap": 0, "kernel": 0, "disableOOMKiller": false, "useHierarchy": true},
                "cpu": {"shares": 2, "quota": 0, "period": 100_000},
                "pids": {"limit": -1},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            },
            "cgroupsPath": "kubepods-besteffort.slice:crio:x",
            "namespaces": [
                {"type": "pid"}, {"type": "mount"},
                {"type": "network", "path": "/var/run/netns/1"},
                {"type": "ipc", "path": "/var/run/ipcns/1"},
                {"type": "uts", "path": "/var/run/utsns/1"},
            ],
            "seccomp": seccomp(),
            "intelRdt": null,
            "mountLabel": "",
        },
    }));
}
