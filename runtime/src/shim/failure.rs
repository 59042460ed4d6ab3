//! Errors as a caller of the service sees them: a gRPC code and a text.

use cloister::text::chain;
use ttrpc::Code;

use super::command::CommandError;

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    /// There is one already.
    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    /// It is in the wrong state for that.
    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// What was given cannot be used.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// A virtual machine cannot do that.
    pub(crate) fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// Something failed.
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(Code::UNKNOWN, chain(error))
    }
}

impl From<CommandError> for Failure {
    /// The command line's words, which are runc's, tell what kind of failure it is.
    fn from(error: CommandError) -> Self {
        let message = chain(&error);
        let has = |words: &str| message.contains(words);
        let code = if has("container with given ID already exists") {
            Code::ALREADY_EXISTS
        } else if has("container does not exist") || has("container not running") {
            Code::NOT_FOUND
        } else if has("container already paused") || has("container not paused") {
            Code::FAILED_PRECONDITION
        } else {
            Code::UNKNOWN
        };
        Self { code, message }
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        Self::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}
