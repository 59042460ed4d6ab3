//! What other commands ask of the monitor about the network (see [`crate::control`]).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use cloister_vmm_api::{Channel, Event, NetCounters, Request};
use tokio::time::{sleep, timeout};

use super::{ConnectError, Network, REST};
use crate::agent::Agent;
use crate::control::{ControlAnswer, ControlOrder, InterfaceCounters};
use crate::monitor::life::AsyncChannel;
use crate::text::chain;

/// How long a command may take to say what it wants.
const ORDER_LIMIT: Duration = Duration::from_secs(5);

impl Network<'_> {
    pub(super) async fn follow_orders(
        &self,
        vmm: &AsyncChannel,
        agent: &impl Fn() -> Option<Agent>,
    ) {
        loop {
            let Ok(mut ready) = self.orders.readable().await else {
                return;
            };
            let connection = match rustix::net::accept_with(
                self.orders.get_ref().inner(),
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
            if let Err(e) = self.follow_order(connection, vmm, agent()).await {
                log::warn!("an order came to nothing: {}", chain(&e));
            }
        }
    }

    async fn follow_order(
        &self,
        connection: OwnedFd,
        vmm: &AsyncChannel,
        agent: Option<Agent>,
    ) -> io::Result<()> {
        let channel = AsyncChannel::new(Channel::new(connection))?;
        let order = timeout(ORDER_LIMIT, channel.recv::<ControlOrder>()).await?;
        let Some((order, _)) = order.map_err(io::Error::other)? else {
            return Ok(());
        };
        let result = match (order, agent) {
            (ControlOrder::ConnectNetwork, Some(agent)) => {
                let connected = self.connect(vmm, &agent).await;
                connected.map(|()| ControlAnswer::Done)
            }
            (ControlOrder::ConnectNetwork, None) => Err(ConnectError::NotReady),
            (ControlOrder::NetworkCounters, _) => {
                let interfaces = self.counters(vmm).await;
                interfaces.map(|interfaces| ControlAnswer::Counters { interfaces })
            }
        };
        let answer = result.unwrap_or_else(|e| ControlAnswer::Failed { message: chain(&e) });
        channel.send(&answer).map_err(io::Error::other)
    }

    /// What the interfaces have counted.
    async fn counters(&self, vmm: &AsyncChannel) -> Result<Vec<InterfaceCounters>, ConnectError> {
        let links = self.links.lock().await;
        let request = Request::NetCounters;
        let Some(Event::NetCounters { nets }) = self.answer(vmm, &request, &[]).await? else {
            return Err(ConnectError::Uncounted);
        };
        let of = |counters: &NetCounters| {
            let mut plugged = links.plugged.iter();
            let plugged = plugged.find(|plugged| plugged.slot == counters.slot)?;
            Some(InterfaceCounters {
                name: plugged.interface.name.clone(),
                rx_bytes: counters.rx_bytes,
                rx_packets: counters.rx_packets,
                rx_errors: counters.rx_errors,
                rx_dropped: counters.rx_dropped,
                tx_bytes: counters.tx_bytes,
                tx_packets: counters.tx_packets,
                tx_errors: counters.tx_errors,
                tx_dropped: counters.tx_dropped,
            })
        };
        Ok(nets.iter().filter_map(of).collect())
    }
}
