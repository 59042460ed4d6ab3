//! What `kubectl exec`, `attach` and `port-forward` come to: streams that containerd serves, and the shim fills.

use serde_json::Value;

use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod, ask};
use crate::cri::websocket::WebSocket;

// The channels of exec and attach.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Opens the streams of a command that is executed in a container.
fn exec(container: &Container, words: &[&str], tty: bool) -> WebSocket {
    let request = cri::ExecRequest {
        container_id: container.id.clone(),
        cmd: words.iter().map(|&word| word.to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        // A terminal has one output.
        stderr: !tty,
        ..cri::ExecRequest::default()
    };
    let answer: cri::StreamResponse = ask("Exec", &request);
    WebSocket::open(&answer.url)
}

/// The exit code in the status that ends a command's streams.
fn exit_code(socket: &mut WebSocket) -> String {
    let status = socket.await_text(STATUS, "}");
    let status: Value = serde_json::from_str(&status).expect("a status");
    if status["status"] == "Success" {
        return "0".into();
    }
    let causes = status["details"]["causes"].as_array().expect("causes");
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str());
    code.expect("an exit code").into()
}

pub(crate) fn terminal(case: &Case) {
    let pod = case.pod("terminal");
    let container = pod.start("c", "exec sleep 1000");
    let mut socket = exec(&container, &["sh"], true);
    socket.send(RESIZE, br#"{"Width":101,"Height":41}"#);
    // The size may come after the shell has started.
    socket.send(
        STDIN,
        b"until [ \"$(stty size)\" = '41 101' ]; do sleep 0.1; done; tty; echo it\"\" fits\n",
    );
    let seen = socket.await_text(STDOUT, "it fits");
    assert!(seen.contains("/dev/pts/"), "{seen}");
    socket.send(STDIN, b"exit 7\n");
    assert_eq!(exit_code(&mut socket), "7");
}

pub(crate) fn pipes(case: &Case) {
    let pod = case.pod("pipes");
    let container = pod.start("c", "exec sleep 1000");
    let script = "read line; echo \"got $line\" >&2";
    let mut socket = exec(&container, &["sh", "-c", script], false);
    socket.send(STDIN, b"a line\n");
    assert_eq!(socket.await_text(STDERR, "\n"), "got a line\n");
    assert_eq!(exit_code(&mut socket), "0");
}

pub(crate) fn attach(case: &Case) {
    let pod = case.pod("attach");
    let script = "while read line; do echo \"got $line\"; done; exec sleep 1000";
    let container = pod.start_with("c", script, |config| config.stdin = true);
    for said in ["one", "another"] {
        // Who detaches leaves the container's input open for the next one.
        let mut socket = attached(&container);
        socket.send(STDIN, format!("{said}\n").as_bytes());
        socket.await_text(STDOUT, &format!("got {said}\n"));
    }
    container.await_log(" got another\n");
}

fn attached(container: &Container) -> WebSocket {
    let request = cri::AttachRequest {
        container_id: container.id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..cri::AttachRequest::default()
    };
    let answer: cri::StreamResponse = ask("Attach", &request);
    WebSocket::open(&answer.url)
}

/// A server that listens on the pod's loopback address alone.
pub(crate) fn port_forward(case: &Case) {
    let pod = case.pod("forward");
    let script =
        "mkdir -p /www; echo found >/www/page; httpd -p 127.0.0.1:8091 -h /www && exec sleep 1000";
    let web = pod.start("web", script);
    web.sh("until wget -q -O - http://127.0.0.1:8091/page; do sleep 0.2; done");
    let mut socket = forwarded(&pod, 8091);
    socket.send(0, b"GET /page HTTP/1.0\r\n\r\n");
    let page = socket.await_text(0, "found\n");
    assert!(page.contains("200 OK"), "{page}");
    // Where nobody listens inside, the connection is accepted on this machine and then reset.
    let mut socket = forwarded(&pod, 8092);
    socket.send(0, b"hello");
    let error = socket.await_text(1, "8092");
    assert!(error.contains("connection reset by peer"), "{error}");
}

/// Streams to a port of a pod: channel 0 carries its data, 1 its errors; each begins with the port's number.
fn forwarded(pod: &Pod, port: u16) -> WebSocket {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![port.into()],
        ..cri::PortForwardRequest::default()
    };
    let answer: cri::StreamResponse = ask("PortForward", &request);
    let mut socket = WebSocket::open(&format!("{}?port={port}", answer.url));
    for _ in 0..2 {
        let (channel, number) = socket.take().expect("the port's number");
        assert_eq!(number, port.to_le_bytes(), "channel {channel}");
    }
    socket
}
