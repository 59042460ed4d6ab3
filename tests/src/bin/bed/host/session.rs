//! One command in a bed, seen from outside.
//!
//! Three threads: this one reads what the bed says, one reads standard input and writes to the bed, one takes signals
//! and tells the bed when the terminal's size changes. A signal that ends this process ends the machine, or the session in a bed that is kept.

use super::BED_FAILED;
use super::cli::{RunOptions, ShellOptions};
use super::outcomes::Outcomes;
use super::sys::AwaitedSignals;
use super::terminal::{self, Settings};
use crate::protocol::{self, CHUNK, Decoder, Exited, Failed, Frame, Kind, PREAMBLE, Start};
use anyhow::{Context as _, Result, bail};
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any frame that a front which died may have left unfinished in a kept bed's port.
const PADDING: usize = 2 * CHUNK;

/// How long the bed may take to tell what a command does that is about to be killed.
const EXAMINATION: Duration = Duration::from_secs(15);

/// How often a bed is woken.
const WAKE: Duration = Duration::from_secs(5);

/// Variables that mean something on the machine only.
const LEFT_OUT: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "NOTIFY_SOCKET",
    "SSH_AUTH_SOCK",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
];

/// What to run, and how.
#[derive(Debug)]
pub(super) struct Request {
    start: Start,
    timeout: Option<Duration>,
    /// How long the command may print nothing.
    silence: Option<Duration>,
    /// How many tests in a row may fail.
    failures: Option<u32>,
    forward_stdin: bool,
    /// Whether the bed is woken now and then.
    wake: bool,
}

/// Whose bed it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bed {
    /// This process's own, booted for this command.
    Own,
    /// One that others have used.
    Kept,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ended.
    Exited(Exited),
    /// The command could not be started.
    Failed(Failed),
    /// The command took longer than this.
    TimedOut(Duration),
    /// The command printed nothing for this long.
    Silent(Duration),
    /// So many tests in a row have failed.
    Failing(u32),
    /// The bed did not answer within this time.
    NotUp(Duration),
    /// The bed ended before it was up.
    DiedBooting,
    /// The bed ended before the command did.
    Died,
    /// Nobody reads this process's output any more.
    OutputClosed,
}

impl Request {
    /// For `bed run`.
    pub(super) fn run(options: &RunOptions) -> Result<Self> {
        let start = start(&options.command, &options.fast)?;
        Ok(Self {
            start,
            timeout: options.timeout(),
            silence: options.silence(),
            failures: options.failures(),
            forward_stdin: !terminal::stdin_is_terminal(),
            // Where time is a count of instructions, every interrupt would be counted.
            wake: !options.machine.icount,
        })
    }

    /// For `bed shell`.
    pub(super) fn shell(options: &ShellOptions) -> Result<Self> {
        let Some(size) = terminal::window_size().filter(|_| terminal::stdin_is_terminal()) else {
            bail!("a shell needs a terminal on standard input: use `run` for commands");
        };
        let shell = [OsString::from("/bin/bash"), OsString::from("-l")];
        let command = if options.command.is_empty() {
            &shell[..]
        } else {
            &options.command
        };
        let mut start = start(command, &options.fast)?;
        start.terminal = Some(size);
        Ok(Self {
            start,
            timeout: None,
            silence: None,
            failures: None,
            forward_stdin: true,
            wake: false,
        })
    }

    /// Does nothing, to see whether a bed is up.
    pub(super) fn probe() -> Result<Self> {
        let mut start = start(&[OsString::from("/bin/true")], &[])?;
        start.cwd = b"/".to_vec();
        start.stage = None;
        Ok(Self {
            start,
            timeout: Some(Duration::from_secs(60)),
            silence: None,
            failures: None,
            forward_stdin: false,
            wake: false,
        })
    }
}

