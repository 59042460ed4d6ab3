//! A bound for what a guest says in one piece.
//!
//! A message takes many times its length once it is decoded: two bytes may be a field of their own.
//! So the length that a message announces (ttrpc's header) is looked at before anything is made
//! room for, and the connection is broken if it is more than any right answer has.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Length, stream, type and flags: 4, 4, 1 and 1 bytes, the more significant first.
const HEADER_LEN: usize = 10;

/// A stream of ttrpc messages of at most `max` bytes each.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    inner: S,
    max: u32,
    header: [u8; HEADER_LEN],
    /// How much of the next header is known.
    known: usize,
    /// How much of a message is still to come.
    left: usize,
}

impl<S> Bounded<S> {
    pub(super) fn new(inner: S, max: u32) -> Self {
        Self {
            inner,
            max,
            header: [0; HEADER_LEN],
            known: 0,
            left: 0,
        }
    }

    /// Follows the messages through some bytes.
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.known) {
                *place = *first;
            }
            self.known += 1;
            bytes = rest;
            if self.known == HEADER_LEN {
                self.known = 0;
                let [a, b, c, d, ..] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]);
                if length > self.max {
                    let text = format!("a message of {length} bytes, of {} at most", self.max);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                self.left = usize::try_from(length).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let new = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.follow(new))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, 2, 0]);
        bytes.extend(vec![0xff; usize::try_from(length).unwrap()]);
        bytes
    }

    async fn read(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut reader = Bounded::new(io::Cursor::new(bytes.to_vec()), 100);
        let mut all = Vec::new();
        loop {
            let mut buffer = vec![0; piece];
            let count = reader.read(&mut buffer).await?;
            if count == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&buffer[..count]);
        }
    }

    #[tokio::test]
    async fn messages_pass_until_one_is_too_long() {
        let mut bytes = [message(0), message(100), message(7)].concat();
        for piece in [1, 3, 10, 1000] {
            assert_eq!(read(&bytes, piece).await.unwrap(), bytes);
        }
        bytes.extend(message(101));
        for piece in [1, 3, 10, 1000] {
            let error = read(&bytes, piece).await.unwrap_err();
            assert_eq!(error.to_string(), "a message of 101 bytes, of 100 at most");
        }
    }
}
