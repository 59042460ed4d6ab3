//! The fuzz targets of what the runtime reads of a guest, on their corpora and on some inputs more. What a target does is said
//! at its head.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]
#![allow(unused_attributes, reason = "a fuzz target has a main of libFuzzer's")]

extern crate self as libfuzzer_sys;

#[path = "../fuzz/fuzz_targets/agent.rs"]
mod agent;
#[path = "../../tests/fuzz.rs"]
mod fuzz;
#[path = "../fuzz/fuzz_targets/log.rs"]
mod log;

#[test]
fn an_agent_that_answers_anything() {
    fuzz::check("fuzz/corpus/agent", 200, agent::run);
}

#[test]
fn a_guest_that_writes_anything() {
    fuzz::check("fuzz/corpus/log", 500, log::run);
}
