//! The guest has the identity that the namespace has.

use std::path::{Path, PathBuf};

use super::super::harness::{add_program, eventually};
use super::*;

#[test]
fn addresses_routes_and_the_rest_are_the_namespaces() {
    let wire = Wire::new();
    wire.in_pod("link set eth0 mtu 1400 address 02:11:22:33:44:55");
    wire.in_pod("route add 192.0.2.0/24 via 10.77.0.9 dev eth0 metric 50 src 10.77.0.2");
    wire.in_pod("route add 198.51.100.7 via 169.254.1.1 dev eth0 onlink");
    wire.in_pod("route add unreachable 203.0.113.0/24");
    wire.in_pod("route add 192.0.2.0/24 dev eth0 table 100");
    wire.in_pod("route add local 198.18.0.0/15 dev lo table 101");
    wire.in_pod("route append 192.0.2.0/24 via 10.77.0.8 dev eth0 metric 50");
    wire.in_pod("nexthop add id 7 via 10.77.0.7 dev eth0");
    wire.in_pod("route add 203.0.113.128/25 nhid 7");
    wire.in_pod("rule add from 10.77.0.2 table 100 priority 1000");
    wire.in_pod("neigh add 169.254.1.1 lladdr 02:aa:aa:aa:aa:aa dev eth0 nud permanent");
    wire.in_pod("-6 route add 2001:db8::/32 via fd77::9 dev eth0 metric 77");
    let before = wire.state();

    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    let link = exec(&bundle, "ip link show eth0");
    assert!(link.contains("mtu 1400"), "{link}");
    assert!(link.contains("02:11:22:33:44:55"), "{link}");
    assert!(link.contains(",UP"), "{link}");
    let index = |text: &str| text.split(':').next().unwrap().to_owned();
    assert_eq!(index(&link), index(&wire.in_pod("-o link show eth0")));
    let addresses = exec(&bundle, "ip addr show eth0");
    for address in [
        "inet 10.77.0.2/24 brd 10.77.0.255",
        "inet6 fd77::2/64 scope global",
        // That of the MAC, by the host's kernel.
        "scope link",
    ] {
        assert!(addresses.contains(address), "{address}: {addresses}");
    }
    assert!(!addresses.contains("tentative"), "{addresses}");
    // BusyBox and iproute2 differ in words and blanks, not in what they tell.
    let routes = "ip route; ip route show table 100; ip route show table 101; ip -6 route";
    let routes = exec(&bundle, routes);
    for route in [
        "default via 10.77.0.1 dev eth0",
        "10.77.0.0/24 dev eth0 scope link  src 10.77.0.2",
        "192.0.2.0/24 via 10.77.0.9 dev eth0  src 10.77.0.2  metric 50",
        "192.0.2.0/24 via 10.77.0.8 dev eth0 metric 50",
        "203.0.113.128/25 via 10.77.0.7 dev eth0",
        "local 198.18.0.0/15 dev lo scope host",
        "198.51.100.7 via 169.254.1.1 dev eth0 onlink",
        "unreachable 203.0.113.0/24",
        "192.0.2.0/24 dev eth0 scope link",
        "default via fd77::1 dev eth0",
        "2001:db8::/32 via fd77::9 dev eth0  metric 77",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            squeezed(&routes).contains(&squeezed(route)),
            "{route}: {routes}"
        );
    }
    let rules = exec(&bundle, "ip rule");
    assert!(
        rules.contains("1000:\tfrom 10.77.0.2 lookup 100"),
        "{rules}"
    );
    let neighbours = exec(&bundle, "ip neigh");
    assert!(
        neighbours.contains("169.254.1.1 dev eth0 lladdr 02:aa:aa:aa:aa:aa"),
        "{neighbours}"
    );
    bundle.cloister(["delete", "--force", "pod"]).run().ok();
    assert_eq!(wire.state(), before, "the namespace is left as it was");
}

#[test]
fn several_interfaces_of_several_kinds() {
    let wire = Wire::new();
    wire.add_veth("net1", "peer1");
    wire.in_pod("addr add 10.78.0.2/24 dev net1");
    wire.on_host("addr add 10.78.0.1/24 dev peer1");
    // A macvlan device and a VLAN of the host's end, moved into the pod.
    let (pod, host) = (&wire.pod, &wire.host);
    wire.on_host("link add up0 type veth peer name down0");
    wire.on_host("link set up0 up");
    wire.on_host("link set down0 up");
    wire.on_host("addr add 10.79.0.1/24 dev down0");
    wire.on_host(&format!(
        "link add mac0 link up0 netns {pod} type macvlan mode bridge"
    ));
    wire.in_pod("addr add 10.79.0.2/24 dev mac0");
    wire.in_pod("link set mac0 up");
    wire.on_host("link add link down0 name down0.5 type vlan id 5");
    wire.on_host("link set down0.5 up");
    wire.on_host("addr add 10.80.0.1/24 dev down0.5");
    wire.on_host(&format!(
        "link add link up0 name vlan5 netns {pod} type vlan id 5"
    ));
    wire.in_pod("addr add 10.80.0.2/24 dev vlan5");
    wire.in_pod("link set vlan5 up");
    let before = wire.state();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    let names = exec(&bundle, "ls /sys/class/net | sort | tr '\\n' ' '");
    assert_eq!(names, "eth0 lo mac0 net1 vlan5 ", "host {host}");
    for address in ["10.77.0.1", "10.78.0.1", "10.79.0.1", "10.80.0.1"] {
        exec(&bundle, &format!("ping -c 1 -w 20 {address}"));
    }
    bundle.cloister(["delete", "--force", "pod"]).run().ok();
    assert_eq!(wire.state(), before);
}

