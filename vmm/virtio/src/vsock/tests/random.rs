//! Whatever guest and host do, the device survives, stays within its bounds and comes to rest.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::vsock::{BUF_ALLOC, MAX_CONNECTIONS};

#[derive(Debug, Clone)]
enum Step {
    /// A packet whose fields may or may not make sense.
    Packet {
        op: u16,
        guest_port: u32,
        host_port: u32,
        len: u16,
        claimed: Option<u32>,
        flags: u32,
        buf_alloc: u32,
        fwd_cnt: u32,
        cut: u32,
    },
    /// A descriptor somewhere.
    Descriptor {
        queue: usize,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    /// A chain made available, whatever is there.
    Available {
        queue: usize,
        head: u16,
    },
    /// Bytes of a ring overwritten.
    Ring {
        offset: u64,
        value: u16,
    },
    /// What the guest has received is looked at and its buffers are given back, or not.
    Receive {
        refill: bool,
    },
    HostConnect {
        port: u32,
        more: bool,
    },
    HostWrite {
        host: usize,
        len: usize,
    },
    HostRead {
        host: usize,
    },
    HostShutdown {
        host: usize,
        write: bool,
    },
    HostClose {
        host: usize,
    },
    Reset,
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..10,
        2 => Just(BUF_ALLOC),
        1 => (u32::MAX - 10)..=u32::MAX,
        1 => any::<u32>(),
    ]
}

fn packet() -> impl Strategy<Value = Step> {
    let ports = (
        0u32..4,
        prop_oneof![3 => Just(HOST_PORT), 3 => (1u32 << 30)..(1 << 30) + 4, 1 => any::<u32>()],
    );
    let op = prop_oneof![8 => 1u16..8, 1 => any::<u16>()];
    let sizes = (
        prop_oneof![4 => 0u16..100, 1 => any::<u16>()],
        prop::option::weighted(0.1, number()),
        0u32..100,
    );
    let rest = (0u32..5, number(), number());
    (ports, op, sizes, rest).prop_map(
        |((guest_port, host_port), op, (len, claimed, cut), (flags, buf_alloc, fwd_cnt))| {
            Step::Packet {
                op,
                guest_port,
                host_port,
                len,
                claimed,
                flags,
                buf_alloc,
                fwd_cnt,
                cut,
            }
        },
    )
}

