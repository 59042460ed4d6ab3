//! Streams from their beginning to their end.

use std::net::Shutdown;

use super::*;
use crate::vsock::{BUF_ALLOC, MAX_HANDSHAKES};

#[test]
fn a_host_process_reaches_the_guest() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    host.write_all(b"ping").unwrap();
    let packet = rig.packet();
    assert_eq!(packet.header.op, op::RW);
    assert_eq!(packet.payload, b"ping");
    assert_eq!(packet.header.buf_alloc, BUF_ALLOC);
    rig.send_payload(header(ports, op::RW), b"pong");
    assert_eq!(read_exact(&mut host, 4), b"pong");
    rig.expect_silence();
    let metrics = rig.metrics();
    assert_eq!((metrics.rx_bytes, metrics.tx_bytes), (4, 4));
    assert_eq!(metrics.host_connects, 1);
}

#[test]
fn what_follows_the_first_line_is_not_lost() {
    let mut rig = Rig::new();
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 77\nhello\nworld").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let request = rig.expect_op(op::REQUEST);
    let ports = (77, request.src_port);
    rig.send(header(ports, op::RESPONSE));
    let packets = rig.packets();
    assert_eq!(packets.len(), 2, "{packets:?}");
    assert_eq!(packets[0].payload, b"hello\nworld");
    assert_eq!(packets[1].header.op, op::SHUTDOWN);
    assert_eq!(packets[1].header.flags, shutdown::SEND);
    rig.send_payload(header(ports, op::RW), b"answer");
    let ok = format!("OK {}\nanswer", request.src_port);
    assert_eq!(read_exact(&mut host, ok.len()), ok.as_bytes());
}

#[test]
fn a_first_line_may_come_byte_by_byte() {
    let mut rig = Rig::new();
    let mut host = rig.host_connect();
    for byte in b"CONNECT 4294967295\n" {
        rig.expect_silence();
        host.write_all(&[*byte]).unwrap();
    }
    assert_eq!(rig.expect_op(op::REQUEST).dst_port, u32::MAX);
}

#[test]
fn a_bad_first_line_ends_the_connection() {
    let lines: [&[u8]; 9] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT +1\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"connect 1\n",
        b"CONNECT 1 \n",
        b"CONNECT 0000000000000000000000001\n",
    ];
    let mut rig = Rig::new();
    for line in lines {
        let mut host = rig.host_connect();
        host.write_all(line).unwrap();
        rig.expect_silence();
        // Unread bytes make the end a reset.
        let mut byte = [0];
        let end = host.read(&mut byte);
        assert!(!matches!(&end, Err(error) if would_block(error)) && !matches!(end, Ok(1..)));
    }
    let mut host = rig.host_connect();
    host.write_all(b"CONN").unwrap();
    rig.pump();
    host.shutdown(Shutdown::Write).unwrap();
    rig.pump();
    assert!(host.read(&mut [0]).is_ok_and(|n| n == 0) || host.write(b"x").is_err());
    assert_eq!(rig.metrics().failed_handshakes, 10);
}

#[test]
fn silent_host_processes_give_way_to_new_ones() {
    let mut rig = Rig::new();
    let silent: Vec<_> = (0..MAX_HANDSHAKES + 2)
        .map(|_| {
            let host = rig.host_connect();
            rig.pump();
            host
        })
        .collect();
    assert_eq!(rig.metrics().failed_handshakes, 2);
    for mut host in &silent[..2] {
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
    // The oldest that is left still gets through.
    (&silent[2]).write_all(b"CONNECT 9\n").unwrap();
    assert_eq!(rig.expect_op(op::REQUEST).dst_port, 9);
}

#[test]
fn a_refused_host_process_sees_its_socket_close() {
    let mut rig = Rig::new();
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 1\n").unwrap();
    let request = rig.expect_op(op::REQUEST);
    rig.send(header((1, request.src_port), op::RST));
    expect_end(&mut host);
    rig.expect_silence();
}

#[test]
fn a_host_process_that_gives_up_is_taken_back() {
    let mut rig = Rig::new();
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 1\n").unwrap();
    let request = rig.expect_op(op::REQUEST);
    drop(host);
    let reset = rig.expect_op(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 1));
    // Its answer comes too late.
    rig.send(header((1, request.src_port), op::RESPONSE));
    rig.expect_op(op::RST);
}

