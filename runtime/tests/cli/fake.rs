//! The programs that play the VMM, with a guest and its agent in it, and the file server.
//!
//! They are tests of this very executable, ignored unless a script that the harness writes runs
//! them by name with a control socket at descriptor 3. How the machine behaves is told by the guest
//! kernel's command line, what the workload does by its arguments.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

use cloister_protocol::agent::*;
use cloister_protocol::agent_ttrpc::{Agent, create_agent};
use cloister_protocol::{AGENT_PORT, LOG_PORT, READY_PORT, STDIO_PORT, TOKEN_LEN, VERSION};
use cloister_vmm_api::{CONTROL_FD, Channel, Event, ExitReason, FdRole, Request, Timeline, fs};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, watch};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

fn control() -> Channel {
    // The descriptor is this process' own; opening it anew would not do for a socket.
    let fd = std::fs::read_link(format!("/proc/self/fd/{CONTROL_FD}")).unwrap();
    assert!(fd.to_string_lossy().starts_with("socket:"), "{fd:?}");
    let me = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    let flags = rustix::process::PidfdGetfdFlags::empty();
    let copy = rustix::process::pidfd_getfd(me, CONTROL_FD, flags).unwrap();
    Channel::new(copy)
}

#[test]
#[ignore = "a program that the other tests start"]
fn file_server() {
    let control = control();
    let (fs::Request::Serve { config }, fds) = control.recv().unwrap().unwrap();
    config.validate().unwrap();
    assert_eq!(fds.len(), config.exports.len() + 1);
    control.send(&fs::Reply::Ready, &[]).unwrap();
    // Until the owner is gone.
    assert!(control.recv::<fs::Request>().unwrap().is_none());
}

#[test]
#[ignore = "a program that the other tests start"]
fn vmm() {
    let control = Arc::new(control());
    let (request, fds) = control.recv().unwrap().unwrap();
    let Request::Boot { config, fds: roles } = request else {
        panic!("{request:?}");
    };
    config.validate().unwrap();
    let mut fds: HashMap<FdRole, OwnedFd> = roles.into_iter().zip(fds).collect();
    let mut console = std::fs::File::from(fds.remove(&FdRole::Console).unwrap());
    let listener = StdListener::from(fds.remove(&FdRole::VsockListener).unwrap());
    assert!(fds.contains_key(&FdRole::FsBackend));
    let booted = Event::Booted {
        timeline: Timeline::default(),
    };
    control.send(&booted, &[]).unwrap();
    console.write_all(b"Linux version 0\n").unwrap();
    let exit = |reason| {
        let timeline = Timeline::default();
        control
            .send(&Event::Exited { reason, timeline }, &[])
            .unwrap();
        std::process::exit(0);
    };
    match config.cmdline.as_str() {
        "panic" => {
            console
                .write_all(b"\x1b[31mKernel panic\x1b[0m - not syncing\n")
                .unwrap();
            exit(ExitReason::GuestPanic);
        }
        "host-error" => exit(ExitReason::HostError {
            message: "KVM_RUN: \x1b[2Jno".into(),
        }),
        "killed" => std::process::abort(),
        _ => {}
    }
    let behaviour = config.cmdline;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let asked_to_stop = runtime.block_on(async {
        if behaviour != "silent" {
            guest(&control, listener, &behaviour).await;
        }
        let control = control.clone();
        let next = tokio::task::spawn_blocking(move || control.recv::<Request>());
        matches!(next.await.unwrap(), Ok(Some((Request::Stop, _))))
    });
    if asked_to_stop {
        exit(ExitReason::Stopped);
    }
    std::process::exit(0);
}

/// Starts the guest's side: its log, its agent, its ports.
async fn guest(control: &Channel, listener: StdListener, behaviour: &str) {
    let (log, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    control
        .send(&Event::GuestConnect { port: LOG_PORT }, &[theirs.as_fd()])
        .unwrap();
    (&log).write_all(b"{\"msg\":\"agent starts\"}\n").unwrap();

    let machine = Arc::new(Machine {
        behaviour: behaviour.to_owned(),
        streams: Mutex::default(),
        arrived: Notify::new(),
        container: Mutex::default(),
        exit: watch::channel(None).0,
    });
    let agent =
        StdListener::bind(std::env::temp_dir().join(format!("agent-{}", std::process::id())));
    let agent = agent.unwrap();
    let address = agent
        .local_addr()
        .unwrap()
        .as_pathname()
        .unwrap()
        .to_owned();
    agent.set_nonblocking(true).unwrap();
    let mut server = Server::new()
        .add_listener(Listener::from(UnixListener::from_std(agent).unwrap()))
        .register_service(create_agent(machine.clone()));
    server.start().await.unwrap();
    let call = std::os::unix::net::UnixStream::connect(&address).unwrap();
    control
        .send(&Event::GuestConnect { port: READY_PORT }, &[call.as_fd()])
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        // Kept for as long as the guest lives.
        let _server = server;
        let _log = log;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let to_agent = UnixStream::connect(&address).await.unwrap();
            tokio::spawn(port(machine.clone(), stream, to_agent));
        }
    });
}

