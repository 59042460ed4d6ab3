//! Further processes of a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_spec::Side;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::channel::{self, Join, Report, Task, TerminalModes};
use crate::config::{NAMESPACES, Process};
use crate::container::stage::{Child, Stage, converse, socket_pair, spawn};
use crate::container::{Container, Stdio, signal_number};
use crate::error::{Context, Failure};
use crate::sys;
use crate::{Error, Result};

/// How long the init stage of a further process may be silent. What it does takes no file system but
/// the container's own, and the workload may stop it.
const EXEC_PATIENCE: Duration = Duration::from_secs(15);

/// What [`Container::exec`] needs.
#[derive(Debug)]
pub struct ExecOptions {
    /// A process object of the specification, as JSON.
    pub process: Vec<u8>,
    /// The standard streams.
    pub stdio: Stdio,
    /// What the program finds from number 3 on.
    pub descriptors: Vec<OwnedFd>,
    /// The cgroup to start in, relative to the container's; empty for the container's own.
    pub cgroup: PathBuf,
    /// As [`crate::CreateOptions::init_exe`].
    pub init_exe: PathBuf,
}

/// A process that was executed in a container. Dropping it leaves the process running.
#[derive(Debug)]
pub struct Exec {
    pid: u32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

impl Exec {
    /// The process id in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pidfd of the process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What was passed over with a warning.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The controlling end of the process's terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// The signal is not 1 to 64, or the process has ended.
    pub fn signal(&self, signal: u32) -> Result<()> {
        let number = signal_number(signal)?;
        Ok(
            sys::pidfd_send_signal(&self.pidfd, number)
                .doing(|| format!("send signal {signal}"))?,
        )
    }
}

impl Container {
    /// Executes a further program in the container, which is a child of the caller like the
    /// container's first process. Blocks until the program runs.
    ///
    /// # Errors
    /// The process object is refused, the container has no process, or a step failed; there is
    /// no process then.
    pub fn exec(&self, options: ExecOptions) -> Result<Exec> {
        self.begin_exec(options)?.finish()
    }

    /// The same in two steps, for a caller that has other things to do meanwhile: the process that is
    /// to become the program is in the container from the first one on, which can stop it.
    ///
    /// # Errors
    /// The process object is refused, or the container has no process.
    pub fn begin_exec(&self, options: ExecOptions) -> Result<Executing> {
        let checked = cloister_spec::check_process(&options.process, "process", Side::Guest)?;
        let mut process: Process = serde_json::from_value(checked.value)
            .map_err(|error| Failure::invalid(format!("process: {error}")))?;
        if process.terminal != matches!(options.stdio, Stdio::Terminal { .. }) {
            return Err(Failure::invalid(format!(
                "terminal is {}, the streams given are not for that",
                process.terminal
            ))
            .into());
        }
        let score = process.oom_score_adj.or(self.config.process.oom_score_adj);
        process.oom_score_adj = None;
        // What the process object leaves open is as for the container's first process (as in runc).
        let first = &self.config.process;
        process.scheduler = process.scheduler.or_else(|| first.scheduler.clone());
        process.io_priority = process.io_priority.or_else(|| first.io_priority.clone());
        let affinity = process.exec_cpu_affinity;
        process.exec_cpu_affinity = affinity.or_else(|| first.exec_cpu_affinity.clone());
        let linux = &self.config.linux;
        let namespaces = NAMESPACES
            .iter()
            // The process is born in the pid namespace.
            .filter(|(name, _)| *name != "pid" && linux.has_namespace(name))
            .fold(0, |flags, (_, flag)| flags | flag);
        let join = Join {
            id: self.id().to_owned(),
            terminal: TerminalModes::new(&options.stdio, process.console_size),
            process,
            seccomp: linux.seccomp.clone(),
            personality: linux.personality.clone(),
            namespaces,
            descriptors: options.descriptors.len(),
        };
        let container = self.pidfd().try_clone_to_owned().doing(|| "exec")?;
        let (channel, theirs) = socket_pair(EXEC_PATIENCE)?;
        let child = self.spawn(&options, &theirs)?;
        Ok(Executing {
            container,
            child,
            channel,
            join,
            descriptors: options.descriptors,
            score,
            warnings: checked.warnings,
        })
    }

