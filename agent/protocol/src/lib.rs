//! The contract between host and guest: messages, ports, versions.
//!
//! The agent is the guest's first process. When it is ready it connects to the host's
//! [`READY_PORT`] and answers ttrpc calls on that very connection, so nobody polls. Further
//! connections for calls are made by the host to the guest's [`AGENT_PORT`].
//!
//! The standard streams of a process do not pass through calls. Each is a vsock connection of its
//! own from the host to the guest's [`STDIO_PORT`], whose first [`TOKEN_LEN`] bytes are a random
//! token chosen by the host; [`Stdio`](agent::Stdio) names the token of each stream. From then on
//! the bytes are the stream's own. End-of-file is a half close, in either direction.
//!
//! Log lines of the agent go to the host's [`LOG_PORT`], one JSON object a line
//! ([`LOG_LINE_MAX`] bytes at most); the connection is made when the first line is written.
//!
//! ```text
//!  host                                                      guest
//!   READY_PORT (listens) ◀───────── connect ───────────────── agent
//!           ╰── Hello, CreateContainer, StartContainer, Wait … ──▶ (ttrpc, agent answers)
//!   any process ─────────────────── connect ────────────────▶ AGENT_PORT (ttrpc)
//!   any process ─────────────────── connect + token ────────▶ STDIO_PORT (bytes)
//!   LOG_PORT (listens)   ◀───────── connect ───────────────── agent (lines)
//! ```
//!
//! What the host reads here comes from a guest that may be hostile: a reader must bound what it
//! accepts and must not wait without a limit.

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used,
        reason = "generated code; proto/agent.proto documents it"
    )]
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{agent, agent_ttrpc};

/// The version of this contract. It changes with every change of meaning; the two sides come from
/// one build, and a mismatch is a broken install that is refused by name.
pub const VERSION: u32 = 5;

/// The host port to which the agent connects when it is ready.
pub const READY_PORT: u32 = 1024;

/// The host port that receives the agent's log.
pub const LOG_PORT: u32 = 1025;

/// The guest port that answers ttrpc calls.
pub const AGENT_PORT: u32 = 1024;

/// The guest port that takes standard streams.
pub const STDIO_PORT: u32 = 1025;

/// The length of the token that begins a standard stream, in bytes.
pub const TOKEN_LEN: usize = 16;

/// The most descriptors that a process is given beside its standard streams.
pub const DESCRIPTORS_MAX: usize = 32;

/// The devices that a process may be given by a descriptor: their names below `/dev`.
pub const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// The longest log line of the agent, in bytes, its newline included.
pub const LOG_LINE_MAX: usize = 4096;

/// The largest `config.json` that is accepted, in bytes. A ttrpc message holds 4 MiB.
pub const SPEC_MAX: usize = 3 << 20;

/// The largest answer to any call but those that list what there is, as a ttrpc message, in bytes.
pub const ANSWER_MAX: u32 = 64 << 10;

/// The largest answer that lists processes or tells what a container uses: ttrpc's own bound.
pub const LISTING_MAX: u32 = 4 << 20;

/// The longest text of an error, in bytes. What of it is the caller's own may be cut off.
pub const MESSAGE_MAX: usize = 16 << 10;

/// The most processes that an answer lists; what is told of each but for its command line takes some
/// 50 bytes.
pub const PROCESSES_MAX: usize = 16_384;

/// The port of name servers (RFC 1035).
pub const DNS_PORT: u16 = 53;

/// On a stream of DNS messages each has two 16-bit numbers before it, the more significant byte first:
/// its channel, which an answer repeats, and its length. There are as many channels for datagrams:
pub const DATAGRAM_CHANNELS: u16 = 256;

/// As many for messages over TCP (RFC 7766), which follow those for datagrams. There, an empty answer
/// says that there is none.
pub const TCP_CHANNELS: u16 = 64;

/// The context id under which a guest reaches its host.
pub const HOST_CID: u32 = 2;

/// The I/O port through which a guest's first process speaks to its virtual machine, one byte a
/// write.
pub const VM_CONTROL_PORT: u16 = 0x5e0;

/// Written to [`VM_CONTROL_PORT`] when the first process runs.
pub const VM_CONTROL_INIT: u8 = 1;

/// Written to [`VM_CONTROL_PORT`] to end the virtual machine in order.
pub const VM_CONTROL_SHUTDOWN: u8 = 2;
