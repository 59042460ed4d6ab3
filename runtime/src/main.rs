//! An OCI runtime that runs every container in a virtual machine of its own.

fn main() {}
