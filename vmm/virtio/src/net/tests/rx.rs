use std::time::{Duration, Instant};

use super::guest::packet;
use super::*;
use crate::net::RateLimit;

/// A buffer as Linux gives it with VIRTIO_NET_F_MRG_RXBUF.
const LINUX: &[u32] = &[1536];

#[test]
fn a_small_packet_takes_one_buffer_and_one_interrupt() {
    let mut rig = Rig::new(MERGEABLE);
    for head in 0..64 {
        rig.guest.give(RX, head, LINUX);
    }
    let packets: Vec<_> = (0..5).map(|i| packet(60 + usize::from(i), i)).collect();
    for packet in &packets {
        rig.arrive(0, packet);
    }
    rig.run();
    assert!(rig.interrupted());
    for packet in &packets {
        let received = rig.guest.receive(RX).unwrap();
        assert_eq!(received, (1, in_buffers(1, packet)));
    }
    assert_eq!(rig.guest.receive(RX), None);
    let metrics = rig.metrics();
    assert_eq!((metrics.rx_packets, metrics.rx_bytes), (5, 310));
    rig.run();
    assert!(!rig.interrupted());
}

#[test]
fn a_large_packet_is_spread_over_buffers() {
    let mut rig = Rig::new(MERGEABLE);
    for head in 0..200 {
        rig.guest.give(RX, head, LINUX);
    }
    // The first is not expected and goes through the device's own buffer, the others do not. In
    // between, a small one takes one buffer.
    let sizes = [65_549, 65_549, 60, 30_000];
    for (seed, size) in (0..).zip(sizes) {
        let large = packet(size, seed);
        rig.arrive(0, &large);
        rig.run();
        let count = u16::try_from(large.len().div_ceil(1536)).unwrap();
        let received = rig.guest.receive(RX).unwrap();
        assert_eq!(received.0, count);
        assert!(received.1 == in_buffers(count, &large), "packet {seed}");
    }
}

#[test]
fn buffers_of_many_descriptors_and_odd_sizes_are_filled() {
    let mut rig = Rig::new(MERGEABLE);
    // The header itself is cut.
    for head in 0..60 {
        rig.guest.give(RX, head * 4, &[7, 4, 1, 500]);
    }
    for (seed, size) in [(1, 10_000), (2, 10_000), (3, 499)] {
        let sent = packet(size, seed);
        rig.arrive(0, &sent);
        rig.run();
        let count = u16::try_from(sent.len().div_ceil(512)).unwrap();
        let received = rig.guest.receive(RX).unwrap();
        assert!(received.1 == in_buffers(count, &sent), "packet {seed}");
    }
}

#[test]
fn without_merging_a_packet_has_one_buffer_or_is_dropped() {
    let mut rig = Rig::new(0);
    for head in 0..4 {
        rig.guest.give(RX, head * 2, &[12, 1514]);
    }
    let fits = packet(1514, 1);
    rig.arrive(0, &packet(1515, 9));
    rig.arrive(0, &fits);
    rig.arrive(0, &packet(40_000, 9));
    rig.arrive(0, &packet(60, 2));
    rig.run();
    assert_eq!(rig.guest.receive(RX), Some((1, in_buffers(1, &fits))));
    let small = in_buffers(1, &packet(60, 2));
    assert_eq!(rig.guest.receive(RX), Some((1, small)));
    assert_eq!(rig.guest.receive(RX), None);
    let metrics = rig.metrics();
    assert_eq!((metrics.rx_packets, metrics.rx_dropped), (2, 2));
}

#[test]
fn a_packet_waits_for_a_buffer_without_work() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(config(1), MERGEABLE, &[256, 256, 64], event_idx);
        for seed in 0..3 {
            rig.arrive(0, &packet(60, seed));
        }
        rig.run();
        assert_eq!(rig.metrics().rx_no_buffers, 1);
        // What comes now does not even wake the device.
        rig.arrive(0, &packet(60, 3));
        assert_eq!(rig.manager.run_with_timeout(20).unwrap(), 0);
        for head in 0..8 {
            rig.guest.give(RX, head, LINUX);
        }
        rig.run();
        for seed in 0..4 {
            let expected = in_buffers(1, &packet(60, seed));
            assert_eq!(rig.guest.receive(RX), Some((1, expected)));
        }
        // And it is watched again.
        rig.arrive(0, &packet(60, 4));
        rig.run();
        assert!(rig.guest.receive(RX).is_some());
    }
}

