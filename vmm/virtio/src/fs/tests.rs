use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use virtio_queue::Queue;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::*;
use crate::device::{INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_BUFFER};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const RESET_DEVICE: u32 = 34;

const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
const PROTOCOL_FEATURES: u64 = 1 | 8 | 0x2000;

/// A message as a server reads it.
#[derive(Debug)]
struct Message {
    request: u32,
    acknowledge: bool,
    body: Vec<u8>,
    fds: Vec<File>,
}

impl Message {
    fn word(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.body[index * 8..index * 8 + 8].try_into().unwrap())
    }

    fn half(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.body[index * 4..index * 4 + 4].try_into().unwrap())
    }
}

/// What a server answers, where it is not what a good one would.
type Answers = fn(&Message) -> Option<Vec<u8>>;

/// A server on a thread of its own. Ends with the connection, and returns what it was told.
fn server(mut socket: UnixStream, answers: Answers) -> JoinHandle<Vec<Message>> {
    thread::spawn(move || {
        let mut log = Vec::new();
        while let Some(message) = receive(&mut socket) {
            let answer = answers(&message).or_else(|| good_answer(&message));
            log.push(message);
            if let Some(answer) = answer
                && socket.write_all(&answer).is_err()
            {
                break;
            }
        }
        log
    })
}

fn receive(socket: &mut UnixStream) -> Option<Message> {
    let mut header = [0; 12];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [std::io::IoSliceMut::new(&mut header)];
    let received = recvmsg(&*socket, &mut data, &mut control, RecvFlags::empty()).ok()?;
    if received.bytes != 12 {
        return None;
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights.map(File::from));
        }
    }
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; usize::try_from(word(8)).unwrap()];
    socket.read_exact(&mut body).ok()?;
    Some(Message {
        request: word(0),
        acknowledge: word(4) & 8 != 0,
        body,
        fds,
    })
}

fn reply(request: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let header = [request, 1 | 4, size].map(u32::to_ne_bytes).concat();
    [&header[..], body].concat()
}

fn good_answer(message: &Message) -> Option<Vec<u8>> {
    let request = message.request;
    let number = |value: u64| Some(reply(request, &value.to_ne_bytes()));
    match request {
        GET_FEATURES => number(FEATURES),
        GET_PROTOCOL_FEATURES => number(PROTOCOL_FEATURES),
        GET_QUEUE_NUM => number(4),
        GET_VRING_BASE => {
            let state = [message.half(0), 7 + message.half(0)]
                .map(u32::to_ne_bytes)
                .concat();
            Some(reply(request, &state))
        }
        _ => message.acknowledge.then(|| reply(request, &[0; 8])),
    }
}

fn no_answers(_: &Message) -> Option<Vec<u8>> {
    None
}

struct Bench {
    device: Fs,
    memory: GuestRam,
    status: Arc<AtomicU32>,
    interrupt: Interrupt,
    server: JoinHandle<Vec<Message>>,
}

fn bench(answers: Answers) -> Bench {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = Fs::new(Config::new("tag"), ours).unwrap();
    device.backend.patience = Duration::from_millis(300);
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(0x20_0000).unwrap();
    let low = FileOffset::new(file.try_clone().unwrap(), 0);
    let high = FileOffset::new(file, 0x10_0000);
    let memory = GuestRam::from_ranges_with_files([
        (GuestAddress(0), 0x10_0000, Some(low)),
        (GuestAddress(1 << 32), 0x10_0000, Some(high)),
    ])
    .unwrap();
    let status = Arc::<AtomicU32>::default();
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    Bench {
        device,
        memory,
        interrupt: Interrupt::new(status.clone(), Arc::new(line)),
        status,
        server: server(theirs, answers),
    }
}

impl Bench {
    fn activation(&self) -> Activation {
        let queues = [0x1000u64, 0x1_0000_4000].map(|base| {
            let mut queue = Queue::new(128).unwrap();
            queue.set_size(16);
            queue
                .try_set_desc_table_address(GuestAddress(base))
                .unwrap();
            queue
                .try_set_avail_ring_address(GuestAddress(base + 0x1000))
                .unwrap();
            queue
                .try_set_used_ring_address(GuestAddress(base + 0x2000))
                .unwrap();
            queue.set_ready(true);
            ActiveQueue {
                queue,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            }
        });
        Activation {
            memory: self.memory.clone(),
            features: FEATURES & !(1 << 30),
            queues: queues.into(),
            interrupt: self.interrupt.clone(),
        }
    }

