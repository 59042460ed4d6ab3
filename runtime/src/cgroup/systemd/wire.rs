//! The D-Bus message format, as far as systemd is spoken to (D-Bus specification 0.43, "Message
//! Protocol").
//!
//! What comes in is not trusted to be well formed: every length is checked against what is there.

use super::SystemdError;

/// The longest message that is taken. The specification allows 128 MiB; systemd's are short.
const MESSAGE_MAX: usize = 1 << 20;
/// The part of a message whose length is known before it is read.
pub(super) const PREFIX: usize = 16;

/// A method call.
pub(super) const CALL: u8 = 1;
/// A reply to a call.
pub(super) const RETURN: u8 = 2;
/// A reply to a call that has failed.
pub(super) const ERROR: u8 = 3;
/// A message to everybody.
pub(super) const SIGNAL: u8 = 4;

/// A value of a property, in a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) enum Value {
    Bool(bool),
    U64(u64),
    /// Of any whole type: its size is in bytes, its value without the sign.
    Number {
        signature: &'static str,
        size: usize,
        value: u64,
        is_negative: bool,
    },
    Text(String),
    Texts(Vec<String>),
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::Number { signature, .. } => signature,
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::U32s(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// Values in their binary form, little-endian.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// A length of what is in memory: a message that is too long is refused when it is sent.
    fn len(&mut self, len: usize) {
        self.u32(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// A string or an object path.
    pub(super) fn text(&mut self, value: &str) {
        self.len(value.len());
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// An array whose elements are aligned to `to`: that before the first is not in its length.
    fn array(&mut self, to: usize, write: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(to);
        let first = self.0.len();
        write(self);
        let len = u32::try_from(self.0.len() - first).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::U64(value) => self.u64(*value),
            Value::Number {
                size,
                value,
                is_negative,
                ..
            } => {
                let value = match is_negative {
                    true => value.wrapping_neg(),
                    false => *value,
                };
                self.align(*size);
                self.0.extend(value.to_le_bytes().iter().take(*size));
            }
            Value::Text(value) => self.text(value),
            Value::Texts(all) => self.array(4, |w| all.iter().for_each(|value| w.text(value))),
            Value::U32s(all) => self.array(4, |w| all.iter().for_each(|&value| w.u32(value))),
            Value::Bytes(all) => self.array(1, |w| w.0.extend(all)),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, all: &[(String, Value)]) {
        self.array(8, |w| {
            for (name, value) in all {
                w.align(8);
                w.text(name);
                w.variant(value);
            }
        });
    }

    /// `a(sa(sv))` without elements
    pub(super) fn no_units(&mut self) {
        self.array(8, |_| {});
    }
}

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    /// A name on the bus; without a bus there is but one who can be meant.
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// The types of the body's values.
    pub(super) signature: &'a str,
}

/// A call as it is sent.
pub(super) fn call(method: Method<'_>, serial: u32, body: Writer) -> Result<Vec<u8>, SystemdError> {
    let mut message = Writer::default();
    message.byte(b'l');
    message.byte(CALL);
    // No flags; version 1.
    message.byte(0);
    message.byte(1);
    message.len(body.0.len());
    message.u32(serial);
    message.array(8, |w| {
        let mut field = |code: u8, kind: &str, value: &str| {
            w.align(8);
            w.byte(code);
            w.signature(kind);
            match kind {
                "g" => w.signature(value),
                _ => w.text(value),
            }
        };
        field(1, "o", method.path);
        field(2, "s", method.interface);
        field(3, "s", method.member);
        if let Some(destination) = method.destination {
            field(6, "s", destination);
        }
        if !method.signature.is_empty() {
            field(8, "g", method.signature);
        }
    });
    message.align(8);
    message.0.extend(body.0);
    if message.0.len() > MESSAGE_MAX {
        return Err(SystemdError::Protocol("a message to it is too long"));
    }
    Ok(message.0)
}

/// A message that has come in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    /// Which call it is a reply to.
    pub(super) reply_to: u32,
    pub(super) signature: String,
    body: Vec<u8>,
    big: bool,
}

const MALFORMED: SystemdError = SystemdError::Protocol("a message from it is malformed");

/// How long a message is whose first [`PREFIX`] bytes are these.
pub(super) fn length(prefix: &[u8; PREFIX]) -> Result<usize, SystemdError> {
    let mut reader = Reader::of(prefix, is_big(prefix)?, 4);
    let body = reader.length()?;
    reader.u32()?;
    let fields = reader.length()?;
    let header = (PREFIX + fields).next_multiple_of(8);
    match header + body {
        len if len <= MESSAGE_MAX => Ok(len),
        _ => Err(SystemdError::Protocol("a message from it is too long")),
    }
}

fn is_big(message: &[u8]) -> Result<bool, SystemdError> {
    match message.first() {
        Some(b'l') => Ok(false),
        Some(b'B') => Ok(true),
        _ => Err(MALFORMED),
    }
}

impl Message {
    /// Takes a whole message apart.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SystemdError> {
        let big = is_big(bytes)?;
        let mut message = Self {
            kind: *bytes.get(1).ok_or(MALFORMED)?,
            big,
            ..Self::default()
        };
        let mut reader = Reader::of(bytes, big, 12);
        let end = PREFIX + reader.length()?;
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, &*kind) {
                (2, "s") => message.interface = reader.text()?,
                (3, "s") => message.member = reader.text()?,
                (4, "s") => message.error = reader.text()?,
                (5, "u") => message.reply_to = reader.u32()?,
                (8, "g") => message.signature = reader.signature()?,
                (_, kind) => reader.skip(kind)?,
            }
        }
        let body = end.next_multiple_of(8);
        message.body = bytes.get(body..).ok_or(MALFORMED)?.to_vec();
        Ok(message)
    }

    /// The body's values.
    pub(super) fn body(&self) -> Reader<'_> {
        Reader::of(&self.body, self.big, 0)
    }
}