fn start(command: &[OsString], fast: &[PathBuf]) -> Result<Start> {
    let mut nonce = [0; 8];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .context("draw a nonce")?;
    let cwd = env::current_dir().context("find the working directory")?;
    let absolute = |path: &Path| cwd.join(path).into_os_string().into_vec();
    let env = env::vars_os()
        .filter(|(name, _)| !LEFT_OUT.iter().any(|left_out| name == left_out))
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .chain([(b"CLOISTER_BED".to_vec(), b"1".to_vec())])
        .collect();
    Ok(Start {
        nonce,
        argv: command
            .iter()
            .map(|word| word.as_bytes().to_vec())
            .collect(),
        env,
        cwd: cwd.as_os_str().as_bytes().to_vec(),
        terminal: None,
        stage: env::var_os("CLOISTER_STAGE").map(|stage| absolute(Path::new(&stage))),
        fast: fast.iter().map(|path| absolute(path)).collect(),
        refresh: false,
    })
}

/// The bed's side of the connection, for writing.
#[derive(Debug, Clone)]
struct Sender(Arc<Mutex<UnixStream>>);

impl Sender {
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(bytes)
    }
}

/// This process, as it relays for the user. There is one, made before any other thread, so that signals come to the
/// thread that waits for them.
#[derive(Debug)]
pub(super) struct Front {
    patience: Duration,
    attached: Arc<Mutex<Attached>>,
}

/// What signals act upon.
#[derive(Debug, Default)]
struct Attached {
    /// The bed, while a session on a terminal runs.
    sender: Option<Sender>,
    /// The user's terminal as it was before it was made raw.
    settings: Option<Settings>,
}

impl Front {
    /// `patience` bounds the wait for a bed to come up.
    pub(super) fn new(patience: Duration) -> Result<Self> {
        let attached = Arc::default();
        take_signals(Arc::clone(&attached))?;
        Ok(Self { patience, attached })
    }

    /// Runs the request over `connection`.
    pub(super) fn relay(
        &self,
        connection: UnixStream,
        request: &Request,
        bed: Bed,
    ) -> Result<Outcome> {
        let duplicate = connection.try_clone().context("duplicate the connection")?;
        let sender = Sender(Arc::new(Mutex::new(duplicate)));
        if request.start.terminal.is_some() {
            let settings = Settings::make_raw().context("make the terminal raw")?;
            *self.attached() = Attached {
                sender: Some(sender.clone()),
                settings: Some(settings),
            };
        }
        let outcome = converse(connection, &sender, request, bed, self.patience);
        self.attached().detach().context("restore the terminal")?;
        outcome
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    /// Gives the user the terminal back.
    fn detach(&mut self) -> io::Result<()> {
        self.sender = None;
        match self.settings.take() {
            Some(settings) => settings.restore(),
            None => Ok(()),
        }
    }

    /// Tells the bed the terminal's size, without waiting for it to listen.
    fn resize(&self) -> Result<()> {
        let (Some(sender), Some(size)) = (self.sender.clone(), terminal::window_size()) else {
            return Ok(());
        };
        let mut frame = Vec::new();
        protocol::encode_json(Kind::Resize, &size, &mut frame)?;
        // The session may end meanwhile, and with it what its terminal's size matters.
        spawn("resize", move || drop(sender.send(&frame)))
    }
}

/// When to give up, and why.
#[derive(Debug)]
struct Limits {
    /// By when the bed has to be up, and later the command to have ended. None: it may take for ever.
    end: Option<(Instant, Outcome)>,
    /// How long the command may print nothing, and since when it does. None: for ever.
    silence: Option<(Duration, Instant)>,
    /// Whether the command has had its time, and the bed was asked what it does.
    over: bool,
}

impl Limits {
    fn of_boot(patience: Duration) -> Self {
        Self {
            end: Some((Instant::now() + patience, Outcome::NotUp(patience))),
            silence: None,
            over: false,
        }
    }

