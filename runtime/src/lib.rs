//! An OCI runtime that runs every container in a virtual machine of its own.
//!
//! The library holds what a container is on the host: its bundle, its state directory, its
//! monitor, and how its agent is spoken to. The command line is built on top of it.
//!
//! ```text
//!   cloister create ──launch──▶ monitor ──▶ cloister-vmm, cloister-fs
//!   cloister start, kill ──────── vsock.sock ──────────▶ agent in the guest
//!   cloister start ────────────── control.sock ────────▶ monitor: connect the network
//!   cloister state, list ──────── state.json, liveness of the monitor
//!   cloister delete ───────────── signals, removal of the directory
//! ```

pub mod agent;
pub mod agent_log;
pub mod annotations;
pub mod bundle;
pub mod cgroup;
pub mod config;
pub mod control;
pub mod descriptors;
pub mod figures;
pub mod hooks;
pub mod id;
pub mod launch;
pub mod logger;
pub mod monitor;
pub mod namespaces;
pub mod network;
pub mod paths;
pub mod process;
pub mod processes;
pub mod signal;
pub mod state;
pub mod sys;
pub mod text;
pub mod time;
pub mod users;
pub mod vsock;
