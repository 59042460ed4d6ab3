//! How a server begins and ends, and what it does with those who break the rules.
#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails the test.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use cloister_virtio::device::VirtioDevice;
use cloister_vmm_api::fs::{Reply, Request};
use common::fuse::opcode;
use common::guest::Guest;
use common::{Server, config, export, path_fd, share};
use virtiofsd::fuse::{BatchForgetIn, ReadIn};
use vm_memory::ByteValued;

fn prompt(start: Instant) {
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

fn error(reply: Option<Reply>) -> String {
    match reply {
        Some(Reply::Error { message }) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_comes_while_it_serves_holds_requests_and_answers() {
    let directory = tempfile::tempdir().unwrap();
    let text: Vec<u8> = (0..4000_u32)
        .map(|n| n.to_le_bytes()[usize::from(n.is_multiple_of(3))])
        .collect();
    fs::write(directory.path().join("file"), &text).unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "before", 0o600).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"old"), Ok(3));
    guest.grow();
    // What was open stays so, and the rings go on where they were.
    assert_eq!(guest.write(node, fh, 3, b"new"), Ok(3));
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"oldnew");
    assert_eq!(guest.contents("data/file"), text);
    assert_eq!(guest.device.metrics().failures, 0);
    assert_eq!(
        fs::read(directory.path().join("before")).unwrap(),
        b"oldnew"
    );
}

#[test]
fn it_ends_when_the_owner_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, _guest) = share(&[("data", directory.path(), false)]);
    let start = Instant::now();
    server.control = None;
    assert_eq!(server.wait().code(), Some(0));
    prompt(start);
}

#[test]
fn it_ends_when_the_vmm_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, guest) = share(&[("data", directory.path(), false)]);
    let start = Instant::now();
    drop(guest);
    assert_eq!(server.wait().code(), Some(0));
    prompt(start);
    assert!(server.reply().is_none());
}

#[test]
fn it_ends_when_the_vmm_goes_before_it_said_anything() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::spawn();
    let fd = path_fd(directory.path());
    let socket = server.ask(config(vec![export("data", false)]), &[fd.as_fd()]);
    assert_eq!(server.reply(), Some(Reply::Ready));
    drop(socket);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_stuck_vmm_does_not_keep_it_when_the_owner_goes() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::spawn();
    let fd = path_fd(directory.path());
    let mut socket = server.ask(config(vec![export("data", false)]), &[fd.as_fd()]);
    assert_eq!(server.reply(), Some(Reply::Ready));
    // Half a header.
    socket.write_all(&[1, 0, 0, 0, 1]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    server.control = None;
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_killed_server_leaves_no_mount() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let before = mounts();
    let (mut server, mut guest) = share(&[("data", directory.path(), false)]);
    guest.walk("data");
    assert_eq!(mounts(), before);
    server.process.kill().unwrap();
    assert!(!server.wait().success());
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    drop(guest);
    directory.close().unwrap();
}

#[test]
fn a_wrong_request_is_answered_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let fd = path_fd(directory.path());
    let fd = fd.as_fd();
    let refuse = |server: &mut Server, expected: &str| {
        let message = error(server.reply());
        assert!(message.contains(expected), "{message}");
        assert_eq!(server.wait().code(), Some(1));
        let messages = server.messages();
        assert!(messages.contains(expected), "{messages}");
    };

    let mut server = Server::spawn();
    server.ask(config(vec![export("a/b", false)]), &[fd]);
    refuse(
        &mut server,
        "exports[0].name: \"a/b\" is not a path component",
    );

    let mut server = Server::spawn();
    server.ask(config(vec![export("a", false), export("b", false)]), &[fd]);
    refuse(&mut server, "2 descriptors given, 3 needed");

    let mut server = Server::spawn();
    let mut other = config(vec![export("a", false)]);
    other.api_version = 77;
    server.ask(other, &[fd]);
    refuse(&mut server, "api_version: 77 given");

    let mut server = Server::spawn();
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let request = Request::Serve {
        config: config(vec![export("a", false)]),
    };
    server
        .control()
        .send(&request, &[socket.as_fd(), fd])
        .unwrap();
    refuse(
        &mut server,
        "the first descriptor is not an AF_UNIX stream socket",
    );

    let mut server = Server::spawn();
    server
        .control()
        .send(&serde_json::json!({"request": "format"}), &[])
        .unwrap();
    refuse(&mut server, "unknown variant `format`");

    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let mut server = Server::spawn();
    server.ask(
        config(vec![export("etc", false)]),
        &[path_fd(&link).as_fd()],
    );
    refuse(&mut server, "exports[0] (etc): is a symbolic link");

    let mut server = Server::spawn();
    let (pipe, _writer) = std::io::pipe().unwrap();
    server.ask(config(vec![export("pipe", false)]), &[pipe.as_fd()]);
    refuse(
        &mut server,
        "exports[0] (pipe): cannot clone the mount tree at the descriptor",
    );
}

