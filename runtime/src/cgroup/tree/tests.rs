use super::*;

#[test]
fn the_way_to_a_cgroup_does_not_include_the_mount_point() {
    let steps_to = |path| steps(Path::new("/c/m"), Path::new(path));
    assert_eq!(
        steps_to("/c/m/a/b"),
        [Path::new("/c/m/a"), Path::new("/c/m/a/b")]
    );
    assert!(steps_to("/c/m").is_empty());
    assert!(steps_to("/elsewhere/a").is_empty());
}

#[test]
fn what_was_made_is_removed_unless_kept() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let there = root.join("there");
    fs::create_dir(&there).unwrap();
    let path = there.join("a/b");
    let make = || {
        let mut made = Made::default();
        make_v1("memory", root, &path, &mut made).unwrap();
        assert!(path.is_dir());
        made
    };
    let made = make();
    assert!(made.has(&path) && !made.has(&there));
    drop(made);
    assert!(there.is_dir() && !there.join("a").exists());
    make().keep();
    assert!(path.is_dir());
    assert!(!make().has(&path), "it was there");
    assert!(path.is_dir());
    // One that others use stays.
    fs::remove_dir(&path).unwrap();
    let made = make();
    fs::create_dir(path.join("other")).unwrap();
    drop(made);
    assert!(path.join("other").is_dir());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let path = dir.path().join("made/file/x");
    let mut made = Made::default();
    fs::create_dir(dir.path().join("made")).unwrap();
    fs::write(dir.path().join("made/file"), "").unwrap();
    let error = make_v1("memory", dir.path(), &path, &mut made).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot create cgroup {}", path.display())
    );
}

#[test]
fn controllers_are_handed_down_along_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let middle = root.join("a");
    fs::create_dir(&middle).unwrap();
    for (dir, enabled) in [(root, "cpu\n"), (&*middle, "")] {
        fs::write(dir.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(dir.join("cgroup.subtree_control"), enabled).unwrap();
    }
    make_v2(root, &middle.join("b"), true, &mut Made::default()).unwrap();
    let enabled = |dir: &Path| fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap();
    assert_eq!(enabled(root), "+memory +pids");
    assert_eq!(enabled(&middle), "+cpu +memory +pids");
}

#[test]
fn threads_have_no_memory_limit_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::create_dir(&path).unwrap();
    let mut made = Made::default();
    let mode = path.join("cgroup.type");
    fs::write(&mode, "domain invalid\n").unwrap();
    let error = make_v2(dir.path(), &path, true, &mut made).unwrap_err();
    let message = error.to_string();
    assert!(
        message.ends_with("it is in mode \"domain invalid\""),
        "{message}"
    );
    make_v2(dir.path(), &path, false, &mut made).unwrap();
    assert_eq!(fs::read_to_string(&mode).unwrap(), "threaded");
    make_v2(dir.path(), &path, true, &mut made).unwrap_err();
    make_v2(dir.path(), &path, false, &mut made).unwrap();
    fs::write(&mode, "domain\n").unwrap();
    make_v2(dir.path(), &path, true, &mut made).unwrap();
}

#[test]
fn processes_are_found_all_the_way_down() {
    let dir = tempfile::tempdir().unwrap();
    let child = dir.path().join("a/b");
    fs::create_dir_all(&child).unwrap();
    fs::write(dir.path().join("cgroup.procs"), "0\n12\n").unwrap();
    fs::write(child.join("cgroup.procs"), "13\n").unwrap();
    assert_eq!(processes(dir.path()).unwrap(), [12, 13]);
    assert!(processes(&dir.path().join("none")).unwrap().is_empty());
}

#[test]
fn removal_goes_all_the_way_down_and_is_no_error_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::create_dir_all(path.join("b/c")).unwrap();
    fs::create_dir_all(path.join("d")).unwrap();
    let now = Instant::now();
    remove(&path, now).unwrap();
    assert!(!path.exists());
    remove(&path, now).unwrap();
}
