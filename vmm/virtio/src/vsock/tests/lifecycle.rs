//! Activation, reset, and a life after saving.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use virtio_queue::QueueT;

use super::*;
use crate::device::ActivateError;
use crate::vsock::{Error, State};

#[test]
fn the_configuration_is_the_context_id() {
    let rig = Rig::new();
    let device = rig.device();
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut high = [0xff; 4];
    device.read_config(4, &mut high);
    assert_eq!(high, [0; 4]);
    device.read_config(u64::MAX, &mut high);
    assert_eq!(high, [0; 4]);
    assert_eq!(device.device_type(), 19);
    assert_eq!(device.queue_sizes().len(), 3);
    drop(device);
    rig.device().write_config(0, &[1; 8]);
    rig.device().read_config(0, &mut config);
    assert_eq!(config[0], 42);
}

#[test]
fn reserved_values_are_refused() {
    for guest_cid in [0, 1, 2, u32::MAX] {
        let config = Config {
            guest_cid,
            host_ports: vec![],
        };
        let (ends, _) = mpsc::channel();
        let error = Vsock::new(config, listen().0, Box::new(TestConnector { ends })).err();
        assert!(matches!(error, Some(Error::GuestCid(cid)) if cid == guest_cid));
    }
    let config = Config {
        guest_cid: 3,
        host_ports: vec![1, u32::MAX],
    };
    let (ends, _) = mpsc::channel();
    let error = Vsock::new(config, listen().0, Box::new(TestConnector { ends })).err();
    assert!(matches!(error, Some(Error::HostPort(u32::MAX))));
}

fn inactive() -> (Rig, crate::device::Activation) {
    Rig::inactive(true, LINUX_RX, |listener, connector| {
        Vsock::new(config(), listener, connector).unwrap()
    })
}

#[test]
fn every_queue_is_needed() {
    for missing in 0..3 {
        let (rig, mut activation) = inactive();
        activation.queues[missing].queue.set_ready(false);
        let error = rig.device().activate(activation).unwrap_err();
        assert!(matches!(error, ActivateError::Queue { index } if index == missing));
        assert!(rig.device().queue_states().is_empty());
    }
    let (rig, mut activation) = inactive();
    activation.queues.truncate(2);
    let error = rig.device().activate(activation).unwrap_err();
    assert!(matches!(error, ActivateError::Queue { index: 2 }));
}

#[test]
fn host_processes_wait_for_the_driver() {
    let (mut rig, activation) = inactive();
    let mut host = rig.host_connect();
    host.write_all(b"CONNECT 5\nhello").unwrap();
    rig.pump();
    rig.guest.fill_rx();
    rig.device().activate(activation).unwrap();
    let request = rig.expect_op(op::REQUEST);
    rig.send(header((5, request.src_port), op::RESPONSE));
    assert_eq!(rig.packet().payload, b"hello");
}

#[test]
fn a_reset_ends_every_stream_and_the_device_starts_anew() {
    let mut rig = Rig::new();
    let (mut from_host, _) = rig.host_stream();
    let (mut from_guest, _) = rig.guest_stream(7);
    from_host.write_all(b"unread").unwrap();
    let mut undecided = rig.host_connect();
    rig.pump();
    rig.guest.packets();
    rig.device().reset();
    assert!(rig.device().queue_states().is_empty());
    expect_end(&mut from_guest);
    expect_end(&mut from_host);
    rig.pump();
    // The transport's twins of the kicks are not watched any more.
    for queue in 0..3 {
        rig.guest.kick(queue);
    }
    rig.pump();
    assert_eq!(rig.guest.packets(), []);

    let (guest, activation) = Guest::new(true, LINUX_RX);
    rig.guest = guest;
    rig.device().activate(activation).unwrap();
    rig.guest.fill_rx();
    rig.pump();
    let _streams = (rig.host_stream(), rig.guest_stream(7));
    undecided.write_all(b"CONNECT 3\n").unwrap();
    assert_eq!(rig.expect_op(op::REQUEST).dst_port, 3);
    assert_eq!(rig.device().queue_states().len(), 3);
}

