//! The DaemonSet of `deploy/`: its image and its pod as they are described there, on a node without Cloister.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use protobuf::MessageField;
use serde_json::{Value, json};

use super::page::deployed;
use crate::cri::daemon::{self, CONFIG, DROP_IN};
use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod};
use crate::harness::{Cmd, Page, busybox_rootfs, directory_archive};

/// Where `make install` puts Cloister on this machine, and so on a node.
const INSTALLED: &str = "/usr/local";
const SYSTEMCTL: &str = "/bin/systemctl";
/// What tells that systemd runs, and what it was asked for.
const SYSTEMD: &str = "/run/systemd/system";
const ASKED: &str = "/run/systemd/asked";

/// What follows a key in the DaemonSet's description.
fn value(key: &str) -> String {
    let text = deployed("daemonset.yaml");
    let found = text.split_once(&format!("{key}: "));
    let (_, rest) = found.unwrap_or_else(|| panic!("no {key} in {text}"));
    let end = rest.find(['\n', ',', '}']).expect("a line's end");
    rest[..end].trim_matches('"').to_owned()
}

/// A list of words there.
fn words(key: &str) -> Vec<String> {
    let text = deployed("daemonset.yaml");
    let mut lines = text.lines().map(str::trim);
    let found = lines.find_map(|line| line.strip_prefix(&format!("{key}: ")));
    serde_json::from_str(found.expect("a list")).expect("a list of words")
}

/// What is moved away or replaced for a while: everything is at its place again when this is dropped.
struct Aside(Vec<PathBuf>);

impl Aside {
    fn of(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".aside");
        name.into()
    }

    /// Moves the files of Cloister that are installed into a directory, below the path that they have.
    fn installed(to: &Path) -> Self {
        let mut this = Self(Vec::new());
        for below in ["bin", "libexec/cloister", "share/cloister"] {
            let dir = Path::new(INSTALLED).join(below);
            for entry in fs::read_dir(&dir).expect("Cloister is installed").flatten() {
                let path = entry.path();
                let place = to.join("usr/local").join(below).join(entry.file_name());
                fs::create_dir_all(place.parent().expect("a directory")).expect("a directory");
                fs::copy(&path, &place).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                this.take(path);
            }
        }
        this
    }

    fn take(&mut self, path: PathBuf) {
        fs::rename(&path, Self::of(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        self.0.push(path);
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        for path in &self.0 {
            fs::create_dir_all(path.parent().expect("a directory")).ok();
            fs::rename(Self::of(path), path).ok();
        }
        fs::remove_dir_all("/run/systemd").ok();
    }
}

/// The image that `deploy/Containerfile` describes, with BusyBox for its base: there is no registry.
fn image(work: &Path, installed: &Path) -> PathBuf {
    let rootfs = work.join("rootfs");
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        let words = [Path::new("-a"), from, to];
        Cmd::new("cp").args(words).run().ok();
    };
    copy(&busybox_rootfs(), &rootfs);
    let text = deployed("Containerfile");
    let mut entrypoint = Value::Null;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (instruction, rest) = line.split_once(' ').unwrap_or((line, ""));
        match instruction {
            "FROM" => assert!(rest.starts_with("debian:"), "{rest}"),
            "COPY" => {
                let (from, to) = rest.split_once(' ').expect("two paths");
                let source = match from.strip_prefix("root/") {
                    Some(from) => installed.join(from),
                    None => super::page::deploy_directory().join(from),
                };
                copy(&source, &rootfs.join(to.trim_start_matches('/')));
            }
            "ENTRYPOINT" => entrypoint = serde_json::from_str(rest).expect("a list"),
            _ => panic!("nobody has decided on {line:?}"),
        }
    }
    let config = json!({"Entrypoint": entrypoint, "Env": ["PATH=/bin:/usr/bin"]});
    let reference = format!("docker.io/library/{}:latest", value("image"));
    directory_archive(&rootfs, &work.join("image"), &reference, &config)
}

