//! The contract between a VMM process and whoever runs it.
