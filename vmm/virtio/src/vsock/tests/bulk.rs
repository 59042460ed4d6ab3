//! Many bytes and many streams.

use std::collections::HashMap;

use super::socket::GuestSocket;
use super::*;
use crate::vsock::BUF_ALLOC;

/// A byte for every position, without a short period.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        bytes.extend((state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn write_some(host: &mut UnixStream, bytes: &[u8]) -> usize {
    match host.write(bytes) {
        Ok(count) => count,
        Err(error) if would_block(&error) => 0,
        Err(error) => panic!("{error}"),
    }
}

fn read_some(host: &mut UnixStream, into: &mut Vec<u8>, limit: usize) {
    let mut buffer = vec![0; limit];
    match host.read(&mut buffer) {
        Ok(count) => into.extend(&buffer[..count]),
        Err(error) if would_block(&error) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Moves `len` bytes both ways at once.
fn both_ways(mut rig: Rig, len: usize, guest_buf_alloc: u32, cuts: &[u32], host_step: usize) {
    let (mut host, ports) = rig.host_stream();
    host.set_nonblocking(true).unwrap();
    let mut socket = GuestSocket::new(ports, guest_buf_alloc, BUF_ALLOC);
    socket.control(&mut rig.guest, op::CREDIT_UPDATE, 0);
    let (down, up) = (pattern(len, 1), pattern(len, 2));
    let (mut written, mut sent) = (0, 0);
    let mut read = Vec::new();
    let mut idle = 0;
    while read.len() < len || socket.received.len() < len {
        let before = (written, sent, read.len(), socket.received.len());
        let step = (written + host_step).min(len);
        written += write_some(&mut host, &down[written..step]);
        sent += socket.send(&mut rig.guest, &up[sent..], cuts);
        for packet in rig.packets() {
            socket.receive(&mut rig.guest, &packet);
        }
        read_some(&mut host, &mut read, host_step);
        let after = (written, sent, read.len(), socket.received.len());
        idle = if before == after { idle + 1 } else { 0 };
        assert!(idle < 10, "stuck at {after:?}: {:?}", rig.metrics());
    }
    assert!(read == up && socket.received == down);
    let metrics = rig.metrics();
    assert_eq!(metrics.rx_bytes, len as u64);
    assert_eq!(metrics.tx_bytes, len as u64);
    assert_eq!(metrics.violations + metrics.malformed_chains, 0);
}

#[test]
fn ten_mebibytes_arrive_intact() {
    both_ways(Rig::new(), 10 << 20, 256 * 1024, &[44], 1 << 20);
}

#[test]
fn ten_mebibytes_arrive_intact_without_event_index() {
    both_ways(
        Rig::with(false, LINUX_RX),
        10 << 20,
        256 * 1024,
        &[44],
        1 << 16,
    );
}

#[test]
fn ten_mebibytes_arrive_intact_through_small_and_odd_buffers() {
    // The header is spread over descriptors on both sides and shares them with the payload.
    let rig = Rig::with(true, &[13, 40, 1000]);
    both_ways(rig, 10 << 20, 5000, &[7, 60, 2], 50_000);
}

#[test]
fn ten_mebibytes_arrive_intact_through_large_buffers() {
    both_ways(
        Rig::with(true, &[44, 65536]),
        10 << 20,
        1 << 20,
        &[],
        1 << 20,
    );
}

#[test]
fn two_hundred_streams_at_once() {
    const EACH: usize = 40_000;
    let mut rig = Rig::new();
    let mut hosts = HashMap::new();
    let mut sockets = HashMap::new();
    for index in 0..200 {
        let (host, ports) = if index % 2 == 0 {
            rig.host_stream()
        } else {
            rig.guest_stream(10_000 + index)
        };
        host.set_nonblocking(true).unwrap();
        hosts.insert(ports, (host, 0, Vec::new()));
        // The first streams have more credit to give; any of them has this.
        let socket = GuestSocket::new(ports, 4096, 64 * 1024);
        let seed = (ports.0 << 8 ^ ports.1) as usize;
        let bytes = [pattern(EACH, seed), pattern(EACH, !seed)];
        sockets.insert(ports, (socket, 0, bytes));
    }
    for (socket, ..) in sockets.values_mut() {
        socket.control(&mut rig.guest, op::CREDIT_UPDATE, 0);
        rig.pump();
    }
    for _ in 0..2000 {
        let mut done = true;
        for (ports, (host, written, read)) in &mut hosts {
            let (socket, sent, [down, up]) = sockets.get_mut(ports).unwrap();
            *written += write_some(host, &down[*written..]);
            read_some(host, read, EACH);
            *sent += socket.send(&mut rig.guest, &up[*sent..], &[44]);
            done &= read.len() == EACH && socket.received.len() == EACH;
        }
        for packet in rig.packets() {
            let ports = (packet.header.dst_port, packet.header.src_port);
            let (socket, ..) = sockets.get_mut(&ports).unwrap();
            while !rig.guest.has_tx_space() {
                rig.pump();
            }
            socket.receive(&mut rig.guest, &packet);
        }
        if done {
            break;
        }
    }
    for (ports, (_, _, read)) in &hosts {
        let (socket, _, [down, up]) = &sockets[ports];
        assert!(read == up && &socket.received == down, "{ports:?}");
    }
    // All of them end, and nothing is left of them.
    let all: Vec<_> = hosts.keys().copied().collect();
    drop(hosts);
    let mut ends = 0;
    loop {
        let packets = rig.packets();
        if packets.is_empty() {
            break;
        }
        assert!(packets.iter().all(|p| p.header.op == op::SHUTDOWN));
        ends += packets.len();
    }
    assert_eq!(ends, all.len());
    for ports in &all {
        rig.send(header(*ports, op::RST));
    }
    rig.expect_silence();
    for ports in all {
        rig.send(header(ports, op::CREDIT_UPDATE));
        rig.expect_op(op::RST);
    }
}

#[test]
fn streams_are_served_in_turn() {
    let mut rig = Rig::new();
    let mut hosts: Vec<_> = (0..50).map(|_| rig.host_stream()).collect();
    for (host, _) in &mut hosts {
        host.write_all(&[7; 32 * 1024]).unwrap();
    }
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for packet in rig.packets().iter().take(50) {
        *counts.entry(packet.header.src_port).or_default() += 1;
    }
    assert_eq!(counts.len(), 50);
}

#[test]
fn a_wake_up_costs_one_interrupt() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.guest.interrupts();
    host.write_all(&[1; 64 * 1024]).unwrap();
    rig.send_payload(header(ports, op::RW), &[2; 32 * 1024]);
    assert_eq!(rig.guest.interrupts(), 1);
    let packets = rig.packets();
    assert_eq!(
        packets.iter().map(|p| p.payload.len()).sum::<usize>(),
        64 * 1024
    );
}

#[test]
fn reads_grow_with_what_they_bring() {
    let mut rig = Rig::new();
    let (mut host, _) = rig.host_stream();
    // Filling buffers of 4 KiB one by one would take 16 reads for this.
    for _ in 0..3 {
        host.write_all(&[1; 64 * 1024]).unwrap();
        assert_eq!(rig.packets().len(), 16);
    }
}
