//! The device as its transport sees it, and the event thread's side of it.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::offload::{self, tun};
use super::rate::Bucket;
use super::session::{Flow, Host, Session, Token};
use super::tap::Tap;
use super::vhost::Vhost;
use super::{Config, DriverState, Error, MAX_PACKET, MAX_QUEUE_PAIRS, Metrics, RateLimit, State};
use crate::device::{ActivateError, Activation, GuestRam, SavedQueue, VirtioDevice};
use crate::poll::Poller;
use crate::warn_guest;

/// The size of receive and transmit queues. Linux fills a receive queue with buffers, about 400 KiB
/// of the guest's memory at this size.
const QUEUE_SIZE: u16 = 256;
/// The size of the control queue. Linux has one command under way.
const CONTROL_SIZE: u16 = 64;

/// How many commands that change something are followed, the start of the device among them: each changes what the host's
/// kernel knows of the taps, under a lock of that whole kernel. Linux sends a handful in a device's life.
const COMMANDS: RateLimit = RateLimit {
    bytes_per_second: 20,
    burst: 64,
};

/// Offered whatever the configuration is.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The device.
#[derive(Debug)]
pub struct Net {
    config: Config,
    queue_sizes: Vec<u16>,
    offered: u64,
    /// Makes the event thread look at everything.
    wake: EventFd,
    /// When a rate limit allows more.
    timer: TimerFd,
    host: Host,
    /// What the driver had commanded before the device was restored, until it is active again.
    resumed: Option<DriverState>,
    session: Option<Session>,
}

impl Net {
    /// A device that waits for its driver, with a tap a queue pair. The link is up.
    ///
    /// # Errors
    /// If `config` and `taps` do not fit each other or a tap does not do what it must, or the
    /// process is out of descriptors.
    pub fn new(config: Config, taps: Vec<Tap>) -> Result<Self, Error> {
        let state = State {
            config,
            link_up: true,
            driver: None,
        };
        Self::restore(state, taps)
    }

    /// A device that goes on from `state`.
    ///
    /// # Errors
    /// As for [`Net::new`].
    pub fn restore(state: State, taps: Vec<Tap>) -> Result<Self, Error> {
        let State {
            config,
            link_up,
            driver,
        } = state;
        let pairs = config.queue_pairs;
        if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Err(Error::QueuePairs(pairs));
        }
        let uso = prepare(pairs, &taps)?;

        let poller = Poller::new().map_err(Error::Events)?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Events)?;
        let timer = TimerFd::new().map_err(|errno| Error::Events(errno.into()))?;
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Events)?;
        for (source, token) in [
            (wake.as_raw_fd(), Token::Wake),
            (timer.as_raw_fd(), Token::Timer),
            (broken.as_raw_fd(), Token::Broken),
        ] {
            (poller.add(&source, token, EventSet::IN)).map_err(Error::Events)?;
        }

        let mut offered = FEATURES | offload::offered(uso);
        if config.mtu.is_some() {
            offered |= 1 << VIRTIO_NET_F_MTU;
        }
        if pairs > 1 {
            offered |= 1 << VIRTIO_NET_F_MQ;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_SIZE);
        let now = Instant::now();
        let bucket = |limit| Bucket::new(limit, now);
        Ok(Self {
            queue_sizes,
            offered,
            wake,
            timer,
            host: Host {
                poller,
                taps,
                vhosts: Vec::new(),
                broken,
                flow: Flow {
                    link_up,
                    paused: false,
                    rx_bucket: config.rx_limit.map(bucket),
                    tx_bucket: config.tx_limit.map(bucket),
                    commands: bucket(COMMANDS),
                    metrics: Metrics::default(),
                    scratch: vec![0; MAX_PACKET],
                },
            },
            config,
            resumed: driver,
            session: None,
        })
    }

    /// Has the kernel move the packets, with a descriptor of vhost-net a queue pair. To be called before there is a driver.
    /// What it moves is not counted here, but by the taps.
    ///
    /// # Errors
    /// If `vhosts` does not fit the configuration.
    pub fn with_vhost(mut self, vhosts: Vec<Vhost>) -> Result<Self, Error> {
        let pairs = self.config.queue_pairs;
        if vhosts.len() != usize::from(pairs) {
            let vhosts = vhosts.len();
            return Err(Error::Vhosts { pairs, vhosts });
        }
        if self.config.rx_limit.is_some() || self.config.tx_limit.is_some() {
            return Err(Error::Limits);
        }
        self.host.vhosts = vhosts;
        Ok(self)
    }

    /// Stands still with the virtual machine: nothing moves before [`Net::resume`], and [`VirtioDevice::queue_states`] is exact.
    pub fn pause(&mut self) {
        self.host.flow.paused = true;
        if let Some(session) = &mut self.session {
            session.pause(&mut self.host);
        }
    }

    /// Goes on.
    pub fn resume(&mut self) {
        self.host.flow.paused = false;
        self.wake();
    }

    /// What outlives the device.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            config: self.config.clone(),
            link_up: self.host.flow.link_up,
            driver: self.session.as_ref().map(Session::state).or(self.resumed),
        }
    }

    /// What the device has counted so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.host.flow.metrics
    }

    /// Tells the driver whether the link is up. While it is down, packets are dropped in both
    /// directions.
    pub fn set_link(&mut self, up: bool) {
        if self.host.flow.link_up == up {
            return;
        }
        self.host.flow.link_up = up;
        if let Some(session) = &self.session
            && let Err(error) = session.interrupt().config_change()
        {
            log::error!("net: cannot raise an interrupt: {error}");
        }
        self.wake();
    }

    /// The descriptor that becomes readable when there is something to do.
    #[must_use]
    pub fn event_source(&self) -> RawFd {
        self.host.poller.as_raw_fd()
    }

    /// Its taps, one a queue pair.
    #[must_use]
    pub fn taps(&self) -> &[Tap] {
        &self.host.taps
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("net: cannot signal the event thread: {error}");
        }
    }

    /// Does what there is to do.
    fn serve(&mut self) {
        let events = match self.host.poller.take() {
            Ok(events) => events,
            Err(error) => {
                log::error!("net: cannot take events: {error}");
                return;
            }
        };
        let Some(session) = &mut self.session else {
            return;
        };
        let mut broken = false;
        for (token, events) in events {
            broken |= token == Token::Broken;
            session.note(token, events);
        }
        let turn = if broken || session.is_lost() {
            Err("the kernel has found a queue broken".into())
        } else {
            session
                .turn(&mut self.host)
                .map_err(|error| error.to_string())
        };
        match turn {
            Ok(left) => {
                if let Some(wait) = left.wait
                    && let Err(error) = self.timer.reset(wait, None)
                {
                    log::error!("net: cannot set the timer: {error}");
                }
                if left.more {
                    self.wake();
                }
            }
            Err(error) => {
                warn_guest!("net: {error}");
                self.host.flow.metrics.queue_errors += 1;
                if let Err(error) = session.interrupt().needs_reset() {
                    log::error!("net: cannot raise an interrupt: {error}");
                }
                self.stop();
            }
        }
    }

    fn stop(&mut self) {
        if let Some(mut session) = self.session.take() {
            session.stop(&mut self.host);
        }
    }
}

