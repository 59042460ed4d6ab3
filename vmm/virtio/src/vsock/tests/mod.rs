//! The whole device between a driver in memory and real sockets, in an event loop.

mod bulk;
mod connect;
mod guest;
mod hostile;
mod lifecycle;
mod random;
mod socket;

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use guest::{CID, Guest, Packet, header};

use super::packet::{Header, op, shutdown};
use super::{Config, Connector, ConnectorError, Metrics, Vsock};
use crate::device::VirtioDevice;

/// The port that the guest may connect to.
const HOST_PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;
/// A buffer as Linux gives it.
const LINUX_RX: &[u32] = &[44 + 4096];

/// A device, its event loop, its guest and the host's side.
struct Rig {
    device: Arc<Mutex<Vsock>>,
    manager: EventManager<Arc<Mutex<Vsock>>>,
    guest: Guest,
    address: SocketAddr,
    /// Host ends of streams that the guest asked for.
    incoming: mpsc::Receiver<UnixStream>,
}

struct TestConnector {
    ends: mpsc::Sender<UnixStream>,
}

impl Connector for TestConnector {
    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectorError> {
        if port != HOST_PORT {
            return Err(ConnectorError::Refused { port });
        }
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| ConnectorError::Stream { port, source })?;
        self.ends.send(theirs).unwrap();
        Ok(ours)
    }
}

fn listen() -> (UnixListener, SocketAddr) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("cloister-vsock-test-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

fn config() -> Config {
    Config {
        guest_cid: CID,
        host_ports: vec![HOST_PORT, HOST_PORT + 1],
    }
}

impl Rig {
    /// A device with an active driver that has given all its buffers.
    fn new() -> Self {
        Self::with(true, LINUX_RX)
    }

    fn with(event_idx: bool, rx_shape: &[u32]) -> Self {
        let (mut rig, activation) = Self::inactive(event_idx, rx_shape, |listener, connector| {
            Vsock::new(config(), listener, connector).unwrap()
        });
        rig.device().activate(activation).unwrap();
        rig.guest.fill_rx();
        rig.guest.fill_events();
        rig.pump();
        rig
    }

    fn inactive(
        event_idx: bool,
        rx_shape: &[u32],
        make: impl FnOnce(UnixListener, Box<dyn Connector + Send>) -> Vsock,
    ) -> (Self, crate::device::Activation) {
        let (listener, address) = listen();
        let (ends, incoming) = mpsc::channel();
        let device = make(listener, Box::new(TestConnector { ends }));
        let device = Arc::new(Mutex::new(device));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        let (guest, activation) = Guest::new(event_idx, rx_shape);
        let rig = Self {
            device,
            manager,
            guest,
            address,
            incoming,
        };
        (rig, activation)
    }

    fn device(&self) -> MutexGuard<'_, Vsock> {
        self.device.lock().unwrap()
    }

    fn metrics(&self) -> Metrics {
        self.device().metrics()
    }

    /// Runs the event loop until it is quiet. It never spins on its own.
    fn pump(&mut self) {
        for _ in 0..100 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }

    fn send(&mut self, header: Header) {
        self.send_payload(header, &[]);
    }

    fn send_payload(&mut self, mut header: Header, payload: &[u8]) {
        header.len = u32::try_from(payload.len()).unwrap();
        assert!(self.guest.send(header, payload), "the tx queue is full");
        self.pump();
    }

    fn packets(&mut self) -> Vec<Packet> {
        self.pump();
        self.guest.packets()
    }

    /// Takes the one packet there has to be.
    fn packet(&mut self) -> Packet {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn expect_op(&mut self, op: u16) -> Header {
        let packet = self.packet();
        assert_eq!(packet.header.op, op, "{packet:?}");
        packet.header
    }

    fn expect_silence(&mut self) {
        assert_eq!(self.packets(), []);
    }

    fn host_connect(&self) -> UnixStream {
        let socket = UnixStream::connect_addr(&self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    }

    /// A stream that a host process asked for, and its ports.
    fn host_stream(&mut self) -> (UnixStream, (u32, u32)) {
        let mut host = self.host_connect();
        writeln!(host, "CONNECT {GUEST_PORT}").unwrap();
        let request = self.expect_op(op::REQUEST);
        assert_eq!(request.dst_port, GUEST_PORT);
        let ports = (request.dst_port, request.src_port);
        self.send(header(ports, op::RESPONSE));
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(read_exact(&mut host, expected.len()), expected.as_bytes());
        (host, ports)
    }

    /// A stream that the guest asked for from this port.
    fn guest_stream(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let ports = (port, HOST_PORT);
        self.send(header(ports, op::REQUEST));
        let response = self.expect_op(op::RESPONSE);
        assert_eq!((response.dst_port, response.src_port), ports);
        let host = self.incoming.try_recv().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (host, ports)
    }
}

fn read_exact(socket: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// Asserts that the other end has sent everything.
fn expect_end(socket: &mut UnixStream) {
    let mut bytes = [0; 16];
    assert_eq!(socket.read(&mut bytes).unwrap(), 0);
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
