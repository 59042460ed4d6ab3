//! `linux.resources` as files of a cgroup (config-linux.md#control-groups, and its #unified for names).

use std::io;

use super::Cgroup;
use crate::config::{Cpu, Memory, Resources};
use crate::error::{Context, Failure};

/// A value for a file, and the field it comes from.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    field: String,
    file: String,
    value: String,
}

fn setting(field: &str, file: impl Into<String>, value: impl Into<String>) -> Setting {
    let field = format!("linux.resources.{field}");
    Setting {
        field,
        file: file.into(),
        value: value.into(),
    }
}

pub(super) fn apply(cgroup: &Cgroup, resources: &Resources) -> Result<(), Failure> {
    let current = |file: &str| cgroup.read(file).ok();
    let mut settings = memory(&resources.memory, current);
    settings.extend(cpu(&resources.cpu, current));
    if let Some(limit) = resources.pids.limit {
        // "0 is a valid limit value" (config-linux.md#pids): none but the first, which counts here.
        let limit = if limit == 0 { 1 } else { limit };
        settings.push(setting("pids.limit", "pids.max", limit_text(limit)));
    }
    for limit in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.max", limit.page_size);
        settings.push(setting("hugepageLimits", file, limit.limit.to_string()));
    }
    for Setting { field, file, value } in &settings {
        match cgroup.write(file, value) {
            // Without swap there is nothing to limit.
            Err(error)
                if file == "memory.swap.max"
                    && matches!(value.as_str(), "0" | "max")
                    && error.kind() == io::ErrorKind::NotFound => {}
            // Kubernetes limits every size of the host's to nothing; of a size that the machine
            // does not have there is nothing.
            Err(error)
                if file.starts_with("hugetlb.")
                    && value == "0"
                    && error.kind() == io::ErrorKind::NotFound => {}
            result => write_result(result, field, file, value)?,
        }
    }
    if let Some(weight) = resources.block_io.weight.filter(|&weight| weight != 0) {
        block_io_weight(cgroup, weight)?;
    }
    // Processors and devices of the host have no such numbers here: the host applies these.
    let of_host = |file: &str| file.starts_with("cpuset.") || file.starts_with("io.");
    for (file, text) in resources.unified.iter().filter(|(file, _)| !of_host(file)) {
        let field = format!("linux.resources.unified[{file:?}]");
        // Some files take one line at a time.
        for line in text.lines() {
            write_result(cgroup.write(file, line), &field, file, line)?;
        }
    }
    Ok(())
}

fn write_result(
    result: io::Result<()>,
    field: &str,
    file: &str,
    value: &str,
) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let controller = file.split('.').next().unwrap_or(file);
            Err(Failure::new(format!(
                "{field}: the requested cgroup controller `{controller}` is not available in the virtual machine, or has no {file}: no such file or directory"
            )))
        }
        result => result.doing(|| format!("{field}: write {value:?} to {file}")),
    }
}

/// Unlimited is -1 in the specification and `max` in the file.
fn limit_text(limit: i64) -> String {
    if limit < 0 {
        "max".into()
    } else {
        limit.to_string()
    }
}

/// `current` tells what is in a file.
fn memory(memory: &Memory, current: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let mut settings = Vec::new();
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    if let Some(limit) = set(memory.limit) {
        settings.push(setting("memory.limit", "memory.max", limit_text(limit)));
    }
    if let Some(swap) = set(memory.swap) {
        // Memory and swap together in the specification, swap alone in the file.
        let swap = if swap < 0 {
            swap
        } else {
            let limit = memory.limit.or_else(|| {
                // An update of the one alone.
                let limit = current("memory.max")?;
                limit.trim().parse().ok()
            });
            (swap - limit.unwrap_or(0)).max(0)
        };
        settings.push(setting("memory.swap", "memory.swap.max", limit_text(swap)));
    }
    if let Some(reservation) = set(memory.reservation) {
        settings.push(setting(
            "memory.reservation",
            "memory.low",
            limit_text(reservation),
        ));
    }
    settings
}

/// `current` tells what is in a file.
fn cpu(cpu: &Cpu, current: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(shares) = cpu.shares.filter(|&shares| shares != 0) {
        settings.push(setting(
            "cpu.shares",
            "cpu.weight",
            cloister_spec::cpu_weight(shares).to_string(),
        ));
    }
    let quota = cpu.quota.filter(|&quota| quota != 0);
    let period = cpu.period.filter(|&period| period != 0);
    match (quota, period) {
        (None, None) => {}
        (Some(quota), Some(period)) => {
            let value = format!("{} {period}", limit_text(quota));
            settings.push(setting("cpu.quota", "cpu.max", value));
        }
        // The period stays.
        (Some(quota), None) => settings.push(setting("cpu.quota", "cpu.max", limit_text(quota))),
        (None, Some(period)) => {
            let current = current("cpu.max").unwrap_or_default();
            let quota = current.split_ascii_whitespace().next().unwrap_or("max");
            settings.push(setting(
                "cpu.period",
                "cpu.max",
                format!("{quota} {period}"),
            ));
        }
    }
    if let Some(burst) = cpu.burst {
        settings.push(setting("cpu.burst", "cpu.max.burst", burst.to_string()));
    }
    if let Some(idle) = cpu.idle {
        settings.push(setting("cpu.idle", "cpu.idle", idle.to_string()));
    }
    settings
}

fn block_io_weight(cgroup: &Cgroup, weight: u16) -> Result<(), Failure> {
    const FIELD: &str = "linux.resources.blockIO.weight";
    let text = weight.to_string();
    match cgroup.write("io.bfq.weight", &text) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("default {}", cloister_spec::io_weight(weight));
            write_result(cgroup.write("io.weight", &text), FIELD, "io.weight", &text)
        }
        result => write_result(result, FIELD, "io.bfq.weight", &text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(resources: serde_json::Value) -> Vec<(String, String)> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let current = |file: &str| {
            let text = match file {
                "memory.max" => "30\n",
                _ => "7000 100000\n",
            };
            Some(text.to_owned())
        };
        let mut settings = memory(&resources.memory, current);
        settings.extend(cpu(&resources.cpu, current));
        settings.into_iter().map(|s| (s.file, s.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(file, value)| ((*file).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn swap_is_what_exceeds_memory() {
        let memory = json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}});
        let expected = [
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("memory.low", "50"),
        ];
        assert_eq!(files(memory), pairs(&expected));
        let unlimited = json!({"memory": {"limit": -1, "swap": -1}});
        assert_eq!(
            files(unlimited),
            pairs(&[("memory.max", "max"), ("memory.swap.max", "max")])
        );
        assert_eq!(files(json!({"memory": {"limit": 0}})), []);
        assert_eq!(
            files(json!({"memory": {"swap": 50}})),
            pairs(&[("memory.swap.max", "20")])
        );
    }

    #[test]
    fn quota_and_period_share_a_file() {
        let both = json!({"cpu": {"quota": 50_000, "period": 200_000, "shares": 1024}});
        let expected = [("cpu.weight", "100"), ("cpu.max", "50000 200000")];
        assert_eq!(files(both), pairs(&expected));
        assert_eq!(
            files(json!({"cpu": {"quota": -1}})),
            pairs(&[("cpu.max", "max")])
        );
        assert_eq!(
            files(json!({"cpu": {"period": 5000}})),
            pairs(&[("cpu.max", "7000 5000")])
        );
    }
}
