//! The test bed: a virtual machine whose `/dev/kvm` is the real Linux KVM, on machines that have none.
//!
//! QEMU's instruction emulator (TCG) emulates AMD SVM with nested paging, so a Debian kernel under it loads `kvm_amd`
//! and guests run inside at useful speed. The bed sees the machine's own files read-only, under a layer in memory that
//! takes every write: what is installed outside is there inside, and nothing written inside lasts.
//!
//! One executable plays three parts. Started by a user it is the *front*: it boots the machine (`host`) and relays a
//! command's streams. The same file is packed into the bed's initramfs as `/init`: there it is first PID 1, which mounts
//! everything, and then the *server* (`guest`), which runs the fronts' commands. They talk over virtio-serial ports,
//! one session a port (`protocol`).
//!
//! ```text
//!  bed run -- CMD            QEMU (TCG)
//!    │  socketpair or ┌──────────────────────────────┐
//!    └── unix socket ─┤ virtserialport 1…n           │
//!                     │   server ── CMD, CMD, …      │
//!      machine's / ───┤ 9p (read-only) + tmpfs = /   │
//!      stage ─────────┤ copied to /usr/local         │
//!                     └──────────────────────────────┘
//! ```

mod guest;
mod host;
mod protocol;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().next() {
        Some(name) if name == guest::INIT_NAME && std::process::id() == 1 => guest::init(),
        Some(name) if name == guest::SERVER_NAME => guest::serve(),
        _ => host::main(),
    }
}
