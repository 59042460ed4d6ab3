//! Pods: containerd's CRI plugin with the shim as a runtime handler, asked over its socket as the kubelet asks it.
//!
//! The newest version of containerd does every check, the others a few. With runc as the runtime under test
//! (`CLOISTER_TEST_RUNTIME`) they prove themselves, but for those of what virtual machines alone do: `size`, `growth`, `at_once`,
//! `kills`, `virtual_machine`, `of_a_network`, and what is refused.

mod bench;
mod checks;
mod client;
mod crio;
mod daemon;
mod pod;
mod websocket;

/// The messages of `proto/cri.proto`.
mod generated {
    #![allow(
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        missing_docs,
        unreachable_pub,
        dead_code,
        reason = "generated code; proto/cri.proto documents it"
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}
use generated::cri as messages;

/// Makes a test of each check, for one node.
macro_rules! node_checks {
    ($module:ident, $node:ident, $($theme:ident: $($check:ident),+;)+) => {
        mod $module {
            $(mod $theme {
                $(#[test]
                fn $check() {
                    use crate::cri::{checks, daemon::Node, pod::Case};
                    checks::$theme::$check(&Case::new(Node::$node));
                })+
            })+
        }
    };
}

// What differs between nodes: how containerd speaks to the shim, and who makes the sandbox.
node_checks! { v1_6, V1_6,
    containers: shared_namespaces, termination;
    exec: output_and_exit_code;
    faults: containerd, shim;
    network: address_and_traffic;
    refused: host_namespaces;
    streams: terminal;
}
node_checks! { upgraded, Upgraded,
    faults: upgrades;
}
node_checks! { v1_7, V1_7,
    containers: shared_namespaces;
    faults: containerd;
    install: daemon_set;
    page: kubernetes;
    settings: of_annotations;
    streams: attach;
}
node_checks! { v2_pauseless, V2Shim,
    containers: shared_namespaces, init_and_restart;
    faults: containerd, shim;
    figures: of_a_container, of_a_pod, size;
    network: address_and_traffic, names;
    refused: host_namespaces;
    settings: of_a_file, of_annotations;
}
node_checks! { v2_interface_3, V2Interface3,
    containers: shared_namespaces;
    faults: shim;
    interface: one_shim;
}
node_checks! { v2_streaming, V2Streaming,
    containers: init_and_restart;
    exec: output_and_exit_code, logs;
    faults: containerd;
    interface: streams;
}
// Everything.
node_checks! { v2, V2,
    containers: shared_namespaces, one_process_namespace, init_and_restart, termination, volumes, out_of_memory;
    exec: output_and_exit_code, limit, logs;
    faults: containerd, shim, virtual_machine;
    figures: of_a_container, of_a_pod, of_a_network, size, growth, update;
    install: daemon_set;
    kills: at_random;
    many: at_once;
    network: address_and_traffic, names, port_forward;
    page: kubernetes;
    refused: host_namespaces, wrong_configuration, unknown_handler, annotations;
    settings: of_a_file, of_annotations;
    security: users_and_groups, capabilities, privileged, seccomp, sysctls;
    streams: terminal, pipes, attach, port_forward;
}
