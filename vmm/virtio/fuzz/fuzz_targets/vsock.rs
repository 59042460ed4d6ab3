//! A guest and host processes that do anything to the socket device.
//!
//! `tests/fuzz 60 vsock`. The device has to survive, to come to rest
//! after each step, and to work again after a reset.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use arbitrary::Arbitrary;
use cloister_virtio::device::{Activation, ActiveQueue, GuestRam, Interrupt, VirtioDevice};
use cloister_virtio::vsock::{Config, Connector, ConnectorError, Vsock};
use event_manager::{EventManager, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CID: u64 = 3;
const HOST_PORT: u32 = 1024;
const FIRST_HOST_PORT: u32 = 1 << 30;
const MEMORY: usize = 0x10_0000;
const SIZES: [u16; 3] = [128, 128, 8];
const RINGS: [u64; 3] = [0x0, 0x4000, 0x8000];
const RX_AREA: u64 = 0x1_0000;
const TX_AREA: u64 = 0x8_0000;

#[derive(Debug, Arbitrary)]
enum Port {
    Offered,
    Dynamic(u8),
    Any(u32),
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A packet that is addressed as it should be.
    Packet {
        op: u8,
        guest_port: u8,
        host_port: Port,
        len: u16,
        flags: u8,
        buf_alloc: u32,
        fwd_cnt: u32,
        cuts: [u8; 3],
    },
    /// A packet of any bytes.
    Bytes {
        header: [u8; 44],
        claimed: u16,
    },
    Descriptor {
        queue: u8,
        index: u8,
        address: u32,
        len: u16,
        flags: u8,
        next: u16,
    },
    Available {
        queue: u8,
        head: u8,
    },
    Overwrite {
        offset: u16,
        value: u16,
    },
    GiveBuffers {
        count: u8,
        len: u16,
    },
    HostConnect {
        line: [u8; 4],
        port: Option<u8>,
    },
    HostWrite {
        host: u8,
        len: u16,
    },
    HostRead {
        host: u8,
    },
    HostShutdown {
        host: u8,
        how: u8,
    },
    HostClose {
        host: u8,
    },
    Reset,
}

struct Ends(mpsc::Sender<UnixStream>);

impl Connector for Ends {
    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectorError> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| ConnectorError::Stream { port, source })?;
        self.0
            .send(theirs)
            .map_err(|_| ConnectorError::Refused { port })?;
        Ok(ours)
    }
}

struct World {
    device: Arc<Mutex<Vsock>>,
    manager: EventManager<Arc<Mutex<Vsock>>>,
    address: SocketAddr,
    incoming: mpsc::Receiver<UnixStream>,
    hosts: Vec<UnixStream>,
    memory: GuestRam,
    kicks: Vec<EventFd>,
    avail: [u16; 3],
}

