//! Why a request about a container fails.

use super::{MAX_CONTAINERS, MAX_ID};
use crate::forward::ForwardError;
use crate::network::NetworkError;
use crate::resolve::ResolveError;
use crate::shares::ShareError;
use crate::stdio::StdioError;

/// Why a request about a container fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// The request is at fault.
    #[error("container_id: {id:?}: 1 to {MAX_ID} letters, digits and + - . _ make an id")]
    Id {
        /// What was given.
        id: String,
    },
    /// The request is at fault.
    #[error("{field}: missing")]
    Missing {
        /// The field of the request.
        field: String,
    },
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// What was given.
        id: String,
    },
    /// The id is taken.
    #[error("container {id:?} exists already")]
    Exists {
        /// What was given.
        id: String,
    },
    /// The request is at fault.
    #[error("exec_id: {id:?}: 1 to {MAX_ID} letters, digits and + - . _ make an id")]
    ExecId {
        /// What was given.
        id: String,
    },
    /// There is no such executed process.
    #[error("there is no process {id:?}")]
    NoExec {
        /// What was given.
        id: String,
    },
    /// The id of an executed process is taken.
    #[error("exec_id: there is a process {id:?} already")]
    ExecExists {
        /// What was given.
        id: String,
    },
    /// Too many executed processes.
    #[error("too many processes have been executed in the container and not waited for")]
    TooManyExecs,
    /// A namespace of another container cannot be shared.
    #[error("{field}: {problem}")]
    Join {
        /// The field of the request.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no thread for what may take long.
    #[error("cannot wait for what is done in container {id:?}")]
    Thread {
        /// The container.
        id: String,
        /// Why.
        source: std::io::Error,
    },
    /// What the container uses cannot be read.
    #[error("cannot read what container {id:?} uses")]
    Usage {
        /// The container.
        id: String,
        /// Why.
        source: std::io::Error,
    },
    /// Too many containers.
    #[error("{MAX_CONTAINERS} containers exist, no more are possible")]
    TooMany,
    /// The container does not allow it now.
    #[error("container {id:?} {state}")]
    State {
        /// The container.
        id: String,
        /// What it is instead.
        state: &'static str,
    },
    /// The standard streams cannot be had.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A path of the host cannot be used.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The container cannot be built or driven.
    #[error(transparent)]
    Container(#[from] cloister_container::Error),
    /// The network is not what it should be.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A stream cannot be forwarded.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Name servers of the host cannot be stood in for.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The terminal cannot be resized.
    #[error("cannot resize the terminal of container {id:?}")]
    Resize {
        /// The container.
        id: String,
        /// Why.
        source: std::io::Error,
    },
    /// The killed init process was not seen to end.
    #[error("the init process of container {id:?} does not end")]
    Undead {
        /// The container.
        id: String,
    },
}
