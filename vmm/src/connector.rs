//! Streams that the guest asks for, handed to the owner.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cloister_virtio::vsock::{Connector, ConnectorError};
use cloister_vmm_api::{Channel, ChannelError, Event};

/// Makes a pair of connected sockets for every stream, keeps one end for the device and sends the
/// other to the owner over the control socket, which is non-blocking: an owner that does not keep
/// up costs the guest its connection, never the VMM its time.
#[derive(Debug)]
pub struct OwnerConnector {
    channel: Arc<Channel>,
}

impl OwnerConnector {
    /// Sends streams over `channel`.
    #[must_use]
    pub fn new(channel: Arc<Channel>) -> Self {
        Self { channel }
    }
}

impl Connector for OwnerConnector {
    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectorError> {
        let fail = |source| ConnectorError::Stream { port, source };
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        let event = Event::GuestConnect { port };
        match self.channel.send(&event, &[theirs.as_fd()]) {
            Ok(()) => Ok(ours),
            Err(ChannelError::Send(errno)) => Err(fail(errno.into())),
            Err(error) => Err(fail(std::io::Error::other(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn the_owner_gets_the_other_end() {
        let (owner, control) = Channel::pair().unwrap();
        let mut connector = OwnerConnector::new(Arc::new(control));
        let mut ours = connector.connect(1024).unwrap();
        ours.write_all(b"ready").unwrap();
        drop(ours);
        let (event, mut fds) = owner.recv::<Event>().unwrap().unwrap();
        assert_eq!(event, Event::GuestConnect { port: 1024 });
        let fd: OwnedFd = fds.remove(0);
        let mut text = String::new();
        UnixStream::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "ready");
    }

    #[test]
    fn an_owner_that_does_not_read_costs_a_refusal() {
        let (_owner, control) = Channel::pair().unwrap();
        rustix::io::ioctl_fionbio(&control, true).unwrap();
        let mut connector = OwnerConnector::new(Arc::new(control));
        let refused = (0..10_000).find_map(|_| connector.connect(5).err());
        let message = refused.unwrap().to_string();
        assert!(
            message.starts_with("host port 5: cannot make a stream"),
            "{message}"
        );
    }
}
