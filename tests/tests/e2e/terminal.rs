//! Terminals: foreground, and handed over through a console socket.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::harness::{Bundle, LIMIT};

/// The master side of a terminal, with everything read from it so far.
struct Screen {
    master: File,
    bytes: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Screen {
    fn new(master: OwnedFd) -> Self {
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a descriptor");
        let (sender, bytes) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO is how a terminal says that nobody holds its other side any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            master,
            bytes,
            text: String::new(),
        }
    }

    fn wait_for(&mut self, expected: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.text.contains(expected) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.bytes.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{error}: no {expected:?} on the terminal: {:?}", self.text),
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.master, "{line}").expect("a terminal");
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("a terminal");
    }
}

fn shell() -> Bundle {
    Bundle::new(&["sh"]).with(|spec| spec["process"]["terminal"] = true.into())
}

/// A terminal: its master, and the side that programs have.
fn pseudoterminal() -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("a terminal");
    unlockpt(&master).expect("a terminal");
    let name = ptsname(&master, Vec::new()).expect("a terminal");
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("a path"))
        .expect("the other side");
    (master, slave)
}

fn receive_master(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().expect("the runtime connects");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket");
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        stream.as_fd(),
        &mut [std::io::IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("the terminal arrives");
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor came with the message")
}

#[test]
fn a_console_socket_gets_a_working_terminal_that_can_be_resized() {
    let bundle = shell();
    let path = bundle.scratch("console.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let accepted = std::thread::spawn(move || receive_master(&listener));
    let option = path.to_string_lossy().into_owned();
    bundle
        .command("create", &["--console-socket", &option], "tty")
        .run()
        .ok();
    let mut screen = Screen::new(accepted.join().expect("the terminal arrives"));
    screen.resize(101, 37);
    bundle.cloister(["start", "tty"]).run().ok();
    screen.type_line("test -t 0 && test -t 1 && test -t 2 && echo is-a-$((1 + 1))-tty");
    screen.wait_for("is-a-2-tty");
    screen.resize(123, 45);
    // The size travels beside the bytes: ask until it is there.
    screen.type_line(
        "until [ \"$(stty size)\" = '45 123' ]; do sleep 0.1; done; echo resized-$((40 + 2))",
    );
    screen.wait_for("resized-42");
    screen.type_line("exit 7");
}

#[test]
fn a_foreground_terminal_is_raw_and_restored() {
    let bundle = shell();
    let (master, slave) = pseudoterminal();
    let before = rustix::termios::tcgetattr(&slave).expect("a terminal");
    let mut screen = Screen::new(master);
    screen.resize(91, 31);
    // `setsid --ctty` makes the terminal the controlling one, as a login does.
    let mut child = Command::new("setsid")
        .args(["--ctty", "--wait", "cloister", "--root"])
        .arg(bundle.state_root())
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg("fg")
        .stdin(Stdio::from(slave.try_clone().expect("a descriptor")))
        .stdout(Stdio::from(slave.try_clone().expect("a descriptor")))
        .stderr(Stdio::from(slave.try_clone().expect("a descriptor")))
        .spawn()
        .expect("setsid runs");
    screen.type_line(
        "until [ \"$(stty size)\" = '31 91' ]; do sleep 0.1; done; echo size-$((40 + 2))",
    );
    screen.wait_for("size-42\r\n");
    screen.resize(77, 22);
    screen.type_line(
        "until [ \"$(stty size)\" = '22 77' ]; do sleep 0.1; done; echo again-$((40 + 2))",
    );
    screen.wait_for("again-42");
    // An interrupt typed here is the shell's inside, not the runtime's.
    screen.type_line("sleep 600; echo interrupted-$((40 + 2))");
    std::thread::sleep(Duration::from_millis(500));
    screen.master.write_all(b"\x03").expect("a terminal");
    screen.type_line("echo alive-$((40 + 2))");
    screen.wait_for("alive-42");
    screen.type_line("exit 9");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("our own child");
            panic!("did not end: {:?}", screen.text);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(9), "{:?}", screen.text);
    let after = rustix::termios::tcgetattr(&slave).expect("a terminal");
    assert_eq!(before.local_modes, after.local_modes);
    assert_eq!(before.input_modes, after.input_modes);
    assert_eq!(before.output_modes, after.output_modes);
}

#[test]
fn what_a_terminal_shows_goes_elsewhere_with_the_lines_that_programs_write() {
    let script = "test -t 1 && echo first; until [ -e /go ]; do sleep 0.1; done; echo last";
    let bundle =
        Bundle::new(&["sh", "-c", script]).with(|spec| spec["process"]["terminal"] = true.into());
    let (_master, slave) = pseudoterminal();
    let start = |arguments: &[&str]| {
        Command::new("setsid")
            .args(["--ctty", "--wait", "cloister", "--root"])
            .arg(bundle.state_root())
            .args(arguments)
            .stdin(Stdio::from(slave.try_clone().expect("a descriptor")))
            .stdout(Stdio::piped())
            .stderr(Stdio::from(slave.try_clone().expect("a descriptor")))
            .spawn()
            .expect("setsid runs")
    };
    let read = |output: &mut ChildStdout, length: usize| {
        let mut bytes = vec![0; length];
        output.read_exact(&mut bytes).expect("output");
        String::from_utf8(bytes).expect("text")
    };
    let directory = bundle.path().to_string_lossy().into_owned();
    let mut run = start(&["run", "--bundle", &directory, "elsewhere"]);
    let mut output = run.stdout.take().expect("a pipe");
    assert_eq!(read(&mut output, 6), "first\n");

    let mut exec = start(&[
        "exec",
        "--tty",
        "elsewhere",
        "sh",
        "-c",
        "tty; echo x > /go",
    ]);
    let mut text = String::new();
    let mut exec_output = exec.stdout.take().expect("a pipe");
    exec_output.read_to_string(&mut text).expect("output");
    assert!(exec.wait().expect("our own child").success(), "{text:?}");
    assert!(
        text.starts_with("/dev/pts/") && text.ends_with('\n'),
        "{text:?}"
    );
    assert!(!text.contains('\r'), "{text:?}");

    text.clear();
    output.read_to_string(&mut text).expect("output");
    assert_eq!(text, "last\n");
    assert!(run.wait().expect("our own child").success());
}

#[test]
fn terminal_and_options_that_contradict_each_other_are_refused() {
    shell()
        .command("run", &["--detach"], "t")
        .run()
        .fails(1, &["console socket"]);
    let bundle = Bundle::new(&["true"]);
    bundle
        .command("run", &["--console-socket", "/nonexistent/socket"], "t")
        .run()
        .fails(1, &["console socket"]);
}
