//! End-to-end tests: the installed `cloister`, real bundles, real virtual machines.
//!
//! They run as root where guests can run: on hardware KVM, or inside the test bed. `make test`
//! knows which. Every wait has a limit, and a test that fails prints the guest's console, the logs
//! of every process and the state directory, since nobody can look at the machine afterwards.
//!
//! By theme: [`hello`], [`exit_status`], [`stdio`], [`terminal`], [`inside`], [`rootfs`],
//! [`lifecycle`], [`network`], [`parallel`], [`faults`], [`bad_input`], [`fields`], [`walkthrough`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it expects"
)]

mod bad_input;
mod cgroups;
mod control;
mod descriptors;
mod exec;
mod exit_status;
mod faults;
mod fields;
mod grow;
mod harness;
mod hello;
mod hooks;
mod inside;
mod lifecycle;
mod network;
mod parallel;
mod pods;
mod rootfs;
mod stdio;
mod terminal;
mod walkthrough;
