//! The caller's side: create, start, signal, delete.

mod outside;
pub(crate) mod stage;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_spec::Side;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::cgroup::Cgroup;
use crate::channel::{self, Report, START, Setup, Task, TerminalModes};
use crate::config::Resources;
use crate::config::{Config, ConsoleSize, NAMESPACES};
use crate::error::{Context, Failure};
use crate::init;
use crate::sys;
use crate::{Error, Result};
use outside::{configure, joins, open_mounts};
use stage::{Child, Stage, converse, socket_pair, spawn};

/// How long the init stage may be silent: a bound for file systems that hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct CreateOptions {
    /// Names the container's cgroup; letters, digits and `+ - . _`.
    pub id: String,
    /// The bytes of `config.json`.
    pub spec: Vec<u8>,
    /// The root file system: a directory in the caller's mount namespace.
    pub rootfs: PathBuf,
    /// The sources of bind mounts by index into `mounts`. A bind mount that is not listed has the
    /// specification's own `source`, seen from the caller's mount namespace.
    pub bind_sources: BTreeMap<usize, PathBuf>,
    /// Namespaces of other containers that this one shares: the specification's name of the type,
    /// and the pidfd of the other container's init process. Types that are not listed are created
    /// if the specification lists them.
    pub joins: Vec<(String, OwnedFd)>,
    /// The bundle's directory on the host, for hooks to be told.
    pub bundle: PathBuf,
    /// The standard streams.
    pub stdio: Stdio,
    /// What the program finds from number 3 on.
    pub descriptors: Vec<OwnedFd>,
    /// The directory of a cgroup v2 hierarchy below which the container's cgroup is made. It is
    /// created if missing, and no process may be in it.
    pub cgroup_parent: PathBuf,
    /// The executable of the init stage: `/proc/self/exe`, or another path to the caller's own
    /// executable if the caller has changed its mount namespace since it was executed.
    pub init_exe: PathBuf,
}

/// The standard streams of a container. What is given is closed in the caller by `create`.
#[derive(Debug)]
pub enum Stdio {
    /// Three separate files; `None` is `/dev/null`. For `process.terminal: false`.
    Streams {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// A terminal from the container's own devpts; its other end is [`Container::take_terminal`].
    /// For `process.terminal: true`.
    Terminal {
        /// The first window size; without it, `process.consoleSize`.
        size: Option<WindowSize>,
        /// Whether a line feed that is written arrives as one, not as a carriage return and a line
        /// feed: `ONLCR` is off, as runc has it for terminals that it reads itself.
        plain_line_feeds: bool,
    },
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// The width.
    pub columns: u16,
    /// The height.
    pub rows: u16,
}

/// A container that has been created. Dropping it leaves the container running.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: u32,
    pidfd: OwnedFd,
    pub(crate) cgroup: Cgroup,
    /// What it was made from, for those that join it.
    pub(crate) config: Config,
    /// The channel to the init stage, until the start.
    channel: Option<OwnedFd>,
    /// How long the start may take, if there is a bound.
    start_patience: Option<Duration>,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

impl Container {
    /// Builds the container up to, and not including, the execution of its program.
    ///
    /// # Errors
    /// The specification is refused or a step failed; nothing is left behind.
    pub fn create(options: CreateOptions) -> Result<Self> {
        check_id(&options.id)?;
        let checked = cloister_spec::check(&options.spec, "config.json", Side::Guest)?;
        let config: Config = serde_json::from_value(checked.value)
            .map_err(|error| Failure::invalid(format!("config.json: {error}")))?;
        let mut warnings = checked.warnings;
        if config.process.terminal != matches!(options.stdio, Stdio::Terminal { .. }) {
            return Err(Failure::invalid(format!(
                "process.terminal is {}, the streams given are not for that",
                config.process.terminal
            ))
            .into());
        }
        let (bind_sources, mut fds) = open_mounts(&config, &options)?;
        let joins = joins(&config, &options, &mut fds)?;
        let cgroup = Cgroup::create(&options.cgroup_parent, &options.id)?;
        let setup = Setup {
            id: options.id.clone(),
            terminal: TerminalModes::new(&options.stdio, config.process.console_size),
            config,
            cgroup: cgroup.path().to_owned(),
            bind_sources,
            joins,
            bundle: options.bundle.clone(),
            descriptors: options.descriptors.len(),
        };
        let start_patience = start_patience(&setup.config);
        match build(&setup, &options, &cgroup, &fds) {
            Ok(built) => {
                warnings.extend(built.warnings);
                Ok(Container {
                    id: options.id,
                    pid: built.child.pid.cast_unsigned(),
                    pidfd: built.child.pidfd,
                    cgroup,
                    config: setup.config,
                    channel: Some(built.channel),
                    start_patience,
                    terminal: built.terminal,
                    warnings,
                })
            }
            Err(failure) => {
                if let Err(failure) = cgroup.remove() {
                    log::error!("container {}: {failure}", options.id);
                }
                Err(failure.into())
            }
        }
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process id of the container's init process in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd of the init process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What was passed over with a warning: properties the specification does not know, capabilities
    /// that do not exist or cannot be granted.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The controlling end of the container's terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Runs the hooks of the start and executes the container's program.
    ///
    /// # Errors
    /// The container was started before, has died, a hook has failed, or the program cannot be
    /// executed; after the last two its process has ended.
    pub fn start(&mut self) -> Result<()> {
        self.begin_start()?.finish()
    }

    /// The same in two steps, for a caller that has other things to do while hooks run.
    ///
    /// # Errors
    /// The container was started before or has died.
    pub fn begin_start(&mut self) -> Result<Starting> {
        let state = |state| Error::State {
            id: self.id.clone(),
            state,
        };
        let channel = self
            .channel
            .take()
            .ok_or_else(|| state("has been started already"))?;
        set_socket_timeout(&channel, Timeout::Recv, self.start_patience).doing(|| "start")?;
        match channel::write_all(&channel, &[START]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(state("is not running"));
            }
            result => result.doing(|| "start")?,
        }
        Ok(Starting {
            channel,
            runs_hooks: self.start_patience != Some(PATIENCE),
        })
    }

