//! The device as its transport sees it.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::muxer::Muxer;
use super::poll::{Poller, Token};
use super::session::Session;
use super::{Config, Connector, Error, Metrics, State};
use crate::device::{ActivateError, Activation, GuestRam, SavedQueue, VirtioDevice};
use crate::warn_guest;

/// virtio-v1.3 §5.10.3: byte streams are supported.
const VIRTIO_VSOCK_F_STREAM: u32 = 0;

/// virtio-v1.3 §5.10.2: rx, tx, event. Linux fills rx with buffers of 4 KiB and never takes more
/// than eight for events.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// The device.
pub struct Vsock {
    poller: Arc<Poller>,
    /// Makes the event thread look at everything.
    wake: EventFd,
    muxer: Muxer,
    session: Option<Session>,
    /// The driver has to be told that its streams are gone.
    transport_reset: bool,
    /// Kicks of a former session that are still watched. There is one such session at most: only
    /// the event thread starts to watch, and it stops to watch these first.
    stale_kicks: Vec<EventFd>,
}

impl Vsock {
    /// A device that waits for its driver. Host processes reach the guest through `listener`, and
    /// the guest reaches the host through `connector`.
    ///
    /// # Errors
    /// If `config` holds something reserved, or the process is out of descriptors.
    pub fn new(
        config: Config,
        listener: UnixListener,
        connector: Box<dyn Connector + Send>,
    ) -> Result<Self, Error> {
        Self::restore(State::first(config), listener, connector)
    }

    /// A device that goes on from `state`, without the streams there were.
    ///
    /// # Errors
    /// As for [`Vsock::new`].
    pub fn restore(
        state: State,
        listener: UnixListener,
        connector: Box<dyn Connector + Send>,
    ) -> Result<Self, Error> {
        let config = Config {
            guest_cid: state.guest_cid,
            host_ports: state.host_ports,
        };
        config.validate()?;
        let poller = Arc::new(Poller::new().map_err(Error::Events)?);
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Events)?;
        poller
            .add(&wake, Token::Wake, EventSet::IN)
            .map_err(Error::Events)?;
        let muxer = Muxer::new(
            config,
            state.next_host_port,
            poller.clone(),
            listener,
            connector,
        )
        .map_err(Error::Listener)?;
        Ok(Self {
            poller,
            wake,
            muxer,
            session: None,
            transport_reset: state.driver_active,
            stale_kicks: Vec::new(),
        })
    }

    /// What outlives the device.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            guest_cid: self.muxer.guest_cid(),
            host_ports: self.muxer.host_ports().to_vec(),
            next_host_port: self.muxer.next_host_port(),
            // A restored driver that has not been told yet still has to be.
            driver_active: self.session.is_some() || self.transport_reset,
        }
    }

    /// What the device has counted so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.muxer.metrics
    }

    /// The descriptor that becomes readable when there is something to do.
    pub(super) fn event_source(&self) -> RawFd {
        self.poller.as_raw_fd()
    }

    /// Does what there is to do.
    pub(super) fn serve(&mut self) {
        match self.poller.take() {
            Ok(events) => {
                for (token, events) in events {
                    match token {
                        Token::Wake => self.update_watches(),
                        // Every queue is looked at below.
                        Token::Queue(_) => {}
                        _ => self.muxer.on_event(token, events),
                    }
                }
            }
            Err(error) => log::error!("vsock: cannot take events: {error}"),
        }
        let mut unfinished = self.muxer.accept();
        if let Some(session) = &mut self.session {
            match session.run(&mut self.muxer, &mut self.transport_reset) {
                Ok(more) => unfinished |= more,
                Err(error) => {
                    self.muxer.metrics.queue_errors += 1;
                    warn_guest!("vsock: {error}");
                    session.give_up();
                    self.muxer.clear();
                }
            }
        }
        if unfinished {
            self.signal();
        }
    }

    /// Starts to watch the kicks of a new session and stops to watch those of a former one.
    fn update_watches(&mut self) {
        for kick in self.stale_kicks.drain(..) {
            // The transport has a twin of it, so closing it would leave it watched.
            if let Err(error) = self.poller.remove(&kick) {
                log::error!("vsock: cannot stop to watch a queue: {error}");
            }
        }
        if let Some(session) = &mut self.session
            && let Err(error) = session.watch(&self.poller)
        {
            log::error!("vsock: cannot watch a queue: {error}");
            session.give_up();
        }
    }

    fn signal(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("vsock: cannot signal the event thread: {error}");
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_VSOCK_F_STREAM | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio-v1.3 §5.10.4: the only field is guest_cid, le64.
        let config = u64::from(self.muxer.guest_cid()).to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = config.get(offset..).unwrap_or_default().iter();
        for byte in data {
            *byte = rest.next().copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // virtio-v1.3 §5.10.4: nothing is writable.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let session = Session::new(activation)?;
        self.wake.write(1).map_err(ActivateError::Signal)?;
        self.session = Some(session);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(session) = self.session.take() {
            self.muxer.clear();
            self.transport_reset = false;
            self.stale_kicks.extend(session.into_watched_kicks());
            self.signal();
        }
    }

    fn set_memory(&mut self, memory: GuestRam) {
        if let Some(session) = &mut self.session {
            session.set_memory(memory);
        }
    }

    fn queue_states(&self) -> Vec<SavedQueue> {
        self.session
            .as_ref()
            .map(Session::queue_states)
            .unwrap_or_default()
    }
}
