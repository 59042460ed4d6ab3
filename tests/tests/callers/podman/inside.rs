//! Networks that a privileged container makes inside its virtual machine, with Debian's own tools.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::harness::{Case, Engine, add_program, build_rootfs, busybox_tar};

/// Those that are copied from this machine.
const TOOLS: [&str; 15] = [
    "/sbin/bridge",
    "/sbin/ip",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/docker",
    "/usr/sbin/docker-proxy",
    "/usr/sbin/dockerd",
    "/usr/sbin/runc",
    "/usr/bin/ping",
    "/usr/bin/tcpdump",
    "/usr/sbin/ip6tables-nft",
    "/usr/sbin/iptables-legacy",
    "/usr/sbin/iptables-nft",
    "/usr/sbin/nft",
    "/sbin/tc",
];

/// What iptables loads.
const EXTENSIONS: &str = "usr/lib/x86_64-linux-gnu/xtables";

/// BusyBox, and the tools in `/usr/bin`. Its shell prefers its own ones of the same name unless they are called by their paths.
fn tools_rootfs() -> &'static Path {
    static ROOTFS: OnceLock<PathBuf> = OnceLock::new();
    ROOTFS.get_or_init(|| {
        let rootfs = PathBuf::from("/var/lib/callers-tools");
        fs::remove_dir_all(&rootfs).ok();
        build_rootfs(&rootfs);
        for tool in TOOLS {
            let program = Path::new(tool);
            let name = program.file_name().expect("a name").to_string_lossy();
            add_program(&rootfs, program, &format!("/usr/bin/{name}"));
        }
        let extensions = rootfs.join(EXTENSIONS);
        fs::create_dir_all(&extensions).expect("a directory");
        for entry in fs::read_dir(Path::new("/").join(EXTENSIONS)).expect("iptables is there") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), extensions.join(entry.file_name())).expect("an extension");
        }
        symlink("/run", rootfs.join("var/run")).expect("a link");
        // As Debian's alternatives have them.
        for name in ["iptables", "ip6tables"] {
            symlink(format!("{name}-nft"), rootfs.join("usr/bin").join(name)).expect("a link");
        }
        rootfs
    })
}

/// Starts such a container; gives the address of its gateway.
fn start(case: &Case, options: &[&str]) -> String {
    let rootfs = tools_rootfs().to_string_lossy().into_owned();
    let started = case
        .command(["run", "--detach", "--name", "tools"])
        .args(options)
        .args(["--rootfs", &rootfs, "sleep", "1000"])
        .outlived()
        .run();
    assert_eq!(started.status.code(), Some(0), "{started}");
    let settings = case.inspect("tools")["NetworkSettings"].clone();
    let gateway = settings["Gateway"].as_str().expect("a gateway");
    gateway.to_owned()
}

fn sh(case: &Case, script: &str) -> String {
    case.ok(["exec", "tools", "sh", "-exc", script])
}

#[test]
fn packets_are_filtered_translated_seen_and_bridged() {
    let case = Case::new(Engine::Podman);
    let gateway = start(&case, &["--privileged"]);
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let script = format!(
            "{iptables} -t nat -A POSTROUTING -s 10.200.0.0/24 -m comment --comment own -j MASQUERADE
             {iptables} -t nat -A PREROUTING -p tcp -m addrtype --dst-type LOCAL --dport 8000 -j DNAT --to-destination 10.200.0.2:80
             {iptables} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             {iptables} -t nat -S; {iptables} -S"
        );
        let listed = sh(&case, &script);
        for rule in [
            "-s 10.200.0.0/24 -m comment --comment own -j MASQUERADE",
            "--to-destination 10.200.0.2:80",
            "--ctstate RELATED,ESTABLISHED -j ACCEPT",
        ] {
            assert!(listed.contains(rule), "{iptables}: {rule}: {listed}");
        }
    }
    let listed = sh(
        &case,
        "nft add table inet own
         nft add chain inet own in '{ type filter hook input priority 0; policy accept; }'
         nft add set inet own ports '{ type inet_service; flags interval; }'
         nft add element inet own ports '{ 1000-2000, 22 }'
         nft add rule inet own in tcp dport @ports ct state new limit rate 5/second counter log reject with tcp reset
         nft list ruleset",
    );
    assert!(listed.contains("counter packets 0"), "{listed}");
    let seen = sh(
        &case,
        &format!(
            "tcpdump -Z root -c 1 -n -i eth0 icmp >/tmp/seen 2>/tmp/errors &
             for i in $(seq 600); do grep -q 'listening on eth0' /tmp/errors && break; sleep 0.1; done
             /usr/bin/ping -c 1 -W 60 {gateway}
             wait; cat /tmp/errors /tmp/seen"
        ),
    );
    assert!(seen.contains("ICMP echo request"), "{seen}");
    // What Docker does for each of its containers.
    sh(
        &case,
        &format!(
            "alias ip=/usr/bin/ip; mkdir -p /run/netns
             ip link add br0 type bridge
             ip addr add 10.201.0.1/24 dev br0
             ip link set br0 up
             ip netns add inner
             ip link add port0 type veth peer name eth0 netns inner
             ip link set port0 master br0 up
             ip -n inner link set eth0 up
             ip -n inner addr add 10.201.0.2/24 dev eth0
             ip -n inner route add default via 10.201.0.1
             echo 1 >/proc/sys/net/ipv4/ip_forward
             iptables-nft -t nat -A POSTROUTING -s 10.201.0.0/24 ! -o br0 -j MASQUERADE
             bridge link show | grep -q 'port0.*master br0'
             ip netns exec inner /usr/bin/ping -c 1 -W 60 {gateway}"
        ),
    );
}