    fn spawn(&self, options: &ExecOptions, channel: &OwnedFd) -> Result<Child> {
        let init = self.pidfd().try_clone_to_owned().doing(|| "exec")?;
        let own;
        let cgroup = if options.cgroup.as_os_str().is_empty() {
            self.cgroup.dir()
        } else {
            own = self.child_cgroup(&options.cgroup)?;
            &own
        };
        let stage = |cgroup| Stage {
            namespaces: 0,
            pid_namespace_of: Some(&init),
            wait_for_mappings: false,
            stdio: &options.stdio,
            init_exe: &options.init_exe,
            cgroup,
            channel,
        };
        match spawn(&stage(cgroup)) {
            Err(failure) if failure.errno == Some(libc::ESRCH) => Err(Error::State {
                id: self.id().to_owned(),
                state: "is not running",
            }),
            // The container has moved its processes further down, as init systems do: the new one
            // goes where its init process is (cgroup-v2.rst, "No Internal Process Constraint").
            Err(failure)
                if options.cgroup.as_os_str().is_empty()
                    && matches!(failure.errno, Some(libc::EBUSY | libc::EOPNOTSUPP)) =>
            {
                let cgroup = self.cgroup_of_init()?;
                Ok(spawn(&stage(&cgroup))?)
            }
            Err(failure) if failure.errno == Some(libc::EBUSY) => {
                Err(self.cannot_enter(&options.cgroup, Errno::BUSY).into())
            }
            result => Ok(result?),
        }
    }

    fn cgroup_of_init(&self) -> std::result::Result<OwnedFd, Failure> {
        let context = || "find the cgroup of the container's init process";
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid()));
        let text = text.doing(context)?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        // Seen from the root of this machine's hierarchy, in which the container's cgroup lies at
        // a place that ends like its path here.
        let name = format!("{}/", self.id());
        let below = path
            .and_then(|path| path.split_once(&name))
            .map(|(_, below)| below);
        self.child_cgroup(Path::new(below.unwrap_or(".")))
    }

    fn child_cgroup(&self, path: &Path) -> std::result::Result<OwnedFd, Failure> {
        let relative = match path.strip_prefix("/").unwrap_or(path) {
            path if path.as_os_str().is_empty() => Path::new("."),
            path => path,
        };
        rustix::fs::openat2(
            self.cgroup.dir(),
            relative,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|errno| match errno {
            Errno::XDEV => Failure::new(format!("{} is not a sub cgroup path", path.display())),
            errno => self.cannot_enter(path, errno),
        })
        .map_err(Failure::blamed_on_spec)
    }

    /// A cgroup below the container's that a process cannot be in. The words are runc's, which starts the process first.
    fn cannot_enter(&self, path: &Path, errno: Errno) -> Failure {
        let below = path.strip_prefix("/").unwrap_or(path);
        let file = self.cgroup.path().join(below).join("cgroup.procs");
        let context = format!(
            "error adding pid of the new process to cgroups {}",
            file.display()
        );
        Failure::system(context, errno)
    }
}

/// A process that is about to become a program in a container.
#[derive(Debug)]
pub struct Executing {
    /// The pidfd of the container's first process.
    container: OwnedFd,
    child: Child,
    channel: OwnedFd,
    join: Join,
    descriptors: Vec<OwnedFd>,
    score: Option<i32>,
    warnings: Vec<String>,
}

impl Executing {
    /// The process id in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        self.child.pid.cast_unsigned()
    }

    /// Waits for the execution of the program.
    ///
    /// # Errors
    /// A step failed, or the process was silent for too long; it has ended.
    pub fn finish(self) -> Result<Exec> {
        match self.follow() {
            Ok((terminal, mut warnings)) => {
                warnings.extend(self.warnings);
                Ok(Exec {
                    pid: self.child.pid.cast_unsigned(),
                    pidfd: self.child.pidfd,
                    terminal,
                    warnings,
                })
            }
            Err(failure) => {
                let failure = self.child.explain(failure);
                self.child.end();
                Err(failure.into())
            }
        }
    }

    /// Accompanies the process until its program runs.
    fn follow(&self) -> std::result::Result<(Option<OwnedFd>, Vec<String>), Failure> {
        let Self {
            child,
            channel,
            join,
            ..
        } = self;
        if let Some(score) = self.score {
            std::fs::write(
                format!("/proc/{}/oom_score_adj", child.pid),
                score.to_string(),
            )
            .doing(|| format!("oomScoreAdj: set to {score}"))?;
        }
        let task = Task::<(), _>::Exec(join);
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let fds = [&*descriptors, &[self.container.as_fd()]];
        let said = converse(channel, &task, fds, join.process.terminal)?;
        // The channel is closed by the execution, and by death.
        match channel::receive::<Report>(channel) {
            Ok(None) => Ok(said),
            Ok(Some(Report::Failed(failure))) => Err(failure),
            Ok(Some(Report::Created { .. })) => {
                Err(Failure::new("exec: the init stage spoke out of turn"))
            }
            Err(error) => Err(Failure::system("exec: wait for the execution", error)),
        }
    }
}
