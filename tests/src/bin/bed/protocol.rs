//! What the front and the bed say to each other over one virtio-serial port.
//!
//! A session begins when the front sends [`PREAMBLE`] and a `Start` frame; the bed answers with [`PREAMBLE`], the
//! session's nonce and `Ready`, relays the command's output and ends with `Exited` or `Failed`. A port serves one
//! session at a time and many in a row. A byte stream that outlives its users may hold the rest of somebody's dead
//! session, so both sides skip whatever precedes the preamble they wait for.
//!
//! Frame: kind (1 byte), payload length (4 bytes, little-endian), payload.

use serde::{Deserialize, Serialize};

/// Opens a session. Its first byte is no frame kind, so that a decoder inside a dead session trips over it.
pub(crate) const PREAMBLE: &[u8; 8] = b"\xb5CBED\r\n\x1a";

/// No frame is longer: the longest is a `Start` with the caller's environment.
pub(crate) const MAX_PAYLOAD: usize = 16 << 20;

/// Output and input travel in pieces of at most this size, so that a resize never waits long behind them.
pub(crate) const CHUNK: usize = 32 << 10;

const HEADER: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Front to bed: run this ([`Start`]).
    Start,
    /// Front to bed: bytes for the command's standard input.
    Stdin,
    /// Front to bed: standard input has ended.
    StdinEof,
    /// Front to bed: the terminal's new size ([`WindowSize`]).
    Resize,
    /// Front to bed: tell on the command's standard error what every thread does.
    Examine,
    /// Bed to front: the command has been started.
    Ready,
    /// Bed to front: bytes from the command's standard output, or from its terminal.
    Stdout,
    /// Bed to front: bytes from the command's standard error.
    Stderr,
    /// Bed to front: the command has ended ([`Exited`]).
    Exited,
    /// Bed to front: the command could not be run ([`Failed`]).
    Failed,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Start,
            2 => Self::Stdin,
            3 => Self::StdinEof,
            4 => Self::Resize,
            5 => Self::Examine,
            16 => Self::Ready,
            17 => Self::Stdout,
            18 => Self::Stderr,
            19 => Self::Exited,
            20 => Self::Failed,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Start => 1,
            Self::Stdin => 2,
            Self::StdinEof => 3,
            Self::Resize => 4,
            Self::Examine => 5,
            Self::Ready => 16,
            Self::Stdout => 17,
            Self::Stderr => 18,
            Self::Exited => 19,
            Self::Failed => 20,
        }
    }
}

/// One command to run, with everything it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Chosen by the front; opens the bed's answer.
    pub(crate) nonce: [u8; 8],
    /// Program (looked up in `PATH` of `env`) and arguments; byte strings, as the kernel has them.
    pub(crate) argv: Vec<Vec<u8>>,
    /// The whole environment.
    pub(crate) env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory.
    pub(crate) cwd: Vec<u8>,
    /// Run on a terminal of this size instead of three pipes.
    pub(crate) terminal: Option<WindowSize>,
    /// A tree on the machine whose `usr/local` is to be installed in the bed first.
    pub(crate) stage: Option<Vec<u8>>,
    /// Paths on the machine to be copied onto the bed's tmpfs first.
    pub(crate) fast: Vec<Vec<u8>>,
    /// Forget what is cached of the machine's files first: they may have changed since the bed looked.
    pub(crate) refresh: bool,
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowSize {
    /// Height.
    pub(crate) rows: u16,
    /// Width.
    pub(crate) columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exited {
    /// It returned this.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl Exited {
    /// The exit code a shell would report.
    pub(crate) fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Why a command could not be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// The exit code a shell would report: 127 not found, 126 not executable, 125 anything else.
    pub(crate) code: u8,
    /// For the user.
    pub(crate) message: String,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it carries.
    pub(crate) kind: Kind,
    /// Its content.
    pub(crate) payload: Vec<u8>,
}

/// Appends a frame to `out`.
///
/// # Panics
/// When `payload` is longer than [`MAX_PAYLOAD`]: callers split what may be long.
pub(crate) fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    assert!(
        payload.len() <= MAX_PAYLOAD,
        "frame of {} bytes",
        payload.len()
    );
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded by MAX_PAYLOAD just above"
    )]
    let length = payload.len() as u32;
    out.push(kind.byte());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends a frame that holds `message` as JSON.
pub(crate) fn encode_json<T: Serialize>(
    kind: Kind,
    message: &T,
    out: &mut Vec<u8>,
) -> serde_json::Result<()> {
    encode(kind, &serde_json::to_vec(message)?, out);
    Ok(())
}

/// The stream is not a sequence of frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A byte where a kind was expected.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A length beyond [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes exceeds the limit")]
    TooLong(usize),
}

/// Turns a byte stream into frames, once it has seen the bytes that open a session.
#[derive(Debug)]
pub(crate) struct Decoder {
    opening: Vec<u8>,
    opened: bool,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Skips the stream up to and including `opening`, then reads frames.
    pub(crate) fn new(opening: Vec<u8>) -> Self {
        Self {
            opening,
            opened: false,
            buffer: Vec::new(),
            consumed: 0,
        }
    }

