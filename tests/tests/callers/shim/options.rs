//! What callers may choose, and what they choose wrong.

use std::fs;

use super::Case;
use super::daemon::Version;

pub(super) fn a_configuration(version: Version) {
    let case = Case::new(version);
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    let memory = |mib: u32| {
        fs::write(&config, format!("memory_mib = {mib}\n")).expect("the configuration");
        let options = ["--runtime-config-path", &config.to_string_lossy()];
        let shown = case.run(
            &options,
            "c",
            "awk '/^MemTotal/ { print $2 }' /proc/meminfo",
        );
        let kib: u32 = shown.ok().trim().parse().expect("a number");
        kib / 1024
    };
    let (small, large) = (memory(96), memory(192));
    assert!((40..=96).contains(&small), "{small} MiB");
    assert!((130..=192).contains(&large), "{large} MiB");
}

pub(super) fn a_wrong_configuration(version: Version) {
    let case = Case::new(version);
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("wrong.toml");
    let place = config.to_string_lossy();
    let run = || case.run(&["--runtime-config-path", &place], "c", "true");
    let missing = run();
    assert_ne!(missing.status.code(), Some(0), "{missing}");
    assert!(missing.err().contains(&*place), "{missing}");
    fs::write(&config, "memroy_mib = 96\n").expect("the configuration");
    let wrong = run();
    assert_ne!(wrong.status.code(), Some(0), "{wrong}");
    assert!(wrong.err().contains(&*place), "{wrong}");
    assert!(wrong.err().contains("memroy_mib"), "{wrong}");
}

pub(super) fn an_id_twice(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "twice", "sleep 600");
    let again = case.run(&[], "twice", "true");
    assert_ne!(again.status.code(), Some(0), "{again}");
    assert!(again.err().contains("already exists"), "{again}");
    assert_eq!(case.status("twice"), "RUNNING");
    // What is gone can be there again.
    case.ctr(["task", "delete", "--force", "twice"]).run();
    case.ctr(["container", "delete", "twice"]).run().ok();
    assert_eq!(case.run(&[], "twice", "echo again").ok(), "again\n");
}

pub(super) fn a_missing_program(version: Version) {
    let case = Case::new(version);
    let finished = case
        .ctr(["run", "--rm", "--runtime", super::shim()])
        .args([super::IMAGE, "m", "/no/such/program"])
        .run();
    assert_ne!(finished.status.code(), Some(0), "{finished}");
    assert!(finished.err().contains("/no/such/program"), "{finished}");
}
