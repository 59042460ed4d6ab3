//! `linux.namespaces[].path`: which namespaces of other containers, or of this machine, a
//! container asks for.
//!
//! A container's processes are in a virtual machine, where the only namespaces to join are those
//! of the containers in it. A path that leads to what a monitor holds for its container, or to the
//! monitor itself (`/proc/PID/ns/TYPE`), stands for that container's namespace; the new container
//! then goes into the same virtual machine. A network namespace that is no container's is the one
//! that the sandbox is to be connected to. An IPC or UTS namespace that CRI-O has made for a pod, in which nobody is, is
//! held by the pod's sandbox, so that the pod's other containers are known by it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use crate::id::ContainerId;
use crate::network::{self, NetworkError};
use crate::state::{Phase, State, StateDir, StateError, Status};

/// Why a namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path leads nowhere.
    #[error("config.json: linux.namespaces[{index}].path: {}", path.display())]
    Open {
        /// Which namespace.
        index: usize,
        /// Its path.
        path: PathBuf,
        /// Why it cannot be opened.
        #[source]
        error: io::Error,
    },
    /// The path leads to something else.
    #[error("config.json: linux.namespaces[{index}].path: {} is not a {kind} namespace", path.display())]
    Other {
        /// Which namespace.
        index: usize,
        /// Its path.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
    },
    /// It cannot be shared with a virtual machine.
    #[error(
        "config.json: linux.namespaces[{index}].path: refused: {} is no container's {kind} namespace, and a virtual machine cannot be in one of this machine's", path.display()
    )]
    Host {
        /// Which namespace.
        index: usize,
        /// Its path.
        path: PathBuf,
        /// Its type.
        kind: &'static str,
    },
    /// The network of this machine.
    #[error(
        "config.json: linux.namespaces[{index}].path: refused: {} is the network of this machine, which a virtual machine cannot join; give it a network namespace of its own", path.display()
    )]
    HostNetwork {
        /// Which namespace.
        index: usize,
        /// Its path.
        path: PathBuf,
    },
    /// It cannot be a virtual machine's.
    #[error("config.json: linux.namespaces[{index}].path: refused")]
    Network {
        /// Which namespace.
        index: usize,
        /// Why.
        #[source]
        source: Box<NetworkError>,
    },
    /// No container shares that.
    #[error(
        "config.json: linux.namespaces[{index}].path: refused: a container's {kind} namespace cannot be shared with another"
    )]
    Unshareable {
        /// Which namespace.
        index: usize,
        /// Its type.
        kind: &'static str,
    },
    /// They belong to different virtual machines.
    #[error(
        "config.json: linux.namespaces[{index}].path: container {container} is in another virtual machine than {other}"
    )]
    Split {
        /// Which namespace.
        index: usize,
        /// Whose it is.
        container: String,
        /// The container that decides on the virtual machine.
        other: String,
    },
    /// An annotation names a sandbox that is not there.
    #[error(
        "config.json: annotations[{annotation:?}]: there is no sandbox {id:?} to put the container into"
    )]
    NoSandbox {
        /// The annotation.
        annotation: &'static str,
        /// What it says.
        id: String,
    },
    /// The containers that there are cannot be listed.
    #[error(transparent)]
    List(StateError),
    /// It may be that of a container of which nothing is known.
    #[error(
        "config.json: {field}: it may be that of container {container}, whose state cannot be read"
    )]
    Unread {
        /// What of the specification asks for it.
        field: String,
        /// The container.
        container: String,
        /// Why its state cannot be read.
        #[source]
        error: StateError,
    },
    /// The other container cannot take one in.
    #[error("container {0}, whose virtual machine it is, is not running")]
    Stopped(String),
}

/// Where a container goes, as far as others are concerned.
#[derive(Debug, Default)]
pub struct Placement {
    /// The container whose virtual machine it goes into; `None` for one of its own.
    pub sandbox: Option<String>,
    /// Types of namespaces by the specification's names, and the containers that they are shared
    /// with.
    pub shared: Vec<(String, String)>,
    /// The network namespace of this machine that the sandbox is connected to.
    pub network: Option<PathBuf>,
    /// Further namespaces of this machine that were made for it, by the specification's names of their types.
    pub made: Vec<(String, PathBuf)>,
    /// Namespaces (CLONE_NEW*) that the monitor makes to hold them.
    pub new: i32,
}