    /// Adds bytes that have arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Waits for another opening; bytes not read yet are kept, since they may hold it.
    pub(crate) fn close(&mut self) {
        self.opened = false;
    }

    /// Waits for another opening and forgets what has arrived: the peer has gone.
    pub(crate) fn clear(&mut self) {
        self.opened = false;
        self.buffer.clear();
        self.consumed = 0;
    }

    /// The next frame, if it has arrived whole.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Violation> {
        if !self.opened && !self.hunt() {
            return Ok(None);
        }
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((&kind, after)) = rest.split_first() else {
            return Ok(None);
        };
        let kind = Kind::from_byte(kind).ok_or(Violation::UnknownKind(kind))?;
        let Some((length, after)) = after.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_PAYLOAD {
            return Err(Violation::TooLong(length));
        }
        let Some(payload) = after.get(..length) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.consumed += HEADER + length;
        Ok(Some(Frame { kind, payload }))
    }

    fn hunt(&mut self) -> bool {
        let rest = self.buffer.get(self.consumed..).unwrap_or_default();
        match rest
            .windows(self.opening.len())
            .position(|window| window == self.opening)
        {
            Some(at) => {
                self.consumed += at + self.opening.len();
                self.opened = true;
            }
            // The opening may have arrived in part: keep what could be its beginning.
            None => self.consumed += rest.len().saturating_sub(self.opening.len() - 1),
        }
        self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: &[(Kind, &[u8])]) -> Vec<u8> {
        let mut bytes = PREAMBLE.to_vec();
        for (kind, payload) in frames {
            encode(*kind, payload, &mut bytes);
        }
        bytes
    }

    fn frames(decoder: &mut Decoder) -> Vec<(Kind, Vec<u8>)> {
        let mut seen = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            seen.push((frame.kind, frame.payload));
        }
        seen
    }

    #[test]
    fn frames_survive_arriving_byte_by_byte() {
        let bytes = stream(&[
            (Kind::Stdout, b"one"),
            (Kind::Stderr, b""),
            (Kind::Exited, &[0; 300]),
        ]);
        let mut decoder = Decoder::new(PREAMBLE.to_vec());
        let mut seen = Vec::new();
        for byte in bytes {
            decoder.push(&[byte]);
            seen.extend(frames(&mut decoder));
        }
        assert_eq!(
            seen,
            [
                (Kind::Stdout, b"one".to_vec()),
                (Kind::Stderr, Vec::new()),
                (Kind::Exited, vec![0; 300])
            ]
        );
    }

    #[test]
    fn every_kind_survives() {
        for byte in 0..=u8::MAX {
            if let Some(kind) = Kind::from_byte(byte) {
                assert_eq!(kind.byte(), byte);
            }
        }
        assert_eq!(Kind::from_byte(PREAMBLE[0]), None);
        assert_eq!(
            Kind::from_byte(0),
            None,
            "padding between sessions must not look like a frame"
        );
    }

    #[test]
    fn what_precedes_the_opening_is_skipped() {
        let mut bytes = vec![0; 70_000];
        bytes.extend_from_slice(&PREAMBLE[..5]);
        bytes.extend(stream(&[(Kind::Ready, b"")]));
        let mut decoder = Decoder::new(PREAMBLE.to_vec());
        let mut seen = Vec::new();
        for piece in bytes.chunks(1000) {
            decoder.push(piece);
            seen.extend(frames(&mut decoder));
        }
        assert_eq!(seen, [(Kind::Ready, Vec::new())]);
    }

    #[test]
    fn a_session_that_starts_inside_a_dead_one_is_found() {
        let mut bytes = stream(&[(Kind::Stdin, b"left over")]);
        bytes.extend(stream(&[(Kind::Start, b"new")]));
        let mut decoder = Decoder::new(PREAMBLE.to_vec());
        decoder.push(&bytes);
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload, b"left over");
        assert_eq!(
            decoder.next_frame(),
            Err(Violation::UnknownKind(PREAMBLE[0]))
        );
        decoder.close();
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload, b"new");
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_allocated() {
        let mut decoder = Decoder::new(PREAMBLE.to_vec());
        decoder.push(PREAMBLE);
        decoder.push(&[17, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(Violation::TooLong(0xffff_ffff)));
    }

    #[test]
    fn a_start_keeps_bytes_that_are_not_text() {
        let start = Start {
            nonce: [7; 8],
            argv: vec![b"echo".to_vec(), vec![0xff, 0xfe]],
            env: vec![(b"A".to_vec(), vec![0x80])],
            cwd: b"/".to_vec(),
            terminal: Some(WindowSize {
                rows: 24,
                columns: 80,
            }),
            stage: None,
            fast: vec![b"/bin/busybox".to_vec()],
            refresh: true,
        };
        let mut bytes = PREAMBLE.to_vec();
        encode_json(Kind::Start, &start, &mut bytes).unwrap();
        let mut decoder = Decoder::new(PREAMBLE.to_vec());
        decoder.push(&bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(
            serde_json::from_slice::<Start>(&frame.payload).unwrap(),
            start
        );
    }

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(Exited::Code(42).shell_code(), 42);
        assert_eq!(Exited::Signal(9).shell_code(), 137);
    }
}