#[test]
fn an_ipvlan_device_and_a_dummy() {
    let wire = Wire::bare();
    wire.on_host("link add up0 type veth peer name down0");
    wire.on_host("link set up0 up");
    wire.on_host("link set down0 up");
    wire.on_host("addr add 10.79.0.1/24 dev down0");
    let pod = &wire.pod;
    wire.on_host(&format!(
        "link add ip0 link up0 netns {pod} type ipvlan mode l2"
    ));
    wire.in_pod("addr add 10.79.0.2/24 dev ip0");
    wire.in_pod("link set ip0 up");
    wire.in_pod("link add d0 type dummy");
    wire.in_pod("addr add 10.81.0.1/32 dev d0");
    wire.in_pod("link set d0 up");
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    exec(&bundle, "ping -c 1 -w 20 10.79.0.1");
    exec(&bundle, "ping -c 1 -w 20 10.81.0.1");
}

#[test]
fn a_bond_and_its_ports() {
    let wire = Wire::bare();
    wire.in_pod("link add bond0 type bond mode active-backup miimon 100");
    wire.on_host("link add br0 type bridge");
    wire.on_host("link set br0 up");
    wire.on_host("addr add 10.77.0.1/24 dev br0");
    for number in 0..2 {
        let (port, peer) = (format!("port{number}"), format!("peer{number}"));
        wire.add_veth(&port, &peer);
        wire.on_host(&format!("link set {peer} master br0"));
        // One that is up cannot become a port.
        wire.in_pod(&format!("link set {port} down"));
        wire.in_pod(&format!("link set {port} master bond0"));
    }
    wire.in_pod("link set bond0 up");
    wire.in_pod("addr add 10.77.0.2/24 dev bond0");
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    assert_eq!(
        exec(&bundle, "ls /sys/class/net | tr '\\n' ' '"),
        "bond0 lo "
    );
    exec(&bundle, "ping -c 1 -w 20 10.77.0.1");
    // The other port takes over.
    wire.on_host("link set peer0 down");
    exec(&bundle, "ping -c 1 -w 20 10.77.0.1");
}

#[test]
fn a_tap_that_a_program_holds() {
    let wire = Wire::bare();
    wire.in_pod("tuntap add tap0 mode tap");
    wire.in_pod("addr add 10.77.0.2/24 dev tap0");
    wire.in_pod("link set tap0 up");
    wire.on_host("tuntap add tap0 mode tap");
    wire.on_host("addr add 10.77.0.1/24 dev tap0");
    wire.on_host("link set tap0 up");
    let host = PathBuf::from("/run/netns").join(&wire.host);
    let pod = wire.path();
    let cable = Cmd::new(CABLE)
        .args([&pod, Path::new("tap0"), &host, Path::new("tap0")])
        .spawn();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    exec(&bundle, "ping -c 1 -w 20 10.77.0.1");
    cable.kill();
}

#[test]
fn the_ports_of_a_bridge_stay_its_ports() {
    let wire = Wire::bare();
    wire.add_veth("port0", "peer0");
    wire.in_pod("link add br0 type bridge");
    wire.in_pod("link set port0 master br0");
    wire.in_pod("link set br0 up");
    wire.in_pod("addr add 10.77.0.2/24 dev br0");
    wire.on_host("addr add 10.77.0.1/24 dev peer0");
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    assert_eq!(exec(&bundle, "ls /sys/class/net | tr '\\n' ' '"), "br0 lo ");
    exec(&bundle, "ping -c 1 -w 20 10.77.0.1");
}

