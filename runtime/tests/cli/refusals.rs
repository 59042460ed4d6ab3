//! What is refused before, or while, a container is created: a clear message, nothing left.

use std::fs;

use super::harness::{Setup, finish};

#[track_caller]
fn refused(setup: &Setup, args: &[&str], parts: &[&str]) {
    setup.run(args).fails(1, parts);
    setup.assert_nothing_left("x");
}

#[test]
fn bundles_that_cannot_be_run() {
    let setup = Setup::new(&["cat"]);
    refused(
        &setup,
        &["run", "-b", "/nonexistent", "x"],
        &[
            "cloister run failed: ",
            "/nonexistent",
            "No such file or directory",
        ],
    );
    fs::remove_dir(setup.path("bundle/rootfs")).unwrap();
    refused(&setup, &["run", "x"], &["invalid rootfs", "bundle/rootfs"]);
    fs::write(setup.path("bundle/rootfs"), "").unwrap();
    refused(
        &setup,
        &["run", "x"],
        &["invalid rootfs", "not a directory"],
    );
    fs::write(setup.config(), "{\n  oops\n}").unwrap();
    refused(&setup, &["run", "x"], &["config.json", "line 2, column 3"]);
    fs::remove_file(setup.config()).unwrap();
    refused(
        &setup,
        &["create", "x"],
        &["cloister create failed: JSON specification file config.json not found"],
    );
}

#[test]
fn fields_that_cannot_be_held_are_named() {
    let setup = Setup::new(&["cat"]).with(|spec| {
        spec["linux"]["namespaces"][2]["path"] = "/proc/self/ns/net".into();
    });
    refused(
        &setup,
        &["run", "x"],
        &[
            "linux.namespaces[2].path: refused: ",
            "the network of this machine",
        ],
    );
    let setup = Setup::new(&["cat"]).with(|spec| {
        spec["hooks"] = serde_json::json!({"prestart": [{"path": "true"}]});
    });
    refused(&setup, &["run", "x"], &["hooks", "prestart", "absolute"]);
    let bind = |source: &str| {
        let source = source.to_owned();
        move |spec: &mut serde_json::Value| {
            spec["mounts"] = serde_json::json!([{
                "destination": "/data", "source": source, "type": "bind", "options": ["rbind"]
            }]);
        }
    };
    let setup = Setup::new(&["cat"]).with(bind("/nonexistent/source"));
    refused(
        &setup,
        &["run", "x"],
        &["mounts[0].source", "/nonexistent/source"],
    );
}

#[test]
fn a_callers_default_profile_is_passed_over_with_one_warning_or_refused() {
    let profile = "containers-default-0.57.4";
    let setup = Setup::new(&["say", "out", "", "0"])
        .with(|spec| spec["process"]["apparmorProfile"] = profile.into());
    let finished = setup.run(&["run", "x"]);
    let warning = "level=warning msg=\"process.apparmorProfile: \\\"containers-default-0.57.4\\\" is a \
                   caller's default AppArmor profile: the guest kernel has no AppArmor; it is not loaded, the \
                   virtual machine confines the container\"";
    assert_eq!(finished.err.matches(warning).count(), 1, "{finished:?}");
    assert_eq!(finished.ok(), "out");

    let mut refusing = setup.command(&["run", "x"]);
    refusing.env("CLOISTER_DEFAULT_APPARMOR_PROFILE", "refuse");
    finish(refusing.spawn().unwrap(), b"").fails(
        1,
        &[
            "cloister run failed: config.json: process.apparmorProfile: ",
            profile,
        ],
    );
    setup.assert_nothing_left("x");

    let setup = setup.with(|spec| spec["process"]["apparmorProfile"] = "mine".into());
    refused(
        &setup,
        &["run", "x"],
        &["process.apparmorProfile: \\\"mine\\\" is refused: the guest kernel has no AppArmor"],
    );
}

