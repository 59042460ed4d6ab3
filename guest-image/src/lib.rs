//! Guest kernel and initramfs: built, packed, described.
//!
//! Everything that a guest starts from is made here, and nothing here runs when a guest starts:
//!
//! - [`kernel`] builds an ELF `vmlinux` from Debian's kernel source and the configuration in
//!   `kernel/config`, and keeps it in a [`cache`] outside the checkout;
//! - [`initramfs`] packs the agent as `/init` into a newc archive;
//! - [`manifest`] says what was made from what.
//!
//! The same inputs give the same bytes.

pub mod cache;
pub mod config;
pub mod digest;
pub mod elf;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod manifest;
