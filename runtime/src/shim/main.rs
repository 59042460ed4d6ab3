//! `containerd-shim-cloister-v2`: runs containerd's containers in virtual machines.
//!
//! containerd executes it with `start` for each container, reads an address from its output, and
//! speaks to that: one shim stays for each pod, or for each container that is in none. The shim
//! has the work done by `cloister`, which is installed beside it, and is the parent of the monitors
//! that `cloister` leaves behind.
//!
//! ```text
//!   containerd ──exec──▶ shim start ──exec──▶ shim ──exec──▶ cloister create, start, exec, …
//!       │                                      │ ▲               │
//!       └────────────ttrpc: tasks──────────────┘ └──child────  monitor ──▶ cloister-vmm
//! ```
//!
//! The contract is that of containerd's runtime v2 (docs/runtime-v2.md of containerd).

mod args;
mod bootstrap;
mod callers;
mod command;
mod console;
mod container;
mod delete;
mod events;
mod failure;
mod group;
mod guest;
mod info;
mod metrics;
mod mounts;
mod options;
mod paths;
mod pod;
mod process;
mod reaper;
mod sandbox;
mod serve;
mod service;
mod start;
mod streaming;
mod streams;
mod tasks;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use protobuf::well_known_types::timestamp::Timestamp;

use self::args::{Action, Args, USAGE};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // containerd shows it to whoever asked for the container.
            log::error!("{e:#}");
            eprintln!("{}: {e:#}", info::NAME);
            ExitCode::FAILURE
        }
    }
}

#[expect(unsafe_code, reason = "the shim takes over an inherited descriptor")]
fn run() -> anyhow::Result<()> {
    let args = Args::parse(std::env::args_os().skip(1)).with_context(|| USAGE.to_owned())?;
    match args.action {
        Action::Serve => {
            if let Some(socket) = &args.socket {
                return start::serve_at(&args, socket);
            }
            // SAFETY: this is the beginning of the process: only arguments were looked at.
            let inherited = unsafe { cloister::sys::take_inherited(start::LISTENER) };
            let listener = inherited.context("the shim is started by its action start")?;
            serve::serve(&args, listener)
        }
        Action::Start => start::start(args),
        Action::Delete => delete::delete(&args),
        Action::Info => info::info(),
        Action::Version => {
            println!("{}:", info::NAME);
            println!("  Version: {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Help => {
            print!("{USAGE}");
            Ok(())
        }
    }
}

/// A moment as protobuf has it; one before 1970 is 1970.
fn timestamp(moment: SystemTime) -> Timestamp {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}
