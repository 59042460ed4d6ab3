use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, pipe};
use std::thread::spawn;
use std::time::Instant;

use super::*;

/// A mebibyte in which every block differs from every other.
fn bytes() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect()
}

fn guest() -> (UnixStream, UnixStream, Ended) {
    let (host, guest) = UnixStream::pair().unwrap();
    guest
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    (host, guest, Ended::new().unwrap())
}

fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn writing_pipe() -> (PipeReader, PipeWriter) {
    pipe().unwrap()
}

#[test]
fn a_pipe_is_fed_whole_and_its_end_is_a_half_close() {
    let (host, mut guest, ended) = guest();
    let (reader, mut writer) = writing_pipe();
    let done = feed(reader.into(), host.try_clone().unwrap(), ended).unwrap();
    let writer = spawn(move || writer.write_all(&bytes()).unwrap());
    assert!(read_all(&guest) == bytes());
    writer.join().unwrap();
    done.blocking_recv().unwrap();
    // The other direction is open still.
    guest.write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    (&host).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn files_devices_sockets_and_closed_pipes_are_fed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    std::fs::write(&path, bytes()).unwrap();
    let (socket, mut other) = UnixStream::pair().unwrap();
    other.write_all(b"socket").unwrap();
    drop(other);
    let (closed, _) = writing_pipe();
    let sources: [(OwnedFd, Vec<u8>); 4] = [
        (File::open(&path).unwrap().into(), bytes()),
        (File::open("/dev/null").unwrap().into(), Vec::new()),
        (socket.into(), b"socket".to_vec()),
        (closed.into(), Vec::new()),
    ];
    for (source, expected) in sources {
        let (host, guest, ended) = guest();
        let done = feed(source, host, ended).unwrap();
        assert!(read_all(&guest) == expected);
        done.blocking_recv().unwrap();
    }
}

#[test]
fn a_nonblocking_source_is_fed_as_well() {
    let (host, guest, ended) = guest();
    let (source, mut other) = UnixStream::pair().unwrap();
    source.set_nonblocking(true).unwrap();
    feed(source.into(), host, ended).unwrap();
    other.write_all(b"one").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    other.write_all(b"two").unwrap();
    drop(other);
    assert_eq!(read_all(&guest), b"onetwo");
}

#[test]
fn feeding_stops_when_the_workload_has_ended() {
    let (host, guest, ended) = guest();
    let (reader, mut writer) = writing_pipe();
    let done = feed(reader.try_clone().unwrap().into(), host, ended.clone()).unwrap();
    ended.raise().unwrap();
    done.blocking_recv().unwrap();
    assert_eq!(read_all(&guest), b"");
    // What comes now is left for the next reader.
    writer.write_all(b"kept").unwrap();
    let mut kept = [0; 4];
    (&reader).read_exact(&mut kept).unwrap();
    assert_eq!(&kept, b"kept");
}

#[test]
fn feeding_stops_when_the_guest_closes_its_standard_input() {
    let (host, guest, ended) = guest();
    let (reader, writer) = writing_pipe();
    let done = feed(reader.into(), host, ended).unwrap();
    drop(guest);
    done.blocking_recv().unwrap();
    // And so does whoever writes.
    let error = (&writer).write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn output_arrives_whole_and_its_end_closes_the_sink() {
    let (host, mut guest, ended) = guest();
    let (mut reader, writer) = writing_pipe();
    let done = drain(host, writer.into(), ended).unwrap();
    let writer = spawn(move || guest.write_all(&bytes()).unwrap());
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    writer.join().unwrap();
    done.blocking_recv().unwrap();
}

#[test]
fn the_last_bytes_survive_the_end_and_a_slow_reader() {
    let (host, mut guest, ended) = guest();
    let (mut reader, writer) = writing_pipe();
    let done = drain(host, writer.into(), ended.clone()).unwrap();
    let writer = spawn(move || guest.write_all(&bytes()).unwrap());
    ended.raise().unwrap();
    // The pipe is full long before.
    std::thread::sleep(Duration::from_millis(100));
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == bytes());
    writer.join().unwrap();
    done.blocking_recv().unwrap();
}

#[test]
fn a_nonblocking_sink_is_waited_for() {
    let (host, mut guest, ended) = guest();
    let (sink, other) = UnixStream::pair().unwrap();
    sink.set_nonblocking(true).unwrap();
    drain(host, sink.into(), ended).unwrap();
    let writer = spawn(move || guest.write_all(&bytes()).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    assert!(read_all(&other) == bytes());
    writer.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_closes_the_stream_of_the_writer() {
    let (host, mut guest, ended) = guest();
    let (reader, writer) = writing_pipe();
    let done = drain(host, writer.into(), ended).unwrap();
    drop(reader);
    guest.write_all(b"into the void").unwrap();
    done.blocking_recv().unwrap();
    let error = guest.write_all(b"more").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_guest_that_keeps_the_stream_of_an_ended_process_is_not_waited_for_for_ever() {
    let (host, _guest, ended) = guest();
    let sink = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let start = Instant::now();
    let done = drain(host, sink.into(), ended.clone()).unwrap();
    ended.raise().unwrap();
    done.blocking_recv().unwrap();
    let took = start.elapsed();
    assert!(took >= QUIET && took < QUIET * 3, "{took:?}");
}
