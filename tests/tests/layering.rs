//! The arrows between the crates of the workspace point one way.
//!
//! A VMM that knew the agent's protocol, or a runtime that linked the VMM, would put a hostile
//! guest's parsers into processes that hold the host's privileges. `cargo metadata` knows every
//! dependency, so this is checked rather than remembered.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it expects"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate of ours may depend on, directly, of the others. A crate that is not listed
/// here fails the test.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("cloister-vmm-api", &[]),
    ("cloister-virtio", &[]),
    ("cloister-vmm", &["cloister-vmm-api", "cloister-virtio"]),
    ("cloister-fs", &["cloister-vmm-api"]),
    ("capng", &[]),
    ("cloister-protocol", &[]),
    ("cloister-spec", &[]),
    ("cloister-netlink", &[]),
    ("cloister-idmap", &[]),
    ("cloister-container", &["cloister-spec", "cloister-idmap"]),
    (
        "cloister-agent",
        &[
            "cloister-protocol",
            "cloister-container",
            "cloister-spec",
            "cloister-netlink",
        ],
    ),
    (
        "cloister",
        &[
            "cloister-vmm-api",
            "cloister-protocol",
            "cloister-spec",
            "cloister-netlink",
            "cloister-idmap",
        ],
    ),
    ("cloister-guest-image", &[]),
    ("cloister-tests", &[]),
];

/// Dependencies from outside that a crate must not reach, not even through others, and why.
const FORBIDDEN: [(&str, &str, &str); 6] = [
    (
        "cloister-virtio",
        "kvm-ioctls",
        "devices do not know the hypervisor",
    ),
    (
        "cloister-vmm",
        "tokio",
        "the VMM runs on plain threads and epoll",
    ),
    (
        "cloister-vmm",
        "ttrpc",
        "the VMM knows nothing of containers",
    ),
    (
        "cloister-vmm-api",
        "kvm-bindings",
        "the contract is not the implementation",
    ),
    (
        "cloister",
        "kvm-ioctls",
        "the runtime runs no VM in its own process",
    ),
    (
        "cloister",
        "vm-memory",
        "the runtime never maps guest memory",
    ),
];

struct Metadata {
    /// Package name to the names of its normal dependencies, ours and others'.
    normal: BTreeMap<String, BTreeSet<String>>,
    ours: BTreeSet<String>,
}

fn metadata() -> Metadata {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        // Packages for other platforms need not be on this machine.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let list = |value: &serde_json::Value| value.as_array().expect("an array").clone();
    let names: BTreeMap<String, String> = list(&json["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let ours = list(&json["workspace_members"])
        .iter()
        .map(|id| names[&text(id)].clone())
        .collect();
    let mut normal = BTreeMap::<String, BTreeSet<String>>::new();
    for node in list(&json["resolve"]["nodes"]) {
        let entry = normal.entry(names[&text(&node["id"])].clone()).or_default();
        for dep in list(&node["deps"]) {
            if list(&dep["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"].is_null())
            {
                entry.insert(names[&text(&dep["pkg"])].clone());
            }
        }
    }
    Metadata { normal, ours }
}

#[test]
fn our_crates_depend_only_as_drawn() {
    let metadata = metadata();
    let allowed: BTreeMap<_, BTreeSet<_>> = ALLOWED
        .iter()
        .map(|(name, deps)| (*name, deps.iter().copied().collect()))
        .collect();
    for name in &metadata.ours {
        let permitted = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is not in the table of permitted dependencies"));
        for dep in metadata.normal[name].intersection(&metadata.ours) {
            assert!(
                permitted.contains(dep.as_str()),
                "{name} must not depend on {dep}"
            );
        }
    }
}

#[test]
fn forbidden_dependencies_are_out_of_reach() {
    let metadata = metadata();
    for (name, forbidden, why) in FORBIDDEN {
        let mut reached = BTreeSet::new();
        let mut queue = vec![name.to_owned()];
        while let Some(next) = queue.pop() {
            if let Some(deps) = metadata.normal.get(&next) {
                for dep in deps {
                    if reached.insert(dep.clone()) {
                        queue.push(dep.clone());
                    }
                }
            }
        }
        assert!(
            !reached.contains(forbidden),
            "{name} reaches {forbidden}: {why}"
        );
    }
}

#[test]
fn one_vm_memory_generation_outside_the_file_server() {
    let metadata = metadata();
    // The lock file may hold two generations: the file server is a process of its own.
    assert!(!metadata.normal["cloister-vmm"].is_empty());
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "cloister-vmm",
            "-i",
            "vm-memory",
            "--locked",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        tree.status.success(),
        "cargo tree finds more than one vm-memory below cloister-vmm: {}",
        String::from_utf8_lossy(&tree.stderr)
    );
}