/// The annotations by which a caller says that a container belongs to a pod: the type, the type's
/// word for a container in a sandbox, and the sandbox.
const PODS: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (CRIO_TYPE, "io.kubernetes.cri-o.SandboxID"),
];

/// The annotation by which CRI-O says what a container is to a pod.
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";

/// A container that another can share something with.
struct Candidate {
    id: String,
    state: State,
}

/// The containers that live, and those of which that is not known.
#[derive(Default)]
struct Candidates {
    live: Vec<Candidate>,
    unread: Vec<(String, StateError)>,
}

impl Candidates {
    /// An error for what was found with none that lives; `otherwise` if it can be with no other.
    fn missing(&mut self, field: String, otherwise: NamespaceError) -> NamespaceError {
        match self.unread.pop() {
            Some((container, error)) => NamespaceError::Unread {
                field,
                container,
                error,
            },
            None => otherwise,
        }
    }
}

impl Candidate {
    /// The container whose virtual machine it is in.
    fn sandbox(&self) -> &str {
        self.state.sandbox.as_deref().unwrap_or(&self.id)
    }
}

impl Placement {
    /// Finds out where a container goes.
    ///
    /// # Errors
    /// A namespace that cannot be had, or a sandbox that is not there.
    pub fn find(
        root: &Path,
        namespaces: &[LinuxNamespace],
        annotations: &std::collections::HashMap<String, String>,
    ) -> Result<Self, NamespaceError> {
        let mut this = Self::default();
        let has_paths = namespaces.iter().any(|namespace| path(namespace).is_some());
        let pod = pod(annotations);
        if !has_paths && pod.is_none() {
            this.new = namespaces.iter().filter_map(|n| held(n.typ())).sum();
            return Ok(this);
        }
        let mut candidates = candidates(root)?;
        if let Some((annotation, sandbox)) = pod {
            match find_sandbox(&candidates.live, annotation, sandbox) {
                Some(found) => this.sandbox = Some(found),
                // Podman's pods need not have a container that others could join.
                None if is_podmans(annotations) => {}
                None => {
                    let none = NamespaceError::NoSandbox {
                        annotation,
                        id: sandbox.to_owned(),
                    };
                    return Err(candidates.missing(format!("annotations[{annotation:?}]"), none));
                }
            }
        }
        let is_crios = annotations
            .get(CRIO_TYPE)
            .is_some_and(|kind| kind == "sandbox");
        for (index, namespace) in namespaces.iter().enumerate() {
            match path(namespace) {
                Some(path) => {
                    this.add_path(index, namespace.typ(), path, is_crios, &mut candidates)?;
                }
                None => this.new += held(namespace.typ()).unwrap_or(0),
            }
        }
        Ok(this)
    }

