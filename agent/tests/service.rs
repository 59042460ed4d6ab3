//! The agent's service, called as a host calls it, with real containers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use cloister_protocol::agent::{
    CreateContainerRequest, HelloRequest, ResizeTerminalRequest, SharedPath, ShutdownRequest,
    StartContainerRequest, Stdio,
};
use cloister_protocol::{MESSAGE_MAX, VERSION};
use serde_json::json;
use ttrpc::Code;

use guest::{Guest, context, join, read_all, refusal, spec, wait};

#[tokio::test]
async fn hello_tells_versions_and_times() {
    let guest = Guest::start().await;
    let request = HelloRequest {
        version: VERSION,
        ..HelloRequest::default()
    };
    for client in [guest.client.clone(), guest.connect()] {
        let reply = client.hello(context(), &request).await.unwrap();
        assert_eq!(reply.version, VERSION);
        assert_eq!(reply.agent_version, env!("CARGO_PKG_VERSION"));
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(reply.kernel_release, release.trim());
        assert_eq!((reply.init_boottime_ns, reply.ready_boottime_ns), (1, 2));
    }
}

#[tokio::test]
async fn a_container_runs_with_three_streams_and_its_exit_code_is_told_any_number_of_times() {
    let guest = Guest::start().await;
    let (mut input, stdin) = guest.stream(1);
    let (output, stdout) = guest.stream(2);
    let (errors, stderr) = guest.stream(3);
    let stdio = Stdio {
        stdin,
        stdout,
        stderr,
        ..Stdio::default()
    };
    let created = guest.create(
        "c",
        spec(&["/bin/sh", "-c", "cat; echo oops >&2; exit 42"]),
        stdio,
    );
    let pid = created.await.unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());

    let early = tokio::spawn({
        let client = guest.client.clone();
        async move { wait(&client, "c").await }
    });
    guest.start_container("c").await.unwrap();
    input.write_all(b"through and through").unwrap();
    input.shutdown(Shutdown::Write).unwrap();
    assert_eq!(join(read_all(output)).await, b"through and through");
    assert_eq!(join(read_all(errors)).await, b"oops\n");
    for exit in [
        early.await.unwrap(),
        guest.wait("c").await,
        guest.wait("c").await,
    ] {
        let exit = exit.unwrap();
        assert_eq!(
            (exit.exit_code, exit.signal, exit.oom_killed),
            (42, 0, false)
        );
    }
    guest.delete("c").await.unwrap();
    assert_eq!(refusal(guest.wait("c").await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn what_a_container_writes_is_in_the_shared_tree() {
    let guest = Guest::start().await;
    guest
        .run("c", "echo written > /tmp/file", Stdio::default())
        .await;
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 0);
    guest.delete("c").await.unwrap();
    let file = guest.rootfs().join("tmp/file");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "written\n");
}

#[tokio::test]
async fn signals_end_containers_and_are_told() {
    let guest = Guest::start().await;
    for (id, signal, all) in [("a", 9, false), ("b", 9, true)] {
        guest.run(id, "sleep 1000", Stdio::default()).await;
        guest.signal(id, signal, all).await.unwrap();
        let exit = guest.wait(id).await.unwrap();
        assert_eq!((exit.exit_code, exit.signal), (0, signal));
        assert_eq!(
            refusal(guest.signal(id, 9, false).await).0,
            Code::FAILED_PRECONDITION
        );
        guest.delete(id).await.unwrap();
    }
    guest
        .run(
            "c",
            "trap 'exit 7' TERM; echo; while :; do sleep 1; done",
            Stdio::default(),
        )
        .await;
    // The shell needs a moment to set its trap.
    tokio::time::sleep(Duration::from_millis(300)).await;
    guest.signal("c", 15, false).await.unwrap();
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 7);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_background_process_does_not_hold_up_the_stream_of_one_that_has_ended() {
    let guest = Guest::start().await;
    let (output, stdout) = guest.stream(1);
    let mut shared_pids = spec(&["/bin/sh", "-c", "sleep 1000 & echo started; exit 3"]);
    shared_pids["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "network" }]);
    let stdio = Stdio {
        stdout,
        ..Stdio::default()
    };
    guest.create("c", shared_pids, stdio).await.unwrap();
    guest.start_container("c").await.unwrap();
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 3);
    assert_eq!(join(read_all(output)).await, b"started\n");
    guest.delete("c").await.unwrap();
    // The orphan was this process's to reap, and it did.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children, "");
}

#[tokio::test]
async fn deleting_a_running_container_kills_it_answers_its_waiters_and_delivers_its_output() {
    let guest = Guest::start().await;
    let (output, stdout) = guest.stream(1);
    let stdio = Stdio {
        stdout,
        ..Stdio::default()
    };
    guest
        .run("c", "head -c 50000 /dev/zero; sleep 1000", stdio)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client = guest.client.clone();
    let waiter = tokio::spawn(async move { wait(&client, "c").await });
    tokio::task::yield_now().await;
    let output = read_all(output);
    guest.delete("c").await.unwrap();
    assert_eq!(waiter.await.unwrap().unwrap().signal, 9);
    assert_eq!(join(output).await.len(), 50_000);
}

