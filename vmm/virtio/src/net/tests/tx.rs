use std::time::{Duration, Instant};

use super::guest::packet;
use super::*;
use crate::net::RateLimit;

#[test]
fn packets_leave_as_they_are_however_they_are_cut() {
    let mut rig = Rig::new(0);
    let sent = packet(3000, 5);
    for cuts in [&[][..], &[12], &[10, 2, 100], &[1; 40], &[12, 1500]] {
        rig.guest.send(TX, 0, &sent, cuts);
        rig.run();
        assert_eq!(rig.leave(0).as_ref(), Some(&sent), "{cuts:?}");
        assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
        rig.guest.send_indirect(TX, 1, &sent, cuts);
        rig.run();
        assert_eq!(rig.leave(0).as_ref(), Some(&sent), "{cuts:?}");
        assert_eq!(rig.guest.take_used(TX), Some((1, 0)));
    }
    let metrics = rig.metrics();
    assert_eq!((metrics.tx_packets, metrics.tx_bytes), (10, 30_000));
    assert!(rig.interrupted());
}

#[test]
fn the_longest_packet_passes() {
    let mut rig = Rig::new(0);
    let sent = packet(65_549, 1);
    rig.guest.send(TX, 0, &sent, &[12]);
    rig.run();
    assert!(rig.leave(0) == Some(sent));
}

#[test]
fn a_full_tap_makes_packets_wait_and_loses_none() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(config(1), 0, &[256, 256, 64], event_idx);
        for seed in 0..250 {
            rig.guest
                .send(TX, u16::from(seed), &packet(4000, seed), &[]);
            // The buffers of one in 16 share their memory.
            rig.run();
        }
        let passed = rig.metrics().tx_packets;
        assert!((1..250).contains(&passed), "{passed}");
        assert_eq!(rig.metrics().tx_full, 1);
        assert_eq!(rig.manager.run_with_timeout(20).unwrap(), 0);
        let mut left = 0;
        loop {
            while rig.leave(0).is_some() {
                left += 1;
            }
            rig.run();
            if rig.metrics().tx_packets == 250 {
                break;
            }
        }
        while rig.leave(0).is_some() {
            left += 1;
        }
        assert_eq!(left, 250);
        for head in 0..250 {
            assert_eq!(rig.guest.take_used(TX), Some((head, 0)));
        }
    }
}

#[test]
fn a_turn_is_bounded() {
    let mut rig = Rig::new(0);
    for head in 0..200 {
        rig.guest.send(TX, head, &packet(60, 0), &[]);
    }
    rig.manager.run_with_timeout(0).unwrap();
    assert_eq!(rig.metrics().tx_packets, 64);
    rig.run();
    assert_eq!(rig.metrics().tx_packets, 200);
}

#[test]
fn a_packet_that_the_tap_refuses_is_dropped() {
    let mut rig = Rig::new(0);
    // A socket takes no packet that is larger than its buffer.
    let device = rig.device();
    let tap = device.taps().first().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(tap, 4096).unwrap();
    drop(device);
    rig.guest.send(TX, 0, &packet(60_000, 0), &[]);
    rig.guest.send(TX, 1, &packet(60, 0), &[]);
    rig.run();
    assert_eq!(rig.leave(0), Some(packet(60, 0)));
    let metrics = rig.metrics();
    assert_eq!((metrics.tx_packets, metrics.tx_dropped), (1, 1));
    assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
    assert_eq!(rig.guest.take_used(TX), Some((1, 0)));
}

#[test]
fn the_rate_is_limited_and_the_rest_goes_later() {
    let limited = Config {
        tx_limit: Some(RateLimit {
            bytes_per_second: 100_000,
            burst: 3000,
        }),
        ..config(1)
    };
    let mut rig = Rig::with(limited, 0, &[256, 256, 64], false);
    let start = Instant::now();
    for head in 0..16 {
        rig.guest.send(TX, head, &packet(1000, 0), &[]);
    }
    rig.run();
    let first = rig.metrics().tx_packets;
    assert!((3..16).contains(&first), "{first}");
    while rig.metrics().tx_packets < 16 {
        assert!(start.elapsed() < Duration::from_secs(20));
        rig.manager.run_with_timeout(100).unwrap();
    }
    assert!(start.elapsed() >= Duration::from_millis(115));
    assert!(rig.metrics().tx_waits >= 1);
}

#[test]
fn interrupts_that_the_driver_does_not_want_do_not_come() {
    let mut rig = Rig::new(0);
    // VRING_AVAIL_F_NO_INTERRUPT.
    rig.guest.set_avail_flags(TX, 1);
    rig.guest.send(TX, 0, &packet(60, 0), &[]);
    rig.run();
    assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
    assert!(!rig.interrupted());
}
