//! The standard streams of a process, as containerd names them: FIFOs, files, logging programs, and
//! streams of its own.
//!
//! A process without a terminal gets them as they are: its monitor reads and writes them itself,
//! and nothing is copied here. A FIFO is opened for reading and writing, so that it neither breaks
//! nor ends when containerd goes away and comes back.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cloister::process::ProcessId;
use cloister::signal::Signal;
use command_fds::{CommandFdExt, FdMapping};
use percent_encoding::percent_decode_str;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::command::Streams;
use super::reaper::{Ended, Reaper};
use super::streaming::{Named, Streaming};

/// How long a logging program may take until it says that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to write down the last lines.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take to end after it was asked to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What containerd says of the streams of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Why a stream is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// It could not be opened.
    #[error("cannot open {name}")]
    Open {
        /// Its name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// A scheme that is none of ours.
    #[error(
        "cannot open {0}: fifo, file, binary, binary-v2 and ttrpc+unix are the schemes that are supported"
    )]
    Scheme(String),
    /// The logging program did not start.
    #[error("cannot start the logging program {}", path.display())]
    Logger {
        /// The program.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ended instead.
    #[error("the logging program {} did not say that it is ready", .0.display())]
    NotReady(PathBuf),
}

/// Where output goes.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Nowhere,
    Fifo(PathBuf),
    File(PathBuf),
    Program {
        path: PathBuf,
        args: Vec<String>,
        /// Whether it writes a byte when it is ready; otherwise closing is enough.
        says_so: bool,
    },
    /// A stream that containerd connects to the shim, by its name.
    Stream(String),
}

impl Target {
    fn parse(name: &str) -> Result<Self, StreamError> {
        let Some((scheme, rest)) = name.split_once("://") else {
            return Ok(match name {
                "" => Self::Nowhere,
                path => Self::Fifo(path.into()),
            });
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // What is before the path would be a host.
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        if !path.starts_with('/') {
            return Err(StreamError::Scheme(name.to_owned()));
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            "binary" | "binary-v2" => Ok(Self::Program {
                path: path.into(),
                // A name and its value are two arguments, as with runc's shim.
                args: form_urlencoded::parse(query.as_bytes())
                    .flat_map(|(name, value)| [name.into_owned(), value.into_owned()])
                    .collect(),
                says_so: scheme == "binary-v2",
            }),
            // Where it is connected to is the shim itself.
            "ttrpc+unix" => form_urlencoded::parse(query.as_bytes())
                .find(|(key, value)| key == "streaming_id" && !value.is_empty())
                .map(|(_, id)| Self::Stream(id.into_owned()))
                .ok_or_else(|| StreamError::Scheme(name.to_owned())),
            _ => Err(StreamError::Scheme(name.to_owned())),
        }
    }
}

/// A logging program that runs.
#[derive(Debug)]
pub(crate) struct Logger {
    process: ProcessId,
    ended: oneshot::Receiver<Ended>,
}

/// Streams that are open.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) streams: Streams,
    /// Keeps standard input from ending until containerd says so.
    pub(crate) stdin_holder: Option<Holder>,
    pub(crate) logger: Option<Logger>,
    /// Those that containerd connects.
    pub(crate) named: Vec<Named>,
}

/// What keeps standard input from ending.
#[derive(Debug)]
#[expect(dead_code, reason = "it is there to be dropped")]
pub(crate) enum Holder {
    /// A writer of a FIFO.
    Fifo(OwnedFd),
    /// The name by which containerd connects to it.
    Stream(Named),
}

impl Opened {
    /// Opens what `names` says for a process of container `id`.
    pub(crate) async fn open(
        names: &Names,
        id: &str,
        namespace: &str,
        reaper: &Reaper,
        streaming: &Streaming,
    ) -> Result<Self, StreamError> {
        let mut this = Self::default();
        if !names.stdin.is_empty() {
            let (reader, holder) = open_stdin(&names.stdin, streaming)?;
            this.streams.stdin = Some(reader);
            this.stdin_holder = holder;
        }
        match Target::parse(&names.stdout)? {
            // As runc's shim: where both go is said once.
            Target::File(path) => {
                this.streams.stdout = Some(open_file(&path, &names.stdout)?);
                this.streams.stderr = Some(open_file(&path, &names.stdout)?);
            }
            Target::Program {
                path,
                args,
                says_so,
            } => {
                let (logger, stdout, stderr) =
                    Logger::start(path, &args, says_so, id, namespace, reaper).await?;
                this.logger = Some(logger);
                this.streams.stdout = Some(stdout);
                this.streams.stderr = Some(stderr);
            }
            Target::Fifo(path) => {
                this.streams.stdout = Some(open_fifo(&path, &names.stdout)?);
                this.open_stderr(&names.stderr, streaming)?;
            }
            Target::Stream(id) => {
                this.streams.stdout = Some(this.open_output(&id, &names.stdout, streaming)?);
                this.open_stderr(&names.stderr, streaming)?;
            }
            Target::Nowhere => this.open_stderr(&names.stderr, streaming)?,
        }
        Ok(this)
    }

