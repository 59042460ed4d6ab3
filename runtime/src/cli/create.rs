//! `cloister create` and `cloister run`.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use cloister::annotations;
use cloister::bundle::{Bundle, BundleError};
use cloister::config::Config;
use cloister::id::ContainerId;
use cloister::launch::{Job, Launch, Report, Terminal};
use cloister::logger;
use cloister::monitor::{EXIT_LOST, vm_config};
use cloister::paths::{KVM, SPEC_FILE};
use cloister::state::StateDir;
use cloister::sys::SignalFd;

use super::args::{CreateOptions, RunOptions};
use super::spawn::{self, Monitor};
use super::terminal::RawTerminal;
use super::{Fatal, Globals, foreground, named_by, warn, writable};

/// What is done with a container once it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Create,
    Detached,
    Foreground,
}

pub(crate) fn create(
    globals: &Globals,
    options: &CreateOptions,
    preserved: Vec<OwnedFd>,
) -> Result<u8, Fatal> {
    let request = Request {
        options,
        mode: Mode::Create,
        keep: true,
        adopt: true,
    };
    request
        .launch(globals, preserved)
        .map_err(|e| e.context("cloister create failed".into()))
}

pub(crate) fn run(
    globals: &Globals,
    options: &RunOptions,
    preserved: Vec<OwnedFd>,
) -> Result<u8, Fatal> {
    let request = Request {
        options: &options.create,
        mode: if options.detach {
            Mode::Detached
        } else {
            Mode::Foreground
        },
        keep: options.keep || options.detach,
        adopt: !options.no_subreaper,
    };
    request
        .launch(globals, preserved)
        .map_err(|e| e.context("cloister run failed".into()))
}

struct Request<'a> {
    options: &'a CreateOptions,
    mode: Mode,
    /// Whether the state stays after the end.
    keep: bool,
    /// Whether orphans of the monitor become children of this process.
    adopt: bool,
}

impl Request<'_> {
    fn launch(&self, globals: &Globals, preserved: Vec<OwnedFd>) -> Result<u8, Fatal> {
        let options = self.options;
        refuse_listening()?;
        let id = ContainerId::new(&options.id)?;
        let bundle = load_bundle(options, &globals.root)?;
        warn(globals, SPEC_FILE, &bundle.warnings, &bundle.defaults)?;
        self.check_terminal(bundle.container.terminal)?;
        let config = annotations::apply(&globals.config, &bundle.container.annotations)?;
        vm_config(&config, &bundle.container)
            .context("the configuration makes no virtual machine")?;
        let pid_file = options.pid_file.as_deref().map(pid_file).transpose()?;
        parts_are_there(&config)?;

        let dir = StateDir::create(&globals.root, &id)?;
        let claimed = Claimed(Some(dir));
        let console_socket = options.console_socket.as_deref();
        let console_socket = console_socket.map(connect_console).transpose()?;
        // From here on signals are for the container, and none may end this process while the
        // terminal is raw. The monitor is started with signals as they were.
        let signals = match self.mode {
            Mode::Foreground => Some(SignalFd::block_all()?),
            Mode::Create | Mode::Detached => None,
        };
        let raw = match (self.mode, bundle.container.terminal) {
            (Mode::Foreground, true) => Some(RawTerminal::enter()?),
            _ => None,
        };
        let terminal = match (&raw, &console_socket) {
            (Some(raw), _) => {
                let (columns, rows) = raw.size()?;
                Terminal::Inherited { columns, rows }
            }
            (None, Some(_)) => Terminal::Socket,
            (None, None) => Terminal::None,
        };
        let pidfd_socket = options.pidfd_socket.as_deref();
        let pidfd_socket = pidfd_socket.map(connect_pidfd).transpose()?;
        let launch = Launch {
            root: globals.root.clone(),
            id: id.to_string(),
            bundle: bundle.dir,
            container: bundle.container,
            cgroup_driver: globals.cgroup_driver,
            terminal,
            detached: self.mode != Mode::Foreground,
            start: self.mode != Mode::Create,
            remove: !self.keep,
            pid_file,
            config,
            log_format: globals.log_format,
            timeline: globals.timeline.clone(),
            exec_ns: globals.exec_ns,
        };
        let log = globals.log.as_deref().map(logger::open).transpose()?;
        if self.adopt {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        let dir = claimed.keep()?;
        let job = Job::Container(Box::new(launch));
        let monitor = Monitor::start(
            dir,
            &job,
            &bundle.bytes,
            console_socket.as_ref(),
            log.as_ref(),
            &preserved,
        )?;
        // They are the monitor's now: whoever waits for their end must not wait for this process.
        drop(preserved);
        if let Some(socket) = &pidfd_socket
            && let Err(e) = spawn::send_pidfd(socket, monitor.pid(), spawn::PIDFD_OF_CONTAINER)
        {
            return Err(monitor.clean_up(e));
        }
        match (signals, self.mode) {
            (Some(signals), _) => foreground::follow(monitor, &signals, raw),
            (None, Mode::Create) => stands(monitor, &Report::Created),
            (None, _) => stands(monitor, &Report::Started),
        }
    }

    /// runc's rules, in runc's words.
    fn check_terminal(&self, terminal: bool) -> anyhow::Result<()> {
        let detaches = self.mode != Mode::Foreground;
        let has_socket = self.options.console_socket.is_some();
        if detaches && terminal && !has_socket {
            bail!("cannot allocate tty if cloister will detach without setting console socket");
        }
        if (!detaches || !terminal) && has_socket {
            bail!("cannot use console socket if cloister will not detach or allocate tty");
        }
        Ok(())
    }
}