#[tokio::test]
async fn many_bytes_pass_through_a_container_unharmed() {
    const VOLUME: usize = 16 << 20;
    let guest = Guest::start().await;
    let (mut input, stdin) = guest.stream(1);
    let (output, stdout) = guest.stream(2);
    let stdio = Stdio {
        stdin,
        stdout,
        ..Stdio::default()
    };
    guest.run("c", "cat", stdio).await;
    let sent: Vec<u8> = (0..VOLUME).map(|n| (n % 251) as u8).collect();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            input.write_all(&sent).unwrap();
            input.shutdown(Shutdown::Write).unwrap();
        }
    });
    assert!(join(read_all(output)).await == sent);
    join(writer).await;
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 0);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_process_whose_output_is_closed_dies_of_sigpipe() {
    let guest = Guest::start().await;
    let (mut output, stdout) = guest.stream(1);
    let stdio = Stdio {
        stdout,
        ..Stdio::default()
    };
    // Not as the first of its pid namespace, which no signal of its own can end.
    let spec = spec(&["/bin/sh", "-c", "yes; exit $?"]);
    guest.create("c", spec, stdio).await.unwrap();
    guest.start_container("c").await.unwrap();
    let reader = std::thread::spawn(move || output.read_exact(&mut [0; 100]).unwrap());
    join(reader).await;
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 128 + 13);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_and_can_be_resized() {
    let guest = Guest::start().await;
    let (mut terminal, stdin) = guest.stream(1);
    let stdio = Stdio {
        terminal: true,
        stdin,
        columns: 91,
        rows: 31,
        ..Stdio::default()
    };
    let mut spec = spec(&["/bin/sh", "-c", "stty size; read x; stty size; echo got $x"]);
    spec["process"]["terminal"] = json!(true);
    guest.create("c", spec, stdio).await.unwrap();
    guest.start_container("c").await.unwrap();
    let first = std::thread::spawn({
        let mut terminal = terminal.try_clone().unwrap();
        move || {
            let mut text = [0; 7];
            terminal.read_exact(&mut text).unwrap();
            text
        }
    });
    assert_eq!(&join(first).await, b"31 91\r\n");
    let request = ResizeTerminalRequest {
        container_id: "c".into(),
        columns: 100,
        rows: 40,
        ..ResizeTerminalRequest::default()
    };
    let resized = guest.client.resize_terminal(context(), &request).await;
    resized.unwrap();
    terminal.write_all(b"word\n").unwrap();
    let rest = join(read_all(terminal)).await;
    assert_eq!(
        String::from_utf8(rest).unwrap(),
        "word\r\n40 100\r\ngot word\r\n"
    );
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 0);
    let late = guest.client.resize_terminal(context(), &request).await;
    assert_eq!(refusal(late).0, Code::FAILED_PRECONDITION);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_terminal_leaves_line_feeds_as_they_are_when_asked_to() {
    let guest = Guest::start().await;
    let (terminal, stdin) = guest.stream(1);
    let stdio = Stdio {
        terminal: true,
        stdin,
        plain_line_feeds: true,
        ..Stdio::default()
    };
    let mut spec = spec(&["/bin/sh", "-c", "printf 'a\\nb\\tc\\n'; stty sane; echo d"]);
    spec["process"]["terminal"] = json!(true);
    guest.create("c", spec, stdio).await.unwrap();
    guest.start_container("c").await.unwrap();
    let text = join(read_all(terminal)).await;
    // It is a terminal in every other way: a program may turn the translation on again.
    assert_eq!(String::from_utf8(text).unwrap(), "a\nb\tc\nd\r\n");
    assert_eq!(guest.wait("c").await.unwrap().exit_code, 0);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn an_error_fits_into_an_answer_whatever_the_caller_has_said() {
    let guest = Guest::start().await;
    let id = "ü".repeat(100_000);
    let refused = guest.create(&id, spec(&["/bin/true"]), Stdio::default());
    let (code, message) = refusal(refused.await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("container_id: \"üüü"), "{message:.40}");
    assert!(message.len() <= MESSAGE_MAX, "{} bytes", message.len());
}

#[tokio::test]
async fn refusals_have_the_code_of_their_kind_and_name_the_field() {
    let guest = Guest::start().await;
    let plain = spec(&["/bin/true"]);
    let none = Stdio::default;

    assert_eq!(refusal(guest.start_container("c").await).0, Code::NOT_FOUND);
    assert_eq!(
        refusal(guest.signal("c", 9, false).await).0,
        Code::NOT_FOUND
    );
    assert_eq!(refusal(guest.delete("c").await).0, Code::NOT_FOUND);
    for id in ["", "a/b", ".."] {
        let (code, message) = refusal(guest.create(id, plain.clone(), none()).await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(message.starts_with("container_id: "), "{message}");
    }
    let short = Stdio {
        stdout: vec![1; 15],
        ..none()
    };
    let (code, message) = refusal(guest.create("c", plain.clone(), short).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("stdio.stdout: "), "{message}");

    let mut malformed = plain.clone();
    malformed["process"]["args"] = json!("not a list");
    let (code, message) = refusal(guest.create("c", malformed, none()).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("args"), "{message}");

    let absent = CreateContainerRequest {
        container_id: "c".into(),
        spec: plain.to_string().into_bytes(),
        rootfs: Some(SharedPath {
            tag: "bundle".into(),
            path: "nowhere".into(),
            ..SharedPath::default()
        })
        .into(),
        ..CreateContainerRequest::default()
    };
    let refused = guest.client.create_container(context(), &absent).await;
    let (code, message) = refusal(refused);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("rootfs.path: "), "{message}");

    // None of these has taken the id, and now it is taken.
    guest.create("c", plain.clone(), none()).await.unwrap();
    let again = guest.create("c", plain.clone(), none()).await;
    assert_eq!(refusal(again).0, Code::ALREADY_EXISTS);
    assert_eq!(
        refusal(guest.signal("c", 65, false).await).0,
        Code::INVALID_ARGUMENT
    );
    guest.start_container("c").await.unwrap();
    let again = guest.start_container("c").await;
    assert_eq!(refusal(again).0, Code::FAILED_PRECONDITION);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_refused_and_leaves_nothing() {
    let guest = Guest::start().await;
    let created = guest.create("c", spec(&["/bin/nowhere"]), Stdio::default());
    let refused = match created.await {
        Ok(_) => guest.start_container("c").await,
        Err(e) => Err(e),
    };
    let (code, message) = refusal(refused);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("/bin/nowhere"), "{message}");
}

#[tokio::test]
async fn a_container_goes_with_the_connection_of_its_owner() {
    let guest = Guest::start().await;
    guest.run("c", "sleep 1000", Stdio::default()).await;
    let limit = Duration::from_millis(100);
    tokio::time::timeout(limit, async {
        let client = guest.connect();
        let request = cloister_protocol::agent::WaitRequest {
            container_id: "c".into(),
            owner: true,
            ..cloister_protocol::agent::WaitRequest::default()
        };
        client.wait(guest::context(), &request).await
    })
    .await
    .unwrap_err();
    for _ in 0..100 {
        if guest.signal("c", 1, false).await.is_err_and(
            |e| matches!(e, ttrpc::Error::RpcStatus(status) if status.code() == Code::NOT_FOUND),
        ) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the container is still there");
}

#[tokio::test]
async fn a_container_outlives_the_connection_that_waits_for_it() {
    let guest = Guest::start().await;
    guest.run("c", "sleep 0.5; exit 5", Stdio::default()).await;
    let other = guest.connect();
    let waiter = tokio::spawn(async move { wait(&other, "c").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    assert_eq!(wait(&guest.connect(), "c").await.unwrap().exit_code, 5);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_every_container_and_then_the_service() {
    let mut guest = Guest::start().await;
    guest.run("a", "sleep 1000", Stdio::default()).await;
    let created = guest.create("b", spec(&["/bin/true"]), Stdio::default());
    created.await.unwrap();
    let client = guest.client.clone();
    let waiter = tokio::spawn(async move { wait(&client, "a").await });
    tokio::task::yield_now().await;
    let request = ShutdownRequest::default();
    guest.client.shutdown(context(), &request).await.unwrap();
    assert_eq!(waiter.await.unwrap().unwrap().signal, 9);
    let ended = tokio::time::timeout(Duration::from_secs(5), &mut guest.service).await;
    ended.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn other_calls_are_answered_while_hooks_run() {
    let guest = Guest::start().await;
    let mut hooked = spec(&["/bin/true"]);
    hooked["hooks"] = json!({
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "while true; do :; done"]}],
    });
    guest.create("c", hooked, Stdio::default()).await.unwrap();
    let client = guest.connect();
    let started = tokio::spawn(async move {
        let request = StartContainerRequest {
            container_id: "c".into(),
            ..StartContainerRequest::default()
        };
        client.start_container(context(), &request).await
    });
    // Another container comes and goes, and then the one with the endless hook is killed.
    guest.run("d", "exit 3", Stdio::default()).await;
    assert_eq!(guest.wait("d").await.unwrap().exit_code, 3);
    assert!(!started.is_finished());
    guest.signal("c", 9, true).await.unwrap();
    assert_eq!(guest.wait("c").await.unwrap().signal, 9);
    // Its program never ran, and its end says so.
    let _ = started.await.unwrap();
    for id in ["c", "d"] {
        guest.delete(id).await.unwrap();
    }
}
