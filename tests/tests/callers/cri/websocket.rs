//! The streams that the kubelet's clients are served: a WebSocket (RFC 6455) whose messages begin with the number of
//! their channel (`v4.channel.k8s.io`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::harness::LIMIT;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
/// The last frame of a message, and a frame with a masking key: bits beside the opcode and the length.
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A connection that has become a WebSocket.
pub(crate) struct WebSocket(BufReader<TcpStream>);

impl WebSocket {
    /// Opens what the service has named in answer to a request.
    pub(crate) fn open(url: &str) -> Self {
        let place = url.strip_prefix("http://").expect("HTTP without TLS");
        let (address, path) = place.split_once('/').expect("a path");
        let mut stream = TcpStream::connect(address).expect(url);
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a limit");
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .expect(url);
        let mut socket = BufReader::new(stream);
        let mut status = String::new();
        socket.read_line(&mut status).expect(url);
        assert!(status.starts_with("HTTP/1.1 101 "), "{url}: {status}");
        let mut header = String::new();
        while header != "\r\n" {
            header.clear();
            let length = socket.read_line(&mut header).expect(url);
            assert!(length > 0, "{url}: the headers have no end");
        }
        Self(socket)
    }

    /// Sends bytes on a channel.
    pub(crate) fn send(&mut self, channel: u8, bytes: &[u8]) {
        let length = u8::try_from(bytes.len() + 1).ok().filter(|n| *n < 126);
        let length = length.expect("a message whose length fits its header");
        // What a client sends is masked, here with a key that changes nothing.
        let head = [FINAL | BINARY, MASKED | length, 0, 0, 0, 0, channel];
        let frame = [&head[..], bytes].concat();
        self.0.get_mut().write_all(&frame).expect("the server");
    }

    /// Takes the next message: its channel, and what came on it. None at the end.
    pub(crate) fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let opcode = self.number(1) & 0x0f;
            let length = match self.number(1) {
                126 => self.number(2),
                127 => self.number(8),
                length => length,
            };
            assert!(length < 1 << 20, "a frame of {length} bytes");
            let length = usize::try_from(length).expect("a length");
            let mut message = vec![0; length];
            self.0.read_exact(&mut message).expect("a whole frame");
            match u8::try_from(opcode).expect("four bits") {
                CLOSE => return None,
                TEXT | BINARY => {
                    let (channel, bytes) = message.split_first()?;
                    return Some((*channel, bytes.to_vec()));
                }
                // Of a ping nobody needs to know.
                _ => {}
            }
        }
    }

    /// Takes what comes on `channel` until it holds `text`; gives all of it.
    pub(crate) fn await_text(&mut self, channel: u8, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let Some((from, bytes)) = self.take() else {
                panic!("{text:?} did not come, but {seen:?}");
            };
            if from == channel {
                seen += &String::from_utf8_lossy(&bytes);
            } else {
                println!("channel {from}: {}", String::from_utf8_lossy(&bytes));
            }
        }
        seen
    }

    /// A number of some bytes, the highest first.
    fn number(&mut self, size: usize) -> u64 {
        let mut bytes = [0; 8];
        let (_, place) = bytes.split_at_mut(8 - size);
        self.0.read_exact(place).expect("the server goes on");
        u64::from_be_bytes(bytes)
    }
}
