//! What others find at `/proc/PID/ns` and `/proc/PID/root` of the monitor.
//!
//! Those are of the process's first thread, which does nothing else: it holds the container's
//! network, IPC and UTS namespaces, and a mount namespace whose root is the container's root file
//! system with its bind mounts, for callers that look for a container there (`podman cp`,
//! `nsenter`). The monitor itself works on a second thread, which stays where the runtime is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::failure::Failure;
use super::idmap;
use crate::launch::{Bind, Container};
use crate::namespaces;
use crate::sys;

/// Devices and set-user-id programs are the guest's.
const RESTRICTED: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

type Work = Box<dyn FnOnce() -> Result<(), Failure> + Send>;

/// Work for the first thread, and where its result goes.
type Request = (Work, mpsc::SyncSender<Result<(), Failure>>);

/// The second thread's way to the first.
#[derive(Debug, Clone)]
pub(crate) struct Holder(mpsc::Sender<Request>);

impl Holder {
    /// Runs `work` on a thread of its own, and serves it on this one until it is done. This has to
    /// be the process's first thread.
    pub(crate) fn serve<T: Send + 'static>(
        work: impl FnOnce(Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (sender, requests) = mpsc::channel::<Request>();
        let worker = std::thread::Builder::new()
            .name("cloister".into())
            .spawn(move || work(Self(sender)))?;
        for (work, answer) in requests {
            // Whoever asked waits for it.
            let _ = answer.send(work());
        }
        worker
            .join()
            .map_err(|_| io::Error::other("the monitor's thread has panicked"))
    }

    fn ask(&self, work: Work) -> Result<(), Failure> {
        let gone = || Failure::Own(io::Error::other("the first thread is gone"));
        let (sender, answer) = mpsc::sync_channel(1);
        self.0.send((work, sender)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// Has the first thread enter the namespaces of this machine that a container has.
    pub(crate) fn enter_namespaces(
        &self,
        root: &Path,
        container: &Container,
    ) -> Result<(), Failure> {
        let new = container.new_namespaces;
        let mut shared = Vec::new();
        for (kind, other) in &container.shared_namespaces {
            let Some(flag) = namespaces::held_by_name(kind) else {
                continue;
            };
            let (_, state) = namespaces::sandbox_state(root, other)?;
            let monitor = state.monitor.open().map_err(Failure::Own)?;
            shared.push((monitor.ok_or(Failure::MonitorGone)?, flag));
        }
        let made = container.made_namespaces.iter().filter_map(|(kind, path)| {
            let flag = namespaces::held_by_name(kind)?;
            Some((path.clone(), flag))
        });
        let network = container.network.iter();
        let network = network.map(|path| (path.clone(), libc::CLONE_NEWNET));
        let made: Vec<_> = network.chain(made).collect();
        if new == 0 && made.is_empty() && shared.is_empty() {
            return Ok(());
        }
        self.ask(Box::new(move || {
            let enter = || {
                if new != 0 {
                    sys::new_namespaces(new)?;
                }
                for (path, flag) in &made {
                    sys::join(&File::open(path)?, *flag)?;
                }
                for (monitor, flag) in &shared {
                    sys::join(monitor, *flag)?;
                }
                Ok(())
            };
            enter().map_err(Failure::Network)
        }))
    }

    /// Has the first thread make a container's files its root. The mount points of the container
    /// have to be there.
    pub(crate) fn enter_root(&self, container: &Container) -> Result<(), Failure> {
        let rootfs = container.rootfs.clone();
        let binds = container.binds.clone();
        self.ask(Box::new(move || {
            enter_root(&rootfs, &binds).map_err(Failure::Own)
        }))
    }
}

fn enter_root(rootfs: &Path, binds: &[Bind]) -> io::Result<()> {
    let clone = |path: &Path, readonly| {
        let read_only = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
        sys::clone_mounts(CWD, path, RESTRICTED | read_only)
    };
    let root = clone(rootfs, false)?;
    let clones = binds
        .iter()
        .map(|bind| {
            let clone = clone(&bind.source, bind.readonly)?;
            idmap::apply(bind, &clone).map_err(io::Error::other)?;
            Ok((clone, &bind.destination))
        })
        .collect::<io::Result<Vec<_>>>()?;
    sys::own_mounts()?;
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    attach(&root, CWD, c"/")?;
    for (clone, destination) in &clones {
        // What the guest has on top of another mount may have no place in the root file system.
        let relative = destination.strip_prefix("/").unwrap_or(destination);
        match openat2(
            &root,
            relative,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        ) {
            Ok(place) => attach(clone, place, c"")?,
            Err(e) => log::debug!("{} is not seen from outside: {e}", destination.display()),
        }
    }
    let old = openat(
        CWD,
        c"/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    fchdir(&root)?;
    // The old root ends up on top of the new one, from where it is taken away.
    pivot_root(c".", c".")?;
    fchdir(&old)?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(fchdir(&root)?)
}

fn attach(mount: &OwnedFd, dir: impl std::os::fd::AsFd, path: &std::ffi::CStr) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(mount, c"", dir, path, flags)?)
}
