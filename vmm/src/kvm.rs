//! What every use of KVM shares: how a failure is told.

/// A KVM operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct KvmError {
    /// The operation, by the name of its ioctl.
    pub operation: &'static str,
    /// Why it failed.
    #[source]
    pub source: kvm_ioctls::Error,
}

impl KvmError {
    /// `operation` failed with `errno`.
    #[must_use]
    pub fn new(operation: &'static str, errno: i32) -> Self {
        Self {
            operation,
            source: kvm_ioctls::Error::new(errno),
        }
    }
}

/// Names the operation that a KVM result came from.
pub trait Operation<T> {
    /// The result, with the operation's name in its error.
    ///
    /// # Errors
    /// The same as before.
    fn during(self, operation: &'static str) -> Result<T, KvmError>;
}

impl<T> Operation<T> for Result<T, kvm_ioctls::Error> {
    fn during(self, operation: &'static str) -> Result<T, KvmError> {
        self.map_err(|source| KvmError { operation, source })
    }
}
