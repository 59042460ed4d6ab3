//! Commands that need no machine.

use std::fs;

use super::harness::{Setup, finish, read};

#[test]
fn what_is_unknown_is_named() {
    let setup = Setup::new(&["cat"]);
    for command in ["state", "start", "delete", "kill"] {
        setup
            .run(&[command, "ghost"])
            .fails(1, &["level=error msg=\"container does not exist: ghost\""]);
    }
    setup.run(&["delete", "--force", "ghost"]).ok();
    setup.run(&["frobnicate"]).fails(3, &["frobnicate"]);
    setup
        .run(&["run", "--frobnicate", "x"])
        .fails(1, &["--frobnicate"]);
    setup.run(&["kill"]).fails(1, &["<CONTAINER>"]);
}

#[test]
fn checkpoints_are_refused_by_name() {
    let setup = Setup::new(&["cat"]);
    for command in ["checkpoint", "restore"] {
        setup
            .run(&[command, "--some", "x", "-y", "--", "z"])
            .fails(1, &[&format!("{command} is not supported: ")]);
    }
}

#[test]
fn options_that_are_none_are_not_taken_for_containers() {
    let setup = Setup::new(&["cat"]);
    setup
        .run(&["exec", "--some", "x", "ls"])
        .fails(255, &["exec failed: --some: no such option"]);
    setup
        .run(&["ps", "--some", "x"])
        .fails(1, &["--some: no such option"]);
    for command in ["pause", "resume", "update", "events"] {
        setup
            .run(&[command, "--some", "x"])
            .fails(1, &["unexpected argument '--some'"]);
    }
}

#[test]
fn what_is_wrong_with_the_words_is_logged_too() {
    let setup = Setup::new(&["cat"]);
    let log = setup.path("log.json");
    let args = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let words = [&args[..], &["create", "--frobnicate", "x"]].concat();
    setup.run(&words).fails(1, &["--frobnicate"]);
    let line: serde_json::Value = serde_json::from_str(&read(&log)).unwrap();
    assert_eq!(line["level"], "error");
    let text = line["msg"].as_str().unwrap();
    assert!(
        text.starts_with("unexpected argument '--frobnicate'"),
        "{text}"
    );
}

#[test]
fn an_error_is_logged_once_and_printed_plain_beside_a_log_file() {
    let setup = Setup::new(&["cat"]);
    let log = setup.path("log.json");
    let args = [
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "state",
        "ghost",
    ];
    let printed = setup.run(&args).fails(1, &[]);
    assert_eq!(printed, "container does not exist: ghost\n");
    let line: serde_json::Value = serde_json::from_str(&read(&log)).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container does not exist: ghost");
}

#[test]
fn global_options_may_be_given_twice() {
    let setup = Setup::new(&["cat"]);
    let root = setup.root();
    let root = root.to_str().unwrap();
    let args = [
        "--root",
        root,
        "--systemd-cgroup",
        "--root",
        root,
        "--systemd-cgroup",
        "list",
        "-q",
    ];
    assert_eq!(setup.run(&args).ok(), "");
}

#[test]
fn a_specification_is_written_once_and_can_be_run() {
    let setup = Setup::new(&["cat"]);
    fs::remove_file(setup.config()).unwrap();
    setup.run(&["spec"]).ok();
    let before = read(&setup.config());
    setup
        .run(&["spec"])
        .fails(1, &["File config.json exists. Remove it first"]);
    assert_eq!(read(&setup.config()), before);
    // It asks for a terminal, which this test has not.
    setup
        .run(&["create", "x"])
        .fails(1, &["cannot allocate tty"]);
    setup.run(&["spec", "--rootless"]).fails(1, &["--rootless"]);
}

#[test]
fn versions_and_features_are_told() {
    let setup = Setup::new(&["cat"]);
    let version = setup.run(&["--version"]).ok();
    let lines: Vec<_> = version.lines().collect();
    assert_eq!(
        lines[0],
        format!("cloister version {}", env!("CARGO_PKG_VERSION"))
    );
    assert!(lines[1].starts_with("spec: 1."), "{version}");
    let features: serde_json::Value = serde_json::from_str(&setup.run(&["features"]).ok()).unwrap();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string());
}

#[test]
fn empty_lists_look_like_runcs() {
    let setup = Setup::new(&["cat"]);
    assert_eq!(
        setup.run(&["list"]).ok(),
        "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    );
    assert_eq!(setup.run(&["list", "--format", "json"]).ok(), "null\n");
    setup.run(&["list", "--format", "yaml"]).fails(1, &["yaml"]);
}

#[test]
fn wrong_settings_are_named() {
    let setup = Setup::new(&["cat"]);
    let config = setup.path("config.toml");
    fs::write(&config, "memory_mib = 128\nmemroy = 1\n").unwrap();
    setup
        .run(&["--config", config.to_str().unwrap(), "list"])
        .fails(1, &["config.toml: line 2", "memroy"]);
    let mut command = setup.command(&["run", "x"]);
    command.env("CLOISTER_MEMORY_MIB", "8");
    finish(command.spawn().unwrap(), b"").fails(1, &["memory_mib: 8 given"]);
    setup.assert_nothing_left("x");
}

#[test]
fn check_looks_at_the_installation_and_asks_the_vmm() {
    let setup = Setup::new(&["cat"]);
    let report =
        r#"{"usable": false, "checks": [{"name": "KVM", "ok": false, "detail": "is slow"}]}"#;
    fs::write(
        setup.path("vmm"),
        format!("#!/bin/sh\necho '{report}'\nexit 1\n"),
    )
    .unwrap();
    let text = setup.run(&["check"]);
    assert_eq!(text.code, Some(1), "{text:?}");
    assert!(
        text.out.contains("FAILED  KVM           is slow\n"),
        "{text:?}"
    );
    assert!(
        text.out.ends_with("This machine cannot run containers.\n"),
        "{text:?}"
    );

    fs::write(
        setup.path("vmm"),
        "#!/bin/sh\necho '{\"usable\": true, \"checks\": []}'\n",
    )
    .unwrap();
    setup.run(&["check"]).ok();
    fs::remove_file(setup.path("kernel")).unwrap();
    let json = setup.run(&["check", "--format", "json"]);
    assert_eq!(json.code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["usable"], false);
    assert_eq!(json["checks"][2]["name"], "guest kernel");
    assert_eq!(json["checks"][2]["ok"], false);
}
