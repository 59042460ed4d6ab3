//! Many at once.

use super::harness::{Bundle, Residue};

#[test]
fn twenty_runs_at_once_all_succeed_and_leave_nothing() {
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
