//! The processes of one virtual machine: its VMM and its file server.
//!
//! Both are started with their control socket as descriptor 3 and nothing else. They end when that
//! socket is closed, so that they cannot outlive a monitor that was killed.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cloister_protocol::{LOG_PORT, READY_PORT};
use cloister_vmm_api::fs::{self, Export, ServeConfig};
use cloister_vmm_api::{
    API_VERSION, CONTROL_FD, Channel, ChannelError, ConfigError, FdRole, FsConfig, JailConfig,
    Request, VmConfig, VsockConfig,
};
use oci_spec::runtime::LinuxResources;
use rustix::io::DupFlags;

use super::idmap::{self, IdMapError};
use super::size::{self, MIB};
use crate::cgroup::Overhead;
use crate::config::Config;
use crate::launch::{Bind, Container};
use crate::paths::{ContainerPaths, KVM, VSOCK_SOCKET, through_fd};
use crate::process::ProcessId;
use crate::state::VmSize;
use crate::sys;

/// The name of the file system device, and of the root file system in it.
pub(crate) const SHARE_TAG: &str = "cloister";
/// The name of the root file system in the share.
pub(crate) const ROOTFS_NAME: &str = "rootfs";
/// The only guest behind a VMM: every VM has a host of its own.
const GUEST_CID: u32 = 3;
/// How many file requests are worked on at once.
const FS_THREADS: u8 = 4;
/// How long a process that was killed may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// The name of a bind mount's source in the share.
pub(crate) fn bind_name(bind: &Bind) -> String {
    format!("m{}", bind.index)
}

/// What the processes around the guest's memory need at most, in bytes: monitors, VMM, file server.
const PROCESSES_BYTES: u64 = 64 << 20;
/// How many tasks they are at most, with the monitors of executed processes.
const TASKS: u64 = 1024;
/// What a virtual machine for a container is made from, checked. Its memory and processors are
/// those of the configuration, or more if the container may use more.
///
/// # Errors
/// The setting that does not hold, by name.
pub fn vm_config(config: &Config, container: &Container) -> Result<VmConfig, ConfigError> {
    let (size, max) = size::of(config, container);
    let vm = VmConfig {
        api_version: API_VERSION,
        vcpus: size.vcpus,
        max_vcpus: max.vcpus,
        memory_mib: size.memory_mib,
        max_memory_mib: max.memory_mib,
        cmdline: config.kernel_cmdline.clone(),
        vsock: VsockConfig {
            guest_cid: GUEST_CID,
            host_ports: vec![READY_PORT, LOG_PORT],
        },
        fs: Some(FsConfig {
            tag: SHARE_TAG.into(),
        }),
        jail: JailConfig {
            uid: config.jail_uid,
            gid: config.jail_gid,
        },
    };
    vm.validate()?;
    Ok(vm)
}

/// What the processes of a sandbox may use beyond what the workload may: all of the guest's
/// memory, for it caches what it can, and what is around it.
pub(crate) fn overhead(config: &Config, container: &Container) -> Result<Overhead, MachineError> {
    let vm = vm_config(config, container).map_err(MachineError::Config)?;
    let guest = match container.sandbox {
        // The guest is another's.
        Some(_) => 0,
        None => u64::from(vm.memory_mib) * MIB,
    };
    let resources = container.resources.as_ref();
    let limit = resources.and_then(size::memory_limit).unwrap_or(0);
    Ok(Overhead {
        memory_bytes: beyond_workload(guest, limit),
        pids: TASKS,
    })
}

/// What is needed beyond a limit of memory when the guest has `guest` bytes, in bytes.
pub(super) fn beyond_workload(guest: u64, limit: u64) -> u64 {
    guest.saturating_sub(limit) + PROCESSES_BYTES
}

/// Whether there is anything to limit on this machine. What `unified` limits in the guest is not: a
/// cgroup for it could be had for want of a controller alone.
pub(crate) fn has_limits(resources: &LinuxResources) -> bool {
    let unified = resources.unified().iter().flatten();
    let mut files = unified.map(|(file, _)| file);
    resources.memory().is_some()
        || resources.cpu().is_some()
        || resources.block_io().is_some()
        || files.any(|file| file.starts_with("cpuset.") || file.starts_with("io."))
}