    fn activate(&mut self) -> Result<(), String> {
        let activation = self.activation();
        self.device.activate(activation).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", source.unwrap_or_default())
        })
    }

    /// Closes the connection and returns what the server was told.
    fn close(self) -> Vec<Message> {
        drop(self.device);
        self.server.join().unwrap()
    }
}

#[test]
fn the_configuration_is_checked() {
    let new = |tag: &str, request_queues| {
        let config = Config {
            tag: tag.into(),
            request_queues,
        };
        Fs::new(config, UnixStream::pair().unwrap().0)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    assert_eq!(new("x", 1), Ok(()));
    assert_eq!(new(&"x".repeat(36), MAX_REQUEST_QUEUES), Ok(()));
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(new(tag, 1).unwrap_err().starts_with("fs: tag:"));
    }
    assert!(
        new("x", 0)
            .unwrap_err()
            .starts_with("fs: request_queues: 0")
    );
    assert!(
        new("x", 9)
            .unwrap_err()
            .starts_with("fs: request_queues: 9")
    );
}

#[test]
fn the_configuration_space_holds_the_tag_and_the_number_of_queues() {
    let config = Config {
        tag: "rootfs".into(),
        request_queues: 3,
    };
    let device = Fs::new(config, UnixStream::pair().unwrap().0).unwrap();
    let mut space = [0xff; 48];
    device.read_config(0, &mut space);
    assert_eq!(&space[..6], b"rootfs");
    assert!(space[6..36].iter().all(|byte| *byte == 0));
    assert_eq!(space[36..40], [3, 0, 0, 0]);
    assert!(space[40..].iter().all(|byte| *byte == 0));
    let mut part = [0xff; 4];
    device.read_config(35, &mut part);
    assert_eq!(part, [0, 3, 0, 0]);
    device.read_config(u64::MAX, &mut part);
    assert_eq!(part, [0; 4]);
    assert_eq!(device.queue_sizes().len(), 4);
    assert_eq!(device.device_type(), 26);
    let restored = Fs::restore(&device.state(), UnixStream::pair().unwrap().0).unwrap();
    assert_eq!(restored.state(), device.state());
}

#[test]
fn nothing_is_said_before_the_driver_is_ready() {
    let bench = bench(no_answers);
    assert!(bench.close().is_empty());
}

#[test]
fn activation_hands_over_memory_and_rings() {
    let mut bench = bench(no_answers);
    bench.activate().unwrap();
    let log = bench.close();
    let of = |request: u32| {
        log.iter()
            .filter(move |m| m.request == request)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(SET_PROTOCOL_FEATURES)[0].word(0), PROTOCOL_FEATURES);
    assert_eq!(of(SET_FEATURES)[0].word(0), FEATURES);
    let table = of(SET_MEM_TABLE)[0];
    assert_eq!(table.half(0), 2);
    assert_eq!(table.fds.len(), 2);
    // Guest address, size, the same guest address again, offset in the file.
    let words = |from: usize| (from..from + 4).map(|i| table.word(i)).collect::<Vec<_>>();
    assert_eq!(words(1), [0, 0x10_0000, 0, 0]);
    assert_eq!(words(5), [1 << 32, 0x10_0000, 1 << 32, 0x10_0000]);
    for request in [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE] {
        assert_eq!(of(request).len(), 2, "{request}");
    }
    let address = of(SET_VRING_ADDR)[1];
    assert_eq!((address.half(0), address.half(1)), (1, 0));
    assert_eq!(address.word(1), 0x1_0000_4000);
    assert_eq!(address.word(2), 0x1_0000_6000);
    assert_eq!(address.word(3), 0x1_0000_5000);
    for request in [SET_VRING_KICK, SET_VRING_CALL] {
        assert!(of(request).iter().all(|message| message.fds.len() == 1));
    }
    // Everything that can be refused is acknowledged.
    let orders = log.iter().filter(|message| message.acknowledge);
    assert_eq!(orders.count(), 2 + 2 * 6);
}

#[test]
fn missing_queues_are_named() {
    for index in [0, 1] {
        let mut bench = bench(no_answers);
        let mut activation = bench.activation();
        activation.queues[index].queue.set_ready(false);
        let error = bench.device.activate(activation).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("queue {index} is not ready or not valid")
        );
        assert!(bench.close().is_empty());
    }
}

