//! The OCI runtime specification as Cloister holds it: every field is enforced or refused.
//!
//! The field table ([`table`]) lists every property of the runtime specification up to 1.3 with its
//! type and its verdict. [`check`] walks the JSON of a `config.json` along the table:
//!
//! - a property that is refused and has a value (not null, false, 0 or empty) is an error that names it,
//! - a property that asks for nothing that has to be done here is accepted, and the table says why,
//! - a value of the wrong type, a missing required property, a value that Cloister does not
//!   know (a mount option, a namespace type, a seccomp action) is an error that names it,
//! - a value that callers choose by themselves and that cannot be held (their AppArmor profile) is
//!   listed, and the host decides,
//! - a property that the specification does not know is ignored with a warning
//!   (runtime-spec config.md#extensibility).
//!
//! The host parses with [`Spec::parse`], which gives the typed form too; the guest calls [`check`]
//! on the same bytes. [`features`] is generated from the same tables.
#![forbid(unsafe_code)]

mod error;
mod features;
mod mount;
mod names;
mod rules;
mod shape;
mod table;
mod text;
mod walk;
mod weight;

#[cfg(test)]
mod tests;

pub use error::{Error, Problem};
pub use features::features;
pub use mount::{
    AccessTime, Attribute, FileSystem, MountKind, MountOption, Propagation, mount_kind,
    mount_option,
};
pub use names::{
    CAPABILITIES, IO_PRIORITY_CLASSES, PERSONALITIES, RLIMITS, SCHEDULER_FLAGS, SCHEDULER_POLICIES,
};
pub use shape::{Enforcer, Field, Names, Shape, Side, Unknown, Verdict};
pub use weight::{cpu_weight, io_weight};

use serde_json::Value;

/// A specification that has passed [`check`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// The document without the properties that have no effect: for [`Side::Host`] with all that
    /// are enforced, for [`Side::Guest`] with those that the guest has a part in.
    pub value: Value,
    /// What was passed over.
    pub warnings: Vec<String>,
    /// What was passed over although it is not held: callers ask for it by themselves, and no user
    /// has chosen it. The host may refuse it all the same.
    pub defaults: Vec<Problem>,
}

/// Checks the bytes of a `config.json`; `file` is its name in messages.
///
/// The verdict does not depend on `side`, only what is left in the document does.
///
/// # Errors
/// The text is not JSON, a field is wrong, or a field is refused.
pub fn check(bytes: &[u8], file: &str, side: Side) -> Result<Checked, Error> {
    check_against(bytes, file, side, table::ROOT, rules::apply)
}

/// Checks a process object, as `exec` takes it; `file` is its name in messages.
///
/// # Errors
/// As [`check`].
pub fn check_process(bytes: &[u8], file: &str, side: Side) -> Result<Checked, Error> {
    check_against(bytes, file, side, table::PROCESS, rules::apply_to_process)
}

/// Checks a resources object, as `update` takes it; `file` is its name in messages.
///
/// # Errors
/// As [`check`].
pub fn check_resources(bytes: &[u8], file: &str, side: Side) -> Result<Checked, Error> {
    check_against(
        bytes,
        file,
        side,
        table::RESOURCES,
        |resources, findings| {
            rules::changeable(resources, "", findings);
        },
    )
}

fn check_against(
    bytes: &[u8],
    file: &str,
    side: Side,
    fields: &[Field],
    rules: impl FnOnce(&Value, &mut walk::Findings),
) -> Result<Checked, Error> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        // serde_json ends its message with the position, which has a place of its own here.
        let reason = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(reason, _)| reason);
        Error::Json {
            file: file.to_owned(),
            line: error.line(),
            column: error.column(),
            reason: reason.to_owned(),
        }
    })?;
    let mut findings = walk::Findings::new(side);
    match &mut value {
        Value::Object(object) => findings.object(object, fields, &walk::Path::ROOT),
        _ => findings.invalid("", "the document is not an object"),
    }
    rules(&value, &mut findings);
    let file = file.to_owned();
    if !findings.invalid.is_empty() {
        return Err(Error::Invalid {
            file,
            problems: findings.invalid,
        });
    }
    if !findings.refused.is_empty() {
        return Err(Error::Refused {
            file,
            problems: findings.refused,
        });
    }
    Ok(Checked {
        value,
        warnings: findings.warnings,
        defaults: findings.defaults,
    })
}

/// A checked specification in its typed form.
#[derive(Clone, Debug)]
pub struct Spec {
    oci: oci_spec::runtime::Spec,
    warnings: Vec<String>,
    defaults: Vec<Problem>,
}

impl Spec {
    /// Checks and parses the bytes of a `config.json`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`check`].
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, Error> {
        let mut checked = check(bytes, file, Side::Host)?;
        if let Some(process) = checked
            .value
            .get_mut("process")
            .and_then(Value::as_object_mut)
        {
            // The guest's alone, and with flags that oci-spec knows by other names.
            process.remove("scheduler");
            // Optional in the specification's schema, required by oci-spec.
            process
                .entry("user")
                .or_insert_with(|| Value::Object(Default::default()));
        }
        let oci = serde_json::from_value(checked.value).map_err(|error| Error::Invalid {
            file: file.to_owned(),
            problems: vec![Problem {
                path: String::new(),
                reason: error.to_string(),
            }],
        })?;
        Ok(Spec {
            oci,
            warnings: checked.warnings,
            defaults: checked.defaults,
        })
    }

    /// The typed form, of what is enforced.
    pub fn oci(&self) -> &oci_spec::runtime::Spec {
        &self.oci
    }

    /// What was passed over: unknown properties, unknown capabilities.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What was passed over because callers ask for it by themselves, see [`Checked::defaults`].
    pub fn defaults(&self) -> &[Problem] {
        &self.defaults
    }
}

/// The field table: the properties of the document's root object, and in their shapes everything below.
pub fn table() -> &'static [Field] {
    table::ROOT
}

/// The `config.json` that `cloister spec` writes: JSON indented with tabs, as runc 1.1 writes it.
pub fn default_spec() -> &'static str {
    include_str!("default_spec.json")
}
