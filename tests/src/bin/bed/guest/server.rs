//! One thread a port.
//!
//! A virtio port that nobody is connected to reads as ended and polls as hung up, so waiting for somebody takes the
//! one notice the driver gives: SIGIO. This thread takes that signal and wakes the ports' threads, which look for
//! themselves whether it was meant for them. No timer runs while the bed is idle, which would disturb the
//! instruction-counted clock.

use super::boot::kernel_parameter;
use super::port::{Port, Wakeup};
use super::session;
use super::sys::AwaitedSignal;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Ports are announced by the device one message at a time.
const PORTS_APPEAR_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn run() -> Result<()> {
    let signal = AwaitedSignal::block(libc::SIGIO).context("block SIGIO")?;
    let wanted: usize = kernel_parameter("bed.ports")?
        .parse()
        .context("bed.ports")?;
    let wakeup = Arc::new(Wakeup::default());
    for path in wait_for_ports(wanted)? {
        let port = Port::open(&path, Arc::clone(&wakeup))
            .with_context(|| format!("open {}", path.display()))?;
        thread::Builder::new()
            .name(path.display().to_string())
            .spawn(move || session::serve(port))
            .context("start a port's thread")?;
    }
    loop {
        signal.wait().context("wait for SIGIO")?;
        wakeup.notify();
    }
}

fn wait_for_ports(wanted: usize) -> Result<Vec<PathBuf>> {
    let deadline = Instant::now() + PORTS_APPEAR_WITHIN;
    loop {
        let mut ports = Vec::new();
        for entry in fs::read_dir("/dev").context("list /dev")? {
            let entry = entry.context("list /dev")?;
            if entry.file_name().as_encoded_bytes().starts_with(b"vport") {
                ports.push(entry.path());
            }
        }
        if ports.len() >= wanted {
            return Ok(ports);
        }
        if Instant::now() > deadline {
            bail!("{} of {wanted} virtio-serial ports appeared", ports.len());
        }
        thread::sleep(Duration::from_millis(5));
    }
}
