//! A cable between two taps, for tests: what one is sent, the other receives, until it is killed.
//!
//! ```text
//! cable NAMESPACE TAP NAMESPACE TAP
//! ```
//!
//! A NAMESPACE is the path of one of the network; the TAPs are there already (`ip tuntap add`), and have a carrier as
//! long as the cable is in them.
#![allow(unsafe_code, reason = "the ioctl that opens a tap is libc's alone")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, bail};
use clap::Parser;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The longest frame of an interface with the largest MTU.
const FRAME: usize = 1 << 16;

#[derive(Parser)]
struct Options {
    namespace: PathBuf,
    tap: String,
    other_namespace: PathBuf,
    other_tap: String,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let one = open(&options.namespace, &options.tap)?;
    let other = open(&options.other_namespace, &options.other_tap)?;
    let (back, forth) = (other.try_clone()?, one.try_clone()?);
    thread::spawn(move || pass(back, forth));
    match pass(one, other) {
        Ok(()) => bail!("a tap has come to its end"),
        Err(error) => Err(error).context("cannot pass a frame on"),
    }
}

/// Opens the tap `name` of the network namespace at `namespace`, in which this thread stays.
fn open(namespace: &Path, name: &str) -> anyhow::Result<File> {
    let file = File::open(namespace).with_context(|| format!("{}", namespace.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", namespace.display()))?;
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain data, valid when zeroed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the end of the string.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The driver takes the flags from a short.
    let [low, high, ..] = (libc::IFF_TAP | libc::IFF_NO_PI).to_ne_bytes();
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes([low, high]);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is live and initialised.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("tap {name}"));
    }
    Ok(tun)
}

/// Passes each frame on, one a read.
fn pass(mut from: File, mut to: File) -> io::Result<()> {
    let mut frame = vec![0; FRAME];
    loop {
        let length = from.read(&mut frame)?;
        let Some(whole) = frame.get(..length).filter(|frame| !frame.is_empty()) else {
            return Ok(());
        };
        match to.write(whole) {
            Ok(_) => {}
            // The interface is down: what is sent is lost, as on a cable.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
            Err(error) => return Err(error),
        }
    }
}
