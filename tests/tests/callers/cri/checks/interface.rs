//! What containerd does with a shim of version 3 of the interface.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cri::daemon::BUNDLES;
use crate::cri::pod::{Case, Container};

fn bundle(id: &str) -> PathBuf {
    Path::new(BUNDLES).join(id)
}

/// How the shim was told to be spoken to, in a bundle.
fn bootstrap(id: &str) -> serde_json::Value {
    let file = bundle(id).join("bootstrap.json");
    let text = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// The sandbox's shim is used for the containers beside it, without another `start` or `delete`.
pub(crate) fn one_shim(case: &Case) {
    let pod = case.pod("one");
    let of_pod = bootstrap(&pod.id);
    assert_eq!(of_pod["version"], 3, "{of_pod}");
    let started = |container: &Container| {
        let bundle = bundle(&container.id);
        assert_eq!(bootstrap(&container.id)["version"], 3);
        let sandbox = fs::read_to_string(bundle.join("sandbox")).expect("the sandbox's name");
        assert_eq!(sandbox, pod.id);
        assert!(!bundle.join("address").exists(), "start was executed");
    };
    let one = pod.start("one", "exec sleep 1000");
    started(&one);
    let other = pod.start("other", "exit 5");
    assert_eq!(other.wait(), 5);
    other.remove();
    assert!(!bundle(&other.id).exists(), "the bundle is left");
    assert_eq!(one.sh("echo still"), "still\n");
}

/// There are no FIFOs, and everything comes all the same.
pub(crate) fn streams(case: &Case) {
    let pod = case.pod("streams");
    let script =
        "head -c 3000000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo last; exec sleep 1000";
    let container = pod.start("c", script);
    container.await_log(" last\n");
    let text = container.log_text();
    let lines = text.lines().filter(|line| line.ends_with('x')).count();
    assert_eq!(lines, 3000, "lines came");
    let pid = fs::read_to_string(bundle(&container.id).join("init.pid")).expect("its pid");
    let fds = fs::read_dir(format!("/proc/{}/fd", pid.trim())).expect("its descriptors");
    let targets = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let names = targets.map(|target| target.to_string_lossy().into_owned());
    let fifos: Vec<_> = names.filter(|name| name.ends_with("-stdout")).collect();
    assert!(fifos.is_empty(), "{fifos:?}");
}
