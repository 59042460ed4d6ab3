//! Against a peer that takes messages apart by their signatures alone, as D-Bus prescribes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::wire::Message;
use super::*;

const OVERHEAD: Overhead = Overhead {
    memory_bytes: 1000,
    pids: 64,
};

fn resources(value: Json) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn unit() -> Unit {
    Unit {
        name: "cri-1.scope".into(),
        slice: "a-b.slice".into(),
    }
}

/// Values taken out of a message, each written as text.
struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Decoder<'_> {
    fn number(&mut self, size: usize) -> u64 {
        while !self.at.is_multiple_of(size) {
            assert_eq!(self.bytes[self.at], 0, "padding");
            self.at += 1;
        }
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.bytes[self.at..self.at + size]);
        self.at += size;
        u64::from_le_bytes(value)
    }

    fn text(&mut self, len: u64) -> String {
        let len = usize::try_from(len).unwrap();
        let text = std::str::from_utf8(&self.bytes[self.at..self.at + len]).unwrap();
        assert_eq!(self.bytes[self.at + len], 0, "end of {text:?}");
        self.at += len + 1;
        text.to_owned()
    }

    /// One value of the type with which `signature` begins. Returns what follows that.
    fn value<'s>(&mut self, signature: &'s str, out: &mut String) -> &'s str {
        let rest = &signature[1..];
        match &signature[..1] {
            "y" => *out += &self.number(1).to_string(),
            "u" | "i" => *out += &self.number(4).to_string(),
            "t" => *out += &self.number(8).to_string(),
            "b" => *out += ["no", "yes"][usize::try_from(self.number(4)).unwrap()],
            "s" | "o" => {
                let len = self.number(4);
                *out += &format!("{:?}", self.text(len));
            }
            "g" => {
                let len = self.number(1);
                *out += &self.text(len);
            }
            "v" => {
                let len = self.number(1);
                let inner = self.text(len);
                assert_eq!(self.value(&inner, out), "");
            }
            "a" => {
                let len = usize::try_from(self.number(4)).unwrap();
                let align = match &rest[..1] {
                    "(" | "t" => 8,
                    "y" => 1,
                    _ => 4,
                };
                while !self.at.is_multiple_of(align) {
                    assert_eq!(self.bytes[self.at], 0, "padding");
                    self.at += 1;
                }
                let end = self.at + len;
                *out += "[";
                while self.at < end {
                    self.value(rest, out);
                    *out += if self.at < end { " " } else { "" };
                }
                assert_eq!(self.at, end, "length of an array");
                *out += "]";
                // The rest after one element's type, without taking an element.
                return after_one(rest);
            }
            "(" => {
                while !self.at.is_multiple_of(8) {
                    self.number(1);
                }
                let mut inside = rest;
                *out += "(";
                while !inside.starts_with(')') {
                    inside = self.value(inside, out);
                    *out += if inside.starts_with(')') { "" } else { " " };
                }
                *out += ")";
                return &inside[1..];
            }
            other => panic!("type {other}"),
        }
        rest
    }
}

/// What follows the first type of a signature.
fn after_one(signature: &str) -> &str {
    match &signature[..1] {
        "a" => after_one(&signature[1..]),
        "(" => {
            let mut rest = &signature[1..];
            while !rest.starts_with(')') {
                rest = after_one(rest);
            }
            &rest[1..]
        }
        _ => &signature[1..],
    }
}

fn decode(signature: &str, bytes: &[u8], at: usize) -> String {
    let mut decoder = Decoder { bytes, at };
    let mut out = Vec::new();
    let mut rest = signature;
    while !rest.is_empty() {
        let mut text = String::new();
        rest = decoder.value(rest, &mut text);
        out.push(text);
    }
    assert_eq!(decoder.at, bytes.len(), "all of {signature}");
    out.join(", ")
}

