//! A guest that breaks the rules.

use std::time::Instant;

use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{NEXT, WRITE, flag};
use super::*;
use crate::device::INTERRUPT_CONFIG_CHANGE;
use crate::vsock::{BUF_ALLOC, CONNECT_BURST, CONNECT_RATE, MAX_CONNECTIONS};

const INDIRECT: u16 = flag(VRING_DESC_F_INDIRECT);
/// More than the guest's memory.
const NOWHERE: u64 = 0x4000_0000;

impl Rig {
    /// The device has used the chain at `head` of tx without writing to it, dropped it, and still
    /// works.
    fn expect_dropped(&mut self, head: u16) {
        self.pump();
        assert_eq!(self.guest.tx.take_used(&self.guest.memory), Some((head, 0)));
        self.expect_silence();
        self.expect_alive();
    }

    fn expect_alive(&mut self) {
        self.send(header((99, 99), op::RW));
        self.expect_op(op::RST);
        assert!(self.guest.has_tx_space());
    }

    fn expect_broken(&mut self) {
        self.pump();
        assert!(self.guest.interrupt.broken().load(Ordering::SeqCst));
        let status = self.guest.interrupt.status().load(Ordering::SeqCst);
        assert_ne!(status & INTERRUPT_CONFIG_CHANGE, 0);
        assert_eq!(self.metrics().queue_errors, 1);
        for queue in 0..3 {
            self.guest.kick(queue);
        }
        self.pump();
        assert_eq!(self.metrics().queue_errors, 1);
    }
}

#[test]
fn malformed_packets_are_dropped() {
    type Pieces = Vec<(u64, u32)>;
    let mut rig = Rig::new();
    let area = rig.guest.scratch(&header((1, 1), op::RW).to_bytes());
    let mut long = header((1, 1), op::RW);
    long.len = 101;
    let mut oversized = header((1, 1), op::RW);
    oversized.len = u32::MAX;
    let cases: Vec<(Pieces, u16, Option<Header>)> = vec![
        // Too short, in one piece or several.
        (vec![(area, 43)], 0, None),
        (vec![(area, 0)], 0, None),
        (
            vec![(area, 10), (area, 10), (area, 10), (area, 13)],
            0,
            None,
        ),
        // Less payload than the header says.
        (vec![(area, 44 + 100)], 0, Some(long)),
        (vec![(area, 44), (area, 50), (area, 50)], 0, Some(long)),
        (vec![(area, 44), (area, 4096)], 0, Some(oversized)),
        // Not for the device to read.
        (vec![(area, 44)], WRITE, None),
        // Outside of memory, or across its end.
        (vec![(NOWHERE, 44)], 0, None),
        (vec![(u64::MAX - 10, 44)], 0, None),
        (vec![(u64::MAX, 1)], 0, None),
        (vec![(0x200_0000 - 20, 44)], 0, None),
        (vec![(area, 44), (NOWHERE, 1)], 0, None),
        (vec![(area, u32::MAX)], 0, None),
    ];
    let count = cases.len() as u64;
    for (pieces, flags, header) in cases {
        if let Some(header) = header {
            rig.guest.scratch(&header.to_bytes());
        }
        rig.guest.send_raw(&pieces, flags);
        rig.expect_dropped(0);
    }
    assert_eq!(rig.metrics().malformed_chains, count);
}

#[test]
fn chains_without_an_end_are_dropped() {
    let mut rig = Rig::new();
    let area = rig.guest.scratch(&header((1, 1), op::RW).to_bytes());
    let descriptor = |flags, next| Descriptor::new(area, 100, flags, next);
    // A loop of one, a loop of two, a successor out of range, one that is far out of range.
    let cases = [
        vec![descriptor(NEXT, 0)],
        vec![descriptor(NEXT, 1), descriptor(NEXT, 0)],
        vec![descriptor(NEXT, 128)],
        vec![descriptor(NEXT, u16::MAX)],
    ];
    for case in cases {
        for (index, descriptor) in (0..).zip(case) {
            let ring = &rig.guest.tx;
            ring.put_descriptor(&rig.guest.memory, index, descriptor);
        }
        rig.guest.tx.make_available(&rig.guest.memory, 0);
        rig.guest.kick(1);
        rig.expect_dropped(0);
    }
    assert_eq!(rig.metrics().malformed_chains, 4);
}

