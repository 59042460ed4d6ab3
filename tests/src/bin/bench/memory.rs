//! What a sandbox costs while it does nothing, and what the parts weigh.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bundle;

const ID: &str = "idle";

/// Proportional set size in KiB of every process of a sandbox whose container sleeps. The guest's
/// memory is mapped by the VMM and counted there.
pub(crate) fn of_an_idle_sandbox(bundle: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    bundle::command(bundle, &["/bin/sleep", "1000"])?;
    let status = Command::new("cloister")
        .args(["run", "--detach", "--bundle"])
        .arg(bundle)
        .arg(ID)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cloister")?;
    ensure!(status.success(), "cloister run --detach: {status}");
    // Whatever still settles in the guest is part of what an idle sandbox costs.
    std::thread::sleep(Duration::from_secs(2));
    let memory = pss();
    let status = Command::new("cloister")
        .args(["delete", "--force", ID])
        .status()
        .context("cloister")?;
    ensure!(status.success(), "cloister delete: {status}");
    bundle::command(bundle, &["/bin/true"])?;
    memory
}

fn pss() -> anyhow::Result<BTreeMap<String, u64>> {
    let mut memory = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let dir = entry.path();
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        if !comm.starts_with("cloister") {
            continue;
        }
        let rollup = dir.join("smaps_rollup");
        let text = fs::read_to_string(&rollup).with_context(|| rollup.display().to_string())?;
        let kib: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .with_context(|| format!("no Pss in {}", rollup.display()))?;
        *memory.entry(comm.trim().to_owned()).or_default() += kib;
    }
    ensure!(!memory.is_empty(), "no process of the sandbox was found");
    Ok(memory)
}

/// The sizes in bytes of the installed parts.
pub(crate) fn sizes() -> anyhow::Result<BTreeMap<String, u64>> {
    let files = [
        "bin/cloister",
        "libexec/cloister/cloister-vmm",
        "libexec/cloister/cloister-fs",
        "share/cloister/vmlinux",
        "share/cloister/initramfs.cpio",
    ];
    let mut sizes = BTreeMap::new();
    for file in files {
        let path = Path::new("/usr/local").join(file);
        let meta = fs::metadata(&path).with_context(|| path.display().to_string())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        sizes.insert(name.into_owned(), meta.len());
    }
    Ok(sizes)
}
