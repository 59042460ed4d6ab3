//! Hooks, on the host and in the container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::harness::{Bundle, Residue, eventually};

/// A script of the host that appends what it is told, with `name` before it, to a file.
fn recorder(bundle: &Bundle, body: &str) -> PathBuf {
    let path = bundle.scratch("hook.sh");
    let log = bundle.scratch("log");
    // There from the beginning, so that it does not count as left behind.
    fs::write(&log, "").unwrap();
    let text = format!(
        "#!/bin/sh\nstate=$(cat)\necho \"$1 $PWD $state $(readlink /proc/self/ns/net) $VAR\" >> {}\n{body}\n",
        log.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn hook(path: &PathBuf, kind: &str) -> Value {
    json!([{"path": path, "args": ["hook.sh", kind], "env": ["VAR=value", "PATH=/usr/bin:/bin"]}])
}

struct Line {
    kind: String,
    dir: PathBuf,
    state: Value,
    network: String,
    var: String,
}

fn log(bundle: &Bundle) -> Vec<Line> {
    let text = fs::read_to_string(bundle.scratch("log")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (kind, rest) = line.split_once(' ').unwrap();
            let (dir, rest) = rest.split_once(' ').unwrap();
            let (rest, var) = rest.rsplit_once(' ').unwrap();
            let (state, network) = rest.rsplit_once(' ').unwrap();
            Line {
                kind: kind.into(),
                dir: dir.into(),
                state: serde_json::from_str(state).unwrap(),
                network: network.into(),
                var: var.into(),
            }
        })
        .collect()
}

#[test]
fn all_kinds_run_in_their_order_with_the_state() {
    let bundle = Bundle::sh("cat /started; exec sleep 1000");
    let path = recorder(&bundle, "");
    let inside = "state=$(cat); echo \"$VAR $$ $state\" > /started";
    let bundle = bundle.with(|spec| {
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            spec["hooks"][kind] = hook(&path, kind);
        }
        spec["hooks"]["startContainer"] =
            json!([{"path": "/bin/sh", "args": ["sh", "-c", inside], "env": ["VAR=inner", "PATH=/bin"]}]);
        spec["annotations"] = json!({"some": "note"});
    });
    bundle.command("create", &[], "test").run().ok();
    let kinds = || {
        log(&bundle)
            .into_iter()
            .map(|line| line.kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(), ["prestart", "createRuntime", "createContainer"]);
    assert!(!bundle.rootfs().join("started").exists());
    let pid = bundle.state("test")["pid"].clone();
    bundle.cloister(["start", "test"]).run().ok();
    assert_eq!(kinds()[3..], ["poststart"]);
    let started = fs::read_to_string(bundle.rootfs().join("started")).unwrap();
    assert!(started.starts_with("inner "), "{started}");
    let state: Value = serde_json::from_str(started.splitn(3, ' ').nth(2).unwrap()).unwrap();
    assert_eq!(
        (&state["id"], &state["status"]),
        (&json!("test"), &json!("created"))
    );
    bundle.cloister(["delete", "--force", "test"]).run().ok();
    assert_eq!(kinds()[4..], ["poststop"]);

    let own = fs::read_link("/proc/self/ns/net")
        .unwrap()
        .display()
        .to_string();
    let statuses = ["creating", "creating", "creating", "running", "stopped"];
    for (line, status) in log(&bundle).iter().zip(statuses) {
        assert_eq!(line.state["status"], status, "{}", line.kind);
        assert_eq!(
            line.state["bundle"],
            json!(bundle.path().canonicalize().unwrap())
        );
        assert_eq!(line.state["annotations"]["some"], "note");
        assert_eq!(line.var, "value");
        let dir = match line.kind.as_str() {
            "createContainer" => bundle.rootfs(),
            _ => bundle.path(),
        };
        assert_eq!(line.dir, dir.canonicalize().unwrap(), "{}", line.kind);
        if status == "stopped" {
            assert_eq!(line.state.get("pid"), None);
        } else {
            assert_eq!(line.state["pid"], pid);
        }
        // Of the container's namespaces is only one.
        assert_eq!(
            line.network != own,
            line.kind == "createContainer",
            "{}",
            line.kind
        );
    }
}

#[test]
fn a_foreground_run_has_all_of_them_too() {
    let bundle = Bundle::sh("true");
    let path = recorder(&bundle, "");
    let bundle = bundle.with(|spec| {
        for kind in ["createRuntime", "poststart", "poststop"] {
            spec["hooks"][kind] = hook(&path, kind);
        }
    });
    bundle.run().ok();
    let kinds: Vec<_> = log(&bundle).into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["createRuntime", "poststart", "poststop"]);
}

#[test]
fn a_hook_that_fails_ends_the_creation_and_leaves_nothing() {
    let bundle = Bundle::alone(&["true"]);
    let path = recorder(
        &bundle,
        "if [ $1 = prestart ]; then echo wrong >&2; exit 3; fi",
    );
    let before = Residue::now();
    let bundle = bundle.with(|spec| {
        for kind in ["prestart", "createRuntime", "poststop"] {
            spec["hooks"][kind] = hook(&path, kind);
        }
    });
    bundle.command("create", &[], "test").run().fails(
        1,
        &["error running prestart hook #0", "exit status 3", "wrong"],
    );
    // What is destroyed is told to have been destroyed.
    let kinds: Vec<_> = log(&bundle).into_iter().map(|line| line.kind).collect();
    assert_eq!(kinds, ["prestart", "poststop"]);
    bundle
        .cloister(["state", "test"])
        .run()
        .fails(1, &["does not exist"]);
    before.assert_nothing_new();
}

#[test]
fn a_hook_that_hangs_is_killed_after_its_timeout() {
    let bundle = Bundle::alone(&["true"]);
    let path = recorder(&bundle, "exec sleep 1000");
    let before = Residue::now();
    let bundle = bundle.with(|spec| {
        spec["hooks"]["createRuntime"] = hook(&path, "createRuntime");
        spec["hooks"]["createRuntime"][0]["timeout"] = 1.into();
    });
    bundle
        .command("create", &[], "test")
        .run()
        .fails(1, &["error running createRuntime hook #0", "timeout of 1s"]);
    before.assert_nothing_new();
}

#[test]
fn a_hook_that_hangs_goes_with_the_command_that_is_killed() {
    let bundle = Bundle::alone(&["true"]);
    let path = recorder(&bundle, "exec sleep 1000");
    let before = Residue::now();
    let bundle = bundle.with(|spec| spec["hooks"]["createRuntime"] = hook(&path, "createRuntime"));
    let running = bundle.command("create", &[], "test").spawn();
    eventually("the hook runs", || !log(&bundle).is_empty());
    let pid = rustix::process::Pid::from_raw(running.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    running.wait();
    bundle.cloister(["delete", "--force", "test"]).run().ok();
    before.assert_nothing_new();
}

#[test]
fn hooks_of_the_start_that_fail_end_the_container() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let path = recorder(&bundle, "exit 4");
    let bundle = bundle.with(|spec| spec["hooks"]["poststart"] = hook(&path, "poststart"));
    bundle.command("create", &[], "test").run().ok();
    bundle
        .cloister(["start", "test"])
        .run()
        .fails(1, &["error running poststart hook #0", "exit status 4"]);
    eventually("it has ended", || bundle.status("test") == "stopped");
    bundle.cloister(["delete", "test"]).run().ok();
    let bundle = bundle.with(|spec| {
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    });
    bundle
        .run()
        .fails(1, &["error running startContainer hook #0: "]);
}
