//! The fuzz target of the file server, on its corpus and on some inputs more. What it does is said at its head.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]
#![allow(unused_attributes, reason = "a fuzz target has a main of libFuzzer's")]

extern crate self as libfuzzer_sys;

#[expect(unsafe_code, reason = "the target has a mount namespace of its own")]
#[path = "../fuzz/fuzz_targets/fuse.rs"]
mod fuse;
#[path = "../../../tests/fuzz.rs"]
mod fuzz;

#[test]
fn a_guest_that_sends_anything() {
    if !rustix::process::geteuid().is_root() {
        // It mounts.
        return;
    }
    fuzz::check("fuzz/corpus/fuse", 1000, fuse::run);
}
