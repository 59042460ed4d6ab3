//! Drivers that break the rules.

use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{INDIRECT, NEXT, WRITE, packet};
use super::*;
use crate::device::{ActivateError, INTERRUPT_CONFIG_CHANGE};

const NOWHERE: u64 = 1 << 40;

/// Sends a good packet and sees it arrive.
fn works(rig: &mut Rig) {
    let sent = packet(100, 0x55);
    rig.guest.send(TX, 9, &sent, &[12]);
    rig.run();
    assert_eq!(rig.leave(0), Some(sent));
}

#[test]
fn a_chain_that_is_no_packet_is_returned_and_counted() {
    let mut rig = Rig::new(0);
    let at = rig.guest.rings[TX].buffer(0);
    type Case<'a> = (&'a str, &'a [(u64, u32)], u16);
    let cases: [Case<'_>; 8] = [
        ("empty", &[(at, 0)], 0),
        ("half a header", &[(at, 6)], 0),
        ("a header alone", &[(at, 12)], 0),
        ("too long", &[(at, 12), (at, 65_558)], 0),
        ("longer than memory", &[(at, u32::MAX)], 0),
        ("for the device to write", &[(at, 100)], WRITE),
        ("nowhere", &[(at, 12), (NOWHERE, 100)], 0),
        ("to the end of addresses", &[(u64::MAX - 10, 100)], 0),
    ];
    for (count, (name, pieces, flags)) in (1..).zip(cases) {
        rig.guest.put_chain(TX, 0, pieces, flags);
        rig.guest.kick(TX);
        rig.run();
        assert_eq!(rig.guest.take_used(TX), Some((0, 0)), "{name}");
        assert_eq!(rig.metrics().tx_malformed, count, "{name}");
        assert_eq!(rig.leave(0), None, "{name}");
    }
    works(&mut rig);
}

#[test]
fn a_chain_without_an_end_is_returned() {
    let mut rig = Rig::new(0);
    let at = rig.guest.rings[TX].buffer(0);
    let table = rig.guest.rings[TX].buffer(1);
    for (index, (address, flags, next)) in (0..).zip([
        (at, NEXT, 0),          // To itself.
        (at, NEXT, 300),        // To no descriptor.
        (table, INDIRECT, 0),   // To a table that holds a reference to itself.
        (NOWHERE, INDIRECT, 0), // To a table that is not there.
    ]) {
        let memory = &rig.guest.memory;
        memory.write_obj(table, GuestAddress(table)).unwrap();
        memory.write_obj(16_u32, GuestAddress(table + 8)).unwrap();
        memory
            .write_obj(INDIRECT, GuestAddress(table + 12))
            .unwrap();
        rig.guest
            .put_descriptor(TX, 0, Descriptor::new(address, 16, flags, next));
        rig.guest.make_available(TX, 0);
        rig.guest.kick(TX);
        rig.run();
        assert_eq!(rig.guest.take_used(TX), Some((0, 0)), "{index}");
        assert_eq!(rig.metrics().tx_malformed, index + 1);
    }
    // More pieces than anybody needs.
    let memory = &rig.guest.memory;
    for index in 0..4000_u16 {
        let entry = GuestAddress(table + u64::from(index) * 16);
        memory.write_obj(at, entry).unwrap();
        memory.write_obj(1_u32, GuestAddress(entry.0 + 8)).unwrap();
        memory.write_obj(NEXT, GuestAddress(entry.0 + 12)).unwrap();
        memory
            .write_obj(index + 1, GuestAddress(entry.0 + 14))
            .unwrap();
    }
    rig.guest
        .put_descriptor(TX, 0, Descriptor::new(table, 64_000, INDIRECT, 0));
    rig.guest.make_available(TX, 0);
    rig.guest.kick(TX);
    rig.run();
    assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
    assert_eq!(rig.metrics().tx_malformed, 5);
    works(&mut rig);
}

