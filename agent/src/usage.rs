//! What a container's processes are and use: proc(5) and the files of its cgroup.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cloister_protocol::PROCESSES_MAX;
use cloister_protocol::agent::Process;

/// The files of a cgroup that tell what is used and what is allowed.
const FILES: [&str; 14] = [
    "cpu.max",
    "cpu.stat",
    "cpu.weight",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.events",
    "pids.max",
];

/// Linux's USER_HZ: the unit of times in `/proc/PID/stat`.
const TICKS_PER_S: u64 = 100;

/// The longest command line that is told, in bytes.
const COMMAND_MAX: u64 = 4096;

/// How long all command lines of an answer are together, in bytes. A ttrpc message holds 4 MiB.
const COMMANDS_MAX: u64 = 2 << 20;

/// Reads what there is of the files.
pub(crate) fn files(cgroup: &Path) -> io::Result<HashMap<String, String>> {
    let mut files = HashMap::new();
    let mut read = |name: &str| match fs::read_to_string(cgroup.join(name)) {
        Ok(text) => {
            files.insert(name.to_owned(), text);
            Ok(())
        }
        // A controller that the kernel does not have; a limit that cannot be read.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(()),
        Err(e) => Err(e),
    };
    for name in FILES {
        read(name)?;
    }
    for entry in fs::read_dir(cgroup)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str()
            && name.starts_with("hugetlb.")
            && (name.ends_with(".current") || name.ends_with(".max") || name.ends_with(".events"))
        {
            read(name)?;
        }
    }
    Ok(files)
}

/// How many processes of the cgroup the OOM killer has ended.
pub(crate) fn oom_kills(cgroup: &Path) -> io::Result<u64> {
    let events = fs::read_to_string(cgroup.join("memory.events"))?;
    let count = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    Ok(count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0))
}

/// The processes of a container, as far as they fit into an answer.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) processes: Vec<Process>,
    /// How many more there are.
    pub(crate) omitted: u32,
}

/// Describes processes. The more there are, the less is told of the command line of each.
pub(crate) fn processes(mut pids: Vec<i32>) -> Listing {
    let omitted = pids.len().saturating_sub(PROCESSES_MAX);
    pids.truncate(PROCESSES_MAX);
    let share = COMMANDS_MAX / u64::try_from(pids.len().max(1)).unwrap_or(u64::MAX);
    let booted = booted_s();
    let described = pids
        .into_iter()
        .filter_map(|pid| process(pid, booted, share.min(COMMAND_MAX)));
    Listing {
        processes: described.collect(),
        omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
    }
}

/// Describes a process, with so many bytes of its command line; `None` if it has ended.
fn process(pid: i32, booted_s: u64, command_max: u64) -> Option<Process> {
    let dir = Path::new("/proc").join(pid.to_string());
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let mut cmdline = Vec::new();
    let file = fs::File::open(dir.join("cmdline")).ok()?;
    // As long as the process has made it.
    file.take(command_max).read_to_end(&mut cmdline).ok()?;
    // The name is in parentheses and may hold anything, parentheses and blanks included.
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc_pid_stat(5) counts from 1; the state is the third field.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let number = |at: usize| field(at).parse::<u64>().unwrap_or(0);
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_ascii_whitespace().nth(1)?.parse().ok())?;
    let command = if cmdline.is_empty() {
        format!("[{name}]")
    } else {
        let text = cmdline.strip_suffix(b"\0").unwrap_or(&cmdline);
        let mut text = String::from_utf8_lossy(text).replace('\0', " ");
        // What is no UTF-8 has become longer.
        text.truncate(text.floor_char_boundary(usize::try_from(command_max).unwrap_or(usize::MAX)));
        text
    };
    Some(Process {
        pid: pid.unsigned_abs(),
        ppid: u32::try_from(number(4)).unwrap_or(0),
        uid,
        state: field(3).to_owned(),
        tty: u32::try_from(number(7)).unwrap_or(0),
        started_s: booted_s + number(22) / TICKS_PER_S,
        cpu_ms: (number(14) + number(15)) * 1000 / TICKS_PER_S,
        command,
        ..Process::default()
    })
}

/// When this machine was booted, in seconds since 1970.
fn booted_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    now.saturating_sub(crate::logger::boottime_ns() / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_described() {
        let pid = std::process::id().cast_signed();
        let listing = super::processes(vec![pid]);
        assert_eq!((listing.processes.len(), listing.omitted), (1, 0));
        let this = &listing.processes[0];
        assert_eq!(this.pid, std::process::id());
        assert_eq!(this.ppid, std::os::unix::process::parent_id());
        assert!(this.command.contains("cloister_agent"), "{}", this.command);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!(now - 3600 < this.started_s && this.started_s <= now + 2);
    }

    #[test]
    fn any_number_of_processes_fits_into_a_message() {
        use cloister_protocol::agent::ProcessesResponse;
        use protobuf::Message;

        let long = "long ".repeat(2000);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", &long])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Its arguments are there a little later than it is.
        let cmdline = format!("/proc/{}/cmdline", child.id());
        while std::fs::read(&cmdline).unwrap().is_empty() {
            std::thread::yield_now();
        }
        for count in [1, 1000, 20_000] {
            let listing = super::processes(vec![child.id().cast_signed(); count]);
            assert_eq!(listing.processes.len() + listing.omitted as usize, count);
            let answer = ProcessesResponse {
                processes: listing.processes,
                omitted: listing.omitted,
                ..ProcessesResponse::default()
            };
            assert!(answer.compute_size() < 4 << 20, "{count}");
            let command = &answer.processes[0].command;
            assert!((64..=4096).contains(&command.len()), "{count}: {command}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
