//! The specification's own JSON schema against the table: what others have thought of.
//!
//! The schema comes with a package that `tests/setup` installs; `RUNTIME_SPEC_SCHEMA` names the
//! directory of another version. Nothing of it is kept here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::shape::{Field, Shape};
use crate::table;

const INSTALLED: &str = "/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema";

/// What the table has and a schema may not, with the version that added it (or, with a minus, that
/// took it away).
const OF_OTHER_VERSIONS: &[(&str, &str)] = &[
    ("domainname", "1.1"),
    ("freebsd", "1.3"),
    ("linux.intelRdt.enableCMT", "-1.3"),
    ("linux.intelRdt.enableMBM", "-1.3"),
    ("linux.intelRdt.enableMonitoring", "1.3"),
    ("linux.intelRdt.schemata", "1.3"),
    ("linux.memoryPolicy", "1.3"),
    ("linux.netDevices", "1.3"),
    ("linux.resources.cpu.burst", "1.1"),
    ("linux.resources.cpu.idle", "1.1"),
    ("linux.resources.memory.checkBeforeUpdate", "1.1"),
    ("linux.timeOffsets", "1.1"),
    ("mounts.gidMappings", "1.1"),
    ("mounts.uidMappings", "1.1"),
    ("process.execCPUAffinity", "1.2.1"),
    ("process.ioPriority", "1.1"),
    ("process.scheduler", "1.1"),
    ("vm", "1.0"),
    ("zos", "1.1"),
];

/// The schema's files by their names.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn read() -> Self {
        let dir = std::env::var_os("RUNTIME_SPEC_SCHEMA").map_or(INSTALLED.into(), PathBuf::from);
        let entries = std::fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("{}: {error}: run tests/setup", dir.display()));
        let files = entries.map(|entry| entry.unwrap().path());
        let json = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
        Schema(json.map(|path| (name(&path), parse(&path))).collect())
    }

    /// Follows references; gives the file that the definition is in, for further ones.
    fn resolve<'a>(&'a self, mut file: &'a str, mut node: &'a Value) -> (&'a str, &'a Value) {
        loop {
            let next = match node.get("anyOf").or(node.get("oneOf")) {
                Some(choices) if node.get("properties").is_none() => &choices[0],
                _ => node,
            };
            let Some(reference) = next.get("$ref").and_then(Value::as_str) else {
                return (file, next);
            };
            let (target, pointer) = reference.split_once('#').unwrap();
            if let Some((known, _)) = self.0.get_key_value(target) {
                file = known;
            }
            node = self.0[file]
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{file}: {reference} leads nowhere"));
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().into()
}

fn parse(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What a walk along schema and table has found.
#[derive(Default)]
struct Findings {
    seen: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Findings {
    fn object(&mut self, schema: &Schema, file: &str, node: &Value, fields: &[Field], path: &str) {
        let (file, node) = schema.resolve(file, node);
        if let Some(parts) = node.get("allOf").and_then(Value::as_array) {
            for part in parts {
                self.object(schema, file, part, fields, path);
            }
            return;
        }
        let Some(properties) = node.get("properties").and_then(Value::as_object) else {
            self.wrong.push(format!(
                "{path}: not an object with properties in the schema"
            ));
            return;
        };
        for (name, node) in properties {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            match fields.iter().find(|field| field.name == name) {
                None => self.wrong.push(format!("{path}: not in the table")),
                Some(field) => {
                    self.seen.insert(path.clone());
                    self.value(schema, file, node, &field.shape, &path);
                }
            }
        }
    }

    fn value(&mut self, schema: &Schema, file: &str, node: &Value, shape: &Shape, path: &str) {
        let (file, node) = schema.resolve(file, node);
        let kind = node.get("type").and_then(Value::as_str).unwrap_or("");
        let expected: &[&str] = match shape {
            Shape::Bool => &["boolean"],
            Shape::Str | Shape::Text(_) | Shape::Name(_) => &["string", ""],
            Shape::Int(..) => &["integer"],
            Shape::List(_) => &["array"],
            Shape::Map(_) | Shape::Object(_) => &["object"],
        };
        // Sections of other platforms are refused as a whole.
        let whole = matches!(shape, Shape::Object(fields) if fields.is_empty());
        let in_parts = node.get("allOf").is_some();
        if !whole && !in_parts && !expected.contains(&kind) {
            self.wrong.push(format!(
                "{path}: is {kind:?} in the schema, {shape:?} in the table"
            ));
            return;
        }
        match shape {
            Shape::Object(fields) if !fields.is_empty() => {
                self.object(schema, file, node, fields, path);
            }
            Shape::List(item) => self.value(schema, file, &node["items"], item, path),
            Shape::Map(item) => {
                let values = node
                    .get("additionalProperties")
                    .filter(|node| node.is_object());
                let patterns = node.get("patternProperties").and_then(Value::as_object);
                let values = values.or(patterns.and_then(|patterns| patterns.values().next()));
                if let Some(node) = values {
                    self.value(schema, file, node, item, path);
                }
            }
            Shape::Name(names) => {
                for value in node
                    .get("enum")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    let value = value.as_str().unwrap();
                    let refused = names.refused.iter().any(|(name, _)| *name == value);
                    if !refused && !names.supported.contains(&value) {
                        self.wrong
                            .push(format!("{path}: the value {value} is not in the table"));
                    }
                }
            }
            _ => {}
        }
    }
}

/// The paths of the table that the schema has not shown, without what is below them.
fn unseen(fields: &[Field], path: &str, seen: &BTreeSet<String>, found: &mut Vec<String>) {
    for field in fields {
        let path = if path.is_empty() {
            field.name.to_owned()
        } else {
            format!("{path}.{}", field.name)
        };
        if !seen.contains(&path) {
            found.push(path);
            continue;
        }
        let mut shape = &field.shape;
        while let Shape::List(item) | Shape::Map(item) = shape {
            shape = item;
        }
        if let Shape::Object(fields) = shape {
            unseen(fields, &path, seen, found);
        }
    }
}

#[test]
fn every_property_of_the_schema_is_in_the_table_and_the_other_way_round() {
    let schema = Schema::read();
    let mut findings = Findings::default();
    let root = "config-schema.json";
    findings.object(&schema, root, &schema.0[root], table::ROOT, "");
    assert_eq!(findings.wrong, [] as [String; 0]);
    assert!(findings.seen.len() > 150, "{}", findings.seen.len());
    let mut others = Vec::new();
    unseen(table::ROOT, "", &findings.seen, &mut others);
    others.retain(|path| !OF_OTHER_VERSIONS.iter().any(|(known, _)| known == path));
    assert_eq!(
        others,
        [] as [String; 0],
        "in the table, in no version of the specification"
    );
}
