//! The state of one stream, as seen between the guest and a host that is not named here: virtio-v1.3
//! §5.10.6.5.
//!
//! ```text
//!   host connects                        guest connects
//!        │                                     │ REQUEST
//!        ▼                                     ▼
//!   Requested ───────── RESPONSE ────────▶ Established ── host is gone ──▶ Closing
//!        │                                     │    │                         │
//!        └── RST, or host is gone ──▶ (over) ◀─┴────│─ RST, or all shut down ─┘
//!                                        ▲          │ RST after the end of the guest's stream,
//!                                        │          ▼ which the host has not taken to the end
//!                                        └─────── Ended
//! ```
//!
//! Each direction ends on its own. The guest says that it sends or receives no more with a
//! SHUTDOWN; the host's side says it through [`Connection::host_sends_no_more`] and
//! [`Connection::host_receives_no_more`], which become a SHUTDOWN to the guest. A connection is
//! over for good with an RST, which answers the guest's last SHUTDOWN.

use super::credit::Credit;
use super::packet::{Header, op, shutdown};

/// The two ports of a stream. Its context ids are always those of the host and the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The port on the host.
    pub(super) host_port: u32,
    /// The port in the guest.
    pub(super) guest_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest has not answered the host's REQUEST.
    Requested,
    /// Bytes can flow.
    Established,
    /// The host is gone; the guest has not confirmed it.
    Closing,
    /// The guest is gone; the host has not taken everything.
    Ended,
}

/// What one end no longer does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ended {
    sending: bool,
    receiving: bool,
}

/// Packets without payload that are due to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Due {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    credit: Credit,
    guest: Ended,
    host: Ended,
    due: Due,
    /// The guest has been asked for credit since it last had some.
    credit_requested: bool,
}

/// What a packet from the guest means for the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The guest accepted the host's connection.
    Accepted,
    /// The payload is for the host.
    Data,
    /// The guest has ended a direction.
    Shutdown,
    /// The guest has ended the connection.
    Reset,
    /// The guest has ended the connection, after all it had to say, which is still for the host.
    Ended,
    /// The guest has ended the connection before; the packet belongs to none.
    Stray,
}

/// How a guest broke the protocol. The connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("operation {0} does not fit the connection's state")]
    Operation(u16),
    #[error("the packet exceeds the credit that was granted")]
    Credit,
    #[error("payload after the end of the stream")]
    AfterShutdown,
}

impl Connection {
    /// A connection that a host process has asked for.
    pub(super) fn from_host(buf_alloc: u32) -> Self {
        Self {
            state: State::Requested,
            credit: Credit::new(buf_alloc),
            guest: Ended::default(),
            host: Ended::default(),
            due: Due {
                request: true,
                ..Due::default()
            },
            credit_requested: false,
        }
    }

    /// A connection that the guest has asked for with the REQUEST `header`, and that is granted.
    pub(super) fn from_guest(buf_alloc: u32, header: &Header) -> Self {
        let mut credit = Credit::new(buf_alloc);
        credit.learn(header);
        Self {
            state: State::Established,
            credit,
            guest: Ended::default(),
            host: Ended::default(),
            due: Due {
                response: true,
                ..Due::default()
            },
            credit_requested: false,
        }
    }

    /// Takes a packet from the guest.
    pub(super) fn receive(&mut self, header: &Header) -> Result<Effect, Violation> {
        if self.state == State::Ended {
            return Ok(Effect::Stray);
        }
        if header.op == op::RST {
            // A guest closes its socket, waits some seconds for the confirmation, and then gives
            // up: that must not cost the host bytes that were sent in good order.
            if self.state == State::Established && self.guest.sending {
                self.state = State::Ended;
                self.due = Due::default();
                return Ok(Effect::Ended);
            }
            return Ok(Effect::Reset);
        }
        self.credit.learn(header);
        if self.credit.peer_free() > 0 {
            self.credit_requested = false;
            self.due.credit_request = false;
        }
        let violation = Err(Violation::Operation(header.op));
        match (self.state, header.op) {
            (State::Requested, op::RESPONSE) if !self.due.request => {
                self.state = State::Established;
                Ok(Effect::Accepted)
            }
            (State::Requested, _) => violation,
            (State::Established, op::RW) => self.receive_payload(header.len),
            // The guest learns with the SHUTDOWN that nobody takes what it still sends.
            (State::Closing, op::RW) => Ok(Effect::None),
            (_, op::SHUTDOWN) => {
                self.guest.receiving |= header.flags & shutdown::RCV != 0;
                self.guest.sending |= header.flags & shutdown::SEND != 0;
                Ok(Effect::Shutdown)
            }
            (_, op::CREDIT_UPDATE) => Ok(Effect::None),
            (_, op::CREDIT_REQUEST) => {
                self.due.credit_update = true;
                Ok(Effect::None)
            }
            _ => violation,
        }
    }

