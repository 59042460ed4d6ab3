//! The sandbox service, asked method by method: containerd asks for some of them only now and then.

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::ttrpc::{self, Code};

use super::peer::{ID, Peer, limit, refused};

#[test]
fn nine_methods() {
    let peer = Peer::new("true");
    let client = SandboxClient::new(peer.client());
    let creation = api::CreateSandboxRequest {
        sandbox_id: ID.into(),
        bundle_path: peer.bundle().display().to_string(),
        ..Default::default()
    };
    let start = api::StartSandboxRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    let status = |verbose| api::SandboxStatusRequest {
        sandbox_id: ID.into(),
        verbose,
        ..Default::default()
    };
    let ping = api::PingRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    let metrics = api::SandboxMetricsRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    refused(client.start_sandbox(limit(), &start), Code::NOT_FOUND, ID);
    refused(client.ping_sandbox(limit(), &ping), Code::NOT_FOUND, ID);
    refused(
        client.sandbox_metrics(limit(), &metrics),
        Code::NOT_FOUND,
        ID,
    );
    client
        .create_sandbox(limit(), &creation)
        .expect("a sandbox");
    let again = client.create_sandbox(limit(), &creation);
    refused(again, Code::ALREADY_EXISTS, "already exists");
    let started = client.start_sandbox(limit(), &start).expect("a start");
    assert_ne!(started.pid, 0);
    let platform = api::PlatformRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    let platform = client.platform(limit(), &platform).expect("a platform");
    assert_eq!(
        (&*platform.platform.os, &*platform.platform.architecture),
        ("linux", "amd64")
    );
    client.ping_sandbox(limit(), &ping).expect("it is there");
    let seen = client
        .sandbox_status(limit(), &status(true))
        .expect("a status");
    assert_eq!((seen.pid, &*seen.state), (started.pid, "SANDBOX_READY"));
    assert!(seen.info.contains_key("info"), "{seen}");
    assert_eq!(seen.created_at, started.created_at);
    let used = client.sandbox_metrics(limit(), &metrics).expect("figures");
    assert_eq!(used.metrics.id, ID);
    let used = Metrics::parse_from_bytes(&used.metrics.data.value).expect("Metrics");
    assert!(
        used.memory.usage > 0 && used.cpu.usage_usec > 0 && used.pids.current > 0,
        "{used}"
    );
    let wait = api::WaitSandboxRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    let (waiter, waited) = (client.clone(), wait.clone());
    let waiter = std::thread::spawn(move || waiter.wait_sandbox(limit(), &waited));
    let stop = api::StopSandboxRequest {
        sandbox_id: ID.into(),
        timeout_secs: 30,
        ..Default::default()
    };
    client.stop_sandbox(limit(), &stop).expect("a stop");
    let ended = waiter.join().expect("a thread").expect("an end");
    assert!(ended.exited_at.is_some());
    client.stop_sandbox(limit(), &stop).expect("it has stopped");
    let seen = client
        .sandbox_status(limit(), &status(false))
        .expect("a status");
    assert_eq!(&*seen.state, "SANDBOX_NOTREADY");
    refused(
        client.sandbox_metrics(limit(), &metrics),
        Code::NOT_FOUND,
        "has ended",
    );
    let shutdown = api::ShutdownSandboxRequest {
        sandbox_id: ID.into(),
        ..Default::default()
    };
    let pid = peer.shim_pid();
    client.shutdown_sandbox(limit(), &shutdown).expect("an end");
    peer.has_ended(pid);
}

/// What other versions of the service have, or are to have, is refused by its name.
#[test]
fn methods_that_are_not_there() {
    let peer = Peer::new("true");
    for method in [
        "PortForward",
        "CheckpointSandbox",
        "RestoreSandbox",
        "UpdateSandbox",
    ] {
        let asked = peer.client().request(ttrpc::Request {
            service: "containerd.runtime.sandbox.v1.Sandbox".into(),
            method: method.into(),
            timeout_nano: limit().timeout_nano,
            ..Default::default()
        });
        refused(asked, Code::UNIMPLEMENTED, method);
    }
}
