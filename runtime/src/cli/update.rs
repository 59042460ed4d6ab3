//! `cloister update`.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use cloister::cgroup::{CgroupError, Update, of_this_machine, refuse_of_this_machine};
use cloister::control;
use cloister::monitor::{Allowance, beyond, in_another};
use cloister::state::VmSize;
use cloister::text::chain;
use cloister_spec::Side;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::args::UpdateOptions;
use super::container::Container;
use super::{Fatal, Globals, by_option, named_by, option_of, warn};

/// Which options go into which fields of the resources.
const ORIGINS: [(&str, &str); 16] = [
    ("blockIO.weight", "--blkio-weight"),
    ("cpu.period", "--cpu-period"),
    ("cpu.quota", "--cpu-quota"),
    ("cpu.burst", "--cpu-burst"),
    ("cpu.shares", "--cpu-share"),
    ("cpu.realtimePeriod", "--cpu-rt-period"),
    ("cpu.realtimeRuntime", "--cpu-rt-runtime"),
    ("cpu.cpus", "--cpuset-cpus"),
    ("cpu.mems", "--cpuset-mems"),
    ("cpu.idle", "--cpu-idle"),
    ("memory.limit", "--memory"),
    ("memory.reservation", "--memory-reservation"),
    ("memory.swap", "--memory-swap"),
    ("memory.kernel", "--kernel-memory"),
    ("memory.kernelTCP", "--kernel-memory-tcp"),
    ("pids.limit", "--pids-limit"),
];

/// More than any resources object.
const MAX: u64 = 1 << 20;

pub(crate) fn update(globals: &Globals, options: &UpdateOptions) -> Result<u8, Fatal> {
    let id = &options.id;
    let container = Container::lock(globals, id)?;
    if !container.lives() {
        // runc's words, and the container's name.
        return Err(anyhow!("container not running: {id}").into());
    }
    let (resources, name) = match &options.resources {
        Some(path) => (read(path)?, path.display().to_string()),
        None => (from_options(options)?, "resources".into()),
    };
    let document = serde_json::to_vec(&resources)?;
    let checked = cloister_spec::check_resources(&document, &name, Side::Host);
    let checked = match &options.resources {
        Some(_) => named_by(Some("--resources"), checked)?,
        None => checked.map_err(|e| by_option(e, &ORIGINS))?,
    };
    warn(globals, &name, &checked.warnings, &checked.defaults)?;
    let resources: LinuxResources = serde_json::from_value(checked.value)?;
    // What this machine refuses is not to hold in the guest alone.
    let on_host = match &container.state.cgroup {
        Some(cgroup) => cgroup.check_update(&resources).map(Some),
        None => refuse_of_this_machine(&resources).map(|()| None),
    };
    let option = match &on_host {
        Err(e) if options.resources.is_none() => refused_option(e),
        _ => None,
    };
    let on_host = named_by(option, on_host)?;
    if let Some(sandbox) = &container.state.sandbox {
        for field in of_this_machine(&resources)? {
            log::warn!("container {id}: {field}: {}", in_another(sandbox));
        }
    }
    let changed = on_host.as_ref().map_or(&resources, Update::resources);
    // Before there is a limit that allows it.
    let size = grow(&container, changed)?;
    container.ask(async |agent| agent.update(id, document).await)??;
    if let Some(update) = &on_host {
        update.apply()?;
    }
    // The limit holds, and what it allows cannot be had.
    for limit in size.map(|size| beyond(size, changed)).unwrap_or_default() {
        log::warn!("container {id}: {name}: {limit}");
    }
    Ok(0)
}

/// Makes the virtual machine as large as the container needs it under its new limits, as far as that is
/// possible. Tells its size.
fn grow(container: &Container, resources: &LinuxResources) -> anyhow::Result<Option<VmSize>> {
    let allowance = Allowance::of(resources);
    if !allowance.is_empty() {
        let machine = container.dir.open_machine(&container.state)?;
        match control::grow(&machine, &container.state.id, allowance, container.limit) {
            Ok(size) => return Ok(Some(size)),
            Err(e) => log::warn!("the virtual machine stays as it is: {}", chain(&e)),
        }
    }
    Ok(container.dir.vm_size(&container.state)?)
}

/// The option that a refusal of this machine is about.
fn refused_option(error: &CgroupError) -> Option<&'static str> {
    let field = error.field()?.strip_prefix("linux.resources.")?;
    option_of(field, &ORIGINS)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let name = || format!("--resources: {}", path.display());
    let mut text = Vec::new();
    if path == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX).read_to_end(&mut text).with_context(name)?;
    } else {
        let file = std::fs::File::open(path).with_context(name)?;
        file.take(MAX).read_to_end(&mut text).with_context(name)?;
    }
    serde_json::from_slice(&text).with_context(name)
}

/// The resources object that options make.
fn from_options(options: &UpdateOptions) -> anyhow::Result<Value> {
    for (name, given) in [
        ("--l3-cache-schema", &options.l3_cache_schema),
        ("--mem-bw-schema", &options.mem_bw_schema),
    ] {
        if given.is_some() {
            bail!("{name}: refused: the virtual machine has no resource director");
        }
    }
    let mut memory = Map::new();
    for (option, field, text) in [
        ("--memory", "limit", &options.memory),
        (
            "--memory-reservation",
            "reservation",
            &options.memory_reservation,
        ),
        ("--memory-swap", "swap", &options.memory_swap),
        ("--kernel-memory", "kernel", &options.kernel_memory),
        (
            "--kernel-memory-tcp",
            "kernelTCP",
            &options.kernel_memory_tcp,
        ),
    ] {
        if let Some(text) = text {
            let value = bytes(text).with_context(|| format!("invalid value for {option}"))?;
            memory.insert(field.into(), json!(value));
        }
    }
    let cpu = json!({
        "period": options.cpu_period,
        "quota": options.cpu_quota,
        "burst": options.cpu_burst,
        "shares": options.cpu_share,
        "realtimePeriod": options.cpu_rt_period,
        "realtimeRuntime": options.cpu_rt_runtime,
        "cpus": options.cpuset_cpus,
        "mems": options.cpuset_mems,
        "idle": options.cpu_idle,
    });
    let mut resources = json!({ "memory": memory, "cpu": cpu });
    if let Some(weight) = options.blkio_weight {
        resources["blockIO"] = json!({ "weight": weight });
    }
    if let Some(limit) = options.pids_limit {
        resources["pids"] = json!({ "limit": limit });
    }
    Ok(resources)
}

/// A number of bytes, with or without a unit of 1024: k, m, g, t or p, and b or ib after it.
fn bytes(text: &str) -> anyhow::Result<i64> {
    let wrong = || anyhow!("{text:?} is not a number of bytes like 512m");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = lower.split_at(end.unwrap_or(lower.len()));
    let power = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<i64>() {
        let scaled = whole.checked_mul(1_i64 << (10 * power));
        return scaled.ok_or_else(wrong);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    // A fraction of a unit; what is beyond 64 bits is cut to them by the conversion.
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    Ok((number * 1024_f64.powi(power)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("32m", 32 << 20),
            ("1.5G", 3 << 29),
            ("2KiB", 2048),
        ] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for text in ["", "x", "-2", "1q", "9999999999g"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
