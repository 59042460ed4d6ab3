use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::*;

/// More than every buffer between the two ends holds.
const VOLUME: usize = 8 << 20;

/// A relay that does not end by itself fails its test.
const LIMIT: Duration = Duration::from_secs(20);

/// Both ends of a stream: the host's, and the agent's as the relays know it.
fn stream() -> (UnixStream, OwnedFd) {
    let (host, guest) = UnixStream::pair().unwrap();
    (host, guest.into())
}

fn pipe() -> (File, File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}

/// Bytes that show reordering, loss and repetition.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// Runs a relay in an event loop like the agent's, and gives up on it after a while.
fn run<F: Future<Output = io::Result<()>>>(relay: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ended = tokio::time::timeout(LIMIT, relay()).await;
        ended.expect("the relay ends").expect("the relay succeeds");
    });
}

fn run_output(read: File, guest: OwnedFd) {
    run(|| {
        output(
            OutputPipe::new(read.into()).unwrap(),
            Socket::new(guest).unwrap(),
            std::future::pending(),
        )
    });
}

#[test]
fn output_ends_with_its_process_though_another_has_the_pipe_open() {
    let (mut host, guest) = stream();
    let (read, mut write) = pipe();
    let sent = pattern(VOLUME);
    let writer = {
        let sent = sent.clone();
        thread::spawn(move || {
            write.write_all(&sent).unwrap();
            write
        })
    };
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        host.read_to_end(&mut received).unwrap();
        received
    });
    run(|| async {
        let (ended, end) = tokio::sync::oneshot::channel();
        let relay = tokio::spawn(output(
            OutputPipe::new(read.into()).unwrap(),
            Socket::new(guest).unwrap(),
            async { end.await.unwrap() },
        ));
        while !writer.is_finished() {
            tokio::task::yield_now().await;
        }
        // The writing end stays open.
        let _write = writer.join().unwrap();
        ended.send(()).unwrap();
        relay.await.unwrap()
    });
    assert!(reader.join().unwrap() == sent);
}

fn run_input(guest: OwnedFd, write: File) {
    run(|| {
        input(
            Socket::new(guest).unwrap(),
            InputPipe::new(write.into()).unwrap(),
        )
    });
}

#[test]
fn output_arrives_whole_and_ends_when_the_pipe_ends() {
    let (mut host, guest) = stream();
    let (read, mut write) = pipe();
    let sent = pattern(VOLUME);
    let writer = {
        let sent = sent.clone();
        thread::spawn(move || write.write_all(&sent).unwrap())
    };
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        host.read_to_end(&mut received).unwrap();
        received
    });
    run_output(read, guest);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_host_that_does_not_read_blocks_the_writer_and_loses_nothing() {
    let (mut host, guest) = stream();
    let (read, mut write) = pipe();
    let relay = thread::spawn(move || run_output(read, guest));
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let mut written = 0;
    // Fills the pipe, and the socket behind it, until neither takes a byte for a while.
    let mut stalls = 0;
    while stalls < 10 {
        match write.write(&pattern(4096)) {
            Ok(length) => {
                written += length;
                stalls = 0;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                stalls += 1;
                thread::sleep(Duration::from_millis(20));
            }
            Err(e) => panic!("{e}"),
        }
    }
    drop(write);
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), written);
    relay.join().unwrap();
}

#[test]
fn the_process_gets_a_broken_pipe_when_the_host_closes_its_output() {
    let (host, guest) = stream();
    let (read, mut write) = pipe();
    let relay = thread::spawn(move || run_output(read, guest));
    drop(host);
    // Not a byte was written: the relay has noticed by itself.
    relay.join().unwrap();
    let error = write.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn output_goes_on_after_the_host_has_ended_its_own_direction() {
    let (mut host, guest) = stream();
    let (read, mut write) = pipe();
    host.shutdown(Shutdown::Write).unwrap();
    let relay = thread::spawn(move || run_output(read, guest));
    thread::sleep(Duration::from_millis(50));
    write.write_all(b"still here").unwrap();
    drop(write);
    let mut received = String::new();
    host.read_to_string(&mut received).unwrap();
    assert_eq!(received, "still here");
    relay.join().unwrap();
}

#[test]
fn a_host_that_closes_its_direction_first_and_then_the_stream_breaks_the_pipe() {
    let (host, guest) = stream();
    let (read, mut write) = pipe();
    let relay = thread::spawn(move || run_output(read, guest));
    host.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!relay.is_finished());
    drop(host);
    relay.join().unwrap();
    let error = write.write(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn input_arrives_whole_and_its_end_closes_the_pipe() {
    let (mut host, guest) = stream();
    let (mut read, write) = pipe();
    let sent = pattern(VOLUME);
    let writer = {
        let sent = sent.clone();
        thread::spawn(move || {
            host.write_all(&sent).unwrap();
            host.shutdown(Shutdown::Write).unwrap();
            // Held until the relay has closed its end: the end of the stream was the half close.
            assert_eq!(host.read(&mut [0]).unwrap(), 0);
        })
    };
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        read.read_to_end(&mut received).unwrap();
        received
    });
    run_input(guest, write);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_process_that_closes_its_input_ends_the_stream_of_a_writing_host() {
    let (mut host, guest) = stream();
    let (mut read, write) = pipe();
    let relay = thread::spawn(move || run_input(guest, write));
    host.write_all(&pattern(1000)).unwrap();
    read.read_exact(&mut [0; 1000]).unwrap();
    drop(read);
    let error = loop {
        if let Err(e) = host.write(&pattern(4096)) {
            break e;
        }
    };
    assert!(is_gone(&error), "{error}");
    relay.join().unwrap();
}

#[test]
fn a_process_that_closes_its_input_ends_the_stream_of_a_silent_host() {
    let (mut host, guest) = stream();
    let (read, write) = pipe();
    let relay = thread::spawn(move || run_input(guest, write));
    drop(read);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    relay.join().unwrap();
}

#[test]
fn a_full_pipe_holds_up_the_host_and_nothing_is_lost() {
    let (mut host, guest) = stream();
    let (mut read, write) = pipe();
    let relay = thread::spawn(move || run_input(guest, write));
    let sent = pattern(1 << 20);
    let writer = {
        let sent = sent.clone();
        thread::spawn(move || host.write_all(&sent).unwrap())
    };
    // Read only after everything has filled up.
    thread::sleep(Duration::from_millis(200));
    assert!(!writer.is_finished());
    let mut received = Vec::new();
    read.read_to_end(&mut received).unwrap();
    assert!(received == sent);
    writer.join().unwrap();
    relay.join().unwrap();
}

/// A terminal: its master for the relay, and its slave in raw mode.
fn terminal_pair() -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(
        name,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let mut attributes = rustix::termios::tcgetattr(&slave).unwrap();
    attributes.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &attributes).unwrap();
    (master, slave.into())
}

