//! Further processes of a container, as the host asks for them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod guest;

use std::time::Duration;

use cloister_protocol::agent::{
    ExecRequest, PauseRequest, ProcessesRequest, ResumeRequest, StatsRequest, Stdio, WaitRequest,
    WaitResponse,
};
use guest::{Guest, context, join, read_all, refusal};
use serde_json::json;
use ttrpc::Code;

fn request(exec_id: &str, script: &str, stdout: Vec<u8>) -> ExecRequest {
    let process = json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"] });
    ExecRequest {
        container_id: "c".into(),
        exec_id: exec_id.into(),
        process: process.to_string().into_bytes(),
        stdio: Some(Stdio {
            stdout,
            ..Stdio::default()
        })
        .into(),
        ..ExecRequest::default()
    }
}

async fn exec(guest: &Guest, exec_id: &str, script: &str, stdout: Vec<u8>) -> ttrpc::Result<u32> {
    let request = request(exec_id, script, stdout);
    Ok(guest.client.exec(context(), &request).await?.pid)
}

async fn wait(guest: &Guest, exec_id: &str) -> ttrpc::Result<WaitResponse> {
    let request = WaitRequest {
        container_id: "c".into(),
        exec_id: exec_id.into(),
        ..WaitRequest::default()
    };
    guest.client.wait(context(), &request).await
}

async fn processes(guest: &Guest) -> Vec<String> {
    let request = ProcessesRequest {
        container_id: "c".into(),
        ..ProcessesRequest::default()
    };
    let answer = guest.client.processes(context(), &request).await.unwrap();
    answer.processes.into_iter().map(|p| p.command).collect()
}

