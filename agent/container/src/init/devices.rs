//! Device nodes and the terminal (config-linux.md#devices, #default-devices).

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr};

use super::mounts::{attach, clone_tree};
use super::path::{Create, Root, open_beneath, open_outside, stat_at};
use crate::channel::TerminalModes;
use crate::config::Device;
use crate::error::{Context, Failure};

/// Devices that every container gets in `/dev`, with their numbers (Linux
/// Documentation/admin-guide/devices.txt).
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Makes the default and the listed devices and links.
pub(crate) fn create(
    root: &Root,
    listed: &[Device],
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let dev = root
        .create(Path::new("/dev"), Create::Directory)
        .doing(|| "create /dev")?
        .fd;
    for (name, major, minor) in DEFAULTS {
        let device = Device {
            kind: "c".into(),
            path: Path::new("/dev").join(name),
            major,
            minor,
            file_mode: None,
            uid: 0,
            gid: 0,
        };
        if !listed.iter().any(|other| other.path == device.path) {
            node(root, &dev, OsStr::new(name), &device).doing(|| format!("device /dev/{name}"))?;
        }
    }
    for (index, device) in listed.iter().enumerate() {
        root.create_parent(&device.path)
            .and_then(|(dir, name)| node(root, &dir, &name, device))
            .doing(|| format!("linux.devices[{index}]: {}", device.path.display()))?;
    }
    let missing: Vec<_> = listed
        .iter()
        .filter(|device| !exists_here(device))
        .collect();
    if !missing.is_empty() {
        warnings.push(warning(&missing));
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Failure::system(format!("link /dev/{name}"), error)),
        }
    }
    // The container's own devpts, whatever the image has there.
    match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(Failure::system("remove /dev/ptmx", error)),
    }
    rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx").doing(|| "link /dev/ptmx")
}

/// Whether a listed device leads anywhere.
///
/// A node is made for whatever number is listed, as by runc: callers list all devices of the host for
/// a privileged container. That some of them lead nowhere is worth one warning.
fn exists_here(device: &Device) -> bool {
    let kind = match device.kind.as_str() {
        "p" => return true,
        "b" => "block",
        _ => "char",
    };
    let known = format!("/sys/dev/{kind}/{}:{}", device.major, device.minor);
    rustix::fs::stat(known.as_str()).is_ok()
}

fn warning(missing: &[&Device]) -> String {
    let names: Vec<String> = missing
        .iter()
        .map(|device| {
            let (path, kind) = (device.path.display(), &device.kind);
            format!("{path} ({kind} {}:{})", device.major, device.minor)
        })
        .collect();
    format!(
        "linux.devices: the virtual machine does not have {}: such nodes lead nowhere",
        names.join(", ")
    )
}

/// Makes the node `name` in `dir`, which is where the device's path leads.
fn node(root: &Root, dir: &OwnedFd, name: &OsStr, device: &Device) -> io::Result<()> {
    let (kind, number) = match device.kind.as_str() {
        "p" => (FileType::Fifo, 0),
        "b" => (FileType::BlockDevice, makedev(device.major, device.minor)),
        _ => (
            FileType::CharacterDevice,
            makedev(device.major, device.minor),
        ),
    };
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(dir, name, kind, mode, number) {
        Ok(()) => {
            let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            Ok(rustix::fs::chownat(
                dir,
                name,
                Some(owner.0),
                Some(owner.1),
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
        Err(Errno::EXIST) => {
            let stat = stat_at(dir, name)?;
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
        Err(Errno::PERM) if kind != FileType::Fifo => {
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
pub(crate) fn terminal(root: &Root, modes: TerminalModes) -> Result<(OwnedFd, OwnedFd), Failure> {
    const WHAT: &str = "process.terminal";
    // The root is the image's: what is there may be anything, and a device acts when it is opened.
    let pts = root
        .open(Path::new("/dev/pts"), OFlags::PATH)
        .doing(|| format!("{WHAT}: /dev/pts"))?;
    let stat = rustix::fs::fstatfs(&pts).doing(|| WHAT)?;
    if stat.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Failure::invalid(format!(
            "{WHAT}: no devpts is mounted on /dev/pts"
        )));
    }
    let controller = open_beneath(&pts, Path::new("ptmx"), OFlags::RDWR | OFlags::NOCTTY)
        .doing(|| format!("{WHAT}: /dev/pts/ptmx"))?;
    rustix::pty::unlockpt(&controller).doing(|| WHAT)?;
    let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, open).doing(|| WHAT)?;
    if let Some((columns, rows)) = modes.size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&controller, size).doing(|| WHAT)?;
    }
    if modes.plain_line_feeds {
        let mut termios = tcgetattr(&terminal).doing(|| WHAT)?;
        termios.output_modes.remove(OutputModes::ONLCR);
        tcsetattr(&terminal, OptionalActions::Now, &termios).doing(|| WHAT)?;
    }
    Ok((controller, terminal))
}

/// Makes a terminal the container's `/dev/console`.
pub(crate) fn console(root: &Root, terminal: &OwnedFd) -> Result<(), Failure> {
    let console = root
        .create(Path::new("/dev/console"), Create::File)
        .doing(|| "/dev/console")?;
    clone_tree(terminal, "", false)
        .and_then(|mount| attach(&mount, &console.fd))
        .doing(|| "/dev/console")
}

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;
