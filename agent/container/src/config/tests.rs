use cloister_spec::{Enforcer, Field, Shape, Verdict};
use serde_json::{Map, Value, json};

use super::Config;

/// Every property that the table says is enforced in the guest, with a value of its type.
fn object(fields: &[Field]) -> Value {
    let enforced = fields.iter().filter(|field| {
        matches!(
            field.verdict,
            Verdict::Enforced(Enforcer::Guest | Enforcer::Both)
        )
    });
    let members: Map<String, Value> = enforced
        .map(|field| (field.name.to_owned(), value(&field.shape)))
        .collect();
    Value::Object(members)
}

fn value(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => json!(true),
        Shape::Str | Shape::Text(_) => json!("/text"),
        Shape::Name(names) => json!(names.supported[0]),
        Shape::Int(min, max) => json!(i64::try_from(1.clamp(*min, *max)).unwrap()),
        Shape::List(item) => json!([value(item)]),
        Shape::Map(item) => json!({"key": value(item)}),
        Shape::Object(fields) => object(fields),
    }
}

#[test]
fn every_property_that_the_guest_enforces_has_a_member_here() {
    let full = object(cloister_spec::table());
    let config: Config = serde_json::from_value(full.clone()).unwrap();
    // And comes through to the init stage, but for what needs nothing done.
    let mut written = serde_json::to_value(config).unwrap();
    written["linux"]["resources"]["memory"]["checkBeforeUpdate"] = json!(true);
    written["linux"]["namespaces"][0]["path"] = json!("/text");
    assert_eq!(written, full);
}

#[test]
fn a_property_without_a_member_is_an_error() {
    let mut full = object(cloister_spec::table());
    full["process"]["hat"] = json!("red");
    let error = serde_json::from_value::<Config>(full).unwrap_err();
    assert!(error.to_string().contains("unknown field `hat`"), "{error}");
}
