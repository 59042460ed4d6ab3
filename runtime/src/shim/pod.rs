//! A pod without a pause container: what its caller says of it becomes the specification of a
//! container that does nothing, and the files that its containers share are written here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cloister::paths::{Install, SPEC_FILE};
use containerd_shim_protos::api::Mount;
use serde_json::{Map, Value, json};

use super::callers::{DNSConfig, LinuxContainerResources, NamespaceMode, PodSandboxConfig};
use super::mounts::{self, MountError};

/// Where the program that does nothing is seen in its container.
const PAUSE: &str = "/pause";
/// The root of that container, in the sandbox's bundle. containerd removes a bundle whose `rootfs` is empty alone, and here are
/// the places of mounts.
const ROOT: &str = "root";
/// The files that all containers of a pod have, in the sandbox's bundle, and where they have them.
const SHARED: [(&str, &str); 3] = [
    ("hosts", "/etc/hosts"),
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
];
/// What the machine's own resolver is told, for pods without a DNS configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The annotations that tell a pod's sandbox from its containers: containerd's and CRI-O's.
const TYPES: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];
/// What a pod may ask to have of the machine's.
const HOST_NAMESPACES: [&str; 3] = ["network", "pid", "ipc"];
/// The shared memory of a pod, in KiB, as containerd has it.
const SHM_KIB: u32 = 65536;

/// Why a pod cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    /// It asks for the machine's own namespace.
    #[error(
        "the pod's {0} namespace is to be the machine's: a virtual machine cannot share it; use the runtime class of runc for this pod"
    )]
    HostNamespace(&'static str),
    /// Ids cannot be mapped for a whole machine.
    #[error("user namespaces of pods are not supported: each pod has a kernel of its own")]
    UserNamespace,
    /// A specification that is none.
    #[error("{SPEC_FILE} of the sandbox is malformed")]
    Spec(#[from] serde_json::Error),
    /// A file could not be read or written.
    #[error("cannot prepare {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What is told of a sandbox.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// The network namespace, if it has one.
    pub(crate) network: &'a str,
    /// Whether its root file system is mounted there.
    pub(crate) has_rootfs: bool,
    pub(crate) config: Option<PodSandboxConfig>,
    pub(crate) annotations: std::collections::HashMap<String, String>,
}

impl Pod<'_> {
    /// Writes the specification and the shared files into the bundle.
    pub(crate) fn prepare(self) -> Result<(), PodError> {
        let path = self.bundle.join(SPEC_FILE);
        let given = match fs::read(&path) {
            Ok(text) => Some(serde_json::from_slice(&text)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(PodError::File { path, source }),
        };
        let spec = self.specification(given)?;
        let write = |name: &str, text: String| {
            let path = self.bundle.join(name);
            fs::write(&path, text).map_err(|source| PodError::File { path, source })
        };
        write(SPEC_FILE, spec.to_string())?;
        let config = self.config.clone().unwrap_or_default();
        write("hosts", hosts(&config.hostname))?;
        write("hostname", format!("{}\n", config.hostname))?;
        let resolv_conf = match config.dns_config.as_ref().filter(|dns| !is_empty(dns)) {
            Some(dns) => resolv_conf(dns),
            // A machine without one gives none.
            None => fs::read_to_string(RESOLV_CONF).unwrap_or_default(),
        };
        write("resolv.conf", resolv_conf)?;
        for path in [self.bundle.join(ROOT), shared_memory(self.bundle)] {
            fs::create_dir_all(&path).map_err(|source| PodError::File { path, source })?;
        }
        Ok(())
    }

    fn specification(&self, given: Option<Value>) -> Result<Value, PodError> {
        let mut spec = match given {
            Some(spec) => spec,
            None => self.of_config()?,
        };
        if !self.has_rootfs {
            let pause = pause_program().map_err(|source| PodError::File {
                path: "cloister-pause".into(),
                source,
            })?;
            spec["root"] = json!({"path": ROOT, "readonly": true});
            spec["process"] = json!({
                "args": [PAUSE], "cwd": "/", "env": [], "noNewPrivileges": true,
                "user": {"uid": 65535, "gid": 65535},
            });
            spec["mounts"] = json!([
                {"destination": PAUSE, "type": "bind", "source": pause, "options": ["bind", "ro"]},
                {"destination": "/proc", "type": "proc", "source": "proc",
                 "options": ["nosuid", "noexec", "nodev"]},
            ]);
        }
        if !spec["annotations"].is_object() {
            spec["annotations"] = json!({});
        }
        for (name, value) in &self.annotations {
            spec["annotations"][name] = json!(value);
        }
        spec["annotations"]["io.kubernetes.cri.container-type"] = json!("sandbox");
        spec["annotations"]["io.kubernetes.cri.sandbox-id"] = json!(self.id);
        if !self.network.is_empty() {
            set_network(&mut spec, self.network);
        }
        Ok(spec)
    }

    fn of_config(&self) -> Result<Value, PodError> {
        let config = self.config.clone().unwrap_or_default();
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.clone().unwrap_or_default();
        let modes = security.namespace_options.unwrap_or_default();
        let asked = [modes.network, modes.pid, modes.ipc];
        for (name, mode) in HOST_NAMESPACES.into_iter().zip(asked) {
            if mode == NamespaceMode::NODE.into() {
                return Err(PodError::HostNamespace(name));
            }
        }
        // Kubernetes says POD of those that get mappings, and NODE of all others.
        if modes
            .userns_options
            .into_option()
            .is_some_and(|user| user.mode == NamespaceMode::POD.into())
        {
            return Err(PodError::UserNamespace);
        }
        let mut annotations: Map<String, Value> = config
            .annotations
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        annotations.extend(sizes(linux.resources.as_ref(), linux.overhead.as_ref()));
        let mut spec = json!({
            "ociVersion": "1.1.0",
            "annotations": annotations,
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "network"},
                ],
                "sysctl": linux.sysctls,
            },
        });
        if !config.hostname.is_empty() {
            spec["hostname"] = json!(config.hostname);
        }
        if !linux.cgroup_parent.is_empty() {
            spec["linux"]["cgroupsPath"] = json!(cgroup(&linux.cgroup_parent, self.id));
        }
        Ok(spec)
    }
}

