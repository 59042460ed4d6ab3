//! From the control socket to the end of service.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use cloister_vmm_api::fs::{Reply, Request, ServeConfig, ServeError};
use cloister_vmm_api::{Channel, ChannelError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::jail::{self, JailError};
use crate::service::{Service, ServiceError};
use crate::session::Session;
use crate::shared::Shared;
use crate::tree::{self, TreeError};

/// Why a server cannot serve, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The control socket is of no use.
    #[error("control socket")]
    Control(#[source] ChannelError),
    /// There is no control socket.
    #[error("descriptor 3 is not a control socket")]
    NoControl(#[source] Errno),
    /// The owner closed the control socket before it asked for anything.
    #[error("the owner closed the control socket without a request")]
    NoRequest,
    /// The request does not hold.
    #[error("request")]
    Config(#[source] ServeError),
    /// The descriptors do not match the request.
    #[error(
        "request: {got} descriptors given, {needed} needed: the vhost-user socket and one an export"
    )]
    Descriptors {
        /// How many came.
        got: usize,
        /// How many the request is about.
        needed: usize,
    },
    /// The first descriptor is not a stream socket.
    #[error("request: the first descriptor is not an AF_UNIX stream socket")]
    Socket,
    /// The tree cannot be built.
    #[error(transparent)]
    Tree(TreeError),
    /// The process cannot be jailed.
    #[error(transparent)]
    Jail(JailError),
    /// The root of the tree cannot be served.
    #[error("cannot open the shared tree")]
    Open(#[source] io::Error),
    /// The workers cannot be prepared.
    #[error(transparent)]
    Service(ServiceError),
    /// The thread that waits for the owner cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The VMM broke the vhost-user protocol.
    #[error("vhost-user: {0}")]
    Protocol(ProtocolError),
}

/// Serves what the owner asks for, until the VMM closes its socket. When the owner closes the
/// control socket first, `gone` is called in a thread of its own, and must end the process.
///
/// # Errors
/// What could not be done; as far as the owner is there it has been told.
pub fn run(control: Channel, gone: fn()) -> Result<(), RunError> {
    let prepared = prepare(&control);
    let reply = match &prepared {
        Ok(_) => Reply::Ready,
        Err(error) => Reply::Error {
            message: chain(error),
        },
    };
    let told = control.send(&reply, &[]);
    let (socket, service) = prepared?;
    told.map_err(RunError::Control)?;

    thread::Builder::new()
        .name("owner".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            watch(&control);
            gone();
        })
        .map_err(RunError::Thread)?;
    let session = Arc::new(Mutex::new(Session::new(service)));
    let mut requests = BackendReqHandler::from_stream(socket, session);
    loop {
        match requests.handle_request() {
            Ok(()) => {}
            Err(ProtocolError::Disconnected | ProtocolError::SocketBroken(_)) => return Ok(()),
            Err(error) => return Err(RunError::Protocol(error)),
        }
    }
}

/// Waits for the owner to go away, or to say something, which it has no business to.
fn watch(control: &Channel) {
    loop {
        let mut descriptors = [PollFd::new(control, PollFlags::IN)];
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => {}
            Ok(_) => break,
            Err(error) => return log::error!("cannot wait for the owner: {error}"),
        }
    }
}

/// Reads the request and does everything that it takes to serve.
fn prepare(control: &Channel) -> Result<(UnixStream, Arc<Service<Shared>>), RunError> {
    let (Request::Serve { config }, mut descriptors) = control
        .recv()
        .map_err(RunError::Control)?
        .ok_or(RunError::NoRequest)?;
    config.validate().map_err(RunError::Config)?;
    let needed = 1 + config.exports.len();
    if descriptors.len() != needed {
        return Err(RunError::Descriptors {
            got: descriptors.len(),
            needed,
        });
    }
    let socket = stream(descriptors.remove(0))?;
    serve(&config, &descriptors, &socket).map(|service| (socket, service))
}

fn serve(
    config: &ServeConfig,
    exports: &[OwnedFd],
    socket: &UnixStream,
) -> Result<Arc<Service<Shared>>, RunError> {
    let descriptors = tree::build(&config.exports, exports).map_err(RunError::Tree)?;
    let limit = jail::raise_descriptor_limit(socket).map_err(RunError::Jail)?;
    let files = Shared::new("/", descriptors, limit).map_err(RunError::Open)?;
    let service = Service::new(files, config.threads.into()).map_err(RunError::Service)?;
    jail::enter().map_err(RunError::Jail)?;
    Ok(service)
}

fn stream(descriptor: OwnedFd) -> Result<UnixStream, RunError> {
    let domain = rustix::net::sockopt::socket_domain(&descriptor);
    let kind = rustix::net::sockopt::socket_type(&descriptor);
    if domain != Ok(AddressFamily::UNIX) || kind != Ok(SocketType::STREAM) {
        return Err(RunError::Socket);
    }
    Ok(descriptor.into())
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
