//! Pods and their containers, as the kubelet makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use protobuf::{Message, MessageField};

use super::client::{Refusal, call};
use super::daemon::{self, BUNDLES, IMAGE, Node, SOCKET};
use super::messages as cri;
use crate::harness::{Machine, afterwards, eventually, report_logs};

/// Where the kubelet has the cgroups of its pods.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup/kubepods";
/// Where the kubelet has the logs of its pods' containers.
const LOGS: &str = "/var/log/pods";

/// One check, with the machine to itself. Dropping it removes every pod and asserts that nothing is left.
pub(crate) struct Case {
    pub(crate) node: Node,
    machine: Machine,
    /// Whether another containerd runs than at the beginning.
    restarted: AtomicBool,
}

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: cri::PodSandboxConfig,
}

/// A container of a pod.
pub(crate) struct Container {
    pub(crate) id: String,
    /// Where its log is.
    pub(crate) log: PathBuf,
}

/// Calls that must succeed say what was asked.
pub(crate) fn ask<A: Message>(method: &str, request: &impl Message) -> A {
    call(SOCKET, method, request).unwrap_or_else(|refusal| panic!("{method}: {refusal}"))
}

/// What calls that name a pod, and nothing else, ask with.
pub(crate) fn by_pod(id: &str) -> cri::PodSandboxRequest {
    cri::PodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
        ..cri::PodSandboxRequest::default()
    }
}

fn by_container(id: &str) -> cri::ContainerRequest {
    cri::ContainerRequest {
        container_id: id.to_owned(),
        ..cri::ContainerRequest::default()
    }
}

impl Case {
    pub(crate) fn new(node: Node) -> Self {
        Self::with_handlers(node, &[node.handler()])
    }

    /// One in which pods are run with other handlers than the node's, too.
    pub(crate) fn with_handlers(node: Node, handlers: &[&'static str]) -> Self {
        let machine = Machine::alone(|| {
            node.ensure();
            for handler in handlers {
                first_pod(node, handler);
            }
        });
        Self {
            node,
            machine,
            restarted: AtomicBool::new(false),
        }
    }

    /// The description of a pod.
    pub(crate) fn config(&self, name: &str) -> cri::PodSandboxConfig {
        describe(name)
    }

    /// Runs a pod with the handler of the node.
    pub(crate) fn run(&self, config: cri::PodSandboxConfig) -> Result<Pod, Refusal> {
        self.run_with(self.node.handler(), config)
    }

    /// Runs a pod with another handler.
    pub(crate) fn run_with(
        &self,
        handler: &str,
        config: cri::PodSandboxConfig,
    ) -> Result<Pod, Refusal> {
        let id = run(handler, &config)?;
        Ok(Pod { id, config })
    }

    /// Runs a pod that has nothing special.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        self.pod_with(name, |_| ())
    }

    /// Runs a pod that has.
    pub(crate) fn pod_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut cri::PodSandboxConfig),
    ) -> Pod {
        let mut config = self.config(name);
        change(&mut config);
        self.run(config)
            .unwrap_or_else(|refusal| panic!("the pod {name}: {refusal}"))
    }

    /// Ends containerd as a service manager does, changes its configuration, and starts it again.
    pub(crate) fn restart_daemon(&self, change: impl FnOnce()) {
        self.restarted.store(true, Ordering::Relaxed);
        daemon::stop();
        change();
        self.node.start();
    }

    /// Has a newer version take the place of the one that runs, which was ended by `end`.
    pub(crate) fn upgrade_daemon(&self, node: Node, end: fn()) {
        self.restarted.store(true, Ordering::Relaxed);
        end();
        node.configure(self.node);
        node.start();
    }

    /// Ends containerd as a crash would, does `meanwhile`, and starts it again.
    pub(crate) fn crash_daemon(&self, meanwhile: impl FnOnce()) {
        self.restarted.store(true, Ordering::Relaxed);
        daemon::kill();
        meanwhile();
        self.node.start();
    }
}