    fn add_path(
        &mut self,
        index: usize,
        typ: LinuxNamespaceType,
        path: &Path,
        is_crios_sandbox: bool,
        candidates: &mut Candidates,
    ) -> Result<(), NamespaceError> {
        let (kind, link) = names(typ);
        let open = |error| NamespaceError::Open {
            index,
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(open)?;
        let metadata = file.metadata().map_err(open)?;
        let identity = (metadata.dev(), metadata.ino());
        if !is_namespace(&file, link).map_err(open)? {
            return Err(NamespaceError::Other {
                index,
                path: path.to_owned(),
                kind,
            });
        }
        let by_path = path_owner(path);
        let owner = candidates.live.iter().find(|candidate| {
            let pid = candidate.state.monitor.pid;
            if held(typ).is_none() || by_path == Some(pid) {
                return by_path == Some(pid);
            }
            let own = fs::metadata(format!("/proc/{pid}/ns/{link}"));
            own.is_ok_and(|own| (own.dev(), own.ino()) == identity) && !is_own(link, identity)
        });
        match owner {
            Some(_) if matches!(typ, LinuxNamespaceType::Mount | LinuxNamespaceType::User) => {
                Err(NamespaceError::Unshareable { index, kind })
            }
            Some(owner) => {
                let sandbox = self
                    .sandbox
                    .get_or_insert_with(|| owner.sandbox().to_owned());
                if sandbox != owner.sandbox() {
                    return Err(NamespaceError::Split {
                        index,
                        container: owner.id.clone(),
                        other: sandbox.clone(),
                    });
                }
                self.shared.push((kind.to_owned(), owner.id.clone()));
                Ok(())
            }
            None if typ == LinuxNamespaceType::Network && is_own(link, identity) => {
                Err(NamespaceError::HostNetwork {
                    index,
                    path: path.to_owned(),
                })
            }
            // A network that somebody has made, unless a container of which nothing is known holds it.
            None if typ == LinuxNamespaceType::Network
                && (candidates.unread.is_empty() || !by_path.is_some_and(is_monitor)) =>
            {
                network::check_unshared(path).map_err(|e| NamespaceError::Network {
                    index,
                    source: Box::new(e),
                })?;
                self.network = Some(path.to_owned());
                Ok(())
            }
            // CRI-O's program pinns has made it, and no process is in it.
            None if is_crios_sandbox
                && by_path.is_none()
                && matches!(typ, LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts)
                && candidates.unread.is_empty()
                && !is_own(link, identity)
                && matches!(inhabitant(link, identity), Ok(None)) =>
            {
                self.made.push((kind.to_owned(), path.to_owned()));
                Ok(())
            }
            None => {
                let host = NamespaceError::Host {
                    index,
                    path: path.to_owned(),
                    kind,
                };
                let field = format!("linux.namespaces[{index}].path: {}", path.display());
                Err(candidates.missing(field, host))
            }
        }
    }
}

fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Whether a container says that it belongs to another's sandbox, and to which.
fn pod(annotations: &std::collections::HashMap<String, String>) -> Option<(&'static str, &str)> {
    PODS.iter().find_map(|(kind, sandbox)| {
        let is_inside = annotations
            .get(*kind)
            .is_some_and(|kind| kind == "container");
        let id = annotations.get(*sandbox).filter(|_| is_inside)?;
        Some((*sandbox, id.as_str()))
    })
}

fn is_podmans(annotations: &std::collections::HashMap<String, String>) -> bool {
    let manager = annotations.get("io.container.manager");
    manager.is_some_and(|manager| manager == "libpod")
}

/// The container that made a pod's sandbox: the one of that id, or one that says so.
fn find_sandbox(candidates: &[Candidate], annotation: &'static str, id: &str) -> Option<String> {
    let found = candidates.iter().find(|candidate| {
        let own = candidate.state.annotations.get(annotation);
        candidate.state.sandbox.is_none()
            && (candidate.id == id || own.is_some_and(|own| own == id))
    });
    Some(found?.id.clone())
}

fn candidates(root: &Path) -> Result<Candidates, NamespaceError> {
    let mut found = Candidates::default();
    for (id, dir) in StateDir::each(root).map_err(NamespaceError::List)? {
        let id = id.to_string();
        let loaded = dir.and_then(|dir| Ok((dir.load()?, dir)));
        match loaded {
            Ok((state, dir))
                if matches!(dir.status(&state), Status::Creating | Status::Stopped) => {}
            Ok((state, _)) => found.live.push(Candidate { id, state }),
            // It is about to be created, or was deleted meanwhile.
            Err(StateError::NotFound(_)) => {}
            Err(error) => found.unread.push((id, error)),
        }
    }
    Ok(found)
}

/// Whether a process calls itself as monitors do.
fn is_monitor(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim_end() == "cloister")
}

/// What the monitor of a container holds of its namespaces on this machine.
fn held(typ: LinuxNamespaceType) -> Option<i32> {
    match typ {
        LinuxNamespaceType::Network => Some(libc::CLONE_NEWNET),
        LinuxNamespaceType::Ipc => Some(libc::CLONE_NEWIPC),
        LinuxNamespaceType::Uts => Some(libc::CLONE_NEWUTS),
        _ => None,
    }
}

/// What the monitor of a container holds of a type that is given by the specification's name.
#[must_use]
pub fn held_by_name(kind: &str) -> Option<i32> {
    [
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ]
    .into_iter()
    .find(|typ| names(*typ).0 == kind)
    .and_then(held)
}