#[test]
fn options_that_cannot_be_held_are_named() {
    let setup = Setup::new(&["cat"]);
    refused(
        &setup,
        &["run", "--preserve-fds", "1", "x"],
        &["--preserve-fds"],
    );
    refused(
        &setup,
        &["run", "--pidfd-socket", "/s", "x"],
        &["cannot connect to the pidfd socket /s"],
    );
    refused(&setup, &["--rootless=true", "run", "x"], &["--rootless"]);
    refused(
        &setup,
        &["run", "--pid-file", "/nonexistent/pid", "x"],
        &["pid file /nonexistent/pid"],
    );
    for bad in ["a/b", "", ".."] {
        setup
            .run(&["run", bad])
            .fails(1, &["invalid container ID format"]);
    }
}

#[test]
fn terminals_need_the_right_options() {
    let setup = Setup::new(&["size"]).with(|spec| spec["process"]["terminal"] = true.into());
    for args in [["create", "x"].as_slice(), &["run", "--detach", "x"]] {
        refused(
            &setup,
            args,
            &["cannot allocate tty if cloister will detach without setting console socket"],
        );
    }
    refused(
        &setup,
        &["create", "--console-socket", "/nonexistent", "x"],
        &["console socket /nonexistent"],
    );
    let setup = Setup::new(&["cat"]);
    for args in [
        ["create", "--console-socket", "/s", "x"],
        ["run", "--console-socket", "/s", "x"],
    ] {
        refused(
            &setup,
            &args,
            &["cannot use console socket if cloister will not detach or allocate tty"],
        );
    }
}

#[test]
fn parts_that_are_missing_are_named() {
    for (file, what) in [
        ("kernel", "guest kernel"),
        ("initramfs", "initramfs"),
        ("vmm", "start"),
        ("fs", "start"),
    ] {
        let setup = Setup::new(&["cat"]);
        fs::remove_file(setup.path(file)).unwrap();
        let path = setup.path(file);
        refused(&setup, &["run", "x"], &[what, path.to_str().unwrap()]);
    }
}

#[test]
fn a_machine_that_does_not_come_up_says_what_it_last_said() {
    for (behaviour, parts) in [
        (
            "panic",
            [
                "the virtual machine ended: guest kernel panicked",
                "    Kernel panic - not syncing",
            ],
        ),
        (
            "host-error",
            ["VMM failed: KVM_RUN:  [2Jno", "    Linux version 0"],
        ),
        ("killed", ["was killed by signal 6", "    Linux version 0"]),
        (
            "version",
            [
                "protocol version 99",
                "does not belong to this installation",
            ],
        ),
    ] {
        let parts = parts.map(|part| part.strip_prefix("VMM failed: ").unwrap_or(part));
        let setup = Setup::new(&["cat"]).behaving(behaviour);
        refused(&setup, &["run", "x"], &parts);
        refused(&setup, &["create", "x"], &parts);
    }
}

#[test]
fn an_agent_that_never_connects_is_not_waited_for_for_ever() {
    let setup = Setup::new(&["cat"]).behaving("silent");
    let mut command = setup.command(&["run", "x"]);
    command.env("CLOISTER_BOOT_TIMEOUT_S", "1");
    super::harness::finish(command.spawn().unwrap(), b"")
        .fails(1, &["did not connect within 1 s", "    Linux version 0"]);
    setup.assert_nothing_left("x");
}

#[test]
fn the_agents_refusals_are_passed_on() {
    let setup = Setup::new(&["no-such-command"]);
    refused(
        &setup,
        &["run", "x"],
        &["cloister run failed: exec: \\\"no-such-command\\\": executable file not found in $PATH"],
    );
    // At the start of the program, which in the foreground is the same to the caller.
    let setup = Setup::new(&["fail"]);
    let pid_file = setup.path("pid");
    let args = ["run", "--pid-file", pid_file.to_str().unwrap(), "x"];
    refused(&setup, &args, &["exec format error"]);
    assert!(!pid_file.exists());
}