/// Makes the description of a pod, and what the kubelet makes for it beforehand.
fn describe(name: &str) -> cri::PodSandboxConfig {
    let cgroup = Path::new(CGROUPS).join(name);
    fs::create_dir_all(&cgroup).expect("the pod's cgroup");
    let parent = format!("/kubepods/{name}");
    cri::PodSandboxConfig {
        metadata: MessageField::some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            ..cri::PodSandboxMetadata::default()
        }),
        hostname: name.to_owned(),
        log_directory: format!("{LOGS}/{name}"),
        linux: MessageField::some(cri::LinuxPodSandboxConfig {
            cgroup_parent: parent,
            ..cri::LinuxPodSandboxConfig::default()
        }),
        ..cri::PodSandboxConfig::default()
    }
}

fn run(handler: &str, config: &cri::PodSandboxConfig) -> Result<String, Refusal> {
    let request = cri::RunPodSandboxRequest {
        config: MessageField::some(config.clone()),
        runtime_handler: handler.to_owned(),
        ..cri::RunPodSandboxRequest::default()
    };
    let answer: cri::RunPodSandboxResponse = call(SOCKET, "RunPodSandbox", &request)?;
    Ok(answer.pod_sandbox_id)
}

/// What a version makes once and keeps is made before anything is compared; the tests tell whether it works.
fn first_pod(node: Node, handler: &'static str) {
    static DONE: Mutex<Vec<(Node, &str)>> = Mutex::new(Vec::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !done.contains(&(node, handler)) {
        done.push((node, handler));
        let config = describe("first");
        let first = run(handler, &config).and_then(|id| {
            let pod = Pod { id, config };
            pod.create(pod.describe("first", "true"))
        });
        if let Err(refusal) = first {
            eprintln!("the first pod: {refusal}");
        }
        remove_all();
    }
}

/// Removes every pod, and what the kubelet would remove with it.
fn remove_all() {
    let listed: cri::ListPodSandboxResponse = ask("ListPodSandbox", &cri::Empty::new());
    for pod in listed.items {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            if let Err(refusal) = call::<cri::Empty>(SOCKET, method, &by_pod(&pod.id)) {
                eprintln!("{method}: {refusal}");
            }
        }
    }
    for entry in fs::read_dir(LOGS).into_iter().flatten().flatten() {
        fs::remove_dir_all(entry.path()).ok();
    }
    let cgroups = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    for pod in cgroups.filter(|entry| entry.path().is_dir()) {
        // One that is not empty stays, and is found.
        fs::remove_dir(pod.path()).ok();
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            afterwards(report);
        }
        afterwards(|| {
            // A test that failed may have left none; one that went on to a newer version has left that.
            if daemon::running().is_none() {
                self.node.ensure();
            }
            remove_all();
        });
        if self.restarted.load(Ordering::Relaxed) {
            afterwards(daemon::stop);
        }
        if !failed {
            self.machine.assert_clean(|| {
                if self.node == Node::Upgraded {
                    // What the newer versions make once, and keep.
                    fs::remove_dir_all("/run/nri").ok();
                    fs::remove_dir("/run/containerd/io.containerd.sandbox.controller.v1.shim").ok();
                }
            });
        }
    }
}

/// Prints what there is to know after a failure.
fn report() {
    daemon::report_log();
    for entry in fs::read_dir(BUNDLES).into_iter().flatten().flatten() {
        let log = entry.path().join("log.json");
        let text = fs::read_to_string(&log).unwrap_or_default();
        eprintln!("=== {}\n{text}", log.display());
    }
    report_logs();
}