    fn open_stderr(&mut self, name: &str, streaming: &Streaming) -> Result<(), StreamError> {
        self.streams.stderr = match Target::parse(name)? {
            Target::Nowhere => None,
            Target::Fifo(path) => Some(open_fifo(&path, name)?),
            Target::File(path) => Some(open_file(&path, name)?),
            Target::Stream(id) => Some(self.open_output(&id, name, streaming)?),
            Target::Program { .. } => return Err(StreamError::Scheme(name.to_owned())),
        };
        Ok(())
    }

    fn open_output(
        &mut self,
        id: &str,
        name: &str,
        streaming: &Streaming,
    ) -> Result<OwnedFd, StreamError> {
        let (writer, named) = streaming.output(id).map_err(|source| StreamError::Open {
            name: name.to_owned(),
            source,
        })?;
        self.named.push(named);
        Ok(writer)
    }
}

/// A reader, and, unless it is a file, what keeps it from ending.
fn open_stdin(name: &str, streaming: &Streaming) -> Result<(OwnedFd, Option<Holder>), StreamError> {
    let failed = |source| StreamError::Open {
        name: name.to_owned(),
        source,
    };
    let path = match Target::parse(name)? {
        Target::Fifo(path) => path,
        Target::Stream(id) => {
            let (reader, named) = streaming.input(&id).map_err(failed)?;
            return Ok((reader, Some(Holder::Stream(named))));
        }
        _ => return Err(StreamError::Scheme(name.to_owned())),
    };
    // Neither waits for the other end.
    let open = |read: bool| {
        OpenOptions::new()
            .read(read)
            .write(!read)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
    };
    let reader = open(true).map_err(failed)?;
    let is_fifo = reader.metadata().map_err(failed)?.file_type().is_fifo();
    let holder = is_fifo.then(|| open(false)).transpose().map_err(failed)?;
    let reader = blocking(reader.into()).map_err(failed)?;
    Ok((reader, holder.map(|holder| Holder::Fifo(holder.into()))))
}

/// For writing. What is no FIFO is appended to.
fn open_fifo(path: &Path, name: &str) -> Result<OwnedFd, StreamError> {
    let failed = |source| StreamError::Open {
        name: name.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_fifo() {
        return open_file(path, name);
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    blocking(file.into()).map_err(failed)
}

fn open_file(path: &Path, name: &str) -> Result<OwnedFd, StreamError> {
    let open = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        io::Result::Ok(OwnedFd::from(file))
    };
    open().map_err(|source| StreamError::Open {
        name: name.to_owned(),
        source,
    })
}

/// Programs expect that their streams wait.
fn blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
    Ok(fd)
}

