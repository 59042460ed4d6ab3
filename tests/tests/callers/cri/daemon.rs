//! containerd with its CRI plugin, in one of the versions that tests/setup has fetched; one runs at a time.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};

use serde_json::json;

use super::client::call;
use super::messages::{Empty, StatusResponse};
use crate::harness::{
    Cmd, eventually, image_archive, mount_tmpfs, other_version, program_archive, runtime,
};

/// Where it listens.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the bundles of pods' containers are.
pub(crate) const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// The image of tests' containers.
pub(crate) const IMAGE: &str = "docker.io/library/busybox:latest";
/// That of pods' sandboxes.
const PAUSE_IMAGE: &str = "registry.k8s.io/pause:latest";
const LOG: &str = "/run/containerd.log";
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// Where containerd 2 has what is configured for Cloister.
pub(crate) const DROP_IN: &str = "/etc/containerd/conf.d/cloister.toml";
/// A configuration of Cloister's that is none.
pub(crate) const WRONG_CONFIG: &str = "/etc/cloister/wrong.toml";
/// The machine's.
const MACHINE_CONFIG: &str = "/etc/cloister/config.toml";
/// One that a test writes.
const CHOSEN_CONFIG: &str = "/etc/cloister/chosen.toml";
/// One for version 3 of the shim's interface, and what it says.
const VERSION_3_CONFIG: &str = "/etc/cloister/version-3.toml";
const VERSION_3: &str = "shim_version = 3\n";
/// The addresses of pods.
pub(crate) const SUBNET: &str = "10.88.9.0/24";

/// A version of containerd, and how it makes a pod's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// Debian bookworm's.
    V1_6,
    /// The same on a root of its own, which newer versions take over: it is not to come back to that.
    Upgraded,
    /// Debian trixie's.
    V1_7,
    /// Debian sid's.
    V2,
    /// The same, with the shim's own sandboxes: pods without a pause container.
    V2Shim,
    /// The same, with version 3 of the shim's interface.
    V2Interface3,
    /// The same, with that, the shim's own sandboxes, and streams in place of FIFOs.
    V2Streaming,
}

/// The one that runs, if one does.
static RUNNING: Mutex<Option<(Node, Child)>> = Mutex::new(None);