#[test]
fn what_the_server_signals_becomes_an_interrupt() {
    let mut bench = bench(|message| {
        if message.request == SET_VRING_CALL && message.half(0) == 1 {
            (&message.fds[0]).write_all(&1u64.to_ne_bytes()).unwrap();
        }
        None
    });
    bench.activate().unwrap();
    let device = Arc::new(Mutex::new(bench.device));
    let mut manager = EventManager::<Arc<Mutex<Fs>>>::new().unwrap();
    manager.add_subscriber(device.clone());
    let start = Instant::now();
    while bench.status.load(Ordering::SeqCst) & INTERRUPT_USED_BUFFER == 0 {
        assert!(start.elapsed() < Duration::from_secs(5));
        manager.run_with_timeout(100).unwrap();
    }
    assert_eq!(bench.interrupt.line().read().unwrap(), 1);
    let metrics = device.lock().unwrap().metrics();
    assert_eq!((metrics.activations, metrics.interrupts), (1, 1));
}

#[test]
fn a_server_that_goes_away_leaves_a_device_that_needs_a_reset() {
    let mut bench = bench(no_answers);
    bench.activate().unwrap();
    bench
        .device
        .backend
        .socket
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    let Bench {
        device,
        status,
        interrupt,
        ..
    } = bench;
    let device = Arc::new(Mutex::new(device));
    let mut manager = EventManager::<Arc<Mutex<Fs>>>::new().unwrap();
    manager.add_subscriber(device.clone());
    let start = Instant::now();
    while status.load(Ordering::SeqCst) & INTERRUPT_CONFIG_CHANGE == 0 {
        assert!(start.elapsed() < Duration::from_secs(5));
        manager.run_with_timeout(100).unwrap();
    }
    assert!(interrupt.broken().load(Ordering::SeqCst));
    // Noticed once, and not watched any longer.
    while manager.run_with_timeout(10).unwrap() > 0 {}
    assert_eq!(device.lock().unwrap().metrics().failures, 1);
    device.lock().unwrap().reset();
    assert!(device.lock().unwrap().queue_states().is_empty());
}

