//! Devices of the runtime's namespace that a container asks for (`linux.netDevices`).

use serde_json::json;

use super::super::harness::{Finished, eventually};
use super::*;

/// Namespaces with a veth pair in that of the host, where the runtime runs.
fn wire() -> Wire {
    let wire = Wire::bare();
    wire.on_host("link add up0 type veth peer name dev0");
    wire.on_host(&format!("addr add {HOST}/24 dev up0"));
    wire.on_host(&format!("addr add {POD}/24 brd + dev dev0"));
    wire.on_host(&format!("addr add {POD_IPV6}/64 dev dev0 nodad"));
    wire.on_host("link set up0 up");
    wire
}

fn asking(bundle: Bundle, devices: Value) -> Bundle {
    bundle.with(|spec| {
        grant(spec, &["CAP_NET_RAW"]);
        spec["linux"]["netDevices"] = devices;
    })
}

/// Runs a bundle from the host's namespace.
fn run(wire: &Wire, bundle: &Bundle) -> Finished {
    let command = wire.host_command("cloister").args(["--root"]);
    let command = command
        .args([bundle.state_root()])
        .args(["run", "--bundle"]);
    command.args([bundle.path()]).args(["test"]).run()
}

#[test]
fn a_device_is_moved_in_under_the_name_that_is_asked_for() {
    let wire = wire();
    let script = format!("ip -o addr show eth7; ping -c 1 -w 20 {HOST}");
    let bundle = Bundle::new(&["sh", "-c", &script]);
    let bundle = asking(bundle, json!({"dev0": {"name": "eth7"}}));
    let out = run(&wire, &bundle).ok();
    for kept in [POD, POD_IPV6, "brd 10.77.0.255"] {
        assert!(out.contains(kept), "{out}");
    }
    // A virtual device ends with the namespace that it is in, and its pair with it.
    eventually("the pair is gone", || {
        !wire.on_host("-o link").contains("up0")
    });
}

#[test]
fn a_namespace_that_somebody_has_made_keeps_the_device() {
    let wire = wire();
    let bundle = wire.bundle(&["ping", "-c", "1", "-w", "20", HOST]);
    let bundle = asking(bundle, json!({"dev0": {}}));
    run(&wire, &bundle).ok();
    assert!(wire.in_pod("-o addr show dev0").contains(POD));
}

#[test]
fn what_cannot_be_moved_is_named_and_nothing_is_moved() {
    let wire = wire();
    wire.in_pod("link add eth7 type dummy");
    let before = wire.state();
    for (devices, parts) in [
        (
            json!({"dev0": {"name": "eth7"}}),
            ["linux.netDevices[\\\"dev0\\\"].name", "eth7"],
        ),
        (
            json!({"dev0": {"name": "eth8"}, "dev9": {}}),
            ["linux.netDevices[\\\"dev9\\\"]", "no such network device"],
        ),
    ] {
        let bundle = asking(wire.bundle(&["true"]), devices);
        run(&wire, &bundle).fails(1, &parts);
        assert_eq!(wire.state(), before);
        assert!(wire.on_host("-o addr show dev0").contains(POD));
        assert_eq!(bundle.ids(), [""; 0]);
    }
}