impl Logger {
    /// Starts a logging program, which finds standard output, standard error and where to say that
    /// it is ready at descriptors 3, 4 and 5.
    async fn start(
        path: PathBuf,
        args: &[String],
        says_so: bool,
        id: &str,
        namespace: &str,
        reaper: &Reaper,
    ) -> Result<(Self, OwnedFd, OwnedFd), StreamError> {
        let failed = |source: io::Error| StreamError::Logger {
            path: path.clone(),
            source,
        };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
        let (stdout_reader, stdout) = pipe()?;
        let (stderr_reader, stderr) = pipe()?;
        let (ready, ready_writer) = pipe()?;
        let mut command = Command::new(&path);
        command
            .args(args)
            .env_clear()
            .env("CONTAINER_ID", id)
            .env("CONTAINER_NAMESPACE", namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mappings = [stdout_reader, stderr_reader, ready_writer]
            .into_iter()
            .zip(3..)
            .map(|(parent_fd, child_fd)| FdMapping {
                parent_fd,
                child_fd,
            })
            .collect();
        command
            .fd_mappings(mappings)
            .map_err(|e| failed(io::Error::other(e)))?;
        // The shim blocks all of them, and a shell whose SIGCHLD is blocked waits for its children for ever.
        cloister::sys::start_with_usual_signals(&mut command);
        let (pid, ended) = reaper.spawn(&mut command).map_err(failed)?;
        // Closes what the program alone is to have.
        drop(command);
        let process = ProcessId::of(pid).map_err(failed)?;
        let this = Self { process, ended };
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
        let mut byte = [0];
        let read = match timeout(READY_LIMIT, ready.read(&mut byte)).await {
            Ok(read) => read.map_err(failed),
            Err(_) => Err(StreamError::NotReady(path.clone())),
        };
        match read {
            Ok(0) if says_so => {}
            Ok(_) => return Ok((this, stdout, stderr)),
            Err(e) => {
                this.kill();
                return Err(e);
            }
        }
        this.kill();
        Err(StreamError::NotReady(path))
    }

    fn kill(&self) {
        // One that has ended needs nothing.
        let _ = self.process.signal(Signal::KILL);
    }

    /// Lets it write down what it has read, and ends it.
    pub(crate) async fn end(mut self) {
        // It ends by itself when its streams do, if it has a mind to.
        if timeout(FLUSH_LIMIT, &mut self.ended).await.is_ok() {
            return;
        }
        let _ = self.process.signal(Signal::TERM);
        if timeout(END_LIMIT, &mut self.ended).await.is_err() {
            log::warn!("logging program {} is killed", self.process.pid);
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn targets_are_understood() {
        let program = |says_so| Target::Program {
            path: "/bin/my logger".into(),
            args: vec!["--a".into(), "b c".into(), "--flag".into(), String::new()],
            says_so,
        };
        for (name, expected) in [
            ("", Target::Nowhere),
            ("/f", Target::Fifo("/f".into())),
            ("fifo:///f", Target::Fifo("/f".into())),
            ("file:///a%20b", Target::File("/a b".into())),
            ("binary:///bin/my%20logger?--a=b+c&--flag", program(false)),
            (
                "binary-v2:///bin/my%20logger?--a=b%20c&--flag=",
                program(true),
            ),
            (
                "ttrpc+unix:///run/s/a?streaming_id=c-stdout",
                Target::Stream("c-stdout".into()),
            ),
        ] {
            assert_eq!(Target::parse(name).unwrap(), expected, "{name}");
        }
        for name in [
            "http://host/x",
            "file://host/x",
            "npipe:///x",
            "ttrpc+unix:///x",
            "grpc+unix:///x?streaming_id=y",
        ] {
            let error = Target::parse(name).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("cannot open {name}: ")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_fifo_outlives_its_readers_and_ends_with_its_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let names = Names {
            stdin: path.to_string_lossy().into_owned(),
            stdout: path.to_string_lossy().into_owned(),
            ..Names::default()
        };
        let opened = Opened::open(&names, "c", "n", &Reaper::default(), &Streaming::default())
            .await
            .unwrap();
        let stdout = opened.streams.stdout.unwrap();
        // Nobody reads, and still it can be written to.
        assert_eq!(rustix::io::write(&stdout, b"x").unwrap(), 1);
        drop(stdout);
        let mut stdin = fs::File::from(opened.streams.stdin.unwrap());
        let mut byte = [0];
        assert_eq!(stdin.read(&mut byte).unwrap(), 1);
        drop(opened.stdin_holder.unwrap());
        assert_eq!(stdin.read(&mut byte).unwrap(), 0);
        assert!(opened.streams.stderr.is_none());
    }

    #[tokio::test]
    async fn a_file_takes_both_streams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/log");
        let names = Names {
            stdout: format!("file://{}", path.display()),
            ..Names::default()
        };
        let opened = Opened::open(&names, "c", "n", &Reaper::default(), &Streaming::default())
            .await
            .unwrap();
        rustix::io::write(opened.streams.stdout.unwrap(), b"out ").unwrap();
        rustix::io::write(opened.streams.stderr.unwrap(), b"err").unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), "out err");
    }

    #[tokio::test]
    async fn a_logging_program_is_waited_for_and_gets_both_streams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logger");
        let script = "#!/bin/sh\nexec >\"$2\" 2>&1\necho \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1\"\n\
                      printf x >&5; exec 5>&-; cat <&3; cat <&4\n";
        fs::write(&path, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).unwrap();
        let log = dir.path().join("log");
        let names = Names {
            stdout: format!("binary-v2://{}?--to={}", path.display(), log.display()),
            ..Names::default()
        };
        let reaper = Reaper::default();
        let opened = Opened::open(&names, "c", "n", &reaper, &Streaming::default())
            .await
            .unwrap();
        let logger = opened.logger.unwrap();
        rustix::io::write(opened.streams.stdout.unwrap(), b"out ").unwrap();
        rustix::io::write(opened.streams.stderr.unwrap(), b"err").unwrap();
        assert!(logger.process.wait_ended(Duration::from_secs(10)).unwrap());
        assert_eq!(fs::read_to_string(log).unwrap(), "n/c --to\nout err");

        let names = Names {
            stdout: "binary-v2:///bin/true".into(),
            ..Names::default()
        };
        let error = Opened::open(&names, "c", "n", &reaper, &Streaming::default())
            .await
            .unwrap_err();
        assert!(matches!(error, StreamError::NotReady(_)), "{error}");
    }
}