/// Why a virtual machine could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot open {what} {}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("cannot listen on {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    #[error("cannot make a socket pair")]
    SocketPair(#[source] io::Error),
    #[error("the configuration makes no virtual machine")]
    Config(#[source] ConfigError),
    #[error("cannot start {}", .0.display())]
    Spawn(PathBuf, #[source] io::Error),
    #[error("cannot share directories with the sandbox")]
    Attach(#[source] io::Error),
    #[error("cannot clone the mounts at {}", .0.display())]
    Clone(PathBuf, #[source] io::Error),
    /// It names the mount, which is all that has to be said.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("cannot speak to {program}")]
    Channel {
        program: &'static str,
        #[source]
        error: ChannelError,
    },
}

/// Descriptor [`CONTROL_FD`] of this process, kept free for what a child is to find there.
#[derive(Debug)]
pub(crate) struct ControlSlot(OwnedFd);

impl ControlSlot {
    /// Reserves the number. `idle` is what the descriptor refers to meanwhile.
    pub(crate) fn reserve(idle: impl Into<OwnedFd>) -> io::Result<Self> {
        let mut fd = idle.into();
        if fd.as_raw_fd() != CONTROL_FD {
            fd = rustix::io::fcntl_dupfd_cloexec(fd, CONTROL_FD)?;
        }
        if fd.as_raw_fd() != CONTROL_FD {
            return Err(io::Error::other(format!(
                "descriptor {CONTROL_FD} is in use"
            )));
        }
        Ok(Self(fd))
    }

    /// Runs `spawn` while the descriptor is `fd` and is inherited.
    fn with<T>(&mut self, fd: impl AsFd, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        rustix::io::dup2(fd, &mut self.0)?;
        let result = spawn();
        rustix::io::dup3(rustix::stdio::stdin(), &mut self.0, DupFlags::CLOEXEC)?;
        result
    }
}

/// A child that speaks over a control socket.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    status: Option<ExitStatus>,
    pub(crate) id: ProcessId,
    channel: Option<Channel>,
}

impl Worker {
    /// Hands over the control socket: when it is closed, the process ends.
    pub(crate) fn take_channel(&mut self) -> Option<Channel> {
        self.channel.take()
    }

    fn spawn(program: &Path, slot: &mut ControlSlot) -> Result<Self, MachineError> {
        let error = |e| MachineError::Spawn(program.to_owned(), e);
        let (ours, theirs) = Channel::pair().map_err(|e| error(io::Error::other(e)))?;
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            // A signal to the monitor's group is the workload's, not the machine's.
            .process_group(0);
        let child = slot.with(&theirs, || command.spawn()).map_err(error)?;
        // Until here a failure leaves nothing; from here on the worker cleans up when dropped.
        let mut worker = Self {
            id: ProcessId {
                pid: child.id().cast_signed(),
                start_time: 0,
            },
            child,
            status: None,
            channel: Some(ours),
        };
        worker.id = ProcessId::of(worker.id.pid).map_err(error)?;
        Ok(worker)
    }

    /// Ends the process without waiting for it.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            // It fails only if the process has been reaped, which `status` excludes.
            let _ = self.child.kill();
        }
    }

    /// Waits for the end of the process, which was killed or has closed its socket.
    pub(crate) fn reap(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.status.is_none() && self.id.wait_ended(limit).unwrap_or(true) {
            self.status = self.child.wait().ok();
        }
        self.status
    }

    fn send<T: serde::Serialize>(
        &self,
        program: &'static str,
        message: &T,
        fds: &[impl AsFd],
    ) -> Result<(), MachineError> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match &self.channel {
            Some(channel) => channel
                .send(message, &fds)
                .map_err(|error| MachineError::Channel { program, error }),
            None => Ok(()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        if self.reap(REAP_LIMIT).is_none() {
            log::error!(
                "process {} was killed and does not end: the system holds it",
                self.id.pid
            );
        }
    }
}

/// A virtual machine that boots or runs. Dropping it leaves no process.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vmm: Worker,
    pub(crate) fs: Worker,
    pub(crate) size: VmSize,
    /// As large as it can become.
    pub(crate) max: VmSize,
}

impl Machine {
    /// Starts the processes. The VMM comes first: it works while the rest is done here.
    pub(crate) fn start(
        config: &Config,
        container: &Container,
        paths: &ContainerPaths,
        dir: impl AsFd,
        slot: &mut ControlSlot,
    ) -> Result<Self, MachineError> {
        let vm = vm_config(config, container).map_err(MachineError::Config)?;
        let size = VmSize {
            memory_mib: vm.memory_mib,
            vcpus: vm.vcpus,
        };
        let max = VmSize {
            memory_mib: vm.max_memory_mib,
            vcpus: vm.max_vcpus,
        };
        let kvm = open("the hypervisor", Path::new(KVM), true)?;
        let kernel = open("the guest kernel", &config.kernel, false)?;
        let initramfs = open("the initramfs", &config.initramfs, false)?;
        let vmm = Worker::spawn(&config.vmm, slot)?;

        let console = console_log(&paths.console_log())?;
        let listener = listen(paths, dir.as_fd())?;
        let (frontend, backend) = UnixStream::pair().map_err(MachineError::SocketPair)?;
        let boot = Request::Boot {
            config: vm,
            fds: vec![
                FdRole::Kvm,
                FdRole::Kernel,
                FdRole::Initramfs,
                FdRole::Console,
                FdRole::VsockListener,
                FdRole::FsBackend,
            ],
        };
        let fds = [
            kvm.into(),
            kernel.into(),
            initramfs.into(),
            console.into(),
            listener.into(),
            OwnedFd::from(frontend),
        ];
        vmm.send("cloister-vmm", &boot, &fds)?;
        drop(fds);

        let fs = Worker::spawn(&config.fs, slot)?;
        let (exports, mut fds) = exports(container)?;
        fds.insert(0, backend.into());
        let serve = fs::Request::Serve {
            config: ServeConfig {
                api_version: API_VERSION,
                exports,
                threads: FS_THREADS,
            },
        };
        fs.send("cloister-fs", &serve, &fds)?;
        Ok(Self { vmm, fs, size, max })
    }

    /// Ends both processes without waiting for them.
    pub(crate) fn kill(&mut self) {
        self.vmm.kill();
        self.fs.kill();
    }
}

fn open(what: &'static str, path: &Path, write: bool) -> Result<File, MachineError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|error| MachineError::Open {
            what,
            path: path.to_owned(),
            error,
        })
}

