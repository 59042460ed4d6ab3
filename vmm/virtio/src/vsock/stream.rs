//! A stream: the connection that the guest sees and the socket that the host sees.

use vmm_sys_util::epoll::EventSet;

use super::chain::TxPacket;
use super::connection::Connection;
use super::poll::Poller;
use super::unix::HostStream;

/// One of the guest's streams.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) connection: Connection,
    /// Absent once the host is gone.
    pub(super) host: Option<HostStream>,
    /// Whether it is among those that are served next.
    pub(super) queued: bool,
}

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over and the guest is told.
    Ends,
    /// It is over and the guest does not know of it, or not any more.
    Vanishes,
}

impl Stream {
    pub(super) fn is_readable(&self) -> bool {
        self.host.as_ref().is_some_and(HostStream::is_readable)
    }

    /// How many bytes can be moved to the guest now.
    pub(super) fn movable(&self) -> usize {
        match &self.host {
            Some(host) if host.is_readable() => {
                host.read_size().min(self.connection.sendable() as usize)
            }
            _ => 0,
        }
    }

    /// Whether there is a packet for the guest.
    pub(super) fn has_packet(&mut self) -> bool {
        if self.is_readable() {
            self.connection.starved();
        }
        self.connection.is_due() || self.movable() > 0
    }

    /// Takes an event of the socket.
    pub(super) fn note(&mut self, poller: &Poller, events: EventSet) {
        let Some(host) = &mut self.host else {
            return;
        };
        if host.note(events) && !host.has_hung_up() {
            match host.flush(poller) {
                Ok(count) => self.connection.forwarded(count),
                Err(_) => self.refuse_host(),
            }
        }
    }

    /// Hands the payload of a packet to the host.
    pub(super) fn forward(&mut self, poller: &Poller, packet: &TxPacket<'_, '_>) {
        let Some(host) = &mut self.host else {
            return;
        };
        let limit = self.connection.buf_alloc() as usize;
        match host.send(poller, packet.payload(), limit) {
            Ok(count) => self.connection.forwarded(count),
            Err(_) => {
                self.connection.forwarded(packet.header.len);
                self.refuse_host();
            }
        }
    }

    /// The guest has accepted the host's connection as `host_port`.
    pub(super) fn accepted(&mut self, host_port: u32) {
        if let Some(host) = &mut self.host
            && host.accepted(host_port).is_err()
        {
            self.lose_host();
        }
    }

    /// The host's socket takes nothing any more.
    fn refuse_host(&mut self) {
        if let Some(host) = &mut self.host {
            self.connection.forwarded(host.discard());
        }
        self.connection.host_receives_no_more();
    }

    /// The host's socket is of no use any more.
    pub(super) fn lose_host(&mut self) {
        self.host = None;
        self.connection.host_gone();
    }

    pub(super) fn settle(&mut self) -> Fate {
        if let Some(host) = &mut self.host
            && host.has_hung_up()
        {
            if self.connection.is_requested() {
                return if self.connection.is_unannounced() {
                    Fate::Vanishes
                } else {
                    Fate::Ends
                };
            }
            if let Some(host) = &mut self.host {
                self.connection.forwarded(host.discard());
            }
            // Bytes that the host sent before it went are still for the guest. While they flow
            // there is no hurry to tell it one half of the end: the other follows.
            if self.movable() == 0 {
                self.connection.host_receives_no_more();
            }
            if self.connection.host_sent_all() || self.connection.guest_receives_no_more() {
                self.lose_host();
            }
        }
        let mut flushed = true;
        let ended = self.connection.has_ended();
        if let Some(host) = &mut self.host {
            flushed = host.is_flushed();
            if self.connection.guest_receives_no_more() || ended {
                host.shut_read();
            }
            if self.connection.guest_sends_no_more() && flushed {
                host.shut_write();
            }
        }
        if ended {
            return if flushed { Fate::Vanishes } else { Fate::Lives };
        }
        // virtio-v1.3 §5.10.6.5: a reset confirms the end of both directions.
        let silent =
            self.connection.guest_receives_no_more() && self.connection.guest_sends_no_more();
        if silent && flushed {
            Fate::Ends
        } else {
            Fate::Lives
        }
    }
}
