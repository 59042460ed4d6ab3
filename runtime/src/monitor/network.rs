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
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::time::sleep;

use super::place::Place;
use super::vmm::Vmm;
use super::{resolver, streams};
use crate::agent::{Agent, AgentError};
use crate::control::InterfaceCounters;
use crate::launch::Launch;
use crate::network::{self, ForwardListener, Forwarded, Interface, NetworkError, Scan, Tap};
use crate::sys::{self, Watched};
use crate::text::{chain, printable};
use crate::vsock;

/// How long to wait for more of a change before it is followed.
const SETTLE: Duration = Duration::from_millis(20);
/// How many connections to the guest's ports there may be at once.
const MAX_FORWARDED: usize = 256;
/// How long to rest when a connection cannot be taken: the process is out of descriptors.
const REST: Duration = Duration::from_millis(100);
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

/// An interface that the guest has.
struct Plugged {
    slot: u8,
    interface: Interface,
    tap: u32,
}

/// What has been done so far.
#[derive(Default)]
struct Links {
    plugged: Vec<Plugged>,
    told: SetNetworkRequest,
    /// The name servers of the namespace that are stood in for.
    resolvers: Vec<Ipv4Addr>,
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
        })
    }

    /// Makes the guest's network what the namespace's is now.
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
        let scan = Scan::read(socket, |_| true)?;
        self.unplug(&mut links, socket, &scan, vmm, agent).await?;
        for interface in &scan.interfaces {
            let known = |p: &Plugged| p.interface.index == interface.index;
            match links.plugged.iter().position(known) {
                Some(at) => {
                    if let Some(plugged) = links.plugged.get_mut(at) {
                        self.follow(plugged, socket, interface, vmm).await?;
                    }
                }
                None => {
                    let plugged = self.plug(&links, socket, interface, vmm).await?;
                    links.plugged.push(plugged);
                }
            }
        }
        self.tell(&mut links, scan, agent).await?;
        self.stand_in_for_resolvers(&mut links, agent).await;
        let is_used = !links.plugged.is_empty() || self.place.path.is_some();
        if is_used && self.forward.borrow().is_none() {
            self.take_connections();
        }
        // What waits for the first time, and need not come before it.
        self.connected.notify_one();
        Ok(())
    }

    /// Takes the connections to the namespace's own addresses. The network is there without it.
    fn take_connections(&self) {
        match ForwardListener::new(&self.place.namespace) {
            Ok(listener) => *self.forward.borrow_mut() = Some(Rc::new(listener)),
            Err(e) => log::warn!("{}: ports of the guest are not forwarded", chain(&e)),
        }
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
        if gone.is_empty() {
            return Ok(());
        }
        let index = |plugged: &Plugged| plugged.interface.index;
        let known: Vec<_> = links.plugged.iter().map(index).collect();
        let rest = Scan::read(socket, |interface| known.contains(&interface.index))?;
        if let Err(e) = self.tell(links, rest, agent).await {
            // The guest has them still: they are taken away at the next change.
            links.plugged.extend(gone);
            return Err(e);
        }
        for plugged in gone {
            let Plugged {
                slot, interface, ..
            } = plugged;
            self.ask(vmm, &interface, &Request::DetachNet { slot }, &[])
                .await?;
            // Its own end, if it is its address that has changed.
            let parted = network::part(socket, self.place.mark, interface.index);
            if let Err(e) = parted
                && e.errno() != Some(libc::ENODEV)
            {
                log::warn!("interface {}: {e}", interface.name);
            }
            log::info!("network interface {} has gone", interface.name);
        }
        Ok(())
    }

    /// Gives the guest a device for an interface.
    async fn plug(
        &self,
        links: &Links,
        socket: &Socket,
        interface: &Interface,
        vmm: &Vmm,
    ) -> Result<Plugged, ConnectError> {
        let is_free = |slot: &u8| !links.plugged.iter().any(|p| p.slot == *slot);
        let slot = (0..NET_SLOTS).find(is_free);
        let slot = slot.ok_or_else(|| NetworkError::TooMany {
            name: interface.name.clone(),
            possible: NET_SLOTS,
        })?;
        let namespace = &self.place.namespace;
        let tap = Tap::new(namespace, socket, slot, interface, self.queue_pairs)?;
        let config = NetConfig {
            mac: interface.mac,
            // Larger than any: the guest is told it anyway.
            mtu: u16::try_from(interface.mtu).ok(),
            queue_pairs: self.queue_pairs,
            rx_limit: self.place.limits.receive,
            tx_limit: self.place.limits.send,
        };
        let queues: Vec<_> = tap.queues.iter().map(AsFd::as_fd).collect();
        let attach = Request::AttachNet { slot, config };
        self.ask(vmm, interface, &attach, &queues).await?;
        let plugged = Plugged {
            slot,
            interface: interface.clone(),
            tap: tap.index,
        };
        match self.wire(&plugged, socket, vmm).await {
            Ok(()) => Ok(plugged),
            Err(e) => {
                // The slot is free again, and so is the tap's name.
                let detach = Request::DetachNet { slot };
                if let Err(e) = self.ask(vmm, interface, &detach, &[]).await {
                    log::warn!("{}", chain(&e));
                }
                Err(e)
            }
        }
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
        let interface = |plugged: &Plugged| agent::Interface {
            device: u32::from(NET_PLATFORM_ID + plugged.slot),
            index: plugged.interface.index,
            name: plugged.interface.name.clone(),
            mtu: plugged.interface.mtu,
            up: plugged.interface.up,
            ..agent::Interface::default()
        };
        let Scan {
            interfaces: _,
            addresses,
            neighbours,
            routes,
            rules,
        } = scan;
        let has_interfaces = !links.plugged.is_empty() || !links.told.interfaces.is_empty();
        if !has_interfaces && self.place.path.is_none() {
            // A namespace that was made for the container alone, and left as it was.
            return Ok(());
        }
        let sysctls = network::sysctls(&self.place.namespace)?;
        let sysctl = |(path, value): (&str, String)| Sysctl {
            path: path.into(),
            value,
            ..Sysctl::default()
        };
        let request = SetNetworkRequest {
            container_id: self.launch.id.clone(),
            interfaces: links.plugged.iter().map(interface).collect(),
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
    async fn follow_changes(&self, vmm: &Vmm, agent: &impl Fn() -> Option<Agent>) {
        // There since the network was connected for the first time.
        let Some((_, events)) = self.sockets.get() else {
            return;
        };
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
            if let Some(agent) = agent()
                && let Err(e) = self.connect(vmm, &agent).await
            {
                log::warn!("a change of the network is not followed: {}", chain(&e));
            }
        }
    }

    async fn forward_all(&self, agent: &impl Fn() -> Option<Agent>) {
        let listener = self.forward.borrow().clone();
        let Some(listener) = listener else {
            return;
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
    match self::stream(dir, token, ask, limit).await {
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