/// What the peer does after a call.
enum Answer {
    Return(&'static str, Vec<u8>),
    Error(&'static str, &'static str),
    /// A job that ends: its path and its result.
    Ended(&'static str, &'static str),
    Raw(Vec<u8>),
    HangUp,
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(value.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes.push(0);
    bytes
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    while !bytes.len().is_multiple_of(to) {
        bytes.push(0);
    }
}

/// A message with header fields of types `s`, `o`, `g` and `u`.
fn message(kind: u8, fields: &[(u8, char, &str)], body: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (code, kind, value) in fields {
        pad(&mut all, 8);
        all.extend([*code, 1, u8::try_from(*kind).unwrap(), 0]);
        match kind {
            'g' => {
                all.push(u8::try_from(value.len()).unwrap());
                all.extend(value.as_bytes());
                all.push(0);
            }
            'u' => all.extend(value.parse::<u32>().unwrap().to_le_bytes()),
            _ => all.extend(text(value)),
        }
    }
    let mut bytes = vec![b'l', kind, 1, 1];
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    bytes.extend(u32::try_from(all.len()).unwrap().to_le_bytes());
    bytes.extend(all);
    pad(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

fn job_removed(path: &str, result: &str) -> Vec<u8> {
    let mut body = 5_u32.to_le_bytes().to_vec();
    for value in [path, "some.scope", result] {
        pad(&mut body, 4);
        body.extend(text(value));
    }
    let fields = [
        (1, 'o', "/org/freedesktop/systemd1"),
        (2, 's', "org.freedesktop.systemd1.Manager"),
        (3, 's', "JobRemoved"),
        (7, 's', ":1.1"),
        (8, 'g', "uoss"),
    ];
    message(4, &fields, &body)
}

/// systemd, as far as it is spoken to.
struct Peer {
    dir: TempDir,
    is_bus: bool,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    fn new(is_bus: bool, mut answer: impl FnMut(&str) -> Vec<Answer> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&calls);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream, is_bus, &log, &mut answer);
            }
        });
        Self { dir, is_bus, calls }
    }

    /// One that does as it is told.
    fn willing(is_bus: bool) -> Self {
        Self::new(is_bus, |call| match call {
            "StartTransientUnit" | "StopUnit" => vec![
                Answer::Ended("/job/1", "failed"),
                Answer::Return("o", text("/job/2")),
                Answer::Ended("/job/3", "canceled"),
                Answer::Ended("/job/2", "done"),
            ],
            "Get" => {
                let mut body = vec![1, b's', 0];
                pad(&mut body, 4);
                body.extend(text("255.4-1"));
                vec![Answer::Return("v", body)]
            }
            _ => vec![Answer::Return("", Vec::new())],
        })
    }

    fn socket(&self) -> Socket {
        Socket {
            path: self.dir.path().join("socket"),
            is_bus: self.is_bus,
        }
    }

    fn manager(&self) -> Manager {
        Manager::open(&[self.socket()]).unwrap()
    }

    /// What it was called with since it was last asked, greetings left out.
    fn calls(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| !call.starts_with("Subscribe"));
        calls
    }
}