/// The annotations by which containerd tells the size of a pod.
fn sizes(
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
) -> Vec<(String, Value)> {
    let sum = |of: fn(&LinuxContainerResources) -> i64| {
        let resources = resources.map_or(0, of);
        // Without a limit there is nothing to add to.
        (resources > 0).then(|| resources.saturating_add(overhead.map_or(0, of)))
    };
    let all = [
        (
            "cpu-period",
            resources.map(|r| r.cpu_period).filter(|&p| p > 0),
        ),
        ("cpu-quota", sum(|r| r.cpu_quota)),
        ("cpu-shares", sum(|r| r.cpu_shares)),
        ("memory", sum(|r| r.memory_limit_in_bytes)),
    ];
    all.into_iter()
        .filter_map(|(name, value)| {
            let name = format!("io.kubernetes.cri.sandbox-{name}");
            Some((name, json!(value?.to_string())))
        })
        .collect()
}

/// The cgroup of a container below the pod's, in the form that containerd gives it.
fn cgroup(parent: &str, id: &str) -> String {
    let base = Path::new(parent).file_name().unwrap_or_default();
    let base = base.to_string_lossy();
    if base.ends_with(".slice") {
        return format!("{base}:cri-containerd:{id}");
    }
    Path::new(parent).join(id).display().to_string()
}

/// The network namespace of a specification becomes the one at a path.
fn set_network(spec: &mut Value, path: &str) {
    let linux = &mut spec["linux"];
    if !linux["namespaces"].is_array() {
        linux["namespaces"] = json!([]);
    }
    let Some(namespaces) = linux["namespaces"].as_array_mut() else {
        return;
    };
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "network", "path": path}));
}

/// It is installed with the programs that are no commands.
fn pause_program() -> io::Result<PathBuf> {
    Ok(Install::locate()?.pause())
}

fn hosts(hostname: &str) -> String {
    let own = match hostname {
        "" => String::new(),
        name => format!(" {name}"),
    };
    format!("127.0.0.1 localhost{own}\n::1 localhost ip6-localhost ip6-loopback{own}\n")
}

fn is_empty(dns: &DNSConfig) -> bool {
    dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()
}

/// resolv.conf(5).
fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Where the memory is that the containers of a pod share by name, in the sandbox's bundle.
pub(crate) fn shared_memory(bundle: &Path) -> PathBuf {
    bundle.join("shm")
}

