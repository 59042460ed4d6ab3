//! A bundle with a BusyBox root file system, and a state directory of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;
use tempfile::TempDir;

use super::{Cmd, Finished};

/// Tests that look at the whole machine run alone; the others beside each other.
static MACHINE: RwLock<()> = RwLock::new(());

enum Hold {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// A bundle. Dropping it deletes every container made from it and, after a failure, first prints
/// what there is to know.
pub(crate) struct Bundle {
    dir: TempDir,
    spec: Value,
    /// Of every command.
    options: Vec<String>,
    _hold: Hold,
}

impl Bundle {
    /// A bundle that runs `args` without a terminal.
    pub(crate) fn new(args: &[&str]) -> Self {
        let guard = MACHINE.read().unwrap_or_else(|poison| poison.into_inner());
        Self::build(args, Hold::Shared { _guard: guard })
    }

    /// A bundle for a test that must be alone on the machine.
    pub(crate) fn alone(args: &[&str]) -> Self {
        let guard = MACHINE.write().unwrap_or_else(|poison| poison.into_inner());
        Self::build(args, Hold::Alone { _guard: guard })
    }

    fn build(args: &[&str], hold: Hold) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cloister-e2e-")
            .tempdir()
            .expect("a temporary directory");
        busybox_rootfs(&dir.path().join("bundle/rootfs"));
        fs::create_dir(dir.path().join("state")).expect("state directory");
        let spec = Cmd::new("cloister")
            .args(["spec", "--bundle"])
            .args([dir.path().join("bundle")])
            .run();
        assert_eq!(spec.status.code(), Some(0), "cloister spec: {spec}");
        let config = fs::read(dir.path().join("bundle/config.json")).expect("config.json");
        let mut bundle = Self {
            spec: serde_json::from_slice(&config).expect("cloister spec writes JSON"),
            dir,
            options: Vec::new(),
            _hold: hold,
        };
        bundle.spec["process"]["terminal"] = false.into();
        bundle.spec["process"]["args"] = args.into();
        // The default specification has a read-only root, as runc's has.
        bundle.spec["root"]["readonly"] = false.into();
        bundle.write();
        bundle
    }

    /// A bundle whose container runs a shell script.
    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Changes the specification.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self.write();
        self
    }

    /// Gives every command some of the options that all have.
    pub(crate) fn use_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    fn write(&self) {
        let text = serde_json::to_vec_pretty(&self.spec).expect("JSON");
        fs::write(self.config(), text).expect("config.json");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("config.json")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The directory for `--root`.
    pub(crate) fn state_root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A place for files of the test itself.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `cloister --root … OPTIONS ARGS`.
    pub(crate) fn cloister<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new("cloister")
            .args([Path::new("--root"), &self.state_root()])
            .args(&self.options)
            .args(args)
    }

    /// `cloister COMMAND OPTIONS --bundle … ID`.
    pub(crate) fn command(&self, command: &str, options: &[&str], id: &str) -> Cmd {
        let command_line = self.cloister([command]).args(options).args([
            Path::new("--bundle"),
            &self.path(),
            Path::new(id),
        ]);
        if command == "create" || options.contains(&"--detach") {
            command_line.outlived()
        } else {
            command_line
        }
    }

    /// Runs the bundle in the foreground, without input.
    pub(crate) fn run(&self) -> Finished {
        self.command("run", &[], "test").run()
    }

    /// The containers that there are.
    pub(crate) fn ids(&self) -> Vec<String> {
        fs::read_dir(self.state_root())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// The container's state as JSON.
    pub(crate) fn state(&self, id: &str) -> Value {
        let text = self.cloister(["state", id]).run().ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }

    /// Every log below the state directory, and what else is in it.
    fn report(&self) {
        let mut queue = vec![self.state_root()];
        while let Some(dir) = queue.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                eprintln!("=== {}", path.display());
                if path.is_dir() {
                    queue.push(path);
                } else if path.extension().is_some_and(|e| e == "log" || e == "json") {
                    let text = fs::read(&path).unwrap_or_default();
                    let tail = text.len().saturating_sub(8192);
                    eprintln!("{}", String::from_utf8_lossy(&text[tail..]));
                }
            }
        }
        let processes = Cmd::new("ps").args(["w"]).run();
        eprintln!("=== processes\n{}", processes.out());
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report();
        }
        for id in self.ids() {
            let deleted = self.cloister(["delete", "--force", &id]).run();
            if deleted.status.code() != Some(0) {
                eprintln!("delete --force {id}: {deleted}");
            }
        }
    }
}

/// A root file system with BusyBox and its applets, users and an empty `/etc`.
pub(crate) fn busybox_rootfs(rootfs: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "var"] {
        fs::create_dir_all(rootfs.join(dir)).expect("rootfs directory");
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    let applets = Cmd::new("/bin/busybox").args(["--list"]).run().ok();
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("applet");
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).expect("passwd");
    fs::write(rootfs.join("etc/group"), "root:x:0:\nguest:x:1000:\n").expect("group");
}
