//! The first thing: a program runs, in another kernel than ours.

use super::harness::{Bundle, Cmd, Residue};

#[test]
fn a_bundle_runs_and_prints() {
    let bundle = Bundle::new(&["echo", "hello from inside"]);
    let finished = bundle.run();
    assert_eq!(finished.err(), "");
    assert_eq!(finished.ok(), "hello from inside\n");
}

#[test]
fn it_runs_in_a_kernel_of_its_own() {
    let ours = Cmd::new("uname").args(["-rv"]).run().ok();
    let theirs = Bundle::new(&["uname", "-rv"]).run().ok();
    assert_ne!(ours, theirs);
    assert!(theirs.starts_with("6.12"), "{theirs}");
}

#[test]
fn nothing_is_left_after_a_run() {
    let bundle = Bundle::alone(&["true"]);
    let before = Residue::now();
    bundle.run().ok();
    before.assert_nothing_new();
}

#[test]
fn the_check_says_that_this_machine_can_run_guests() {
    let check = Cmd::new("cloister").args(["check"]).run();
    check.ok();
}
