use super::*;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

#[test]
fn the_users_cache_follows_xdg() {
    let of = |xdg: Option<&str>, home: Option<&str>| {
        let cache = Cache::of_user(|name| match name {
            "XDG_CACHE_HOME" => xdg.map(PathBuf::from),
            "HOME" => home.map(PathBuf::from),
            other => panic!("asked for {other}"),
        });
        cache.map(|c| c.root)
    };
    assert_eq!(
        of(Some("/x"), Some("/h")).unwrap(),
        Path::new("/x/cloister")
    );
    assert_eq!(
        of(Some("relative"), Some("/h")).unwrap(),
        Path::new("/h/.cache/cloister")
    );
    assert_eq!(
        of(None, Some("/h")).unwrap(),
        Path::new("/h/.cache/cloister")
    );
    assert!(matches!(of(None, None), Err(CacheError::NoPlace)));
}

#[test]
fn an_entry_appears_whole_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let making = cache
        .lock("kernel", "k", || panic!("nobody has it"))
        .unwrap();
    assert_eq!(making.entry(), cache.entry("kernel", "k"));
    let work = making.work().unwrap();
    fs::write(work.join("rest"), "interrupted").unwrap();
    let work = making.work().unwrap();
    assert!(!work.join("rest").exists());

    let out = work.join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("vmlinux"), "k").unwrap();
    fs::write(making.log(), "log").unwrap();
    assert!(!making.entry().exists());
    making.finish(&out).unwrap();
    assert_eq!(
        fs::read_to_string(making.entry().join("vmlinux")).unwrap(),
        "k"
    );
    assert!(!work.exists());
    assert!(!making.log().exists());
}

#[test]
fn a_second_maker_waits_for_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let first = cache
        .lock("kernel", "k", || panic!("nobody has it"))
        .unwrap();
    // Another entry is no obstacle.
    drop(
        cache
            .lock("kernel", "other", || panic!("nobody has it"))
            .unwrap(),
    );

    let (tell, told) = mpsc::channel();
    let second = {
        let cache = cache.clone();
        std::thread::spawn(move || {
            let making = cache
                .lock("kernel", "k", || tell.send("waits").unwrap())
                .unwrap();
            tell.send("has it").unwrap();
            making.entry().join("done").exists()
        })
    };
    assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok("waits"));
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    let out = first.work().unwrap().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("done"), "").unwrap();
    first.finish(&out).unwrap();
    drop(first);
    assert!(
        second.join().unwrap(),
        "the second maker does not see the entry of the first"
    );
    assert_eq!(told.recv(), Ok("has it"));
}

#[test]
fn a_digest_is_remembered_until_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path().join("cache"));
    let file = dir.path().join("tarball");
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let write = |text: &str, time| {
        fs::write(&file, text).unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    write("one", then);
    assert_eq!(cache.digest_of(&file).unwrap(), digest::of_bytes(b"one"));
    // Same size, same time: the file is not read again. That is what makes it cheap.
    write("two", then);
    assert_eq!(cache.digest_of(&file).unwrap(), digest::of_bytes(b"one"));
    write("two", then + Duration::from_nanos(1000));
    assert_eq!(cache.digest_of(&file).unwrap(), digest::of_bytes(b"two"));
    write("three", then);
    assert_eq!(cache.digest_of(&file).unwrap(), digest::of_bytes(b"three"));

    // A damaged memory is not believed.
    for memo in fs::read_dir(dir.path().join("cache/hash")).unwrap() {
        fs::write(memo.unwrap().path(), "garbage").unwrap();
    }
    assert_eq!(cache.digest_of(&file).unwrap(), digest::of_bytes(b"three"));
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Cache::at(dir.path())
        .digest_of(Path::new("/nonexistent/tar"))
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot find /nonexistent/tar");
}