fn serve(
    mut stream: UnixStream,
    is_bus: bool,
    calls: &Mutex<Vec<String>>,
    answer: &mut impl FnMut(&str) -> Vec<Answer>,
) {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hex: String = uid.chars().map(|digit| format!("3{digit}")).collect();
    let mut greeting = [0; 64];
    let len = stream.read(&mut greeting).unwrap();
    // All of it at once, and nothing after it before the answer.
    let expected = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n");
    assert_eq!(std::str::from_utf8(&greeting[..len]), Ok(&*expected));
    let reply = b"OK 0123456789abcdef0123456789abcdef\r\n";
    stream.write_all(reply).unwrap();
    let mut expected_serial = 1;
    loop {
        let mut bytes = vec![0; 16];
        if stream.read_exact(&mut bytes).is_err() {
            return;
        }
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (body, serial, fields) = (number(4), number(8), number(12));
        assert_eq!(&bytes[..4], [b'l', 1, 0, 1]);
        assert_eq!(serial, expected_serial);
        expected_serial += 1;
        let header = 16 + usize::try_from(fields).unwrap();
        let start = header.next_multiple_of(8);
        bytes.resize(start + usize::try_from(body).unwrap(), 0);
        stream.read_exact(&mut bytes[16..]).unwrap();
        let header = decode("a(yv)", &bytes[..header], 12);
        let field = |code: u32| {
            let (_, rest) = header.split_once(&format!("({code} "))?;
            let end = rest.find(") (").or(rest.find(")]"))?;
            Some(rest[..end].trim_matches('"').to_owned())
        };
        let signature = field(8).unwrap_or_default();
        let args = decode(&signature, &bytes[start..], 0);
        let member = field(3).unwrap();
        let (destination, path) = match &*member {
            "Hello" | "AddMatch" => ("org.freedesktop.DBus", "/org/freedesktop/DBus"),
            _ => ("org.freedesktop.systemd1", "/org/freedesktop/systemd1"),
        };
        assert_eq!(field(1).unwrap(), path);
        assert_eq!(field(6), is_bus.then(|| destination.to_owned()));
        let interface = match &*member {
            "Hello" | "AddMatch" => "org.freedesktop.DBus",
            "Get" => "org.freedesktop.DBus.Properties",
            _ => "org.freedesktop.systemd1.Manager",
        };
        assert_eq!(field(2).unwrap(), interface);
        calls.lock().unwrap().push(format!("{member}({args})"));
        let serial = serial.to_string();
        for answer in answer(&member) {
            let bytes = match answer {
                Answer::Return("", body) => message(2, &[(5, 'u', &serial)], &body),
                Answer::Return(kind, body) => {
                    message(2, &[(5, 'u', &serial), (8, 'g', kind)], &body)
                }
                Answer::Error(name, says) => {
                    let fields = [(4, 's', name), (5, 'u', &*serial), (8, 'g', "s")];
                    message(3, &fields, &text(says))
                }
                Answer::Ended(path, result) => job_removed(path, result),
                Answer::Raw(bytes) => bytes,
                Answer::HangUp => return,
            };
            if stream.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_scope_is_started_with_its_process_and_its_limits() {
    let peer = Peer::willing(true);
    let limits = resources(json!({
        "memory": {"limit": 5000, "swap": 8000, "reservation": 4000},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1,9"},
        "pids": {"limit": 5},
    }));
    let annotations = [
        ("DefaultDependencies", "true"),
        ("TimeoutStopSec", "10"),
        ("Nice", "-5"),
    ];
    let annotations = annotations.map(|(name, value)| {
        let name = format!("org.systemd.property.{name}");
        (name, value.to_owned())
    });
    let asked = from_annotations(&annotations.into()).unwrap();
    let rounded = peer
        .manager()
        .start(&unit(), Version::V2, &limits, OVERHEAD, &asked, 4711);
    assert_eq!(rounded.unwrap(), limits);
    assert_eq!(
        peer.calls(),
        [
            "Hello()",
            "AddMatch(\"type='signal',sender='org.freedesktop.systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved'\")",
            "Get(\"org.freedesktop.systemd1.Manager\", \"Version\")",
            "StartTransientUnit(\"cri-1.scope\", \"replace\", \
             [(\"Description\" \"Cloister sandbox cri-1.scope\") (\"Slice\" \"a-b.slice\") \
             (\"Delegate\" yes) (\"PIDs\" [4711]) (\"MemoryAccounting\" yes) \
             (\"CPUAccounting\" yes) (\"IOAccounting\" yes) (\"TasksAccounting\" yes) \
             (\"DefaultDependencies\" yes) (\"Nice\" 4294967291) \
             (\"TimeoutStopUSec\" 10000000) (\"MemoryMax\" 6000) (\"MemoryLow\" 5000) \
             (\"MemorySwapMax\" 3000) (\"CPUWeight\" 100) (\"CPUQuotaPeriodUSec\" 100000) \
             (\"CPUQuotaPerSecUSec\" 500000) (\"AllowedCPUs\" [3 2]) (\"TasksMax\" 64)], [])"
        ]
    );
}

#[test]
fn without_a_bus_there_is_only_systemd() {
    let peer = Peer::willing(false);
    let none = LinuxResources::default();
    let mut manager = peer.manager();
    manager
        .start(&unit(), Version::V1, &none, OVERHEAD, &Vec::new(), 1)
        .unwrap();
    let calls = peer.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(
        calls[0].contains("(\"BlockIOAccounting\" yes)"),
        "{}",
        calls[0]
    );
    manager.stop("cri-1.scope").unwrap();
    assert_eq!(
        peer.calls(),
        [
            "StopUnit(\"cri-1.scope\", \"replace\")",
            "ResetFailedUnit(\"cri-1.scope\")"
        ]
    );
}

#[test]
fn a_slice_takes_no_process() {
    let unit = Unit {
        name: "a-b-c.slice".into(),
        slice: "a-b.slice".into(),
    };
    let all = basic(&unit, Version::V2, 1);
    let has = |name| all.iter().any(|(set, _)| set == name);
    assert!(has("Wants") && !has("PIDs") && !has("Slice") && !has("Delegate"));
}

#[test]
fn limits_are_changed() {
    let peer = Peer::willing(true);
    let limits = resources(json!({"memory": {"limit": -1}}));
    let mut manager = peer.manager();
    manager
        .update(&unit(), Version::V2, &limits, OVERHEAD)
        .unwrap();
    let none = LinuxResources::default();
    manager
        .update(&unit(), Version::V2, &none, OVERHEAD)
        .unwrap();
    assert_eq!(
        peer.calls()[2..],
        [format!(
            "SetUnitProperties(\"cri-1.scope\", yes, [(\"MemoryMax\" {0}) (\"MemorySwapMax\" {0})])",
            u64::MAX
        )]
    );
}

fn failure(answer: impl FnMut(&str) -> Vec<Answer> + Send + 'static) -> (String, Vec<String>) {
    let peer = Peer::new(false, answer);
    let none = LinuxResources::default();
    let result = Manager::open(&[peer.socket()]).and_then(|mut manager| {
        manager.start(&unit(), Version::V2, &none, OVERHEAD, &Vec::new(), 1)
    });
    let calls = peer.calls();
    let names = calls
        .iter()
        .map(|call| call.split('(').next().unwrap().to_owned());
    (crate::text::chain(&result.unwrap_err()), names.collect())
}

#[test]
fn what_systemd_refuses_is_told() {
    let (message, _) = failure(|call| match call {
        "Subscribe" => vec![Answer::Error("x.AlreadySubscribed", "again?")],
        _ => vec![Answer::Error("x.AccessDenied", "not you")],
    });
    assert_eq!(message, "systemd has refused: not you (x.AccessDenied)");
}

#[test]
fn what_is_left_of_a_unit_is_reset_once() {
    let exists = || Answer::Error("org.freedesktop.systemd1.UnitExists", "it is there");
    let (message, calls) = failure(move |call| match call {
        "StartTransientUnit" => vec![exists()],
        _ => vec![Answer::Return("", Vec::new())],
    });
    assert!(
        message.starts_with("systemd has refused: it is there"),
        "{message}"
    );
    let start = "StartTransientUnit";
    assert_eq!(calls, [start, "ResetFailedUnit", start]);
}

#[test]
fn a_job_that_fails_is_told() {
    let (message, calls) = failure(|call| match call {
        "StartTransientUnit" => vec![
            // Over before the call returns.
            Answer::Ended("/job/1", "timeout"),
            Answer::Return("o", text("/job/1")),
        ],
        _ => vec![Answer::Return("", Vec::new())],
    });
    assert_eq!(message, "the job of systemd has ended with \"timeout\"");
    assert_eq!(calls, ["StartTransientUnit", "ResetFailedUnit"]);
}

#[test]
fn a_peer_that_speaks_something_else_does_no_harm() {
    let raw = |bytes: Vec<u8>| {
        failure(move |call| match call {
            "Subscribe" => vec![Answer::Return("", Vec::new())],
            _ => vec![Answer::Raw(bytes.clone()), Answer::HangUp],
        })
        .0
    };
    let lost = raw(Vec::new());
    assert!(
        lost.starts_with("the connection to systemd is lost: "),
        "{lost}"
    );
    let short = raw(vec![b'l', 2, 0]);
    assert!(
        short.starts_with("the connection to systemd is lost: "),
        "{short}"
    );
    let malformed = "cannot speak to systemd: a message from it is malformed";
    assert_eq!(raw(vec![b'x'; 64]), malformed);
    let too_long = "cannot speak to systemd: a message from it is too long";
    let mut long = message(2, &[(5, 'u', "2")], b"");
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(raw(long), too_long);
    let mut field = message(2, &[(5, 'u', "2"), (8, 'g', "o")], &text("/job/1"));
    field[17] = 200;
    assert_eq!(raw(field), malformed);
    // The reply has no job.
    assert_eq!(raw(message(2, &[(5, 'u', "2")], b"")), malformed);
    // Any message at all, cut and bent.
    let whole = job_removed("/job/1", "done");
    for at in 0..whole.len() {
        let mut bent = whole.clone();
        bent[at] ^= 0x55;
        let _ = Message::parse(&bent);
        let _ = Message::parse(&whole[..at]);
    }
}

#[test]
fn messages_of_the_other_endianness_are_understood() {
    let mut bytes = vec![b'B', 2, 1, 1];
    for number in [8_u32, 7, 15] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend([5, 1, b'u', 0, 0, 0, 0, 9, 8, 1, b'g', 0, 1, b's', 0, 0]);
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend(b"abc\0");
    let prefix = bytes.first_chunk().unwrap();
    assert_eq!(wire::length(prefix).unwrap(), bytes.len());
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.reply_to, &*message.signature), (9, "s"));
    assert_eq!(message.body().text().unwrap(), "abc");
}

#[test]
fn the_next_socket_is_tried_and_the_first_error_told() {
    let peer = Peer::willing(false);
    let nobody = |name: &str| Socket {
        path: peer.dir.path().join(name),
        is_bus: true,
    };
    Manager::open(&[nobody("first"), peer.socket()])
        .map(drop)
        .unwrap();
    let error = Manager::open(&[nobody("first"), nobody("second")])
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().ends_with("/first"), "{error}");
}

