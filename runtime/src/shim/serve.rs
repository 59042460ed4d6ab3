//! The shim in the background: serves containerd until it has nothing left to do.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cloister::logger::{self, LogFormat};
use cloister::signal::Signal;
use cloister::sys::{SignalFd, watch};
use log::LevelFilter;
use rustix::fs::OFlags;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::args::Args;
use super::events::Events;
use super::reaper::Reaper;
use super::sandbox::SandboxService;
use super::service::TaskService;
use super::streaming::Streaming;
use super::tasks::Tasks;

/// The FIFO in the bundle that containerd reads the log from.
const LOG: &str = "log";
/// How long the last events may take to be sent.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);
/// How long the last answer may take to be read.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);

/// Serves at a socket that was inherited.
pub(crate) fn serve(args: &Args, listener: OwnedFd) -> anyhow::Result<()> {
    super::start::check(args)?;
    let level = match args.debug {
        true => LevelFilter::Debug,
        false => LevelFilter::Info,
    };
    logger::start(Some(open_log()?), LogFormat::Text, level);
    // Bundles come and go.
    std::env::set_current_dir("/")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = SignalFd::block_all()?;
    let listener = UnixListener::from(listener);
    let socket = listener.local_addr()?.as_pathname().map(PathBuf::from);
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(run(args, listener, socket, signals))
}

/// It can be written to when nobody reads, and a full one is no reason to wait.
fn open_log() -> anyhow::Result<std::fs::File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(LOG)
    };
    match open() {
        // Started by somebody who does not read it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(OpenOptions::new().write(true).open("/dev/null")?)
        }
        log => log.context("cannot open the log"),
    }
}

async fn run(
    args: &Args,
    listener: UnixListener,
    socket: Option<PathBuf>,
    signals: SignalFd,
) -> anyhow::Result<()> {
    let (events, publisher) = Events::new(&args.namespace);
    let publisher = publisher.map(|publisher| tokio::spawn(publisher.run()));
    let reaper = Reaper::default();
    let streaming = Streaming::default();
    let tasks = Arc::new(Tasks::new(
        &args.namespace,
        args.debug,
        reaper.clone(),
        streaming.clone(),
        events,
        socket,
    ));
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(TaskService(Arc::clone(&tasks)).services())
        .register_service(SandboxService::new(Arc::clone(&tasks)).services())
        .register_service(streaming.services());
    server.start().await?;
    let signals = watch(signals)?;
    loop {
        tokio::select! {
            () = tasks.done.notified() => break,
            ready = signals.readable() => {
                let mut ready = ready?;
                match ready.get_inner().inner().next()? {
                    Some(Signal::CHLD) => reaper.collect(),
                    Some(signal @ (Signal::TERM | Signal::INT | Signal::QUIT)) => {
                        if tasks.close() {
                            break;
                        }
                        let number = signal.number();
                        log::warn!("signal {number} is ignored: there are containers to look after");
                    }
                    Some(_) => {}
                    None => ready.clear_ready(),
                }
            }
        }
    }
    // The answer to whoever called for the end is on its way.
    tokio::time::sleep(ANSWER_LIMIT).await;
    server.stop_listen().await;
    drop(server);
    drop(tasks);
    if let Some(publisher) = publisher
        && tokio::time::timeout(EVENTS_LIMIT, publisher).await.is_err()
    {
        log::warn!("the last events are dropped: containerd does not take them");
    }
    Ok(())
}
