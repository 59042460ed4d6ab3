//! A guest that writes anything to its log and its console.
//!
//! `tests/fuzz 60 log`. What comes of it has to be lines that do nothing to a terminal, short and
//! few enough, whatever the bytes and however they are cut into pieces and connections.
#![no_main]

use std::io::{Read, Seek};

use arbitrary::Arbitrary;
use cloister::agent_log::{FILE_MAX, collect};
use cloister::text::{last_lines, printable};
use cloister_protocol::LOG_LINE_MAX;
use libfuzzer_sys::fuzz_target;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Connections, and the pieces written to each.
    connections: Vec<Vec<Vec<u8>>>,
    /// A piece that is repeated, to fill the file.
    filler: Vec<u8>,
    times: u8,
    max: u8,
}

/// The sign that something was cut off.
const CUT: usize = '…'.len_utf8();

fn check_line(line: &str, max: usize) {
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(line.len() <= max + CUT, "{} bytes", line.len());
}

fuzz_target!(|input: Input| {
    let mut file = tempfile::tempfile().unwrap();
    let log = file.try_clone().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let filler = input.filler.repeat(input.times.into());
    let mut all = filler.clone();
    runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(1);
        let task = tokio::spawn(collect(receiver, log));
        let pieces = input.connections.iter().map(Vec::as_slice);
        let filler = [filler];
        for pieces in pieces.chain([filler.as_slice()]) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            // After too many of them nobody takes it.
            if sender.send(theirs).await.is_err() {
                break;
            }
            for piece in pieces {
                all.extend_from_slice(piece);
                if ours.write_all(piece).await.is_err() {
                    break;
                }
            }
        }
        drop(sender);
        task.await.unwrap();
    });
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert!(text.len() as u64 <= FILE_MAX);
    text.lines().for_each(|line| check_line(line, LOG_LINE_MAX));

    // The console's log is written by the VMM as it comes.
    let console = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(console.path(), &all).unwrap();
    let lines = last_lines(console.path()).unwrap();
    assert!(lines.len() <= 20);
    lines.iter().for_each(|line| check_line(line, 240));

    let text = String::from_utf8_lossy(&all);
    let max = usize::from(input.max);
    check_line(&printable(&text, max), max);
});
