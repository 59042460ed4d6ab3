//! How the program is scheduled and which kernel it believes to run on (config.md#linux-process,
//! config-linux.md#personality). All of it is inherited by what the program starts.

use cloister_spec::{IO_PRIORITY_CLASSES, PERSONALITIES, SCHEDULER_FLAGS, SCHEDULER_POLICIES};
use rustix::thread::CpuSet;

use crate::config::{ExecCpuAffinity, IoPriority, Personality, Process, Scheduler};
use crate::error::{Context, Failure};
use crate::sys::attributes::{self, SchedAttr};

/// Sets what `process` says of scheduling. Needs the privileges that the program may not have.
pub(crate) fn apply(process: &Process) -> Result<(), Failure> {
    if let Some(scheduler) = &process.scheduler {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = &process.io_priority {
        set_io_priority(priority)?;
    }
    Ok(())
}

/// In the order of [`SCHEDULER_POLICIES`]: SCHED_BATCH and so on (linux/sched.h).
const POLICIES: [u32; 6] = [3, 6, 1, 5, 0, 2];

/// In the order of [`SCHEDULER_FLAGS`]: SCHED_FLAG_DL_OVERRUN and so on (linux/sched.h).
const FLAGS: [u64; 5] = [0x04, 0x10, 0x08, 0x02, 0x01];

/// In the order of [`IO_PRIORITY_CLASSES`]: best effort, idle, realtime (linux/ioprio.h).
const CLASSES: [u8; 3] = [2, 3, 1];

/// In the order of [`PERSONALITIES`] (linux/personality.h).
const DOMAINS: [i32; 2] = [0, 0x08];

/// The number at the place that `name` has among `names`.
fn number<T: Copy>(field: &str, names: &[&str], numbers: &[T], name: &str) -> Result<T, Failure> {
    names
        .iter()
        .zip(numbers)
        .find_map(|(known, number)| (*known == name).then_some(*number))
        .ok_or_else(|| Failure::invalid(format!("{field}: unknown {name:?}")))
}

fn set_scheduler(scheduler: &Scheduler) -> Result<(), Failure> {
    let policy = number(
        "process.scheduler.policy",
        SCHEDULER_POLICIES.supported,
        &POLICIES,
        &scheduler.policy,
    )?;
    let mut flags = 0;
    for flag in &scheduler.flags {
        let names = SCHEDULER_FLAGS.supported;
        flags |= number("process.scheduler.flags", names, &FLAGS, flag)?;
    }
    attributes::sched_setattr(SchedAttr {
        policy,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        ..SchedAttr::default()
    })
    .doing(|| format!("process.scheduler: set {}", scheduler.policy))
    .map_err(Failure::blamed_on_spec)
}

fn set_io_priority(priority: &IoPriority) -> Result<(), Failure> {
    let class = number(
        "process.ioPriority.class",
        IO_PRIORITY_CLASSES.supported,
        &CLASSES,
        &priority.class,
    )?;
    attributes::ioprio_set(class, priority.priority)
        .doing(|| {
            format!(
                "process.ioPriority: set {} {}",
                priority.class, priority.priority
            )
        })
        .map_err(Failure::blamed_on_spec)
}

/// `linux.personality`.
pub(crate) fn set_personality(personality: &Personality) -> Result<(), Failure> {
    let domain = number(
        "linux.personality.domain",
        PERSONALITIES.supported,
        &DOMAINS,
        &personality.domain,
    )?;
    attributes::personality(domain)
        .doing(|| format!("linux.personality: set {}", personality.domain))
}

/// `process.execCPUAffinity` while the process joins its container.
pub(crate) fn affinity_before(affinity: &ExecCpuAffinity) -> Result<(), Failure> {
    bind("process.execCPUAffinity.initial", &affinity.initial)
}

/// `process.execCPUAffinity` when it has joined. Without a list the kernel decides, which takes all
/// processors of the cgroup for a process that enters it.
pub(crate) fn affinity_after(affinity: &ExecCpuAffinity) -> Result<(), Failure> {
    if affinity.last.is_empty() && !affinity.initial.is_empty() {
        let mut all = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
        return rustix::thread::sched_setaffinity(None, &all)
            .doing(|| "process.execCPUAffinity: unbind");
    }
    bind("process.execCPUAffinity.final", &affinity.last)
}

/// Binds this process to the processors in a list; an empty one changes nothing.
fn bind(field: &str, list: &str) -> Result<(), Failure> {
    if list.is_empty() {
        return Ok(());
    }
    let set = cpu_set(list).ok_or_else(|| {
        Failure::invalid(format!("{field}: {list:?} is not a list of processors"))
    })?;
    rustix::thread::sched_setaffinity(None, &set)
        .doing(|| format!("{field}: bind to the processors {list} of the virtual machine"))
        .map_err(Failure::blamed_on_spec)
}

/// cpuset(7), "List format".
fn cpu_set(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        if last >= CpuSet::MAX_CPU {
            return None;
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_tables_has_a_number() {
        assert_eq!(SCHEDULER_POLICIES.supported.len(), POLICIES.len());
        assert_eq!(SCHEDULER_FLAGS.supported.len(), FLAGS.len());
        assert_eq!(IO_PRIORITY_CLASSES.supported.len(), CLASSES.len());
        assert_eq!(PERSONALITIES.supported.len(), DOMAINS.len());
    }

    #[test]
    fn a_list_of_processors_has_numbers_and_ranges() {
        let cpus = |list| {
            let set = cpu_set(list)?;
            Some((0..16).filter(|&cpu| set.is_set(cpu)).collect::<Vec<_>>())
        };
        assert_eq!(cpus("0-2,7, 9"), Some(vec![0, 1, 2, 7, 9]));
        assert_eq!(cpus("3"), Some(vec![3]));
        assert_eq!(cpus("0-1024"), None);
        assert_eq!(cpus("a"), None);
    }

    #[test]
    fn a_thread_is_bound_to_the_first_processor_it_may_use() {
        let may = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| may.is_set(cpu)).unwrap();
        let affinity = |list: &str| ExecCpuAffinity {
            initial: list.into(),
            last: String::new(),
        };
        affinity_before(&affinity(&first.to_string())).unwrap();
        let now = rustix::thread::sched_getaffinity(None).unwrap();
        assert_eq!(now.count(), 1);
        affinity_after(&affinity("0")).unwrap();
        assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), may);
        let error = affinity_before(&affinity("1023")).unwrap_err();
        assert!(
            error
                .message
                .starts_with("process.execCPUAffinity.initial: bind to the processors 1023")
        );
    }
}