#[test]
fn a_bad_buffer_is_returned_and_the_next_one_used() {
    let mut rig = Rig::new(MERGEABLE);
    let at = rig.guest.rings[RX].buffer(0);
    rig.guest.put_chain(RX, 0, &[(at, 100)], 0);
    rig.guest.put_chain(RX, 1, &[(NOWHERE, 100)], WRITE);
    rig.guest.put_chain(RX, 2, &[(at, 11)], WRITE);
    rig.guest.give(RX, 3, &[200]);
    // This one stands behind a good one.
    rig.guest.put_chain(RX, 4, &[(at, 100)], 0);
    rig.guest.give(RX, 5, &[200]);
    rig.guest.give(RX, 6, &[200]);
    rig.guest.kick(RX);
    for (seed, size) in [(1, 100), (2, 300), (3, 60)] {
        rig.arrive(0, &packet(size, seed));
    }
    rig.run();
    for head in 0..3 {
        assert_eq!(rig.guest.take_used(RX), Some((head, 0)));
    }
    let first = in_buffers(1, &packet(100, 1));
    assert_eq!(rig.guest.receive(RX), Some((1, first)));
    assert_eq!(rig.guest.take_used(RX), Some((4, 0)));
    let second = in_buffers(2, &packet(300, 2));
    assert_eq!(rig.guest.receive(RX), Some((2, second)));
    assert_eq!(rig.metrics().rx_malformed, 4);
}

#[test]
fn a_broken_ring_needs_a_reset() {
    for (queue, good) in [(RX, TX), (TX, RX), (2, TX)] {
        let mut rig = Rig::new(MERGEABLE | CONTROL);
        rig.arrive(0, &packet(60, 0));
        // More entries than the ring has.
        let avail = GuestAddress(0x4000 * queue as u64 + 0x1002);
        rig.guest.memory.write_obj(1000_u16, avail).unwrap();
        rig.guest.kick(queue);
        rig.guest.kick(good);
        rig.run();
        let status = rig.guest.interrupt.status().load(Ordering::SeqCst);
        assert_eq!(status & INTERRUPT_CONFIG_CHANGE, INTERRUPT_CONFIG_CHANGE);
        assert!(rig.guest.interrupt.broken().load(Ordering::SeqCst));
        assert!(rig.device().queue_states().is_empty());
        assert_eq!(rig.metrics().queue_errors, 1);
        rig.device().reset();
        rig.activate(0);
        works(&mut rig);
    }
}

#[test]
fn a_head_that_is_no_descriptor_breaks_the_ring() {
    for queue in [RX, TX] {
        let mut rig = Rig::new(0);
        rig.arrive(0, &packet(60, 0));
        rig.guest.make_available(queue, 300);
        rig.guest.kick(queue);
        rig.run();
        assert!(rig.guest.interrupt.broken().load(Ordering::SeqCst));
    }
}

#[test]
fn queues_that_are_not_ready_are_refused_or_not_used() {
    let (taps, _peers) = taps(2);
    let mut device = Net::new(config(2), taps).unwrap();
    let mut guest = Guest::new(&[256, 0, 256, 256, 64], false);
    let error = device
        .activate(guest.activation(MULTI | CONTROL))
        .unwrap_err();
    assert!(
        matches!(error, ActivateError::Queue { index: 1 }),
        "{error}"
    );
    let mut guest = Guest::new(&[256, 256, 256, 0, 64], false);
    device.activate(guest.activation(MULTI | CONTROL)).unwrap();
    assert_eq!(device.queue_states().len(), 5);
}

#[test]
fn starts_without_end_are_refused() {
    let mut rig = Rig::new(0);
    let began = Instant::now();
    let mut started = 1;
    for round in 0..1000 {
        rig.device().reset();
        let features = if round % 2 == 0 { MERGEABLE } else { 0 };
        let activation = rig.guest.activation(features);
        match rig.device().activate(activation) {
            Ok(()) => started += 1,
            Err(error) => assert!(matches!(error, ActivateError::TooOften), "{error}"),
        }
    }
    let most = 64 + 20 * (began.elapsed().as_secs() + 1);
    assert!(
        (64..=most).contains(&started),
        "{started} of 1000, {most} allowed"
    );
}

#[test]
fn a_reset_in_the_middle_leaves_nothing() {
    let mut rig = Rig::new(MERGEABLE | CONTROL);
    rig.guest.give(RX, 0, &[100]);
    rig.arrive(0, &packet(5000, 0));
    rig.run();
    // One packet is held, the tap is not watched, and there is work that nobody has seen.
    rig.guest.send(TX, 0, &packet(60, 0), &[]);
    rig.device().reset();
    rig.guest.give(RX, 1, &[9000]);
    rig.guest.kick(RX);
    rig.arrive(0, &packet(60, 1));
    rig.run();
    assert_eq!(rig.guest.take_used(RX), None);
    assert_eq!(rig.guest.take_used(TX), None);
    assert_eq!(rig.leave(0), None);

    rig.activate(MERGEABLE);
    rig.guest.give(RX, 0, &[1536]);
    rig.guest.kick(RX);
    rig.run();
    let expected = in_buffers(1, &packet(60, 1));
    assert_eq!(rig.guest.receive(RX), Some((1, expected)));
    works(&mut rig);
}
