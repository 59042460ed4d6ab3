//! A sandbox's network: what there is in its namespace on the host, and the virtual machine's
//! devices, kept the same.
//!
//! ```text
//!   scan the namespace ──▶ tap, device in a slot, redirection ──▶ tell the agent everything
//!        ▲                                                            │
//!        ╰──────────── order of `start`, or a change heard ◀──────────╯
//! ```
//!
//! It is done first when the container is started, because callers plug interfaces in between
//! `create` and `start`, and from then on whenever the kernel tells of a change.

mod forward;
mod links;

use std::cell::{OnceCell, RefCell};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cloister_netlink::{Events, Socket};
use cloister_protocol::agent::{SetNetworkRequest, Sysctl};
use cloister_protocol::{STDIO_PORT, TOKEN_LEN, agent};
use cloister_vmm_api::{
    ChannelError, Event, MAX_QUEUE_PAIRS, NET_PLATFORM_ID, NET_SLOTS, NetConfig, NetCounters,
    Request,
};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

use self::links::{Links, Plugged};
use super::place::Place;
use super::vmm::Vmm;
use super::{resolver, streams};
use crate::agent::{Agent, AgentError};
use crate::control::InterfaceCounters;
use crate::launch::Launch;
use crate::network::{self, ForwardListener, Interface, NetworkError, Scan, Tap, Traffic};
use crate::sys::{self, Watched};
use crate::text::{chain, printable};
use crate::vsock;

/// How long to wait for more of a change before it is followed.
const SETTLE: Duration = Duration::from_millis(20);
/// How long to wait before a change is followed after one that could not be followed whole.
const AGAIN: Duration = Duration::from_millis(500);
/// Where a container finds its name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The longest text of the VMM that is shown, in bytes.
const TEXT_MAX: usize = 4096;

/// Why a sandbox is not connected as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The namespace is not as it can be.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The VMM does not take or give a device.
    #[error("network interface {name}: the VMM refuses: {message}")]
    Device {
        /// The interface.
        name: String,
        /// The VMM's words.
        message: String,
    },
    /// The VMM does not answer.
    #[error("the VMM does not answer a request about network interface {0}")]
    Silent(String),
    /// The VMM has no counters for whoever asks.
    #[error("the VMM does not tell what its network devices have counted")]
    Uncounted,
    /// The VMM cannot be spoken to.
    #[error("cannot speak to the VMM")]
    Channel(#[from] ChannelError),
    /// The guest does not follow.
    #[error("the guest's network")]
    Agent(#[from] AgentError),
    /// The container has not been made yet, or has ended.
    #[error("the container is not there to be connected")]
    NotReady,
}

/// The network of a sandbox.
pub(crate) struct Network<'a> {
    place: &'a Place,
    launch: &'a Launch,
    /// The state directory.
    dir: Arc<OwnedFd>,
    queue_pairs: u8,
    links: Mutex<Links>,
    /// For requests, and for news of changes.
    sockets: OnceCell<(Socket, AsyncFd<Watched<Events>>)>,
    /// Told when the network has been connected for the first time.
    connected: Notify,
    forward: RefCell<Option<Rc<ForwardListener>>>,
    /// Told when there is a listener in `forward`, which may be long after the first connection.
    listening: Notify,
}

impl<'a> Network<'a> {
    /// To be made within a runtime. `dir` is the state directory.
    pub(crate) fn new(
        place: &'a Place,
        launch: &'a Launch,
        dir: BorrowedFd<'_>,
        vcpus: u8,
    ) -> io::Result<Self> {
        Ok(Self {
            place,
            launch,
            dir: Arc::new(dir.try_clone_to_owned()?),
            queue_pairs: vcpus.min(MAX_QUEUE_PAIRS),
            links: Mutex::default(),
            sockets: OnceCell::new(),
            connected: Notify::new(),
            forward: RefCell::default(),
            listening: Notify::new(),
        })
    }

