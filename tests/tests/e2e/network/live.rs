//! A change in the namespace is followed while the container runs.

use super::super::harness::eventually;
use super::*;

fn seen(bundle: &Bundle, script: &str) -> bool {
    let found = bundle.cloister(["exec", "pod", "sh", "-c", script]).run();
    found.status.code() == Some(0)
}

#[test]
fn interfaces_that_come_and_go() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    // `docker network connect`
    wire.add_veth("eth1", "peer1");
    wire.in_pod("addr add 10.78.0.2/24 dev eth1");
    wire.on_host("addr add 10.78.0.1/24 dev peer1");
    eventually("the second network answers", || {
        seen(&bundle, "ping -c 1 -w 5 10.78.0.1")
    });
    // `docker network disconnect`
    wire.in_pod("link delete eth1");
    eventually("the second network is gone", || {
        seen(&bundle, "! test -e /sys/class/net/eth1")
    });
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
    // The slot is free again, and so is the name.
    wire.add_veth("eth1", "peer1");
    wire.in_pod("addr add 10.79.0.2/24 dev eth1");
    wire.on_host("addr add 10.79.0.1/24 dev peer1");
    eventually("the third network answers", || {
        seen(&bundle, "ping -c 1 -w 5 10.79.0.1")
    });
}

#[test]
fn addresses_routes_and_mtu_that_change() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    wire.in_pod("addr add 10.77.0.3/24 dev eth0");
    eventually("the address is there", || {
        seen(&bundle, "ip addr show eth0 | grep -q 10.77.0.3/24")
    });
    wire.in_pod("addr del 10.77.0.3/24 dev eth0");
    eventually("the address is gone", || {
        seen(&bundle, "! ip addr show eth0 | grep -q 10.77.0.3/24")
    });
    wire.in_pod("route add 192.0.2.0/24 via 10.77.0.1");
    eventually("the route is there", || {
        seen(&bundle, "ip route | grep -q 192.0.2.0/24")
    });
    wire.in_pod("route replace default via 10.77.0.5");
    eventually("the route leads elsewhere", || {
        seen(
            &bundle,
            "ip route | grep -q 'default via 10.77.0.5' && ! ip route | grep -q 'default via 10.77.0.1'",
        )
    });
    wire.in_pod("link set eth0 mtu 1400");
    eventually("the MTU is smaller", || {
        seen(&bundle, "ip link show eth0 | grep -q 'mtu 1400'")
    });
    // More than it had in the beginning.
    wire.in_pod("link set eth0 mtu 1600");
    wire.on_host("link set peer0 mtu 1600");
    eventually("the MTU is larger", || {
        seen(&bundle, "ip link show eth0 | grep -q 'mtu 1600'")
    });
    exec(&bundle, &format!("ping -c 1 -w 20 -s 1560 {HOST}"));
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
}

#[test]
fn an_interface_that_cannot_be_had_stops_nothing_else() {
    let wire = Wire::new();
    for number in 1..4 {
        wire.add_veth(&format!("eth{number}"), &format!("peer{number}"));
    }
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    // One more than a virtual machine can have, and one of a kind that it cannot have.
    wire.add_veth("eth4", "peer4");
    wire.in_pod("addr add 10.81.0.2/24 dev eth4");
    wire.in_pod("route add 198.51.100.0/24 via 10.81.0.1");
    wire.in_pod("tuntap add tun7 mode tun");
    wire.in_pod("link set tun7 up");
    wire.in_pod("addr add 10.77.0.3/24 dev eth0");
    eventually("the address is there", || {
        seen(&bundle, "ip addr show eth0 | grep -q 10.77.0.3/24")
    });
    exec(&bundle, "! test -e /sys/class/net/eth4");
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
    // There is room for it now.
    wire.in_pod("link delete eth3");
    eventually("the address of what came late is there", || {
        seen(&bundle, "ip addr show eth4 | grep -q 10.81.0.2/24")
    });
    eventually("and its route", || {
        seen(&bundle, "ip route | grep -q 198.51.100.0/24")
    });
}

#[test]
fn a_link_that_goes_down_and_comes_up() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    wire.on_host("link set peer0 down");
    eventually("the guest has no carrier", || {
        seen(&bundle, "test \"$(cat /sys/class/net/eth0/carrier)\" = 0")
    });
    wire.on_host("link set peer0 up");
    eventually("the guest has a carrier", || {
        seen(&bundle, "test \"$(cat /sys/class/net/eth0/carrier)\" = 1")
    });
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
}

#[test]
fn what_the_container_has_made_itself_stays() {
    let wire = Wire::new();
    let bundle = wire
        .bundle(&["sleep", "1000"])
        .with(|spec| grant(spec, &["CAP_NET_ADMIN"]));
    start(&bundle);
    // A bridge of its own, as Docker in the container makes one.
    exec(
        &bundle,
        "ip link add own0 type bridge && ip addr add 10.99.0.1/24 dev own0 && ip link set own0 up && ip route add 192.0.2.0/24 via 10.77.0.9",
    );
    wire.in_pod("addr add 10.77.0.3/24 dev eth0");
    eventually("the address is there", || {
        seen(&bundle, "ip addr show eth0 | grep -q 10.77.0.3/24")
    });
    exec(
        &bundle,
        "ip addr show own0 | grep -q 10.99.0.1/24 && ip route | grep -q 'via 10.77.0.9'",
    );
}
