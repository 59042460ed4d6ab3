//! Containers with a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use cloister_container::{Container, Stdio, WindowSize, resize};
use serde_json::json;

use crate::support::{Bundle, Leftovers, TERMINAL, Tests, wait};

pub(crate) const TESTS: Tests = &[
    (
        "it_is_the_controlling_terminal",
        it_is_the_controlling_terminal,
    ),
    ("window_size", window_size),
    (
        "console_size_of_the_specification",
        console_size_of_the_specification,
    ),
    ("input_and_interrupt", input_and_interrupt),
    (
        "streams_and_specification_have_to_agree",
        streams_and_specification_have_to_agree,
    ),
    ("failures_with_a_terminal", failures_with_a_terminal),
    ("no_terminal_without_devpts", no_terminal_without_devpts),
];

fn bundle(script: &str) -> Bundle {
    Bundle::script(script).set("/process/terminal", json!(true))
}

fn create(bundle: &Bundle, size: Option<WindowSize>) -> (Container, OwnedFd) {
    let mut container = Container::create(bundle.options(Stdio::Terminal {
        size,
        plain_line_feeds: false,
    }))
    .unwrap();
    let terminal = container.take_terminal().unwrap();
    assert!(container.take_terminal().is_none());
    (container, terminal)
}

/// Reads until the terminal has no user any more (EIO).
fn read(terminal: OwnedFd) -> Vec<String> {
    let mut file = File::from(terminal);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => text.extend(&buffer[..length]),
            Err(error) => {
                assert_eq!(
                    error.raw_os_error(),
                    Some(rustix::io::Errno::IO.raw_os_error())
                );
                break;
            }
        }
    }
    String::from_utf8(text)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn finish(mut container: Container, terminal: OwnedFd) -> Vec<String> {
    container.start().unwrap();
    let lines = read(terminal);
    assert_eq!(wait(&container).exit_status(), Some(0), "{lines:?}");
    container.delete().unwrap();
    lines
}

fn it_is_the_controlling_terminal() {
    let bundle = bundle(
        "tty; echo to-tty > /dev/tty; echo to-console > /dev/console; test -t 0 -a -t 1 -a -t 2 && echo all;
         stat -c '%t' /dev/console; stat -c %u /dev/pts/0",
    )
    .set("/process/user/uid", json!(1000));
    let (container, terminal) = create(&bundle, None);
    let lines = finish(container, terminal);
    assert_eq!(
        lines,
        ["/dev/pts/0", "to-tty", "to-console", "all", "88", "1000"]
    );
}

fn window_size() {
    let bundle =
        bundle("stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done");
    let (mut container, terminal) = create(
        &bundle,
        Some(WindowSize {
            columns: 132,
            rows: 43,
        }),
    );
    container.start().unwrap();
    let mut text = String::new();
    let mut file = File::from(rustix::io::dup(&terminal).unwrap());
    while !text.ends_with("ready\r\n") {
        let mut buffer = [0; 100];
        let length = file.read(&mut buffer).unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert_eq!(text, "43 132\r\nready\r\n");
    drop(file);
    resize(
        terminal.as_fd(),
        WindowSize {
            columns: 99,
            rows: 7,
        },
    )
    .unwrap();
    assert_eq!(read(terminal), ["7 99"]);
    wait(&container);
    container.delete().unwrap();
}

fn console_size_of_the_specification() {
    let bundle =
        bundle("stty size").set("/process/consoleSize", json!({"height": 11, "width": 22}));
    let (container, terminal) = create(&bundle, None);
    assert_eq!(finish(container, terminal), ["11 22"]);
}

fn input_and_interrupt() {
    let bundle = bundle(
        "stty -echo; echo ready; read line; echo got $line; trap 'echo interrupted; exit 0' INT; echo again; while :; do sleep 0.01; done",
    );
    let (mut container, terminal) = create(&bundle, None);
    container.start().unwrap();
    let mut file = File::from(rustix::io::dup(&terminal).unwrap());
    let mut until = |what: &str, answer: &[u8]| {
        let mut text = String::new();
        while !text.contains(what) {
            let mut buffer = [0; 100];
            let length = file.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        file.write_all(answer).unwrap();
        text
    };
    until("ready\r\n", b"a line\n");
    let text = until("again\r\n", b"\x03");
    assert!(text.contains("got a line"), "{text:?}");
    drop(file);
    assert_eq!(
        read(terminal),
        ["^C".to_owned() + "interrupted"].map(|s| s.replace("^C", ""))
    );
    assert_eq!(wait(&container).exit_status(), Some(0));
    container.delete().unwrap();
}

fn streams_and_specification_have_to_agree() {
    let streams = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let error = Container::create(bundle("true").options(streams)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "process.terminal is true, the streams given are not for that"
    );
    let terminal = TERMINAL;
    let error = Container::create(Bundle::script("true").options(terminal)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "process.terminal is false, the streams given are not for that"
    );
}

fn failures_with_a_terminal() {
    // Before and after the terminal is there.
    for (pointer, value, expected) in [
        ("/linux/sysctl", json!({"net.no.such": "1"}), "linux.sysctl"),
        (
            "/mounts/3/options",
            json!(["size=x"]),
            "mounts[3]: tmpfs on \"/dev/shm\"",
        ),
        (
            "/process/args",
            json!(["nowhere"]),
            "exec: \"nowhere\": executable file not found in $PATH",
        ),
    ] {
        let bundle = bundle("true").set(pointer, value);
        let before = Leftovers::now(&bundle);
        let error = Container::create(bundle.options(TERMINAL)).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
        before.compare(&Leftovers::now(&bundle));
    }
}

fn no_terminal_without_devpts() {
    let mut bundle = bundle("true");
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["type"] != "devpts");
    // The image offers a file of that name.
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/dev");
    std::fs::create_dir_all(bundle.rootfs().join("dev/pts")).unwrap();
    std::fs::write(bundle.rootfs().join("dev/pts/ptmx"), "").unwrap();
    let error = Container::create(bundle.options(TERMINAL)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "process.terminal: no devpts is mounted on /dev/pts"
    );
}
