//! The fuzz targets of the devices, on their corpora and on some inputs more. What a target does is said at its head.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test"
)]
#![allow(unused_attributes, reason = "a fuzz target has a main of libFuzzer's")]

extern crate self as libfuzzer_sys;

#[path = "../../../tests/fuzz.rs"]
mod fuzz;
#[path = "../fuzz/fuzz_targets/mem.rs"]
mod mem;
#[path = "../fuzz/fuzz_targets/mmio.rs"]
mod mmio;
#[path = "../fuzz/fuzz_targets/net.rs"]
mod net;
#[path = "../fuzz/fuzz_targets/vsock.rs"]
mod vsock;

#[test]
fn a_driver_of_the_memory_device() {
    fuzz::check("fuzz/corpus/mem", 1000, mem::run);
}

#[test]
fn a_driver_of_the_register_page() {
    fuzz::check("fuzz/corpus/mmio", 1000, mmio::run);
}

#[test]
fn a_driver_of_the_network_device() {
    fuzz::check("fuzz/corpus/net", 1000, net::run);
}

#[test]
fn a_guest_at_the_socket_device() {
    fuzz::check("fuzz/corpus/vsock", 1000, vsock::run);
}