    /// Sends a signal to the init process, or to every process of the container.
    ///
    /// # Errors
    /// The signal is not 1 to 64, or there is no such process any more.
    pub fn signal(&self, signal: u32, all: bool) -> Result<()> {
        let number = signal_number(signal)?;
        let sent = if all {
            self.cgroup.signal(number)
        } else {
            sys::pidfd_send_signal(&self.pidfd, number)
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(Error::State {
                id: self.id.clone(),
                state: "is not running",
            }),
            result => Ok(result.doing(|| format!("send signal {signal}"))?),
        }
    }

    /// Sets the limits that a `linux.resources` object names; the others stay.
    ///
    /// # Errors
    /// The object is malformed or refused, or the kernel does not take a value.
    pub fn update(&mut self, resources: &[u8]) -> Result<()> {
        let value = cloister_spec::check_resources(resources, "resources", Side::Guest)?.value;
        let resources: Resources = serde_json::from_value(value)
            .map_err(|error| Failure::invalid(format!("resources: {error}")))?;
        Ok(self.cgroup.update(&resources)?)
    }

    /// Stops every process where it is.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pause(&self) -> Result<()> {
        Ok(self.cgroup.freeze(true).doing(|| "pause")?)
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// The container is not paused, or the kernel refuses.
    pub fn resume(&self) -> Result<()> {
        if !self.is_paused() {
            return Err(Error::State {
                id: self.id.clone(),
                state: "is not paused",
            });
        }
        Ok(self.cgroup.freeze(false).doing(|| "resume")?)
    }

    /// Whether the processes are stopped.
    pub fn is_paused(&self) -> bool {
        self.cgroup.is_frozen()
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The processes in the container, by their pids in the caller's pid namespace.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = self.cgroup.all_pids().doing(|| "list the processes")?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// Whether the kernel's OOM killer has ended a process of the container.
    pub fn oom_killed(&self) -> bool {
        self.cgroup.oom_killed()
    }

    /// Kills what is left of the container and removes its cgroup. May be called again after an error.
    ///
    /// # Errors
    /// The cgroup does not empty or cannot be removed.
    pub fn delete(&mut self) -> Result<()> {
        // Killed before its channel closes: a process that saw the end of the channel would exit by itself first.
        let removed = self.cgroup.remove();
        self.channel = None;
        Ok(removed?)
    }
}

/// A container whose hooks run, and whose program is then executed.
#[derive(Debug)]
pub struct Starting {
    channel: OwnedFd,
    runs_hooks: bool,
}

impl Starting {
    /// Whether it may take as long as hooks do; else it is a matter of microseconds.
    pub fn runs_hooks(&self) -> bool {
        self.runs_hooks
    }

