//! Beds that are kept running between calls.
//!
//! Each has a directory, named after its shape and the stage it installs, in a directory of this checkout's:
//! ```text
//! $XDG_RUNTIME_DIR (or /tmp)/cloister-bed-<uid>-<checkout>/
//!   smp-cgroup-v2-4096M-2@<stage>/
//!     pid              QEMU's
//!     console.log      the machine's console
//!     qemu.log         QEMU's own complaints
//!     port-<n>.sock    one session each
//!     port-<n>.lock    locked by the front that uses the socket
//! ```
//! QEMU serves the sockets itself: no other process stays behind.

use super::cli::{MachineOptions, Shape};
use super::machine;
use super::session::{Bed, Front, Outcome, Request};
use super::sys;
use super::tail::last_lines;
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{Hash, Hasher as _};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// How many commands a kept bed runs at once; further ones wait.
const PORTS: usize = 16;

/// How long QEMU may take to end when asked to.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// A bed that is kept.
#[derive(Debug)]
pub(super) struct Instance {
    directory: PathBuf,
    shape: Shape,
}

/// A port of a kept bed, locked.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _lock: File,
}

impl Connection {
    pub(super) fn stream(&self) -> Result<UnixStream> {
        self.stream.try_clone().context("duplicate the connection")
    }
}

/// A running bed that will do.
pub(super) fn find(options: &MachineOptions) -> Result<Option<Instance>> {
    let suffix = format!("@{}", stage_hash());
    for instance in instances()? {
        if !instance
            .directory
            .as_os_str()
            .as_bytes()
            .ends_with(suffix.as_bytes())
        {
            continue;
        }
        if options.accept(instance.shape) && instance.process()?.is_some() {
            return Ok(Some(instance));
        }
    }
    Ok(None)
}

/// Starts a bed and leaves it running.
pub(super) fn up(options: &MachineOptions) -> Result<()> {
    let front = Front::new(options.boot_timeout())?;
    let _lock = lock()?;
    if let Some(instance) = find(options)? {
        eprintln!("bed: {} is up already", instance.shape.name());
        return Ok(());
    }
    let shape = options.shape()?;
    let base = base_directory()?;
    create_private(&base)?;
    let instance = Instance {
        directory: base.join(format!("{}@{}", shape.name(), stage_hash())),
        shape,
    };
    // What a machine that ended by itself has left.
    instance.remove()?;
    create_private(&instance.directory)?;
    if let Err(error) = instance.boot(&front) {
        let console = instance.console();
        instance.stop()?;
        return Err(error.context(format!(
            "the bed did not come up; the end of its console:\n{console}"
        )));
    }
    Ok(())
}

/// Stops every bed of this checkout and removes what belongs to them.
pub(super) fn down() -> Result<()> {
    let _lock = lock()?;
    for instance in instances()? {
        instance.stop()?;
    }
    match fs::remove_dir(base_directory()?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("remove the beds' directory")
        }
        _ => Ok(()),
    }
}