fn v2(systemd: u32, value: Json) -> Vec<String> {
    let (all, _) = properties::of(Version::V2, &resources(value), OVERHEAD, systemd).unwrap();
    let line = |(name, value): (String, Value)| match value {
        Value::U64(u64::MAX) => format!("{name}=infinity"),
        Value::U64(number) => format!("{name}={number}"),
        Value::Bytes(bytes) => format!("{name}={bytes:?}"),
        other => format!("{name}={other:?}"),
    };
    all.into_iter().map(line).collect()
}

#[test]
fn what_an_older_systemd_does_not_know_is_left_to_the_files() {
    let cpu = json!({"cpu": {"period": 50_000, "cpus": "0", "mems": "1", "idle": 1}});
    assert_eq!(v2(241, cpu.clone()), ["CPUQuotaPerSecUSec=infinity"]);
    assert_eq!(
        v2(252, cpu),
        [
            "CPUWeight=0",
            "CPUQuotaPeriodUSec=50000",
            "CPUQuotaPerSecUSec=infinity",
            "AllowedCPUs=[1]",
            "AllowedMemoryNodes=[2]"
        ]
    );
    let group = resources(json!({"unified": {"memory.oom.group": "1"}}));
    assert!(properties::at_creation(&group, 252).is_empty());
    assert_eq!(properties::at_creation(&group, 253).len(), 1);
}