    /// Makes the guest's network what the namespace's is now. An interface that it cannot have is an error, and left
    /// out; everything else is done.
    pub(crate) async fn connect(&self, vmm: &Vmm, agent: &Agent) -> Result<(), ConnectError> {
        let mut links = self.links.lock().await;
        let (socket, _) = match self.sockets.get() {
            Some(sockets) => sockets,
            None => {
                // The second one first: what changes after the scan is heard of.
                let events = self.place.namespace.events()?;
                let events = sys::watch(events).map_err(NetworkError::Watch)?;
                let socket = self.place.namespace.socket()?;
                self.sockets.get_or_init(|| (socket, events))
            }
        };
        let mut scan = Scan::read(socket, |_| true)?;
        let refused = std::mem::take(&mut scan.refused).into_iter();
        let mut failures: Vec<_> = refused.map(ConnectError::from).collect();
        self.unplug(&mut links, socket, &scan, vmm, agent).await?;
        for interface in &scan.interfaces {
            let known = |p: &&mut Plugged| p.interface.index == interface.index;
            let done = match links.plugged.iter_mut().find(known) {
                Some(plugged) => self.follow(plugged, socket, interface, vmm).await,
                None => self.plug(&mut links, socket, interface, vmm).await,
            };
            failures.extend(done.err());
        }
        if links.plugged.len() < scan.interfaces.len() {
            // The guest can be told nothing about an interface that it has not.
            scan = links.scan(socket)?;
        }
        let left_out = std::mem::take(&mut scan.left_out);
        self.tell(&mut links, scan, agent).await?;
        self.stand_in_for_resolvers(&mut links, agent).await;
        let is_used = !links.plugged.is_empty() || self.place.path.is_some();
        if is_used && self.forward.borrow().is_none() {
            self.take_connections();
        }
        // What waits for the first time, and need not come before it.
        self.connected.notify_one();
        links.first(failures, left_out)
    }

    /// Has questions to name servers at loopback addresses of the namespace come here.
    async fn stand_in_for_resolvers(&self, links: &mut Links, agent: &Agent) {
        let binds = self.launch.container.binds.iter();
        let mut binds = binds.filter(|bind| bind.destination == Path::new(RESOLV_CONF));
        let Some(bind) = binds.next_back() else {
            return;
        };
        let servers = match resolver::loopback_servers(&bind.source) {
            Ok(servers) => servers,
            Err(e) => return log::warn!("cannot read {}: {e}", bind.source.display()),
        };
        for server in servers {
            if links.resolvers.contains(&server) {
                continue;
            }
            match self.stand_in(server, agent).await {
                Ok(()) => links.resolvers.push(server),
                Err(e) => log::warn!("the name server {server} is not in the guest: {e}"),
            }
        }
    }

    async fn stand_in(&self, server: Ipv4Addr, agent: &Agent) -> io::Result<()> {
        let limit = self.launch.config.request_timeout;
        let token = streams::token()?;
        let ask = agent.resolve(&self.launch.id, server, token.to_vec());
        let guest = stream(&self.dir, token, ask, limit).await?;
        let namespace = Arc::clone(&self.place.namespace);
        tokio::spawn(async move {
            if let Err(e) = resolver::carry(namespace, server, guest).await {
                log::debug!("the name server {server} is not asked any more: {e}");
            }
        });
        Ok(())
    }

    /// Takes away what the namespace has not any more: first from the guest, then the device.
    async fn unplug(
        &self,
        links: &mut Links,
        socket: &Socket,
        scan: &Scan,
        vmm: &Vmm,
        agent: &Agent,
    ) -> Result<(), ConnectError> {
        let stays = |plugged: &Plugged| {
            let same = |i: &Interface| {
                i.index == plugged.interface.index && i.mac == plugged.interface.mac
            };
            scan.interfaces.iter().any(same)
        };
        let (staying, gone): (Vec<_>, Vec<_>) = links.plugged.drain(..).partition(stays);
        links.plugged = staying;
        if !gone.is_empty() {
            let told = match links.scan(socket) {
                Ok(rest) => self.tell(links, rest, agent).await,
                Err(e) => Err(e.into()),
            };
            if let Err(e) = told {
                // The guest has them still: they are taken away at the next change.
                links.plugged.extend(gone);
                return Err(e);
            }
        }
        links.leaving.extend(gone);
        let mut outcome = Ok(());
        for plugged in std::mem::take(&mut links.leaving) {
            if let Err(e) = self.detach(&plugged, vmm).await {
                links.leaving.push(plugged);
                outcome = Err(e);
                continue;
            }
            let interface = plugged.interface;
            // Its own end, if it is its address that has changed.
            let parted = network::part(socket, self.place.mark, interface.index);
            if let Err(e) = parted
                && e.errno() != Some(libc::ENODEV)
            {
                log::warn!("interface {}: {e}", interface.name);
            }
            log::info!("network interface {} has gone", interface.name);
        }
        outcome
    }

