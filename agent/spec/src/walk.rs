//! The walk over a document along the field table.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::Problem;
use crate::shape::{Field, Names, Shape, Side, Unknown, Verdict, is_default};

/// Where the walk is. Put into words only if there is something to say about it.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Name(&'a str),
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The document itself.
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        segment: Segment::Name(""),
    };

    fn child(&'a self, segment: Segment<'a>) -> Path<'a> {
        Path {
            parent: Some(self),
            segment,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        parent.fmt(f)?;
        match self.segment {
            Segment::Name(name) if parent.parent.is_none() => f.write_str(name),
            Segment::Name(name) => write!(f, ".{name}"),
            Segment::Key(key) => write!(f, "[{key:?}]"),
            Segment::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// What the walk has found.
pub(crate) struct Findings {
    /// Fields that are wrong.
    pub(crate) invalid: Vec<Problem>,
    /// Fields that are refused.
    pub(crate) refused: Vec<Problem>,
    /// What was passed over.
    pub(crate) warnings: Vec<String>,
    /// What was passed over because callers ask for it by themselves.
    pub(crate) defaults: Vec<Problem>,
    side: Side,
}

impl Findings {
    pub(crate) fn new(side: Side) -> Self {
        Findings {
            invalid: Vec::new(),
            refused: Vec::new(),
            warnings: Vec::new(),
            defaults: Vec::new(),
            side,
        }
    }

    pub(crate) fn invalid(&mut self, path: impl fmt::Display, reason: impl Into<String>) {
        self.invalid.push(Problem {
            path: path.to_string(),
            reason: reason.into(),
        });
    }

    pub(crate) fn refused(&mut self, path: impl fmt::Display, reason: impl Into<String>) {
        self.refused.push(Problem {
            path: path.to_string(),
            reason: reason.into(),
        });
    }

    /// Checks `object` against its properties and takes out what has no effect on this side:
    /// unknown properties, nulls, empty refused ones.
    pub(crate) fn object(
        &mut self,
        object: &mut Map<String, Value>,
        fields: &[Field],
        path: &Path<'_>,
    ) {
        for field in fields.iter().filter(|field| field.required) {
            if object.get(field.name).is_none_or(Value::is_null) {
                self.invalid(path.child(Segment::Name(field.name)), "is required");
            }
        }
        object.retain(|name, value| {
            let path = path.child(Segment::Name(name));
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                self.warnings
                    .push(format!("{path}: unknown property, ignored"));
                return false;
            };
            if value.is_null() {
                return false;
            }
            match field.verdict {
                Verdict::Refused(reason) => {
                    if !is_empty(value) {
                        self.refused(path, format!("refused: {reason}"));
                    }
                    false
                }
                Verdict::Enforced(_) | Verdict::NoEffect(_) => {
                    // An optional choice that is empty is no choice.
                    if !field.required
                        && matches!(field.shape, Shape::Name(_))
                        && value.as_str() == Some("")
                    {
                        return false;
                    }
                    self.value(value, &field.shape, &path);
                    matches!(field.verdict, Verdict::Enforced(enforcer) if enforcer.is_seen_by(self.side))
                }
            }
        });
    }

    fn value(&mut self, value: &mut Value, shape: &Shape, path: &Path<'_>) {
        let matches = match (shape, &mut *value) {
            (Shape::Bool, Value::Bool(_)) => true,
            (Shape::Str, Value::String(text)) => {
                self.text(text, path);
                true
            }
            (Shape::Text(check), Value::String(text)) => {
                self.text(text, path);
                if let Err(reason) = check(text) {
                    self.invalid(path, reason);
                }
                true
            }
            (Shape::Name(names), Value::String(text)) => {
                self.name(text, names, path);
                true
            }
            (Shape::Int(min, max), Value::Number(number)) => {
                let integer = number
                    .as_i64()
                    .map(i128::from)
                    .or(number.as_u64().map(i128::from));
                integer.is_some_and(|integer| (*min..=*max).contains(&integer))
            }
            (Shape::List(item), Value::Array(list)) => {
                self.list(list, item, path);
                true
            }
            (Shape::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    let path = path.child(Segment::Key(key));
                    self.text(key, &path);
                    self.value(value, item, &path);
                }
                true
            }
            (Shape::Object(fields), Value::Object(object)) => {
                self.object(object, fields, path);
                true
            }
            _ => false,
        };
        if !matches {
            self.invalid(
                path,
                format!("expected {}, found {}", shape.describe(), describe(value)),
            );
        }
    }

    fn list(&mut self, list: &mut Vec<Value>, item: &Shape, path: &Path<'_>) {
        let mut index = 0;
        list.retain_mut(|value| {
            let path = path.child(Segment::Index(index));
            index += 1;
            if let (Shape::Name(names), Some(text)) = (item, value.as_str())
                && names.unknown == Unknown::Warning
                && !names.supported.contains(&text)
            {
                self.warnings
                    .push(format!("{path}: unknown {} {text:?}, ignored", names.what));
                return false;
            }
            self.value(value, item, &path);
            true
        });
    }

    fn name(&mut self, text: &str, names: &Names, path: &Path<'_>) {
        if names.supported.contains(&text) {
            return;
        }
        let refused = names.refused.iter().find(|(name, _)| *name == text);
        match (refused.map(|(_, reason)| *reason), names.unknown) {
            (None, Unknown::RefusedUnlessDefault { defaults, reason })
                if is_default(text, defaults) =>
            {
                self.defaults.push(Problem {
                    path: path.to_string(),
                    reason: format!("{text:?} is a caller's default {}: {reason}", names.what),
                });
            }
            (Some(reason), _)
            | (None, Unknown::Refused(reason) | Unknown::RefusedUnlessDefault { reason, .. }) => {
                self.refused(path, format!("{text:?} is refused: {reason}"));
            }
            (None, _) => self.invalid(path, format!("unknown {} {text:?}", names.what)),
        }
    }

    /// No system call takes a string with a NUL in it.
    fn text(&mut self, text: &str, path: &Path<'_>) {
        if text.contains('\0') {
            self.invalid(path, "contains a NUL character");
        }
    }
}

/// Whether a value says nothing: null, false, zero, or empty all the way down. Those are what a
/// caller writes who leaves a field alone.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.values().all(is_empty),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("{value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}
