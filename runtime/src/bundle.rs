//! A bundle: a directory with a specification and, usually, a root file system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cloister_protocol::SPEC_MAX;
use cloister_spec::{MountOption, Problem, Spec, mount_option};
use cloister_vmm_api::fs::MAX_EXPORTS;
use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};

use crate::hooks::{self, HookError, Kind};
use crate::launch::{Bind, Container, IdMap};
use crate::namespaces::{NamespaceError, Placement};
use crate::paths::SPEC_FILE;

/// A bundle whose specification holds.
#[derive(Debug)]
pub struct Bundle {
    /// Where it is, absolute and without symbolic links.
    pub dir: PathBuf,
    /// The bytes of the specification.
    pub bytes: Vec<u8>,
    /// What of it concerns the host.
    pub container: Container,
    /// What the check of the specification passed over.
    pub warnings: Vec<String>,
    /// What it passed over because callers ask for it by themselves.
    pub defaults: Vec<Problem>,
}

/// Why a bundle cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The directory is not there.
    #[error("cannot enter the bundle {}", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// There is no specification in it; the wording is runc's.
    #[error("JSON specification file {} not found in {}", .0.display(), .1.display())]
    NoSpec(PathBuf, PathBuf),
    /// The specification cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The specification is too large to travel.
    #[error("{}: larger than {SPEC_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The specification does not hold.
    #[error(transparent)]
    Spec(#[from] cloister_spec::Error),
    /// The root file system is not there; the wording is runc's.
    #[error("invalid rootfs: {}", .0.display())]
    Rootfs(PathBuf, #[source] io::Error),
    /// The root file system is a file.
    #[error("invalid rootfs: {} is not a directory", .0.display())]
    RootfsFile(PathBuf),
    /// A mount has no source.
    #[error("config.json: mounts[{index}].source: a bind mount needs one")]
    NoSource {
        /// Which mount.
        index: usize,
    },
    /// The source of a mount is not there.
    #[error("config.json: mounts[{index}].source: {}", source.display())]
    Source {
        /// Which mount.
        index: usize,
        /// What was to be mounted.
        source: PathBuf,
        /// Why it cannot be.
        #[source]
        error: io::Error,
    },
    /// A namespace cannot be had.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Its network is another container's.
    #[error(
        "config.json: linux.netDevices: refused: the container is in the virtual machine of container {0}, whose network is made with it"
    )]
    NetDevices(String),
    /// A hook is none.
    #[error("config.json: hooks")]
    Hook(#[source] HookError),
    /// More bind mounts than a file server can hold.
    #[error("config.json: mounts: {count} bind mounts, {max} possible", max = MAX_EXPORTS - 1)]
    TooManyBinds {
        /// How many there are.
        count: usize,
    },
}

impl Bundle {
    /// Reads the bundle in `dir` and checks everything in it that can be checked. `file` is its
    /// specification if that is not `config.json`; `root` is where the containers are that it may
    /// want to share something with.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(dir: &Path, file: Option<&Path>, root: &Path) -> Result<Self, BundleError> {
        let is_none = |e| BundleError::Directory(dir.to_owned(), e);
        let found = fs::canonicalize(dir).map_err(is_none)?;
        if !found.is_dir() {
            return Err(is_none(io::ErrorKind::NotADirectory.into()));
        }
        let dir = found;
        let file = file.unwrap_or(Path::new(SPEC_FILE));
        let bytes = read_spec(&dir, file)?;
        let spec = Spec::parse(&bytes, &file.display().to_string())?;
        let container = container(&dir, root, spec.oci())?;
        Ok(Self {
            container,
            warnings: spec.warnings().to_vec(),
            defaults: spec.defaults().to_vec(),
            bytes,
            dir,
        })
    }
}

fn read_spec(dir: &Path, file: &Path) -> Result<Vec<u8>, BundleError> {
    let path = dir.join(file);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(BundleError::NoSpec(file.to_owned(), dir.to_owned()));
        }
        Err(e) => return Err(BundleError::Read(path, e)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells what is too large.
    match file.take(SPEC_MAX as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > SPEC_MAX => Err(BundleError::TooLarge(path)),
        Ok(_) => Ok(bytes),
        Err(e) => Err(BundleError::Read(path, e)),
    }
}