#[test]
fn host_ports_differ() {
    let mut rig = Rig::new();
    let mut seen = std::collections::HashSet::new();
    let mut hosts = Vec::new();
    for _ in 0..50 {
        let (host, (_, host_port)) = rig.host_stream();
        assert!(seen.insert(host_port));
        hosts.push(host);
    }
}

#[test]
fn a_guest_process_reaches_the_host() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.guest_stream(7);
    rig.send_payload(header(ports, op::RW), b"ping");
    assert_eq!(read_exact(&mut host, 4), b"ping");
    host.write_all(b"pong").unwrap();
    assert_eq!(rig.packet().payload, b"pong");
}

#[test]
fn a_port_that_is_not_offered_is_refused() {
    let mut rig = Rig::new();
    for port in [0, 1, HOST_PORT - 1, u32::MAX, HOST_PORT + 1] {
        rig.send(header((7, port), op::REQUEST));
        let reset = rig.expect_op(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (port, 7));
    }
    assert_eq!(rig.metrics().refused_connects, 5);
    assert!(rig.incoming.try_recv().is_err());
}

#[test]
fn the_host_ends_its_stream_first() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = rig.packets();
    assert_eq!(packets[0].payload, b"last words");
    assert_eq!(packets[1].header.op, op::SHUTDOWN);
    assert_eq!(packets[1].header.flags, shutdown::SEND);
    assert_eq!(packets.len(), 2);
    // The other direction goes on.
    rig.send_payload(header(ports, op::RW), b"answer");
    assert_eq!(read_exact(&mut host, 6), b"answer");
    // The guest closes: everything is confirmed.
    let both = shutdown::RCV | shutdown::SEND;
    rig.send(Header {
        flags: both,
        ..header(ports, op::SHUTDOWN)
    });
    rig.expect_op(op::RST);
    expect_end(&mut host);
    rig.expect_silence();
}

#[test]
fn the_guest_ends_its_stream_first() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.guest_stream(7);
    rig.send_payload(header(ports, op::RW), b"request");
    rig.send(Header {
        flags: shutdown::SEND,
        ..header(ports, op::SHUTDOWN)
    });
    let mut request = Vec::new();
    host.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"request");
    rig.expect_silence();
    host.write_all(b"answer").unwrap();
    drop(host);
    let packets = rig.packets();
    assert_eq!(packets[0].payload, b"answer", "{packets:?}");
    let last = packets.last().unwrap().header;
    assert_eq!(last.op, op::SHUTDOWN);
    assert_eq!(last.flags, shutdown::SEND | shutdown::RCV);
    rig.send(header(ports, op::RST));
    rig.expect_silence();
    // The ports are free again.
    rig.guest_stream(7);
}

#[test]
fn a_guest_that_reads_no_more_stops_the_host() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.send(Header {
        flags: shutdown::RCV,
        ..header(ports, op::SHUTDOWN)
    });
    let error = host.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    rig.send_payload(header(ports, op::RW), b"still here");
    assert_eq!(read_exact(&mut host, 10), b"still here");
}

#[test]
fn a_host_that_reads_no_more_stops_the_guest() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    host.shutdown(Shutdown::Read).unwrap();
    rig.send_payload(header(ports, op::RW), b"unwanted");
    let ended = rig.expect_op(op::SHUTDOWN);
    assert_eq!(ended.flags, shutdown::RCV);
    assert_eq!(ended.fwd_cnt, 8);
    host.write_all(b"but listen").unwrap();
    assert_eq!(rig.packet().payload, b"but listen");
}

#[test]
fn a_host_process_that_dies_leaves_nothing() {
    let mut rig = Rig::new();
    let (host, ports) = rig.host_stream();
    rig.send_payload(header(ports, op::RW), b"never read");
    drop(host);
    let ended = rig.packets().last().unwrap().header;
    assert_eq!(ended.op, op::SHUTDOWN);
    assert_eq!(ended.flags, shutdown::SEND | shutdown::RCV);
    // What was under way is swallowed.
    rig.send_payload(header(ports, op::RW), b"late");
    rig.expect_silence();
    rig.send(Header {
        flags: shutdown::SEND | shutdown::RCV,
        ..header(ports, op::SHUTDOWN)
    });
    rig.expect_op(op::RST);
    rig.send(header(ports, op::CREDIT_UPDATE));
    rig.expect_op(op::RST);
}

