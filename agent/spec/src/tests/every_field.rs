//! Every property of the table, one after the other, with values that it does not take.

use serde_json::{Map, Value, json};

use crate::shape::{Field, Shape, Side, Verdict};
use crate::table;
use crate::walk::{Findings, Path};

/// Where a value is, by names and indices.
type Place = Vec<String>;

/// A value of the type.
fn value(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => json!(true),
        Shape::Str | Shape::Text(_) => json!("/text"),
        Shape::Name(names) => json!(names.supported[0]),
        Shape::Int(min, max) => integer(1.clamp(*min, *max)).unwrap(),
        Shape::List(item) => json!([value(item)]),
        Shape::Map(item) => json!({"key": value(item)}),
        Shape::Object(fields) => object(fields),
    }
}

fn object(fields: &[Field]) -> Value {
    let members = fields
        .iter()
        .map(|field| (field.name.to_owned(), value(&field.shape)));
    Value::Object(members.collect::<Map<_, _>>())
}

fn integer(number: i128) -> Option<Value> {
    let signed = i64::try_from(number).map(Value::from);
    signed
        .or_else(|_| u64::try_from(number).map(Value::from))
        .ok()
}

/// Calls `each` for the shape of every value below, with its place and verdict.
fn walk(
    fields: &'static [Field],
    place: &Place,
    each: &mut impl FnMut(&Place, &'static Shape, &'static Field),
) {
    for field in fields {
        let mut place = place.clone();
        place.push(field.name.into());
        let mut shape = &field.shape;
        loop {
            each(&place, shape, field);
            shape = match shape {
                // What is refused is refused as a whole.
                _ if matches!(field.verdict, Verdict::Refused(_)) => break,
                Shape::List(item) => {
                    place.push("0".into());
                    item
                }
                Shape::Map(item) => {
                    place.push("key".into());
                    item
                }
                Shape::Object(fields) => {
                    walk(fields, &place, each);
                    break;
                }
                _ => break,
            };
        }
    }
}

/// The place in the words of an error.
fn words(place: &Place) -> String {
    let mut words = String::new();
    for part in place {
        match part.as_str() {
            "0" => words.push_str("[0]"),
            "key" => words.push_str("[\"key\"]"),
            name if words.is_empty() => words.push_str(name),
            name => {
                words.push('.');
                words.push_str(name);
            }
        }
    }
    words
}

/// The findings about a document that has every property, and `value` in one place.
fn findings(place: &Place, value: Value) -> Findings {
    let mut document = object(table::ROOT);
    let pointer = format!("/{}", place.join("/"));
    *document.pointer_mut(&pointer).unwrap() = value;
    let Value::Object(mut document) = document else {
        panic!("not an object");
    };
    let mut findings = Findings::new(Side::Host);
    findings.object(&mut document, table::ROOT, &Path::ROOT);
    findings
}

#[test]
fn a_value_of_another_type_names_its_field() {
    let mut seen = 0;
    walk(table::ROOT, &Vec::new(), &mut |place, shape, field| {
        if matches!(field.verdict, Verdict::Refused(_)) {
            return;
        }
        let wrong = match shape {
            Shape::Bool => vec![json!(7), json!("true")],
            Shape::Str | Shape::Text(_) | Shape::Name(_) => vec![json!(7), json!(["text"])],
            Shape::Int(min, max) => {
                let mut wrong = vec![json!("7"), json!(1.5)];
                wrong.extend([min - 1, max + 1].into_iter().filter_map(integer));
                wrong
            }
            Shape::List(_) => vec![json!("text"), json!({})],
            Shape::Map(_) | Shape::Object(_) => vec![json!("text"), json!([])],
        };
        for wrong in wrong {
            let found = findings(place, wrong.clone()).invalid;
            let path = words(place);
            let named = found
                .iter()
                .any(|problem| problem.path == path && problem.reason.starts_with("expected "));
            assert!(named, "{path} = {wrong}: {found:?}");
            seen += 1;
        }
    });
    assert!(seen > 500, "{seen}");
}

