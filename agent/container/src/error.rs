//! What goes wrong when a container is built or driven.

use std::fmt::Display;
use std::io;

use serde::{Deserialize, Serialize};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// The class of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request or the specification in it is at fault.
    InvalidArgument,
    /// The container's id is taken.
    AlreadyExists,
    /// The container is not in a state that allows the operation.
    FailedPrecondition,
    /// The system could not do it.
    Internal,
}

/// An error with the step it happened in and the field or file it happened to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification is malformed, incomplete, or asks for something that is refused.
    #[error(transparent)]
    Spec(#[from] cloister_spec::Error),
    /// A container of this id has a cgroup already.
    #[error("container {id:?} exists already")]
    Exists {
        /// The container's id.
        id: String,
    },
    /// The operation does not fit the container's state.
    #[error("container {id:?} {state}")]
    State {
        /// The container's id.
        id: String,
        /// What it is instead.
        state: &'static str,
    },
    /// A step failed, in the caller's process or in the init stage.
    #[error(transparent)]
    Step(#[from] Failure),
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Spec(_) => ErrorKind::InvalidArgument,
            Error::Exists { .. } => ErrorKind::AlreadyExists,
            Error::State { .. } => ErrorKind::FailedPrecondition,
            Error::Step(failure) if failure.invalid => ErrorKind::InvalidArgument,
            Error::Step(_) => ErrorKind::Internal,
        }
    }
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The whole message: step, field or file, and the system's reason.
    pub message: String,
    /// The system's error number, if a system call failed.
    pub errno: Option<i32>,
    /// Whether the specification is at fault (a program that does not exist, a user that cannot be).
    pub invalid: bool,
}

impl Failure {
    /// A failure that no system call reports.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            errno: None,
            invalid: false,
        }
    }

    /// A failure that the specification is to blame for.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            errno: None,
            invalid: true,
        }
    }

    /// A system call that failed while doing `what`.
    pub(crate) fn system(what: impl Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Failure {
            message: format!("{what}: {}", reason(&error)),
            errno: error.raw_os_error(),
            invalid: false,
        }
    }

    /// The same, blamed on the specification.
    pub(crate) fn blamed_on_spec(mut self) -> Self {
        self.invalid = true;
        self
    }
}

/// The system's words for an error, in lower case and without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text
        .rsplit_once(" (os error")
        .map_or(text.as_str(), |(text, _)| text);
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        // Not an abbreviation.
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain([second]).chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Adds to an error what was being done.
pub(crate) trait Context<T> {
    /// Adds what was being done.
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> std::result::Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> std::result::Result<T, Failure> {
        self.map_err(|error| Failure::system(what(), error))
    }
}
