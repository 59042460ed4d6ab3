//! The task service's answers that `ctr` does not show: what is refused and with which code, and a task whose
//! streams have nobody at their other ends.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::harness::eventually;

use super::peer::{ID, Peer, limit, refused};

#[test]
fn what_cannot_be_is_refused() {
    let peer = Peer::new("true");
    let create = |change: fn(&mut api::CreateTaskRequest)| {
        let mut request = peer.creation();
        change(&mut request);
        peer.tasks.create(limit(), &request)
    };
    let nowhere = create(|request| request.bundle = "/no/such/bundle".into());
    refused(nowhere, Code::NOT_FOUND, "/no/such/bundle");
    let restored = create(|request| request.checkpoint = "/some/checkpoint".into());
    let words = "checkpoint \"/some/checkpoint\": restore is not supported";
    refused(restored, Code::UNIMPLEMENTED, words);
    let restored = create(|request| request.parent_checkpoint = "sha256:abc".into());
    let words = "parent_checkpoint \"sha256:abc\": restore is not supported";
    refused(restored, Code::UNIMPLEMENTED, words);
    let chosen = create(|request| {
        request.options = MessageField::some(Any {
            type_url: "kata.Options".into(),
            ..Default::default()
        });
    });
    refused(chosen, Code::INVALID_ARGUMENT, "kata.Options");
    let streamed = create(|request| request.stdout = "http://host/stream".into());
    refused(streamed, Code::UNKNOWN, "http://host/stream");
    refused(peer.start(""), Code::NOT_FOUND, ID);
    refused(peer.kill(9), Code::NOT_FOUND, ID);
    refused(peer.delete(""), Code::NOT_FOUND, ID);
    let wait = api::WaitRequest {
        id: ID.into(),
        ..Default::default()
    };
    refused(peer.tasks.wait(limit(), &wait), Code::NOT_FOUND, ID);
}

#[test]
fn a_task_from_its_creation_to_its_end() {
    let peer = Peer::new("touch /dev/shm/up; cat; exit 7");
    // Nobody has the other ends of its FIFOs.
    let pid = peer
        .tasks
        .create(limit(), &peer.creation())
        .expect("a task")
        .pid;
    assert!(
        Path::new("/proc")
            .join(pid.to_string())
            .join("ns/net")
            .exists()
    );
    assert_eq!(peer.status(""), api::Status::CREATED);
    let again = peer.tasks.create(limit(), &peer.creation());
    refused(again, Code::ALREADY_EXISTS, "already exists");
    assert_eq!(peer.start("").expect("a start").pid, pid);
    refused(
        peer.start(""),
        Code::FAILED_PRECONDITION,
        "has been started",
    );
    refused(
        peer.delete(""),
        Code::FAILED_PRECONDITION,
        "must be stopped",
    );
    refused(peer.kill(1000), Code::INVALID_ARGUMENT, "1000 is no signal");
    let checkpoint = api::CheckpointTaskRequest {
        id: ID.into(),
        ..Default::default()
    };
    let checkpointed = peer.tasks.checkpoint(limit(), &checkpoint);
    refused(
        checkpointed,
        Code::UNIMPLEMENTED,
        "checkpoint is not supported",
    );
    let size = api::ResizePtyRequest {
        id: ID.into(),
        width: 80,
        height: 25,
        ..Default::default()
    };
    // As with runc's shim: what has no terminal has no size.
    peer.tasks
        .resize_pty(limit(), &size)
        .expect("nothing to do");

    executed(&peer);
    updated(&peer);

    // containerd calls it after every task's end, and there may be others.
    let shutdown = api::ShutdownRequest {
        id: ID.into(),
        now: true,
        ..Default::default()
    };
    peer.tasks.shutdown(limit(), &shutdown).expect("an answer");
    assert_eq!(peer.status(""), api::Status::RUNNING);
    // Several wait for the end, which that of its standard input brings.
    let wait = api::WaitRequest {
        id: ID.into(),
        ..Default::default()
    };
    let waiters = [(); 3].map(|()| {
        let (tasks, wait) = (peer.tasks.clone(), wait.clone());
        std::thread::spawn(move || tasks.wait(limit(), &wait))
    });
    let close = api::CloseIORequest {
        id: ID.into(),
        stdin: true,
        ..Default::default()
    };
    peer.tasks
        .close_io(limit(), &close)
        .expect("an end of its input");
    for waiter in waiters {
        let ended = waiter.join().expect("a thread").expect("an end");
        assert_eq!(ended.exit_status, 7);
        assert!(ended.exited_at.is_some());
    }
    assert_eq!(peer.status(""), api::Status::STOPPED);
    refused(peer.kill(9), Code::NOT_FOUND, "already finished");
    let deleted = peer.delete("").expect("a deletion");
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    refused(peer.delete(""), Code::NOT_FOUND, ID);
    // containerd is away: events are given up with a word, one after the other.
    eventually("the first event is dropped", || {
        peer.log().contains("event /tasks/create is dropped")
    });
}

