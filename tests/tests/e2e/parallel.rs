//! Many at once.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::harness::{Bundle, LIMIT, Residue};

/// How many are created at once; more where somebody wants to know what breaks first.
fn creates() -> usize {
    match std::env::var("CLOISTER_TEST_CREATES") {
        Ok(count) => count.parse().expect("CLOISTER_TEST_CREATES: a number"),
        Err(_) => 30,
    }
}

/// One crowd at a time.
fn alone() -> MutexGuard<'static, ()> {
    static CROWD: Mutex<()> = Mutex::new(());
    CROWD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn twenty_runs_at_once_all_succeed_and_leave_nothing() {
    let _alone = alone();
    let bundle = Bundle::alone(&["sh", "-c", "read n; echo got $n; exit $n"]);
    let before = Residue::now();
    let running: Vec<_> = (0..20)
        .map(|n| {
            bundle
                .command("run", &[], &format!("p{n}"))
                .input(format!("{n}\n"))
                .spawn()
        })
        .collect();
    for (n, running) in running.into_iter().enumerate() {
        let finished = running.wait();
        assert_eq!(finished.status.code(), i32::try_from(n).ok(), "{finished}");
        assert_eq!(finished.out(), format!("got {n}\n"));
    }
    before.assert_nothing_new();
}

#[test]
fn many_creates_at_once_succeed_or_say_why_and_leave_nothing() {
    let _alone = alone();
    let count = creates();
    // Each may wait for all others.
    let limit = LIMIT.max(Duration::from_secs(5) * u32::try_from(count).expect("a number"));
    let bundle = Bundle::alone(&["sleep", "1000"]);
    let before = Residue::now();
    let pid_file = |n: usize| bundle.scratch(&format!("pid{n}"));
    // One name is wanted twice.
    let wanted: Vec<_> = (0..count).chain([0]).collect();
    let running: Vec<_> = wanted
        .iter()
        .map(|n| {
            let pid_file = pid_file(*n);
            let options = ["--pid-file", pid_file.to_str().expect("a path")];
            bundle
                .command("create", &options, &format!("c{n}"))
                .outlived()
                .within(limit)
                .spawn()
        })
        .collect();
    let mut created = BTreeSet::new();
    let mut failed = Vec::new();
    for (n, running) in wanted.iter().zip(running) {
        let finished = running.wait();
        if finished.code() == 0 {
            assert!(created.insert(format!("c{n}")), "c{n} was created twice");
            continue;
        }
        let error = finished.err();
        let (_, reason) = error.split_once("create failed: ").unwrap_or_default();
        assert!(reason.len() > 1 && finished.code() == 1, "c{n}: {finished}");
        failed.push((format!("c{n}"), reason.trim().to_owned()));
    }
    println!("{} of {count} were created", created.len());
    for (id, reason) in &failed {
        println!("{id}: {reason}");
    }
    let taken = failed
        .iter()
        .filter(|(_, reason)| reason.contains("already exists"));
    assert_eq!(taken.count(), 1, "{failed:#?}");
    if count <= 20 {
        assert_eq!(created.len(), count, "{failed:#?}");
    }

    let list = || {
        let list = bundle.cloister(["list", "--format", "json"]).within(limit);
        let list: serde_json::Value = serde_json::from_str(&list.run().ok()).expect("JSON");
        list.as_array().cloned().unwrap_or_default()
    };
    let listed = list();
    for container in &listed {
        let id = container["id"].as_str().expect("an id");
        assert_eq!(container["status"], "created", "{id}");
        let n = id.trim_start_matches('c').parse().expect("a number");
        let pid = std::fs::read_to_string(pid_file(n)).expect("a pid file");
        assert_eq!(container["pid"].to_string(), pid, "{id}");
        std::fs::remove_file(pid_file(n)).expect("a pid file");
    }
    let ids = listed
        .iter()
        .filter_map(|container| container["id"].as_str());
    assert_eq!(ids.map(str::to_owned).collect::<BTreeSet<_>>(), created);

    let deleting: Vec<_> = created
        .iter()
        .map(|id| {
            let delete = bundle.cloister(["delete", "--force", id]);
            delete.within(limit).spawn()
        })
        .collect();
    for deleting in deleting {
        deleting.wait().ok();
    }
    assert_eq!(list(), [serde_json::Value::Null; 0]);
    assert_eq!(bundle.ids(), [""; 0]);
    before.assert_nothing_new();
}
