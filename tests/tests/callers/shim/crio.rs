//! A peer in CRI-O's place, which starts the shim as for its runtimes of type `vm`: once for each container of a pod, with
//! nothing on standard input and no address for events. There is no CRI-O here.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

use crate::harness::{Cmd, Machine, afterwards, eventually, report_logs};

use super::peer::{NAMESPACE, alone, await_end, limit, socket, write_bundle};
use super::{PROGRAM, kill};

const POD: &str = "crio-pod";
const MEMBER: &str = "crio-member";
/// Says on which kernel it runs, and ends when it is asked to.
const SCRIPT: &str =
    "cat /proc/sys/kernel/random/boot_id; trap 'exit 3' TERM; while :; do sleep 0.1; done";

/// A pod of two containers, and its shim. Dropping it asserts that nothing is left.
struct Pod {
    machine: Machine,
    dir: tempfile::TempDir,
    shim: i32,
    tasks: TaskClient,
}

/// The shim's program, in a bundle.
fn program(bundle: &Path, id: &str, action: &str) -> Cmd {
    Cmd::new(PROGRAM)
        .args(["-namespace", NAMESPACE, "-address", "", "-id", id, action])
        .env("TTRPC_ADDRESS", "")
        .dir(bundle)
}

/// What CRI-O connects to: whatever is printed, also on standard error.
fn start(bundle: &Path, id: &str) -> String {
    let started = program(bundle, id, "start").run();
    assert_eq!(started.status.code(), Some(0), "{started}");
    assert_eq!(started.err(), "", "{started}");
    started.out()
}

fn write(bundle: &Path, kind: &str, change: impl FnOnce(&mut Value)) {
    fs::create_dir(bundle).expect("a bundle");
    write_bundle(bundle, SCRIPT, |spec| {
        spec["annotations"] = json!({
            "io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": POD,
        });
        change(spec);
    });
}

impl Pod {
    fn new() -> Self {
        let machine = alone();
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = dir.path().join(POD);
        write(&bundle, "sandbox", |_| ());
        let address = start(&bundle, POD);
        let shim = fs::read_to_string(bundle.join("shim.pid")).expect("the shim's pid");
        let shim = shim.trim().parse().expect("a pid");
        // The bare address is version 2 of the interface.
        assert!(socket(&address).exists(), "{address:?}");
        let client = Client::connect(&address).expect("the shim's socket");
        let this = Self {
            machine,
            dir,
            shim,
            tasks: TaskClient::new(client),
        };
        let pod = this.run(POD);
        write(&this.bundle(MEMBER), "container", |spec| {
            spec["hostname"] = Value::Null;
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            for namespace in namespaces.expect("namespaces") {
                let link = match namespace["type"].as_str() {
                    Some("network") => "net",
                    Some(same @ ("ipc" | "uts")) => same,
                    _ => continue,
                };
                namespace["path"] = format!("/proc/{pod}/ns/{link}").into();
            }
        });
        // The shim is the same.
        assert_eq!(start(&this.bundle(MEMBER), MEMBER), address);
        this.run(MEMBER);
        this
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join(id)
    }

    /// What a container has said.
    fn out(&self, id: &str) -> String {
        fs::read_to_string(self.bundle(id).join("out")).unwrap_or_default()
    }