#[test]
fn a_reset_in_the_midst_of_traffic_is_safe() {
    let (mut rig, activation) = inactive();
    drop(activation);
    let stop = Arc::new(AtomicBool::new(false));
    let device = rig.device.clone();
    let memory = rig.guest.memory.clone();
    // What a vCPU thread does.
    let vcpu = {
        let stop = stop.clone();
        thread::spawn(move || {
            let mut rounds = 0u32;
            while !stop.load(Ordering::Relaxed) {
                let (mut guest, activation) = Guest::new(true, LINUX_RX);
                device.lock().unwrap().activate(activation).unwrap();
                guest.fill_rx();
                for port in 0..8 {
                    guest.send(header((port, HOST_PORT), op::REQUEST), &[]);
                }
                if !rounds.is_multiple_of(3) {
                    thread::yield_now();
                }
                device.lock().unwrap().reset();
                guest.kick(1);
                rounds += 1;
            }
            rounds
        })
    };
    let address = rig.address.clone();
    let hosts = {
        let stop = stop.clone();
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut host = UnixStream::connect_addr(&address).unwrap();
                let _ = host.write_all(b"CONNECT 5\nhello");
                thread::sleep(Duration::from_micros(100));
            }
        })
    };
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        rig.manager.run_with_timeout(1).unwrap();
        while rig.incoming.try_recv().is_ok() {}
    }
    stop.store(true, Ordering::Relaxed);
    assert!(vcpu.join().unwrap() > 10);
    hosts.join().unwrap();
    drop(memory);

    rig.pump();
    let (guest, activation) = Guest::new(true, LINUX_RX);
    rig.guest = guest;
    rig.device().activate(activation).unwrap();
    rig.guest.fill_rx();
    rig.pump();
    rig.guest.packets();
    rig.pump();
    rig.guest.packets();
    rig.host_stream();
}

/// What a transport does with a device's state: another device, the same queues.
fn restored(rig: Rig) -> Rig {
    let (state, queues) = {
        let device = rig.device();
        (device.state(), device.queue_states())
    };
    let (mut new, _) = Rig::inactive(true, LINUX_RX, |listener, connector| {
        Vsock::restore(state, listener, connector).unwrap()
    });
    let queues: Vec<_> = queues
        .into_iter()
        .map(|saved| saved.try_into().unwrap())
        .collect();
    let activation = rig.guest.activation(queues.try_into().unwrap());
    new.guest = rig.guest;
    new.device().activate(activation).unwrap();
    new
}

#[test]
fn a_restored_device_tells_its_driver_that_the_streams_are_gone() {
    let mut rig = Rig::new();
    let (mut host, ports) = rig.host_stream();
    rig.pump();
    assert!(rig.guest.events().is_empty());
    let mut rig = restored(rig);
    expect_end(&mut host);
    rig.guest.interrupts();
    rig.pump();
    assert_eq!(rig.guest.events(), [0]);
    assert_eq!(rig.guest.interrupts(), 1);
    rig.send(header(ports, op::RW));
    rig.expect_op(op::RST);
    // Ports are not used again, and the event comes once.
    let (_host, new_ports) = rig.host_stream();
    assert!(new_ports.1 > ports.1);
    rig.guest.kick(2);
    rig.pump();
    assert!(rig.guest.events().is_empty());
}

#[test]
fn the_event_waits_for_a_buffer() {
    let (mut rig, activation) = inactive();
    rig.device().activate(activation).unwrap();
    rig.guest.fill_rx();
    rig.pump();
    let mut rig = restored(rig);
    rig.pump();
    assert!(rig.guest.events().is_empty());
    rig.guest.fill_events();
    rig.pump();
    assert_eq!(rig.guest.events(), [0]);
}

#[test]
fn a_device_without_a_driver_has_nobody_to_tell() {
    let (rig, _) = inactive();
    let state = rig.device().state();
    assert!(!state.driver_active);
    let (mut rig, activation) = Rig::inactive(true, LINUX_RX, |listener, connector| {
        Vsock::restore(state, listener, connector).unwrap()
    });
    rig.guest.fill_events();
    rig.device().activate(activation).unwrap();
    rig.pump();
    assert!(rig.guest.events().is_empty());
}

#[test]
fn the_state_can_be_stored() {
    let rig = Rig::new();
    let state = rig.device().state();
    let stored = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&stored).unwrap(), state);
    assert!(state.driver_active);
    assert_eq!(state.guest_cid, CID);
}
