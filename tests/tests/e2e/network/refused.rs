//! What cannot be is refused by name, and nothing is left behind.

use super::super::harness::eventually;
use super::*;

/// Runs a bundle that must not start, and looks at what is left.
fn refused(wire: &Wire, parts: &[&str]) {
    let before = wire.state();
    let bundle = wire.bundle(&["true"]);
    bundle.run().fails(1, parts);
    assert_eq!(wire.state(), before);
    assert_eq!(bundle.ids(), [""; 0]);
}

#[test]
fn more_interfaces_than_slots() {
    let wire = Wire::bare();
    for number in 0..5 {
        wire.add_veth(&format!("net{number}"), &format!("peer{number}"));
    }
    refused(&wire, &["interface net4", "4 network interfaces at most"]);
}

#[test]
fn an_ipvlan_device_in_layer_3_mode() {
    let wire = Wire::bare();
    wire.on_host("link add up0 type dummy");
    let pod = &wire.pod;
    wire.on_host(&format!(
        "link add ip0 link up0 netns {pod} type ipvlan mode l3"
    ));
    wire.in_pod("link set ip0 up");
    refused(&wire, &["interface ip0", "layer 3 mode", "use mode l2"]);
}

#[test]
fn a_tun_device() {
    let wire = Wire::bare();
    wire.in_pod("tuntap add tun7 mode tun");
    wire.in_pod("link set tun7 up");
    refused(&wire, &["interface tun7", "no Ethernet device"]);
}

#[test]
fn a_machine_without_the_tun_driver() {
    let wire = Wire::new();
    let before = wire.state();
    let bundle = wire.bundle(&["true"]);
    let script =
        "mount -t tmpfs none /dev/net && exec cloister --root \"$0\" run --bundle \"$1\" test";
    let run = Cmd::new("unshare").args(["-m", "sh", "-c", script]);
    let run = run.args([bundle.state_root(), bundle.path()]).run();
    run.fails(1, &["cannot open /dev/net/tun", "tun driver"]);
    assert_eq!(wire.state(), before);
    assert_eq!(bundle.ids(), [""; 0]);
}

#[test]
fn a_tap_that_the_kernel_refuses_to_make() {
    let wire = Wire::new();
    let before = wire.state();
    let bundle = wire.bundle(&["true"]);
    // Everything that root may do but this.
    let mut args = vec!["--bounding-set", "-net_admin", "cloister", "--root"];
    let (root, path) = (bundle.state_root(), bundle.path());
    args.extend([root.to_str().unwrap(), "run", "--bundle"]);
    args.extend([path.to_str().unwrap(), "test"]);
    let run = Cmd::new("setpriv").args(args).run();
    run.fails(
        1,
        &[
            "cannot make the tap cloister0 for interface eth0",
            "Operation not permitted",
        ],
    );
    assert_eq!(wire.state(), before);
    assert_eq!(bundle.ids(), [""; 0]);
}

#[test]
fn an_interface_of_another_virtual_machine() {
    let wire = Wire::new();
    // As it is connected to a virtual machine whose monitor is not in the namespace: the mark of another container.
    wire.in_pod("tuntap add cloister0 mode tap");
    wire.tc("qdisc add dev eth0 ingress");
    wire.tc(
        "filter add dev eth0 ingress pref 49413 matchall action mirred egress redirect dev cloister0 cookie 0011223344556677",
    );
    refused(
        &wire,
        &[
            "interface eth0",
            "another virtual machine is connected to it",
        ],
    );
}

#[test]
fn a_tap_whose_name_is_taken() {
    let wire = Wire::new();
    wire.in_pod("tuntap add cloister0 mode tap");
    refused(&wire, &["cannot make the tap cloister0 for interface eth0"]);
}

#[test]
fn a_namespace_of_a_process_outside() {
    let wire = Wire::new();
    let other = Cmd::new("ip")
        .args(["netns", "exec", &wire.pod, "sleep", "1000"])
        .spawn();
    let pid = other.pid();
    let path = wire.path().display().to_string();
    let bundle = wire.bundle(&["true"]);
    eventually("it is in the namespace", || {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    let parts = [
        "linux.namespaces[",
        ".path: refused",
        &path,
        &format!("process {pid} (sleep)"),
    ];
    bundle.run().fails(1, &parts);
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    other.wait();
    bundle.run().ok();
}

#[test]
fn the_network_of_the_machine() {
    let bundle = Bundle::new(&["true"]).with(|spec| join(spec, "/proc/1/ns/net"));
    bundle
        .run()
        .fails(1, &["linux.namespaces[", "the network of this machine"]);
}

#[test]
fn a_bandwidth_that_is_none() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["true"]).with(|spec| {
        spec["annotations"] = serde_json::json!({"kubernetes.io/egress-bandwidth": "fast"});
    });
    bundle
        .run()
        .fails(1, &["kubernetes.io/egress-bandwidth", "is no bandwidth"]);
    assert_eq!(bundle.ids(), [""; 0]);
}