#[test]
fn an_owner_that_says_nothing_is_not_served() {
    let mut server = Server::spawn();
    server.control = None;
    assert_eq!(server.wait().code(), Some(1));
    let messages = server.messages();
    assert!(
        messages.contains("closed the control socket without a request"),
        "{messages}"
    );
}

#[test]
fn the_command_line_knows_two_words() {
    let run = |argument: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_cloister-fs"))
            .arg(argument)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, stdout, _) = run("--version");
    assert_eq!(
        (code, stdout),
        (
            Some(0),
            format!("cloister-fs {}\n", env!("CARGO_PKG_VERSION"))
        )
    );
    let (code, stdout, _) = run("--help");
    assert_eq!(code, Some(0));
    assert!(stdout.contains("Usage: cloister-fs"), "{stdout}");
    let (code, _, stderr) = run("--shared-dir");
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("unknown argument \"--shared-dir\""),
        "{stderr}"
    );
    let without = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" 3<&-", env!("CARGO_BIN_EXE_cloister-fs")])
        .output()
        .unwrap();
    assert_eq!(without.status.code(), Some(1));
    let stderr = String::from_utf8(without.stderr).unwrap();
    assert!(
        stderr.contains("descriptor 3 is not a control socket"),
        "{stderr}"
    );
}

#[test]
fn a_vmm_that_breaks_the_protocol_ends_the_service() {
    let directory = tempfile::tempdir().unwrap();
    let fd = path_fd(directory.path());
    // SET_VRING_KICK without memory, SET_VRING_NUM of a ring that is not there, garbage.
    let message = |request: u32, body: &[u8]| {
        let size = u32::try_from(body.len()).unwrap();
        let header = [request, 1, size].map(u32::to_le_bytes).concat();
        [header, body.to_vec()].concat()
    };
    let messages = [
        message(12, &[0; 8]),
        message(8, &[99, 0, 0, 0, 64, 0, 0, 0]),
        message(8, &[0, 0, 0, 0, 65, 0, 0, 0]),
        message(9, &[0xf0; 40]),
        vec![0xff; 64],
    ];
    for bytes in messages {
        let mut server = Server::spawn();
        let mut socket = server.ask(config(vec![export("data", false)]), &[fd.as_fd()]);
        assert_eq!(server.reply(), Some(Reply::Ready));
        socket.write_all(&bytes).unwrap();
        assert_eq!(server.wait().code(), Some(3), "{bytes:?}");
        let messages = server.messages();
        assert!(messages.contains("error: vhost-user: "), "{messages}");
    }
}

#[test]
fn a_reset_forgets_the_session_and_another_can_follow() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let (server, mut guest) = share(&[("data", directory.path(), false)]);
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", server.process.id()))
            .unwrap()
            .count()
    };
    let before = descriptors();
    for _ in 0..3 {
        let node = guest.walk("data/file");
        let mut handles = Vec::new();
        for _ in 0..100 {
            handles.push(guest.open(node, libc::O_RDONLY).unwrap().fh);
        }
        assert!(descriptors() > before + 100);
        guest.device.reset();
        assert!(descriptors() <= before);
        guest.activate();
        assert_eq!(guest.getattr(node).err(), Some(libc::EBADF));
        guest.init();
    }
    assert_eq!(guest.device.metrics().failures, 0);
}

#[test]
fn a_paused_device_stands_still_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    guest.forget(data, 1);
    let data = guest.walk("data");
    guest.device.pause().unwrap();
    let positions: Vec<_> = guest
        .device
        .queue_states()
        .iter()
        .map(|q| (q.next_avail, q.next_used))
        .collect();
    // INIT and two look-ups; one FORGET.
    assert_eq!(positions, [(1, 1), (3, 3)]);
    let request = guest.encode(opcode::GETATTR, data, &[0; 16]);
    guest.put(1, 0, &request, 256);
    guest.kick(1);
    assert!(guest.is_quiet(1));
    guest.device.resume().unwrap();
    let (slot, length) = guest.wait(1);
    guest.answer(1, slot, length).unwrap();
    guest.getattr(data).unwrap();
}

