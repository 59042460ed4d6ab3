//! A bundle, a container of it, and what it said.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use cloister_container::{Container, CreateOptions, Error, Stdio};
use rustix::process::{Pid, WaitOptions, WaitStatus};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A terminal as it comes.
pub(crate) const TERMINAL: Stdio = Stdio::Terminal {
    size: None,
    plain_line_feeds: false,
};

/// The tests of a module.
pub(crate) type Tests = &'static [(&'static str, fn())];

/// A container to be.
pub(crate) struct Bundle {
    pub(crate) dir: TempDir,
    pub(crate) spec: Value,
    pub(crate) bind_sources: BTreeMap<usize, PathBuf>,
    pub(crate) id: String,
    pub(crate) cgroup_parent: PathBuf,
}

/// What has become of a container.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: WaitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) warnings: Vec<String>,
}

impl Outcome {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.exit_status()
    }

    /// The lines of the output of a container that ended well.
    pub(crate) fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code(), Some(0), "{self:?}");
        self.stdout.lines().collect()
    }
}

const TOOLS: &[&str] = &[
    "cat", "chmod", "chown", "cut", "date", "dd", "df", "echo", "env", "false", "grep", "head",
    "hostname", "id", "ifconfig", "ionice", "ip", "kill", "ls", "mkdir", "mknod", "mount", "od",
    "ps", "pwd", "readlink", "rm", "sed", "sh", "sleep", "sort", "stat", "stty", "test", "touch",
    "tr", "true", "tty", "ulimit", "umount", "uname", "wc",
];

impl Bundle {
    /// The default specification with the shell script as its program.
    pub(crate) fn script(script: &str) -> Self {
        Self::with_args(&["/bin/sh", "-c", script])
    }

    pub(crate) fn with_args(args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for tool in TOOLS {
            symlink("busybox", rootfs.join("bin").join(tool)).unwrap();
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/root:\nuser:x:1000:1000::/tmp:\n",
        )
        .unwrap();
        let mut spec: Value = serde_json::from_str(cloister_spec::default_spec()).unwrap();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(args);
        spec["root"]["readonly"] = json!(false);
        // One test's container that was left behind is no other test's failure.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("test-{}-{count}", std::process::id());
        Bundle {
            dir,
            spec,
            bind_sources: BTreeMap::new(),
            id,
            cgroup_parent: cgroup_parent(),
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Sets a property, by its JSON pointer.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.spec;
        for part in pointer.split('/').skip(1) {
            at = match at {
                Value::Array(list) => &mut list[part.parse::<usize>().unwrap()],
                at => &mut at[part],
            };
        }
        *at = value;
        self
    }

    /// Adds to a list, by its JSON pointer.
    pub(crate) fn push(mut self, pointer: &str, value: Value) -> Self {
        match self.spec.pointer_mut(pointer) {
            Some(list) => {
                list.as_array_mut().unwrap().push(value);
                self
            }
            None => self.set(pointer, json!([value])),
        }
    }

    pub(crate) fn mount(self, mount: Value) -> Self {
        self.push("/mounts", mount)
    }

    pub(crate) fn namespace(self, kind: &str) -> Self {
        self.push("/linux/namespaces", json!({"type": kind}))
    }

    pub(crate) fn options(&self, stdio: Stdio) -> CreateOptions {
        CreateOptions {
            id: self.id.clone(),
            spec: self.spec.to_string().into_bytes(),
            rootfs: self.rootfs(),
            bind_sources: self.bind_sources.clone(),
            joins: Vec::new(),
            bundle: self.dir.path().to_owned(),
            stdio,
            descriptors: Vec::new(),
            cgroup_parent: self.cgroup_parent.clone(),
            init_exe: std::env::current_exe().unwrap(),
        }
    }

    /// Creates, starts, waits and deletes; what is left behind fails the test.
    pub(crate) fn try_run(&self) -> Result<Outcome, Error> {
        let before = Leftovers::now(self);
        let outcome = self.run_with(|_| {});
        before.compare(&Leftovers::now(self));
        outcome
    }

    pub(crate) fn run(&self) -> Outcome {
        self.try_run().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, with a look at the container between start and end.
    pub(crate) fn run_with(&self, look: impl FnOnce(&mut Container)) -> Result<Outcome, Error> {
        let (stdout, out) = rustix::pipe::pipe().unwrap();
        let (stderr, err) = rustix::pipe::pipe().unwrap();
        let stdio = Stdio::Streams {
            stdin: None,
            stdout: Some(out),
            stderr: Some(err),
        };
        let mut container = Container::create(self.options(stdio))?;
        let readers = [stdout, stderr].map(|pipe| thread::spawn(move || read(pipe)));
        let started = container.start();
        look(&mut container);
        let status = wait(&container);
        container.delete().unwrap();
        let [stdout, stderr] = readers.map(|reader| reader.join().unwrap());
        started?;
        Ok(Outcome {
            status,
            stdout,
            stderr,
            warnings: container.warnings().to_vec(),
        })
    }

    /// The message of the error that creating or starting ends with.
    pub(crate) fn error(&self) -> String {
        match self.try_run() {
            Ok(outcome) => panic!("no error: {outcome:?}"),
            Err(error) => error.to_string(),
        }
    }
}

fn read(pipe: OwnedFd) -> String {
    let mut text = Vec::new();
    fs::File::from(pipe).read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Reaps a container's process, as the agent's reaper does.
pub(crate) fn wait(container: &Container) -> WaitStatus {
    let pid = Pid::from_raw(container.pid().cast_signed());
    rustix::process::waitpid(pid, WaitOptions::empty())
        .unwrap()
        .unwrap()
        .1
}

/// The machine's cgroup v2 hierarchy.
pub(crate) fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("no cgroup2 mount");
    PathBuf::from(line.split(' ').nth(4).unwrap())
}

fn cgroup_parent() -> PathBuf {
    cgroup_root().join(format!("cloister-tests-{}", std::process::id()))
}

/// Whether the machine's cgroup v2 hierarchy has a controller; says so if not.
pub(crate) fn has_controller(name: &str) -> bool {
    let controllers = fs::read_to_string(cgroup_root().join("cgroup.controllers")).unwrap();
    let there = controllers
        .split_whitespace()
        .any(|controller| controller == name);
    if !there {
        println!("the machine's cgroup v2 hierarchy has no {name} controller: nothing tested");
    }
    there
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Gone unless a container is in it, which then has failed the test.
        let _ = fs::remove_dir(&self.cgroup_parent);
    }
}

/// What a container may not leave behind.
#[derive(Debug, PartialEq)]
pub(crate) struct Leftovers {
    mounts: String,
    cgroup: bool,
    children: String,
    descriptors: usize,
}

impl Leftovers {
    pub(crate) fn now(bundle: &Bundle) -> Self {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        Leftovers {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            cgroup: Path::new(&bundle.cgroup_parent).join(&bundle.id).exists(),
            children,
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }

    pub(crate) fn compare(&self, after: &Self) {
        assert_eq!(self, after, "something was left behind");
    }
}
