//! The whole device between a driver in memory and sockets in the place of taps, in an event loop.

mod control;
mod guest;
mod hostile;
mod rx;
mod tap;
mod tx;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberOps};
use guest::Guest;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};

use super::{Config, Metrics, Net, Tap};
use crate::device::VirtioDevice;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const MERGEABLE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;
const MULTI: u64 = 1 << 22;
const RX: usize = 0;
const TX: usize = 1;

struct Rig {
    device: Arc<Mutex<Net>>,
    manager: EventManager<Arc<Mutex<Net>>>,
    guest: Guest,
    /// The other sides of the taps.
    peers: Vec<OwnedFd>,
}

fn config(queue_pairs: u8) -> Config {
    Config {
        mac: MAC,
        mtu: None,
        queue_pairs,
        rx_limit: None,
        tx_limit: None,
    }
}

fn taps(count: u8) -> (Vec<Tap>, Vec<OwnedFd>) {
    (0..count)
        .map(|_| {
            let (a, b) = socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            (Tap::stand_in(a).unwrap(), b)
        })
        .unzip()
}

impl Rig {
    /// A device of one pair with an active driver that has agreed to `features`.
    fn new(features: u64) -> Self {
        Self::with(config(1), features, &[256, 256, 64], false)
    }

    fn with(config: Config, features: u64, sizes: &[u16], event_idx: bool) -> Self {
        let (taps, peers) = taps(config.queue_pairs);
        let device = Net::new(config, taps).unwrap();
        Self::around(device, peers, features, sizes, event_idx)
    }

    fn around(
        device: Net,
        peers: Vec<OwnedFd>,
        features: u64,
        sizes: &[u16],
        event_idx: bool,
    ) -> Self {
        let device = Arc::new(Mutex::new(device));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        let mut rig = Self {
            device,
            manager,
            guest: Guest::new(sizes, event_idx),
            peers,
        };
        rig.activate(features);
        rig
    }

    fn activate(&mut self, features: u64) {
        let activation = self.guest.activation(features);
        self.device().activate(activation).unwrap();
        self.run();
    }

    fn device(&self) -> MutexGuard<'_, Net> {
        self.device.lock().unwrap()
    }

    fn metrics(&self) -> Metrics {
        self.device().metrics()
    }

    /// Lets the device come to rest.
    fn run(&mut self) {
        for _ in 0..1000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }

    /// Puts a packet into a tap.
    fn arrive(&self, peer: usize, packet: &[u8]) {
        rustix::net::send(&self.peers[peer], packet, SendFlags::empty()).unwrap();
    }

    /// Takes a packet out of a tap.
    fn leave(&self, peer: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 0x2_0000];
        let (length, _) =
            rustix::net::recv(&self.peers[peer], &mut bytes, RecvFlags::empty()).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }

    /// Whether the driver was interrupted since the last time.
    fn interrupted(&self) -> bool {
        self.guest.line.read().is_ok()
    }
}

/// `packet` with the number of buffers in its header.
fn in_buffers(count: u16, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[10..12].copy_from_slice(&count.to_le_bytes());
    packet
}