/// The specification's name of a type, and procfs's.
fn names(typ: LinuxNamespaceType) -> (&'static str, &'static str) {
    match typ {
        LinuxNamespaceType::Mount => ("mount", "mnt"),
        LinuxNamespaceType::Cgroup => ("cgroup", "cgroup"),
        LinuxNamespaceType::Uts => ("uts", "uts"),
        LinuxNamespaceType::Ipc => ("ipc", "ipc"),
        LinuxNamespaceType::User => ("user", "user"),
        LinuxNamespaceType::Pid => ("pid", "pid"),
        LinuxNamespaceType::Network => ("network", "net"),
        LinuxNamespaceType::Time => ("time", "time"),
    }
}

/// The process that a path names: `/proc/PID/ns/TYPE`.
fn path_owner(path: &Path) -> Option<i32> {
    let rest = path.strip_prefix("/proc").ok()?;
    let mut parts = rest.components();
    let pid = parts.next()?.as_os_str().to_str()?.parse().ok()?;
    (parts.next()?.as_os_str() == "ns").then_some(pid)
}

/// Whether an open file is a namespace of a type: what procfs calls it.
fn is_namespace(file: &File, link: &str) -> io::Result<bool> {
    let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let target = target.to_string_lossy();
    // A namespace that is mounted somewhere is known by its place, not by its name.
    let stat = rustix::fs::fstatfs(file)?;
    if stat.f_type != NSFS_MAGIC {
        return Ok(false);
    }
    Ok(target
        .split_once(":[")
        .is_none_or(|(name, _)| name == link || name == format!("{link}_for_children")))
}

/// How long to wait before the state of a container that ends is looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// linux/magic.h
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Whether a namespace is that of this process.
fn is_own(link: &str, identity: (u64, u64)) -> bool {
    let own = fs::metadata(format!("/proc/self/ns/{link}"));
    own.is_ok_and(|own| (own.dev(), own.ino()) == identity)
}

/// A process that is in a namespace: device and inode of its file, `link` in `/proc/PID/ns`.
pub(crate) fn inhabitant(link: &str, identity: (u64, u64)) -> io::Result<Option<i32>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    Ok(pids.find(|pid: &i32| {
        // Whoever has ended meanwhile is not in it.
        let own = fs::metadata(format!("/proc/{pid}/ns/{link}"));
        own.is_ok_and(|own| (own.dev(), own.ino()) == identity)
    }))
}

/// The state of a container that others share something with.
///
/// # Errors
/// [`NamespaceError::Stopped`] if it has ended.
pub fn sandbox_state(root: &Path, id: &str) -> Result<(StateDir, State), NamespaceError> {
    let stopped = || NamespaceError::Stopped(id.to_owned());
    let name = ContainerId::new(id).map_err(|_| stopped())?;
    let dir = StateDir::open(root, &name).map_err(|_| stopped())?;
    let state = dir.load().map_err(|_| stopped())?;
    match dir.status(&state) {
        Status::Stopped | Status::Creating => Err(stopped()),
        Status::Created | Status::Running | Status::Paused => Ok((dir, state)),
    }
}

/// Whether a container has ended, or does within `limit`, by its own doing or because it was killed;
/// one that was deleted has. One whose machine is lost has not.
#[must_use]
pub fn has_ended(root: &Path, id: &str, limit: Duration) -> bool {
    let Ok(id) = ContainerId::new(id) else {
        return false;
    };
    let load = || StateDir::open(root, &id).and_then(|dir| dir.load());
    let deadline = Instant::now() + limit;
    loop {
        let state = match load() {
            Ok(state) => state,
            Err(StateError::NotFound(_)) => return true,
            Err(_) => return false,
        };
        // What its monitor says counts, not that it is there: it may have hooks to run, and memory to
        // give back.
        if let Phase::Exited { error, .. } = state.phase {
            return error.is_none();
        }
        if matches!(state.monitor.wait_ended(LOOK_PAUSE), Ok(true)) {
            return match load().map(|state| state.phase) {
                Ok(Phase::Exited { error, .. }) => error.is_none(),
                // It was killed, and everything with it.
                Ok(_) | Err(StateError::NotFound(_)) => true,
                Err(_) => false,
            };
        }
        if Instant::now() >= deadline {
            return false;
        }
    }
}

#[cfg(test)]
mod tests;
