//! Rules of `process.scheduler` (config.md#linux-process, sched_setattr(2)).
//!
//! The kernel passes over what does not belong to a policy; that would be a field that is ignored.

use serde_json::Value;

use super::{strings, text};
use crate::walk::Findings;

/// Checks the scheduler of a process object; `prefix` is where the object is.
pub(super) fn check(process: &Value, prefix: &str, findings: &mut Findings) {
    let Some(scheduler) = process.get("scheduler") else {
        return;
    };
    let path = |name: &str| format!("{prefix}scheduler.{name}");
    let policy = text(scheduler, "policy");
    if policy.is_empty() {
        return;
    }
    let number = |name| scheduler.get(name).and_then(Value::as_i64).unwrap_or(0);
    let fair = matches!(policy, "SCHED_OTHER" | "SCHED_BATCH");
    let deadline = policy == "SCHED_DEADLINE";

    let nice = number("nice");
    if nice != 0 && !fair {
        findings.invalid(path("nice"), format!("{policy} has none"));
    } else if !(-20..=19).contains(&nice) {
        findings.invalid(path("nice"), format!("{nice} is not between -20 and 19"));
    }
    let priority = number("priority");
    if matches!(policy, "SCHED_FIFO" | "SCHED_RR") {
        if !(1..=99).contains(&priority) {
            let reason = format!("{priority} is not between 1 and 99, which {policy} requires");
            findings.invalid(path("priority"), reason);
        }
    } else if priority != 0 {
        findings.invalid(path("priority"), format!("{policy} has none"));
    }
    let times = ["runtime", "deadline", "period"].map(|name| {
        let time = scheduler.get(name).and_then(Value::as_u64).unwrap_or(0);
        if time != 0 && !deadline {
            findings.invalid(path(name), format!("{policy} has none"));
        }
        time
    });
    if deadline {
        let [runtime, deadline, period] = times;
        // The kernel's shortest time is 1024 nanoseconds (DL_SCALE).
        if runtime < 1024 {
            findings.invalid(path("runtime"), "is less than 1024 nanoseconds");
        }
        if deadline < runtime {
            findings.invalid(path("deadline"), "is shorter than the runtime");
        }
        if period != 0 && period < deadline {
            findings.invalid(path("period"), "is shorter than the deadline");
        }
    }
    for (index, flag) in strings(scheduler, "flags").enumerate() {
        if matches!(flag, "SCHED_FLAG_RECLAIM" | "SCHED_FLAG_DL_OVERRUN") && !deadline {
            findings.invalid(
                path(&format!("flags[{index}]")),
                format!("{flag} belongs to SCHED_DEADLINE"),
            );
        }
    }
}
