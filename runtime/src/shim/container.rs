//! A container of the shim, and the processes in it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::command::{Cloister, CommandError, Streams};
use super::console::{Console, ConsoleSocket};
use super::failure::Failure;
use super::process::{Belongings, Process};
use super::reaper::{Ended, Reaper};
use super::streaming::Streaming;
use super::streams::{Names, Opened};

/// The log of a container's commands and monitor, in its bundle: where runc's shim has it.
const LOG: &str = "log.json";
/// The pid of its first process, in its bundle.
pub(crate) const PID_FILE: &str = "init.pid";

/// A process that is executed, or will be.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) process: Process,
    /// The process object, as JSON.
    pub(crate) document: Vec<u8>,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) cloister: Cloister,
    pub(crate) init: Process,
    /// Whether it is the sandbox itself, of which there are no task events.
    pub(crate) is_sandbox: bool,
    pub(crate) is_paused: AtomicBool,
    ooms: Mutex<Ooms>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    commands: AtomicU64,
}

/// Which kills of the OOM killer have been told.
#[derive(Debug, Default)]
pub(crate) struct Ooms {
    /// Whether one was.
    pub(crate) is_told: bool,
    /// The end of the container comes next: none is told any more.
    pub(crate) is_over: bool,
}

/// What of the shim's a process is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outside<'a> {
    pub(crate) reaper: &'a Reaper,
    pub(crate) namespace: &'a str,
    pub(crate) streaming: &'a Streaming,
}

/// Whether streams are the program's, or its terminal's.
async fn wire(
    names: &Names,
    opened: Opened,
) -> Result<(Streams, Belongings, Option<Terminal>), io::Error> {
    let belongings = Belongings {
        stdin_holder: opened.stdin_holder,
        console: None,
        logger: opened.logger,
        named: opened.named,
    };
    if !names.terminal {
        return Ok((opened.streams, belongings, None));
    }
    let terminal = Terminal {
        socket: ConsoleSocket::new()?,
        streams: opened.streams,
    };
    Ok((Streams::default(), belongings, Some(terminal)))
}

/// A terminal that is to come.
struct Terminal {
    socket: ConsoleSocket,
    streams: Streams,
}

impl Terminal {
    async fn arrive(self) -> io::Result<Console> {
        let master = self.socket.receive().await?;
        Console::start(master, self.streams)
    }
}

impl Container {
    /// One that is not there yet.
    pub(crate) fn new(
        id: String,
        bundle: PathBuf,
        cloister: Cloister,
        names: Names,
        is_sandbox: bool,
    ) -> Self {
        Self {
            id,
            bundle,
            cloister,
            init: Process::new(names),
            is_sandbox,
            is_paused: AtomicBool::new(false),
            ooms: Mutex::default(),
            execs: Mutex::default(),
            commands: AtomicU64::new(0),
        }
    }

    /// Its root file system, if containerd has the shim mount it.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Runs a command on it with a log of its own, so that the reason of a failure is its own.
    pub(crate) async fn run(&self, reaper: &Reaper, words: &[&str]) -> Result<(), CommandError> {
        self.run_with(reaper, words, Streams::default()).await
    }

    /// The same with streams.
    pub(crate) async fn run_with(
        &self,
        reaper: &Reaper,
        words: &[&str],
        streams: Streams,
    ) -> Result<(), CommandError> {
        let log = self.scratch("log");
        let result = self.cloister.run(reaper, &log, words, streams).await;
        remove(&log);
        result
    }

    /// Which kills of the OOM killer have been told; whoever holds it is the one who tells.
    pub(crate) fn ooms(&self) -> MutexGuard<'_, Ooms> {
        self.ooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a file in the bundle that nobody else has.
    fn scratch(&self, kind: &str) -> PathBuf {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        self.bundle.join(format!("command-{number}.{kind}"))
    }

    /// Creates it; the receiver gets the end of its first process.
    pub(crate) async fn create(
        &self,
        outside: &Outside<'_>,
    ) -> Result<oneshot::Receiver<Ended>, Failure> {
        let pid_file = self.bundle.join(PID_FILE);
        let words = [
            "create".as_ref(),
            "--bundle".as_ref(),
            self.bundle.as_os_str(),
        ];
        let log = self.bundle.join(LOG);
        self.launch(&self.init, &words, &pid_file, &log, outside)
            .await
    }