impl World {
    fn new() -> Self {
        static COUNT: OnceLock<Mutex<u64>> = OnceLock::new();
        let mut count = COUNT.get_or_init(Mutex::default).lock().unwrap();
        *count += 1;
        let name = format!("cloister-fuzz-{}-{count}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let (ends, incoming) = mpsc::channel();
        let config = Config {
            guest_cid: CID as u32,
            host_ports: vec![HOST_PORT],
        };
        let device = Vsock::new(config, listener, Box::new(Ends(ends))).unwrap();
        let device = Arc::new(Mutex::new(device));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        let half = MEMORY / 2;
        let mut world = Self {
            device,
            manager,
            address,
            incoming,
            hosts: Vec::new(),
            memory: GuestMemoryMmap::from_ranges(&[
                (GuestAddress(0), half),
                (GuestAddress(half as u64), half),
            ])
            .unwrap(),
            kicks: Vec::new(),
            avail: [0; 3],
        };
        world.start_driver();
        world
    }

    fn start_driver(&mut self) {
        self.memory
            .write_slice(&[0; 0xc000], GuestAddress(0))
            .unwrap();
        self.avail = [0; 3];
        self.kicks = (0..3)
            .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
            .collect();
        let queues = SIZES.iter().zip(RINGS).zip(&self.kicks);
        let queues = queues.map(|((size, ring), kick)| {
            let mut queue = Queue::new(*size).unwrap();
            queue
                .try_set_desc_table_address(GuestAddress(ring))
                .unwrap();
            queue
                .try_set_avail_ring_address(GuestAddress(ring + 0x1000))
                .unwrap();
            queue
                .try_set_used_ring_address(GuestAddress(ring + 0x2000))
                .unwrap();
            queue.set_event_idx(true);
            queue.set_ready(true);
            ActiveQueue {
                queue,
                kick: kick.try_clone().unwrap(),
            }
        });
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let activation = Activation {
            memory: self.memory.clone(),
            features: 1 << 32 | 1 << 29,
            queues: queues.collect(),
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), line),
        };
        self.device.lock().unwrap().activate(activation).unwrap();
        self.give_buffers(64, 4096);
        self.pump();
    }

    fn pump(&mut self) {
        for _ in 0..1000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }

    fn descriptor(&self, queue: usize, index: u16, fields: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = fields;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = RINGS[queue] + u64::from(index % SIZES[queue]) * 16;
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    fn available(&mut self, queue: usize, head: u16) {
        let ring = RINGS[queue] + 0x1000;
        let slot = u64::from(self.avail[queue] % SIZES[queue]);
        self.memory
            .write_obj(head, GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.memory
            .write_obj(self.avail[queue], GuestAddress(ring + 2))
            .unwrap();
        self.kicks[queue].write(1).unwrap();
    }

    fn used(&self, queue: usize) -> u16 {
        self.memory
            .read_obj(GuestAddress(RINGS[queue] + 0x2002))
            .unwrap()
    }

    fn give_buffers(&mut self, count: u16, len: u32) {
        for _ in 0..count {
            // More than the queue holds would end the test soon.
            if self.avail[0].wrapping_sub(self.used(0)) >= SIZES[0] {
                return;
            }
            let head = self.avail[0] % SIZES[0];
            let address = RX_AREA + u64::from(head % 16) * 0x1000;
            self.descriptor(0, head, (address, len, 2, 0));
            self.available(0, head);
        }
    }

    fn send(&mut self, bytes: &[u8], cuts: [u8; 3]) {
        self.memory
            .write_slice(bytes, GuestAddress(TX_AREA))
            .unwrap();
        let head = (self.avail[1] % 32) * 4;
        let mut address = TX_AREA;
        let mut left = bytes.len() as u32;
        for (index, cut) in (head..).zip(cuts) {
            let len = u32::from(cut).min(left);
            self.descriptor(1, index, (address, len, 1, index + 1));
            address += u64::from(len);
            left -= len;
        }
        self.descriptor(1, head + 3, (address, left, 0, 0));
        self.available(1, head);
    }

    fn host(&mut self, index: u8) -> Option<&mut UnixStream> {
        let count = self.hosts.len().max(1);
        self.hosts.get_mut(usize::from(index) % count)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Packet {
                op,
                guest_port,
                host_port,
                len,
                flags,
                buf_alloc,
                fwd_cnt,
                cuts,
            } => {
                let host_port = match host_port {
                    Port::Offered => HOST_PORT,
                    Port::Dynamic(offset) => FIRST_HOST_PORT + u32::from(offset % 8),
                    Port::Any(port) => port,
                };
                let guest_port = u32::from(guest_port % 4);
                let bytes = packet(
                    (guest_port, host_port),
                    u16::from(op % 9),
                    u32::from(len),
                    u32::from(flags),
                    (buf_alloc, fwd_cnt),
                );
                self.send(&bytes, cuts);
            }
            Step::Bytes { header, claimed } => {
                let mut bytes = header.to_vec();
                bytes.resize(44 + usize::from(claimed % 512), 1);
                self.send(&bytes, [44, 0, 7]);
            }
            Step::Descriptor {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let address = u64::from(address) % (MEMORY as u64 + 0x1000);
                let fields = (address, u32::from(len), u16::from(flags), next);
                self.descriptor(usize::from(queue % 3), index.into(), fields);
            }
            Step::Available { queue, head } => {
                self.available(usize::from(queue % 3), u16::from(head % 132));
            }
            Step::Overwrite { offset, value } => {
                let at = GuestAddress(u64::from(offset % 0xc000));
                self.memory.write_obj(value, at).unwrap();
                for kick in &self.kicks {
                    kick.write(1).unwrap();
                }
            }
            Step::GiveBuffers { count, len } => self.give_buffers(count.into(), len.into()),
            Step::HostConnect { line, port } => {
                let mut host = UnixStream::connect_addr(&self.address).unwrap();
                host.set_nonblocking(true).unwrap();
                let _ = match port {
                    Some(port) => write!(host, "CONNECT {}\nmore", port % 4),
                    None => host.write_all(&line),
                };
                if self.hosts.len() < 64 {
                    self.hosts.push(host);
                }
            }
            Step::HostWrite { host, len } => {
                if let Some(host) = self.host(host) {
                    let _ = host.write(&vec![1; len.into()]);
                }
            }
            Step::HostRead { host } => {
                if let Some(host) = self.host(host) {
                    let _ = host.read(&mut [0; 65536]);
                }
            }
            Step::HostShutdown { host, how } => {
                if let Some(host) = self.host(host) {
                    let _ = host.shutdown(match how % 3 {
                        0 => Shutdown::Read,
                        1 => Shutdown::Write,
                        _ => Shutdown::Both,
                    });
                }
            }
            Step::HostClose { host } => {
                if !self.hosts.is_empty() {
                    let index = usize::from(host) % self.hosts.len();
                    self.hosts.swap_remove(index);
                }
            }
            Step::Reset => self.restart(),
        }
        self.pump();
        while let Ok(host) = self.incoming.try_recv() {
            host.set_nonblocking(true).unwrap();
            if self.hosts.len() < 64 {
                self.hosts.push(host);
            }
        }
    }

    fn restart(&mut self) {
        self.device.lock().unwrap().reset();
        self.start_driver();
    }

    /// A guest process connects and says something.
    fn check(&mut self) {
        self.hosts.clear();
        self.restart();
        while self.incoming.try_recv().is_ok() {}
        // Other streams may have taken buffers; the answer is not looked at.
        self.send(&packet((9, HOST_PORT), 1, 0, 0, (1000, 0)), [44, 0, 0]);
        self.pump();
        self.send(&packet((9, HOST_PORT), 5, 4, 0, (1000, 0)), [44, 0, 0]);
        self.pump();
        let metrics = self.device.lock().unwrap().metrics();
        match self.incoming.try_recv() {
            Ok(mut host) => {
                let mut bytes = [0; 4];
                host.set_nonblocking(true).unwrap();
                host.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes, [7; 4]);
            }
            Err(_) => assert!(metrics.throttled_connects > 0, "{metrics:?}"),
        }
    }
}

fn packet(
    (guest_port, host_port): (u32, u32),
    op: u16,
    len: u32,
    flags: u32,
    (buf_alloc, fwd_cnt): (u32, u32),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(CID.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    for field in [guest_port, host_port, len] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    for field in [flags, buf_alloc, fwd_cnt] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.resize(44 + len as usize, 7);
    bytes
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps.into_iter().take(200) {
        world.take(step);
    }
    world.check();
});