#[test]
fn a_header_and_payload_across_all_descriptors_are_read() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.guest_stream(7);
    rig.guest.has_tx_space();
    let mut header = header(ports, op::RW);
    header.len = 84;
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend([9; 84]);
    let area = rig.guest.scratch(&bytes);
    // A byte each; and nothing each in between would be as good.
    let pieces: Vec<_> = (0..128).map(|at| (area + at, 1)).collect();
    rig.guest.send_raw(&pieces, 0);
    rig.pump();
    assert_eq!(read_exact(&mut host, 84), [9; 84]);
    assert_eq!(rig.metrics().malformed_chains, 0);
}

#[test]
fn indirect_tables_are_followed_within_bounds() {
    let mut rig = Rig::new();
    let area = rig.guest.scratch(&header((1, 1), op::RW).to_bytes());
    let table = area + 0x1000;
    let entry = |rig: &Rig, index: u64, descriptor: Descriptor| {
        let descriptor = virtio_queue::desc::RawDescriptor::from(descriptor);
        let at = GuestAddress(table + index * 16);
        rig.guest.memory.write_obj(descriptor, at).unwrap();
    };
    // More entries than a queue may have descriptors.
    for index in 0..500 {
        let next = u16::try_from(index + 1).unwrap();
        entry(&rig, index, Descriptor::new(area, 1, NEXT, next));
    }
    for (address, len) in [
        (table, 500 * 16),
        (table, 16 * 65535),
        (table, 16 * 65536),
        (table, 17),
        (table, 0),
        (NOWHERE, 16),
        (u64::MAX - 3, 16),
    ] {
        rig.guest.send_raw(&[(address, len)], INDIRECT);
        rig.expect_dropped(0);
    }
    // A table in a table.
    entry(&rig, 0, Descriptor::new(table, 16, INDIRECT, 0));
    rig.guest.send_raw(&[(table, 16)], INDIRECT);
    rig.expect_dropped(0);
    assert_eq!(rig.metrics().malformed_chains, 8);
    // And a good one.
    entry(&rig, 0, Descriptor::new(area, 44, 0, 0));
    rig.guest.send_raw(&[(table, 16)], INDIRECT);
    rig.expect_op(op::RST);
}

#[test]
fn a_head_out_of_range_breaks_the_device() {
    let mut rig = Rig::new();
    rig.guest.tx.make_available(&rig.guest.memory, 128);
    rig.guest.kick(1);
    rig.expect_broken();
}

#[test]
fn an_index_that_jumps_breaks_the_device_until_it_is_reset() {
    let mut rig = Rig::new();
    let (mut host, _) = rig.host_stream();
    let far = rig.guest.tx.avail_idx.wrapping_add(129);
    let at = GuestAddress(rig.guest.tx.avail + 2);
    rig.guest.memory.write_obj(far, at).unwrap();
    rig.guest.kick(1);
    rig.expect_broken();
    expect_end(&mut host);
    let (guest, activation) = Guest::new(true, LINUX_RX);
    rig.device().reset();
    rig.guest = guest;
    rig.device().activate(activation).unwrap();
    rig.guest.fill_rx();
    rig.expect_alive();
}

#[test]
fn bad_buffers_are_given_back_empty() {
    let mut rig = Rig::with(true, LINUX_RX);
    // Take what is there: the next packets find only what is given below.
    rig.guest.refill = false;
    for _ in 0..128 {
        rig.expect_alive();
    }
    let area = rig.guest.scratch(&[0; 64]);
    let bad: [(Vec<(u64, u32)>, u16); 5] = [
        (vec![(area, 44)], WRITE),
        (vec![(area, 20), (area, 20)], WRITE),
        (vec![(area, 4096)], 0),
        (vec![(NOWHERE, 4096)], WRITE),
        (vec![(area, 44), (NOWHERE, 4096)], WRITE),
    ];
    rig.send(header((1, 1), op::RW));
    for (pieces, flags) in &bad {
        let guest = &mut rig.guest;
        guest.rx.put_chain(&guest.memory, 0, pieces, *flags);
        guest.rx.make_available(&guest.memory, 0);
        guest.kick(0);
        rig.pump();
        let used = rig.guest.rx.take_used(&rig.guest.memory);
        assert_eq!(used, Some((0, 0)));
    }
    assert_eq!(rig.metrics().malformed_chains, bad.len() as u64);
    rig.guest.give_rx(1);
    rig.guest.kick(0);
    rig.expect_op(op::RST);
}