fn run_terminal(master: OwnedFd, guest: OwnedFd) {
    run(|| {
        terminal(
            Arc::new(Terminal::new(master).unwrap()),
            Socket::new(guest).unwrap(),
            std::future::pending(),
        )
    });
}

#[test]
fn a_terminal_carries_both_directions_and_keeps_the_last_bytes_before_the_hang_up() {
    let (mut host, guest) = stream();
    let (master, mut slave) = terminal_pair();
    let relay = thread::spawn(move || run_terminal(master, guest));
    host.write_all(b"typed").unwrap();
    let mut typed = [0; 5];
    slave.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"typed");

    let shown = pattern(100_000);
    let writer = {
        let shown = shown.clone();
        thread::spawn(move || slave.write_all(&shown).unwrap())
    };
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == shown);
    relay.join().unwrap();
}

#[test]
fn a_terminal_shows_its_last_bytes_to_a_host_that_goes_on_typing() {
    let (mut host, guest) = stream();
    let (master, mut slave) = terminal_pair();
    slave.write_all(b"goodbye").unwrap();
    drop(slave);
    host.write_all(b"too late").unwrap();
    let reader = thread::spawn(move || {
        let mut received = String::new();
        host.read_to_string(&mut received).unwrap();
        host.write_all(b"still too late").unwrap();
        received
    });
    run(|| async {
        let master = Arc::new(Terminal::new(master).unwrap());
        let socket = Socket::new(guest).unwrap();
        terminal(master, socket, std::future::pending()).await?;
        while !reader.is_finished() {
            tokio::task::yield_now().await;
        }
        Ok(())
    });
    assert_eq!(reader.join().unwrap(), "goodbye");
}

#[test]
fn a_terminal_survives_the_end_of_the_hosts_direction() {
    let (mut host, guest) = stream();
    let (master, mut slave) = terminal_pair();
    let relay = thread::spawn(move || run_terminal(master, guest));
    host.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(50));
    slave.write_all(b"still here").unwrap();
    drop(slave);
    let mut received = String::new();
    host.read_to_string(&mut received).unwrap();
    assert_eq!(received, "still here");
    relay.join().unwrap();
}

#[test]
fn a_terminal_is_hung_up_when_the_host_closes_the_stream() {
    let (host, guest) = stream();
    let (master, mut slave) = terminal_pair();
    let relay = thread::spawn(move || run_terminal(master, guest));
    drop(host);
    relay.join().unwrap();
    // A hung-up terminal reads as ended.
    assert_eq!(slave.read(&mut [0]).unwrap(), 0);
    assert!(slave.as_raw_fd() >= 0);
}

/// A host, the process's end of a pair, and what is to be relayed between them.
fn run_both(
    ended: impl Future<Output = ()> + Send + 'static,
) -> (UnixStream, UnixStream, thread::JoinHandle<()>) {
    let (host, guest) = stream();
    let (process, ours) = stream();
    let relay = thread::spawn(move || {
        run(|| {
            both(
                Socket::new(ours).unwrap(),
                Socket::new(guest).unwrap(),
                ended,
            )
        });
    });
    for stream in [&host, &process] {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    (host, process, relay)
}

#[test]
fn a_socket_goes_both_ways_and_each_direction_ends_by_itself() {
    for process_first in [true, false] {
        let (host, process, relay) = run_both(std::future::pending());
        let (first, second) = match process_first {
            true => (&process, &host),
            false => (&host, &process),
        };
        let sent = pattern(300_000);
        let mut received = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut first = first;
                first.write_all(&sent).unwrap();
                first.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut second = second;
            second.read_to_end(&mut received).unwrap();
        });
        assert_eq!(received, sent);
        // The other direction goes on.
        let (mut to, mut from) = (second, first);
        to.write_all(b"still").unwrap();
        to.shutdown(std::net::Shutdown::Write).unwrap();
        received.clear();
        from.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"still");
        relay.join().unwrap();
    }
}

#[test]
fn a_socket_that_its_process_closes_ends_also_for_a_silent_host() {
    let (mut host, process, relay) = run_both(std::future::pending());
    drop(process);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    relay.join().unwrap();
    let (host, mut process, relay) = run_both(std::future::pending());
    drop(host);
    assert_eq!(process.read(&mut [0]).unwrap(), 0);
    relay.join().unwrap();
}

#[test]
fn a_socket_ends_with_its_process_though_another_has_it_open() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let (mut host, mut process, relay) = run_both(async move {
        let _ = receiver.await;
    });
    process.write_all(b"last words").unwrap();
    sender.send(()).unwrap();
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"last words");
    relay.join().unwrap();
    drop(process);
}