fn container(
    dir: &Path,
    root: &Path,
    spec: &oci_spec::runtime::Spec,
) -> Result<Container, BundleError> {
    // The field table requires the root.
    let path = spec.root().as_ref().map(|root| root.path().as_path());
    let rootfs = dir.join(path.unwrap_or(Path::new("rootfs")));
    // config.md#root: a relative path is relative to the bundle.
    let rootfs = fs::canonicalize(&rootfs).map_err(|e| BundleError::Rootfs(rootfs, e))?;
    if !rootfs.is_dir() {
        return Err(BundleError::RootfsFile(rootfs));
    }
    let linux = spec.linux().as_ref();
    let cgroups_path = linux
        .and_then(|linux| linux.cgroups_path().as_ref())
        .map(|path| path.display().to_string());
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let namespaces = namespaces.map_or(&[][..], Vec::as_slice);
    let annotations = spec.annotations().clone().unwrap_or_default();
    let placement = Placement::find(root, namespaces, &annotations)?;
    if let Some(hooks) = spec.hooks() {
        for kind in Kind::ALL {
            // Those are the guest's to check.
            if kind != Kind::StartContainer {
                hooks::check(kind, kind.of(hooks)).map_err(BundleError::Hook)?;
            }
        }
    }
    let process = spec.process().as_ref();
    Ok(Container {
        oci_version: spec.version().clone(),
        rootfs,
        annotations,
        binds: binds(dir, spec)?,
        new_namespaces: placement.new,
        network: placement.network,
        made_namespaces: placement.made,
        net_devices: net_devices(linux, placement.sandbox.as_deref())?,
        sandbox: placement.sandbox,
        shared_namespaces: placement.shared,
        hooks: spec.hooks().clone(),
        cgroups_path: cgroups_path.unwrap_or_default(),
        resources: linux.and_then(|linux| linux.resources().clone()),
        terminal: process.and_then(|p| p.terminal()).unwrap_or_default(),
    })
}

/// config-linux.md#network-devices: a device keeps its name unless another is given.
fn net_devices(
    linux: Option<&Linux>,
    sandbox: Option<&str>,
) -> Result<BTreeMap<String, String>, BundleError> {
    let devices = linux.and_then(|linux| linux.net_devices().as_ref());
    let devices = devices.into_iter().flatten();
    let devices: BTreeMap<_, _> = devices
        .map(|(name, device)| {
            let wanted = device.name().as_ref().filter(|wanted| !wanted.is_empty());
            (name.clone(), wanted.unwrap_or(name).clone())
        })
        .collect();
    match sandbox {
        Some(sandbox) if !devices.is_empty() => Err(BundleError::NetDevices(sandbox.to_owned())),
        _ => Ok(devices),
    }
}

fn binds(dir: &Path, spec: &oci_spec::runtime::Spec) -> Result<Vec<Bind>, BundleError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mut binds = Vec::new();
    for (position, (mount, index)) in mounts.iter().zip(0..).enumerate() {
        if !is_bind(mount) {
            continue;
        }
        let source = mount.source().as_ref();
        let source = source.filter(|s| !s.as_os_str().is_empty());
        let source = source.ok_or(BundleError::NoSource { index: position })?;
        // config.md#mounts: a relative source is relative to the bundle.
        let source = dir.join(source);
        if let Err(error) = fs::metadata(&source) {
            return Err(BundleError::Source {
                index: position,
                source,
                error,
            });
        }
        binds.push(Bind {
            index,
            source,
            destination: mount.destination().clone(),
            readonly: has_option(mount, &["ro", "rro"]),
            id_map: id_map(mount, spec.linux().as_ref()),
        });
    }
    if binds.len() >= MAX_EXPORTS {
        return Err(BundleError::TooManyBinds { count: binds.len() });
    }
    Ok(binds)
}

/// The mappings of a mount's own, or by an option those of the container
/// (config.md#posix-platform-mounts, #linux-mount-options).
fn id_map(mount: &Mount, linux: Option<&Linux>) -> Option<IdMap> {
    let options = mount.options().as_deref().unwrap_or_default();
    // The last one counts.
    let asked = options
        .iter()
        .rev()
        .find_map(|option| match mount_option(option) {
            Some(MountOption::IdMap { recursive }) => Some(recursive),
            _ => None,
        });
    let tuples = |mappings: &Option<Vec<LinuxIdMapping>>| -> Vec<_> {
        let mappings = mappings.iter().flatten();
        mappings
            .map(|map| (map.container_id(), map.host_id(), map.size()))
            .collect()
    };
    let mut uids = tuples(mount.uid_mappings());
    let mut gids = tuples(mount.gid_mappings());
    if uids.is_empty() && gids.is_empty() {
        asked?;
        uids = tuples(linux?.uid_mappings());
        gids = tuples(linux?.gid_mappings());
    }
    Some(IdMap {
        uids,
        gids,
        recursive: asked.unwrap_or(false),
    })
}

/// config.md#mounts: with `bind` or `rbind` among its options a mount is a bind mount, whatever
/// its type says.
fn is_bind(mount: &Mount) -> bool {
    has_option(mount, &["bind", "rbind"])
}

fn has_option(mount: &Mount, names: &[&str]) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .any(|option| names.contains(&option.as_str()))
}