    /// Waits for the execution of the program.
    ///
    /// # Errors
    /// A hook has failed or the program cannot be executed; its process has ended.
    pub fn finish(self) -> Result<()> {
        // The channel is closed by the execution, and by death.
        match channel::receive::<Report>(&self.channel) {
            Ok(None) => Ok(()),
            Ok(Some(Report::Failed(failure))) => Err(failure.into()),
            Ok(Some(Report::Created { .. })) => {
                Err(Failure::new("start: the init stage spoke out of turn").into())
            }
            Err(error) => Err(Failure::system("start: wait for the execution", error).into()),
        }
    }
}

/// The hooks of the start take the time they are given.
fn start_patience(config: &Config) -> Option<Duration> {
    let mut patience = PATIENCE;
    for hook in &config.hooks.start_container {
        patience = patience.checked_add(Duration::from_secs(hook.timeout?))?;
    }
    // A number that the kernel takes for a time.
    Some(patience.min(Duration::from_secs(u32::MAX.into())))
}

/// What [`build`] gives.
struct Built {
    child: Child,
    channel: OwnedFd,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

/// Starts the container's process in its cgroup and has it build the container. After an error there
/// is no process.
fn build(
    setup: &Setup,
    options: &CreateOptions,
    cgroup: &Cgroup,
    mounts: &[OwnedFd],
) -> std::result::Result<Built, Failure> {
    cgroup.apply(&setup.config.linux.resources)?;
    let (channel, theirs) = socket_pair(PATIENCE)?;
    let child = spawn_first(&setup.config, options, cgroup, &theirs)?;
    drop(theirs);
    let terminal = setup.config.process.terminal;
    let built = configure(&setup.config, &child, cgroup, &channel).and_then(|()| {
        let fds = [&options.descriptors, mounts];
        converse(&channel, &Task::<_, ()>::Create(setup), fds, terminal)
    });
    match built {
        Ok((terminal, warnings)) => Ok(Built {
            child,
            channel,
            terminal,
            warnings,
        }),
        Err(failure) => {
            let failure = child.explain(failure);
            child.end();
            Err(failure)
        }
    }
}

/// A signal as the system takes it.
pub(crate) fn signal_number(signal: u32) -> std::result::Result<i32, Failure> {
    let number = i32::try_from(signal).ok();
    let number = number.filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| Failure::invalid(format!("{signal} is not a signal")))
}

/// As the protocol between host and guest says: a file name, and not a hidden or a special one.
fn check_id(id: &str) -> Result<()> {
    let valid = !id.is_empty()
        && id.len() <= 255
        && id != "."
        && id != ".."
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b));
    if valid {
        Ok(())
    } else {
        Err(Failure::invalid(format!("invalid container id {id:?}")).into())
    }
}

/// Starts the init stage of a new container.
fn spawn_first(
    config: &Config,
    options: &CreateOptions,
    cgroup: &Cgroup,
    channel: &OwnedFd,
) -> std::result::Result<Child, Failure> {
    let linux = &config.linux;
    let joined = |kind: &str| options.joins.iter().find(|(joined, _)| joined == kind);
    let namespaces = NAMESPACES
        .iter()
        // The others are created by the stage itself.
        .filter(|(name, _)| !matches!(*name, "cgroup" | "time"))
        .filter(|(name, _)| linux.has_namespace(name) && joined(name).is_none())
        .fold(0, |flags, (_, flag)| {
            flags | u64::from(flag.cast_unsigned())
        });
    spawn(&Stage {
        namespaces,
        pid_namespace_of: joined("pid").map(|(_, pidfd)| pidfd),
        wait_for_mappings: linux.has_namespace("user"),
        stdio: &options.stdio,
        init_exe: &options.init_exe,
        cgroup: cgroup.dir(),
        channel,
    })
}

impl TerminalModes {
    /// What was asked for.
    pub(crate) fn new(stdio: &Stdio, console_size: Option<ConsoleSize>) -> Self {
        let Stdio::Terminal {
            size,
            plain_line_feeds,
        } = *stdio
        else {
            return Self::default();
        };
        let size = size.map(|size| (size.columns, size.rows));
        let specified = console_size.map(|size| {
            let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
            (clamp(size.width), clamp(size.height))
        });
        Self {
            size: size.or(specified),
            plain_line_feeds,
        }
    }
}

/// Sets the window size of a terminal.
///
/// # Errors
/// `terminal` is not a terminal.
pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size).doing(|| "set the window size")?)
}

/// Puts a mount with a parent under `/`, so that `pivot_root` is possible in an initramfs. Changes
/// nothing where it is possible already. To be called by PID 1 before it mounts anything.
///
/// # Errors
/// The root directory cannot be mounted again.
pub fn make_root_pivotable() -> Result<()> {
    init::make_root_pivotable()?;
    Ok(())
}
