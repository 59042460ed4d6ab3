//! Device nodes and the terminal (config-linux.md#devices, #default-devices).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::mounts::{attach, clone_tree};
use super::path::{Create, Root, open_outside, stat_at};
use crate::config::Device;
use crate::error::{Context, Failure};

/// Devices that every container gets, with their numbers (Linux Documentation/admin-guide/devices.txt).
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// Makes the default and the listed devices and links.
pub(crate) fn create(root: &Root, listed: &[Device]) -> Result<(), Failure> {
    for (path, major, minor) in DEFAULTS {
        if listed.iter().any(|device| device.path == Path::new(path)) {
            continue;
        }
        let device = Device {
            kind: "c".into(),
            path: PathBuf::from(path),
            major,
            minor,
            file_mode: None,
            uid: 0,
            gid: 0,
        };
        node(root, &device).doing(|| format!("device {path}"))?;
    }
    for (index, device) in listed.iter().enumerate() {
        exists_here(index, device)?;
        node(root, device)
            .doing(|| format!("linux.devices[{index}]: {}", device.path.display()))?;
    }
    for (path, target) in LINKS {
        let (dir, name) = root.create_parent(Path::new(path)).doing(|| path)?;
        match rustix::fs::symlinkat(target, &dir, &name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Failure::system(format!("link {path}"), error)),
        }
    }
    // The container's own devpts, whatever the image has there.
    let (dir, name) = root
        .create_parent(Path::new("/dev/ptmx"))
        .doing(|| "/dev/ptmx")?;
    match rustix::fs::unlinkat(&dir, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(Failure::system("remove /dev/ptmx", error)),
    }
    rustix::fs::symlinkat("pts/ptmx", &dir, &name).doing(|| "link /dev/ptmx")
}

/// A listed character device has to exist on this machine: a node that leads nowhere
/// would be a device that is promised and not there.
fn exists_here(index: usize, device: &Device) -> Result<(), Failure> {
    if !matches!(device.kind.as_str(), "c" | "u") {
        return Ok(());
    }
    let known = format!("/sys/dev/char/{}:{}", device.major, device.minor);
    match rustix::fs::stat(known.as_str()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::invalid(format!(
            "linux.devices[{index}]: {}: the machine has no character device {}:{}",
            device.path.display(),
            device.major,
            device.minor
        ))),
    }
}

fn node(root: &Root, device: &Device) -> io::Result<()> {
    let (kind, number) = match device.kind.as_str() {
        "p" => (FileType::Fifo, 0),
        _ => (
            FileType::CharacterDevice,
            makedev(device.major, device.minor),
        ),
    };
    let (dir, name) = root.create_parent(&device.path)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(&dir, &name, kind, mode, number) {
        Ok(()) => {
            let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            Ok(rustix::fs::chownat(
                &dir,
                &name,
                Some(owner.0),
                Some(owner.1),
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
        Err(Errno::EXIST) => {
            let stat = stat_at(&dir, &name)?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind
                && (kind == FileType::Fifo || stat.st_rdev == number);
            // "If a file already exists at path that does not match the requested device, the
            // runtime MUST generate an error."
            if same {
                Ok(())
            } else {
                Err(Errno::EXIST.into())
            }
        }
        // A user namespace cannot make nodes: the machine's own takes its place.
        Err(Errno::PERM) if kind == FileType::CharacterDevice => {
            let outside = open_outside(&device.path)?;
            let stat = rustix::fs::statat(&outside, "", AtFlags::EMPTY_PATH)?;
            if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                return Err(Errno::PERM.into());
            }
            let target = root.create(&device.path, Create::File)?;
            attach(&clone_tree(&outside, "", false)?, &target.fd)
        }
        Err(error) => Err(error.into()),
    }
}

/// A pseudoterminal from the container's devpts: the controlling end and the terminal.
pub(crate) fn terminal(
    root: &Root,
    size: Option<(u16, u16)>,
) -> Result<(OwnedFd, OwnedFd), Failure> {
    const WHAT: &str = "process.terminal";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let controller = root
        .open(Path::new("/dev/pts/ptmx"), flags)
        .doing(|| format!("{WHAT}: /dev/pts/ptmx"))?;
    // The root is the image's: what is there may be anything.
    let stat = rustix::fs::fstatfs(&controller).doing(|| WHAT)?;
    if stat.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Failure::invalid(format!(
            "{WHAT}: no devpts is mounted on /dev/pts"
        )));
    }
    rustix::pty::unlockpt(&controller).doing(|| WHAT)?;
    let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, open).doing(|| WHAT)?;
    if let Some((columns, rows)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&controller, size).doing(|| WHAT)?;
    }
    let console = root
        .create(Path::new("/dev/console"), Create::File)
        .doing(|| "/dev/console")?;
    clone_tree(&terminal, "", false)
        .and_then(|mount| attach(&mount, &console.fd))
        .doing(|| "/dev/console")?;
    Ok((controller, terminal))
}

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;