/// A claimed directory that is given up again unless it is kept.
struct Claimed(Option<StateDir>);

impl Claimed {
    fn keep(mut self) -> anyhow::Result<StateDir> {
        self.0.take().ok_or_else(|| anyhow!("given up already"))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(dir) = &self.0
            && let Err(e) = dir.remove()
        {
            log::error!("{e:#}");
        }
    }
}

/// Before anything is started: what a virtual machine is made of can be used.
fn parts_are_there(config: &Config) -> anyhow::Result<()> {
    use rustix::fs::{Access, access};
    for (what, path, wanted) in [
        (
            "open the hypervisor",
            Path::new(KVM),
            Access::READ_OK | Access::WRITE_OK,
        ),
        ("open the guest kernel", &config.kernel, Access::READ_OK),
        ("open the initramfs", &config.initramfs, Access::READ_OK),
        ("start the VMM", &config.vmm, Access::EXEC_OK),
        ("start the file server", &config.fs, Access::EXEC_OK),
    ] {
        access(path, wanted).with_context(|| format!("cannot {what} {}", path.display()))?;
    }
    Ok(())
}

/// What cannot be held is refused by name.
pub(crate) fn refuse_listening() -> anyhow::Result<()> {
    // sd_listen_fds(3): they are meant for the process with this pid.
    let listen_pid = std::env::var("LISTEN_PID").ok();
    if listen_pid.is_some_and(|pid| pid == std::process::id().to_string()) {
        bail!(
            "LISTEN_FDS is not supported: a listening socket cannot be passed into a virtual machine; \
             let the container listen itself, and put systemd-socket-proxyd before it"
        );
    }
    Ok(())
}

/// Reads the bundle; what is wrong with where it is said to be is told with the option's name.
fn load_bundle(options: &CreateOptions, root: &Path) -> anyhow::Result<Bundle> {
    let bundle = Bundle::load(&options.bundle, options.config.as_deref(), root);
    let option = match &bundle {
        Err(BundleError::Directory(..)) => Some("--bundle"),
        Err(
            BundleError::NoSpec(..)
            | BundleError::Read(..)
            | BundleError::TooLarge(_)
            | BundleError::Spec(_),
        ) => options.config.as_ref().map(|_| "--config"),
        _ => None,
    };
    named_by(option, bundle)
}

pub(crate) fn pid_file(path: &Path) -> anyhow::Result<PathBuf> {
    writable(path)
        .with_context(|| format!("--pid-file: cannot write the pid file {}", path.display()))
}

pub(crate) fn connect_console(path: &Path) -> anyhow::Result<OwnedFd> {
    let socket = UnixStream::connect(path);
    let socket = socket.with_context(|| {
        format!(
            "--console-socket: cannot connect to the console socket {}",
            path.display()
        )
    })?;
    Ok(socket.into())
}

pub(crate) fn connect_pidfd(path: &Path) -> anyhow::Result<OwnedFd> {
    let socket = UnixStream::connect(path);
    let socket = socket.with_context(|| {
        format!(
            "--pidfd-socket: cannot connect to the pidfd socket {}",
            path.display()
        )
    })?;
    Ok(socket.into())
}

/// Waits until the container is as far as `wanted` says.
fn stands(monitor: Monitor, wanted: &Report) -> Result<u8, Fatal> {
    loop {
        match monitor.report() {
            Ok(Some(report)) if report == *wanted => return Ok(0),
            // On the way there, or, once started, already over: whoever waits for it will see.
            Ok(Some(Report::Created | Report::Started)) => {}
            Ok(Some(Report::Exited { .. })) => return Ok(0),
            Ok(Some(Report::Failed { message })) => {
                monitor.wait()?;
                return Err(anyhow!(message).into());
            }
            Ok(Some(Report::Lost { message })) => {
                monitor.wait()?;
                return Err(Fatal::new(EXIT_LOST, anyhow!(message)));
            }
            Ok(None) => {
                let cause = anyhow!("the container is given up");
                return Err(monitor.clean_up(cause));
            }
            Err(e) => return Err(monitor.clean_up(e)),
        }
    }
}
