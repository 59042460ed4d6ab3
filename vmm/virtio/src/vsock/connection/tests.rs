use proptest::prelude::*;

use super::*;

const BUF_ALLOC: u32 = 1000;

fn packet(op: u16) -> Header {
    Header {
        op,
        buf_alloc: 500,
        ..Header::default()
    }
}

fn payload(len: u32) -> Header {
    Header {
        len,
        ..packet(op::RW)
    }
}

fn ended(flags: u32) -> Header {
    Header {
        flags,
        ..packet(op::SHUTDOWN)
    }
}

/// The packets that are due: operation and flags.
fn due(connection: &mut Connection) -> Vec<(u16, u32)> {
    let mut all = Vec::new();
    let mut header = Header::default();
    while connection.next_due(&mut header) {
        all.push((header.op, header.flags));
        header = Header::default();
    }
    all
}

fn established() -> Connection {
    let mut connection = Connection::from_guest(BUF_ALLOC, &packet(op::REQUEST));
    assert_eq!(due(&mut connection), [(op::RESPONSE, 0)]);
    connection
}

#[test]
fn the_host_asks_and_the_guest_grants() {
    let mut connection = Connection::from_host(BUF_ALLOC);
    assert!(connection.is_requested() && connection.is_unannounced());
    assert_eq!(due(&mut connection), [(op::REQUEST, 0)]);
    assert!(connection.is_requested() && !connection.is_unannounced());
    assert_eq!(connection.sendable(), 0);
    assert_eq!(
        connection.receive(&packet(op::RESPONSE)),
        Ok(Effect::Accepted)
    );
    assert!(!connection.is_requested());
    assert_eq!(connection.sendable(), 500);
}

#[test]
fn before_the_grant_only_a_response_or_a_reset_is_in_order() {
    for op in [0, op::REQUEST, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, 99] {
        let mut connection = Connection::from_host(BUF_ALLOC);
        due(&mut connection);
        assert_eq!(
            connection.receive(&packet(op)),
            Err(Violation::Operation(op))
        );
    }
    let mut connection = Connection::from_host(BUF_ALLOC);
    assert_eq!(connection.receive(&packet(op::RST)), Ok(Effect::Reset));
}

#[test]
fn a_response_to_a_request_that_was_never_sent_is_a_violation() {
    let mut connection = Connection::from_host(BUF_ALLOC);
    assert_eq!(
        connection.receive(&packet(op::RESPONSE)),
        Err(Violation::Operation(op::RESPONSE))
    );
}

#[test]
fn an_established_connection_knows_its_operations() {
    for op in [0, op::REQUEST, op::RESPONSE, 8, u16::MAX] {
        assert_eq!(
            established().receive(&packet(op)),
            Err(Violation::Operation(op))
        );
    }
}

#[test]
fn payload_beyond_the_credit_is_a_violation() {
    let mut connection = established();
    assert_eq!(connection.receive(&payload(BUF_ALLOC)), Ok(Effect::Data));
    assert_eq!(connection.receive(&payload(1)), Err(Violation::Credit));
    connection.forwarded(1);
    assert_eq!(connection.receive(&payload(1)), Ok(Effect::Data));
}

#[test]
fn payload_after_the_end_is_a_violation() {
    let mut connection = established();
    assert_eq!(
        connection.receive(&ended(shutdown::SEND)),
        Ok(Effect::Shutdown)
    );
    assert_eq!(
        connection.receive(&payload(1)),
        Err(Violation::AfterShutdown)
    );
}

#[test]
fn each_direction_of_the_guest_ends_on_its_own_and_for_good() {
    let mut connection = established();
    connection.receive(&ended(shutdown::RCV)).unwrap();
    assert!(connection.guest_receives_no_more() && !connection.guest_sends_no_more());
    assert_eq!(connection.sendable(), 0);
    assert_eq!(connection.receive(&payload(1)), Ok(Effect::Data));
    connection.receive(&ended(0)).unwrap();
    assert!(connection.guest_receives_no_more() && !connection.guest_sends_no_more());
    connection.receive(&ended(shutdown::SEND)).unwrap();
    assert!(connection.guest_receives_no_more() && connection.guest_sends_no_more());
}

#[test]
fn each_direction_of_the_host_is_told_once() {
    let mut connection = established();
    connection.host_sends_no_more();
    connection.host_sends_no_more();
    assert_eq!(due(&mut connection), [(op::SHUTDOWN, shutdown::SEND)]);
    assert_eq!(connection.sendable(), 0);
    connection.host_receives_no_more();
    connection.host_receives_no_more();
    let both = shutdown::SEND | shutdown::RCV;
    assert_eq!(due(&mut connection), [(op::SHUTDOWN, both)]);
    connection.host_gone();
    assert_eq!(due(&mut connection), []);
}