/// Every way to answer wrong, and what is said about it.
#[test]
fn a_server_that_answers_nonsense_is_refused_in_time() {
    fn only(request: u32, message: &Message, answer: Vec<u8>) -> Option<Vec<u8>> {
        (message.request == request).then_some(answer)
    }
    let cases: [(Answers, &str); 9] = [
        (
            |m| {
                only(
                    GET_FEATURES,
                    m,
                    reply(GET_FEATURES, &(1u64 << 30).to_ne_bytes()),
                )
            },
            "lacks virtio features 0x130000000",
        ),
        (
            |m| only(GET_PROTOCOL_FEATURES, m, reply(15, &1u64.to_ne_bytes())),
            "lacks protocol features 0x2008",
        ),
        (
            |m| only(GET_QUEUE_NUM, m, reply(GET_QUEUE_NUM, &1u64.to_ne_bytes())),
            "the server has 1 queues, the device 2",
        ),
        (
            |m| only(GET_FEATURES, m, reply(99, &[0; 8])),
            "malformed answer to GET_FEATURES",
        ),
        (
            |m| only(GET_FEATURES, m, reply(1, &[0; 16])),
            "malformed answer to GET_FEATURES",
        ),
        (
            |m| only(GET_FEATURES, m, vec![0xff; 20]),
            "malformed answer to GET_FEATURES",
        ),
        (
            |m| only(SET_MEM_TABLE, m, reply(5, &[1; 8])),
            "the server refused SET_MEM_TABLE",
        ),
        (
            |m| only(GET_FEATURES, m, Vec::new()),
            "no answer to GET_FEATURES in time",
        ),
        (
            |m| only(SET_VRING_KICK, m, vec![12, 0, 0]),
            "malformed answer to SET_VRING_KICK",
        ),
    ];
    for (answers, expected) in cases {
        let mut bench = bench(answers);
        let start = Instant::now();
        let message = bench.activate().unwrap_err();
        assert!(message.starts_with("backend: start failed: "), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(start.elapsed() < Duration::from_secs(3));
        assert_eq!(bench.device.metrics().failures, 1);
        assert!(bench.device.queue_states().is_empty());
        // What it would say now cannot be told from what it owes.
        let again = bench.activate().unwrap_err();
        assert!(again.contains("out of step"), "{again}");
        bench.device.reset();
    }
}

#[test]
fn a_server_that_hangs_up_is_noticed_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let mut bench = bench(no_answers);
    bench.device = Fs::new(Config::new("tag"), ours).unwrap();
    let start = Instant::now();
    let message = bench.activate().unwrap_err();
    assert!(message.contains("GET_FEATURES"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn memory_that_cannot_be_shared_is_refused() {
    let mut bench = bench(no_answers);
    bench.memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let message = bench.activate().unwrap_err();
    assert!(
        message.contains("guest memory at 0x0 is not backed by a file"),
        "{message}"
    );
}

#[test]
fn a_reset_stops_the_rings_and_the_connection_serves_again() {
    let mut bench = bench(no_answers);
    bench.activate().unwrap();
    bench.device.reset();
    bench.activate().unwrap();
    assert_eq!(bench.device.metrics().activations, 2);
    assert_eq!(bench.device.metrics().failures, 0);
    let log = bench.close();
    let count = |request: u32| log.iter().filter(|m| m.request == request).count();
    assert_eq!(count(GET_VRING_BASE), 2);
    assert_eq!(count(RESET_DEVICE), 1);
    // Agreed on once a connection.
    assert_eq!(count(GET_PROTOCOL_FEATURES), 1);
    assert_eq!(count(SET_FEATURES), 2);
    let enabled: Vec<_> = log
        .iter()
        .filter(|m| m.request == SET_VRING_ENABLE)
        .map(|m| (m.half(0), m.half(1)))
        .collect();
    assert_eq!(enabled, [(0, 1), (1, 1), (0, 0), (1, 0), (0, 1), (1, 1)]);
}

#[test]
fn a_pause_learns_the_positions_and_a_resume_starts_from_them() {
    let mut bench = bench(no_answers);
    bench.activate().unwrap();
    bench.device.pause().unwrap();
    let states = bench.device.queue_states();
    let positions: Vec<_> = states.iter().map(|q| (q.next_avail, q.next_used)).collect();
    assert_eq!(positions, [(7, 7), (8, 8)]);
    bench.device.pause().unwrap();
    bench.device.resume().unwrap();
    bench.device.resume().unwrap();
    let log = bench.close();
    let bases: Vec<_> = log
        .iter()
        .filter(|m| m.request == SET_VRING_BASE)
        .map(|m| (m.half(0), m.half(1)))
        .collect();
    assert_eq!(bases, [(0, 0), (1, 0), (0, 7), (1, 8)]);
}

#[test]
fn a_server_that_lies_about_a_position_fails_the_pause() {
    let mut bench = bench(|message| {
        let lie = [message.body.first().copied().map_or(0, u32::from), 0x1_0000];
        let lie = lie.map(u32::to_ne_bytes).concat();
        (message.request == GET_VRING_BASE).then(|| reply(GET_VRING_BASE, &lie))
    });
    bench.activate().unwrap();
    let error = bench.device.pause().unwrap_err();
    assert_eq!(error.to_string(), "malformed answer to GET_VRING_BASE");
    assert!(bench.interrupt.broken().load(Ordering::SeqCst));
}

#[test]
fn a_server_that_runs_gets_memory_that_has_come() {
    let mut bench = bench(no_answers);
    // Nobody to tell yet.
    bench.device.set_memory(bench.memory.clone());
    bench.activate().unwrap();
    let file = rustix::fs::memfd_create("added", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(0x20_0000).unwrap();
    let mut regions: Vec<_> = (bench.memory.iter())
        .map(|region| {
            let length = usize::try_from(region.len()).unwrap();
            (region.start_addr(), length, region.file_offset().cloned())
        })
        .collect();
    let added = FileOffset::new(file, 0);
    regions.push((GuestAddress(1 << 33), 0x20_0000, Some(added)));
    let memory = GuestRam::from_ranges_with_files(regions).unwrap();
    bench.device.set_memory(memory);
    assert_eq!(bench.device.metrics().failures, 0);
    let log = bench.close();
    let tables: Vec<_> = (log.iter().enumerate())
        .filter(|(_, message)| message.request == SET_MEM_TABLE)
        .collect();
    assert_eq!(tables.len(), 2);
    let (at, last) = tables[1];
    assert_eq!(at, log.len() - 1, "the rings go on");
    assert_eq!((last.half(0), last.fds.len()), (3, 3));
    // Each region: guest address, size, the frontend's address, offset in the file.
    let region = [9, 10, 11, 12].map(|index| last.word(index));
    assert_eq!(region, [1 << 33, 0x20_0000, 1 << 33, 0]);
}

#[test]
fn a_server_that_takes_no_more_memory_is_out_of_service() {
    fn refuses(message: &Message) -> Option<Vec<u8>> {
        let refused = message.request == SET_MEM_TABLE && message.half(0) == 1;
        refused.then(|| reply(message.request, &1_u64.to_ne_bytes()))
    }
    let mut bench = bench(refuses);
    bench.activate().unwrap();
    let (memory, _) = (bench.memory)
        .remove_region(GuestAddress(1 << 32), 0x10_0000)
        .unwrap();
    bench.device.set_memory(memory);
    assert_eq!(bench.device.metrics().failures, 1);
    let pending = bench.status.load(Ordering::SeqCst);
    assert_ne!(pending & INTERRUPT_CONFIG_CHANGE, 0);
}
