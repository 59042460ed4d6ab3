//! `ctr task exec` and `attach`.

use std::fs;

use crate::harness::Cmd;

use super::daemon::Version;
use super::run::ON_TERMINAL;
use super::{Case, IMAGE, shim};

pub(super) fn codes_and_streams(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "e", "sleep 600");
    assert_eq!(case.status("e"), "RUNNING");
    let finished = case
        .exec("e", "first", "echo out; echo err >&2; exit 6")
        .run();
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert!(finished.err().contains("err\n"), "{finished}");
    // The same name again, once the first is deleted.
    assert_eq!(case.exec("e", "first", "echo again").run().ok(), "again\n");
    let beside = case.exec("e", "second", "tr '\\0' ' ' </proc/1/cmdline");
    assert_eq!(beside.run().ok(), "sleep 600 ");
    let counted = case.exec("e", "third", "wc -c").input(vec![b'x'; 300_000]);
    assert_eq!(counted.run().ok(), "300000\n");
    let missing = case
        .ctr(["task", "exec", "--exec-id", "none", "e", "/no/such/program"])
        .run();
    assert!(!missing.status.success(), "{missing}");
    assert!(missing.err().contains("/no/such/program"), "{missing}");
    assert_eq!(case.status("e"), "RUNNING");
}

pub(super) fn several_at_once(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "e", "sleep 600");
    let meet = "touch /here-$0; until test -e /here-1 -a -e /here-2 -a -e /here-3; do sleep 0.1; done; echo $0; exit $0";
    let ids = ["1", "2", "3"];
    let running = ids.map(|id| {
        let words = ["task", "exec", "--exec-id", id, "e", "sh", "-c", meet, id];
        case.ctr(words).spawn()
    });
    for (id, running) in ids.into_iter().zip(running) {
        let finished = running.wait();
        assert_eq!(finished.status.code(), id.parse().ok(), "{finished}");
        assert_eq!(finished.out(), format!("{id}\n"), "{finished}");
    }
}

pub(super) fn terminal(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "e", "sleep 600");
    let words = "task exec --tty --exec-id t e sh";
    let shown = case.on_terminal("stty rows 33 cols 77;", words, ON_TERMINAL);
    assert!(shown.out().contains("/dev/pts/"), "{shown}");
    assert!(shown.out().contains("sum 42"), "{shown}");
    assert_eq!(shown.status.code(), Some(5), "{shown}");
}

pub(super) fn killed(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "e", "sleep 600");
    let running = case
        .exec("e", "victim", "touch /ready; exec sleep 600")
        .spawn();
    case.await_file("e", "/ready");
    let words = [
        "task",
        "kill",
        "--exec-id",
        "victim",
        "--signal",
        "SIGKILL",
        "e",
    ];
    case.ctr(words).run().ok();
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(137), "{finished}");
    assert_eq!(case.status("e"), "RUNNING");
}

pub(super) fn attach(version: Version) {
    let case = Case::new(version);
    // Standard input that has not ended, as that of a terminal.
    let dir = tempfile::tempdir().expect("a directory");
    let idle = dir.path().join("idle");
    let line = "mkfifo \"$0\" && exec \"$@\" <>\"$0\"";
    let started = Cmd::new("sh").args(["-c", line]).args([&idle]);
    let started = started.args([version.program("ctr")]).args([
        "run",
        "--detach",
        "--runtime",
        shim(),
        IMAGE,
        "a",
        "sh",
        "-c",
        "echo before; read word; echo \"got $word\"; exit 4",
    ]);
    started.outlived().run().ok();
    fs::remove_file(idle).expect("the FIFO");
    let attached = case.ctr(["task", "attach", "a"]).input("hello\n").run();
    assert_eq!(attached.status.code(), Some(4), "{attached}");
    assert!(attached.out().contains("got hello\n"), "{attached}");
}
