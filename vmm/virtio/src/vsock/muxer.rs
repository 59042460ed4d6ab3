//! All streams of a guest: which packet is for which, which has something for the guest next, and
//! how streams begin and end.
//!
//! Everything here is bounded whatever the guest does: streams by [`MAX_CONNECTIONS`], what each of
//! them holds for the host by its `buf_alloc`, and resets that wait for a buffer of the guest by
//! [`MAX_RESETS`], beyond which the guest's own packets have to wait ([`Muxer::is_congested`]).

mod connect;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::chain::TxPacket;
use super::connection::{Connection, Effect, Key};
use super::handshake::Handshakes;
use super::iovec::IoVecs;
use super::metrics::Metrics;
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::poll::{Poller, Token};
use super::rate::RateLimit;
use super::stream::{Fate, Stream};
use super::unix::{HostStream, Read};
use super::{Config, Connector};
use crate::chain::ChainError;
use crate::warn_guest;

/// Streams at a time, both directions together.
pub const MAX_CONNECTIONS: usize = 1024;
/// What a stream holds for a host process that does not read, in bytes; it is what the guest may
/// send ahead.
pub const BUF_ALLOC: u32 = 256 * 1024;
/// The same once there are [`LARGE_CONNECTIONS`] streams.
pub const SMALL_BUF_ALLOC: u32 = 64 * 1024;
/// How many streams may hold [`BUF_ALLOC`]. With [`MAX_CONNECTIONS`] it bounds what all of them
/// hold to 88 MiB.
pub const LARGE_CONNECTIONS: usize = 128;
/// Streams that the guest may ask for at once.
pub const CONNECT_BURST: u32 = 512;
/// Streams that the guest may ask for in a second, in the long run.
pub const CONNECT_RATE: u32 = 256;
/// Resets that may wait for a buffer of the guest before its packets have to wait.
const MAX_RESETS: usize = 256;
/// Host processes accepted before the streams are served again.
const MAX_ACCEPTS: usize = 64;
/// Ports of streams that host processes ask for: these and those above them.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;
/// The last of these ports.
const LAST_HOST_PORT: u32 = (1 << 31) - 1;

/// The streams.
pub(super) struct Muxer {
    guest_cid: u32,
    host_ports: Vec<u32>,
    poller: Arc<Poller>,
    listener: UnixListener,
    /// Host processes may be waiting at the listener.
    acceptable: bool,
    connector: Box<dyn Connector + Send>,
    handshakes: Handshakes,
    streams: HashMap<Key, Stream>,
    /// Streams that may have a packet for the guest, each at most once; served in turn.
    ready: VecDeque<Key>,
    /// Answers that belong to no stream; served first.
    resets: VecDeque<Header>,
    next_host_port: u32,
    connects: RateLimit,
    pub(super) metrics: Metrics,
}

/// A packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet {
    /// One without payload.
    Control(Header),
    /// Bytes of this stream, no more than `limit`.
    Payload { key: Key, limit: usize },
}

impl Muxer {
    pub(super) fn new(
        config: Config,
        next_host_port: u32,
        poller: Arc<Poller>,
        listener: UnixListener,
        connector: Box<dyn Connector + Send>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        poller.add(&listener, Token::Listener, EventSet::IN)?;
        Ok(Self {
            guest_cid: config.guest_cid,
            host_ports: config.host_ports,
            poller,
            listener,
            acceptable: false,
            connector,
            handshakes: Handshakes::default(),
            streams: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_host_port,
            connects: RateLimit::new(CONNECT_BURST, CONNECT_RATE),
            metrics: Metrics::default(),
        })
    }

    pub(super) fn guest_cid(&self) -> u32 {
        self.guest_cid
    }

    pub(super) fn host_ports(&self) -> &[u32] {
        &self.host_ports
    }

    pub(super) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Ends every stream without a word to the guest. Host processes that are still about to say
    /// where they want to go are left alone.
    pub(super) fn clear(&mut self) {
        self.streams.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Whether packets of the guest have to wait until it has taken its resets.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether there is a packet for the guest.
    pub(super) fn has_packets(&mut self) -> bool {
        if !self.resets.is_empty() {
            return true;
        }
        while let Some(key) = self.ready.front() {
            if let Some(stream) = self.streams.get_mut(key) {
                if stream.has_packet() {
                    return true;
                }
                stream.queued = false;
            }
            self.ready.pop_front();
        }
        false
    }

    /// Takes the next packet for the guest. A payload is then read with [`Muxer::read`].
    pub(super) fn next_packet(&mut self) -> Option<Packet> {
        if !self.has_packets() {
            return None;
        }
        if let Some(reset) = self.resets.pop_front() {
            self.metrics.rx_packets += 1;
            self.metrics.resets_sent += 1;
            return Some(Packet::Control(reset));
        }
        let key = self.ready.pop_front()?;
        let mut header = self.header(key);
        let stream = self.streams.get_mut(&key)?;
        stream.queued = false;
        if stream.connection.next_due(&mut header) {
            self.metrics.rx_packets += 1;
            self.enqueue(key);
            return Some(Packet::Control(header));
        }
        Some(Packet::Payload {
            key,
            limit: stream.movable(),
        })
    }

    /// Reads bytes of a stream for the guest and returns how many. They have to be announced with
    /// [`Muxer::payload_header`].
    pub(super) fn read(&mut self, key: Key, room: IoVecs<'_>) -> usize {
        let Some(stream) = self.streams.get_mut(&key) else {
            return 0;
        };
        let Some(host) = &mut stream.host else {
            return 0;
        };
        let mut count = 0;
        match host.read(room) {
            Ok(Read::Bytes(bytes)) => count = bytes,
            Ok(Read::Nothing) => {}
            Ok(Read::End) => stream.connection.host_sends_no_more(),
            Err(_) => stream.lose_host(),
        }
        self.metrics.rx_bytes += count as u64;
        self.settle(key);
        count
    }

    /// The header for the next `len` bytes of a stream to the guest.
    pub(super) fn payload_header(&mut self, key: Key, len: u32) -> Header {
        let mut header = self.header(key);
        header.len = len;
        self.metrics.rx_packets += 1;
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.connection.send(&mut header);
        }
        header
    }