impl Instance {
    /// Locks a port, waiting until one is free, and connects to it.
    pub(super) fn connect(&self) -> Result<Connection> {
        loop {
            for port in 1..=PORTS {
                let path = self.directory.join(format!("port-{port}.lock"));
                let lock =
                    File::create(&path).with_context(|| format!("create {}", path.display()))?;
                match lock.try_lock() {
                    Ok(()) => {
                        let path = self.socket(port);
                        let stream = UnixStream::connect(&path)
                            .with_context(|| format!("connect to {}", path.display()))?;
                        return Ok(Connection {
                            stream,
                            _lock: lock,
                        });
                    }
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => {
                        return Err(error).with_context(|| format!("lock {}", path.display()));
                    }
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The end of what the machine and QEMU have written.
    pub(super) fn console(&self) -> String {
        ["console.log", "qemu.log"]
            .into_iter()
            .map(|name| match fs::read(self.directory.join(name)) {
                Ok(bytes) => last_lines(&bytes),
                Err(error) => format!("({name} lost: {error})\n"),
            })
            .collect()
    }

    fn socket(&self, port: usize) -> PathBuf {
        self.directory.join(format!("port-{port}.sock"))
    }

    fn boot(&self, front: &Front) -> Result<()> {
        let mut command = machine::command(self.shape, PORTS)?;
        let chardev = |definition: &str, path: &Path, rest: &str| {
            let path = path
                .to_str()
                .context("the runtime directory's path is not text")?;
            // QEMU reads a doubled comma as one.
            Ok::<_, anyhow::Error>(format!(
                "{definition},path={}{rest}",
                path.replace(',', ",,")
            ))
        };
        command.arg("-chardev").arg(chardev(
            "file,id=console",
            &self.directory.join("console.log"),
            "",
        )?);
        for port in 1..=PORTS {
            let definition = format!("socket,id=port{port}");
            command.arg("-chardev").arg(chardev(
                &definition,
                &self.socket(port),
                ",server=on,wait=off",
            )?);
        }
        let log = self.directory.join("qemu.log");
        let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let complaints = log.try_clone().context("duplicate the log's descriptor")?;
        command.stdin(Stdio::null()).stdout(log).stderr(complaints);
        sys::lead_session(&mut command);
        let mut qemu = machine::spawn(&mut command)?;
        fs::write(self.directory.join("pid"), qemu.id().to_string()).context("write QEMU's pid")?;

        while !self.socket(PORTS).exists() {
            if let Some(status) = qemu.try_wait().context("look after QEMU")? {
                bail!("QEMU ended: {status}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        let connection = self.connect()?;
        match front.relay(connection.stream()?, &Request::probe()?, Bed::Kept)? {
            Outcome::Exited(exited) if exited.shell_code() == 0 => Ok(()),
            other => bail!("its first command: {other:?}"),
        }
    }

    /// Its QEMU, if it runs.
    fn process(&self) -> Result<Option<(Pid, OwnedFd)>> {
        let path = self.directory.join("pid");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open process {text}")),
        };
        // The number may have gone to another process. A process that ends meanwhile has no command line.
        let arguments = fs::read(format!("/proc/{text}/cmdline")).unwrap_or_default();
        let directory = self.directory.as_os_str().as_bytes();
        let ours = arguments
            .windows(directory.len())
            .any(|window| window == directory);
        Ok(ours.then_some((pid, pidfd)))
    }

    fn stop(&self) -> Result<()> {
        if let Some((_, pidfd)) = self.process()? {
            signal(&pidfd, Signal::TERM)?;
            if !ended_within(&pidfd, STOPS_WITHIN)? {
                signal(&pidfd, Signal::KILL)?;
                if !ended_within(&pidfd, STOPS_WITHIN)? {
                    bail!("QEMU of {} does not end", self.shape.name());
                }
            }
        }
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}

fn signal(pidfd: &OwnedFd, signal: Signal) -> Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("signal QEMU"),
    }
}

fn ended_within(pidfd: &OwnedFd, limit: Duration) -> Result<bool> {
    let limit = Timespec::try_from(limit).context("a time limit")?;
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).context("wait for QEMU")? > 0)
}

fn instances() -> Result<Vec<Instance>> {
    let base = base_directory()?;
    let entries = match fs::read_dir(&base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", base.display())),
    };
    check_private(&base)?;
    let mut instances = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", base.display()))?;
        let name = entry.file_name();
        let shape = name
            .to_str()
            .and_then(|name| name.split_once('@'))
            .and_then(|(shape, _)| Shape::from_name(shape));
        if let Some(shape) = shape {
            instances.push(Instance {
                directory: entry.path(),
                shape,
            });
        }
    }
    Ok(instances)
}

/// Held while beds come and go.
fn lock() -> Result<File> {
    let executable = env::current_exe().context("find this executable")?;
    let lock = File::open(&executable).with_context(|| format!("open {}", executable.display()))?;
    lock.lock()
        .with_context(|| format!("lock {}", executable.display()))?;
    Ok(lock)
}

fn base_directory() -> Result<PathBuf> {
    let runtime = env::var_os("XDG_RUNTIME_DIR")
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| "/tmp".into());
    let executable = env::current_exe().context("find this executable")?;
    let user = rustix::process::getuid().as_raw();
    Ok(PathBuf::from(runtime).join(format!("cloister-bed-{user}-{}", hash(&executable))))
}

/// Tells the stages apart: each command would undo what one with another stage has installed.
fn stage_hash() -> String {
    hash(&env::var_os("CLOISTER_STAGE"))
}

/// Short, since a socket's path must be.
fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}

fn create_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("create {}", path.display()))
        }
        _ => check_private(path),
    }
}

/// Anybody can create a directory in /tmp: whoever owns this one commands the bed.
fn check_private(path: &Path) -> Result<()> {
    let metadata = path
        .symlink_metadata()
        .with_context(|| format!("look at {}", path.display()))?;
    let user = rustix::process::getuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        bail!(
            "{} is not a directory that only this user can enter",
            path.display()
        );
    }
    Ok(())
}
