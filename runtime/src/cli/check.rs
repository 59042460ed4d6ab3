//! `cloister check`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use cloister_vmm_api::{Check, CheckReport};

use super::args::{CheckFormat, CheckOptions};
use super::{Fatal, Globals};

/// How long the probe may take: a hypervisor that emulates is slow, and is to be told apart.
const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether the probe has ended.
const PROBE_PAUSE: Duration = Duration::from_millis(5);
/// The longest report that is read, in bytes.
const REPORT_MAX: u64 = 64 * 1024;

pub(crate) fn check(globals: &Globals, options: &CheckOptions) -> Result<u8, Fatal> {
    let config = &globals.config;
    let mut checks: Vec<Check> = [
        ("VMM", &config.vmm, true),
        ("file server", &config.fs, true),
        ("guest kernel", &config.kernel, false),
        ("initramfs", &config.initramfs, false),
    ]
    .into_iter()
    .map(|(name, path, program)| part(name, path, program))
    .collect();
    if checks.first().is_some_and(|vmm| vmm.ok) {
        match probe(&config.vmm) {
            Ok(report) => {
                let usable = report.usable;
                checks.extend(report.checks);
                if !usable && checks.iter().all(|check| check.ok) {
                    checks.push(failed("KVM", "the VMM says that it is not usable".into()));
                }
            }
            Err(e) => checks.push(failed("KVM", format!("the probe failed: {e:#}"))),
        }
    }
    let report = CheckReport {
        usable: checks.iter().all(|check| check.ok),
        checks,
    };
    let text = match options.format {
        CheckFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        CheckFormat::Text => readable(&report),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(u8::from(!report.usable))
}

fn failed(name: &str, detail: String) -> Check {
    Check {
        name: name.into(),
        ok: false,
        detail,
    }
}

/// Whether a part of the installation is there.
fn part(name: &str, path: &Path, program: bool) -> Check {
    use rustix::fs::{Access, access};
    let wanted = if program {
        Access::EXEC_OK
    } else {
        Access::READ_OK
    };
    let shown = path.display();
    let (ok, detail) = match access(path, wanted).map(|()| std::fs::metadata(path)) {
        Err(e) => (false, format!("{shown}: {e}")),
        Ok(Err(e)) => (false, format!("{shown}: {e}")),
        Ok(Ok(file)) if !file.is_file() => (false, format!("{shown}: not a file")),
        Ok(Ok(file)) => (true, format!("{shown}, {} KiB", file.len().div_ceil(1024))),
    };
    Check {
        name: name.into(),
        ok,
        detail,
    }
}

/// Has the VMM try the hypervisor.
fn probe(vmm: &Path) -> anyhow::Result<CheckReport> {
    let mut child = Command::new(vmm)
        .arg("--check")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| vmm.display().to_string())?;
    let deadline = Instant::now() + PROBE_LIMIT;
    // A report fits into a pipe: the child does not wait for a reader.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("no answer within {} s", PROBE_LIMIT.as_secs());
        }
        std::thread::sleep(PROBE_PAUSE);
    }
    let mut text = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(REPORT_MAX).read_to_end(&mut text)?;
    }
    serde_json::from_slice(&text).context("its report is not understood")
}

fn readable(report: &CheckReport) -> String {
    let width = report.checks.iter().map(|c| c.name.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for Check { name, ok, detail } in &report.checks {
        let mark = if *ok { "ok    " } else { "FAILED" };
        let line = format!("{mark}  {name:width$}  {detail}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str(if report.usable {
        "This machine can run containers.\n"
    } else {
        "This machine cannot run containers.\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_lines_up() {
        let report = CheckReport {
            usable: false,
            checks: vec![
                Check {
                    name: "KVM".into(),
                    ok: true,
                    detail: "version 12".into(),
                },
                failed("initramfs", "missing".into()),
            ],
        };
        assert_eq!(
            readable(&report),
            "ok      KVM        version 12\nFAILED  initramfs  missing\nThis machine cannot run containers.\n"
        );
    }

    #[test]
    fn a_part_must_be_a_file_that_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        assert!(!part("x", &path, false).ok);
        std::fs::write(&path, "0123").unwrap();
        assert!(part("x", &path, false).ok);
        assert!(!part("x", &path, true).ok, "not executable");
        assert!(!part("x", dir.path(), true).ok, "a directory");
    }
}
