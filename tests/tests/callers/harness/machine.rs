//! The machine the callers run on: the test bed, where `tests/suites/run` has put their programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Cmd, Residue};

/// Each test has the machine to itself, since it looks at what is left of it.
static MACHINE: Mutex<()> = Mutex::new(());

/// The machine, for one test alone, and how it was before.
pub(crate) struct Machine {
    before: Residue,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    /// Waits for the other tests, and prepares what is prepared once.
    pub(crate) fn alone(prepare: impl FnOnce()) -> Self {
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        require_bed();
        prepare();
        Self {
            before: Residue::now(),
            _alone: alone,
        }
    }

    /// Asserts that nothing is left behind; `tidy` removes what the caller keeps for itself.
    pub(crate) fn assert_clean(&self, tidy: impl FnMut()) {
        self.before.assert_nothing_new_but(tidy);
    }
}

/// Directories in which a runtime keeps what it knows of containers, for each caller.
const STATE_ROOTS: [&str; 7] = [
    "/run/cloister",
    "/run/containerd/cloister",
    "/run/containerd/runc",
    "/run/docker/runtime-cloister",
    "/run/docker/runtime-runc",
    "/run/crun",
    "/run/runc",
];

/// The runtime to test, a path: `CLOISTER_TEST_RUNTIME`, or the installed `cloister`. With `runc` or `crun` the
/// tests prove themselves.
pub(crate) fn runtime() -> &'static str {
    static RUNTIME: OnceLock<String> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        std::env::var("CLOISTER_TEST_RUNTIME").unwrap_or_else(|_| "/usr/local/bin/cloister".into())
    })
}

/// What tests/setup has fetched of other releases of Debian: `PACKAGE-LINE/…`.
pub(crate) fn other_version(path: &str) -> PathBuf {
    let place = std::env::var_os("CLOISTER_TEST_VERSIONS")
        .expect("CLOISTER_TEST_VERSIONS: start the tests with tests/suites/run");
    Path::new(&place).join(path)
}

/// Makes the machine ready, once: these tests start daemons and write below `/etc` and `/var`, so that they run in
/// the bed alone, where nothing lasts.
fn require_bed() {
    static READY: OnceLock<()> = OnceLock::new();
    READY.get_or_init(|| {
        let name = rustix::system::uname();
        assert_eq!(
            name.nodename().to_bytes(),
            b"bed",
            "these tests change the machine: start them with tests/run callers"
        );
        assert!(Path::new(runtime()).is_file(), "{} is not there", runtime());
        // Which of the two kinds is meant, Debian's installer says with links.
        for name in ["iptables", "ip6tables"] {
            let link = format!("/usr/sbin/{name}");
            if !Path::new(&link).exists() {
                symlink(format!("{name}-nft"), link).expect("a link");
            }
        }
    });
}

/// A file system in memory: overlayfs cannot be stacked on the bed's own root.
pub(crate) fn mount_tmpfs(place: &str) {
    fs::create_dir_all(place).expect("a directory");
    Cmd::new("mount")
        .args(["-t", "tmpfs", "-o", "mode=755", "tmpfs", place])
        .run()
        .ok();
}

/// Does what comes after a test. A command that takes too long there must not end the whole run, as a second panic would.
pub(crate) fn afterwards(work: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
        eprintln!("tidying up or reporting failed: see above");
    }
}

/// Prints the tail of every log that a runtime keeps, after a failure.
pub(crate) fn report_logs() {
    let mut queue: Vec<PathBuf> = STATE_ROOTS.iter().map(PathBuf::from).collect();
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
                queue.push(path);
            } else if kind.is_ok_and(|kind| kind.is_file())
                && path.extension().is_some_and(|end| end == "log")
            {
                eprintln!("=== {}", path.display());
                let text = fs::read(&path).unwrap_or_default();
                let tail = text.len().saturating_sub(4096);
                eprintln!("{}", String::from_utf8_lossy(&text[tail..]));
            }
        }
    }
    let processes = Cmd::new("ps")
        .args(["axfww", "-o", "pid,ppid,stat,args"])
        .run();
    let shown = processes.out();
    eprintln!("=== processes");
    for line in shown.lines().filter(|line| !line.ends_with(']')) {
        eprintln!("{line}");
    }
}
