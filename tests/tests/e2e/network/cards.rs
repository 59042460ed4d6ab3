//! Network cards: interfaces that are no virtual device of the kernel's. The bed has two of them, on one wire.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::super::harness::{add_program, eventually};
use super::*;

/// As `tests/src/bin/bed/host/machine.rs` has them.
const CARD: &str = "52:54:00:be:d0:01";
const OTHER_CARD: &str = "52:54:00:be:d0:02";

/// The cards, for one test alone; nothing where a machine has none that nobody uses.
fn cards() -> Option<MutexGuard<'static, ()>> {
    static CARDS: Mutex<()> = Mutex::new(());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    if host.trim() != "bed" {
        eprintln!("not in the test bed: there are no network cards to lend");
        return None;
    }
    let cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    for driver in ["e1000", "virtio_net"] {
        Cmd::new("modprobe").args([driver]).run().ok();
    }
    Some(cards)
}

/// The name that the machine's own namespace has for a card, once it is there.
fn name(mac: &str) -> String {
    let mut found = None;
    eventually("the card is this machine's", || {
        let interfaces = std::fs::read_dir("/sys/class/net").unwrap();
        found = interfaces.flatten().find(|interface| {
            let address = std::fs::read_to_string(interface.path().join("address"));
            address.is_ok_and(|address| address.trim() == mac)
        });
        found.is_some()
    });
    let found = found.expect("it was found");
    found.file_name().into_string().unwrap()
}

/// Lends the other card to a host's namespace, where it has an address.
fn lend_other(wire: &Wire) {
    let lend = ["link", "set", &name(OTHER_CARD), "netns", &wire.host];
    let lend = Cmd::new("ip").args(lend).args(["name", "card0", "up"]);
    lend.run().ok();
    wire.on_host(&format!("addr add {HOST}/24 dev card0"));
}

#[test]
fn a_card_in_the_namespace_is_the_guests() {
    let Some(_cards) = cards() else { return };
    let wire = Wire::bare();
    lend_other(&wire);
    let lend = ["link", "set", &name(CARD), "netns", &wire.pod];
    let lend = Cmd::new("ip").args(lend).args(["name", "eth0", "up"]);
    lend.run().ok();
    wire.in_pod(&format!("addr add {POD}/24 brd + dev eth0"));
    eventually("the card has a carrier", || {
        wire.in_pod("-o link show eth0").contains("LOWER_UP")
    });
    let before = wire.state();
    let bundle = wire.bundle(&["/peer", "echo", "[::]:7"]);
    add_program(&bundle.rootfs(), Path::new(PEER), "/peer");
    start(&bundle);
    let link = exec(&bundle, "ip -o addr show eth0; ip -o link show eth0");
    assert!(link.contains(POD) && link.contains(CARD), "{link}");
    exec(&bundle, &format!("ping -c 1 -w 20 {HOST}"));
    let stream = wire.host_command(PEER);
    stream.args(["stream", &format!("{POD}:7"), "4"]).run().ok();
    bundle.cloister(["delete", "--force", "pod"]).run().ok();
    assert_eq!(wire.state(), before);
    // The kernel gives it back with the end of the namespace.
    drop(wire);
    name(CARD);
    name(OTHER_CARD);
}

#[test]
fn a_card_is_moved_in_and_comes_back() {
    let Some(_cards) = cards() else { return };
    let wire = Wire::bare();
    lend_other(&wire);
    let card = name(CARD);
    let ip = |words: &str| Cmd::new("ip").args(words.split(' ')).run().ok();
    ip(&format!("addr add {POD}/24 brd + dev {card}"));
    let script = format!("ip -o addr show eth7; ip -o link show eth7; ping -c 1 -w 20 {HOST}");
    let bundle = Bundle::new(&["sh", "-c", &script]).with(|spec| {
        grant(spec, &["CAP_NET_RAW"]);
        spec["linux"]["netDevices"] = json!({&card: {"name": "eth7"}});
    });
    let out = bundle.run().ok();
    assert!(out.contains(POD) && out.contains(CARD), "{out}");
    // Under the name that it has got: the kernel knows no other.
    assert_eq!(name(CARD), "eth7");
}