    fn of_command(request: &Request) -> Self {
        let now = Instant::now();
        let end = |limit| (now + limit, Outcome::TimedOut(limit));
        Self {
            end: request.timeout.map(end),
            silence: request.silence.map(|limit| (limit, now)),
            over: false,
        }
    }

    /// The command has printed something.
    fn heard(&mut self) {
        if let Some((_, since)) = &mut self.silence {
            *since = Instant::now();
        }
    }

    /// The first of them that will be reached.
    fn next(&self) -> Option<(Instant, Outcome)> {
        let silence = self.silence;
        let silence = silence.map(|(limit, since)| (since + limit, Outcome::Silent(limit)));
        let all = silence.into_iter().chain(self.end.clone());
        all.min_by_key(|(when, _)| *when)
    }

    /// Gives the bed the time to tell what the command does.
    fn examine(&mut self, outcome: Outcome) {
        *self = Self {
            end: Some((Instant::now() + EXAMINATION, outcome)),
            silence: None,
            over: true,
        };
    }
}

fn converse(
    mut connection: UnixStream,
    sender: &Sender,
    request: &Request,
    bed: Bed,
    patience: Duration,
) -> Result<Outcome> {
    let mut opening = if bed == Bed::Kept {
        vec![0; PADDING]
    } else {
        Vec::new()
    };
    opening.extend_from_slice(PREAMBLE);
    let start = Start {
        refresh: bed == Bed::Kept,
        ..request.start.clone()
    };
    protocol::encode_json(Kind::Start, &start, &mut opening)?;
    let opening_sender = sender.clone();
    // A bed that boots does not read yet, and the opening may be more than the socket holds.
    spawn("opening", move || drop(opening_sender.send(&opening)))?;

    let mut decoder = Decoder::new([PREAMBLE.as_slice(), &request.start.nonce].concat());
    let mut limits = Limits::of_boot(patience);
    let mut outcomes = Outcomes::default();
    let mut died = Outcome::DiedBooting;
    loop {
        while let Some(frame) = decoder.next_frame().context("the bed's answer")? {
            if frame.kind == Kind::Ready {
                died = Outcome::Died;
                limits = Limits::of_command(request);
                forward_input(sender.clone(), request.forward_stdin)?;
                if request.wake {
                    keep_awake(sender.clone())?;
                }
            } else if let Some(outcome) = act(&frame)? {
                // One that ends while it is examined has had its time all the same.
                let too_late = limits.next().filter(|_| limits.over);
                return Ok(too_late.map_or(outcome, |(_, outcome)| outcome));
            } else {
                limits.heard();
                if frame.kind == Kind::Stdout && !limits.over {
                    let failed = outcomes.take(&frame.payload);
                    if request.failures.is_some_and(|most| failed >= most) {
                        limits.examine(Outcome::Failing(failed));
                        examine(sender)?;
                    }
                }
            }
        }
        let mut left = None;
        if let Some((when, outcome)) = limits.next() {
            let time = when.saturating_duration_since(Instant::now());
            if time.is_zero() && (limits.over || died == Outcome::DiedBooting) {
                return Ok(outcome);
            } else if time.is_zero() {
                limits.examine(outcome);
                examine(sender)?;
                continue;
            }
            left = Some(time);
        }
        connection
            .set_read_timeout(left)
            .context("bound the wait for the bed")?;
        let mut buffer = [0; CHUNK];
        match connection.read(&mut buffer) {
            Ok(0) => return Ok(died),
            Ok(count) => decoder.push(buffer.get(..count).unwrap_or_default()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => {}
                io::ErrorKind::ConnectionReset => return Ok(died),
                _ => return Err(error).context("read from the bed"),
            },
        }
    }
}

/// Asks the bed to tell what the command does.
fn examine(sender: &Sender) -> Result<()> {
    let mut frame = Vec::new();
    protocol::encode(Kind::Examine, &[], &mut frame);
    let sender = sender.clone();
    // A bed that stands still does not read it.
    spawn("examine", move || drop(sender.send(&frame)))
}

/// Passes output on; the command's end is the session's.
fn act(frame: &Frame) -> Result<Option<Outcome>> {
    let written = match frame.kind {
        Kind::Stdout => write_all(rustix::stdio::stdout(), &frame.payload),
        Kind::Stderr => write_all(rustix::stdio::stderr(), &frame.payload),
        Kind::Exited => {
            let exited = serde_json::from_slice(&frame.payload).context("parse an Exited frame")?;
            return Ok(Some(Outcome::Exited(exited)));
        }
        Kind::Failed => {
            let failed = serde_json::from_slice(&frame.payload).context("parse a Failed frame")?;
            return Ok(Some(Outcome::Failed(failed)));
        }
        other => bail!("unexpected frame {other:?} from the bed"),
    };
    match written {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(Outcome::OutputClosed)),
        Err(error) => Err(error).context("pass on the command's output"),
    }
}