/// Makes that memory: a file system, as containerd makes it for pods with a pause container.
pub(crate) fn mount_shared_memory(bundle: &Path) -> Result<(), MountError> {
    let options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned);
    let size = format!("size={SHM_KIB}k");
    let mount = Mount {
        type_: "tmpfs".to_owned(),
        source: "shm".to_owned(),
        options: options.into_iter().chain([size]).collect(),
        ..Mount::default()
    };
    mounts::mount_all(&[mount], &shared_memory(bundle))
}

/// Refuses the sandbox of a pod that is to have namespaces of the machine's: callers who make sandboxes as
/// containers do not list those.
pub(crate) fn check_sandbox(bundle: &Path) -> Result<(), PodError> {
    let path = bundle.join(SPEC_FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        // Whoever creates the container says so.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PodError::File { path, source }),
    };
    let spec: Value = serde_json::from_slice(&text)?;
    let annotations = &spec["annotations"];
    if !TYPES.iter().any(|name| annotations[name] == "sandbox") {
        return Ok(());
    }
    let namespaces = spec["linux"]["namespaces"].as_array();
    let has = |kind: &str| namespaces.is_some_and(|all| all.iter().any(|one| one["type"] == kind));
    match HOST_NAMESPACES.into_iter().find(|kind| !has(kind)) {
        Some(kind) => Err(PodError::HostNamespace(kind)),
        None => Ok(()),
    }
}

