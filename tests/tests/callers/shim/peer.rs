//! A peer in containerd's place: the bootstrap of containerd 2.3, which no package has yet, and the task service's
//! answers that `ctr` does not show.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::{self, Code, context};
use containerd_shim_protos::{Client, TaskClient};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use crate::harness::{
    Cmd, LIMIT, Machine, afterwards, busybox_rootfs, eventually, report_logs, runtime,
};

use super::PROGRAM;

const ID: &str = "peer";
const NAMESPACE: &str = "peers";

/// A bundle, and the shim that was started in it.
struct Peer {
    machine: Machine,
    dir: tempfile::TempDir,
    address: String,
    client: Client,
    tasks: TaskClient,
}

impl Peer {
    /// Starts a shim for a container that executes `script`.
    fn new(script: &str) -> Self {
        let machine = Machine::alone(|| {
            // What shims share, and keep.
            let state = Path::new("/run/containerd/cloister").join(NAMESPACE);
            fs::create_dir_all(state).expect("a directory");
        });
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = dir.path();
        Cmd::new(runtime())
            .args([Path::new("spec"), Path::new("--bundle"), bundle])
            .run()
            .ok();
        let text = fs::read(bundle.join("config.json")).expect("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["root"] = json!({"path": busybox_rootfs(), "readonly": true});
        fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        fs::write(bundle.join("log"), "").expect("the log");
        for stream in ["stdin", "stdout", "stderr"] {
            let fifo = bundle.join(stream);
            mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).expect("a FIFO");
        }
        let result = bootstrap(bundle);
        assert_eq!((result.version, &*result.protocol), (3, "ttrpc"));
        let client = Client::connect(&result.address).expect("the shim's socket");
        Self {
            machine,
            dir,
            address: result.address,
            tasks: TaskClient::new(client.clone()),
            client,
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn creation(&self) -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: ID.into(),
            bundle: self.dir.path().display().to_string(),
            stdin: self.path("stdin"),
            stdout: self.path("stdout"),
            stderr: self.path("stderr"),
            ..Default::default()
        }
    }

    fn status(&self, exec_id: &str) -> api::Status {
        let request = api::StateRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let state = self.tasks.state(limit(), &request).expect("a state");
        state.status.enum_value().expect("a status that is known")
    }

    fn start(&self, exec_id: &str) -> ttrpc::Result<api::StartResponse> {
        let request = api::StartRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.tasks.start(limit(), &request)
    }

    fn kill(&self, signal: u32) -> ttrpc::Result<api::Empty> {
        let request = api::KillRequest {
            id: ID.into(),
            signal,
            ..Default::default()
        };
        self.tasks.kill(limit(), &request)
    }

    fn delete(&self, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.tasks.delete(limit(), &request)
    }

    fn stats(&self) -> Metrics {
        let request = api::StatsRequest {
            id: ID.into(),
            ..Default::default()
        };
        let stats = self.tasks.stats(limit(), &request).expect("figures").stats;
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
        Metrics::parse_from_bytes(&stats.value).expect("Metrics")
    }

    fn shim_pid(&self) -> i32 {
        let pid = fs::read_to_string(self.path("shim.pid")).expect("the shim's pid");
        pid.trim().parse().expect("a pid")
    }

    /// Ends the shim, and asserts that it does.
    fn end(&self) {
        let pid = self.shim_pid();
        let request = api::ShutdownRequest {
            id: ID.into(),
            ..Default::default()
        };
        self.tasks.shutdown(limit(), &request).expect("an end");
        eventually("the shim has ended", || {
            !Path::new("/proc").join(pid.to_string()).exists()
        });
        assert!(!socket(&self.address).exists());
    }

    /// Tells what there is to know of a failure, and takes away what is left after it.
    fn give_up(&self) {
        eprintln!("=== the shim's log\n{}", self.log());
        report_logs();
        super::kill(self.shim_pid());
        Cmd::new(PROGRAM)
            .args(["-namespace", NAMESPACE, "-id", ID, "delete"])
            .dir(self.dir.path())
            .run();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            afterwards(|| self.give_up());
            return;
        }
        self.end();
        fs::remove_dir_all(self.dir.path()).expect("the bundle");
        self.machine.assert_clean(|| ());
    }
}

fn socket(address: &str) -> PathBuf {
    let path = address.strip_prefix("unix://");
    path.expect("a socket's address").into()
}

fn bootstrap(bundle: &Path) -> BootstrapResult {
    let sockets = bundle.join("s");
    let params = BootstrapParams {
        instance_id: ID.into(),
        namespace: NAMESPACE.into(),
        containerd_version: "2.3.0".into(),
        // Nobody listens there.
        containerd_ttrpc_address: bundle.join("nobody.ttrpc").display().to_string(),
        containerd_grpc_address: bundle.join("nobody").display().to_string(),
        containerd_binary: "/usr/bin/containerd".into(),
        socket_dir: Some(sockets.display().to_string()),
        ..Default::default()
    };
    let started = Cmd::new(PROGRAM)
        .args(["start"])
        .dir(bundle)
        .input(params.write_to_bytes().expect("a message"))
        .run();
    assert_eq!(started.status.code(), Some(0), "{started}");
    let result = BootstrapResult::parse_from_bytes(&started.stdout).expect("BootstrapResult");
    assert_eq!(socket(&result.address).parent(), Some(&*sockets));
    result
}

fn limit() -> context::Context {
    context::with_duration(LIMIT)
}

/// Asserts that a call was refused so.
fn refused<T: Debug>(result: ttrpc::Result<T>, code: Code, words: &str) {
    match result.expect_err("a call that cannot be followed") {
        ttrpc::Error::RpcStatus(status) => {
            assert_eq!(status.code.enum_value(), Ok(code), "{status:?}");
            assert!(status.message.contains(words), "{status:?}");
        }
        error => panic!("{error}"),
    }
}

#[test]
fn bootstrap_of_containerd_2_3() {
    let peer = Peer::new("true");
    // Another container of the same group gets the same shim.
    assert_eq!(bootstrap(peer.dir.path()).address, peer.address);
    let pid = u32::try_from(peer.shim_pid()).expect("a pid");
    // The service has two names.
    let request = api::ConnectRequest::default();
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let response = peer.client.request(ttrpc::Request {
            service: service.into(),
            method: "Connect".into(),
            payload: request.write_to_bytes().expect("a message"),
            timeout_nano: limit().timeout_nano,
            ..Default::default()
        });
        let payload = response.expect("an answer").payload;
        let answer = api::ConnectResponse::parse_from_bytes(&payload).expect("an answer");
        assert_eq!((answer.shim_pid, answer.task_pid), (pid, 0), "{service}");
    }
}

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
    refused(restored, Code::UNIMPLEMENTED, "restore is not supported");
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
    let nonsense = peer.tasks.update(limit(), &update(json!("nonsense")));
    refused(nonsense, Code::UNKNOWN, "");
}