/// The pod of the DaemonSet.
fn pod(case: &Case) -> Pod {
    let mut config = case.config("node");
    let linux = config.linux.mut_or_insert_default();
    let security = linux.security_context.mut_or_insert_default();
    security.privileged = value("privileged") == "true";
    security.namespace_options = MessageField::some(namespaces());
    // The default handler: runc's.
    let pod = case.run_with("", config);
    pod.unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn namespaces() -> cri::NamespaceOption {
    assert_eq!(value("hostPID"), "true");
    cri::NamespaceOption {
        pid: cri::NamespaceMode::NODE.into(),
        ..cri::NamespaceOption::default()
    }
}

/// Its container, with these arguments.
fn start(pod: &Pod, name: &str, args: &[String]) -> Container {
    pod.start_with(name, "", |config| {
        config.image.mut_or_insert_default().image = value("image");
        config.command.clear();
        config.args = args.to_vec();
        config.mounts.push(cri::Mount {
            container_path: value("mountPath"),
            host_path: value("hostPath: {path"),
            ..cri::Mount::default()
        });
        let linux = config.linux.mut_or_insert_default();
        let security = linux.security_context.mut_or_insert_default();
        security.privileged = value("privileged") == "true";
        security.namespace_options = MessageField::some(namespaces());
    })
}

pub(crate) fn daemon_set(case: &Case) {
    let work = tempfile::tempdir().expect("a directory");
    let installed = work.path().join("installed");
    let mut aside = Aside::installed(&installed);
    let archive = image(work.path(), &installed);
    // There is no systemd: what it would be asked for is written down.
    aside.take(fs::canonicalize(SYSTEMCTL).expect("systemctl"));
    let systemctl = &aside.0.last().expect("it was just added").clone();
    fs::write(systemctl, format!("#!/bin/sh\necho \"$@\" >>{ASKED}\n")).expect("a program");
    fs::set_permissions(systemctl, fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::create_dir_all(SYSTEMD).expect("a directory");
    let before = case.node.config_without_cloister();
    case.restart_daemon(|| {
        fs::write(CONFIG, &before).expect("config.toml");
        fs::remove_file(DROP_IN).ok();
    });
    daemon::import(case.node, &archive);
    assert!(!Path::new(INSTALLED).join("bin/cloister").exists());

    let node = pod(case);
    let args = words("args");
    let installer = start(&node, "install", &args);
    installer.await_log("Cloister is installed below ");
    let files = Cmd::new("find").args([&installed]).args(["-type", "f"]);
    for file in files.run().ok().lines() {
        let place = Path::new("/").join(Path::new(file).strip_prefix(&installed).expect("a path"));
        assert!(
            fs::read(&place).expect("a file of Cloister") == fs::read(file).expect("the same"),
            "{} differs",
            place.display()
        );
    }
    let asked = || fs::read_to_string(ASKED).unwrap_or_default();
    assert_eq!(asked(), "restart containerd\n");
    case.restart_daemon(|| ());
    let running = cri::ContainerState::CONTAINER_RUNNING.into();
    assert_eq!(installer.status().state, running, "it stays");
    let here = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("this kernel");
    let first = case.run_with("cloister", case.config("first"));
    let first = first.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_ne!(first.start("c", "exec sleep 1000").boot_id(), here);
    first.stop();
    first.remove();

    let undo = r#"["/host", "--remove", "--keep"]"#;
    Page::open("kubernetes.md")
        .assert_says(&format!("run with `args: {undo}` before it is deleted"));
    let undo: Vec<String> = serde_json::from_str(undo).expect("a list");
    start(&node, "remove", &undo).await_log("Cloister is removed from ");
    assert_eq!(fs::read_to_string(CONFIG).expect("config.toml"), before);
    assert!(!Path::new(DROP_IN).exists());
    assert_eq!(asked(), "restart containerd\n".repeat(2));
    for name in ["bin/cloister", "libexec/cloister", "share/cloister"] {
        let place = Path::new(INSTALLED).join(name);
        let left = Cmd::new("find")
            .args([&place])
            .args(["!", "-name", "*.aside", "-type", "f"]);
        assert_eq!(left.run().out(), "", "{}", place.display());
    }
    node.stop();
    node.remove();
}
