//! The OCI runtime specification as Cloister holds it: every field enforced or refused.
