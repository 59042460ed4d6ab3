//! `delete`: what a shim that died has left of a container.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, bail};
use cloister::paths::ContainerPaths;
use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};

use super::args::Args;
use super::container::{PID_FILE, read_pid};
use super::group::Brief;
use super::options::Options;
use super::{mounts, paths, pod, start, timestamp};

/// What a container that was killed ends with: 128 and the signal's number.
const KILLED: u32 = 137;

/// Ends a container, takes away what it had, and prints how it has ended.
pub(crate) fn delete(args: &Args) -> anyhow::Result<()> {
    start::check(args)?;
    // containerd has started it in the bundle, also after a shim that has ended as it should. A bundle that is gone was
    // deleted with its container; and there may be another container of that name by now.
    if fs::metadata(".").is_ok_and(|dir| dir.nlink() == 0) {
        return answer(0);
    }
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("the bundle")?,
    };
    let options = Options::kept(&bundle);
    let root = paths::root(&options, &args.namespace);
    let members = members(&root, &args.id)?;
    delete_one(&root, &args.id)?;
    // containerd calls for the sandbox alone if the shim's interface has version 3.
    for member in members {
        delete_one(&root, &member)?;
    }
    mounts::unmount_all(&bundle.join("rootfs"))?;
    // Of a sandbox; a container has none.
    mounts::unmount_all(&pod::shared_memory(&bundle))?;
    remove_socket(args, &bundle)?;
    answer(read_pid(&bundle.join(PID_FILE)).unwrap_or(0))
}

/// Prints how the container whose process was `pid` has ended.
fn answer(pid: u32) -> anyhow::Result<()> {
    let response = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&response.write_to_bytes()?)?;
    Ok(stdout.flush()?)
}

/// The containers in the virtual machine of this one.
fn members(root: &Path, id: &str) -> anyhow::Result<Vec<String>> {
    let dir = ContainerPaths::new(root, id).members();
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(|| dir.display().to_string())?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Some(entry.ok()?.file_name().to_str()?.to_owned());
    Ok(entries.filter_map(name).collect())
}

fn delete_one(root: &Path, id: &str) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the shim's program")?;
    let output = Command::new(program.with_file_name("cloister"))
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", id])
        .stdin(Stdio::null())
        .output()
        .context("cannot run cloister delete")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// Of a shim that listens no more.
fn remove_socket(args: &Args, bundle: &Path) -> anyhow::Result<()> {
    let brief = Brief::of(bundle).with_context(|| bundle.display().to_string())?;
    let socket = match fs::read_to_string(bundle.join("address")) {
        Ok(address) => address.trim_start_matches("unix://").into(),
        Err(_) => start::socket_path(&paths::sockets(None), args, brief.group(&args.id)),
    };
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Ok(());
    }
    match fs::remove_file(&socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}
