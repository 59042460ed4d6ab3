//! Properties of the unit that a specification's annotations ask for, as CRI-O and Podman have them
//! set by every runtime: `org.systemd.property.TimeoutStopUSec` with `uint64 10000000`.
//!
//! A value is in GVariant's text format, of which there is here what properties are made of: truth,
//! text, lists of texts, and whole numbers, which are `int32` unless a type precedes them.

use std::collections::{BTreeMap, HashMap};

use super::properties::Properties;
use super::wire::Value;

const PREFIX: &str = "org.systemd.property.";
const MICROSECONDS: u64 = 1_000_000;

/// The whole numbers: name, signature, size in bytes, and whether they can be negative.
const NUMBERS: [(&str, &str, usize, bool); 7] = [
    ("byte", "y", 1, false),
    ("int16", "n", 2, true),
    ("uint16", "q", 2, false),
    ("int32", "i", 4, true),
    ("uint32", "u", 4, false),
    ("int64", "x", 8, true),
    ("uint64", "t", 8, false),
];
const DEFAULT_NUMBER: &str = "int32";

/// The properties among annotations, or the annotation that is not understood.
pub(in crate::cgroup) fn properties(
    annotations: &HashMap<String, String>,
) -> Result<Properties, String> {
    let mut all = Properties::new();
    let annotations: BTreeMap<_, _> = annotations.iter().collect();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let is_name = name.len() >= 3 && name.bytes().all(|b| b.is_ascii_alphabetic());
        let property = parse(text).filter(|_| is_name);
        let property = property.and_then(|value| in_microseconds(name, value));
        all.push(property.ok_or_else(|| key.clone())?);
    }
    Ok(all)
}

/// Times are documented as `…Sec`, and set as `…USec`.
fn in_microseconds(name: &str, value: Value) -> Option<(String, Value)> {
    let stem = name.strip_suffix("Sec");
    let stem = stem.filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()));
    let Some(stem) = stem else {
        return Some((name.to_owned(), value));
    };
    match value {
        Value::Number {
            value,
            is_negative: false,
            ..
        } => {
            let value = value.checked_mul(MICROSECONDS)?;
            Some((format!("{stem}USec"), Value::U64(value)))
        }
        _ => None,
    }
}

fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    match text {
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        "@as []" => return Some(Value::Texts(Vec::new())),
        _ => {}
    }
    if text.starts_with(['\'', '"']) {
        let (value, rest) = quoted(text)?;
        return rest.is_empty().then_some(Value::Text(value));
    }
    if let Some(list) = text.strip_prefix('[') {
        return texts(list);
    }
    match text.split_once(' ') {
        Some((kind, number)) => whole(kind, number.trim()),
        None => whole(DEFAULT_NUMBER, text),
    }
}

/// The elements of a list after its opening bracket.
fn texts(list: &str) -> Option<Value> {
    let mut all = Vec::new();
    let mut rest = list.trim_start();
    loop {
        let (value, after) = quoted(rest)?;
        all.push(value);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None => return (rest == "]").then_some(Value::Texts(all)),
        }
    }
}

/// A text in quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let (_, quote) = chars.next().filter(|(_, c)| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            _ if c == quote => return Some((value, text.get(at + 1..)?)),
            _ => value.push(c),
        }
    }
    None
}

fn whole(kind: &str, text: &str) -> Option<Value> {
    let number = NUMBERS.iter().find(|(name, ..)| *name == kind)?;
    let (_, signature, size, signed) = *number;
    let (digits, is_negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => digits
            .parse::<u64>()
            .ok()
            .filter(|_| !digits.starts_with('+'))?,
    };
    if is_negative && !signed {
        return None;
    }
    let bits = u32::try_from(size * 8).ok()? - u32::from(signed);
    let largest = u64::MAX >> (64 - bits);
    if value > largest.saturating_add(is_negative.into()) {
        return None;
    }
    Some(Value::Number {
        signature,
        size,
        value,
        is_negative,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, text: &str) -> Result<(String, Value), String> {
        let key = format!("{PREFIX}{key}");
        let all = HashMap::from([(key, text.to_owned()), ("other".into(), "x".into())]);
        properties(&all).map(|mut all| all.pop().unwrap())
    }

    fn value(text: &str) -> Option<Value> {
        of("Name", text).ok().map(|(_, value)| value)
    }

    #[test]
    fn values_are_text_truth_lists_and_numbers() {
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        assert_eq!(value("'inactive-or-failed'"), text("inactive-or-failed"));
        assert_eq!(value(r#" "it's \"so\" \\" "#), text(r#"it's "so" \"#));
        assert_eq!(value("true"), Some(Value::Bool(true)));
        let list = vec!["crio.service".to_owned(), "b".to_owned()];
        assert_eq!(value("['crio.service', \"b\"]"), Some(Value::Texts(list)));
        assert_eq!(value("@as []"), Some(Value::Texts(Vec::new())));
        for (text, signature, size, number, negative) in [
            ("17", "i", 4, 17, false),
            ("-17", "i", 4, 17, true),
            ("int64 -1", "x", 8, 1, true),
            ("uint64 18446744073709551615", "t", 8, u64::MAX, false),
            ("byte 0xff", "y", 1, 255, false),
            ("int16 -32768", "n", 2, 32768, true),
        ] {
            let expected = Value::Number {
                signature,
                size,
                value: number,
                is_negative: negative,
            };
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in [
            "",
            "word",
            "'open",
            "'a' b",
            "[",
            "[]",
            "['a'",
            "['a',]",
            "['a' 'b']",
            "[1]",
            "uint64 -1",
            "byte 256",
            "int16 32768",
            "int16 -32769",
            "2147483648",
            "uint64 18446744073709551616",
            "double 1.5",
            "1.5",
            "+1",
            "'\\q'",
        ] {
            let error = of("Name", text).unwrap_err();
            assert_eq!(error, "org.systemd.property.Name", "{text}");
        }
        for name in ["", "ab", "A-b", "A1b", "Größe"] {
            of(name, "true").unwrap_err();
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let set = |name, text| of(name, text).map(|(name, value)| format!("{name} {value:?}"));
        assert_eq!(
            set("TimeoutStopSec", "5"),
            Ok("TimeoutStopUSec U64(5000000)".into())
        );
        assert!(
            set("TimeoutStopUSec", "uint64 5")
                .unwrap()
                .starts_with("TimeoutStopUSec Number")
        );
        assert!(set("Sec", "5").unwrap().starts_with("Sec Number"));
        for bad in ["'5'", "-5", "uint64 18446744073709551615"] {
            set("TimeoutStopSec", bad).unwrap_err();
        }
    }
}
