//! Virtual machines that grow when limits are raised.

use super::harness::{Bundle, Cmd, Finished, eventually};

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

/// The guest's memory, in MiB.
fn memory(bundle: &Bundle) -> u64 {
    let total = says(
        bundle,
        "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo",
    );
    total.parse().expect("a number")
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

#[test]
fn memory_comes_with_the_limit_that_allows_it() {
    let bundle = running(
        Bundle::new(&["sleep", "1000"]),
        &[("CLOISTER_MAX_MEMORY_MIB", "640")],
    );
    let before = memory(&bundle);
    assert!(before < 128, "{before}");
    let raised = update(&bundle, &["--memory", "400m"]);
    assert_eq!(raised.err(), "", "{raised}");
    // What the kernel is still about to take.
    let grown = before + 464 - 128;
    eventually("the memory is there", || memory(&bundle) >= grown - 8);
    // A process has it, and files of the host do.
    says(&bundle, "dd if=/dev/zero of=/dev/null bs=300M count=1");
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(bundle.rootfs().join("large"), block.repeat(48)).expect("a file");
    let sum = |path: &std::path::Path| Cmd::new("md5sum").args([path]).run().ok();
    let expected = sum(&bundle.rootfs().join("large"));
    let seen = says(&bundle, "md5sum /large && cp /large /copy && sync");
    assert_eq!(seen.split(' ').next(), expected.split(' ').next());
    let copied = sum(&bundle.rootfs().join("copy"));
    assert_eq!(copied.split(' ').next(), expected.split(' ').next());
    // Further, as far as it goes; less takes nothing away.
    update(&bundle, &["--memory", "2g"]).fails(
        0,
        &["memory.limit: 2147483648 bytes", "can grow to: 640 MiB"],
    );
    let grown = before + 640 - 128;
    eventually("the memory is there", || memory(&bundle) >= grown - 8);
    let lowered = update(&bundle, &["--memory", "300m"]);
    assert_eq!(lowered.err(), "", "{lowered}");
    assert!(memory(&bundle) >= grown - 8);
}