fn console_log(path: &Path) -> Result<File, MachineError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| MachineError::Open {
            what: "the console log",
            path: path.to_owned(),
            error,
        })
}

fn listen(
    paths: &ContainerPaths,
    dir: std::os::fd::BorrowedFd<'_>,
) -> Result<UnixListener, MachineError> {
    let error = |e| MachineError::Listen(paths.vsock(), e);
    let path = through_fd(dir, VSOCK_SOCKET);
    let listener = UnixListener::bind(&path).map_err(error)?;
    // The directory around it lets nobody else in meanwhile.
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

/// The entries of the share, and the descriptors that go with them.
pub(crate) fn exports(container: &Container) -> Result<(Vec<Export>, Vec<OwnedFd>), MachineError> {
    // The root file system stays writable for the agent, which makes mount points in it before it
    // makes it read-only.
    let rootfs = Export {
        name: ROOTFS_NAME.into(),
        readonly: false,
        detached: false,
    };
    let mut exports = vec![rootfs];
    let mut fds = vec![open_path("the root file system", &container.rootfs)?];
    for bind in &container.binds {
        exports.push(Export {
            name: bind_name(bind),
            readonly: bind.readonly,
            detached: bind.id_map.is_some(),
        });
        let source = open_path("the source of a mount", &bind.source)?;
        fds.push(match bind.id_map {
            None => source,
            Some(_) => {
                let clone = sys::clone_mounts(&source, c"", 0);
                let clone = clone.map_err(|e| MachineError::Clone(bind.source.clone(), e))?;
                idmap::apply(bind, &clone)?;
                clone
            }
        });
    }
    Ok((exports, fds))
}

fn open_path(what: &'static str, path: &Path) -> Result<OwnedFd, MachineError> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        MachineError::Open {
            what,
            path: path.to_owned(),
            error: errno.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_that_limit_on_this_machine_alone_want_a_cgroup_there() {
        for (unified, expected) in [
            (json!({"cpuset.cpus": "0"}), true),
            (json!({"io.max": "8:0 rbps=1048576"}), true),
            (json!({"memory.oom.group": "1", "pids.max": "9"}), false),
            (json!({"ionice": "x"}), false),
            (json!({}), false),
        ] {
            let resources = serde_json::from_value(json!({"unified": unified})).unwrap();
            assert_eq!(has_limits(&resources), expected, "{unified}");
        }
    }
}