#[test]
fn a_large_packet_waits_until_all_its_buffers_are_there() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(config(1), MERGEABLE, &[256, 256, 64], event_idx);
        rig.guest.give(RX, 0, LINUX);
        rig.guest.give(RX, 1, LINUX);
        let large = packet(20_000, 3);
        rig.arrive(0, &large);
        rig.arrive(0, &packet(60, 4));
        rig.run();
        assert_eq!(rig.guest.receive(RX), None);
        for head in 2..13 {
            rig.guest.give(RX, head, LINUX);
            rig.run();
            assert_eq!(rig.guest.receive(RX), None, "{head}");
        }
        for head in 13..20 {
            rig.guest.give(RX, head, LINUX);
        }
        rig.run();
        let received = rig.guest.receive(RX).unwrap();
        assert!(received.1 == in_buffers(14, &large));
        assert!(rig.guest.receive(RX).is_some());
    }
}

#[test]
fn a_packet_larger_than_all_buffers_together_is_dropped() {
    let mut rig = Rig::with(config(1), MERGEABLE, &[4, 256, 64], false);
    for head in 0..4 {
        rig.guest.give(RX, head, &[200]);
    }
    rig.arrive(0, &packet(900, 1));
    rig.arrive(0, &packet(700, 2));
    rig.run();
    let received = rig.guest.receive(RX).unwrap();
    assert_eq!(received, (4, in_buffers(4, &packet(700, 2))));
    assert_eq!(rig.metrics().rx_dropped, 1);
}

#[test]
fn an_interrupt_comes_where_the_driver_wants_it() {
    let mut rig = Rig::with(config(1), MERGEABLE, &[256, 256, 64], true);
    for head in 0..100 {
        rig.guest.give(RX, head, &[100]);
    }
    // Not before the sixth buffer is used; a packet of several buffers may step over it.
    rig.guest.set_used_event(RX, 5);
    rig.arrive(0, &packet(60, 0));
    rig.arrive(0, &packet(250, 0));
    rig.run();
    assert!(!rig.interrupted());
    rig.arrive(0, &packet(450, 0));
    rig.run();
    assert!(rig.interrupted());
    rig.arrive(0, &packet(60, 0));
    rig.run();
    assert!(!rig.interrupted());
}

#[test]
fn a_turn_is_bounded() {
    let mut rig = Rig::new(MERGEABLE);
    for head in 0..256 {
        rig.guest.give(RX, head, LINUX);
    }
    let mut sent = 0_u64;
    while rustix::net::send(&rig.peers[0], &packet(60, 0), SendFlags::empty()).is_ok() {
        sent += 1;
    }
    assert!(sent > 100, "{sent}");
    rig.manager.run_with_timeout(0).unwrap();
    assert_eq!(rig.metrics().rx_packets, 64);
    rig.run();
    assert_eq!(rig.metrics().rx_packets, sent.min(256));
}

#[test]
fn the_rate_is_limited_and_the_rest_comes_later() {
    let limited = Config {
        rx_limit: Some(RateLimit {
            bytes_per_second: 100_000,
            burst: 3000,
        }),
        ..config(1)
    };
    let mut rig = Rig::with(limited, MERGEABLE, &[256, 256, 64], false);
    for head in 0..64 {
        rig.guest.give(RX, head, LINUX);
    }
    let start = Instant::now();
    for seed in 0..20 {
        rig.arrive(0, &packet(1000, seed));
    }
    rig.run();
    let first = rig.metrics().rx_packets;
    assert!((3..20).contains(&first), "{first}");
    assert_eq!(rig.metrics().rx_waits, 1);
    while rig.metrics().rx_packets < 20 {
        assert!(start.elapsed() < Duration::from_secs(20));
        rig.manager.run_with_timeout(100).unwrap();
    }
    // 20 000 bytes less the burst, and less what was owed for the last packet.
    assert!(start.elapsed() >= Duration::from_millis(155));
    for seed in 0..20 {
        let expected = in_buffers(1, &packet(1000, seed));
        assert_eq!(rig.guest.receive(RX), Some((1, expected)));
    }
}

#[test]
fn the_end_of_a_tap_is_survived() {
    let mut rig = Rig::new(MERGEABLE);
    rig.guest.give(RX, 0, LINUX);
    rig.peers.clear();
    rig.run();
    assert_eq!(rig.guest.receive(RX), None);
    rig.guest.send(TX, 0, &packet(60, 0), &[]);
    rig.run();
    assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
    assert_eq!(rig.metrics().tx_dropped, 1);
}
