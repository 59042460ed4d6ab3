//! From an OCI runtime specification to a running process.