#[test]
fn a_host_that_is_gone_swallows_what_comes() {
    let mut connection = established();
    connection.host_gone();
    let both = shutdown::SEND | shutdown::RCV;
    assert_eq!(due(&mut connection), [(op::SHUTDOWN, both)]);
    // Even without credit: nobody holds it.
    for _ in 0..3 {
        assert_eq!(connection.receive(&payload(BUF_ALLOC)), Ok(Effect::None));
    }
    assert_eq!(connection.receive(&ended(both)), Ok(Effect::Shutdown));
    assert_eq!(connection.receive(&packet(op::RST)), Ok(Effect::Reset));
}

#[test]
fn a_reset_after_the_end_of_the_stream_leaves_the_host_its_bytes() {
    let mut connection = established();
    connection.receive(&payload(800)).unwrap();
    connection.receive(&ended(shutdown::SEND)).unwrap();
    assert_eq!(connection.receive(&packet(op::RST)), Ok(Effect::Ended));
    assert!(connection.has_ended());
    for op in [op::RST, op::REQUEST, op::RW, op::CREDIT_REQUEST] {
        assert_eq!(connection.receive(&packet(op)), Ok(Effect::Stray));
    }
    connection.forwarded(800);
    connection.host_sends_no_more();
    connection.host_gone();
    assert_eq!(due(&mut connection), [], "the guest hears no more of it");
    assert!(connection.has_ended());
    assert_eq!(connection.sendable(), 0);
}

#[test]
fn a_host_that_receives_no_more_gives_the_credit_back() {
    let mut connection = established();
    connection.host_receives_no_more();
    due(&mut connection);
    assert_eq!(connection.receive(&payload(900)), Ok(Effect::None));
    assert_eq!(due(&mut connection), [(op::CREDIT_UPDATE, 0)]);
    assert_eq!(connection.receive(&payload(BUF_ALLOC)), Ok(Effect::None));
}

#[test]
fn credit_is_requested_once_and_again_after_some_came() {
    let mut connection = established();
    connection.starved();
    assert_eq!(due(&mut connection), [], "there is credit");
    let mut header = payload(500);
    connection.send(&mut header);
    connection.starved();
    connection.starved();
    assert_eq!(due(&mut connection), [(op::CREDIT_REQUEST, 0)]);
    connection.starved();
    assert_eq!(due(&mut connection), []);
    // An update without news changes nothing.
    connection.receive(&packet(op::CREDIT_UPDATE)).unwrap();
    connection.starved();
    assert_eq!(due(&mut connection), []);
    let news = Header {
        fwd_cnt: 500,
        ..packet(op::CREDIT_UPDATE)
    };
    connection.receive(&news).unwrap();
    assert_eq!(connection.sendable(), 500);
    connection.send(&mut header);
    connection.starved();
    assert_eq!(due(&mut connection), [(op::CREDIT_REQUEST, 0)]);
}

#[test]
fn every_packet_carries_the_credit() {
    let mut connection = established();
    connection.receive(&payload(800)).unwrap();
    connection.forwarded(800);
    assert!(connection.is_due());
    let mut header = payload(1);
    connection.send(&mut header);
    assert_eq!(header.op, op::RW);
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 800));
    assert!(!connection.is_due(), "the update has been sent along");
}

proptest! {
    /// Whatever the guest sends and the host does, nothing overflows, what the device would hold
    /// stays within its limit, and what is due comes to an end.
    #[test]
    fn any_packets_in_any_order_are_survived(
        from_host: bool,
        steps in prop::collection::vec(
            (0u16..9, 0u32..2000, 0u32..8, any::<u32>(), any::<u32>(), 0u8..8),
            0..64,
        ),
    ) {
        let mut connection = if from_host {
            Connection::from_host(BUF_ALLOC)
        } else {
            Connection::from_guest(BUF_ALLOC, &packet(op::REQUEST))
        };
        let mut held = 0u32;
        for (op, len, flags, buf_alloc, fwd_cnt, host) in steps {
            let header = Header { op, len, flags, buf_alloc, fwd_cnt, ..Header::default() };
            match connection.receive(&header) {
                Ok(Effect::Data) => held += len,
                Ok(Effect::Reset | Effect::Stray) | Err(_) => break,
                Ok(_) => {}
            }
            prop_assert!(held <= BUF_ALLOC);
            match host {
                0 => connection.host_sends_no_more(),
                1 => {
                    connection.host_receives_no_more();
                    connection.forwarded(held);
                    held = 0;
                }
                2 => {
                    let some = held / 2;
                    connection.forwarded(some);
                    held -= some;
                }
                3 => connection.starved(),
                4 if connection.sendable() > 0 => connection.send(&mut payload(1)),
                5 => prop_assert!(due(&mut connection).len() <= 5),
                _ => {}
            }
        }
        due(&mut connection);
        prop_assert!(!connection.is_due());
    }
}
