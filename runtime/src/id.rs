//! The name of a container.

use std::fmt;

/// The longest id, in bytes: it is the name of a directory (`NAME_MAX`).
const MAX_LEN: usize = 255;

/// A container id that is safe as the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

/// Why a text is not a container id. The wording begins as runc's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Nothing was given.
    #[error("invalid container ID format: container id cannot be empty")]
    Empty,
    /// Something else than letters, digits and `_ + - .`, or a directory's `.` or `..`.
    #[error("invalid container ID format: {0:?}")]
    Format(String),
}

impl ContainerId {
    /// Takes a text as an id.
    ///
    /// # Errors
    /// If it could not be one.
    pub fn new(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
        if text.len() > MAX_LEN || text == "." || text == ".." || !text.bytes().all(allowed) {
            return Err(IdError::Format(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_the_root_are_refused() {
        for bad in ["a/b", "/", ".", "..", "a b", "a\n", "ä", "a\0", "a:b"] {
            let error = ContainerId::new(bad).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("invalid container ID format: {bad:?}")
            );
        }
        assert_eq!(ContainerId::new(""), Err(IdError::Empty));
        ContainerId::new(&"x".repeat(256)).unwrap_err();
    }

    #[test]
    fn the_usual_ids_are_accepted() {
        for good in [
            "mycontainerid",
            "0123abc",
            "a.b_c-d+e",
            "...",
            &"x".repeat(255),
        ] {
            assert_eq!(ContainerId::new(good).unwrap().as_str(), good);
        }
    }
}
