//! What the device's epoll set watches.

use super::connection::Key;

/// The device's epoll set.
pub(super) type Poller = crate::poll::Poller<Token>;

/// The host port of tokens that are no streams: `VMADDR_PORT_ANY`, which no stream has.
pub(super) const NO_PORT: u32 = u32::MAX;

const WAKE: u32 = 0;
const LISTENER: u32 = 1;
const FIRST_QUEUE: u32 = 2;
const FIRST_HANDSHAKE: u32 = 16;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The device's own event: look at everything.
    Wake,
    /// The listening socket.
    Listener,
    /// The kick of the queue with this index.
    Queue(u8),
    /// A host process that has not said where it wants to go; numbered by arrival, below 2³¹.
    Handshake(u32),
    /// A stream.
    Stream(Key),
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        let (high, low) = match token {
            Token::Wake => (NO_PORT, WAKE),
            Token::Listener => (NO_PORT, LISTENER),
            Token::Queue(index) => (NO_PORT, FIRST_QUEUE + u32::from(index & 7)),
            Token::Handshake(number) => (NO_PORT, FIRST_HANDSHAKE + (number & (u32::MAX >> 1))),
            Token::Stream(key) => (key.host_port, key.guest_port),
        };
        Self::from(high) << 32 | Self::from(low)
    }
}

impl From<u64> for Token {
    fn from(data: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        let (high, low) = ((data >> 32) as u32, data as u32);
        if high != NO_PORT {
            return Self::Stream(Key {
                host_port: high,
                guest_port: low,
            });
        }
        match low {
            WAKE => Self::Wake,
            LISTENER => Self::Listener,
            FIRST_HANDSHAKE.. => Self::Handshake(low - FIRST_HANDSHAKE),
            #[expect(clippy::cast_possible_truncation, reason = "below 16")]
            _ => Self::Queue((low - FIRST_QUEUE) as u8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart() {
        let key = |host_port, guest_port| {
            Token::Stream(Key {
                host_port,
                guest_port,
            })
        };
        let tokens = [
            Token::Wake,
            Token::Listener,
            Token::Queue(0),
            Token::Queue(2),
            Token::Handshake(0),
            Token::Handshake(u32::MAX >> 1),
            key(0, 0),
            key(1, u32::MAX),
            key(NO_PORT - 1, 0),
        ];
        for token in tokens {
            assert_eq!(Token::from(u64::from(token)), token);
        }
    }
}
