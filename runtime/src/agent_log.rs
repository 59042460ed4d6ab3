//! The agent's log, written to a file that cannot grow without bound.
//!
//! Everything here comes from the guest: one connection at a time, so many in all, so many bytes a
//! second, and lines of a length. A guest that writes faster is kept waiting.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::Duration;

use cloister_protocol::LOG_LINE_MAX;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::text::printable;

/// The most the file holds, in bytes; then its older half goes.
pub const FILE_MAX: u64 = 256 * 1024;
/// How many connections a guest may make in its life.
const CONNECTIONS_MAX: u32 = 16;
/// How much is taken at once, in bytes.
const BLOCK: usize = 4096;
/// How long a full block keeps the next one waiting: a quarter of a mebibyte a second.
const PACE: Duration = Duration::from_millis(15);

/// Writes what comes over the connections, until no more can come.
pub async fn collect(mut connections: mpsc::Receiver<UnixStream>, file: File) {
    let mut file = file;
    let mut count = 0;
    while let Some(stream) = connections.recv().await {
        count += 1;
        if count > CONNECTIONS_MAX {
            log::warn!("the guest has opened its log {CONNECTIONS_MAX} times, no more is written");
            return;
        }
        if let Err(e) = copy(stream, &mut file).await {
            log::warn!("cannot write the agent's log: {e}");
        }
    }
}

async fn copy(mut stream: UnixStream, file: &mut File) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut line = Vec::new();
    loop {
        let next = Instant::now() + PACE;
        // A guest that breaks the connection ends the log as well as one that closes it.
        let count = stream.read(&mut block).await.unwrap_or(0);
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        for &byte in bytes {
            if byte != b'\n' && line.len() < LOG_LINE_MAX {
                line.push(byte);
                continue;
            }
            write_line(file, &line)?;
            line.clear();
            if byte != b'\n' {
                line.push(byte);
            }
        }
        if count == BLOCK {
            sleep_until(next).await;
        }
    }
    if !line.is_empty() {
        write_line(file, &line)?;
    }
    Ok(())
}

fn write_line(file: &mut File, line: &[u8]) -> io::Result<()> {
    let mut text = printable(&String::from_utf8_lossy(line), LOG_LINE_MAX);
    text.push('\n');
    let len = file.stream_position()?;
    if len + text.len() as u64 > FILE_MAX {
        drop_older_half(file, len)?;
    }
    file.write_all(text.as_bytes())
}

fn drop_older_half(file: &mut File, len: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(len / 2))?;
    let mut kept = Vec::new();
    file.read_to_end(&mut kept)?;
    // The half may begin in the middle of a line.
    let start = kept.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(kept.get(start..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn collected(send: impl AsyncFnOnce(&mpsc::Sender<UnixStream>)) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let log = file.try_clone().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = mpsc::channel(1);
            let task = tokio::spawn(collect(receiver, log));
            send(&sender).await;
            drop(sender);
            task.await.unwrap();
        });
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    async fn connect(sender: &mpsc::Sender<UnixStream>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        sender.send(theirs).await.unwrap();
        ours
    }

    #[test]
    fn lines_arrive_clean_and_an_endless_line_is_broken() {
        let text = collected(async |sender| {
            let mut stream = connect(sender).await;
            stream.write_all(b"one\ntw\x1b[2Jo\n").await.unwrap();
            stream.write_all(&[b'x'; LOG_LINE_MAX + 10]).await.unwrap();
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["one", "tw [2Jo"]);
        assert_eq!(lines[2].len(), LOG_LINE_MAX);
        assert_eq!(lines[3], "x".repeat(10));
    }

    #[test]
    fn the_file_is_bounded_and_keeps_the_newest() {
        let text = collected(async |sender| {
            let mut stream = connect(sender).await;
            for n in 0..8000 {
                let line = format!("{n:06} {}\n", "y".repeat(90));
                stream.write_all(line.as_bytes()).await.unwrap();
            }
        });
        assert!(text.len() as u64 <= FILE_MAX, "{}", text.len());
        assert!(text.len() as u64 > FILE_MAX / 4, "{}", text.len());
        assert!(
            text.lines().all(|line| line.len() == 97),
            "only whole lines"
        );
        assert!(text.lines().next_back().unwrap().starts_with("007999 "));
    }

    #[test]
    fn a_guest_cannot_connect_for_ever() {
        let text = collected(async |sender| {
            for n in 0..CONNECTIONS_MAX {
                let mut stream = connect(sender).await;
                stream.write_all(format!("{n}\n").as_bytes()).await.unwrap();
            }
            let (_ours, theirs) = UnixStream::pair().unwrap();
            // The collector ends at this one.
            sender.send(theirs).await.unwrap();
            sender.closed().await;
        });
        assert_eq!(text.lines().count(), 16);
    }
}
