//! Why a container came to nothing, or to an end that was not its own.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::machine::MachineError;
use super::network::ConnectError as NetworkConnectError;
use crate::agent::AgentError;
use crate::cgroup::CgroupError;
use crate::descriptors::DescriptorError;
use crate::hooks::HookError;
use crate::launch::MESSAGE_MAX;
use crate::namespaces::NamespaceError;
use crate::network::NetworkError;
use crate::paths::ContainerPaths;
use crate::signal::Signal;
use crate::state::StateError;
use crate::text::{chain, last_lines};
use crate::vsock::ConnectError;

/// Why a container came to nothing, or to an end that was not its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot start the virtual machine")]
    Machine(#[from] MachineError),
    #[error("the virtual machine ended: {0}")]
    VmEnded(String),
    #[error("the VMM broke its contract: {0}")]
    VmContract(String),
    #[error("the file server failed: {0}")]
    FileServer(String),
    #[error(
        "the agent in the guest did not connect within {} s (boot_timeout_s)",
        .0.as_secs()
    )]
    NoAgent(Duration),
    /// The agent's own words need no introduction.
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("cannot connect the standard streams")]
    Stream(#[source] ConnectError),
    #[error("cannot relay the standard streams")]
    Relay(#[source] io::Error),
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    #[error("the container's monitor is gone")]
    MonitorGone,
    #[error("cannot enter the container's namespaces")]
    Network(#[source] io::Error),
    #[error("cannot connect the container to its network")]
    Connect(#[from] NetworkConnectError),
    #[error(transparent)]
    Place(#[from] NetworkError),
    #[error("cannot take orders from other commands")]
    Control(#[source] io::Error),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Names the descriptor.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The hook's own words need no introduction.
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write the pid file {}", .0.display())]
    PidFile(PathBuf, #[source] io::Error),
    #[error("interrupted by signal {}", .0.number())]
    Interrupted(Signal),
    #[error("cannot open the virtual machine's directory {}", .0.display())]
    NoMachine(PathBuf, #[source] io::Error),
    #[error("the command that asked for the container is gone")]
    CallerGone,
    #[error("the monitor cannot go on")]
    Own(#[source] io::Error),
}

impl Failure {
    /// Whether this is what a broken machine looks like from afar, so that the cause is worth
    /// waiting for.
    pub(crate) fn is_symptom(&self) -> bool {
        matches!(
            self,
            Self::Stream(_) | Self::Agent(AgentError::Lost { .. } | AgentError::Connect(_))
        )
    }

    /// Whether the guest's last words may say more.
    fn concerns_guest(&self) -> bool {
        match self {
            Self::VmEnded(_)
            | Self::VmContract(_)
            | Self::FileServer(_)
            | Self::NoAgent(_)
            | Self::Stream(_) => true,
            Self::Agent(error) => !matches!(error, AgentError::Refused { .. }),
            _ => false,
        }
    }

    /// The whole story: the causes, and what the guest said last.
    pub(crate) fn message(&self, paths: &ContainerPaths) -> String {
        let mut message = chain(self);
        if self.concerns_guest() {
            for (what, path) in [
                ("console", paths.console_log()),
                ("agent's log", paths.agent_log()),
            ] {
                match last_lines(&path) {
                    Ok(lines) if lines.is_empty() => {
                        if what == "console" {
                            message.push_str("; the guest's console is empty");
                        }
                    }
                    Ok(lines) => {
                        message.push_str(&format!("\nlast lines of the guest's {what}:"));
                        for line in lines {
                            message.push_str("\n    ");
                            message.push_str(&line);
                        }
                    }
                    Err(e) => message.push_str(&format!("\n{}: {e}", path.display())),
                }
            }
        }
        if message.len() > MESSAGE_MAX {
            let mut end = MESSAGE_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        message
    }
}