    /// Has the VMM empty a slot.
    async fn detach(&self, plugged: &Plugged, vmm: &Vmm) -> Result<(), ConnectError> {
        let request = Request::DetachNet { slot: plugged.slot };
        match self.ask(vmm, &plugged.interface, &request, &[]).await {
            // Of a slot that exists this is all that can be wrong: it is empty.
            Err(ConnectError::Device { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives the guest a device for an interface.
    async fn plug(
        &self,
        links: &mut Links,
        socket: &Socket,
        interface: &Interface,
        vmm: &Vmm,
    ) -> Result<(), ConnectError> {
        let slot = links.free_slot().ok_or_else(|| NetworkError::TooMany {
            name: interface.name.clone(),
            possible: NET_SLOTS,
        })?;
        let namespace = &self.place.namespace;
        // Before there is a tap: that of another virtual machine has the same name.
        network::release(socket, self.place.mark, interface)?;
        let tap = Tap::new(namespace, socket, slot, interface, self.queue_pairs)?;
        let config = NetConfig {
            mac: interface.mac,
            // The agent sets it. One that the device names could never be exceeded later (virtio-v1.3 §5.1.4.2).
            mtu: None,
            queue_pairs: self.queue_pairs,
            rx_limit: self.place.limits.receive,
            tx_limit: self.place.limits.send,
        };
        // The kernel keeps to no limit.
        let limited = config.rx_limit.is_some() || config.tx_limit.is_some();
        let vhosts = if self.place.vhost && !limited {
            network::open_vhost(self.queue_pairs)
        } else {
            Vec::new()
        };
        let queues: Vec<_> = tap.queues.iter().chain(&vhosts).map(AsFd::as_fd).collect();
        let attach = Request::AttachNet { slot, config };
        let plugged = Plugged {
            slot,
            interface: interface.clone(),
            tap: tap.index,
        };
        let attached = self.ask(vmm, interface, &attach, &queues).await;
        let outcome = match attached {
            Ok(()) => self.wire(&plugged, socket, vmm).await,
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => links.plugged.push(plugged),
            // The slot is free again, and so is the tap's name: now, or when the VMM has answered.
            Err(_) => {
                if let Err(e) = self.detach(&plugged, vmm).await {
                    log::warn!("{}", chain(&e));
                    links.leaving.push(plugged);
                }
            }
        }
        outcome
    }

    /// Joins an interface with the device that stands for it.
    async fn wire(
        &self,
        plugged: &Plugged,
        socket: &Socket,
        vmm: &Vmm,
    ) -> Result<(), ConnectError> {
        let Plugged {
            slot,
            interface,
            tap,
        } = plugged;
        if !interface.carrier {
            let (slot, up) = (*slot, false);
            let request = Request::SetLink { slot, up };
            self.ask(vmm, interface, &request, &[]).await?;
        }
        network::join(socket, self.place.mark, interface, *tap)?;
        Ok(())
    }

    /// Follows a change of an interface that the guest has.
    async fn follow(
        &self,
        plugged: &mut Plugged,
        socket: &Socket,
        interface: &Interface,
        vmm: &Vmm,
    ) -> Result<(), ConnectError> {
        if plugged.interface.carrier != interface.carrier {
            let request = Request::SetLink {
                slot: plugged.slot,
                up: interface.carrier,
            };
            self.ask(vmm, interface, &request, &[]).await?;
        }
        if plugged.interface.mtu != interface.mtu {
            Tap::set_mtu(socket, plugged.tap, interface)?;
        }
        plugged.interface = interface.clone();
        Ok(())
    }

    /// Tells the guest everything, if anything has changed.
    async fn tell(&self, links: &mut Links, scan: Scan, agent: &Agent) -> Result<(), ConnectError> {
        let sysctl = |(path, value): (String, String)| Sysctl {
            path,
            value,
            ..Sysctl::default()
        };
        let interface = |plugged: &Plugged| {
            let name = plugged.interface.name.clone();
            let sysctls = network::interface_sysctls(&self.place.namespace, &name)?;
            Ok(agent::Interface {
                device: u32::from(NET_PLATFORM_ID + plugged.slot),
                index: plugged.interface.index,
                name,
                mtu: plugged.interface.mtu,
                up: plugged.interface.up,
                sysctls: sysctls.into_iter().map(sysctl).collect(),
                ..agent::Interface::default()
            })
        };
        let Scan {
            interfaces: _,
            refused: _,
            left_out: _,
            addresses,
            neighbours,
            routes,
            rules,
        } = scan;
        let has_interfaces = !links.plugged.is_empty() || !links.told.interfaces.is_empty();
        let has_more = !addresses.is_empty() || !routes.is_empty();
        if !has_interfaces && !has_more && self.place.path.is_none() {
            // A namespace that was made for the container alone, and left as it was.
            return Ok(());
        }
        let sysctls = network::sysctls(&self.place.namespace)?;
        let interfaces = links.plugged.iter().map(interface);
        let interfaces = interfaces.collect::<Result<_, NetworkError>>()?;
        let request = SetNetworkRequest {
            container_id: self.launch.id.clone(),
            interfaces,
            addresses,
            neighbours,
            routes,
            rules,
            sysctls: sysctls.into_iter().map(sysctl).collect(),
            ..SetNetworkRequest::default()
        };
        if request == links.told {
            return Ok(());
        }
        agent.set_network(request.clone()).await?;
        links.told = request;
        Ok(())
    }

    /// Has the VMM do something about an interface.
    async fn ask(
        &self,
        vmm: &Vmm,
        interface: &Interface,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectError> {
        let name = || interface.name.clone();
        match vmm.ask(request, fds).await? {
            Some(Event::NetRefused { message, .. }) => Err(ConnectError::Device {
                name: name(),
                message: printable(&message, TEXT_MAX),
            }),
            Some(_) => Ok(()),
            None => Err(ConnectError::Silent(name())),
        }
    }

    /// Serves, for as long as it is polled: changes in the namespace, connections.
    pub(crate) async fn serve(&self, vmm: &Vmm, agent: &RefCell<Option<Agent>>) {
        let agent = || agent.borrow().clone();
        self.connected.notified().await;
        tokio::join!(self.follow_changes(vmm, &agent), self.forward_all(&agent));
    }

    /// What the interfaces have counted.
    pub(crate) async fn counters(&self, vmm: &Vmm) -> Result<Vec<InterfaceCounters>, ConnectError> {
        let links = self.links.lock().await;
        let request = Request::NetCounters;
        let Some(Event::NetCounters { nets }) = vmm.ask(&request, &[]).await? else {
            return Err(ConnectError::Uncounted);
        };
        // There since the network was connected for the first time.
        let Some((socket, _)) = self.sockets.get() else {
            return Ok(Vec::new());
        };
        let taps = socket.links().map_err(|source| NetworkError::List {
            what: "interfaces",
            source,
        })?;
        let of = |counters: &NetCounters| {
            let mut plugged = links.plugged.iter();
            let plugged = plugged.find(|plugged| plugged.slot == counters.slot)?;
            // What the kernel moves the VMM does not see. What the VMM drops on the way to the guest has passed the tap before.
            let [to, from] = Traffic::of(&taps, plugged.tap)?;
            Some(InterfaceCounters {
                name: plugged.interface.name.clone(),
                rx_bytes: to.bytes,
                rx_packets: to.packets.saturating_sub(counters.rx_dropped),
                rx_errors: to.errors + counters.rx_errors,
                rx_dropped: to.dropped + counters.rx_dropped,
                tx_bytes: from.bytes,
                tx_packets: from.packets,
                tx_errors: from.errors + counters.tx_errors,
                tx_dropped: from.dropped + counters.tx_dropped,
            })
        };
        Ok(nets.iter().filter_map(of).collect())
    }

    async fn follow_changes(&self, vmm: &Vmm, agent: &impl Fn() -> Option<Agent>) {
        // There since the network was connected for the first time.
        let Some((_, events)) = self.sockets.get() else {
            return;
        };
        let mut told = String::new();
        loop {
            loop {
                let Ok(mut ready) = events.readable().await else {
                    return;
                };
                match events.get_ref().inner().drain() {
                    Ok(true) => break,
                    Ok(false) => ready.clear_ready(),
                    Err(e) => return log::error!("changes of the network are not heard: {e}"),
                }
            }
            sleep(SETTLE).await;
            // A failure here shows in the loop above.
            let _ = events.get_ref().inner().drain();
            let Some(agent) = agent() else {
                continue;
            };
            let problem = match self.connect(vmm, &agent).await {
                Ok(()) => String::new(),
                Err(e) => chain(&e),
            };
            if problem.is_empty() {
                told.clear();
                continue;
            }
            // Each change brings it again, for as long as its cause is there.
            if told != problem {
                log::warn!("a change of the network is not followed: {problem}");
                told = problem;
            }
            // What was made in vain and taken away again is a change, too.
            sleep(AGAIN).await;
        }
    }
}

/// Connects a stream to the guest, which `ask` tells what it is for.
async fn stream(
    dir: &OwnedFd,
    token: [u8; TOKEN_LEN],
    ask: impl Future<Output = Result<(), AgentError>>,
    limit: Duration,
) -> io::Result<UnixStream> {
    let connect = async {
        let stream = vsock::connect(dir, STDIO_PORT, limit).await;
        let mut stream = stream.map_err(io::Error::other)?;
        stream.write_all(&token).await?;
        Ok(stream)
    };
    let ask = async { ask.await.map_err(io::Error::other) };
    let (stream, ()) = tokio::try_join!(connect, ask)?;
    Ok(stream)
}
