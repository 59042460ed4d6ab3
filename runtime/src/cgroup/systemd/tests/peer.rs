//! The other end of a connection to systemd, with or without a bus between: it takes every call apart by
//! its signature, and answers as a test has it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::super::{Manager, Socket};

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

pub(super) fn decode(signature: &str, bytes: &[u8], at: usize) -> String {
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
pub(super) enum Answer {
    Return(&'static str, Vec<u8>),
    Error(&'static str, &'static str),
    /// A job that ends: its path and its result.
    Ended(&'static str, &'static str),
    Raw(Vec<u8>),
    HangUp,
}

pub(super) fn text(value: &str) -> Vec<u8> {
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
pub(super) fn message(kind: u8, fields: &[(u8, char, &str)], body: &[u8]) -> Vec<u8> {
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

pub(super) fn job_removed(path: &str, result: &str) -> Vec<u8> {
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
pub(super) struct Peer {
    pub(super) dir: TempDir,
    is_bus: bool,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    pub(super) fn new(
        is_bus: bool,
        mut answer: impl FnMut(&str) -> Vec<Answer> + Send + 'static,
    ) -> Self {
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
    pub(super) fn willing(is_bus: bool) -> Self {
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

    pub(super) fn socket(&self) -> Socket {
        Socket {
            path: self.dir.path().join("socket"),
            is_bus: self.is_bus,
        }
    }

    pub(super) fn manager(&self) -> Manager {
        Manager::open(&[self.socket()]).unwrap()
    }

    /// What it was called with since it was last asked, greetings left out.
    pub(super) fn calls(&self) -> Vec<String> {
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
