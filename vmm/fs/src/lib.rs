//! The file server of a VM: a vhost-user virtio-fs server that sees the shared tree and nothing
//! else. The contract with its owner is [`cloister_vmm_api::fs`].
//!
//! ```text
//!   owner ──control──▶ run ──▶ tree   a mount namespace with the exports
//!                          ──▶ jail   capabilities, system calls
//!   VMM ──vhost-user──▶ session ─┐
//!                                ├── service ──▶ shared ──▶ virtiofsd's PassthroughFs
//!   guest ──────rings──▶ ring ───┘   (workers)
//! ```
//!
//! The main thread answers the VMM, [workers](service) answer the guest, and one thread waits for
//! the end of the control socket.
//!
//! # The library underneath
//!
//! FUSE parsing and the passthrough file system are `virtiofsd` 1.14, used as a library. The other
//! candidate on crates.io is `fuse-backend-rs` 0.14. Both keep an `O_PATH` descriptor an inode,
//! both switch credentials per thread, and both can be linked statically, virtiofsd once the C
//! library that it changes capabilities with is out of the way (`capng`, beside this crate). What
//! decided:
//!
//! - **Mounts below the shared tree.** virtiofsd tells inodes apart by device, inode number *and*
//!   mount, and announces mounts to the guest, where each becomes a file system of its own with its
//!   own `st_dev`. fuse-backend-rs packs all of them into one `st_dev` by rewriting inode numbers.
//! - **Creating files as somebody with supplementary groups**: virtiofsd takes them from the
//!   request; the other does not know them.
//! - **Record.** virtiofsd is the reference implementation, what distributions ship for QEMU and
//!   Kata, with fixes for hostile requests going in steadily. Its C ancestor had CVEs (symbolic
//!   links, setgid directories, group membership) whose lessons are in it.
//! - Neither implements `O_TMPFILE` (the guest sees EOPNOTSUPP), remote locks (the guest's kernel
//!   keeps `flock` and POSIX locks among its own processes) or notifications.
//!
//! Not used of virtiofsd are its sandbox (made for a directory, not for a tree put together from
//! descriptors), its vhost-user device (one worker pool with a queue of boxed futures, a socket that
//! must be listened on, and an exit of the process at the first malformed request) and its seccomp
//! filter (which needs libseccomp).
//!
//! Linux 5.14 is the oldest host that this works on: it is the first that can keep the kernel from
//! following symbolic links in a mount.
//!
//! # Trust
//!
//! The guest is hostile, and so may the VMM be once the guest has taken it over. Neither can name
//! anything outside the shared tree, because nothing else is mounted. What the guest can take is
//! bounded: a request is at most 1 MiB, requests in work are as many as workers, descriptors have a
//! limit of their own that leaves enough for the server. A malformed request is dropped and counted.

mod filter;
pub mod jail;
mod ring;
pub mod run;
pub mod service;
pub mod session;
pub mod shared;
pub mod tree;

pub use ring::Memory;