/// Past the standard library's buffers, which wait for lines.
fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    File::from(fd.try_clone_to_owned()?).write_all(bytes)
}

/// Interrupts the bed every few seconds. QEMU has been seen to leave a machine that runs others halted with no timer
/// armed: whatever it waited for had happened, and nothing told it. Any interrupt does.
fn keep_awake(sender: Sender) -> Result<()> {
    let mut frame = Vec::new();
    // No input, but something to read.
    protocol::encode(Kind::Stdin, &[], &mut frame);
    spawn("wake", move || {
        // The session may end at any moment.
        while sender.send(&frame).is_ok() {
            thread::sleep(WAKE);
        }
    })
}

fn forward_input(sender: Sender, wanted: bool) -> Result<()> {
    spawn("stdin", move || {
        // The session may end at any moment, and nothing that is sent after its end matters.
        drop(if wanted {
            send_input(&sender)
        } else {
            end_input(&sender)
        });
    })
}

fn send_input(sender: &Sender) -> io::Result<()> {
    let mut stdin = File::from(rustix::stdio::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = [0; CHUNK];
    loop {
        let count = match stdin.read(&mut buffer) {
            Ok(0) => return end_input(sender),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Standard input may be closed, or a terminal of which this is a background job.
            Err(_) => return end_input(sender),
        };
        let mut frame = Vec::with_capacity(CHUNK + 8);
        protocol::encode(
            Kind::Stdin,
            buffer.get(..count).unwrap_or_default(),
            &mut frame,
        );
        sender.send(&frame)?;
    }
}

fn end_input(sender: &Sender) -> io::Result<()> {
    let mut frame = Vec::new();
    protocol::encode(Kind::StdinEof, &[], &mut frame);
    sender.send(&frame)
}

/// Passes the terminal's size on when it changes, and gives the terminal back before a signal ends this process.
fn take_signals(attached: Arc<Mutex<Attached>>) -> Result<()> {
    let signals = AwaitedSignals::block(&[
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGWINCH,
    ])
    .context("block signals")?;
    spawn("signals", move || {
        loop {
            let signal = signals.wait();
            let mut attached = attached.lock().unwrap_or_else(PoisonError::into_inner);
            let done = match signal {
                Ok(libc::SIGWINCH) => attached.resize(),
                Ok(signal) => end(&mut attached, 128 + signal),
                Err(error) => Err(error).context("wait for signals"),
            };
            if let Err(error) = done {
                eprintln!("bed: {error:#}");
                end(&mut attached, i32::from(BED_FAILED));
            }
        }
    })
}

#[expect(
    clippy::exit,
    reason = "a signal ends the process whatever its other threads wait for"
)]
fn end(attached: &mut Attached, code: i32) -> ! {
    if let Err(error) = attached.detach() {
        eprintln!("bed: restore the terminal: {error}");
    }
    std::process::exit(code)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("start the thread {name}"))?;
    Ok(())
}
