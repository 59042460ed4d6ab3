use std::collections::HashMap;

use super::*;

fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

pub(crate) fn state(id: &str) -> State {
    let me = ProcessId::current().unwrap();
    State {
        version: STATE_VERSION,
        id: id.to_owned(),
        oci_version: "1.0.2".into(),
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        created: "2026-01-02T03:04:05.678Z".into(),
        annotations: HashMap::new(),
        boot_id: crate::process::boot_id().unwrap(),
        monitor: me,
        sandbox: None,
        vmm: Some(me),
        fs: Some(me),
        vm: Some(VmSize {
            memory_mib: 128,
            vcpus: 1,
        }),
        cgroup: None,
        network: None,
        hooks: None,
        phase: Phase::Created,
    }
}

#[test]
fn an_id_is_claimed_once() {
    let root = tempfile::tempdir().unwrap();
    // The root is made on the way.
    let root = root.path().join("run/cloister");
    let first = StateDir::create(&root, &id("a")).unwrap();
    assert_eq!(
        fs::metadata(first.paths().dir()).unwrap().mode() & 0o777,
        0o700
    );
    let second = StateDir::create(&root, &id("a")).unwrap_err();
    assert_eq!(
        second.to_string(),
        "container with given ID already exists: a"
    );
    first.remove().unwrap();
    StateDir::create(&root, &id("a")).unwrap();
}

#[test]
fn a_lock_keeps_others_out_and_a_removed_directory_is_gone_for_the_waiter() {
    let root = tempfile::tempdir().unwrap();
    let holder = StateDir::create(root.path(), &id("a")).unwrap();
    let waiter = StateDir::open(root.path(), &id("a")).unwrap();
    let busy = waiter.lock(Duration::from_millis(20)).unwrap_err();
    assert!(matches!(busy, StateError::Busy(_)), "{busy}");
    holder.remove().unwrap();
    drop(holder);
    let gone = waiter.lock(Duration::from_secs(1)).unwrap_err();
    assert!(matches!(gone, StateError::NotFound(_)), "{gone}");
}

#[test]
fn the_status_follows_from_files_and_liveness() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), &id("a")).unwrap();
    assert!(matches!(dir.load(), Err(StateError::NotFound(_))));
    let mut state = state("a");

    state.phase = Phase::Creating;
    write(dir.paths(), &state).unwrap();
    assert_eq!(dir.load().unwrap(), state);
    assert_eq!(dir.status(&state), Status::Creating);

    state.phase = Phase::Created;
    assert_eq!(dir.status(&state), Status::Created);
    dir.mark_started(true).unwrap();
    assert_eq!(dir.status(&state), Status::Running);

    // The pid is used again by a process that was born at another time.
    let alive = state.monitor;
    state.monitor.start_time += 1;
    assert_eq!(dir.status(&state), Status::Stopped);
    state.monitor = alive;

    state.phase = Phase::Exited {
        code: 3,
        signal: 0,
        error: None,
        oom_killed: false,
    };
    assert_eq!(dir.status(&state), Status::Stopped);
}

#[test]
fn an_end_without_the_oom_killer_is_written_as_it_always_was() {
    let mut phase = Phase::Exited {
        code: 0,
        signal: 9,
        error: None,
        oom_killed: false,
    };
    let text = r#"{"name":"exited","code":0,"signal":9,"error":null}"#;
    assert_eq!(serde_json::to_string(&phase).unwrap(), text);
    assert_eq!(serde_json::from_str::<Phase>(text).unwrap(), phase);
    if let Phase::Exited { oom_killed, .. } = &mut phase {
        *oom_killed = true;
    }
    let text = serde_json::to_string(&phase).unwrap();
    assert!(text.ends_with(r#""oom_killed":true}"#), "{text}");
    assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
}

#[test]
fn processes_of_another_boot_are_nobody() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), &id("a")).unwrap();
    let mut state = state("a");
    write(dir.paths(), &state).unwrap();
    assert_eq!(dir.status(&dir.load().unwrap()), Status::Created);
    state.boot_id = "7a1f3a8e-0000-4000-8000-000000000000".into();
    write(dir.paths(), &state).unwrap();
    for seen in [dir.load().unwrap(), dir.salvage().unwrap()] {
        assert!(!seen.is_of_this_boot().unwrap());
        assert_eq!(dir.status(&seen), Status::Stopped);
        assert!(seen.processes().all(|process| !process.alive()));
    }
}

#[test]
fn damage_and_other_versions_are_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), &id("a")).unwrap();
    fs::write(
        dir.paths().state(),
        format!("{{\"version\": {STATE_VERSION}}}"),
    )
    .unwrap();
    let error = dir.load().unwrap_err().to_string();
    assert!(error.ends_with("state.json is damaged"), "{error}");
    fs::write(dir.paths().state(), "{\"version\": 99, \"new\": true}").unwrap();
    let error = dir.load().unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn a_reader_never_sees_half_a_state() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), &id("a")).unwrap();
    let mut state = state("a");
    write(dir.paths(), &state).unwrap();
    let paths = dir.paths().clone();
    let writer = std::thread::spawn(move || {
        for n in 0..300 {
            state.annotations = (0..n % 50)
                .map(|i| (i.to_string(), "x".repeat(100)))
                .collect();
            write(&paths, &state).unwrap();
        }
    });
    while !writer.is_finished() {
        assert_eq!(dir.load().unwrap().id, "a");
    }
    writer.join().unwrap();
    let left: Vec<_> = fs::read_dir(dir.paths().dir())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["state.json"], "no temporary file stays");
}

#[test]
fn only_what_can_be_a_container_is_listed() {
    let root = tempfile::tempdir().unwrap();
    for name in ["b", "a"] {
        StateDir::create(root.path(), &id(name)).unwrap();
    }
    fs::write(root.path().join("file"), "").unwrap();
    fs::create_dir(root.path().join("not an id")).unwrap();
    let ids: Vec<_> = StateDir::all(root.path())
        .unwrap()
        .iter()
        .map(|d| d.id().to_string())
        .collect();
    assert_eq!(ids, ["a", "b"]);
    assert!(StateDir::all(&root.path().join("none")).unwrap().is_empty());
}

#[test]
fn one_that_cannot_be_opened_does_not_hide_the_others() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    // Not even root opens what has too long a path (PATH_MAX is 4096).
    let top = tempfile::tempdir().unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut root = top.path().to_owned();
    let mut dir = openat(CWD, &root, flags, Mode::empty()).unwrap();
    while root.as_os_str().len() < 3900 {
        let left = (4000 - root.as_os_str().len()).min(200);
        let name = "d".repeat(left);
        mkdirat(&dir, &*name, Mode::RWXU).unwrap();
        dir = openat(&dir, &*name, flags, Mode::empty()).unwrap();
        root.push(name);
    }
    let long = "b".repeat(200);
    for name in ["a", &long, "c"] {
        mkdirat(&dir, name, Mode::RWXU).unwrap();
    }
    let all = StateDir::all(&root).unwrap();
    let ids: Vec<_> = all.iter().map(|dir| dir.id().as_str()).collect();
    assert_eq!(ids, ["a", "c"]);
    let each = StateDir::each(&root).unwrap();
    assert!(matches!(&each[1], (id, Err(StateError::Access(..))) if id.as_str() == long));
    // Which needs no such path.
    fs::remove_dir_all(top.path()).unwrap();
}
