//! How the program is scheduled, and which kernel it believes to run on.

use serde_json::{Value, json};

use crate::exec::{SLEEPER, beside, exec, process};
use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    ("policies_of_the_scheduler", policies_of_the_scheduler),
    ("the_deadline_scheduler", the_deadline_scheduler),
    ("flags_of_the_scheduler", flags_of_the_scheduler),
    (
        "a_scheduler_for_a_user_without_privileges",
        a_scheduler_for_a_user_without_privileges,
    ),
    ("io_priorities", io_priorities),
    ("personalities", personalities),
    (
        "the_affinity_is_not_for_the_first_process",
        the_affinity_is_not_for_the_first_process,
    ),
    ("processes_executed_later", processes_executed_later),
    (
        "the_affinity_of_processes_executed_later",
        the_affinity_of_processes_executed_later,
    ),
];

/// Nice value, realtime priority and policy of the program (proc_pid_stat(5), fields 19, 40 and 41).
/// Policies that have no nice value leave that of the tests' process, which counts as 0.
fn scheduling(bundle: &Bundle) -> [i64; 3] {
    parse(bundle.run().lines()[0])
}

fn parse(line: &str) -> [i64; 3] {
    // Field 3 is the first after the name, which is in brackets.
    let (_, rest) = line.rsplit_once(") ").unwrap();
    let fields: Vec<i64> = rest
        .split(' ')
        .skip(1)
        .map(|field| field.parse().unwrap_or(i64::MAX))
        .collect();
    let [nice, priority, policy] = [19, 40, 41].map(|number: usize| fields[number - 4]);
    let inherited = rustix::process::getpriority_process(None).unwrap();
    if matches!(policy, 0 | 3) || nice != i64::from(inherited) {
        [nice, priority, policy]
    } else {
        [0, priority, policy]
    }
}

fn with(scheduler: Value) -> Bundle {
    Bundle::with_args(&["/bin/cat", "/proc/self/stat"]).set("/process/scheduler", scheduler)
}

fn policies_of_the_scheduler() {
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_OTHER"}), [0, 0, 0]),
        (json!({"policy": "SCHED_OTHER", "nice": 7}), [7, 0, 0]),
        (json!({"policy": "SCHED_OTHER", "nice": -5}), [-5, 0, 0]),
        (json!({"policy": "SCHED_BATCH", "nice": 3}), [3, 0, 3]),
        (json!({"policy": "SCHED_IDLE"}), [0, 0, 5]),
        (json!({"policy": "SCHED_FIFO", "priority": 10}), [0, 10, 1]),
        (json!({"policy": "SCHED_RR", "priority": 99}), [0, 99, 2]),
    ] {
        assert_eq!(
            scheduling(&with(scheduler.clone())),
            expected,
            "{scheduler}"
        );
    }
}

fn the_deadline_scheduler() {
    let times = json!({
        "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 10_000_000, "period": 10_000_000,
    });
    let [_, _, policy] = scheduling(&with(times));
    assert_eq!(policy, 6);
    // More than there is.
    let error = with(json!({
        "policy": "SCHED_DEADLINE", "runtime": 1_u64 << 62, "deadline": 1_u64 << 62,
    }))
    .error();
    assert!(
        error.starts_with("process.scheduler: set SCHED_DEADLINE: "),
        "{error}"
    );
}

fn flags_of_the_scheduler() {
    // What the shell starts has the default again.
    let script = "cat /proc/self/stat; true";
    let bundle = |flags| {
        Bundle::script(script).set(
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 1, "flags": flags}),
        )
    };
    assert_eq!(scheduling(&bundle(json!([]))), [0, 1, 1]);
    let reset = json!(["SCHED_FLAG_RESET_ON_FORK"]);
    assert_eq!(scheduling(&bundle(reset)), [0, 0, 0]);
}

fn a_scheduler_for_a_user_without_privileges() {
    let bundle = with(json!({"policy": "SCHED_RR", "priority": 5}))
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set("/process/capabilities", json!({}));
    assert_eq!(scheduling(&bundle), [0, 5, 2]);
}

fn io_priorities() {
    for (class, expected) in [
        ("IOPRIO_CLASS_RT", "realtime: prio 3"),
        ("IOPRIO_CLASS_BE", "best-effort: prio 3"),
        ("IOPRIO_CLASS_IDLE", "idle"),
    ] {
        let outcome = Bundle::with_args(&["ionice"])
            .set(
                "/process/ioPriority",
                json!({"class": class, "priority": 3}),
            )
            .run();
        assert_eq!(outcome.lines(), [expected]);
    }
}

fn personalities() {
    let script = "uname -m; cat /proc/self/personality";
    let machine = |domain: &str| {
        let outcome = Bundle::script(script)
            .set("/linux/personality", json!({"domain": domain}))
            .run();
        outcome.lines().join(" ")
    };
    assert_eq!(machine("LINUX32"), "i686 00000008");
    assert_eq!(machine("LINUX"), "x86_64 00000000");
}

fn the_affinity_is_not_for_the_first_process() {
    let script = "grep ^Cpus_allowed_list: /proc/self/status";
    let plain = Bundle::script(script).run();
    let outcome = Bundle::script(script)
        .set(
            "/process/execCPUAffinity",
            json!({"initial": "0", "final": "0"}),
        )
        .run();
    assert_eq!(outcome.lines(), plain.lines());
}

fn processes_executed_later() {
    // As the container's first, unless their own object says otherwise.
    let bundle = Bundle::script(SLEEPER)
        .set(
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 5}),
        )
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
        )
        .set("/linux/personality", json!({"domain": "LINUX32"}));
    beside(&bundle, |container| {
        let script = "cat /proc/self/stat; ionice; uname -m";
        let mut process = process(script);
        let (output, _) = exec(container, &process);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(parse(lines[0]), [5, 0, 3], "{output}");
        assert_eq!(lines[1..], ["best-effort: prio 6", "i686"]);
        process["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 3});
        process["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 0});
        let (output, _) = exec(container, &process);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(parse(lines[0]), [0, 3, 1], "{output}");
        assert_eq!(lines[1], "realtime: prio 0");
    });
}

fn the_affinity_of_processes_executed_later() {
    let bundle = Bundle::script(SLEEPER).set("/process/execCPUAffinity", json!({"final": "0"}));
    beside(&bundle, |container| {
        let mut process = process("sed -n 's/^Cpus_allowed_list:.//p' /proc/self/status");
        assert_eq!(exec(container, &process).0, "0\n");
        process["execCPUAffinity"] = json!({"initial": "0"});
        let all = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
        assert_eq!(exec(container, &process).0, all);
    });
}