#[test]
fn pings_without_privileges() {
    let case = Case::new(Engine::Podman);
    // Podman has a sysctl allow it to the group of root.
    let gateway = start(&case, &["--cap-drop", "ALL", "--user", "1000:0"]);
    let ping = format!("/usr/bin/ping -c 1 -W 60 {gateway}");
    sh(&case, &ping);
    let options = ["exec", "--user", "1000:1000", "tools", "sh", "-c", &ping];
    let refused = case.command(options).run();
    assert_ne!(refused.status.code(), Some(0), "{refused}");
}

#[test]
#[ignore = "it takes three minutes in the bed: tests/suites/run podman inside::docker"]
fn docker_and_its_bridge() {
    let case = Case::new(Engine::Podman);
    let options = [
        "--privileged",
        "--memory",
        "1g",
        "--tmpfs",
        "/var/lib/docker",
        "--tmpfs",
        "/run",
    ];
    let gateway = start(&case, &options);
    let image = tools_rootfs().join("busybox.tar");
    fs::copy(busybox_tar(), image).expect("the image");
    // Its daemon makes cgroups below its own, in which there may be no process then.
    sh(
        &case,
        "cd /sys/fs/cgroup; mkdir init
         for pid in $(cat cgroup.procs); do echo $pid >init/cgroup.procs || true; done
         sed 's/[a-z_]*/+&/g' cgroup.controllers >cgroup.subtree_control",
    );
    // Docker itself would wait for a quarter of a minute for containerd, no longer. They are large programs, and so is
    // the client: what is looked for is the socket.
    let containerd = "containerd --config /dev/null";
    let dockerd = "dockerd --containerd /run/containerd/containerd.sock";
    for (command, socket) in [
        (containerd, "/run/containerd/containerd.sock"),
        (dockerd, "/run/docker.sock"),
    ] {
        let daemon = format!("exec {command} >/run/log 2>&1");
        case.ok(["exec", "--detach", "tools", "sh", "-c", &daemon]);
        let look = format!(
            "for i in $(seq 1000); do test -S {socket} && exit; sleep 0.1; done; cat /run/log; exit 1"
        );
        case.ok(["exec", "tools", "sh", "-c", &look]);
    }
    let docker = |arguments: &str| {
        let finished = case.command(["exec", "tools", "docker"]);
        let finished = finished.args(arguments.split(' ')).run();
        if finished.status.code() != Some(0) {
            let log = case.ok(["exec", "tools", "cat", "/run/log"]);
            panic!("docker {arguments}: {finished}\n{log}");
        }
        finished.out()
    };
    docker("import /busybox.tar busybox");
    let ping = format!("run --rm busybox ping -c 1 -w 60 {gateway}");
    assert!(docker(&ping).contains("1 packets received"));
    docker("run --detach --publish 8000:80 busybox httpd -f -p 80 -h /etc");
    let fetch = "for i in $(seq 100); do wget -q -O - http://127.0.0.1:8000/passwd && break; sleep 0.3; done";
    let page = case.ok(["exec", "tools", "sh", "-c", fetch]);
    assert!(page.starts_with("root:x:0:0:"), "{page}");
}
