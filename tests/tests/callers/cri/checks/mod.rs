//! What pods do, by theme; each check is a test on some versions of containerd.

pub(crate) mod containers;
pub(crate) mod exec;
pub(crate) mod faults;
pub(crate) mod figures;
pub(crate) mod install;
pub(crate) mod interface;
pub(crate) mod kills;
pub(crate) mod many;
pub(crate) mod network;
pub(crate) mod page;
pub(crate) mod refused;
pub(crate) mod security;
pub(crate) mod settings;
pub(crate) mod streams;