/// A process beside it.
fn executed(peer: &Peer) {
    let exec = |name: &str| api::ExecProcessRequest {
        id: ID.into(),
        exec_id: name.into(),
        spec: MessageField::some(Any {
            value: json!({
                "args": ["sh", "-c", "until test -e /dev/shm/up; do sleep 0.1; done; exit 5"],
                "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
            })
            .to_string()
            .into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    peer.tasks.exec(limit(), &exec("x")).expect("a process");
    let again = peer.tasks.exec(limit(), &exec("x"));
    refused(again, Code::ALREADY_EXISTS, "already exists");
    let unnamed = peer.tasks.exec(limit(), &exec("a/b"));
    refused(unnamed, Code::INVALID_ARGUMENT, "a/b");
    assert_eq!(peer.status("x"), api::Status::CREATED);
    let pid = peer.start("x").expect("a start").pid;
    let wait = api::WaitRequest {
        id: ID.into(),
        exec_id: "x".into(),
        ..Default::default()
    };
    assert_eq!(
        peer.tasks.wait(limit(), &wait).expect("an end").exit_status,
        5
    );
    let deleted = peer.delete("x").expect("a deletion");
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 5));
    refused(peer.delete("x"), Code::NOT_FOUND, "x");
    refused(peer.start("x"), Code::NOT_FOUND, "x");
}

/// Its limits while it runs.
fn updated(peer: &Peer) {
    let update = |resources: serde_json::Value| api::UpdateTaskRequest {
        id: ID.into(),
        resources: MessageField::some(Any {
            value: resources.to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let limits = update(json!({"memory": {"limit": 50 << 20}, "pids": {"limit": 77}}));
    peer.tasks.update(limit(), &limits).expect("other limits");
    let stats = peer.stats();
    // It is with the virtual machine's overhead.
    assert!(
        (50 << 20..512 << 20).contains(&stats.memory.usage_limit),
        "{stats}"
    );
    assert_eq!(stats.pids.limit, 77);
    assert!(stats.memory.usage > 0 && stats.cpu.usage_usec > 0 && stats.pids.current > 0);
    let annotated = |name: &str| {
        let mut request = update(json!({"pids": {"limit": 78}}));
        request.annotations.insert(name.into(), "2".into());
        peer.tasks.update(limit(), &request)
    };
    // A setting of a machine that runs is not changed, and nothing else is with it.
    let chosen = annotated("io.cloister.vcpus");
    refused(
        chosen,
        Code::INVALID_ARGUMENT,
        "annotations[\"io.cloister.vcpus\"]",
    );
    assert_eq!(peer.stats().pids.limit, 77);
    annotated("example.com/anything").expect("other limits");
    assert_eq!(peer.stats().pids.limit, 78);
    let log = peer.log();
    assert!(log.contains("example.com/anything"), "{log}");
    let nonsense = peer.tasks.update(limit(), &update(json!("nonsense")));
    refused(nonsense, Code::UNKNOWN, "");
}
