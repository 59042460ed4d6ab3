use std::collections::HashMap;

use oci_spec::runtime::LinuxNamespaceBuilder;

use super::*;

fn find(typ: LinuxNamespaceType, path: &str) -> Result<Placement, String> {
    let root = tempfile::tempdir().unwrap();
    let builder = LinuxNamespaceBuilder::default().typ(typ);
    let namespace = match path {
        "" => builder.build(),
        path => builder.path(path).build(),
    };
    Placement::find(root.path(), &[namespace.unwrap()], &HashMap::new()).map_err(|e| e.to_string())
}

#[test]
fn new_namespaces_are_held_where_they_can_be() {
    let placement = find(LinuxNamespaceType::Network, "").unwrap();
    assert_eq!(placement.new, libc::CLONE_NEWNET);
    assert_eq!(find(LinuxNamespaceType::Pid, "").unwrap().new, 0);
}

#[test]
fn what_is_no_containers_is_refused_by_name() {
    let error = find(LinuxNamespaceType::Network, "/proc/self/ns/net").unwrap_err();
    assert!(
        error.contains("linux.namespaces[0].path: refused"),
        "{error}"
    );
    assert!(error.contains("the network of this machine"), "{error}");
    let error = find(LinuxNamespaceType::Ipc, "/proc/self/ns/ipc").unwrap_err();
    assert!(error.contains("no container's ipc namespace"), "{error}");
    let error = find(LinuxNamespaceType::Ipc, "/proc/self/ns/uts").unwrap_err();
    assert!(error.ends_with("is not a ipc namespace"), "{error}");
    let error = find(LinuxNamespaceType::Pid, "/etc/passwd").unwrap_err();
    assert!(
        error.ends_with("/etc/passwd is not a pid namespace"),
        "{error}"
    );
    let error = find(LinuxNamespaceType::Pid, "/nonesuch").unwrap_err();
    assert_eq!(error, "config.json: linux.namespaces[0].path: /nonesuch");
}

#[test]
fn a_pod_is_known_by_its_annotations() {
    let annotations = |kind: &str| {
        HashMap::from([
            (
                "io.kubernetes.cri.container-type".to_owned(),
                kind.to_owned(),
            ),
            ("io.kubernetes.cri.sandbox-id".to_owned(), "pod".to_owned()),
        ])
    };
    assert_eq!(
        pod(&annotations("container")),
        Some(("io.kubernetes.cri.sandbox-id", "pod"))
    );
    assert_eq!(pod(&annotations("sandbox")), None);
    let root = tempfile::tempdir().unwrap();
    let error = Placement::find(root.path(), &[], &annotations("container")).unwrap_err();
    assert!(error.to_string().contains("no sandbox \"pod\""), "{error}");
    let mut podmans = annotations("container");
    podmans.insert("io.container.manager".into(), "libpod".into());
    let placement = Placement::find(root.path(), &[], &podmans).unwrap();
    assert_eq!(placement.sandbox, None);
}

#[test]
fn what_crio_has_made_for_a_pod_is_its_sandboxs() {
    let root = tempfile::tempdir().unwrap();
    let made = std::thread::spawn(|| {
        crate::sys::new_namespaces(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS).unwrap();
        ["ipc", "uts"].map(|link| File::open(format!("/proc/thread-self/ns/{link}")).unwrap())
    });
    let [ipc, uts] = &made.join().unwrap();
    let place = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let find = |typ, path: &str, kind: &str| {
        let annotations = HashMap::from([(CRIO_TYPE.to_owned(), kind.to_owned())]);
        let builder = LinuxNamespaceBuilder::default().typ(typ).path(path);
        let found = Placement::find(root.path(), &[builder.build().unwrap()], &annotations);
        found.map_err(|e| e.to_string())
    };
    for (typ, kind, file) in [
        (LinuxNamespaceType::Ipc, "ipc", ipc),
        (LinuxNamespaceType::Uts, "uts", uts),
    ] {
        let placement = find(typ, &place(file), "sandbox").unwrap();
        assert_eq!(placement.made, [(kind.to_owned(), place(file).into())]);
        assert_eq!(placement.new, 0);
        let error = find(typ, &place(file), "other").unwrap_err();
        assert!(error.contains("is no container's"), "{error}");
        // The machine's own is nobody's, and neither is a process'.
        let own = File::open(format!("/proc/self/ns/{kind}")).unwrap();
        find(typ, &place(&own), "sandbox").unwrap_err();
    }
    let other = format!("/proc/{}/ns/ipc", std::process::id());
    find(LinuxNamespaceType::Ipc, &other, "sandbox").unwrap_err();
    // One that a process is in, by whatever path.
    let mut sleeper = std::process::Command::new("unshare")
        .args(["--uts", "sleep", "1000"])
        .spawn()
        .unwrap();
    let link = format!("/proc/{}/ns/uts", sleeper.id());
    let own = std::fs::read_link("/proc/self/ns/uts").unwrap();
    while std::fs::read_link(&link).unwrap() == own {
        std::thread::yield_now();
    }
    let held = File::open(&link).unwrap();
    let refused = find(LinuxNamespaceType::Uts, &place(&held), "sandbox");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(refused.unwrap_err().contains("is no container's"));
}