impl Node {
    /// The handler that pods ask for.
    pub(crate) fn handler(self) -> &'static str {
        match self {
            Self::V2Shim => "cloister-shim",
            Self::V2Interface3 => "cloister-3",
            Self::V2Streaming => "cloister-streaming",
            _ => "cloister",
        }
    }

    /// A handler whose configuration file tests write, and that file. containerd 2.1 has no options for one with
    /// the shim's own sandboxes.
    pub(crate) fn chosen(self) -> (&'static str, &'static str) {
        match self {
            Self::V2Shim => (self.handler(), MACHINE_CONFIG),
            _ => ("cloister-chosen", CHOSEN_CONFIG),
        }
    }

    /// The program is the same for all that it can be told.
    fn daemon(self) -> Self {
        match self {
            Self::V1_6 | Self::V1_7 | Self::Upgraded => self,
            _ => Self::V2,
        }
    }

    /// Where the version's programs are. That of this machine's own release is installed.
    fn programs(self) -> PathBuf {
        let unpacked = |name| other_version(&format!("{name}/usr/bin"));
        match self {
            Self::V1_6 | Self::Upgraded => "/usr/bin".into(),
            Self::V1_7 => unpacked("containerd-1.7"),
            _ => unpacked("containerd-2"),
        }
    }

    /// The section of containerd's configuration that has the handlers.
    fn runtime_section(self) -> &'static str {
        match self.daemon() {
            Self::V2 => "io.containerd.cri.v1.runtime",
            _ => "io.containerd.grpc.v1.cri",
        }
    }

    /// What a node has.
    pub(crate) fn config_without_cloister(self) -> String {
        self.config_of_root(self)
    }

    /// The same on the root of another one, whose place it takes.
    fn config_of_root(self, of: Self) -> String {
        let root = format!("/var/lib/containerd/{of:?}");
        // Each of these takes its time to start, and has nothing to do here.
        let unused = [
            "btrfs",
            "zfs",
            "aufs",
            "devmapper",
            "native",
            "blockfile",
            "erofs",
        ]
        .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
        .join(", ");
        let head = format!(
            "root = \"{root}\"\ndisabled_plugins = [\"io.containerd.internal.v1.opt\", {unused}]\n"
        );
        let runtime_section = self.runtime_section();
        let (version, settings) = match self.daemon() {
            Self::V2 => (
                "version = 3\n",
                format!(
                    "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{PAUSE_IMAGE}\"\n\
                     [plugins.\"{runtime_section}\".cni]\n  bin_dirs = [\"/usr/lib/cni\"]\n"
                ),
            ),
            _ => (
                "version = 2\n",
                format!(
                    "[plugins.\"{runtime_section}\"]\n  sandbox_image = \"{PAUSE_IMAGE}\"\n\
                     [plugins.\"{runtime_section}\".cni]\n  bin_dir = \"/usr/lib/cni\"\n"
                ),
            ),
        };
        [version, &head, &settings].concat()
    }

    /// What a node has, and the handlers that are the tests' own.
    fn config(self, of: Self) -> String {
        let runtime_section = self.runtime_section();
        let handler = |name: &str, lines: &str| {
            format!(
                "[plugins.\"{runtime_section}\".containerd.runtimes.{name}]\n  \
                 runtime_type = \"io.containerd.cloister.v2\"\n{lines}"
            )
        };
        // A runtime class with a configuration file of its own.
        let class = |name: &str, lines: &str, config: &str| {
            handler(name, lines)
                + &format!(
                    "[plugins.\"{runtime_section}\".containerd.runtimes.{name}.options]\n  ConfigPath = \"{config}\"\n"
                )
        };
        let shim = "  sandboxer = \"shim\"\n";
        let passed = "  pod_annotations = [\"io.cloister.*\"]\n";
        let mut text = self.config_of_root(of);
        text += &class("cloister-wrong", "", WRONG_CONFIG);
        text += &class("cloister-chosen", passed, CHOSEN_CONFIG);
        text += &class("cloister-chosen-alone", "", CHOSEN_CONFIG);
        if self.daemon() == Self::V2 {
            text += &handler("cloister-shim", shim);
            text += &class("cloister-3", "", VERSION_3_CONFIG);
            let streaming = format!("{shim}  io_type = \"streaming\"\n");
            text += &handler("cloister-streaming", &streaming);
        }
        text
    }

    /// Configures the version as a node's administrator has, on the root of `of`, and then as we do on nodes.
    pub(crate) fn configure(self, of: Self) {
        fs::write(CONFIG, self.config(of)).expect("config.toml");
        // What another version was told.
        fs::remove_file(DROP_IN).ok();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/install-node");
        Cmd::new("sh").args([script, "/"]).run().ok();
        let files = [CONFIG, DROP_IN].map(Path::new);
        for file in files.into_iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(file).expect("a configuration");
            fs::write(file, of_runtime(&text)).expect("a configuration");
        }
    }

    /// A `ctr` of the same version.
    fn ctr<'a>(self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        let ctr = Cmd::new(self.programs().join("ctr")).args(["--namespace", "k8s.io"]);
        ctr.args(args)
    }

    /// Makes sure that this version runs; ends another one.
    pub(crate) fn ensure(self) {
        static MACHINE: Once = Once::new();
        MACHINE.call_once(prepare_machine);
        // What an earlier test has said is gone.
        let settings = if self == Self::V2Streaming {
            VERSION_3
        } else {
            ""
        };
        fs::write(MACHINE_CONFIG, settings).expect("Cloister's configuration");
        let is_up = running().is_some_and(|node| node.daemon() == self.daemon());
        if !is_up {
            stop();
            self.configure(self);
            self.start();
            self.import();
        }
    }

    /// Starts it on what is there, and waits until pods can be run.
    pub(crate) fn start(self) {
        self.launch();
        eventually("containerd is ready for pods", || {
            call::<StatusResponse>(SOCKET, "Status", &Empty::new()).is_ok_and(|answer| {
                let mut conditions = answer.status.conditions.iter();
                conditions
                    .all(|condition| condition.status || condition.type_.starts_with("Container"))
            })
        });
    }

    /// Starts it, and waits until it asks the shims of pods for what they have.
    pub(crate) fn start_loading(self) {
        let before = log_text().len();
        self.launch();
        eventually("containerd loads its shims", || {
            log_text()[before..].contains("connecting to shim")
        });
    }

    fn launch(self) {
        let log = fs::File::options().create(true).append(true).open(LOG);
        let log = log.expect("the daemon's log");
        let child = Command::new(self.programs().join("containerd"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("containerd");
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some((self, child));
    }

    fn import(self) {
        // What does nothing until it is killed, and collects what is left to it.
        let program = Path::new("/usr/local/libexec/cloister/cloister-pause");
        let settings = json!({
            "Entrypoint": ["/cloister-pause"], "User": "65535:65535", "Env": ["PATH=/"],
        });
        let pause = program_archive(program, PAUSE_IMAGE, &settings);
        for archive in [image_archive(), &pause] {
            import(self, archive);
        }
    }
}

/// Gives it an image.
pub(crate) fn import(node: Node, archive: &Path) {
    let archive = archive.to_string_lossy();
    node.ctr(["image", "import", &archive]).run().ok();
}

/// What is configured for Cloister, for the runtime that is to be tested.
fn of_runtime(text: &str) -> String {
    let name = match Path::new(runtime()).file_name().and_then(OsStr::to_str) {
        Some("cloister") => return text.to_owned(),
        // Its own shim finds it; the tests prove themselves.
        Some("runc") => "io.containerd.runc.v2",
        _ => panic!("containerd has no shim for {}", runtime()),
    };
    text.replace("io.containerd.cloister.v2", name)
}

/// What is there for all versions.
fn prepare_machine() {
    mount_tmpfs("/var/lib/containerd");
    for dir in [
        "/etc/containerd",
        "/etc/cni/net.d",
        "/etc/cloister",
        "/var/log/pods",
        // What runc's shim makes once, and keeps.
        "/run/containerd/runc/k8s.io",
    ] {
        fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{dir}: {e}"));
    }
    let write =
        |path: &str, text: &str| fs::write(path, text).unwrap_or_else(|e| panic!("{path}: {e}"));
    write(WRONG_CONFIG, "colour = \"blue\"\n");
    write(VERSION_3_CONFIG, VERSION_3);
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cri0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
        ],
    });
    write("/etc/cni/net.d/10-pods.conflist", &network.to_string());
    // Where the kubelet has the cgroups of its pods.
    fs::create_dir_all(super::pod::CGROUPS).expect("the pods' cgroup");
}

/// The node whose daemon runs.
pub(crate) fn running() -> Option<Node> {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let (node, child) = running.as_mut()?;
    let has_ended = child.try_wait().expect("our own child").is_some();
    (!has_ended).then_some(*node)
}

/// Ends it with SIGKILL, as a crash would.
pub(crate) fn kill() {
    let running = RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some((_, mut child)) = running {
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }
}

/// Ends it as a service manager does.
pub(crate) fn stop() {
    let running = RUNNING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some((_, mut child)) = running {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child");
        eventually("containerd has ended", || {
            child.try_wait().expect("our own child").is_some()
        });
    }
}

fn log_text() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Prints what its log has of faults, and its end.
pub(crate) fn report_log() {
    let text = log_text();
    let last = |lines: Vec<&str>| lines[lines.len().saturating_sub(60)..].join("\n");
    let is_fault = |line: &&str| {
        ["warning", "error", "fatal"]
            .iter()
            .any(|level| line.contains(&format!("level={level} ")))
    };
    eprintln!(
        "=== {LOG}: faults\n{}",
        last(text.lines().filter(is_fault).collect())
    );
    eprintln!("=== {LOG}\n{}", last(text.lines().collect()));
}
