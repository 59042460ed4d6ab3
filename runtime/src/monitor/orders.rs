//! What other commands ask of the monitor of a virtual machine (see [`crate::control`]).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use cloister_vmm_api::Channel;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::REST;
use super::channel::AsyncChannel;
use super::life::Life;
use super::network::ConnectError;
use crate::control::{ControlAnswer, ControlOrder};
use crate::sys::Watched;
use crate::text::chain;

/// How long a command may take to say what it wants.
const ORDER_LIMIT: Duration = Duration::from_secs(5);

impl Life<'_> {
    /// Follows them, one at a time.
    pub(super) async fn follow_orders(&self, orders: &AsyncFd<Watched<OwnedFd>>) {
        loop {
            let Ok(mut ready) = orders.readable().await else {
                return;
            };
            let connection = match rustix::net::accept_with(
                orders.get_ref().inner(),
                rustix::net::SocketFlags::CLOEXEC,
            ) {
                Ok(connection) => connection,
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(e) => {
                    log::warn!("cannot take an order: {e}");
                    sleep(REST).await;
                    continue;
                }
            };
            if let Err(e) = self.follow_order(connection).await {
                log::warn!("an order came to nothing: {}", chain(&e));
            }
        }
    }

    async fn follow_order(&self, connection: OwnedFd) -> io::Result<()> {
        let channel = AsyncChannel::new(Channel::new(connection))?;
        let order = timeout(ORDER_LIMIT, channel.recv::<ControlOrder>()).await?;
        let Some((order, _)) = order.map_err(io::Error::other)? else {
            return Ok(());
        };
        let answer = match order {
            ControlOrder::ConnectNetwork => self.connect_network().await,
            ControlOrder::NetworkCounters => self.network_counters().await,
            ControlOrder::Grow { id, allowance } => Ok(self.grow(&id, allowance).await),
        };
        let answer = answer.unwrap_or_else(|e| ControlAnswer::Failed { message: chain(&e) });
        channel.send(&answer).map_err(io::Error::other)
    }

    async fn connect_network(&self) -> Result<ControlAnswer, ConnectError> {
        let (Some(network), Some(vmm), Some(agent)) = (&self.network, &self.vmm, self.agent_now())
        else {
            return Err(ConnectError::NotReady);
        };
        network.connect(vmm, &agent).await?;
        Ok(ControlAnswer::Done)
    }

    async fn network_counters(&self) -> Result<ControlAnswer, ConnectError> {
        let interfaces = match (&self.network, &self.vmm) {
            (Some(network), Some(vmm)) => network.counters(vmm).await?,
            _ => Vec::new(),
        };
        Ok(ControlAnswer::Counters { interfaces })
    }
}
