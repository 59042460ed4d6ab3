//! What is executed in a container, as probes and lifecycle hooks are; and what containers say.

use std::time::{Duration, Instant};

use crate::cri::pod::Case;
use crate::harness::eventually;

pub(crate) fn output_and_exit_code(case: &Case) {
    let pod = case.pod("exec");
    let container = pod.start("c", "exec sleep 1000");
    let script = "echo out; echo err >&2; exit 6";
    let done = container.exec_within(60, &["sh", "-c", script]);
    let done = done.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!(
        (&*done.stdout, &*done.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(done.exit_code, 6);
    let much = container.sh("head -c 4000000 /dev/zero | tr '\\0' x");
    assert_eq!(much.len(), 4_000_000);
    let refused = container.exec_within(60, &["no-such-program"]);
    let refused = refused.expect_err("there is no such program");
    assert!(refused.message.contains("no-such-program"), "{refused}");
}

pub(crate) fn limit(case: &Case) {
    let pod = case.pod("limit");
    let container = pod.start("c", "exec sleep 1000");
    let begin = Instant::now();
    let late = container.exec_within(2, &["sleep", "1001"]);
    let late = late.expect_err("it takes longer than it may");
    assert!(late.message.contains("timeout 2s exceeded"), "{late}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{late}");
    eventually("what was late is gone", || {
        !container.sh("ps -o args").contains("sleep 1001")
    });
}

/// Every line is `TIME STREAM TAG TEXT`.
pub(crate) fn logs(case: &Case) {
    let pod = case.pod("logs");
    let container = pod.start("c", "echo out; echo err >&2; echo last; exec sleep 1000");
    container.await_log(" last\n");
    let text = container.log_text();
    let mut lines = Vec::new();
    for line in text.lines() {
        let fields: Vec<_> = line.splitn(4, ' ').collect();
        let [time, stream, tag, said] = fields[..] else {
            panic!("{line:?} has no four fields");
        };
        let date = time.split_once('T').map(|(date, _)| date.len());
        assert_eq!(date, Some(10), "{time}");
        assert_eq!(tag, "F", "{line}");
        lines.push((stream, said));
    }
    // Two streams have no order among each other.
    lines.sort_unstable();
    assert_eq!(
        lines,
        [("stderr", "err"), ("stdout", "last"), ("stdout", "out")]
    );
}