async fn port(machine: Arc<Machine>, mut stream: UnixStream, mut to_agent: UnixStream) {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(stream.read_u8().await.unwrap().into());
    }
    let port: u32 = line
        .trim()
        .strip_prefix("CONNECT ")
        .unwrap()
        .parse()
        .unwrap();
    stream.write_all(b"OK 4711\n").await.unwrap();
    if port == AGENT_PORT {
        if machine.behaviour == "hang" {
            std::future::pending::<()>().await;
        }
        let _ = copy_bidirectional(&mut stream, &mut to_agent).await;
    } else {
        assert_eq!(port, STDIO_PORT);
        let mut token = vec![0; TOKEN_LEN];
        stream.read_exact(&mut token).await.unwrap();
        machine.streams.lock().await.insert(token, stream);
        machine.arrived.notify_one();
    }
}

/// A guest with one container.
struct Machine {
    behaviour: String,
    streams: Mutex<HashMap<Vec<u8>, UnixStream>>,
    arrived: Notify,
    container: Mutex<Option<Container>>,
    exit: watch::Sender<Option<(u32, u32)>>,
}

struct Container {
    args: Vec<String>,
    stdio: Stdio,
    streams: Vec<Option<UnixStream>>,
}

impl Machine {
    async fn stream(&self, token: &Vec<u8>) -> Option<UnixStream> {
        if token.is_empty() {
            return None;
        }
        loop {
            if let Some(stream) = self.streams.lock().await.remove(token) {
                return Some(stream);
            }
            self.arrived.notified().await;
        }
    }

    async fn work(container: Container) -> (u32, u32) {
        let [mut stdin, mut stdout, mut stderr] = <[_; 3]>::try_from(container.streams).unwrap();
        let args: Vec<_> = container.args.iter().map(String::as_str).collect();
        match args.as_slice() {
            ["cat"] => {
                let (stdin, stdout) = (stdin.as_mut().unwrap(), stdout.as_mut().unwrap());
                copy(stdin, stdout).await.unwrap();
                (0, 0)
            }
            ["say", out, err, code] => {
                stdout.unwrap().write_all(out.as_bytes()).await.unwrap();
                stderr
                    .as_mut()
                    .unwrap()
                    .write_all(err.as_bytes())
                    .await
                    .unwrap();
                (code.parse().unwrap(), 0)
            }
            ["die", signal] => (0, signal.parse().unwrap()),
            // Until a signal.
            ["sleep"] => std::future::pending().await,
            ["size"] => {
                let size = format!("{}x{}\n", container.stdio.columns, container.stdio.rows);
                stdin.unwrap().write_all(size.as_bytes()).await.unwrap();
                (0, 0)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn refuse<T>(code: Code, text: &str) -> ttrpc::Result<T> {
    Err(Error::RpcStatus(get_status(code, text)))
}

#[async_trait::async_trait]
impl Agent for Machine {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse {
            version: if self.behaviour == "version" {
                99
            } else {
                VERSION
            },
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let spec: serde_json::Value = serde_json::from_slice(&request.spec).unwrap();
        let args: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).unwrap();
        if args == ["no-such-command"] {
            return refuse(
                Code::INVALID_ARGUMENT,
                "exec: \"no-such-command\": executable file not found in $PATH",
            );
        }
        let stdio = request.stdio.unwrap();
        let mut streams = Vec::new();
        for token in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            streams.push(self.stream(token).await);
        }
        *self.container.lock().await = Some(Container {
            args,
            stdio,
            streams,
        });
        Ok(CreateContainerResponse::default())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let Some(container) = self.container.lock().await.take() else {
            return refuse(Code::FAILED_PRECONDITION, "not created");
        };
        if container.args == ["fail"] {
            return refuse(Code::INTERNAL, "exec: \"fail\": exec format error");
        }
        if container.args == ["panic"] {
            std::process::abort();
        }
        let exit = self.exit.clone();
        tokio::spawn(async move {
            let status = Self::work(container).await;
            exit.send_if_modified(|exit| {
                let first = exit.is_none();
                exit.get_or_insert(status);
                first
            });
        });
        Ok(StartContainerResponse::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        _: DeleteContainerRequest,
    ) -> ttrpc::Result<DeleteContainerResponse> {
        Ok(DeleteContainerResponse::default())
    }

    async fn signal(
        &self,
        _: &TtrpcContext,
        request: SignalRequest,
    ) -> ttrpc::Result<SignalResponse> {
        if self.exit.borrow().is_some() {
            return refuse(Code::FAILED_PRECONDITION, "it has ended");
        }
        self.exit.send_replace(Some((0, request.signal)));
        Ok(SignalResponse::default())
    }

    async fn wait(&self, _: &TtrpcContext, _: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let mut exit = self.exit.subscribe();
        let (exit_code, signal) = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(WaitResponse {
            exit_code,
            signal,
            ..Default::default()
        })
    }

    /// Notes what it is asked for.
    async fn update(
        &self,
        _: &TtrpcContext,
        request: UpdateRequest,
    ) -> ttrpc::Result<UpdateResponse> {
        std::fs::write(std::env::temp_dir().join("updated"), request.resources).unwrap();
        Ok(UpdateResponse::default())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        _: ResizeTerminalRequest,
    ) -> ttrpc::Result<ResizeTerminalResponse> {
        Ok(ResizeTerminalResponse::default())
    }
}