#[test]
fn requests_are_answered_in_parallel_and_each_once() {
    let directory = tempfile::tempdir().unwrap();
    let (server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let (node, fh) = guest.create(data, "file", 0o644).unwrap();
    let mut rounds = 0;
    while rounds < 50 {
        rounds += 1;
        for slot in 0..10u16 {
            let block = vec![u8::try_from(slot).unwrap(); 4096];
            let arguments = Guest::write_request(fh, u64::from(slot) * 4096, &block, 0);
            let request = guest.encode(opcode::WRITE, node, &arguments);
            guest.put(1, slot, &request, 64);
            guest.kick(1);
        }
        let mut answered = [false; 10];
        for _ in 0..10 {
            let (slot, length) = guest.wait(1);
            guest.answer(1, slot, length).unwrap();
            assert!(!std::mem::replace(&mut answered[usize::from(slot)], true));
        }
    }
    let data = fs::read(directory.path().join("file")).unwrap();
    for (slot, block) in (0u8..).zip(data.chunks(4096)) {
        assert!(block.iter().all(|byte| *byte == slot));
    }
    let threads = fs::read_dir(format!("/proc/{}/task", server.process.id()))
        .unwrap()
        .count();
    // The main thread, the one that waits for the owner, and at most four workers.
    assert!((4..=6).contains(&threads), "{threads}");
}

#[test]
fn malformed_requests_are_dropped_and_the_next_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, mut guest) = share(&[("data", directory.path(), false)]);
    let data = guest.walk("data");
    let header = guest.encode(opcode::LOOKUP, data, b"");
    let mut liar = guest.encode(opcode::LOOKUP, data, b"name\0");
    liar[0..4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let mut short = guest.encode(opcode::LOOKUP, data, b"name\0");
    short[0..4].copy_from_slice(&5u32.to_le_bytes());
    let read = ReadIn {
        size: u32::MAX,
        ..ReadIn::default()
    };
    let cases = [
        (Vec::new(), 0),
        (vec![0; 39], 256),
        (header, 256),
        (liar, 256),
        (short, 256),
        (guest.encode(opcode::LOOKUP, data, b"no end"), 256),
        (guest.encode(opcode::READ, data, read.as_slice()), 8),
        (guest.encode(opcode::READDIR, data, read.as_slice()), 8),
        (
            guest.encode(opcode::READDIRPLUS, data, read.as_slice()),
            1 << 16,
        ),
        (guest.encode(opcode::READ, data, read.as_slice()), 0),
        (guest.encode(opcode::GETATTR, data, &[0; 16]), 20),
        (guest.encode(opcode::INIT, 0, &[0; 3]), 256),
        (guest.encode(opcode::SETXATTR, data, &[0xff; 24]), 256),
        (guest.encode(opcode::GETXATTR, data, &[0xff; 24]), 256),
        (guest.encode(opcode::SYMLINK, data, b"only-one\0"), 256),
        (
            guest.encode(
                opcode::BATCH_FORGET,
                0,
                BatchForgetIn {
                    count: u32::MAX,
                    dummy: 0,
                }
                .as_slice(),
            ),
            0,
        ),
        (guest.encode(opcode::CREATE, data, &[0; 16]), 256),
    ];
    for (at, (request, room)) in cases.into_iter().enumerate() {
        // An empty buffer stands for a chain without one.
        guest.put(1, 0, &request, room);
        guest.kick(1);
        guest.wait(1);
        guest
            .getattr(data)
            .unwrap_or_else(|errno| panic!("after case {at}: {errno}"));
    }
    server.control = None;
    server.wait();
    let messages = server.messages();
    assert!(
        messages.contains("warn: malformed request, number 1: "),
        "{messages}"
    );
}

#[test]
fn a_ring_that_breaks_the_rules_is_left_alone_until_a_reset() {
    use vm_memory_018::{Bytes, GuestAddress};

    let directory = tempfile::tempdir().unwrap();
    let (_server, mut guest) = share(&[("data", directory.path(), false)]);
    guest.walk("data");
    // The available index runs ahead by more than the ring holds.
    guest
        .memory
        .write_obj(9999u16, GuestAddress(0x10_000 + 0x4000 + 0x1000 + 2))
        .unwrap();
    guest.kick(1);
    assert!(guest.is_quiet(1));
    guest.device.reset();
    guest.activate();
    guest.init();
    let data = guest.walk("data");
    guest.getattr(data).unwrap();
}

#[test]
fn a_dead_server_is_noticed_by_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, mut guest) = share(&[("data", directory.path(), false)]);
    server.process.kill().unwrap();
    server.wait();
    guest.device.reset();
    assert_eq!(guest.device.metrics().failures, 1);
}

#[test]
fn a_server_that_idles_is_small() {
    let directory = tempfile::tempdir().unwrap();
    let (server, mut guest) = share(&[("data", directory.path(), false)]);
    guest.walk("data");
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.process.id())).unwrap();
    let field = |name: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let private = field("Private_Clean:") + field("Private_Dirty:");
    eprintln!("PSS {} KiB, private {private} KiB", field("Pss:"));
    assert!(private < 8 * 1024, "{private} KiB");
}

#[test]
fn the_vmm_side_may_half_close() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::spawn();
    let fd = path_fd(directory.path());
    let mut socket = server.ask(config(vec![export("data", false)]), &[fd.as_fd()]);
    assert_eq!(server.reply(), Some(Reply::Ready));
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}
