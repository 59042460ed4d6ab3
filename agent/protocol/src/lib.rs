//! The contract between host and guest: messages, ports, versions.
