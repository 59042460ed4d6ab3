//! Connections to vsock ports of a guest, through the socket in the container's state directory.
//!
//! ```text
//!   host                         cloister-vmm
//!    │ connect, "CONNECT <port>\n"    │
//!    │───────────────────────────────▶│ asks the guest
//!    │            "OK <host port>\n"  │
//!    │◀───────────────────────────────│ then the bytes of the stream, or end-of-file at once
//! ```

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::paths::{VSOCK_SOCKET, through_fd};

/// The longest answer to `CONNECT`, in bytes: `OK 4294967295` and a newline.
const ANSWER_MAX: usize = 14;

/// How long to wait before another attempt when the VMM's queue of connections is full.
const RETRY: Duration = Duration::from_millis(5);

/// Why a guest's port could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket is not there, or nobody listens.
    #[error("cannot connect to the virtual machine")]
    Connect(#[source] io::Error),
    /// The VMM or the guest refused.
    #[error("the guest does not answer on port {0}")]
    Refused(u32),
    /// Nothing came in time.
    #[error("the guest does not answer on port {port} within {} s", limit.as_secs())]
    Timeout {
        /// The port.
        port: u32,
        /// What was waited for.
        limit: Duration,
    },
}

/// Connects to a port of the guest whose state directory is `dir`.
///
/// # Errors
/// If there is no connection within `limit`.
pub async fn connect(
    dir: impl AsFd,
    port: u32,
    limit: Duration,
) -> Result<UnixStream, ConnectError> {
    let deadline = Instant::now() + limit;
    let path = through_fd(dir.as_fd(), VSOCK_SOCKET);
    let attempt = async {
        let mut stream = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
                Err(e) => return Err(ConnectError::Connect(e)),
            }
        };
        let refused = |_| ConnectError::Refused(port);
        let request = format!("CONNECT {port}\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(refused)?;
        // Byte by byte: what follows the line is the stream's.
        let mut answer = Vec::with_capacity(ANSWER_MAX);
        while answer.last() != Some(&b'\n') && answer.len() < ANSWER_MAX {
            answer.push(stream.read_u8().await.map_err(refused)?);
        }
        if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
            Ok(stream)
        } else {
            Err(ConnectError::Refused(port))
        }
    };
    timeout_at(deadline, attempt)
        .await
        .unwrap_or(Err(ConnectError::Timeout { port, limit }))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    fn listen(dir: &Path, answer: &'static [u8]) -> std::thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(dir.join(VSOCK_SOCKET)).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).unwrap();
            stream.get_mut().write_all(answer).unwrap();
            if answer.starts_with(b"OK 7\n") {
                stream.read_to_end(&mut line).unwrap();
            }
            line
        })
    }

    fn attempt(answer: &'static [u8]) -> (Result<String, String>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let vmm = listen(dir.path(), answer);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let result = runtime.block_on(async {
            let dir = File::open(dir.path()).unwrap();
            let limit = Duration::from_secs(1);
            let mut stream = connect(&dir, 1025, limit)
                .await
                .map_err(|e| e.to_string())?;
            stream.write_all(b"mine").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            Ok(rest)
        });
        (result, vmm.join().unwrap())
    }

    #[test]
    fn the_stream_begins_right_after_the_answer() {
        let (result, sent) = attempt(b"OK 7\nfirst bytes");
        assert_eq!(result.as_deref(), Ok("first bytes"));
        assert_eq!(sent, b"CONNECT 1025\nmine");
    }

    #[test]
    fn a_refusal_and_nonsense_are_errors() {
        for answer in [b"".as_slice(), b"NO\n", b"OK 123456789012345678901\n"] {
            let (result, _) = attempt(answer);
            assert_eq!(
                result.unwrap_err(),
                "the guest does not answer on port 1025",
                "{answer:?}"
            );
        }
    }

    #[test]
    fn silence_is_not_waited_for_without_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join(VSOCK_SOCKET)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let error = runtime.block_on(async {
            let dir = File::open(dir.path()).unwrap();
            connect(&dir, 9, Duration::from_millis(50))
                .await
                .unwrap_err()
        });
        assert!(
            matches!(error, ConnectError::Timeout { port: 9, .. }),
            "{error}"
        );
    }
}
