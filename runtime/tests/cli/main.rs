//! The command line and the monitor, through the real binary, against a machine that is played.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::exit,
    reason = "a test that cannot go on fails; the played programs end as programs do"
)]

mod commands;
mod fake;
mod flags;
mod harness;
mod life;
mod limits;
mod refusals;