/// Gives a container of a pod the files that the pod's containers share, as far as its caller has
/// not.
pub(crate) fn complete_member(bundle: &Path, sandbox: &Path) -> Result<(), PodError> {
    let path = bundle.join(SPEC_FILE);
    let failed = |source| PodError::File {
        path: path.clone(),
        source,
    };
    let mut spec: Value = serde_json::from_slice(&fs::read(&path).map_err(failed)?)?;
    if !spec["mounts"].is_array() {
        spec["mounts"] = json!([]);
    }
    let Some(mounts) = spec["mounts"].as_array_mut() else {
        return Ok(());
    };
    let has = |mounts: &[Value], place: &str| mounts.iter().any(|m| m["destination"] == place);
    for (name, place) in SHARED {
        if !has(mounts, place) {
            mounts.push(json!({
                "destination": place, "type": "bind", "source": sandbox.join(name),
                "options": ["rbind", "rprivate", "rw"],
            }));
        }
    }
    // What containerd gives by itself is each container's own.
    mounts.retain(|mount| mount["destination"] != "/dev/shm" || mount["type"] != "tmpfs");
    if !has(mounts, "/dev/shm") {
        mounts.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": shared_memory(sandbox),
            "options": ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"],
        }));
    }
    fs::write(&path, spec.to_string()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::callers::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, UserNamespace,
    };
    use super::*;

    fn pod(bundle: &Path, config: PodSandboxConfig) -> Pod<'_> {
        Pod {
            id: "s",
            bundle,
            network: "/run/netns/x",
            has_rootfs: false,
            config: Some(config),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
        }
    }

    #[test]
    fn a_configuration_becomes_a_specification() {
        let dir = tempfile::tempdir().unwrap();
        let resources = |memory| LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            memory_limit_in_bytes: memory,
            ..LinuxContainerResources::default()
        };
        let config = PodSandboxConfig {
            hostname: "web".into(),
            dns_config: Some(DNSConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["a".into(), "b".into()],
                options: vec!["ndots:5".into()],
                ..DNSConfig::default()
            })
            .into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods.slice/kubepods-pod1.slice".into(),
                sysctls: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
                resources: Some(resources(1000)).into(),
                overhead: Some(resources(24)).into(),
                ..LinuxPodSandboxConfig::default()
            })
            .into(),
            ..PodSandboxConfig::default()
        };
        pod(dir.path(), config).prepare().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let spec: Value = serde_json::from_str(&read(SPEC_FILE)).unwrap();
        assert_eq!(spec["hostname"], "web");
        assert_eq!(spec["process"]["args"], json!([PAUSE]));
        assert_eq!(
            spec["linux"]["cgroupsPath"],
            "kubepods-pod1.slice:cri-containerd:s"
        );
        assert_eq!(spec["linux"]["sysctl"]["net.core.somaxconn"], "7");
        let annotations = &spec["annotations"];
        assert_eq!(annotations["k"], "v");
        assert_eq!(annotations["io.kubernetes.cri.container-type"], "sandbox");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-memory"], "1024");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-cpu-quota"], "100000");
        assert_eq!(
            annotations["io.kubernetes.cri.sandbox-cpu-period"],
            "100000"
        );
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        let network = json!({"type": "network", "path": "/run/netns/x"});
        assert_eq!((namespaces.len(), namespaces.last()), (5, Some(&network)));
        assert_eq!(
            read("resolv.conf"),
            "search a b\nnameserver 10.0.0.10\noptions ndots:5\n"
        );
        assert_eq!(read("hostname"), "web\n");
        assert!(read("hosts").starts_with("127.0.0.1 localhost web\n"));

        let member = tempfile::tempdir().unwrap();
        let text = r#"{"mounts": [
            {"destination": "/etc/hosts", "source": "/h"}, {"destination": "/dev/shm", "type": "tmpfs"}
        ]}"#;
        fs::write(member.path().join(SPEC_FILE), text).unwrap();
        complete_member(member.path(), dir.path()).unwrap();
        let spec = fs::read(member.path().join(SPEC_FILE)).unwrap();
        let spec: Value = serde_json::from_slice(&spec).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        let places: Vec<_> = mounts
            .iter()
            .map(|m| m["destination"].as_str().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "/etc/hosts",
                "/etc/resolv.conf",
                "/etc/hostname",
                "/dev/shm"
            ]
        );
        assert_eq!(mounts[0]["source"], "/h");
        assert_eq!(mounts[3]["type"], "bind");
    }

    #[test]
    fn a_specification_that_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"hostname": "own", "linux": {"namespaces": [{"type": "network"}]}}"#;
        fs::write(dir.path().join(SPEC_FILE), text).unwrap();
        pod(dir.path(), PodSandboxConfig::default())
            .prepare()
            .unwrap();
        let spec = fs::read(dir.path().join(SPEC_FILE)).unwrap();
        let spec: Value = serde_json::from_slice(&spec).unwrap();
        assert_eq!(spec["hostname"], "own");
        let network = json!([{"type": "network", "path": "/run/netns/x"}]);
        assert_eq!(spec["linux"]["namespaces"], network);
        assert_eq!(cgroup("/kubepods/pod1", "s"), "/kubepods/pod1/s");
    }

    #[test]
    fn what_a_sandbox_does_not_list_would_be_the_machines() {
        let dir = tempfile::tempdir().unwrap();
        let check = |spec: Value| {
            fs::write(dir.path().join(SPEC_FILE), spec.to_string()).unwrap();
            check_sandbox(dir.path()).map_err(|e| e.to_string())
        };
        check_sandbox(&dir.path().join("none")).unwrap();
        let namespaces = json!([{"type": "network"}, {"type": "ipc"}]);
        for name in TYPES {
            let error = check(json!({
                "annotations": {name: "sandbox"}, "linux": {"namespaces": namespaces},
            }));
            let error = error.unwrap_err();
            assert!(error.starts_with("the pod's pid namespace is"), "{error}");
            check(json!({"annotations": {name: "container"}})).unwrap();
        }
        check(json!({})).unwrap();
    }

    #[test]
    fn the_machines_own_namespaces_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let prepare = |options: NamespaceOption| {
            let security_context = LinuxSandboxSecurityContext {
                namespace_options: Some(options).into(),
                ..LinuxSandboxSecurityContext::default()
            };
            let config = PodSandboxConfig {
                linux: Some(LinuxPodSandboxConfig {
                    security_context: Some(security_context).into(),
                    ..LinuxPodSandboxConfig::default()
                })
                .into(),
                ..PodSandboxConfig::default()
            };
            pod(dir.path(), config).prepare().unwrap_err().to_string()
        };
        let host = NamespaceOption {
            network: NamespaceMode::NODE.into(),
            ..NamespaceOption::default()
        };
        let error = prepare(host);
        assert!(
            error.starts_with("the pod's network namespace is"),
            "{error}"
        );
        let user = NamespaceOption {
            userns_options: Some(UserNamespace::default()).into(),
            ..NamespaceOption::default()
        };
        let error = prepare(user);
        assert!(error.starts_with("user namespaces of pods"), "{error}");
    }
}