    /// Starts an executed process; the receiver gets its end.
    pub(crate) async fn start_exec(
        &self,
        exec: &Exec,
        outside: &Outside<'_>,
    ) -> Result<oneshot::Receiver<Ended>, Failure> {
        let pid_file = self.scratch("pid");
        let document = self.scratch("json");
        fs::write(&document, &exec.document).map_err(|e| Failure::of(&e))?;
        let words = ["exec", "--detach", "--process"].map(OsStr::new);
        let words = [&words[..], &[document.as_os_str()]].concat();
        let log = self.scratch("log");
        let launched = self
            .launch(&exec.process, &words, &pid_file, &log, outside)
            .await;
        for file in [&document, &pid_file, &log] {
            remove(file);
        }
        launched
    }

    /// Runs a command that leaves a process behind; the receiver gets that one's end.
    async fn launch(
        &self,
        process: &Process,
        words: &[&OsStr],
        pid_file: &Path,
        log: &Path,
        outside: &Outside<'_>,
    ) -> Result<oneshot::Receiver<Ended>, Failure> {
        let names = &process.names;
        let Outside {
            reaper,
            namespace,
            streaming,
        } = *outside;
        let opened = Opened::open(names, &self.id, namespace, reaper, streaming).await;
        let opened = opened.map_err(|e| Failure::of(&e))?;
        let (streams, mut belongings, terminal) =
            wire(names, opened).await.map_err(|e| Failure::of(&e))?;
        let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
        words.extend(["--pid-file".into(), pid_file.into()]);
        if let Some(terminal) = &terminal {
            words.extend(["--console-socket".into(), terminal.socket.path().into()]);
        }
        words.push((&self.id).into());
        let expectation = reaper.expect();
        let there = match self.cloister.run(reaper, log, &words, streams).await {
            Ok(()) => arrived(pid_file, terminal, &mut belongings).await,
            Err(e) => Err(Failure::from(e)),
        };
        match there {
            Ok(pid) => {
                process.exists(pid, belongings);
                Ok(expectation.meet(pid.cast_signed()))
            }
            Err(failure) => {
                process.exists(0, belongings);
                process.dispose().await;
                Err(failure)
            }
        }
    }

    /// Adds a process that is to be executed.
    pub(crate) fn add_exec(&self, exec_id: &str, exec: Exec) -> Result<(), Failure> {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(exec_id) {
            return Err(Failure::exists(format!("id {exec_id}: already exists")));
        }
        execs.insert(exec_id.to_owned(), Arc::new(exec));
        Ok(())
    }

    /// An executed process.
    pub(crate) fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, Failure> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let found = execs.get(exec_id).cloned();
        found.ok_or_else(|| {
            let text = format!("process {exec_id} of container {}: not found", self.id);
            Failure::not_found(text)
        })
    }

    /// Forgets an executed process.
    pub(crate) fn forget_exec(&self, exec_id: &str) {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.remove(exec_id);
    }

    /// All of them, by name.
    pub(crate) fn execs(&self) -> Vec<(String, Arc<Exec>)> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs
            .iter()
            .map(|(id, exec)| (id.clone(), Arc::clone(exec)))
            .collect()
    }
}

/// Reads the pid of a process that stands, and takes its terminal.
async fn arrived(
    pid_file: &Path,
    terminal: Option<Terminal>,
    belongings: &mut Belongings,
) -> Result<u32, Failure> {
    let pid = read_pid(pid_file).map_err(|e| Failure::of(&e))?;
    if let Some(terminal) = terminal {
        let console = terminal.arrive().await.map_err(|e| Failure::of(&e))?;
        belongings.console = Some(console);
    }
    Ok(pid)
}

/// The pid in a file.
pub(crate) fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}

fn remove(file: &Path) {
    match fs::remove_file(file) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => log::warn!("cannot remove {}: {e}", file.display()),
    }
}
