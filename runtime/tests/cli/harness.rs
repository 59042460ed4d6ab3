//! An installation with a played machine, a bundle, and commands with a time limit.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Machines that run these tests may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Setup {
    dir: TempDir,
    behaviour: String,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?}: {self:?}");
        }
        self.err
    }
}

impl Setup {
    /// A bundle whose workload is `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bundle/rootfs")).unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        let exe = std::env::current_exe().unwrap();
        for (program, test) in [("vmm", "fake::vmm"), ("fs", "fake::file_server")] {
            let path = dir.path().join(program);
            let script = format!(
                "#!/bin/sh\nTMPDIR={} exec {} --exact {test} --ignored --nocapture 2>{}\n",
                dir.path().join("tmp").display(),
                exe.display(),
                dir.path().join(format!("{program}.log")).display()
            );
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for file in ["kernel", "initramfs"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let this = Self {
            dir,
            behaviour: String::new(),
        };
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": args, "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "network"},
                {"type": "ipc"}, {"type": "uts"},
            ]},
        });
        this.write_spec(&spec);
        this
    }

    /// How the machine behaves.
    pub(crate) fn behaving(mut self, behaviour: &str) -> Self {
        self.behaviour = behaviour.to_owned();
        self
    }

    pub(crate) fn with(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut spec = serde_json::from_slice(&fs::read(self.config()).unwrap()).unwrap();
        change(&mut spec);
        self.write_spec(&spec);
        self
    }

    fn write_spec(&self, spec: &Value) {
        fs::write(self.config(), serde_json::to_vec(spec).unwrap()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("bundle/config.json")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// `cloister --root … ARGS` in the bundle.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloister"));
        command
            .arg("--root")
            .arg(self.root())
            .args(args)
            .current_dir(self.path("bundle"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("CLOISTER_CONFIG", "/dev/null")
            .env("CLOISTER_KERNEL_CMDLINE", &self.behaviour);
        for (key, file) in [
            ("CLOISTER_VMM", "vmm"),
            ("CLOISTER_FS", "fs"),
            ("CLOISTER_KERNEL", "kernel"),
            ("CLOISTER_INITRAMFS", "initramfs"),
        ] {
            command.env(key, self.path(file));
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        finish(self.command(args).spawn().unwrap(), b"")
    }

    /// A command whose output goes nowhere: a container that it leaves behind holds its streams.
    pub(crate) fn run_detached(&self, args: &[&str]) -> Finished {
        let errors = self.path("errors");
        let mut command = self.command(args);
        command
            .stdout(Stdio::null())
            .stderr(fs::File::create(&errors).unwrap());
        let mut finished = finish(command.spawn().unwrap(), b"");
        finished.err = fs::read_to_string(errors).unwrap();
        finished
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&["state", id]).ok()).unwrap()
    }

    /// Asserts that nothing of container `id` is left on the machine.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self, id: &str) {
        assert!(!self.root().join(id).exists());
        let marker = self.dir.path().to_str().unwrap();
        eventually("no process is left", || {
            // What the machine's processes have in common is the directory in their environment.
            processes_with(marker).is_empty()
        });
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let ids = fs::read_dir(self.root()).into_iter().flatten().flatten();
        for id in ids {
            let id = id.file_name();
            let _ = self
                .command(&["delete", "--force", id.to_str().unwrap()])
                .output();
        }
        if std::thread::panicking() {
            for log in ["vmm.log", "fs.log"] {
                let text = fs::read_to_string(self.path(log)).unwrap_or_default();
                eprintln!("--- {log}\n{text}");
            }
        }
    }
}

/// The pids of processes other than this one that have `text` in their environment or arguments.
fn processes_with(text: &str) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let dir = entry.path();
            let has = |file: &str| {
                let bytes = fs::read(dir.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(text)
            };
            entry.file_name().to_string_lossy() != std::process::id().to_string()
                && (has("environ") || has("cmdline"))
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Feeds a command and waits for its end and for that of its output.
pub(crate) fn finish(mut child: Child, input: &[u8]) -> Finished {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A workload need not read what it is given.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
    });
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                stream.read_to_end(&mut bytes).unwrap();
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(stdout.map(|s| Box::new(s) as _));
    let err = read(stderr.map(|s| Box::new(s) as _));
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("a command did not end: {:?}", err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    feeder.join().unwrap();
    Finished {
        code: status.code(),
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}

#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
