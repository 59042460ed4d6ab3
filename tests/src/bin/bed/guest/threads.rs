//! What every thread in the bed does: what is told of a command that is killed because it took too long.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// No more is told: it waits in memory.
const LONGEST: usize = 256 << 10;

/// The parent of the kernel's own threads.
const KTHREADD: &str = "2";

/// Of one thread, as its files in /proc have it.
#[derive(Debug, Clone, Copy)]
struct Thread<'proc> {
    id: u32,
    stat: &'proc str,
    /// The place in the kernel where it sleeps.
    wchan: &'proc str,
    /// The number of the system call it is in, and its arguments.
    syscall: &'proc str,
}

/// For every process but the kernel's own its cgroup, and below it a line for each of its threads. Nothing is read that a
/// process which stands still can hold, as its command line is.
pub(super) fn describe() -> String {
    let mut text = "every process, and where its threads wait:\n".to_owned();
    for pid in numbers(Path::new("/proc")) {
        let dir = format!("/proc/{pid}");
        let stat = read(&format!("{dir}/stat"));
        let parent = after_name(&stat).split(' ').nth(1);
        if parent == Some(KTHREADD) || pid.to_string() == KTHREADD || text.len() > LONGEST {
            continue;
        }
        let cgroup = read(&format!("{dir}/cgroup"));
        let cgroup = cgroup.lines().last().unwrap_or_default();
        // A string takes whatever is written.
        _ = writeln!(text, "{pid} in {cgroup}");
        for id in numbers(&Path::new(&dir).join("task")) {
            let read = |name| read(&format!("{dir}/task/{id}/{name}"));
            let thread = Thread {
                id,
                stat: &read("stat"),
                wchan: &read("wchan"),
                syscall: &read("syscall"),
            };
            _ = writeln!(text, "  {}", line(thread));
        }
    }
    text
}

/// "7 name S futex_wait_queue 202": its number, its name, its state, where it waits and its system call.
fn line(thread: Thread<'_>) -> String {
    let id = thread.id;
    let name = thread.stat.split_once('(').map(|(_, rest)| rest);
    let name = name.and_then(|rest| rest.rsplit_once(") "));
    let name = name.map_or("?", |(name, _)| name);
    let state = after_name(thread.stat).get(..1).unwrap_or("?");
    let call = thread.syscall.split(' ').next().unwrap_or_default();
    format!("{id} {name} {state} {} {}", thread.wchan, call.trim_end())
}

/// The fields of a `stat` file behind the name, which is in brackets and may have some itself: state, parent, …
fn after_name(stat: &str) -> &str {
    stat.rsplit_once(") ").map_or("", |(_, fields)| fields)
}

/// The entries of a directory whose names are numbers, the smallest first.
fn numbers(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// What is in a file of /proc, which may be gone by now.
fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_in_a_line() {
        let thread = Thread {
            id: 7,
            stat: "7 (a) b) S 1 7 7 0",
            wchan: "futex_wait_queue",
            syscall: "202 0x1 0x2",
        };
        assert_eq!(line(thread), "7 a) b S futex_wait_queue 202");
        let gone = Thread {
            stat: "",
            wchan: "",
            syscall: "",
            ..thread
        };
        assert_eq!(line(gone), "7 ? ?  ");
    }

    #[test]
    fn this_process_is_among_them() {
        let text = describe();
        let own = format!("\n{} in ", std::process::id());
        assert!(text.contains(&own), "{text}");
    }
}