    /// Takes a packet from the guest.
    pub(super) fn receive(&mut self, packet: &TxPacket<'_, '_>) {
        self.metrics.tx_packets += 1;
        let header = &packet.header;
        // virtio-v1.3 §5.10.6.2: the only addresses here are the guest's and the host's.
        if header.src_cid != u64::from(self.guest_cid) || header.dst_cid != HOST_CID {
            self.metrics.misaddressed_packets += 1;
            return;
        }
        if header.op == op::RST {
            self.metrics.resets_received += 1;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        // virtio-v1.3 §5.10.6.4: an unknown socket type is answered with a reset.
        if header.type_ != TYPE_STREAM {
            self.reset(key, header);
            return;
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            match header.op {
                op::REQUEST => self.guest_connect(key, header),
                _ => self.reset(key, header),
            }
            return;
        };
        match stream.connection.receive(header) {
            Ok(Effect::None | Effect::Ended) => {}
            Ok(Effect::Accepted) => stream.accepted(key.host_port),
            Ok(Effect::Data) => {
                self.metrics.tx_bytes += u64::from(header.len);
                stream.forward(&self.poller, packet);
            }
            Ok(Effect::Shutdown) => {}
            Ok(Effect::Reset) => return self.remove(key),
            Ok(Effect::Stray) => return self.reset(key, header),
            Err(violation) => {
                self.metrics.violations += 1;
                warn_guest!(
                    "vsock: guest port {}, host port {}: {violation}",
                    key.guest_port,
                    key.host_port
                );
                self.remove(key);
                return self.reset(key, header);
            }
        }
        self.settle(key);
    }

    /// Counts a chain that held no packet.
    pub(super) fn malformed(&mut self, queue: &str, error: ChainError) {
        self.metrics.malformed_chains += 1;
        warn_guest!("vsock: {queue}: {error}");
    }

    /// Takes an event of a stream, the listener or a handshake.
    pub(super) fn on_event(&mut self, token: Token, events: EventSet) {
        match token {
            Token::Listener => self.acceptable = true,
            Token::Handshake(number) => self.continue_handshake(number, events),
            Token::Stream(key) => {
                if let Some(stream) = self.streams.get_mut(&key) {
                    stream.note(&self.poller, events);
                    self.settle(key);
                }
            }
            Token::Wake | Token::Queue(_) => {}
        }
    }

    fn insert(&mut self, key: Key, connection: Connection, host: HostStream) {
        let stream = Stream {
            connection,
            host: Some(host),
            queued: false,
        };
        self.streams.insert(key, stream);
        self.enqueue(key);
    }

    /// Draws the conclusions of whatever has happened to a stream.
    fn settle(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        match stream.settle() {
            Fate::Lives => self.enqueue(key),
            Fate::Ends => {
                self.remove(key);
                self.push_reset(self.header(key));
            }
            Fate::Vanishes => self.remove(key),
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(&key)
            && !stream.queued
            && (stream.connection.is_due() || stream.is_readable())
        {
            stream.queued = true;
            self.ready.push_back(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(stream) = self.streams.remove(&key)
            && stream.queued
        {
            self.ready.retain(|other| *other != key);
        }
    }

    /// Answers the packet `header`, which belongs to no stream, with a reset. A reset is never
    /// answered, or two ends could go on forever.
    fn reset(&mut self, key: Key, header: &Header) {
        if header.op != op::RST {
            self.push_reset(Header {
                type_: header.type_,
                ..self.header(key)
            });
        }
    }

    fn push_reset(&mut self, header: Header) {
        self.resets.push_back(Header {
            op: op::RST,
            ..header
        });
    }

    fn header(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid.into(),
            src_port: key.host_port,
            dst_port: key.guest_port,
            type_: TYPE_STREAM,
            ..Header::default()
        }
    }
}