/// Checks the taps against each other, and finds out whether they can cut UDP segments. A tap
/// comes attached: all but the first are detached until the driver asks for them.
fn prepare(pairs: u8, taps: &[Tap]) -> Result<bool, Error> {
    let (Some(first), true) = (taps.first(), taps.len() == usize::from(pairs)) else {
        let taps = taps.len();
        return Err(Error::Taps { pairs, taps });
    };
    if !taps.iter().all(|tap| tap.is_beside(first)) {
        return Err(Error::Interfaces);
    }
    let failed = |index| move |source| Error::Tap { index, source };
    for (index, tap) in taps.iter().enumerate().skip(1) {
        tap.set_attached(false).map_err(failed(index))?;
    }
    let uso = first.set_offload(tun::BASIC | tun::USO).is_ok();
    if !uso {
        first.set_offload(tun::BASIC).map_err(failed(0))?;
    }
    first.set_offload(0).map_err(failed(0))?;
    Ok(uso)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn offered_features(&self) -> u64 {
        self.offered
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio-v1.3 §5.1.4: mac, status, max_virtqueue_pairs, mtu; little-endian.
        let status = if self.host.flow.link_up {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let status = u16::try_from(status).unwrap_or_default();
        let pairs = u16::from(self.config.queue_pairs);
        let words = [status, pairs, self.config.mtu.unwrap_or(0)];
        let words = words.into_iter().flat_map(u16::to_le_bytes);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = self.config.mac.into_iter().chain(words).skip(offset);
        for byte in data {
            *byte = rest.next().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // virtio-v1.3 §5.1.4: with VIRTIO_F_VERSION_1 nothing is writable.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut session = Session::new(activation)?;
        let commands = &mut self.host.flow.commands;
        if !commands.ready(Instant::now()) {
            return Err(ActivateError::TooOften);
        }
        commands.spend(1);
        if let Err(error) = session.start(&mut self.host, self.resumed.take()) {
            session.stop(&mut self.host);
            return Err(error);
        }
        self.session = Some(session);
        self.wake.write(1).map_err(ActivateError::Signal)
    }

    fn reset(&mut self) {
        self.resumed = None;
        self.stop();
    }

    fn set_memory(&mut self, memory: GuestRam) {
        if let Some(session) = &mut self.session {
            session.set_memory(&mut self.host, memory);
        }
    }

    fn queue_states(&self) -> Vec<SavedQueue> {
        self.session
            .as_ref()
            .map_or_else(Vec::new, Session::queue_states)
    }
}

impl MutEventSubscriber for Net {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new_raw(self.event_source(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("net: cannot watch for events: {error}");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.event_source() {
            self.serve();
        }
    }
}