#[tokio::test]
async fn a_process_runs_beside_the_first_and_is_forgotten_when_its_end_was_told() {
    let guest = Guest::start().await;
    guest.run("c", "exec sleep 1000", Stdio::default()).await;
    let (output, stdout) = guest.stream(1);
    exec(&guest, "e", "echo $$; sleep 1000 & exit 5", stdout)
        .await
        .unwrap();
    let (code, message) = refusal(exec(&guest, "e", "true", Vec::new()).await);
    assert_eq!(code, Code::ALREADY_EXISTS, "{message}");
    assert_eq!(wait(&guest, "e").await.unwrap().exit_code, 5);
    assert_eq!(join(read_all(output)).await, b"2\n");
    let (code, message) = refusal(wait(&guest, "e").await);
    assert_eq!(
        (code, &*message),
        (Code::NOT_FOUND, "there is no process \"e\"")
    );
    let (code, message) = refusal(exec(&guest, "a/b", "true", Vec::new()).await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
    let (code, message) = refusal(exec(&guest, "f", "true", vec![9; 3]).await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");

    // The shell's child may not have become it yet.
    let both = async {
        while processes(&guest).await != ["sleep 1000", "sleep 1000"] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .is_err()
    {
        panic!("{:?}", processes(&guest).await);
    }
    let request = StatsRequest {
        container_id: "c".into(),
        ..StatsRequest::default()
    };
    let stats = guest.client.stats(context(), &request).await.unwrap();
    assert!(stats.files["cpu.stat"].contains("usage_usec"), "{stats:?}");
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_process_that_nobody_waits_for_any_more_is_killed() {
    let guest = Guest::start().await;
    guest.run("c", "exec sleep 1000", Stdio::default()).await;
    exec(&guest, "e", "exec sleep 999", Vec::new())
        .await
        .unwrap();
    // The shell may not have become it yet.
    while !processes(&guest).await.contains(&"sleep 999".to_owned()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let limit = Duration::from_millis(100);
    tokio::time::timeout(limit, async {
        let client = guest.connect();
        let request = WaitRequest {
            container_id: "c".into(),
            exec_id: "e".into(),
            ..WaitRequest::default()
        };
        client.wait(context(), &request).await
    })
    .await
    .unwrap_err();
    for _ in 0..100 {
        if processes(&guest).await == ["sleep 1000"] {
            guest.delete("c").await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", processes(&guest).await);
}

#[tokio::test]
async fn a_paused_container_takes_a_process_when_it_goes_on() {
    let guest = Guest::start().await;
    guest.run("c", "exec sleep 1000", Stdio::default()).await;
    let pause = PauseRequest {
        container_id: "c".into(),
        ..PauseRequest::default()
    };
    let resume = ResumeRequest {
        container_id: "c".into(),
        ..ResumeRequest::default()
    };
    let (code, _) = refusal(guest.client.resume(context(), &resume).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    guest.client.pause(context(), &pause).await.unwrap();
    let (code, message) = refusal(exec(&guest, "e", "true", Vec::new()).await);
    assert_eq!(
        (code, &*message),
        (Code::FAILED_PRECONDITION, "container \"c\" is paused")
    );
    let mut patient = request("e", "exit 4", Vec::new());
    patient.ignore_paused = true;
    let client = guest.connect();
    let waiting = tokio::spawn(async move { client.exec(context(), &patient).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    guest.client.resume(context(), &resume).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(wait(&guest, "e").await.unwrap().exit_code, 4);
    guest.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_process_that_is_stopped_before_it_is_a_program_holds_up_nobody_else() {
    let guest = Guest::start().await;
    // Stops whatever appears beside it, as fast as it can.
    let script = "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || kill -STOP $p; done; done";
    guest.run("c", script, Stdio::default()).await;
    guest.run("d", "exec sleep 1000", Stdio::default()).await;
    let client = guest.connect();
    let stopped = request("e", "true", Vec::new());
    let stopped = tokio::spawn(async move { client.exec(context(), &stopped).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let was_stopped = !stopped.is_finished();
    for number in 0..3 {
        let mut request = request(&format!("e{number}"), "exit 4", Vec::new());
        request.container_id = "d".into();
        let answer = tokio::time::timeout(
            Duration::from_secs(5),
            guest.client.exec(context(), &request),
        );
        answer.await.expect("an answer").unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), stopped).await;
    if was_stopped {
        let (code, message) = refusal(ended.unwrap().unwrap());
        assert_eq!(code, Code::INTERNAL, "{message}");
        assert!(
            message.contains("has not answered for 15 seconds"),
            "{message}"
        );
    }
    // Nothing of it is left.
    let (code, _) = refusal(wait(&guest, "e").await);
    assert_eq!(code, Code::NOT_FOUND);
    guest.delete("c").await.unwrap();
    guest.delete("d").await.unwrap();
}

#[tokio::test]
async fn a_process_that_nobody_begins_to_wait_for_is_killed() {
    let guest = Guest::start().await;
    guest.run("c", "exec sleep 1000", Stdio::default()).await;
    // The time of the first is over when the second is killed.
    exec(&guest, "short", "exit 3", Vec::new()).await.unwrap();
    exec(&guest, "e", "exec sleep 999", Vec::new())
        .await
        .unwrap();
    for _ in 0..600 {
        if processes(&guest).await == ["sleep 1000"] {
            for id in ["e", "short"] {
                let (code, _) = refusal(wait(&guest, id).await);
                assert_eq!(code, Code::NOT_FOUND, "{id}");
            }
            guest.delete("c").await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", processes(&guest).await);
}

#[tokio::test]
async fn a_signal_reaches_every_process_of_many() {
    let guest = Guest::start().await;
    let script = "for i in $(seq 600); do sleep 1000 & done; echo there; wait; exec sleep 1001";
    let (output, stdout) = guest.stream(1);
    let stdio = Stdio {
        stdout,
        ..Stdio::default()
    };
    guest.run("c", script, stdio).await;
    let output = read_all(output);
    while processes(&guest).await.len() < 601 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // But the first, which a signal from outside its pid namespace does not end.
    guest.signal("c", 15, true).await.unwrap();
    while processes(&guest).await != ["sleep 1001"] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guest.delete("c").await.unwrap();
    assert_eq!(join(output).await, b"there\n");
}
