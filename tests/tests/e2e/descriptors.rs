//! Descriptors beyond the standard streams.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use super::harness::{Bundle, Cmd, Finished, LIMIT, Residue, eventually};

/// Runs `cloister ARGS` from a shell that redirects before it executes.
fn redirected(bundle: &Bundle, before: &str, redirections: &str, args: &[&str]) -> Finished {
    let script = format!("{before} (exec {redirections}; exec \"$@\")");
    let root = bundle.state_root();
    let cloister = [
        "-c",
        &script,
        "sh",
        "cloister",
        "--root",
        root.to_str().unwrap(),
    ];
    Cmd::new("sh").args(cloister).args(args).run()
}

/// The same with a socket at number 3.
fn with_socket(bundle: &Bundle, socket: UnixStream, args: &[&str]) -> Child {
    Command::new("sh")
        .args([
            "-c",
            "exec 3<&0 </dev/null; exec cloister --root \"$@\"",
            "sh",
        ])
        .arg(bundle.state_root())
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .spawn()
        .expect("sh")
}

#[test]
fn pipes_and_devices_are_found_at_their_numbers() {
    let script = "cat <&3 >&4; head -c 77 /proc/self/fd/5 | wc -c; readlink /proc/$$/fd/5; ls /proc/$$/fd; true";
    let bundle = Bundle::sh(script);
    let path = bundle.path();
    let run = [
        "run",
        "--preserve-fds",
        "3",
        "--bundle",
        path.to_str().unwrap(),
        "test",
    ];
    let before = "printf 'through a pipe\\n' |";
    let done = redirected(&bundle, before, "3<&0 4>&1 5<>/dev/zero </dev/null", &run);
    let mut lines: Vec<_> = done.out().lines().map(str::to_owned).collect();
    // Two streams need not arrive in order.
    lines.sort();
    let mut expected = [
        "through a pipe",
        "77",
        "/dev/zero",
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected, "{done}");
}

#[test]
fn a_socket_goes_both_ways_and_each_ends_by_itself() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.command("run", &["--detach"], "test").run().ok();
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    ours.set_read_timeout(Some(LIMIT)).expect("a limit");
    let script = "read line <&3; echo \"got $line\" >&3; cat <&3 >&3";
    let exec = ["exec", "--preserve-fds", "1", "test", "sh", "-c", script];
    let mut child = with_socket(&bundle, theirs, &exec);
    let read = |expected: &str| {
        let mut text = vec![0; expected.len()];
        (&ours).read_exact(&mut text).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&text), expected);
    };
    (&ours).write_all(b"hello\n").expect("a socket");
    read("got hello\n");
    let much = "x".repeat(300_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&ours).write_all(much.as_bytes()).expect("a socket");
            ours.shutdown(Shutdown::Write).expect("a half close");
        });
        read(&much);
    });
    let mut rest = Vec::new();
    (&ours).read_to_end(&mut rest).expect("the end");
    assert_eq!(rest, b"");
    assert!(child.wait().expect("cloister").success());

    // A process that ends, or closes its socket, ends the stream of whoever waits for it.
    for script in ["exit 3", "exec 3>&-; sleep 5; exit 3"] {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_read_timeout(Some(LIMIT)).expect("a limit");
        let exec = ["exec", "--preserve-fds", "1", "test", "sh", "-c", script];
        let mut child = with_socket(&bundle, theirs, &exec);
        (&ours).read_to_end(&mut rest).expect("the end");
        assert_eq!(child.wait().expect("cloister").code(), Some(3));
    }
}

#[test]
fn nobody_but_the_monitor_keeps_them() {
    let bundle = Bundle::alone(&["sh", "-c", "cat <&3 >/out; sleep 1000"]);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let inode = |socket: &UnixStream| rustix::fs::fstat(socket).expect("a socket").st_ino;
    let link = format!("socket:[{}]", inode(&theirs));
    let path = bundle.path();
    let run = [
        "run",
        "--detach",
        "--preserve-fds",
        "1",
        "--bundle",
        path.to_str().unwrap(),
        "test",
    ];
    let mut child = with_socket(&bundle, theirs, &run);
    assert!(child.wait().expect("cloister").success());
    let holders: Vec<_> = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|process| {
            let fds = fs::read_dir(process.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
            links.any(|to| to.as_os_str() == link.as_str())
        })
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(holders, [bundle.state("test")["pid"].to_string()]);
    (&ours).write_all(b"sent later").expect("a socket");
    drop(ours);
    let out = bundle.rootfs().join("out");
    eventually("it has arrived", || {
        fs::read(&out).is_ok_and(|text| text == b"sent later")
    });
}

#[test]
fn what_cannot_be_passed_on_is_named_and_leaves_nothing() {
    let bundle = Bundle::alone(&["sleep", "1000"]);
    bundle.command("run", &["--detach"], "test").run().ok();
    let before = Residue::now();
    let path = bundle.path();
    for (redirections, count, expected) in [
        ("3</etc/passwd", "1", "descriptor 3 is a file"),
        ("3</dev/null 4</", "2", "descriptor 4 is a directory"),
        ("3</dev/null 4>&-", "2", "descriptor 4 is not open"),
        ("3</dev/null", "33", "--preserve-fds 33: at most 32"),
    ] {
        let run = [
            "run",
            "--preserve-fds",
            count,
            "--bundle",
            path.to_str().unwrap(),
            "other",
        ];
        redirected(&bundle, "", redirections, &run).fails(1, &[expected]);
        let exec = ["exec", "--preserve-fds", count, "test", "true"];
        redirected(&bundle, "", redirections, &exec).fails(255, &[expected]);
    }
    let listen = "3</dev/null; export LISTEN_FDS=1 LISTEN_PID=$(sh -c 'echo $PPID')";
    let run = ["run", "--bundle", path.to_str().unwrap(), "other"];
    let refused = redirected(&bundle, "", listen, &run);
    refused.fails(1, &["LISTEN_FDS is not supported", "systemd-socket-proxyd"]);
    before.assert_nothing_new();
}
