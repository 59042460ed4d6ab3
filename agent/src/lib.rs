//! PID 1 of the guest: builds containers inside the virtual machine.
//!
//! The agent is one process with one thread. It prepares the guest, connects out to the host and
//! answers the calls of `cloister-protocol` until the host asks for the end.
//!
//! ```text
//!   boot ─── mounts, loopback, limits
//!   server ─ service (ttrpc) ─── containers ─── cloister-container
//!     │                            │  ╰── shares: virtio-fs trees, mounted on first use
//!     │                            ├── network: devices, and what the host's kernel lists
//!     │                            ╰───── stdio: pipes and terminals ── relay ── socket
//!     ├─ tokens: stream connections, matched with the calls that name them      ▲
//!     ╰─ reaper: SIGCHLD ──▶ containers                                         ╯
//!   logger ─ JSON lines to the host
//! ```
//!
//! Nothing here polls or sleeps: every wait is for an event. Every page that the process touches
//! is paid for by every guest, so there are no further threads, no buffers for streams that can be
//! spliced, and no mounts that no container needs.
//!
//! What fails before the host can be told goes to the console in one line, and PID 1 exits: the
//! kernel panics, the machine resets, and the host reports it with the console's text.

mod boot;
mod containers;
mod execs;
mod forward;
mod logger;
mod network;
mod processors;
mod relay;
mod resolve;
mod server;
mod service;
mod session;
mod shares;
mod slot;
mod socket;
mod stdio;
mod sys;
mod tokens;
mod usage;

pub use containers::Places;
pub use server::{Endpoints, serve};
pub use service::Timeline;
pub use socket::{Listener, Socket};

use std::convert::Infallible;
use std::error::Error;

use cloister_protocol::{AGENT_PORT, READY_PORT, STDIO_PORT};

/// Does the work of PID 1. Returns only if it cannot go on.
///
/// # Errors
/// The first step that failed.
pub fn run() -> Result<Infallible, Box<dyn Error>> {
    boot::announce()?;
    let init = logger::boottime_ns();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(guest(init))?;
    Ok(boot::power_off()?)
}

async fn guest(init: u64) -> Result<(), Box<dyn Error>> {
    let calls = Listener::vsock(AGENT_PORT).map_err(step("cannot listen for calls"))?;
    let streams = Listener::vsock(STDIO_PORT).map_err(step("cannot listen for streams"))?;
    // The host answers while the guest is being prepared.
    let ready = Socket::connect_host(READY_PORT).map_err(step("cannot connect to the host"))?;
    boot::prepare()?;
    logger::install(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    tokio::spawn(logger::forward());
    let connected = ready.connected().await;
    connected.map_err(step("the host did not take the connection"))?;
    let timeline = Timeline {
        init,
        ready: logger::boottime_ns(),
    };
    let endpoints = Endpoints {
        ready,
        calls,
        streams,
    };
    let places = Places {
        cgroup_parent: boot::CGROUP_ROOT.into(),
        init_exe: "/proc/self/exe".into(),
        shares: boot::SHARES_ROOT.into(),
    };
    serve(endpoints, places, timeline)
        .await
        .map_err(step("cannot serve the host"))?;
    Ok(())
}

/// Says which step an I/O error belongs to.
fn step(what: &'static str) -> impl Fn(std::io::Error) -> Box<dyn Error> {
    move |source| format!("{what}: {source}").into()
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
