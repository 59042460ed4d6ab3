//! Containers on the machine that runs the tests: as root, without a virtual machine.
//!
//! The test binary is the caller of the crate and its own init stage at once. Each test looks from the
//! inside: a BusyBox shell in the container prints what it sees.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and with a main of its own this is no test code to clippy"
)]

mod cgroups;
mod exec;
mod failures;
mod files;
mod hooks;
mod identity;
mod lifecycle;
mod mounts;
mod namespaces;
mod scheduling;
mod seccomp;
mod support;
mod terminal;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if cloister_container::init::is_init_stage() {
        return cloister_container::init::main();
    }
    own_mount_namespace();
    let mut trials: Vec<Trial> = Vec::new();
    for (module, tests) in [
        ("cgroups", cgroups::TESTS),
        ("exec", exec::TESTS),
        ("failures", failures::TESTS),
        ("files", files::TESTS),
        ("hooks", hooks::TESTS),
        ("identity", identity::TESTS),
        ("lifecycle", lifecycle::TESTS),
        ("mounts", mounts::TESTS),
        ("namespaces", namespaces::TESTS),
        ("scheduling", scheduling::TESTS),
        ("seccomp", seccomp::TESTS),
        ("terminal", terminal::TESTS),
    ] {
        for (name, test) in tests {
            trials.push(Trial::test(format!("{module}::{name}"), || {
                test();
                Ok(())
            }));
        }
    }
    let (arguments, names) = arguments();
    let is_named = |trial: &Trial| {
        let name = trial.name();
        let mut names = names.iter();
        names.any(|named| *named == name || !arguments.exact && name.contains(named.as_str()))
    };
    trials.retain(|trial| names.is_empty() || is_named(trial));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The arguments, and the names among them: libtest takes any number of those, and libtest-mimic one.
fn arguments() -> (Arguments, Vec<String>) {
    const WITH_VALUE: [&str; 5] = [
        "--color",
        "--format",
        "--logfile",
        "--skip",
        "--test-threads",
    ];
    let mut takes_next = true;
    let (options, names): (Vec<_>, Vec<_>) = std::env::args().partition(|argument| {
        let is_option = takes_next || argument.starts_with('-');
        takes_next = !takes_next && WITH_VALUE.contains(&argument.as_str());
        is_option
    });
    let arguments = Arguments {
        // Each test counts the children of its process.
        test_threads: Some(1),
        ..Arguments::from_iter(options)
    };
    (arguments, names)
}

/// Tests run at the same time, count mounts and make some.
fn own_mount_namespace() {
    #[expect(deprecated, reason = "there are no other threads yet")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
}
