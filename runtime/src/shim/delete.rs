//! `delete`: what a shim that died has left of a container.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, bail};
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
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("the bundle")?,
    };
    let options = Options::kept(&bundle);
    let program = std::env::current_exe().context("the shim's program")?;
    let output = Command::new(program.with_file_name("cloister"))
        .arg("--root")
        .arg(paths::root(&options, &args.namespace))
        .args(["delete", "--force", &args.id])
        .stdin(Stdio::null())
        .output()
        .context("cannot run cloister delete")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    mounts::unmount_all(&bundle.join("rootfs"))?;
    // Of a sandbox; a container has none.
    mounts::unmount_all(&pod::shared_memory(&bundle))?;
    remove_socket(args, &bundle)?;
    let response = DeleteResponse {
        pid: read_pid(&bundle.join(PID_FILE)).unwrap_or(0),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&response.write_to_bytes()?)?;
    Ok(stdout.flush()?)
}

/// Of a shim that listens no more.
fn remove_socket(args: &Args, bundle: &Path) -> anyhow::Result<()> {
    let brief = Brief::of(bundle).with_context(|| bundle.display().to_string())?;
    let socket = match std::fs::read_to_string(bundle.join("address")) {
        Ok(address) => address.trim_start_matches("unix://").into(),
        Err(_) => start::socket_path(&paths::sockets(None), args, brief.group(&args.id)),
    };
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Ok(());
    }
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}