#[test]
fn a_value_of_a_refused_field_names_it_and_the_reason() {
    walk(table::ROOT, &Vec::new(), &mut |place, shape, field| {
        let Verdict::Refused(reason) = field.verdict else {
            return;
        };
        let full = match shape {
            // Sections of other platforms have no table.
            Shape::Object([]) => json!({"a": "b"}),
            shape => value(shape),
        };
        let found = findings(place, full).refused;
        let path = words(place);
        let named = found
            .iter()
            .any(|problem| problem.path == path && problem.reason == format!("refused: {reason}"));
        assert!(named, "{path}: {found:?}");
        // And what says nothing asks for nothing.
        for empty in [
            json!(null),
            json!(false),
            json!(0),
            json!(""),
            json!([]),
            json!({}),
        ] {
            let found = findings(place, empty.clone()).refused;
            let named = found.iter().any(|problem| problem.path == path);
            assert!(!named, "{path} = {empty}: {found:?}");
        }
    });
}

#[test]
fn a_name_that_is_refused_or_unknown_names_its_field() {
    use crate::shape::Unknown;
    walk(table::ROOT, &Vec::new(), &mut |place, shape, field| {
        let (Shape::Name(names), false) = (shape, matches!(field.verdict, Verdict::Refused(_)))
        else {
            return;
        };
        let path = words(place);
        for (name, reason) in names.refused {
            let found = findings(place, json!(name)).refused;
            let expected = format!("{name:?} is refused: {reason}");
            let named = found
                .iter()
                .any(|problem| problem.path == path && problem.reason == expected);
            assert!(named, "{path} = {name}: {found:?}");
        }
        let found = findings(place, json!("nonsense"));
        let named = match names.unknown {
            Unknown::Warning => found.warnings.iter().any(|warning| {
                *warning == format!("{path}: unknown {} \"nonsense\", ignored", names.what)
            }),
            Unknown::Invalid => found.invalid.iter().any(|problem| {
                problem.path == path
                    && problem.reason == format!("unknown {} \"nonsense\"", names.what)
            }),
            Unknown::Refused(_) | Unknown::RefusedUnlessDefault { .. } => {
                found.refused.iter().any(|problem| problem.path == path)
            }
        };
        assert!(named, "{path}: {:?} {:?}", found.invalid, found.warnings);
    });
}

/// The host reads what has been checked with the types of oci-spec, which has its own idea of names.
#[test]
fn every_name_that_is_supported_can_be_read_on_the_host() {
    let mut failed = Vec::new();
    walk(table::ROOT, &Vec::new(), &mut |place, shape, field| {
        let (Shape::Name(names), Verdict::Enforced(_)) = (shape, field.verdict) else {
            return;
        };
        for name in names.supported {
            let mut document = super::base();
            // What is required beside it.
            let mut parent = &mut document;
            let mut fields = table::ROOT;
            let (last, parents) = place.split_last().unwrap();
            for part in parents {
                if let Some(field) = fields.iter().find(|field| field.name == part) {
                    if parent.get(part).is_none() {
                        parent[part] = match field.shape {
                            Shape::List(_) => json!([{}]),
                            _ => json!({}),
                        };
                    }
                    let mut shape = &field.shape;
                    while let Shape::List(item) | Shape::Map(item) = shape {
                        shape = item;
                    }
                    if let Shape::Object(inner) = shape {
                        fields = inner;
                    }
                    parent = &mut parent[part];
                } else {
                    parent = &mut parent[part.parse::<usize>().unwrap()];
                }
                for field in fields.iter().filter(|field| field.required) {
                    if parent.is_object() && parent.get(field.name).is_none() {
                        parent[field.name] = value(&field.shape);
                    }
                }
            }
            match last.parse::<usize>() {
                Ok(_) => *parent = json!([name]),
                Err(_) => parent[last] = json!(name),
            }
            let bytes = document.to_string();
            // Some do not go with the rest.
            if crate::check(bytes.as_bytes(), "config.json", Side::Host).is_err() {
                continue;
            }
            if let Err(error) = crate::Spec::parse(bytes.as_bytes(), "config.json") {
                failed.push(format!("{} = {name}: {error}", words(place)));
            }
        }
    });
    assert_eq!(failed, [] as [String; 0]);
}

#[test]
fn a_required_field_that_is_missing_is_named() {
    walk(table::ROOT, &Vec::new(), &mut |place, shape, field| {
        let whole = std::ptr::eq(shape, &raw const field.shape);
        if !field.required || !whole || matches!(field.verdict, Verdict::Refused(_)) {
            return;
        }
        let found = findings(place, json!(null)).invalid;
        let path = words(place);
        let named = found
            .iter()
            .any(|problem| problem.path == path && problem.reason == "is required");
        assert!(named, "{path}: {found:?}");
    });
}
