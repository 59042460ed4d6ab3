//! The types of the field table.

/// Who enforces a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcer {
    /// The runtime on the host.
    Host,
    /// The agent in the guest.
    Guest,
    /// Each does its part.
    Both,
}

impl Enforcer {
    /// Whether the document of this side keeps it. The host sees the whole picture.
    pub(crate) fn is_seen_by(self, side: Side) -> bool {
        side == Side::Host || self != Enforcer::Host
    }
}

/// The side on which a specification is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The runtime on the host.
    Host,
    /// The agent in the guest.
    Guest,
}

/// What happens to a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every value that passes the checks takes effect.
    Enforced(Enforcer),
    /// What passes the checks asks for nothing that has to be done, for this reason.
    NoEffect(&'static str),
    /// Any value but an empty one (null, false, 0, nothing in it) is an error that gives this reason.
    Refused(&'static str),
}

/// A property of an object.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its type.
    pub shape: Shape,
    /// Whether it has to be there.
    pub required: bool,
    /// What happens to it. The members of an enforced object have verdicts of their own.
    pub verdict: Verdict,
    /// What a reader of the specification would not expect; empty if nothing.
    pub note: &'static str,
}

impl Field {
    pub(crate) const fn enforced(name: &'static str, enforcer: Enforcer, shape: Shape) -> Self {
        Field {
            name,
            shape,
            required: false,
            verdict: Verdict::Enforced(enforcer),
            note: "",
        }
    }

    pub(crate) const fn no_effect(name: &'static str, shape: Shape, reason: &'static str) -> Self {
        Field {
            name,
            shape,
            required: false,
            verdict: Verdict::NoEffect(reason),
            note: "",
        }
    }

    pub(crate) const fn refused(name: &'static str, shape: Shape, reason: &'static str) -> Self {
        Field {
            name,
            shape,
            required: false,
            verdict: Verdict::Refused(reason),
            note: "",
        }
    }

    pub(crate) const fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// The type of a value.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A string.
    Str,
    /// A string that has to pass a check, which says what is wrong otherwise.
    Text(fn(&str) -> Result<(), String>),
    /// One of a set of names.
    Name(&'static Names),
    /// An integer in a range, bounds included.
    Int(i128, i128),
    /// An array.
    List(&'static Shape),
    /// An object with arbitrary keys.
    Map(&'static Shape),
    /// An object with these properties.
    Object(&'static [Field]),
}

/// A set of names that a string is chosen from.
#[derive(Debug)]
pub struct Names {
    /// What they name, as in "unknown capability".
    pub what: &'static str,
    /// The names that Cloister supports.
    pub supported: &'static [&'static str],
    /// The names that exist and are refused, with the reason.
    pub refused: &'static [(&'static str, &'static str)],
    /// What happens to any other name.
    pub unknown: Unknown,
}

/// What happens to a name that is in neither list of [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is no such thing: an error.
    Invalid,
    /// It is dropped with a warning.
    Warning,
    /// It exists, and is refused for this reason.
    Refused(&'static str),
    /// As `Refused`, but for names that callers choose by themselves: those are passed over, and
    /// listed in [`Checked::defaults`](crate::Checked::defaults).
    RefusedUnlessDefault {
        /// The names; a `*` at the end stands for a version.
        defaults: &'static [&'static str],
        /// Why any other is refused.
        reason: &'static str,
    },
}

/// Whether a name is one of those that callers choose by themselves.
pub(crate) fn is_default(name: &str, defaults: &[&str]) -> bool {
    let is_version = |text: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
        text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(known)
    };
    defaults
        .iter()
        .any(|default| match default.strip_suffix('*') {
            Some(prefix) => name.strip_prefix(prefix).is_some_and(is_version),
            None => name == *default,
        })
}

pub(crate) const U16: Shape = Shape::Int(0, u16::MAX as i128);
pub(crate) const U32: Shape = Shape::Int(0, u32::MAX as i128);
/// A user or group id. The largest number is no id but "unchanged" for setresuid(2) and chown(2).
pub(crate) const ID: Shape = Shape::Int(0, u32::MAX as i128 - 1);
pub(crate) const U64: Shape = Shape::Int(0, u64::MAX as i128);
pub(crate) const I32: Shape = Shape::Int(i32::MIN as i128, i32::MAX as i128);
pub(crate) const I64: Shape = Shape::Int(i64::MIN as i128, i64::MAX as i128);
pub(crate) const STRINGS: Shape = Shape::List(&Shape::Str);
pub(crate) const STRING_MAP: Shape = Shape::Map(&Shape::Str);

impl Shape {
    /// What a value of this type is called in a message.
    pub(crate) fn describe(&self) -> String {
        match self {
            Shape::Bool => "true or false".into(),
            Shape::Str | Shape::Text(_) | Shape::Name(_) => "a string".into(),
            Shape::Int(min, max) => format!("an integer from {min} to {max}"),
            Shape::List(item) => match item {
                Shape::Str | Shape::Text(_) | Shape::Name(_) => "an array of strings".into(),
                Shape::Int(..) => "an array of integers".into(),
                _ => "an array of objects".into(),
            },
            Shape::Map(_) | Shape::Object(_) => "an object".into(),
        }
    }
}