#[test]
fn a_quota_is_rounded_up_to_what_systemd_counts_in() {
    let limits = resources(json!({"cpu": {"quota": 33_333, "period": 100_000}}));
    let (_, rounded) = properties::of(Version::V2, &limits, OVERHEAD, 255).unwrap();
    let quota = |limits: &LinuxResources| limits.cpu().as_ref().unwrap().quota();
    assert_eq!(quota(&rounded), Some(34_000));
    let lines = v2(255, json!({"cpu": {"quota": 33_333}}));
    assert_eq!(lines, ["CPUQuotaPerSecUSec=340000"]);
}

#[test]
fn unified_files_have_properties() {
    assert_eq!(
        v2(
            255,
            json!({"unified": {"cpu.max": "50000 200000", "cpu.weight": "7", "memory.high": "5",
            "memory.max": "max", "memory.swap.max": "3", "pids.max": "9", "cpuset.cpus": "0",
            "io.max": "8:0 rbps=1"}})
        ),
        [
            "CPUQuotaPeriodUSec=200000",
            "CPUQuotaPerSecUSec=250000",
            "CPUWeight=7",
            "AllowedCPUs=[1]",
            "MemoryHigh=1005",
            "MemoryMax=infinity",
            "MemorySwapMax=3",
            "TasksMax=64"
        ]
    );
    assert_eq!(
        v2(
            255,
            json!({"unified": {"cpu.idle": "1", "cpu.weight": "7"}})
        ),
        ["CPUWeight=0"]
    );
    let bad = resources(json!({"unified": {"memory.max": "much"}}));
    let error = properties::of(Version::V2, &bad, OVERHEAD, 255).unwrap_err();
    assert_eq!(error.to_string(), "memory.max: \"much\" is not understood");
}

#[test]
fn versions_come_in_many_forms() {
    for (text, version) in [
        ("255.4-1ubuntu8", Some(255)),
        ("v245.4-1.fc32", Some(245)),
        ("\"v247\"", Some(247)),
        ("258~rc1", Some(258)),
        ("", None),
        ("x", None),
    ] {
        assert_eq!(parse_version(text), version, "{text}");
    }
}