#[test]
fn a_bad_buffer_between_good_ones_loses_nothing() {
    let mut rig = Rig::with(true, LINUX_RX);
    let (mut host, _) = rig.host_stream();
    rig.guest.refill = false;
    // All but the first buffer are replaced under the device's eyes.
    for head in (0..128).step_by(3) {
        let guest = &mut rig.guest;
        guest
            .rx
            .put_chain(&guest.memory, head, &[(NOWHERE, 9)], WRITE);
    }
    let sent: Vec<u8> = (0u8..=255).cycle().step_by(7).take(64 * 1024).collect();
    host.write_all(&sent).unwrap();
    let got: Vec<u8> = rig
        .packets()
        .into_iter()
        .flat_map(|packet| packet.payload)
        .collect();
    assert!(got == sent, "{} bytes", got.len());
    assert!(rig.metrics().malformed_chains > 0);
}

#[test]
fn a_flood_of_strangers_waits_for_its_answers() {
    let mut rig = Rig::new();
    rig.guest.refill = false;
    for _ in 0..128 {
        rig.expect_alive();
    }
    // No buffers are left. Answers pile up to a limit, then the guest's packets wait.
    let mut sent = 0;
    while rig.guest.has_tx_space() && sent < 1000 {
        rig.send(header((1000 + sent, 1), op::RW));
        sent += 1;
    }
    assert_eq!(sent, 256 + 32);
    assert_eq!(rig.metrics().tx_packets, 128 + 256);
    rig.expect_silence();
    rig.guest.refill = true;
    rig.guest.fill_rx();
    let mut answers = Vec::new();
    loop {
        let packets = rig.packets();
        if packets.is_empty() {
            break;
        }
        answers.extend(packets.iter().map(|packet| packet.header.dst_port));
    }
    let expected: Vec<_> = (1000..1000 + sent).collect();
    assert_eq!(answers, expected);
}

#[test]
fn requests_are_bounded_in_rate() {
    raise_descriptor_limit();
    let mut rig = Rig::new();
    let start = Instant::now();
    let (mut granted, mut refused) = (0u32, 0u32);
    const TOTAL: u32 = CONNECT_BURST + 400;
    for port in 0..TOTAL {
        assert!(rig.guest.send(header((port, HOST_PORT), op::REQUEST), &[]));
        if port % 16 == 15 {
            for packet in rig.packets() {
                match packet.header.op {
                    op::RESPONSE => granted += 1,
                    op::RST => refused += 1,
                    other => panic!("{other}"),
                }
            }
        }
    }
    let fill = start.elapsed().as_secs_f64() * f64::from(CONNECT_RATE);
    assert_eq!(granted + refused, TOTAL);
    assert!(granted >= CONNECT_BURST);
    assert!(f64::from(granted) <= f64::from(CONNECT_BURST) + fill + 1.0);
    let metrics = rig.metrics();
    assert_eq!(metrics.guest_connects, u64::from(granted));
    assert_eq!(metrics.throttled_connects, u64::from(refused));
}

#[test]
fn streams_are_bounded_in_number() {
    raise_descriptor_limit();
    let mut rig = Rig::new();
    let mut hosts = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut host = rig.host_connect();
        host.write_all(b"CONNECT 1\n").unwrap();
        rig.expect_op(op::REQUEST);
        hosts.push(host);
    }
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 1\n").unwrap();
    rig.expect_silence();
    expect_end(&mut host);
    rig.send(header((7, HOST_PORT), op::REQUEST));
    rig.expect_op(op::RST);
    assert_eq!(rig.metrics().refused_connects, 1);
    // One goes, one comes.
    hosts.pop();
    rig.expect_op(op::RST);
    rig.guest_stream(7);
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

#[test]
fn a_second_request_ends_the_stream() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.guest_stream(7);
    rig.send(header(ports, op::REQUEST));
    rig.expect_op(op::RST);
    expect_end(&mut host);
    assert_eq!(rig.metrics().violations, 1);
    rig.guest_stream(7);
}

#[test]
fn more_than_the_credit_ends_the_stream() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.guest_stream(7);
    // The host does not read; what its socket takes is gone, the rest is held for it.
    let chunk = vec![1; 64 * 1024];
    let mut packets = 0;
    while rig.metrics().violations == 0 {
        rig.send_payload(header(ports, op::RW), &chunk);
        packets += 1;
        assert!(packets < 20);
    }
    let answers = rig.packets();
    let forwarded = answers[answers.len() - 2].header.fwd_cnt;
    let reset = answers.last().unwrap().header;
    assert_eq!(reset.op, op::RST);
    // The last packet was one too many, and those before it were not.
    let taken = (packets - 1) * 64 * 1024;
    assert!(taken - forwarded <= BUF_ALLOC, "{taken} {forwarded}");
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert!(rest.len() <= taken as usize);
}

