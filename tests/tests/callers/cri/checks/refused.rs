//! Pods that cannot be, and what their callers are told: `kubectl describe pod` shows it.

use protobuf::MessageField;

use crate::cri::client::{Refusal, call};
use crate::cri::daemon::{Node, SOCKET, WRONG_CONFIG};
use crate::cri::messages as cri;
use crate::cri::pod::Case;

fn run(handler: &str, config: cri::PodSandboxConfig) -> Refusal {
    let request = cri::RunPodSandboxRequest {
        config: MessageField::some(config),
        runtime_handler: handler.to_owned(),
        ..cri::RunPodSandboxRequest::default()
    };
    let answer = call::<cri::RunPodSandboxResponse>(SOCKET, "RunPodSandbox", &request);
    answer.expect_err("the pod cannot be")
}

pub(crate) fn host_namespaces(case: &Case) {
    for name in ["network", "pid", "ipc"] {
        // containerd 2.1 crashes there (core/runtime/v2/bundle.go: NewBundle), before the shim is asked.
        if name == "network" && case.node == Node::V2Shim {
            continue;
        }
        let mut config = case.config("host");
        let linux = config.linux.mut_or_insert_default();
        let security = linux.security_context.mut_or_insert_default();
        let modes = security.namespace_options.mut_or_insert_default();
        let mode = match name {
            "network" => &mut modes.network,
            "pid" => &mut modes.pid,
            _ => &mut modes.ipc,
        };
        *mode = cri::NamespaceMode::NODE.into();
        let refused = run(case.node.handler(), config);
        let expected = format!("the pod's {name} namespace is to be the machine's");
        assert!(refused.message.contains(&expected), "{refused}");
    }
}

pub(crate) fn wrong_configuration(case: &Case) {
    let refused = run("cloister-wrong", case.config("wrong"));
    for part in [WRONG_CONFIG, "colour"] {
        assert!(refused.message.contains(part), "no {part}: {refused}");
    }
}

pub(crate) fn unknown_handler(case: &Case) {
    let refused = run("cloistered", case.config("unknown"));
    assert!(refused.message.contains("cloistered"), "{refused}");
}

/// What this machine's administrator has not allowed, pods cannot choose.
pub(crate) fn annotations(case: &Case) {
    let name = "io.cloister.memory_mib";
    let mut config = case.config("chooses");
    config.annotations = [(name.to_owned(), "512".to_owned())].into();
    let refused = run(case.node.handler(), config);
    for part in [name, "allowed_annotations"] {
        assert!(refused.message.contains(part), "no {part}: {refused}");
    }
}
