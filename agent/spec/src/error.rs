//! Why a specification is not accepted.

use std::fmt;

/// A specification that cannot be accepted. Every message starts with the file's name and names the
/// line or the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not JSON.
    #[error("{file}: line {line}, column {column}: {reason}")]
    Json {
        /// The name of the file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// Fields are missing, of the wrong type, or have impossible values.
    #[error("{file}: {}", Joined(.problems))]
    Invalid {
        /// The name of the file.
        file: String,
        /// Each problem.
        problems: Vec<Problem>,
    },
    /// The specification asks for what Cloister does not do.
    #[error("{file}: {}", Joined(.problems))]
    Refused {
        /// The name of the file.
        file: String,
        /// Each refusal.
        problems: Vec<Problem>,
    },
}

/// One field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the field, as in `linux.namespaces[0].type`; empty for the whole document.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

struct Joined<'a>(&'a [Problem]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
