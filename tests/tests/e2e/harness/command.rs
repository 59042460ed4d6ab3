//! A child process whose streams are collected and whose end is awaited with a limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LIMIT;

/// A command to run.
pub(crate) struct Cmd {
    command: Command,
    input: Vec<u8>,
    limit: Duration,
    outlived: bool,
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Everything it wrote to its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Everything it wrote to its standard error.
    pub(crate) stderr: Vec<u8>,
}

/// A command that runs, with its output being collected.
pub(crate) struct Running {
    child: Child,
    stdout: Output,
    stderr: Output,
    stdin: JoinHandle<()>,
    limit: Duration,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            input: Vec::new(),
            limit: LIMIT,
            outlived: false,
        }
    }

    /// What it starts lives on and keeps its streams, as a detached container does: its output is read when it ends,
    /// without waiting for the others that hold it.
    pub(crate) fn outlived(mut self) -> Self {
        self.outlived = true;
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// How long it may take, if not [`LIMIT`].
    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Bytes for the standard input, which ends after them.
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Starts it, without waiting.
    pub(crate) fn spawn(mut self) -> Running {
        let (out, stdout) = Output::new(self.outlived);
        let (err, stderr) = Output::new(self.outlived);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let input = self.input;
        // A program that ends without reading all of its input closes the pipe: no error here.
        let stdin = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let stdout = stdout.unwrap_or_else(|| collect(child.stdout.take().expect("a pipe")));
        let stderr = stderr.unwrap_or_else(|| collect(child.stderr.take().expect("a pipe")));
        Running {
            child,
            stdout,
            stderr,
            stdin,
            limit: self.limit,
        }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Finished {
        self.spawn().wait()
    }
}

/// Where one stream of a command goes.
enum Output {
    /// A thread reads it to its end.
    Pipe(JoinHandle<Vec<u8>>),
    File(File),
}

impl Output {
    /// What to give to the command and, when that is no pipe, what to read later.
    fn new(file: bool) -> (Stdio, Option<Self>) {
        if !file {
            return (Stdio::piped(), None);
        }
        let file = tempfile::tempfile().expect("a temporary file");
        let theirs = file.try_clone().expect("a descriptor");
        (theirs.into(), Some(Self::File(file)))
    }

    /// What was written, by the end of the command.
    fn read(self, what: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Pipe(thread) => within(thread, what),
            Self::File(mut file) => {
                let mut bytes = Vec::new();
                file.rewind().expect("a file");
                file.read_to_end(&mut bytes).expect("a file");
                Ok(bytes)
            }
        }
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> Output {
    Output::Pipe(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a readable pipe");
        bytes
    }))
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Ends it.
    pub(crate) fn kill(mut self) -> Finished {
        self.child.kill().expect("our own child");
        self.wait()
    }

    /// Waits for the end of the process and of its output; kills it after the limit.
    pub(crate) fn wait(mut self) -> Finished {
        let deadline = Instant::now() + self.limit;
        let status = loop {
            match self.child.try_wait().expect("our own child") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.child.kill().expect("our own child");
                    let status = self.child.wait().expect("our own child");
                    panic!(
                        "killed after {:?} ({status}); stdout: {}; stderr: {}",
                        self.limit,
                        self.stdout.read("stdout").map_or_else(|e| e, |b| lossy(&b)),
                        self.stderr.read("stderr").map_or_else(|e| e, |b| lossy(&b)),
                    );
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let stdout = self.stdout.read("stdout").unwrap_or_else(|e| panic!("{e}"));
        let stderr = self.stderr.read("stderr").unwrap_or_else(|e| panic!("{e}"));
        drop(self.stdin);
        Finished {
            status,
            stdout,
            stderr,
        }
    }
}

/// Joins a collecting thread, but not for ever: a process that lives on may hold the pipe.
fn within(thread: JoinHandle<Vec<u8>>, what: &str) -> Result<Vec<u8>, String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(thread.join()));
    match receiver.recv_timeout(Duration::from_secs(20)) {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(format!("{what}: the reading thread panicked")),
        Err(_) => Err(format!(
            "{what}: somebody still holds the pipe after the end"
        )),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Finished {
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by signal {:?}: {self}", self.status.signal()))
    }

    pub(crate) fn out(&self) -> String {
        lossy(&self.stdout)
    }

    pub(crate) fn err(&self) -> String {
        lossy(&self.stderr)
    }

    /// Asserts that it exited with 0 and gives what it printed.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status.code(), Some(0), "{self}");
        self.out()
    }

    /// Asserts that it failed with `code` and that its standard error has each of `parts`.
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        let message = self.err();
        for part in parts {
            assert!(message.contains(part), "no {part:?} in the error of {self}");
        }
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.status,
            self.out(),
            self.err()
        )
    }
}