    fn receive_payload(&mut self, len: u32) -> Result<Effect, Violation> {
        if self.guest.sending {
            return Err(Violation::AfterShutdown);
        }
        self.credit.received(len).map_err(|_| Violation::Credit)?;
        if self.host.receiving {
            // Sent before the guest could know. It still counts, or the guest would wait for
            // credit instead of for the SHUTDOWN.
            self.forwarded(len);
            return Ok(Effect::None);
        }
        Ok(Effect::Data)
    }

    /// The host has taken `len` bytes of what the guest sent.
    pub(super) fn forwarded(&mut self, len: u32) {
        self.credit.forwarded(len);
        self.due.credit_update |= self.state != State::Ended && self.credit.update_due();
    }

    /// The host's stream has ended and all of it has been sent to the guest.
    pub(super) fn host_sends_no_more(&mut self) {
        self.due.shutdown |= !self.host.sending && self.state != State::Ended;
        self.host.sending = true;
    }

    /// The host does not take what the guest sends.
    pub(super) fn host_receives_no_more(&mut self) {
        // A guest that sends no more need not be told.
        self.due.shutdown |= !self.host.receiving && !self.guest.sending;
        self.host.receiving = true;
    }

    /// The host is gone, both ways.
    pub(super) fn host_gone(&mut self) {
        self.host_sends_no_more();
        self.host_receives_no_more();
        if self.state != State::Ended {
            self.state = State::Closing;
        }
    }

    /// How many bytes of the host's stream the guest takes now.
    pub(super) fn sendable(&self) -> u32 {
        if self.wants_host_bytes() {
            self.credit.peer_free()
        } else {
            0
        }
    }

    /// There are bytes for the guest, but it has not granted credit. Asks for some, once.
    pub(super) fn starved(&mut self) {
        if self.wants_host_bytes() && self.credit.peer_free() == 0 && !self.credit_requested {
            self.credit_requested = true;
            self.due.credit_request = true;
        }
    }

    fn wants_host_bytes(&self) -> bool {
        self.state == State::Established && !self.guest.receiving && !self.host.sending
    }

    /// Whether a packet without payload is due to the guest.
    pub(super) fn is_due(&self) -> bool {
        self.due != Due::default()
    }

    /// Puts the next packet that is due to the guest into `header`: `op`, `flags` and credit.
    pub(super) fn next_due(&mut self, header: &mut Header) -> bool {
        let due = &mut self.due;
        if std::mem::take(&mut due.request) {
            header.op = op::REQUEST;
        } else if std::mem::take(&mut due.response) {
            header.op = op::RESPONSE;
        } else if std::mem::take(&mut due.shutdown) {
            header.op = op::SHUTDOWN;
            if self.host.receiving {
                header.flags |= shutdown::RCV;
            }
            if self.host.sending {
                header.flags |= shutdown::SEND;
            }
        } else if std::mem::take(&mut due.credit_request) {
            header.op = op::CREDIT_REQUEST;
        } else if std::mem::take(&mut due.credit_update) {
            header.op = op::CREDIT_UPDATE;
        } else {
            return false;
        }
        self.tell(header);
        true
    }

    /// Puts a packet of `header.len` bytes for the guest into `header`: `op` and credit.
    pub(super) fn send(&mut self, header: &mut Header) {
        header.op = op::RW;
        self.credit.sent(header.len);
        self.tell(header);
    }

    fn tell(&mut self, header: &mut Header) {
        self.credit.tell(header);
        // Every packet carries the credit.
        self.due.credit_update = false;
    }

    /// Whether the guest was never told of this connection.
    pub(super) fn is_unannounced(&self) -> bool {
        self.due.request
    }

    /// Whether the guest has still to answer the host's REQUEST.
    pub(super) fn is_requested(&self) -> bool {
        self.state == State::Requested
    }

    /// Whether the guest has ended the connection and only the host is left.
    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether the guest sends no more.
    pub(super) fn guest_sends_no_more(&self) -> bool {
        self.guest.sending
    }

    /// Whether the guest receives no more.
    pub(super) fn guest_receives_no_more(&self) -> bool {
        self.guest.receiving
    }

    /// Whether the host's stream has ended.
    pub(super) fn host_sent_all(&self) -> bool {
        self.host.sending
    }

    /// The most bytes that are held for the host.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.credit.buf_alloc()
    }
}

#[cfg(test)]
mod tests;
