//! A guest without a virtual machine: the agent's service in this process, in a mount namespace of
//! its own, reached over AF_UNIX where a guest has vsock.
//!
//! The service reaps every child of its process, so each test needs a process of its own, which
//! nextest gives it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use cloister_agent::{Endpoints, Listener, Places, Socket, Timeline};
use cloister_protocol::agent::{
    CreateContainerRequest, DeleteContainerRequest, SharedPath, SignalRequest,
    StartContainerRequest, Stdio, WaitRequest, WaitResponse,
};
use cloister_protocol::agent_ttrpc::AgentClient;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::{Value, json};
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport;
use ttrpc::context::Context;

/// The share that holds the root file system.
const TAG: &str = "bundle";

/// No call takes longer, or something is wrong.
const LIMIT: Duration = Duration::from_secs(20);

/// A service and a client of it.
pub(crate) struct Guest {
    pub(crate) client: AgentClient,
    pub(crate) service: tokio::task::JoinHandle<std::io::Result<()>>,
    directory: tempfile::TempDir,
}

impl Guest {
    /// Starts the service.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        isolate(base);

        let (host, agent) = UnixStream::pair().unwrap();
        let endpoints = Endpoints {
            ready: Socket::new(agent.into()).unwrap(),
            calls: listen(&base.join("calls")),
            streams: listen(&base.join("streams")),
        };
        let places = Places {
            cgroup_parent: base.join("cgroup").join(cgroup_name()),
            init_exe: env!("CARGO_BIN_EXE_cloister-agent").into(),
            shares: base.join("share"),
        };
        let timeline = Timeline { init: 1, ready: 2 };
        let service = tokio::spawn(cloister_agent::serve(endpoints, places, timeline));
        Self {
            client: client(host),
            service,
            directory,
        }
    }

    /// Another connection for calls.
    pub(crate) fn connect(&self) -> AgentClient {
        client(UnixStream::connect(self.directory.path().join("calls")).unwrap())
    }

    /// The root file system of every container.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.path().join("bundle/rootfs")
    }

    /// A standard stream: the host's end, and the token that names it.
    pub(crate) fn stream(&self, number: u8) -> (UnixStream, Vec<u8>) {
        let token = vec![number; cloister_protocol::TOKEN_LEN];
        let mut stream = UnixStream::connect(self.directory.path().join("streams")).unwrap();
        stream.write_all(&token).unwrap();
        (stream, token)
    }

    pub(crate) async fn create(&self, id: &str, spec: Value, stdio: Stdio) -> ttrpc::Result<u32> {
        let request = CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes(),
            rootfs: Some(SharedPath {
                tag: TAG.into(),
                path: "rootfs".into(),
                ..SharedPath::default()
            })
            .into(),
            stdio: Some(stdio).into(),
            ..CreateContainerRequest::default()
        };
        let response = self.client.create_container(context(), &request).await?;
        Ok(response.pid)
    }

    pub(crate) async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest {
            container_id: id.into(),
            ..StartContainerRequest::default()
        };
        self.client.start_container(context(), &request).await?;
        Ok(())
    }

    pub(crate) async fn signal(&self, id: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request = SignalRequest {
            container_id: id.into(),
            signal,
            all,
            ..SignalRequest::default()
        };
        self.client.signal(context(), &request).await?;
        Ok(())
    }

    pub(crate) async fn wait(&self, id: &str) -> ttrpc::Result<WaitResponse> {
        wait(&self.client, id).await
    }

    pub(crate) async fn delete(&self, id: &str) -> ttrpc::Result<()> {
        let request = DeleteContainerRequest {
            container_id: id.into(),
            ..DeleteContainerRequest::default()
        };
        self.client.delete_container(context(), &request).await?;
        Ok(())
    }

    /// Creates and starts a container that runs a shell script.
    pub(crate) async fn run(&self, id: &str, script: &str, stdio: Stdio) {
        let spec = spec(&["/bin/sh", "-c", script]);
        self.create(id, spec, stdio).await.unwrap();
        self.start_container(id).await.unwrap();
    }
}

pub(crate) async fn wait(client: &AgentClient, id: &str) -> ttrpc::Result<WaitResponse> {
    let request = WaitRequest {
        container_id: id.into(),
        ..WaitRequest::default()
    };
    client.wait(context(), &request).await
}

pub(crate) fn context() -> Context {
    ttrpc::context::with_duration(LIMIT)
}

/// The status code and message of a refused call.
pub(crate) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

/// A specification for a process in the busybox root file system.
pub(crate) fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["newinstance", "ptmxmode=0666"] },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "network" }],
        },
    })
}

/// Reads a stream to its end, on a thread of its own.
pub(crate) fn read_all(mut stream: UnixStream) -> thread::JoinHandle<Vec<u8>> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Awaits a thread without holding up the service.
pub(crate) async fn join<T: Send + 'static>(thread: thread::JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap()
}

/// The cgroup below which this process's containers are.
fn cgroup_name() -> String {
    format!("cloister-agent-test-{}", std::process::id())
}

fn client(stream: UnixStream) -> AgentClient {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(stream).unwrap();
    AgentClient::new(Client::new(transport::Socket::new(stream)))
}

fn listen(path: &Path) -> Listener {
    Listener::new(UnixListener::bind(path).unwrap().into()).unwrap()
}

/// Leaves the machine's mount namespace and makes a share and a cgroup hierarchy in the new one.
fn isolate(base: &Path) {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    #[expect(
        unsafe_code,
        reason = "no other thread shares this process's file system state"
    )]
    // SAFETY: no descriptor table is shared by this flag.
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS).unwrap();
    }
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
    for directory in ["share/bundle", "bundle/rootfs/bin", "cgroup"] {
        fs::create_dir_all(base.join(directory)).unwrap();
    }
    for directory in ["proc", "dev", "tmp", "etc"] {
        fs::create_dir(base.join("bundle/rootfs").join(directory)).unwrap();
    }
    let busybox = base.join("bundle/rootfs/bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("busybox-static is installed");
    let applets = Command::new(&busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", busybox.with_file_name(applet)).unwrap();
        }
    }
    mount_bind(base.join("bundle"), base.join("share/bundle")).unwrap();
    mount(
        "cgroup2",
        base.join("cgroup"),
        "cgroup2",
        MountFlags::empty(),
        None,
    )
    .unwrap();
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails if a container was left behind.
        let parent = self.directory.path().join("cgroup").join(cgroup_name());
        let removed = fs::remove_dir(&parent);
        if !thread::panicking() && parent.exists() {
            removed.unwrap();
        }
        for mounted in ["share/bundle", "cgroup"] {
            let mounted = self.directory.path().join(mounted);
            rustix::mount::unmount(mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}