    /// Creates and starts a container; gives its pid.
    fn run(&self, id: &str) -> u32 {
        let bundle = self.bundle(id);
        let out = format!("file://{}", bundle.join("out").display());
        let creation = api::CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            stdout: out.clone(),
            stderr: out,
            ..Default::default()
        };
        let created = self.tasks.create(limit(), &creation).expect("a task");
        let start = api::StartRequest {
            id: id.into(),
            ..Default::default()
        };
        let started = self.tasks.start(limit(), &start).expect("a start");
        assert_eq!(created.pid, started.pid);
        created.pid
    }

    fn state(&self, id: &str) -> api::StateResponse {
        let request = api::StateRequest {
            id: id.into(),
            ..Default::default()
        };
        self.tasks.state(limit(), &request).expect("a state")
    }

    fn assert_status(&self, id: &str, status: api::Status) {
        assert_eq!(self.state(id).status.enum_value(), Ok(status), "{id}");
    }

    /// Everything else that CRI-O asks for of a container that runs.
    fn control(&self, id: &str) {
        let any = |value: Value| {
            MessageField::some(Any {
                value: value.to_string().into_bytes(),
                ..Default::default()
            })
        };
        let exec = api::ExecProcessRequest {
            id: id.into(),
            exec_id: "x".into(),
            spec: any(json!({
                "args": ["sh", "-c", "exit 5"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
            })),
            ..Default::default()
        };
        self.tasks.exec(limit(), &exec).expect("a process");
        let start = api::StartRequest {
            id: id.into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        self.tasks.start(limit(), &start).expect("its start");
        let wait = api::WaitRequest {
            id: id.into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        let ended = self.tasks.wait(limit(), &wait).expect("its end");
        assert_eq!(ended.exit_status, 5);
        let delete = api::DeleteRequest {
            id: id.into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        self.tasks.delete(limit(), &delete).expect("its deletion");
        let pause = api::PauseRequest {
            id: id.into(),
            ..Default::default()
        };
        self.tasks.pause(limit(), &pause).expect("a pause");
        self.assert_status(id, api::Status::PAUSED);
        let resume = api::ResumeRequest {
            id: id.into(),
            ..Default::default()
        };
        self.tasks.resume(limit(), &resume).expect("no pause");
        let update = api::UpdateTaskRequest {
            id: id.into(),
            resources: any(json!({"pids": {"limit": 77}})),
            ..Default::default()
        };
        self.tasks.update(limit(), &update).expect("other limits");
        let stats = api::StatsRequest {
            id: id.into(),
            ..Default::default()
        };
        let stats = self.tasks.stats(limit(), &stats).expect("figures").stats;
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    }

    /// Ends a container and deletes it.
    fn end(&self, id: &str) {
        let signal = api::KillRequest {
            id: id.into(),
            signal: 15,
            all: true,
            ..Default::default()
        };
        self.tasks.kill(limit(), &signal).expect("a signal");
        let wait = api::WaitRequest {
            id: id.into(),
            ..Default::default()
        };
        let ended = self.tasks.wait(limit(), &wait).expect("an end");
        assert_eq!(ended.exit_status, 3);
        // It learns of the end, and when it was, by asking.
        let state = self.state(id);
        assert_eq!(state.status.enum_value(), Ok(api::Status::STOPPED));
        assert_eq!(state.exit_status, 3);
        assert_eq!(state.exited_at, ended.exited_at);
        let bundle = self.bundle(id);
        assert_eq!(state.bundle, bundle.display().to_string());
        assert!(state.stdout.ends_with("/out"), "{state}");
        let delete = api::DeleteRequest {
            id: id.into(),
            ..Default::default()
        };
        let deleted = self.tasks.delete(limit(), &delete).expect("a deletion");
        assert_eq!((deleted.pid, deleted.exit_status), (state.pid, 3));
        let shutdown = api::ShutdownRequest {
            id: id.into(),
            ..Default::default()
        };
        self.tasks.shutdown(limit(), &shutdown).expect("an answer");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            afterwards(|| {
                let log = fs::read_to_string(self.bundle(POD).join("log"));
                eprintln!("=== the shim's log\n{}", log.unwrap_or_default());
                report_logs();
                kill(self.shim);
                for id in [MEMBER, POD] {
                    program(&self.bundle(id), id, "delete").run();
                }
            });
            return;
        }
        fs::remove_dir_all(self.dir.path()).expect("the bundles");
        self.machine.assert_clean(|| ());
    }
}

#[test]
fn a_pod() {
    let pod = Pod::new();
    eventually("both have said on which kernel they run", || {
        [POD, MEMBER].iter().all(|id| pod.out(id).ends_with('\n'))
    });
    assert_eq!(pod.out(POD), pod.out(MEMBER));
    pod.control(MEMBER);
    pod.end(MEMBER);
    pod.assert_status(POD, api::Status::RUNNING);
    pod.end(POD);
    await_end(pod.shim);
}
