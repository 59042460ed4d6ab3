//! An agent that answers anything.
//!
//! `tests/fuzz 60 agent`. Every call has to come to an end, with an answer within the bounds that
//! the library gives or with an error that can be shown; and what is made of an answer has to be good for a terminal.
#![no_main]

use std::collections::HashMap;
use std::time::Duration;

use arbitrary::Arbitrary;
use cloister::agent::{Agent, AgentError, ProcessName};
use cloister::figures::{oom_kills, report};
use cloister::processes::Columns;
use cloister::signal::Signal;
use cloister_protocol::agent::{
    HelloResponse, Process, ProcessesResponse, StatsResponse, WaitOomResponse, WaitResponse,
};
use cloister_protocol::{PROCESSES_MAX, VERSION};
use libfuzzer_sys::fuzz_target;
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The connection ends with the last answer, so that nothing is waited for.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the agent waits for the next call.
const PATIENCE: Duration = Duration::from_millis(5);
/// The most of a guest's text in an error.
const TEXT_MAX: usize = 4096 + '…'.len_utf8();
/// A ttrpc header: length, stream, type, flags.
const HEADER_LEN: usize = 10;
const RESPONSE: u8 = 2;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Whether the first answer is a right one.
    greets: bool,
    /// Whether long answers are allowed.
    lists: bool,
    calls: Vec<(Call, Answer)>,
}

#[derive(Debug, Arbitrary)]
enum Call {
    Processes,
    Stats,
    Wait,
    WaitOom,
    Signal,
    Start,
}

