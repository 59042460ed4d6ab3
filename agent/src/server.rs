//! Runs the service: takes connections, reaps children, until the host asks for the end.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport;

use crate::containers::{Containers, Places};
use crate::service::{Service, Timeline};
use crate::socket::{Listener, Socket};
use crate::sys;
use crate::tokens::Tokens;

/// How long the end waits for the last replies to be sent.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// Where the host is reached and reaches in: vsock in a guest, AF_UNIX in tests.
#[derive(Debug)]
pub struct Endpoints {
    /// The connection on which the agent has told that it is ready.
    pub ready: Socket,
    /// Further connections for calls.
    pub calls: Listener,
    /// Connections that carry standard streams.
    pub streams: Listener,
}

/// Serves calls until the host asks for the end. By then every container is gone.
///
/// Every child of the process is reaped from here on.
///
/// # Errors
/// If the process cannot watch its children or cannot serve.
pub async fn serve(endpoints: Endpoints, places: Places, timeline: Timeline) -> io::Result<()> {
    let tokens = Arc::new(Tokens::default());
    let containers = Arc::new(Containers::new(places, Arc::clone(&tokens)));
    let children = sys::register(sys::child_events()?, Interest::READABLE)?;
    tokio::spawn(reap(children, Arc::clone(&containers)));
    tokio::spawn(tokens.accept(endpoints.streams));

    let shutdown = Arc::new(Notify::new());
    let service = Arc::new(Service {
        containers,
        timeline,
        shutdown: Arc::clone(&shutdown),
    });
    let connections = Connections {
        ready: Some(endpoints.ready),
        calls: endpoints.calls,
    };
    let mut server = Server::new()
        .add_listener(transport::Listener::new(connections))
        .register_service(cloister_protocol::agent_ttrpc::create_agent(service));
    server.start().await.map_err(io::Error::other)?;
    shutdown.notified().await;
    match timeout(LAST_REPLIES, server.shutdown()).await {
        Ok(result) => result.map_err(io::Error::other),
        // A host that does not read its replies does not hold up the end.
        Err(_) => Ok(()),
    }
}

/// The connections that carry calls: first the one the agent has made, then those the host makes.
struct Connections {
    ready: Option<Socket>,
    calls: Listener,
}

impl Stream for Connections {
    type Item = io::Result<Socket>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(ready) = self.ready.take() {
            return Poll::Ready(Some(Ok(ready)));
        }
        Poll::Ready(Some(ready!(self.calls.poll_accept(cx))))
    }
}

/// Reaps children whenever one has ended.
async fn reap(children: AsyncFd<OwnedFd>, containers: Arc<Containers>) {
    let mut count = [0; size_of::<u64>()];
    loop {
        match children.readable().await {
            // The signals need no counting: several children may stand behind one. The read takes
            // them all, and only fails if there are none.
            Ok(mut guard) => match rustix::io::read(&children, &mut count) {
                Ok(_) => containers.reap(),
                Err(_) => guard.clear_ready(),
            },
            Err(e) => return log::error!("cannot watch for children: {e}"),
        }
    }
}
