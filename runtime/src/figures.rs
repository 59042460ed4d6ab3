//! What a container uses, as its guest tells: the files of a cgroup, of which nothing is believed.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// More names than a file of the kernel has.
const NAMES_MAX: usize = 512;

/// Whether a text of the guest is a name as the kernel gives them, and nothing for a terminal.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

/// A file of lines with a name and a number.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a>(&'a str);

impl<'a> Table<'a> {
    /// One of the files; an empty one if there is none of that name.
    #[must_use]
    pub fn of(files: &'a HashMap<String, String>, name: &str) -> Self {
        Self(files.get(name).map_or("", String::as_str))
    }

    /// The number with a name; 0 if there is none.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(known, _)| *known == name);
        found.map_or(0, |(_, value)| value.trim().parse().unwrap_or(0))
    }

    fn all(&self) -> Map<String, Value> {
        let lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines
            .filter(|(name, _)| is_name(name))
            .take(NAMES_MAX)
            .filter_map(|(name, value)| {
                let number: u64 = value.trim().parse().ok()?;
                Some((name.to_owned(), json!(number)))
            })
            .collect()
    }
}

/// How many processes the OOM killer has ended, from the files of a cgroup v2.
#[must_use]
pub fn oom_kills(files: &HashMap<String, String>) -> u64 {
    Table::of(files, "memory.events").number("oom_kill")
}

/// The number in a file that holds one; `u64::MAX` for "max", 0 if there is none.
#[must_use]
pub fn single(files: &HashMap<String, String>, name: &str) -> u64 {
    match files.get(name).map_or("", |text| text.trim()) {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// What a container uses in runc's form, from the files of a cgroup v2.
#[must_use]
pub fn report(files: &HashMap<String, String>) -> Value {
    let single = |name: &str| single(files, name);
    let cpu = Table::of(files, "cpu.stat");
    let memory = Table::of(files, "memory.stat");
    let events = Table::of(files, "memory.events");
    let pids_limit = match single("pids.max") {
        u64::MAX => 0,
        limit => limit,
    };
    // cgroup v2 counts in microseconds, runc tells nanoseconds.
    let ns = |name: &str| cpu.number(name).saturating_mul(1000);
    json!({
        "cpu": {
            "usage": {
                "total": ns("usage_usec"),
                "kernel": ns("system_usec"),
                "user": ns("user_usec"),
            },
            "throttling": {
                "periods": cpu.number("nr_periods"),
                "throttledPeriods": cpu.number("nr_throttled"),
                "throttledTime": ns("throttled_usec"),
            },
        },
        "memory": {
            "cache": memory.number("file"),
            "usage": {
                "usage": single("memory.current"),
                "max": single("memory.peak"),
                "limit": single("memory.max"),
                "failcnt": events.number("max"),
            },
            "swap": {
                "usage": single("memory.swap.current"),
                "limit": single("memory.swap.max"),
                "failcnt": 0,
            },
            "kernel": { "usage": memory.number("kernel"), "failcnt": 0 },
            "kernelTCP": { "usage": memory.number("sock"), "failcnt": 0 },
            "raw": memory.all(),
        },
        "pids": { "current": single("pids.current"), "limit": pids_limit },
        "blkio": io(files),
        "hugetlb": hugetlb(files),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// io.stat: a line for each device with names and numbers.
fn io(files: &HashMap<String, String>) -> Value {
    let mut bytes = Vec::new();
    let mut operations = Vec::new();
    for line in files.get("io.stat").map_or("", String::as_str).lines() {
        let mut words = line.split(' ');
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) =
            device.map(|(major, minor)| (major.parse::<u64>(), minor.parse::<u64>()))
        else {
            continue;
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, operation) = match name {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            let value: u64 = value.parse().unwrap_or(0);
            list.push(json!({ "major": major, "minor": minor, "op": operation, "value": value }));
        }
    }
    if bytes.is_empty() && operations.is_empty() {
        return json!({});
    }
    json!({ "ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations })
}

fn hugetlb(files: &HashMap<String, String>) -> Value {
    let mut sizes = Map::new();
    for (name, text) in files {
        let size = name
            .strip_prefix("hugetlb.")
            .and_then(|name| name.strip_suffix(".current"));
        if let Some(size) = size.filter(|size| is_name(size)) {
            let usage: u64 = text.trim().parse().unwrap_or(0);
            let failures = Table::of(files, &format!("hugetlb.{size}.events")).number("max");
            sizes.insert(size.into(), json!({ "usage": usage, "failcnt": failures }));
        }
    }
    Value::Object(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_cgroup_become_runcs_report() {
        let files = [
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "file 7\nsock 1\n"),
            ("memory.events", "max 2\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            (
                "io.stat",
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\nnonsense\n",
            ),
            ("hugetlb.2MB.current", "0\n"),
        ];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let report = report(&HashMap::from(files));
        assert_eq!(report["cpu"]["usage"]["total"], 5000);
        assert_eq!(report["cpu"]["throttling"]["throttledPeriods"], 1);
        assert_eq!(report["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(report["memory"]["usage"]["failcnt"], 2);
        assert_eq!(report["memory"]["raw"]["file"], 7);
        assert_eq!(report["pids"], json!({ "current": 3, "limit": 10 }));
        let read = json!({ "major": 8, "minor": 0, "op": "Read", "value": 1 });
        assert_eq!(report["blkio"]["ioServiceBytesRecursive"][0], read);
        assert_eq!(report["hugetlb"]["2MB"]["usage"], 0);
    }
}