#[derive(Debug, Arbitrary)]
enum Answer {
    /// What a call may be answered with, by its form.
    Message { payload: Payload, repeat: u16 },
    /// No.
    Refusal { code: i32, message: String },
    /// An answer that is no message.
    Bytes(Vec<u8>),
    /// A frame of another kind, for another call, of another length.
    Frame {
        length: u32,
        stream: u32,
        kind: u8,
        flags: u8,
        bytes: Vec<u8>,
    },
    /// Another's answer first.
    Stray { stream: u32, bytes: Vec<u8> },
    /// No frame at all.
    Raw(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Payload {
    Hello(u32),
    Process {
        numbers: [u32; 4],
        times: [u64; 2],
        state: String,
        command: String,
        omitted: u32,
    },
    Stats(Vec<(File, String)>),
    Wait(u32, u32),
    Oom(u64),
}

#[derive(Debug, Arbitrary)]
enum File {
    CpuStat,
    MemoryStat,
    MemoryEvents,
    MemoryMax,
    PidsMax,
    IoStat,
    Hugetlb(String),
    Any(String),
}

impl File {
    fn name(&self) -> String {
        match self {
            Self::CpuStat => "cpu.stat".into(),
            Self::MemoryStat => "memory.stat".into(),
            Self::MemoryEvents => "memory.events".into(),
            Self::MemoryMax => "memory.max".into(),
            Self::PidsMax => "pids.max".into(),
            Self::IoStat => "io.stat".into(),
            Self::Hugetlb(size) => format!("hugetlb.{size}.current"),
            Self::Any(name) => name.clone(),
        }
    }
}

impl Payload {
    fn bytes(&self, repeat: u16) -> Vec<u8> {
        let bytes = match self {
            Self::Hello(version) => HelloResponse {
                version: *version,
                ..HelloResponse::default()
            }
            .write_to_bytes(),
            Self::Process {
                numbers: [pid, ppid, uid, tty],
                times: [started_s, cpu_ms],
                state,
                command,
                omitted,
            } => {
                let process = Process {
                    pid: *pid,
                    ppid: *ppid,
                    uid: *uid,
                    tty: *tty,
                    started_s: *started_s,
                    cpu_ms: *cpu_ms,
                    state: state.clone(),
                    command: command.clone(),
                    ..Process::default()
                };
                ProcessesResponse {
                    processes: vec![process; repeat.into()],
                    omitted: *omitted,
                    ..ProcessesResponse::default()
                }
                .write_to_bytes()
            }
            Self::Stats(files) => StatsResponse {
                files: files
                    .iter()
                    .map(|(file, text)| (file.name(), text.repeat(usize::from(repeat % 64))))
                    .collect::<HashMap<_, _>>(),
                ..StatsResponse::default()
            }
            .write_to_bytes(),
            Self::Wait(exit_code, signal) => WaitResponse {
                exit_code: *exit_code,
                signal: *signal,
                ..WaitResponse::default()
            }
            .write_to_bytes(),
            Self::Oom(count) => WaitOomResponse {
                count: *count,
                ..WaitOomResponse::default()
            }
            .write_to_bytes(),
        };
        bytes.unwrap()
    }
}

fn frame(length: u32, stream: u32, kind: u8, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_LEN + bytes.len());
    frame.extend(length.to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend([kind, flags]);
    frame.extend(bytes);
    frame
}

fn response(stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(
        u32::try_from(bytes.len()).unwrap(),
        stream,
        RESPONSE,
        0,
        bytes,
    )
}

fn answered(stream: u32, payload: Vec<u8>) -> Vec<u8> {
    let answer = ttrpc::Response {
        payload,
        ..ttrpc::Response::default()
    };
    response(stream, &answer.write_to_bytes().unwrap())
}

impl Answer {
    fn bytes(&self, to: u32) -> Vec<u8> {
        match self {
            Self::Message { payload, repeat } => answered(to, payload.bytes(*repeat)),
            Self::Refusal { code, message } => {
                let mut answer = ttrpc::Response::default();
                let status = answer.status.mut_or_insert_default();
                status.code = protobuf::EnumOrUnknown::from_i32(*code);
                status.message.clone_from(message);
                response(to, &answer.write_to_bytes().unwrap())
            }
            Self::Bytes(bytes) => response(to, bytes),
            Self::Frame {
                length,
                stream,
                kind,
                flags,
                bytes,
            } => frame(*length, *stream, *kind, *flags, bytes),
            Self::Stray { stream, bytes } => {
                let mut both = response(*stream, bytes);
                both.extend(answered(to, Vec::new()));
                both
            }
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

/// Takes a call; gives the number of its stream.
async fn take_call(stream: &mut UnixStream) -> std::io::Result<u32> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut request = vec![0; usize::try_from(number(0)).unwrap()];
    stream.read_exact(&mut request).await?;
    Ok(number(4))
}

/// Answers one call after another, then closes the connection. Who has got no answer does not call
/// again: then comes the next answer.
async fn answer(mut stream: UnixStream, greets: bool, answers: Vec<Answer>) {
    let Ok(mut to) = take_call(&mut stream).await else {
        return;
    };
    if greets {
        let hello = HelloResponse {
            version: VERSION,
            ..HelloResponse::default()
        };
        let bytes = answered(to, hello.write_to_bytes().unwrap());
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
    for (position, answer) in answers.iter().enumerate() {
        if greets || position > 0 {
            match timeout(PATIENCE, take_call(&mut stream)).await {
                Ok(Ok(stream)) => to = stream,
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
        if stream.write_all(&answer.bytes(to)).await.is_err() {
            return;
        }
    }
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn check_error(error: &AgentError) {
    match error {
        AgentError::Refused { message, .. } | AgentError::Lost { message, .. } => {
            assert!(message.len() <= TEXT_MAX, "{} bytes", message.len());
            assert!(is_clean(message), "{message:?}");
        }
        AgentError::Version { got } => assert_ne!(*got, VERSION),
        AgentError::Timeout { .. } => panic!("{error}"),
        AgentError::Connect(_) => unreachable!("no connection is made"),
    }
}

async fn call(agent: &Agent, call: &Call) -> Result<(), AgentError> {
    let name = ProcessName::init("c");
    match call {
        Call::Processes => {
            let processes = agent.processes("c").await?;
            assert!(processes.len() <= PROCESSES_MAX);
            for columns in ["-ef", "-e", "-x"] {
                let columns = Columns::parse(&[columns.to_owned()]).unwrap();
                let table = columns.table(&processes);
                assert_eq!(table.lines().count(), processes.len() + 1);
                assert!(table.lines().all(is_clean));
            }
        }
        Call::Stats => {
            let stats = agent.stats("c").await?;
            let _ = oom_kills(&stats);
            assert!(is_clean(&serde_json::to_string(&report(&stats)).unwrap()));
        }
        Call::Wait => {
            let exit = agent.wait(name, false).await?;
            assert!(exit.code <= 255 && exit.signal <= 64, "{exit:?}");
        }
        Call::WaitOom => drop(agent.wait_oom("c", 0).await?),
        Call::Signal => agent.signal(name, Signal::KILL, false).await?,
        Call::Start => agent.start("c", None).await?,
    }
    Ok(())
}

fuzz_target!(|input: Input| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (calls, answers): (Vec<_>, Vec<_>) = input.calls.into_iter().unzip();
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = tokio::spawn(answer(theirs, input.greets, answers));
        let greeted = match input.lists {
            true => Agent::greet_for_listings(ours, LIMIT).await,
            false => Agent::greet(ours, LIMIT).await,
        };
        match greeted {
            Ok((agent, _)) => {
                for one in &calls {
                    if let Err(error) = call(&agent, one).await {
                        check_error(&error);
                        // A connection that is lost stays lost; another call may be answered.
                    }
                }
            }
            Err(error) => check_error(&error),
        }
        guest.abort();
    });
});