#[test]
fn interfaces_that_come_between_create_and_start() {
    let wire = Wire::bare();
    let bundle = Bundle::sh("ip addr show eth0; ping -c 1 -w 20 10.77.0.1");
    let bundle = bundle.with(|spec| grant(spec, &["CAP_NET_RAW"]));
    bundle.command("create", &[], "pod").run().ok();
    // As Docker and nerdctl do it: by the pid, in the namespace that the runtime has made.
    let pid = bundle.state("pod")["pid"].to_string();
    wire.on_host("link add eth0 type veth peer name peer0");
    wire.on_host(&format!("link set eth0 netns {pid}"));
    wire.on_host("addr add 10.77.0.1/24 dev peer0");
    wire.on_host("link set peer0 up");
    for command in [
        "link set lo up",
        "addr add 10.77.0.2/24 dev eth0",
        "link set eth0 up",
    ] {
        Cmd::new("nsenter")
            .args(["--net", "--target", &pid, "ip"])
            .args(command.split(' '))
            .run()
            .ok();
    }
    bundle.cloister(["start", "pod"]).run().ok();
    eventually("it has pinged", || bundle.status("pod") == "stopped");
    let state = std::fs::read_to_string(bundle.state_root().join("pod/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["phase"]["code"], 0, "{state}");
}

#[test]
fn what_the_loopback_interface_alone_has() {
    let wire = Wire::bare();
    wire.in_pod("addr add 10.99.0.1/32 dev lo");
    wire.in_pod("route add blackhole 192.0.2.0/24");
    let bundle = wire.bundle(&["sh", "-c", "ip addr show lo; ip route"]);
    let said = bundle.run().ok();
    assert!(said.contains("inet 10.99.0.1/32"), "{said}");
    assert!(said.contains("blackhole 192.0.2.0/24"), "{said}");
}

#[test]
fn without_a_network_there_is_the_loopback_interface() {
    let script = "ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo up";
    let bundle = Bundle::sh(script).with(|spec| grant(spec, &["CAP_NET_RAW"]));
    assert_eq!(bundle.run().ok(), "lo\nup\n");
}

#[test]
fn an_address_that_clashes_is_left_out() {
    let wire = Wire::new();
    // The host's end has it already.
    wire.in_pod(&format!("addr add {HOST_IPV6}/64 dev eth0"));
    eventually("the clash is found", || {
        wire.in_pod("addr show dev eth0").contains("dadfailed")
    });
    let bundle = wire.bundle(&["sleep", "1000"]);
    let started = bundle.command("run", &["--detach"], "pod").run();
    assert_eq!(started.code(), 0, "{started}");
    let warning = format!("interface eth0 of the network namespace: its address {HOST_IPV6}");
    assert!(started.err().contains(&warning), "{started}");
    let addresses = exec(&bundle, "ip addr show eth0");
    assert!(addresses.contains(POD_IPV6), "{addresses}");
    assert!(!addresses.contains(HOST_IPV6), "{addresses}");
    exec(&bundle, &format!("ping -6 -c 1 -w 20 {HOST_IPV6}"));
}

/// A container that pings and listens at a port below 1024, without a capability and without root.
fn unprivileged(wire: &Wire) -> Bundle {
    let script =
        format!("/peer ping {HOST} && echo pinged; /peer listen 0.0.0.0:80 && echo listened");
    let bundle = wire.bundle(&["sh", "-c", &script]).with(|spec| {
        spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = serde_json::json!([]);
        }
    });
    add_program(&bundle.rootfs(), Path::new(PEER), "/peer");
    bundle
}

#[test]
fn parameters_of_the_namespace_hold_in_the_guest() {
    let wire = Wire::new();
    let refused = unprivileged(&wire).run();
    assert_eq!(refused.out(), "", "{refused}");
    let said = refused.err();
    assert_eq!(said.matches("Permission denied").count(), 2, "{refused}");
    wire.beside_pod(|| {
        for (name, value) in [
            ("ping_group_range", "0 2147483647"),
            ("ip_unprivileged_port_start", "80"),
            ("ip_local_reserved_ports", "8000-8010"),
        ] {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
        }
    });
    assert_eq!(unprivileged(&wire).run().ok(), "pinged\nlistened\n");
    // What the specification says comes after that, as it would if runc wrote both into the namespace.
    let other = wire
        .bundle(&[
            "sh",
            "-c",
            "cd /proc/sys/net/ipv4; cat ping_group_range ip_unprivileged_port_start ip_local_reserved_ports",
        ])
        .with(|spec| {
            let sysctl = serde_json::json!({"net.ipv4.ip_unprivileged_port_start": "90", "net/ipv4/ping_group_range": "5 6"});
            spec["linux"]["sysctl"] = sysctl;
        });
    assert_eq!(other.run().ok(), "5\t6\n90\n8000-8010\n");
}

#[test]
fn parameters_of_an_interface_hold_in_the_guest() {
    let wire = Wire::new();
    let parameters = [("disable_ipv6", "1"), ("accept_ra", "0"), ("autoconf", "0")];
    wire.beside_pod(|| {
        for (name, value) in parameters {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/eth0/{name}"), value).unwrap();
        }
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
    });
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    let read = "cd /proc/sys/net/ipv6/conf; cat eth0/disable_ipv6 eth0/accept_ra eth0/autoconf lo/disable_ipv6";
    assert_eq!(exec(&bundle, read), "1\n0\n0\n1\n");
    assert_eq!(exec(&bundle, "ip -6 addr"), "");
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
}

#[test]
fn parameters_of_the_specification_allow_pings_without_privileges() {
    let wire = Wire::new();
    // As Docker and containerd's CRI plugin ask for it.
    let bundle = unprivileged(&wire).with(|spec| {
        let sysctl = serde_json::json!({"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"});
        spec["linux"]["sysctl"] = sysctl;
    });
    assert_eq!(bundle.run().ok(), "pinged\nlistened\n");
}
