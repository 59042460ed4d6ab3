//! What other commands ask of a container's monitor while the container lives.
//!
//! One packet a connection either way, over the socket `control.sock` in the state directory. Most
//! commands speak to the agent in the guest; the monitor is asked for what only it can do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cloister_vmm_api::{Channel, ChannelError};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};
use serde::{Deserialize, Serialize};

use crate::monitor::Allowance;
use crate::paths::{CONTROL_SOCKET, through_fd};
use crate::state::VmSize;

/// How many commands may wait to be heard.
const BACKLOG: i32 = 16;

/// From a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlOrder {
    /// Connect the virtual machine to the network as it is now.
    ConnectNetwork,
    /// Tell what the network interfaces have counted.
    NetworkCounters,
    /// Have the virtual machine grow so far that a container can use what it may.
    Grow {
        /// A container in it.
        id: String,
        /// What it may use; what is not in it stays as it was.
        allowance: Allowance,
    },
}

/// What a network interface has counted since it was connected, seen from the container. The names
/// are runc's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct InterfaceCounters {
    /// Its name in the container.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that could not be received for an error.
    pub rx_errors: u64,
    /// Packets to receive that were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent for an error.
    pub tx_errors: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

/// From the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlAnswer {
    /// It is done.
    Done,
    /// The interfaces' counters.
    Counters {
        /// By slot, in order.
        interfaces: Vec<InterfaceCounters>,
    },
    /// What the virtual machine has now.
    Size {
        /// Its size.
        size: VmSize,
    },
    /// It cannot be done.
    Failed {
        /// Why, with the causes.
        message: String,
    },
}

/// Why a monitor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached.
    #[error("cannot reach the container's monitor")]
    Connect(#[source] io::Error),
    /// It broke off, or did not answer in time.
    #[error("the container's monitor does not answer")]
    Channel(#[from] ChannelError),
    /// It closed its end.
    #[error("the container's monitor has ended")]
    Gone,
    /// It said no; the text is its own.
    #[error("{0}")]
    Failed(String),
    /// It has answered another question.
    #[error("the container's monitor gives an answer that was not asked for")]
    Confused,
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    Ok(socket?)
}

fn address(dir: &impl AsFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(through_fd(
        dir.as_fd(),
        CONTROL_SOCKET,
    ))?)
}

/// Listens in the state directory `dir`, which lets nobody else in.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen_in(dir: &impl AsFd) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(&socket, &address(dir)?)?;
    listen(&socket, BACKLOG)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Has the monitor whose state directory is `dir` connect the network, and waits until it has,
/// though not longer than `limit`.
///
/// # Errors
/// If it is not done.
pub fn connect_network(dir: &impl AsFd, limit: Duration) -> Result<(), ControlError> {
    match ask(dir, ControlOrder::ConnectNetwork, limit)? {
        ControlAnswer::Done => Ok(()),
        _ => Err(ControlError::Confused),
    }
}

/// Asks the monitor whose state directory is `dir` for the counters of the network interfaces,
/// though not longer than `limit`.
///
/// # Errors
/// If they cannot be had.
pub fn network_counters(
    dir: &impl AsFd,
    limit: Duration,
) -> Result<Vec<InterfaceCounters>, ControlError> {
    match ask(dir, ControlOrder::NetworkCounters, limit)? {
        ControlAnswer::Counters { interfaces } => Ok(interfaces),
        _ => Err(ControlError::Confused),
    }
}

/// Has the monitor whose state directory is `dir` make its virtual machine so large that the container
/// `id` in it can use what it may from now on, as far as that is possible, though not longer than `limit`.
/// Tells the size.
///
/// # Errors
/// If the monitor does not do it.
pub fn grow(
    dir: &impl AsFd,
    id: &str,
    allowance: Allowance,
    limit: Duration,
) -> Result<VmSize, ControlError> {
    let id = id.to_owned();
    match ask(dir, ControlOrder::Grow { id, allowance }, limit)? {
        ControlAnswer::Size { size } => Ok(size),
        _ => Err(ControlError::Confused),
    }
}

fn ask(
    dir: &impl AsFd,
    order: ControlOrder,
    limit: Duration,
) -> Result<ControlAnswer, ControlError> {
    let attempt = || {
        let socket = socket()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(limit))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
        connect(&socket, &address(dir)?)?;
        io::Result::Ok(socket)
    };
    let channel = Channel::new(attempt().map_err(ControlError::Connect)?);
    channel.send(&order, &[])?;
    match channel.recv()? {
        Some((ControlAnswer::Failed { message }, _)) => Err(ControlError::Failed(message)),
        Some((answer, _)) => Ok(answer),
        None => Err(ControlError::Gone),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn attempt(answer: Option<ControlAnswer>) -> Result<(), ControlError> {
        let directory = tempfile::tempdir().unwrap();
        let dir = File::open(directory.path()).unwrap();
        let listener = listen_in(&dir).unwrap();
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        let monitor = std::thread::spawn(move || {
            let connection = rustix::net::accept(&listener).unwrap();
            let channel = Channel::new(connection);
            let order = channel.recv().unwrap();
            assert!(matches!(order, Some((ControlOrder::ConnectNetwork, _))));
            if let Some(answer) = answer {
                channel.send(&answer, &[]).unwrap();
            }
        });
        let result = connect_network(&dir, Duration::from_secs(5));
        monitor.join().unwrap();
        result
    }

    #[test]
    fn the_monitors_answer_is_told() {
        attempt(Some(ControlAnswer::Done)).unwrap();
        let message = "no more slots".to_owned();
        let error = attempt(Some(ControlAnswer::Failed { message })).unwrap_err();
        assert_eq!(error.to_string(), "no more slots");
        assert!(matches!(attempt(None), Err(ControlError::Gone)));
        let interfaces = Vec::new();
        let answer = attempt(Some(ControlAnswer::Counters { interfaces }));
        assert!(matches!(answer, Err(ControlError::Confused)));
    }

    #[test]
    fn a_monitor_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let dir = File::open(directory.path()).unwrap();
        let error = network_counters(&dir, Duration::from_secs(1));
        assert!(matches!(error, Err(ControlError::Connect(_))));
    }
}
