//! The bundle that every runtime runs: BusyBox, and each runtime's own default specification.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// Makes the root file system and a `config.json` that all runtimes accept.
pub(crate) fn create(dir: &Path) -> anyhow::Result<PathBuf> {
    let bundle = dir.join("bundle");
    let bin = bundle.join("rootfs/bin");
    std::fs::create_dir_all(&bin).with_context(|| bin.display().to_string())?;
    std::fs::copy("/bin/busybox", bin.join("busybox")).context("/bin/busybox")?;
    for applet in ["sh", "true", "sleep"] {
        symlink("busybox", bin.join(applet)).with_context(|| applet.to_owned())?;
    }
    let status = Command::new("cloister")
        .args(["spec", "--bundle"])
        .arg(&bundle)
        .status()
        .context("cloister")?;
    ensure!(status.success(), "cloister spec: {status}");
    command(&bundle, &["/bin/true"])?;
    Ok(bundle)
}

/// Changes what the bundle's container runs.
pub(crate) fn command(bundle: &Path, args: &[&str]) -> anyhow::Result<()> {
    let path = bundle.join("config.json");
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let mut spec: Value =
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(args);
    std::fs::write(&path, spec.to_string()).with_context(|| path.display().to_string())
}