fn descriptor() -> impl Strategy<Value = Step> {
    let address = prop_oneof![4 => 0u64..0x210_0000, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0u32..5000, 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0u16..128, 1 => any::<u16>()];
    (0usize..3, 0u16..128, address, len, flags, next).prop_map(
        |(queue, index, address, len, flags, next)| Step::Descriptor {
            queue,
            index: if queue == 2 { index % 8 } else { index },
            address,
            len,
            flags,
            next,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => packet(),
        4 => descriptor(),
        3 => (0usize..3, 0u16..130).prop_map(|(queue, head)| Step::Available { queue, head }),
        1 => (0u64..0xc000, any::<u16>()).prop_map(|(offset, value)| Step::Ring { offset, value }),
        4 => any::<bool>().prop_map(|refill| Step::Receive { refill }),
        3 => (0u32..4, any::<bool>()).prop_map(|(port, more)| Step::HostConnect { port, more }),
        3 => (any::<usize>(), 0usize..100_000)
            .prop_map(|(host, len)| Step::HostWrite { host, len }),
        3 => any::<usize>().prop_map(|host| Step::HostRead { host }),
        2 => (any::<usize>(), any::<bool>())
            .prop_map(|(host, write)| Step::HostShutdown { host, write }),
        2 => any::<usize>().prop_map(|host| Step::HostClose { host }),
        1 => Just(Step::Reset),
    ]
}

struct World {
    rig: Rig,
    hosts: Vec<UnixStream>,
}

impl World {
    fn start_driver(&mut self) {
        let (guest, activation) = Guest::new(true, LINUX_RX);
        self.rig.guest = guest;
        self.rig.device().activate(activation).unwrap();
        self.rig.guest.fill_rx();
        self.rig.pump();
    }

    fn host(&mut self, index: usize) -> Option<&mut UnixStream> {
        let count = self.hosts.len().max(1);
        self.hosts.get_mut(index % count)
    }

    fn take(&mut self, step: Step) {
        let guest = &mut self.rig.guest;
        match step {
            Step::Packet {
                op,
                guest_port,
                host_port,
                len,
                claimed,
                flags,
                buf_alloc,
                fwd_cnt,
                cut,
            } => {
                let header = Header {
                    len: claimed.unwrap_or(len.into()),
                    flags,
                    buf_alloc,
                    fwd_cnt,
                    ..header((guest_port, host_port), op)
                };
                guest.send_anything(header, &vec![7; len.into()], cut);
            }
            Step::Descriptor {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let descriptor = Descriptor::new(address, len, flags, next);
                let ring = [&guest.rx, &guest.tx, &guest.event][queue];
                ring.put_descriptor(&guest.memory, index, descriptor);
            }
            Step::Available { queue, head } => {
                let ring = [&mut guest.rx, &mut guest.tx, &mut guest.event];
                let [rx, tx, event] = ring;
                let ring = match queue {
                    0 => rx,
                    1 => tx,
                    _ => event,
                };
                ring.make_available(&guest.memory, head);
                guest.kick(queue);
            }
            Step::Ring { offset, value } => {
                guest.memory.write_obj(value, GuestAddress(offset)).unwrap();
                (0..3).for_each(|queue| guest.kick(queue));
            }
            Step::Receive { refill } => {
                guest.refill = refill;
                guest.drain_rx();
            }
            Step::HostConnect { port, more } => {
                let mut host = self.rig.host_connect();
                host.set_nonblocking(true).unwrap();
                let line = format!("CONNECT {port}\n");
                host.write_all(line.as_bytes()).unwrap();
                if more {
                    host.write_all(b"and more").unwrap();
                }
                self.hosts.push(host);
            }
            Step::HostWrite { host, len } => {
                if let Some(host) = self.host(host) {
                    let _ = host.write(&vec![1; len]);
                }
            }
            Step::HostRead { host } => {
                if let Some(host) = self.host(host) {
                    let _ = host.read(&mut [0; 65536]);
                }
            }
            Step::HostShutdown { host, write } => {
                if let Some(host) = self.host(host) {
                    let _ = host.shutdown(if write {
                        std::net::Shutdown::Write
                    } else {
                        std::net::Shutdown::Read
                    });
                }
            }
            Step::HostClose { host } => {
                let count = self.hosts.len();
                if count > 0 {
                    self.hosts.swap_remove(host % count);
                }
            }
            Step::Reset => {
                self.rig.device().reset();
                self.start_driver();
            }
        }
        // This panics if the device does not come to rest.
        self.rig.pump();
        while let Ok(host) = self.rig.incoming.try_recv() {
            host.set_nonblocking(true).unwrap();
            self.hosts.push(host);
        }
        assert!(self.hosts.len() <= 2 * MAX_CONNECTIONS);
    }
}

proptest! {
    // The same cases every time; the fuzz target looks for new ones.
    #![proptest_config(ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(0x5643_4b53),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_device_survives(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World { rig: Rig::new(), hosts: Vec::new() };
        for step in steps {
            world.take(step);
        }
        // Whatever state it is in, it can be had back from there.
        world.rig.device().reset();
        world.hosts.clear();
        world.start_driver();
        world.rig.guest.packets();
        world.rig.pump();
        world.rig.guest.packets();
        let (mut host, ports) = world.rig.guest_stream(7);
        world.rig.send_payload(header(ports, op::RW), b"ping");
        prop_assert_eq!(read_exact(&mut host, 4), b"ping");
    }
}