#[test]
fn a_container_that_cannot_be_read_is_named_where_it_may_be_meant() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("old")).unwrap();
    std::fs::write(root.path().join("old/state.json"), "{\"version\": 1}").unwrap();
    let find = |typ, path: &str, annotations| {
        let builder = LinuxNamespaceBuilder::default().typ(typ).path(path);
        let found = Placement::find(root.path(), &[builder.build().unwrap()], &annotations);
        found.map_err(|e| crate::text::chain(&e))
    };
    let error = find(LinuxNamespaceType::Ipc, "/proc/self/ns/ipc", HashMap::new()).unwrap_err();
    let expected = "config.json: linux.namespaces[0].path: /proc/self/ns/ipc: it may be that of container old, whose state cannot be read: ";
    assert!(error.starts_with(expected), "{error}");
    let pod = HashMap::from([
        (
            "io.kubernetes.cri.container-type".to_owned(),
            "container".to_owned(),
        ),
        ("io.kubernetes.cri.sandbox-id".to_owned(), "pod".to_owned()),
    ]);
    let error = find(LinuxNamespaceType::Ipc, "/proc/self/ns/ipc", pod).unwrap_err();
    let expected = "config.json: annotations[\"io.kubernetes.cri.sandbox-id\"]: it may be that of container old";
    assert!(error.starts_with(expected), "{error}");
    // A network that is nobody's process's has nothing to do with it.
    let other = std::thread::spawn(|| {
        crate::sys::new_namespaces(libc::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let network = other.join().unwrap();
    let path = format!("/proc/self/fd/{}", network.as_raw_fd());
    let placement = find(LinuxNamespaceType::Network, &path, HashMap::new()).unwrap();
    assert_eq!(placement.network, Some(path.into()));
}

#[test]
fn what_a_monitor_says_tells_whether_its_container_has_ended() {
    use crate::process::ProcessId;

    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), &ContainerId::new("pod").unwrap()).unwrap();
    let ended = || has_ended(root.path(), "pod", Duration::from_millis(50));
    // Deleted, or as good as that.
    assert!(ended());
    let mut state = crate::state::tests::state("pod");
    let mut write = |phase: Phase, monitor| {
        (state.phase, state.monitor) = (phase, monitor);
        crate::state::write(dir.paths(), &state).unwrap();
    };
    let exited = |error: Option<&str>| Phase::Exited {
        code: 0,
        signal: 0,
        error: error.map(str::to_owned),
        oom_killed: false,
    };
    let me = ProcessId::current().unwrap();
    write(Phase::Created, me);
    assert!(!ended());
    // Its monitor need not be gone.
    write(exited(None), me);
    assert!(ended());
    write(exited(Some("a triple fault")), me);
    assert!(!ended());
    let mut child = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let killed = ProcessId::of(child.id().cast_signed()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    write(Phase::Created, killed);
    assert!(ended());
    write(exited(Some("a triple fault")), killed);
    assert!(!ended());
}

#[test]
fn a_path_names_a_process() {
    assert_eq!(path_owner(Path::new("/proc/12/ns/net")), Some(12));
    assert_eq!(path_owner(Path::new("/proc/self/ns/net")), None);
    assert_eq!(path_owner(Path::new("/run/netns/x")), None);
}
