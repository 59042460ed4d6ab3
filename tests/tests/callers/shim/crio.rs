//! A peer in CRI-O's place, which starts the shim as for its runtimes of type `vm`: once for each container of a pod, with
//! nothing on standard input and no address for events. Debian has no CRI-O: `cri/crio.rs` is for who has one.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::{self, Code};
use containerd_shim_protos::{Client, TaskClient};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use crate::harness::{Cmd, Machine, afterwards, eventually, report_logs};

use super::peer::{NAMESPACE, alone, await_end, limit, refused, socket, write_bundle};
use super::{PROGRAM, kill};

const POD: &str = "crio-pod";
const MEMBER: &str = "crio-member";
/// Says on which kernel it runs, and ends when it is asked to, or takes more memory than it has.
const SCRIPT: &str = "cat /proc/sys/kernel/random/boot_id; trap 'exit 3' TERM; \
    trap 'exec dd if=/dev/zero of=/dev/null bs=64M count=1' USR1; while :; do sleep 0.1; done";
const TERM: u32 = 15;
const USR1: u32 = 10;

/// A pod of two containers, and its shim. Dropping it asserts that nothing is left.
struct Pod {
    machine: Machine,
    dir: tempfile::TempDir,
    shim: i32,
    tasks: TaskClient,
}

fn any(value: Value) -> MessageField<Any> {
    MessageField::some(Any {
        value: value.to_string().into_bytes(),
        ..Default::default()
    })
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
        // Its program pinns makes what a pod's containers share, and each of them is told the place.
        let made = ["ipc", "uts"].map(|kind| {
            let place = dir.path().join(kind).display().to_string();
            fs::write(&place, "").expect("a place");
            Cmd::new("unshare")
                .args([&format!("--{kind}={place}"), "true"])
                .run()
                .ok();
            (kind, place)
        });
        let take = |spec: &mut Value| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            for namespace in namespaces.expect("namespaces") {
                let kind = namespace["type"].as_str().expect("a type").to_owned();
                if let Some((_, place)) = made.iter().find(|(name, _)| kind == *name) {
                    namespace["path"] = place.as_str().into();
                }
            }
        };
        write(&bundle, "sandbox", |spec| {
            spec["hostname"] = "shared".into();
            take(spec);
        });
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
            take(spec);
            let namespaces = spec["linux"]["namespaces"].as_array_mut();
            for namespace in namespaces.expect("namespaces") {
                if namespace["type"] == "network" {
                    namespace["path"] = format!("/proc/{pod}/ns/net").into();
                }
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

    /// Takes the pod's namespaces away.
    fn unmake(&self) {
        // Not with umount(8), which makes a directory of its own.
        for kind in ["ipc", "uts"] {
            unmount(self.dir.path().join(kind), UnmountFlags::empty())
                .expect("a namespace's place");
        }
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

    /// Executes a script in a container; gives its exit code.
    fn exec(&self, id: &str, script: &str) -> u32 {
        let exec = api::ExecProcessRequest {
            id: id.into(),
            exec_id: "x".into(),
            spec: any(json!({
                "args": ["sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"],
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
        let delete = api::DeleteRequest {
            id: id.into(),
            exec_id: "x".into(),
            ..Default::default()
        };
        self.tasks.delete(limit(), &delete).expect("its deletion");
        ended.exit_status
    }

    fn update(&self, id: &str, resources: Value) {
        let update = api::UpdateTaskRequest {
            id: id.into(),
            resources: any(resources),
            ..Default::default()
        };
        self.tasks.update(limit(), &update).expect("other limits");
    }

    /// It learns of the OOM killer by a file, since it takes no events.
    fn exhaust(&self, id: &str) {
        self.limit_memory(id);
        // The memory is that of the process that is killed for it.
        let fill = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
        assert_eq!(self.exec(id, fill), 137);
        let file = self.oom_file(id);
        eventually("the OOM killer is told of", || file.exists());
    }

    fn limit_memory(&self, id: &str) {
        self.update(id, json!({"memory": {"limit": 32 << 20}}));
        assert!(!self.oom_file(id).exists());
    }

    fn oom_file(&self, id: &str) -> PathBuf {
        self.bundle(id).join("oom")
    }

    fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<api::Empty> {
        let signal = api::KillRequest {
            id: id.into(),
            signal,
            all: signal == TERM,
            ..Default::default()
        };
        self.tasks.kill(limit(), &signal)
    }

    /// Everything else that CRI-O asks for of a container that runs.
    fn control(&self, id: &str) {
        assert_eq!(self.exec(id, "exit 5"), 5);
        // Whether it is alive, before its log is opened anew.
        self.kill(id, 0).expect("it is alive");
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
        self.update(id, json!({"pids": {"limit": 77}}));
        let stats = api::StatsRequest {
            id: id.into(),
            ..Default::default()
        };
        let stats = self.tasks.stats(limit(), &stats).expect("figures").stats;
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    }

    /// Ends a container by a signal, to which it ends with `code`, and deletes it.
    fn end(&self, id: &str, signal: u32, code: u32) {
        self.kill(id, signal).expect("a signal");
        let wait = api::WaitRequest {
            id: id.into(),
            ..Default::default()
        };
        let ended = self.tasks.wait(limit(), &wait).expect("an end");
        assert_eq!(ended.exit_status, code);
        if signal == USR1 {
            // Whoever looks when a container has ended looks once.
            assert!(self.oom_file(id).exists());
        }
        refused(self.kill(id, 0), Code::NOT_FOUND, "already finished");
        // It learns of the end, and when it was, by asking.
        let state = self.state(id);
        assert_eq!(state.status.enum_value(), Ok(api::Status::STOPPED));
        assert_eq!(state.exit_status, code);
        assert_eq!(state.exited_at, ended.exited_at);
        let bundle = self.bundle(id);
        assert_eq!(state.bundle, bundle.display().to_string());
        assert!(state.stdout.ends_with("/out"), "{state}");
        let delete = api::DeleteRequest {
            id: id.into(),
            ..Default::default()
        };
        let deleted = self.tasks.delete(limit(), &delete).expect("a deletion");
        assert_eq!((deleted.pid, deleted.exit_status), (state.pid, code));
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
                self.unmake();
            });
            return;
        }
        self.unmake();
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
    // They share what was made for them: the guest's, and what stands for it here.
    let link = |id: &str, kind: &str| {
        let pid = pod.state(id).pid;
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace")
    };
    for kind in ["ipc", "uts"] {
        assert_eq!(link(POD, kind), link(MEMBER, kind), "{kind}");
    }
    assert_eq!(pod.exec(MEMBER, "test \"$(hostname)\" = shared"), 0);
    pod.control(MEMBER);
    pod.exhaust(MEMBER);
    pod.end(MEMBER, TERM, 3);
    pod.assert_status(POD, api::Status::RUNNING);
    pod.limit_memory(POD);
    pod.end(POD, USR1, 137);
    await_end(pod.shim);
}
