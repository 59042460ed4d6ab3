//! The walk over a document along the field table.

use serde_json::{Map, Value};

use crate::error::Problem;
use crate::shape::{Field, Names, Shape, Side, Verdict};

/// What the walk has found.
pub(crate) struct Findings {
    /// Fields that are wrong.
    pub(crate) invalid: Vec<Problem>,
    /// Fields that are refused.
    pub(crate) refused: Vec<Problem>,
    /// What was passed over.
    pub(crate) warnings: Vec<String>,
    side: Side,
}

impl Findings {
    pub(crate) fn new(side: Side) -> Self {
        Findings {
            invalid: Vec::new(),
            refused: Vec::new(),
            warnings: Vec::new(),
            side,
        }
    }

    pub(crate) fn invalid(&mut self, path: &str, reason: impl Into<String>) {
        self.invalid.push(Problem {
            path: path.into(),
            reason: reason.into(),
        });
    }

    pub(crate) fn refused(&mut self, path: &str, reason: impl Into<String>) {
        self.refused.push(Problem {
            path: path.into(),
            reason: reason.into(),
        });
    }

    /// Checks `object` against its properties and takes out what has no effect on this side:
    /// unknown properties, nulls, empty refused ones.
    pub(crate) fn object(&mut self, object: &mut Map<String, Value>, fields: &[Field], path: &str) {
        for field in fields.iter().filter(|field| field.required) {
            if object.get(field.name).is_none_or(Value::is_null) {
                self.invalid(&join(path, field.name), "is required");
            }
        }
        object.retain(|name, value| {
            let path = join(path, name);
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
                        self.refused(&path, format!("refused: {reason}"));
                    }
                    false
                }
                Verdict::Enforced(enforcer) => {
                    // An optional choice that is empty is no choice.
                    if !field.required
                        && matches!(field.shape, Shape::Name(_))
                        && value.as_str() == Some("")
                    {
                        return false;
                    }
                    self.value(value, &field.shape, &path);
                    enforcer.is_seen_by(self.side)
                }
            }
        });
    }

    fn value(&mut self, value: &mut Value, shape: &Shape, path: &str) {
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
                    let path = format!("{path}[{key:?}]");
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

    fn list(&mut self, list: &mut Vec<Value>, item: &Shape, path: &str) {
        let mut index = 0;
        list.retain_mut(|value| {
            let path = format!("{path}[{index}]");
            index += 1;
            if let (Shape::Name(names), Some(text)) = (item, value.as_str())
                && names.unknown_is_warning
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

    fn name(&mut self, text: &str, names: &Names, path: &str) {
        if names.supported.contains(&text) {
            return;
        }
        match names.refused.iter().find(|(name, _)| *name == text) {
            Some((_, reason)) => self.refused(path, format!("{text:?} is refused: {reason}")),
            None => self.invalid(path, format!("unknown {} {text:?}", names.what)),
        }
    }

    /// No system call takes a string with a NUL in it.
    fn text(&mut self, text: &str, path: &str) {
        if text.contains('\0') {
            self.invalid(path, "contains a NUL character");
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Whether a value says nothing: null, false, or empty all the way down.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
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
