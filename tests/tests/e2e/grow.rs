//! Virtual machines that grow when limits are raised.

use super::harness::{Bundle, Finished, eventually};

/// A container that runs, in a virtual machine with the settings `settings`.
fn running(bundle: Bundle, settings: &[(&str, &str)]) -> Bundle {
    let mut run = bundle.command("run", &["--detach"], "test");
    for (key, value) in settings {
        run = run.env(key, value);
    }
    run.run().ok();
    bundle
}

fn update(bundle: &Bundle, options: &[&str]) -> Finished {
    let update = bundle.cloister(["update"]).args(options);
    update.args(["test"]).run()
}

/// What `script` says inside.
fn says(bundle: &Bundle, script: &str) -> String {
    let exec = bundle.cloister(["exec", "test", "sh", "-c", script]);
    exec.run().ok().trim().to_owned()
}

fn quota(microseconds: &str) -> [&str; 4] {
    ["--cpu-period", "100000", "--cpu-quota", microseconds]
}

#[test]
fn processors_come_with_the_time_to_use_them() {
    let script = "while :; do nproc >/seen.new; mv /seen.new /seen; sleep 0.1; done";
    let bundle = running(Bundle::sh(script), &[("CLOISTER_MAX_VCPUS", "3")]);
    assert_eq!(says(&bundle, "nproc"), "1");
    let raised = update(&bundle, &quota("150000"));
    assert_eq!(raised.err(), "", "{raised}");
    assert_eq!(says(&bundle, "nproc"), "2");
    // What runs already has them too.
    eventually("the workload has them", || {
        std::fs::read_to_string(bundle.rootfs().join("seen")).is_ok_and(|seen| seen == "2\n")
    });
    // As far as it goes.
    update(&bundle, &quota("450000"))
        .fails(0, &["cpu.quota: time of 5 processors", "can grow to: 3"]);
    assert_eq!(says(&bundle, "nproc"), "3");
    // They stay, and do nothing.
    let lowered = update(&bundle, &quota("50000"));
    assert_eq!(lowered.err(), "", "{lowered}");
    assert_eq!(says(&bundle, "nproc"), "3");
}
