//! The OCI runtime specification as Cloister holds it: every field is enforced or refused.
//!
//! The field table ([`table`]) lists every property of the runtime specification up to 1.3 with its
//! type and its verdict. [`check`] walks the JSON of a `config.json` along the table:
//!
//! - a property that is refused and has a value (not null, false or empty) is an error that names it,
//! - a value of the wrong type, a missing required property, a value that Cloister does not
//!   know (a mount option, a namespace type, a seccomp action) is an error that names it,
//! - a property that the specification does not know is ignored with a warning
//!   (runtime-spec config.md#extensibility).
//!
//! The host parses with [`Spec::parse`], which gives the typed form too; the guest calls [`check`]
//! on the same bytes. [`features`] is generated from the same tables.
#![forbid(unsafe_code)]

mod error;

pub use error::{Error, Problem};

use serde_json::Value;

/// A specification that has passed [`check`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// The document with only those properties that are enforced.
    pub value: Value,
    /// What was passed over.
    pub warnings: Vec<String>,
}

/// Checks the bytes of a `config.json`; `file` is its name in messages.
///
/// # Errors
/// The text is not JSON, a field is wrong, or a field is refused.
pub fn check(bytes: &[u8], file: &str) -> Result<Checked, Error> {
    let _ = (bytes, file);
    unimplemented!()
}

/// A checked specification in its typed form.
#[derive(Clone, Debug)]
pub struct Spec {
    oci: oci_spec::runtime::Spec,
    warnings: Vec<String>,
}

impl Spec {
    /// Checks and parses the bytes of a `config.json`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`check`].
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, Error> {
        let _ = (bytes, file);
        unimplemented!()
    }

    /// The typed form.
    pub fn oci(&self) -> &oci_spec::runtime::Spec {
        &self.oci
    }

    /// What was passed over: unknown properties, unknown capabilities.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The features structure of `cloister features` (runtime-spec features.md), in its JSON form.
pub fn features() -> Value {
    unimplemented!()
}

/// The `config.json` that `cloister spec` writes: JSON indented with tabs, as runc 1.1 writes it.
pub fn default_spec() -> &'static str {
    unimplemented!()
}