#[test]
fn a_reset_by_the_guest_closes_the_socket() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.send(header(ports, op::RST));
    expect_end(&mut host);
    rig.expect_silence();
    assert_eq!(rig.metrics().resets_received, 1);
}

#[test]
fn unsent_bytes_reach_the_host_before_the_end() {
    let mut rig = Rig::new();
    let (mut host, _, sent) = guest_that_sent_much(&mut rig);
    assert_eq!(read_slowly(&mut rig, &mut host), sent);
    let last = rig.packets().last().unwrap().header;
    assert_eq!(last.op, op::RST);
    rig.guest_stream(7);
}

#[test]
fn unsent_bytes_outlive_a_guest_that_gives_up() {
    let mut rig = Rig::new();
    let (mut host, ports, sent) = guest_that_sent_much(&mut rig);
    rig.send(header(ports, op::RST));
    rig.expect_silence();
    // To the guest the stream is over.
    rig.send(header(ports, op::CREDIT_REQUEST));
    rig.expect_op(op::RST);
    rig.send(header(ports, op::REQUEST));
    rig.expect_op(op::RST);
    assert_eq!(read_slowly(&mut rig, &mut host), sent);
    rig.expect_silence();
    rig.guest_stream(7);
}

/// A stream whose guest has sent more than the socket takes and then closed it.
fn guest_that_sent_much(rig: &mut Rig) -> (UnixStream, (u32, u32), usize) {
    let (host, ports) = rig.guest_stream(7);
    let chunk = vec![0x5a; 60 * 1024];
    let mut sent = 0;
    // Four of these are within the credit; the socket does not take all of them.
    for _ in 0..4 {
        rig.send_payload(header(ports, op::RW), &chunk);
        sent += chunk.len();
    }
    rig.send(Header {
        flags: shutdown::SEND | shutdown::RCV,
        ..header(ports, op::SHUTDOWN)
    });
    let packets = rig.packets();
    assert!(
        packets.iter().all(|p| p.header.op != op::RST),
        "{packets:?}"
    );
    (host, ports, sent)
}

fn read_slowly(rig: &mut Rig, host: &mut UnixStream) -> usize {
    host.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match host.read(&mut buffer) {
            Ok(0) => return total,
            Ok(count) => {
                assert!(buffer[..count].iter().all(|byte| *byte == 0x5a));
                total += count;
            }
            Err(error) if would_block(&error) => rig.pump(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn credit_is_given_on_request() {
    let mut rig = Rig::new();
    let (_host, ports) = rig.host_stream();
    rig.send(header(ports, op::CREDIT_REQUEST));
    let update = rig.expect_op(op::CREDIT_UPDATE);
    assert_eq!(update.buf_alloc, BUF_ALLOC);
    assert_eq!(update.fwd_cnt, 0);
}

#[test]
fn without_credit_the_host_waits_and_the_guest_is_asked_once() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.send(Header {
        buf_alloc: 3,
        ..header(ports, op::CREDIT_UPDATE)
    });
    host.write_all(b"abcdefgh").unwrap();
    let packets = rig.packets();
    assert_eq!(packets[0].payload, b"abc");
    assert_eq!(packets[1].header.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    host.write_all(b"i").unwrap();
    rig.expect_silence();
    rig.send(Header {
        buf_alloc: 3,
        fwd_cnt: 3,
        ..header(ports, op::CREDIT_UPDATE)
    });
    let packets = rig.packets();
    assert_eq!(packets[0].payload, b"def");
    assert_eq!(packets[1].header.op, op::CREDIT_REQUEST);
    rig.send(Header {
        buf_alloc: 300,
        fwd_cnt: 6,
        ..header(ports, op::CREDIT_UPDATE)
    });
    assert_eq!(rig.packet().payload, b"ghi");
}
