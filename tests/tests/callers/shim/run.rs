//! `ctr run` in the foreground.

use super::daemon::Version;
use super::{Case, IMAGE, shim};

/// For a shell on a terminal, which gets its size soon after its start.
pub(super) const ON_TERMINAL: &str = "tty && until stty size | grep '33 77'; do sleep 0.1; done 2>/dev/null; echo sum $((40+2))\nexit 5\n";

pub(super) fn foreground(version: Version) {
    let case = Case::new(version);
    let finished = case.run(&[], "r", "echo out; echo err >&2; exit 7");
    assert_eq!(finished.status.code(), Some(7), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert!(finished.err().contains("err\n"), "{finished}");
}

/// A container takes the name of the one that has just gone, whose shim may be about to.
pub(super) fn the_same_name_at_once(version: Version) {
    let case = Case::new(version);
    for round in 0..20 {
        let said = case.run(&[], "again", &format!("echo {round}"));
        assert_eq!(said.ok(), format!("{round}\n"));
    }
}

pub(super) fn exit_codes(version: Version) {
    let case = Case::new(version);
    assert_eq!(case.run(&[], "zero", "exit 0").ok(), "");
    let running = case
        .command(&["--rm"], "killed", "touch /ready; exec sleep 600")
        .spawn();
    case.await_status("killed", "RUNNING");
    case.await_file("killed", "/ready");
    let words = ["task", "kill", "--signal", "SIGKILL", "killed"];
    case.ctr(words).run().ok();
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(137), "{finished}");
}

pub(super) fn input_to_its_end(version: Version) {
    let case = Case::new(version);
    // More than is taken before the program starts: `ctr` closes nothing if its own input ends while it creates the task.
    let input = vec![b'x'; 4_000_000];
    let command = case.command(&["--rm"], "i", "wc -c; echo ended");
    let finished = command.input(input).run();
    assert_eq!(finished.out(), "4000000\nended\n", "{finished}");
}

pub(super) fn terminal(version: Version) {
    let case = Case::new(version);
    let words = format!("run --rm --tty --runtime {} {IMAGE} t sh", shim());
    let shown = case.on_terminal("stty rows 33 cols 77;", &words, ON_TERMINAL);
    assert!(shown.out().contains("sum 42"), "{shown}");
    assert_eq!(shown.status.code(), Some(5), "{shown}");
}

pub(super) fn terminal_resized(version: Version) {
    let case = Case::new(version);
    let ctr = version.program("ctr");
    // As soon as the container runs, whoever has the terminal makes it larger.
    let resize = format!(
        "stty rows 33 cols 77; \
         (until {} task list | grep -q RUNNING; do sleep 0.2; done; stty rows 44 cols 88 </dev/tty) &",
        ctr.display()
    );
    let wait = "until test \"$(stty size)\" = \"44 88\"; do sleep 0.1; done; exit 9";
    let words = format!(
        "run --rm --tty --runtime {} {IMAGE} t sh -c '{wait}'",
        shim()
    );
    let shown = case.on_terminal(&resize, &words, "");
    assert_eq!(shown.status.code(), Some(9), "{shown}");
}