impl Pod {
    /// The description of a container that runs a script of the shell.
    pub(crate) fn describe(&self, name: &str, script: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: MessageField::some(cri::ContainerMetadata {
                name: name.to_owned(),
                ..cri::ContainerMetadata::default()
            }),
            image: MessageField::some(cri::ImageSpec {
                image: IMAGE.to_owned(),
                ..cri::ImageSpec::default()
            }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{name}.log"),
            linux: MessageField::some(cri::LinuxContainerConfig {
                security_context: MessageField::some(cri::LinuxContainerSecurityContext {
                    // What the kubelet says if nobody asks for more.
                    namespace_options: MessageField::some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::CONTAINER.into(),
                        ..cri::NamespaceOption::default()
                    }),
                    ..cri::LinuxContainerSecurityContext::default()
                }),
                ..cri::LinuxContainerConfig::default()
            }),
            ..cri::ContainerConfig::default()
        }
    }

    /// Creates a container.
    pub(crate) fn create(&self, config: cri::ContainerConfig) -> Result<Container, Refusal> {
        fs::create_dir_all(&self.config.log_directory).expect("the logs' directory");
        let log = Path::new(&self.config.log_directory).join(&config.log_path);
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: MessageField::some(config),
            sandbox_config: MessageField::some(self.config.clone()),
            ..cri::CreateContainerRequest::default()
        };
        let answer: cri::CreateContainerResponse = call(SOCKET, "CreateContainer", &request)?;
        Ok(Container {
            id: answer.container_id,
            log,
        })
    }

    /// Creates a container with nothing special and starts it.
    pub(crate) fn start(&self, name: &str, script: &str) -> Container {
        self.start_with(name, script, |_| ())
    }

    /// Creates a container and starts it.
    pub(crate) fn start_with(
        &self,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut cri::ContainerConfig),
    ) -> Container {
        let mut config = self.describe(name, script);
        change(&mut config);
        let created = self.create(config);
        let container = created.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        let _: cri::Empty = ask("StartContainer", &by_container(&container.id));
        container
    }

    pub(crate) fn status(&self) -> cri::PodSandboxStatus {
        let answer: cri::PodSandboxStatusResponse = ask("PodSandboxStatus", &by_pod(&self.id));
        answer.status.unwrap_or_default()
    }

    pub(crate) fn address(&self) -> String {
        self.status().network.ip.clone()
    }

    pub(crate) fn stop(&self) {
        let _: cri::Empty = ask("StopPodSandbox", &by_pod(&self.id));
    }

    pub(crate) fn remove(&self) {
        let _: cri::Empty = ask("RemovePodSandbox", &by_pod(&self.id));
    }
}

impl Container {
    /// Executes a script of the shell in it.
    pub(crate) fn exec_within(
        &self,
        seconds: i64,
        words: &[&str],
    ) -> Result<cri::ExecSyncResponse, Refusal> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds,
            ..cri::ExecSyncRequest::default()
        };
        call(SOCKET, "ExecSync", &request)
    }

    /// Executes a script that has to succeed; gives what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let done = self.exec_within(0, &["sh", "-c", script]);
        let done = done.unwrap_or_else(|refusal| panic!("{script:?}: {refusal}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert_eq!(done.exit_code, 0, "{script:?}: {out}{err}");
        out
    }

    pub(crate) fn status(&self) -> cri::ContainerStatus {
        let answer: cri::ContainerStatusResponse = ask("ContainerStatus", &by_container(&self.id));
        answer.status.unwrap_or_default()
    }

    /// Waits for its end; gives its exit code.
    pub(crate) fn wait(&self) -> i32 {
        let exited = cri::ContainerState::CONTAINER_EXITED.into();
        eventually("the container has ended", || self.status().state == exited);
        self.status().exit_code
    }

    pub(crate) fn stop(&self, timeout: i64) {
        let request = cri::StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
            ..cri::StopContainerRequest::default()
        };
        let _: cri::Empty = ask("StopContainer", &request);
    }

    pub(crate) fn remove(&self) {
        let _: cri::Empty = ask("RemoveContainer", &by_container(&self.id));
    }

    pub(crate) fn stats(&self) -> cri::ContainerStats {
        let answer: cri::ContainerStatsResponse = ask("ContainerStats", &by_container(&self.id));
        answer.stats.unwrap_or_default()
    }

    /// Waits until its log has `text`.
    pub(crate) fn await_log(&self, text: &str) {
        eventually(text, || self.log_text().contains(text));
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Which kernel it runs on.
    pub(crate) fn boot_id(&self) -> String {
        self.sh("cat /proc/sys/kernel/random/boot_id")
    }
}