/// Takes values out of their binary form.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    big: bool,
    at: usize,
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a [u8], big: bool, at: usize) -> Self {
        Self { bytes, big, at }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], SystemdError> {
        let end = self.at.checked_add(len).ok_or(MALFORMED)?;
        let taken = self.bytes.get(self.at..end).ok_or(MALFORMED)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, SystemdError> {
        self.take(1)?.first().copied().ok_or(MALFORMED)
    }

    pub(super) fn u32(&mut self) -> Result<u32, SystemdError> {
        self.align(4);
        let bytes = *self.take(4)?.first_chunk().ok_or(MALFORMED)?;
        Ok(if self.big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn length(&mut self) -> Result<usize, SystemdError> {
        match usize::try_from(self.u32()?) {
            Ok(len) if len <= MESSAGE_MAX => Ok(len),
            _ => Err(SystemdError::Protocol("a message from it is too long")),
        }
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Result<String, SystemdError> {
        let len = self.length()?;
        self.terminated(len)
    }

    pub(super) fn signature(&mut self) -> Result<String, SystemdError> {
        let len = self.byte()?.into();
        self.terminated(len)
    }

    fn terminated(&mut self, len: usize) -> Result<String, SystemdError> {
        let text = self.take(len)?.to_vec();
        match self.byte()? {
            0 => String::from_utf8(text).map_err(|_| MALFORMED),
            _ => Err(MALFORMED),
        }
    }

    /// Passes over a value of one of the types that a header may have.
    fn skip(&mut self, kind: &str) -> Result<(), SystemdError> {
        match kind {
            "s" | "o" => self.text().map(drop),
            "g" => self.signature().map(drop),
            "u" => self.u32().map(drop),
            "y" => self.byte().map(drop),
            _ => Err(MALFORMED),
        }
    }
}
