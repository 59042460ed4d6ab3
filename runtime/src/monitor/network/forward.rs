//! Connections to the namespace's own addresses, carried to the guest (see [`ForwardListener`]).

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::Network;
use crate::agent::Agent;
use crate::monitor::REST;
use crate::monitor::streams;
use crate::network::{ForwardListener, Forwarded};
use crate::text::chain;

/// How many connections to the guest's ports there may be at once.
const MAX_FORWARDED: usize = 256;

impl Network<'_> {
    /// Takes the connections to the namespace's own addresses. The network is there without it.
    pub(super) fn take_connections(&self) {
        match ForwardListener::new(&self.place.namespace) {
            Ok(listener) => {
                *self.forward.borrow_mut() = Some(Rc::new(listener));
                self.listening.notify_one();
            }
            Err(e) => log::warn!("{}: ports of the guest are not forwarded", chain(&e)),
        }
    }

    /// Carries connections to the guest's ports, for as long as it is polled.
    pub(super) async fn forward_all(&self, agent: &impl Fn() -> Option<Agent>) {
        let listener = loop {
            if let Some(listener) = self.forward.borrow().clone() {
                break listener;
            }
            self.listening.notified().await;
        };
        let places = Arc::new(Semaphore::new(MAX_FORWARDED));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let forwarded = match listener.accept().await {
                Ok(forwarded) => forwarded,
                Err(e) => {
                    log::warn!("cannot take a connection to a port of the guest: {e}");
                    sleep(REST).await;
                    continue;
                }
            };
            let Some(agent) = agent() else {
                continue;
            };
            let (id, dir) = (self.launch.id.clone(), Arc::clone(&self.dir));
            let limit = self.launch.config.request_timeout;
            tokio::spawn(async move {
                if let Err(e) = forward(forwarded, &agent, &id, &dir, limit).await {
                    log::debug!("a connection to a port of the guest came to nothing: {e}");
                }
                drop(place);
            });
        }
    }
}

/// Carries one connection to a port of the guest.
async fn forward(
    forwarded: Forwarded,
    agent: &Agent,
    id: &str,
    dir: &OwnedFd,
    limit: Duration,
) -> io::Result<()> {
    let Forwarded {
        mut stream,
        port,
        ipv6,
    } = forwarded;
    let token = streams::token()?;
    let ask = agent.forward(id, port, ipv6, token.to_vec());
    match super::stream(dir, token, ask, limit).await {
        Ok(mut guest) => {
            tokio::io::copy_bidirectional(&mut stream, &mut guest).await?;
            Ok(())
        }
        Err(e) => {
            // As if nobody listened: the connection is reset.
            stream.set_zero_linger()?;
            Err(e)
        }
    }
}
