//! A `SOCK_SEQPACKET` socket that carries JSON packets and file descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{MAX_FDS, MAX_PACKET};

/// One end of a control socket.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// Why a packet could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket pair could not be made.
    #[error("cannot make a control socket pair")]
    Create(#[source] Errno),
    /// Sending failed; `EPIPE` and `ECONNRESET` mean that the peer is gone.
    #[error("cannot send a control packet")]
    Send(#[source] Errno),
    /// Receiving failed.
    #[error("cannot receive a control packet")]
    Receive(#[source] Errno),
    /// The packet or its descriptors did not fit: the peer broke the contract.
    #[error("control packet exceeds {MAX_PACKET} bytes or {MAX_FDS} descriptors")]
    TooLarge,
    /// The packet is not a message of the expected kind.
    #[error("malformed control packet")]
    Malformed(#[source] serde_json::Error),
}

impl Channel {
    /// Makes a connected pair, both ends close-on-exec.
    ///
    /// # Errors
    /// [`ChannelError::Create`] if the process is out of descriptors.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(ChannelError::Create)?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// Takes over a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends one message, and `fds` beside it.
    ///
    /// # Errors
    /// [`ChannelError::TooLarge`] before anything is sent, [`ChannelError::Send`] if the peer is
    /// gone or, on a non-blocking socket, does not read.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let packet = serde_json::to_vec(message).map_err(ChannelError::Malformed)?;
        if packet.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(ChannelError::TooLarge);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::TooLarge);
        }
        loop {
            let sent = sendmsg(
                &self.socket,
                &[IoSlice::new(&packet)],
                &mut control,
                SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ChannelError::Send(errno)),
            }
        }
    }

    /// Waits for one message and its descriptors; `None` when the peer has closed its end.
    ///
    /// # Errors
    /// [`ChannelError::Receive`] (with `EAGAIN` on a non-blocking socket that has nothing to read),
    /// [`ChannelError::TooLarge`] or [`ChannelError::Malformed`] if the peer broke the contract.
    /// Descriptors of a refused packet are closed.
    pub fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        // Most packets are small: asking first is cheaper than clearing the largest buffer.
        let mut packet = vec![0; self.next_length()?.min(MAX_PACKET)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let result = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut packet)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            match result {
                Err(Errno::INTR) => {}
                // A peer that dies with unread packets in its queue resets the connection.
                Err(Errno::CONNRESET) => return Ok(None),
                other => break other.map_err(ChannelError::Receive)?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ChannelError::TooLarge);
        }
        let body = packet.get(..received.bytes).unwrap_or_default();
        let message = serde_json::from_slice(body).map_err(ChannelError::Malformed)?;
        Ok(Some((message, fds)))
    }

    /// Waits for a packet, leaves it where it is, and returns its length.
    fn next_length(&self) -> Result<usize, ChannelError> {
        loop {
            // MSG_TRUNC makes the kernel tell the whole length of what did not fit.
            let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
            let mut control = RecvAncillaryBuffer::default();
            match recvmsg(&self.socket, &mut [], &mut control, flags) {
                Ok(received) => return Ok(received.bytes),
                // A peer that dies with unread packets in its queue resets the connection, which is
                // told once, before what it has sent itself.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(errno) => return Err(ChannelError::Receive(errno)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::{Event, Request};

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        a.send(&Event::GuestConnect { port: 7 }, &[writer.as_fd()])
            .unwrap();
        drop(writer);
        let (event, mut fds) = b.recv::<Event>().unwrap().unwrap();
        assert_eq!(event, Event::GuestConnect { port: 7 });
        assert_eq!(fds.len(), 1);
        let mut file = std::fs::File::from(fds.remove(0));
        file.write_all(b"through").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_closed_peer_reads_as_none() {
        let (a, b) = Channel::pair().unwrap();
        drop(a);
        assert!(b.recv::<Event>().unwrap().is_none());
    }

    #[test]
    fn a_peer_that_dies_with_unread_packets_reads_as_none() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&Request::Pause, &[]).unwrap();
        drop(a);
        assert!(b.recv::<Event>().unwrap().is_none());
    }

    #[test]
    fn the_last_words_of_a_peer_that_dies_with_unread_packets_arrive() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&Request::Pause, &[]).unwrap();
        a.send(&Event::Paused, &[]).unwrap();
        drop(a);
        let (event, _) = b.recv::<Event>().unwrap().unwrap();
        assert_eq!(event, Event::Paused);
        assert!(b.recv::<Event>().unwrap().is_none());
    }

    #[test]
    fn an_oversized_packet_is_refused_by_both_sides() {
        let (a, b) = Channel::pair().unwrap();
        let text = "x".repeat(MAX_PACKET);
        assert!(matches!(a.send(&text, &[]), Err(ChannelError::TooLarge)));
        rustix::net::send(&a, &vec![b'x'; MAX_PACKET + 1], SendFlags::empty()).unwrap();
        assert!(matches!(b.recv::<Event>(), Err(ChannelError::TooLarge)));
    }

    #[test]
    fn garbage_is_malformed() {
        let (a, b) = Channel::pair().unwrap();
        rustix::net::send(&a, b"{\"event\":\"reboot\"}", SendFlags::empty()).unwrap();
        assert!(matches!(b.recv::<Event>(), Err(ChannelError::Malformed(_))));
    }
}