#[test]
fn violations_end_their_stream_only() {
    let packets = [
        header((0, 0), op::RESPONSE),
        header((0, 0), 0),
        header((0, 0), 8),
        header((0, 0), u16::MAX),
    ];
    let mut rig = Rig::new();
    let (mut witness, witness_ports) = rig.host_stream();
    for (index, packet) in packets.into_iter().enumerate() {
        let (mut host, ports) = rig.guest_stream(7);
        rig.send(Header {
            src_port: ports.0,
            dst_port: ports.1,
            ..packet
        });
        rig.expect_op(op::RST);
        expect_end(&mut host);
        assert_eq!(rig.metrics().violations, index as u64 + 1);
    }
    rig.send_payload(header(witness_ports, op::RW), b"fine");
    assert_eq!(read_exact(&mut witness, 4), b"fine");
}

#[test]
fn bytes_before_the_response_are_a_violation() {
    let mut rig = Rig::new();
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 1\n").unwrap();
    let request = rig.expect_op(op::REQUEST);
    rig.send_payload(header((1, request.src_port), op::RW), b"forged OK 1\n");
    rig.expect_op(op::RST);
    expect_end(&mut host);
}

#[test]
fn strange_addresses_are_ignored_and_strange_types_refused() {
    let mut rig = Rig::new();
    let request = header((7, HOST_PORT), op::REQUEST);
    for (src_cid, dst_cid) in [
        (41, 2),
        (42, 1),
        (42, 42),
        (2, 42),
        (42 | 1 << 32, 2),
        (42, 2 << 32),
    ] {
        rig.send(Header {
            src_cid,
            dst_cid,
            ..request
        });
        rig.expect_silence();
    }
    assert_eq!(rig.metrics().misaddressed_packets, 6);
    for type_ in [0, 2, 3, u16::MAX] {
        rig.send(Header { type_, ..request });
        assert_eq!(rig.expect_op(op::RST).type_, type_);
        rig.send(Header {
            type_,
            op: op::RST,
            ..request
        });
        rig.expect_silence();
    }
}

#[test]
fn a_reset_is_never_answered() {
    let mut rig = Rig::new();
    for _ in 0..10 {
        rig.send(header((1, 2), op::RST));
    }
    rig.expect_silence();
}

#[test]
fn lies_about_credit_stop_the_liar_only() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    for (buf_alloc, fwd_cnt) in [(0, 0), (100, 5000), (100, u32::MAX - 200), (u32::MAX, 1)] {
        rig.send(Header {
            buf_alloc,
            fwd_cnt,
            ..header(ports, op::CREDIT_UPDATE)
        });
    }
    rig.send(Header {
        buf_alloc: 100,
        fwd_cnt: 1,
        ..header(ports, op::CREDIT_UPDATE)
    });
    host.write_all(b"x").unwrap();
    rig.expect_op(op::CREDIT_REQUEST);
    let (mut other, _) = rig.guest_stream(7);
    other.write_all(b"y").unwrap();
    assert_eq!(rig.packet().payload, b"y");
    rig.send(header(ports, op::CREDIT_UPDATE));
    assert_eq!(rig.packet().payload, b"x");
}

#[test]
fn a_host_is_not_read_without_credit_and_buffers() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.guest.refill = false;
    host.set_nonblocking(true).unwrap();
    let chunk = [0; 64 * 1024];
    let mut written = 0;
    let mut fill = |rig: &mut Rig| {
        loop {
            match host.write(&chunk) {
                Ok(count) => written += count,
                Err(error) if would_block(&error) => break,
                Err(error) => panic!("{error}"),
            }
            rig.pump();
        }
        written as u64
    };
    // The guest's credit is what ends it, long before its buffers.
    let total = fill(&mut rig);
    let moved = rig.metrics().rx_bytes;
    assert_eq!(moved, u64::from(guest::GUEST_BUF_ALLOC));
    assert!(total - moved < 1 << 20, "{total}");
    // With credit without end it is the buffers: 128 of them, less those that are used up.
    rig.send(Header {
        buf_alloc: u32::MAX,
        ..header(ports, op::CREDIT_UPDATE)
    });
    fill(&mut rig);
    let moved = rig.metrics().rx_bytes;
    assert!(moved < 128 * 4096, "{moved}");
    rig.packets();
    assert_eq!(fill(&mut rig), fill(&mut rig));
}
