//! A peer in containerd's place, which speaks the bootstrap protocol of containerd 2.3: no package has that yet.

use std::cell::Cell;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{self, Code, context};
use containerd_shim_protos::{Client, TaskClient};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use crate::harness::{
    Cmd, LIMIT, Machine, afterwards, busybox_rootfs, eventually, report_logs, runtime,
};

use super::PROGRAM;

pub(super) const ID: &str = "peer";
pub(super) const NAMESPACE: &str = "peers";

/// A bundle, and the shim that was started in it.
pub(super) struct Peer {
    machine: Machine,
    dir: tempfile::TempDir,
    address: String,
    client: Client,
    /// Whether a check has seen the shim's end.
    has_ended: Cell<bool>,
    pub(super) tasks: TaskClient,
}

impl Peer {
    /// Starts a shim for a container that executes `script`.
    pub(super) fn new(script: &str) -> Self {
        Self::with(script, |_| ())
    }

    /// The same, for one whose specification is changed.
    pub(super) fn with(script: &str, change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let machine = alone();
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = dir.path();
        write_bundle(bundle, script, change);
        let (address, client) = connect(bundle);
        Self {
            machine,
            dir,
            address,
            tasks: TaskClient::new(client.clone()),
            client,
            has_ended: Cell::new(false),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn bundle(&self) -> &Path {
        self.dir.path()
    }

    /// Asserts that the shim, which was asked to, ends.
    pub(super) fn has_ended(&self, pid: i32) {
        assert!(!socket(&self.address).exists());
        await_end(pid);
        self.has_ended.set(true);
    }

    /// Starts a shim again, as for a new container of the same name.
    fn start_again(&mut self) {
        let (address, client) = connect(self.dir.path());
        assert_eq!(address, self.address);
        self.tasks = TaskClient::new(client.clone());
        self.client = client;
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(super) fn creation(&self) -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: ID.into(),
            bundle: self.dir.path().display().to_string(),
            stdin: self.path("stdin"),
            stdout: self.path("stdout"),
            stderr: self.path("stderr"),
            ..Default::default()
        }
    }

    pub(super) fn status(&self, exec_id: &str) -> api::Status {
        let request = api::StateRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let state = self.tasks.state(limit(), &request).expect("a state");
        state.status.enum_value().expect("a status that is known")
    }

    pub(super) fn start(&self, exec_id: &str) -> ttrpc::Result<api::StartResponse> {
        let request = api::StartRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.tasks.start(limit(), &request)
    }

    pub(super) fn kill(&self, signal: u32) -> ttrpc::Result<api::Empty> {
        let request = api::KillRequest {
            id: ID.into(),
            signal,
            ..Default::default()
        };
        self.tasks.kill(limit(), &request)
    }

    pub(super) fn delete(&self, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: ID.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.tasks.delete(limit(), &request)
    }

    pub(super) fn stats(&self) -> Metrics {
        self.stats_as("io.containerd.cgroups.v2.Metrics")
    }

    /// What it uses, in the message of a version of cgroups.
    pub(super) fn stats_as<M: Message>(&self, type_url: &str) -> M {
        let request = api::StatsRequest {
            id: ID.into(),
            ..Default::default()
        };
        let stats = self.tasks.stats(limit(), &request).expect("figures").stats;
        assert_eq!(stats.type_url, type_url);
        M::parse_from_bytes(&stats.value).expect("Metrics")
    }

    pub(super) fn shim_pid(&self) -> i32 {
        let pid = fs::read_to_string(self.path("shim.pid")).expect("the shim's pid");
        pid.trim().parse().expect("a pid")
    }

    /// Ends the shim, and asserts that it does.
    fn end(&self) {
        let pid = self.shim_pid();
        self.shut_down();
        self.has_ended(pid);
    }

    fn shut_down(&self) {
        let request = api::ShutdownRequest {
            id: ID.into(),
            ..Default::default()
        };
        self.tasks.shutdown(limit(), &request).expect("an end");
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
        if !self.has_ended.get() {
            self.end();
        }
        fs::remove_dir_all(self.dir.path()).expect("the bundle");
        self.machine.assert_clean(|| ());
    }
}

/// The machine, with what shims share, and keep.
pub(super) fn alone() -> Machine {
    Machine::alone(|| {
        let dir = Path::new("/run/containerd");
        for kept in [dir.join("cloister").join(NAMESPACE), dir.join("s")] {
            fs::create_dir_all(kept).expect("a directory");
        }
    })
}

/// Makes a directory the bundle of a container that executes `script`, with FIFOs for its streams.
pub(super) fn write_bundle(
    bundle: &Path,
    script: &str,
    change: impl FnOnce(&mut serde_json::Value),
) {
    Cmd::new(runtime())
        .args([Path::new("spec"), Path::new("--bundle"), bundle])
        .run()
        .ok();
    let text = fs::read(bundle.join("config.json")).expect("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(["sh", "-c", script]);
    spec["root"] = json!({"path": busybox_rootfs(), "readonly": true});
    change(&mut spec);
    fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
    fs::write(bundle.join("log"), "").expect("the log");
    for stream in ["stdin", "stdout", "stderr"] {
        let fifo = bundle.join(stream);
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).expect("a FIFO");
    }
}

pub(super) fn await_end(pid: i32) {
    eventually("the shim has ended", || {
        !Path::new("/proc").join(pid.to_string()).exists()
    });
}

/// Starts a shim, or finds one: its address, and a connection to it.
fn connect(bundle: &Path) -> (String, Client) {
    let result = bootstrap(bundle);
    assert_eq!((result.version, &*result.protocol), (3, "ttrpc"));
    let client = Client::connect(&result.address).expect("the shim's socket");
    (result.address, client)
}

pub(super) fn socket(address: &str) -> PathBuf {
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

pub(super) fn limit() -> context::Context {
    context::with_duration(LIMIT)
}

/// Asserts that a call was refused so.
pub(super) fn refused<T: Debug>(result: ttrpc::Result<T>, code: Code, words: &str) {
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

/// containerd may want the next container of the same name while the shim of the last one has not ended yet: `docker
/// restart` does.
#[test]
fn a_shim_that_ends_is_not_found_again() {
    let mut peer = Peer::new("true");
    for _ in 0..3 {
        let last = peer.shim_pid();
        peer.shut_down();
        let creation = peer.creation();
        // Whoever is still connected to it has nothing created there.
        match peer.tasks.create(limit(), &creation) {
            Ok(created) => panic!("created by a shim that ends: {created}"),
            Err(ttrpc::Error::RpcStatus(status)) => {
                assert!(status.message.contains("about to end"), "{status:?}");
            }
            // Its end has closed the connection.
            Err(_) => await_end(last),
        }
        peer.start_again();
        assert_ne!(peer.shim_pid(), last);
        peer.tasks.create(limit(), &creation).expect("a task");
        peer.kill(9).expect("a signal");
        eventually("its end", || peer.status("") == api::Status::STOPPED);
        peer.delete("").expect("a deletion");
        await_end(last);
    }
}
