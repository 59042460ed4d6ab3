//! What a sandbox costs while it does nothing, and what the parts weigh.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::bundle;

/// An idle sandbox, and another one beside it.
const IDS: [&str; 2] = ["idle", "beside"];

/// What the processes of a name have, in KiB.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Memory {
    /// The proportional set size: what is shared with others is split between them.
    pub(crate) pss: u64,
    /// What is shared with nobody.
    pub(crate) private: u64,
}

/// The memory of every process of a sandbox whose container sleeps, by the processes' names. The
/// guest's is mapped by the VMM and counted there. What is private is looked at when there is
/// another sandbox: that of one alone has the programs' files in it.
pub(crate) fn of_an_idle_sandbox(bundle: &Path) -> anyhow::Result<BTreeMap<String, Memory>> {
    bundle::command(bundle, &["/bin/sleep", "1000"])?;
    let [alone, both] = IDS.map(|id| started(bundle, id));
    for id in IDS {
        let status = Command::new("cloister")
            .args(["delete", "--force", id])
            .status()
            .context("cloister")?;
        ensure!(status.success(), "cloister delete: {status}");
    }
    bundle::command(bundle, &["/bin/true"])?;
    let (mut memory, both) = (alone?, both?);
    for (process, memory) in &mut memory {
        let both = both.get(process).copied().unwrap_or_default();
        memory.private = both.private / 2;
    }
    Ok(memory)
}

/// Starts a sandbox, and looks at the memory of all that there are.
fn started(bundle: &Path, id: &str) -> anyhow::Result<BTreeMap<String, Memory>> {
    let status = Command::new("cloister")
        .args(["run", "--detach", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cloister")?;
    ensure!(status.success(), "cloister run --detach: {status}");
    // Whatever still settles in the guest is part of what an idle sandbox costs.
    std::thread::sleep(Duration::from_secs(2));
    of_processes()
}

fn of_processes() -> anyhow::Result<BTreeMap<String, Memory>> {
    let mut memory = BTreeMap::<String, Memory>::new();
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let dir = entry.path();
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        if !comm.starts_with("cloister") {
            continue;
        }
        let rollup = dir.join("smaps_rollup");
        let text = fs::read_to_string(&rollup).with_context(|| rollup.display().to_string())?;
        let kib = |name: &str| -> anyhow::Result<u64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
                .with_context(|| format!("no {name} in {}", rollup.display()))
        };
        let process = memory.entry(comm.trim().to_owned()).or_default();
        process.pss += kib("Pss")?;
        process.private += kib("Private_Clean")? + kib("Private_Dirty")?;
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
