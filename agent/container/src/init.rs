//! The init stage: the caller's executable, executed again inside the new namespaces.
//!
//! It has one thread and nothing of the caller's but its standard streams and the channel. From the
//! first line to `execve` it is the process that becomes the container's program, so it never forks
//! but for the hooks of the start.
//! The order of the steps is runc's, which images and profiles rely on.

mod copy_up;
mod devices;
mod hooks;
mod mounts;
mod path;
mod procfs;
mod program;
mod rootfs;
mod scheduling;
mod user;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode};
use rustix::net::{AddressFamily, SocketType};

use crate::channel::{self, Join, Report, START, Setup, Task};
use crate::config::{CLONE_NEWTIME, Config, Personality, Process, Seccomp, TimeOffsets};
use crate::error::{Context, Failure};
use crate::seccomp::Filter;
use crate::sys;
use hooks::Hooks;
use procfs::Procfs;
use rootfs::Terminal;

/// The name under which the init stage is executed.
pub(crate) const NAME: &std::ffi::CStr = c"cloister-init";

/// Whether this process was started as the init stage of a container.
pub fn is_init_stage() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| name.as_encoded_bytes() == NAME.to_bytes())
}

/// Builds the container around this process and executes its program; returns only on failure.
///
/// For a process that [`is_init_stage`], before anything else.
pub fn main() -> ExitCode {
    let Ok(mut channel) = sys::take_channel() else {
        // Not started by `Container::create`: nobody listens.
        return ExitCode::FAILURE;
    };
    let Err(failure) = run(&mut channel);
    // If the caller is gone there is nobody to tell.
    let _ = channel::send(&channel, &Report::Failed(failure));
    ExitCode::FAILURE
}

fn run(channel: &mut OwnedFd) -> Result<Infallible, Failure> {
    let task: Task<Setup, Join> = channel::receive(channel)
        .doing(|| "receive the container")?
        .ok_or_else(|| Failure::new("receive the container: the caller has gone"))?;
    match task {
        Task::Create(setup) => create(channel, &setup),
        Task::Exec(join) => exec(channel, &join),
    }
}

/// Puts the program's descriptors where it finds them: before anything else is opened, which then
/// gets other numbers.
fn place_descriptors(channel: &mut OwnedFd, count: usize) -> Result<(), Failure> {
    if count == 0 {
        return Ok(());
    }
    let context = || "receive the descriptors";
    let fds = channel::receive_fds(channel, count).doing(context)?;
    sys::place(channel, fds).doing(context)
}

/// Builds a container and becomes its first process.
fn create(channel: &mut OwnedFd, setup: &Setup) -> Result<Infallible, Failure> {
    place_descriptors(channel, setup.descriptors)?;
    let count = 1 + setup.bind_sources.len() + setup.joins.len();
    let mut fds = channel::receive_fds(channel, count)
        .doing(|| "receive the mounts")?
        .into_iter();
    let rootfs = fds
        .next()
        .ok_or_else(|| Failure::new("receive the mounts: no root"))?;
    let sources = fds
        .by_ref()
        .take(setup.bind_sources.len())
        .map(Some)
        .collect();
    let config = &setup.config;
    for (pidfd, &namespace) in fds.zip(&setup.joins) {
        sys::setns(&pidfd, namespace).doing(|| {
            let kind = crate::config::namespace_name(namespace);
            format!("linux.namespaces: join the {kind} namespace of another container")
        })?;
    }

    // Modes that are asked for are the modes that are made.
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().doing(|| "create a session")?;
    session_keyring(&setup.id)?;
    let procfs = Procfs::mount().doing(|| "mount procfs")?;
    namespaces(config, &setup.joins, &procfs)?;
    let mut warnings = Vec::new();
    let terminal = rootfs::build(setup, rootfs, sources, &procfs, &mut warnings)?;
    drop(procfs);
    if let Some(terminal) = terminal {
        take_terminal(channel, terminal)?;
    }
    set_names(config)?;
    let program = Program {
        process: &config.process,
        seccomp: config.linux.seccomp.as_ref(),
        personality: config.linux.personality.as_ref(),
        first_of: Some(setup),
        descriptors: setup.descriptors,
    };
    become_program(channel, &program, warnings)
}

/// Joins a container and becomes a further process of it.
fn exec(channel: &mut OwnedFd, join: &Join) -> Result<Infallible, Failure> {
    // The container sees this process, and must not look into it (CVE-2016-9962). Executing the
    // program ends that.
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(not_dumpable).doing(|| "hide from the container")?;
    place_descriptors(channel, join.descriptors)?;
    let affinity = join.process.exec_cpu_affinity.as_ref();
    if let Some(affinity) = affinity {
        scheduling::affinity_before(affinity)?;
    }
    let fds = channel::receive_fds(channel, 1).doing(|| "receive the container")?;
    let container = fds
        .first()
        .ok_or_else(|| Failure::new("receive the container: no process"))?;
    sys::setns(container, join.namespaces).doing(|| "join the container's namespaces")?;
    if join.namespaces & libc::CLONE_NEWUSER != 0 {
        sys::become_root().doing(|| "become user 0 of the container")?;
    }
    rustix::process::setsid().doing(|| "create a session")?;
    session_keyring(&join.id)?;
    if join.process.terminal {
        let root = path::open_outside(Path::new("/")).doing(|| "open /")?;
        let root = path::Root::new(root);
        let (controller, terminal) = devices::terminal(&root, join.terminal)?;
        let terminal = Terminal {
            controller,
            terminal,
        };
        take_terminal(channel, terminal)?;
    }
    if let Some(affinity) = affinity {
        scheduling::affinity_after(affinity)?;
    }
    let program = Program {
        process: &join.process,
        seccomp: join.seccomp.as_ref(),
        personality: join.personality.as_ref(),
        first_of: None,
        descriptors: join.descriptors,
    };
    become_program(channel, &program, Vec::new())
}

/// The program that the stage becomes.
struct Program<'a> {
    process: &'a Process,
    seccomp: Option<&'a Seccomp>,
    personality: Option<&'a Personality>,
    /// The container it is the first program of; that waits for its start.
    first_of: Option<&'a Setup>,
    /// How many descriptors it has from number 3 on.
    descriptors: usize,
}

/// Gives up what the program must not have, and executes it: when told to, or at once.
fn become_program(
    channel: &OwnedFd,
    program: &Program<'_>,
    mut warnings: Vec<String>,
) -> Result<Infallible, Failure> {
    let process = program.process;
    let args = process
        .args
        .iter()
        .map(|arg| user::c_string("process.args", arg))
        .collect::<Result<Vec<_>, _>>()?;
    let env = user::environment(process)?;
    let filter = program.seccomp.map(Filter::compile).transpose()?;
    user::own_stdio(process.user.uid)?;
    user::set_limits(&process.rlimits)?;
    scheduling::apply(process)?;
    if let Some(personality) = program.personality {
        scheduling::set_personality(personality)?;
    }
    let setup = program.first_of;
    let hooks = setup.map(|setup| Hooks::prepare(setup, &env)).transpose()?;
    rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    // Before the filter, which may know the call and refuse it. What is opened from here on is closed
    // by exec on its own.
    sys::close_on_exec().doing(|| "close descriptors")?;
    let mut filter = filter.as_ref();
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing(|| "process.noNewPrivileges")?;
    } else if let Some(filter) = filter.take() {
        // Takes CAP_SYS_ADMIN, so before the capabilities go.
        filter.load()?;
    }
    user::become_user(process, &mut warnings)?;
    let name = process.args.first().map_or("", String::as_str);
    let path = program::find(name, &env)?;

    channel::send(channel, &Report::Created { warnings }).doing(|| "report")?;
    if setup.is_some() {
        let mut byte = [0];
        let started = channel::read_full(channel, &mut byte).doing(|| "wait for the start")?;
        if started == 0 || byte != [START] {
            return Err(Failure::new("wait for the start: the caller has gone"));
        }
    }
    // A hook that does not read what it is told must not end this process: SIGPIPE is still ignored.
    hooks.flatten().map_or(Ok(()), Hooks::run)?;
    // After the hooks, which must not have them.
    sys::keep_on_exec(program.descriptors).doing(|| "leave descriptors to the program")?;
    sys::reset_signals().doing(|| "reset signals")?;
    if let Some(filter) = filter {
        // Needs no privilege: as close to the program as possible.
        filter.load()?;
    }
    let error = sys::exec(&path, &args, &env);
    Err(Failure::system(format!("exec {}", path.to_string_lossy()), error).blamed_on_spec())
}

/// A session keyring of the container's own, or it could read the caller's.
fn session_keyring(id: &str) -> Result<(), Failure> {
    let name = user::c_string("id", &format!("_ses.{id}"))?;
    match sys::new_session_keyring(&name) {
        // A kernel without keys has none to protect.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.doing(|| "create a session keyring"),
    }
}

/// The namespaces that clone3 cannot give, and what there is to set up in the others.
fn namespaces(config: &Config, joins: &[i32], procfs: &Procfs) -> Result<(), Failure> {
    let linux = &config.linux;
    let creates = |kind, flag| linux.has_namespace(kind) && !joins.contains(&flag);
    if creates("cgroup", libc::CLONE_NEWCGROUP) {
        // After the process was placed: its cgroup becomes the root of the namespace.
        sys::unshare(libc::CLONE_NEWCGROUP).doing(|| "create a cgroup namespace")?;
    }
    if creates("time", CLONE_NEWTIME) {
        // Entered by execve; the offsets can be set until then (time_namespaces(7)).
        sys::unshare(CLONE_NEWTIME).doing(|| "create a time namespace")?;
        if let Some(offsets) = &linux.time_offsets {
            set_time_offsets(offsets, procfs)?;
        }
    }
    if creates("network", libc::CLONE_NEWNET) {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
            .doing(|| "set the loopback interface up")?;
        sys::loopback_up(&socket).doing(|| "set the loopback interface up")?;
    }
    Ok(())
}

fn set_time_offsets(offsets: &TimeOffsets, procfs: &Procfs) -> Result<(), Failure> {
    let path = format!("{}/timens_offsets", rustix::process::getpid());
    for (clock, offset) in [
        ("monotonic", offsets.monotonic),
        ("boottime", offsets.boottime),
    ] {
        if let Some(offset) = offset {
            let line = format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
            procfs
                .write(Path::new(&path), line.as_bytes())
                .doing(|| format!("linux.timeOffsets.{clock}"))
                .map_err(Failure::blamed_on_spec)?;
        }
    }
    Ok(())
}

fn set_names(config: &Config) -> Result<(), Failure> {
    if !config.hostname.is_empty() {
        rustix::system::sethostname(config.hostname.as_bytes()).doing(|| "hostname")?;
    }
    if !config.domainname.is_empty() {
        rustix::system::setdomainname(config.domainname.as_bytes()).doing(|| "domainname")?;
    }
    Ok(())
}

/// Makes the terminal the standard streams and the controlling terminal, and sends its other end away.
fn take_terminal(channel: &OwnedFd, terminal: Terminal) -> Result<(), Failure> {
    let what = || "process.terminal";
    channel::send_fds(channel, &[&terminal.controller]).doing(what)?;
    rustix::process::ioctl_tiocsctty(&terminal.terminal).doing(what)?;
    rustix::stdio::dup2_stdin(&terminal.terminal).doing(what)?;
    rustix::stdio::dup2_stdout(&terminal.terminal).doing(what)?;
    rustix::stdio::dup2_stderr(&terminal.terminal).doing(what)
}

pub(crate) use path::clean;

/// A detached copy of the mount at a path of the caller's, with `recursive` of everything below it.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    mounts::clone_tree(CWD, path, recursive)
}

/// A file on a read-only mount of its own.
pub(crate) fn read_only_clone(file: &OwnedFd) -> io::Result<OwnedFd> {
    let mount = mounts::clone_tree(file, "", false)?;
    sys::mount_setattr(&mount, &sys::MountAttr::new(mounts::READ_ONLY, 0), false)?;
    Ok(mount)
}

/// See [`crate::make_root_pivotable`].
pub(crate) fn make_root_pivotable() -> Result<(), Failure> {
    let what = || "mount the root directory again";
    // procfs need not be mounted yet.
    let mountinfo = Procfs::mount()
        .and_then(|procfs| {
            procfs.read(Path::new(&format!(
                "{}/mountinfo",
                rustix::process::getpid()
            )))
        })
        .doing(|| "read mountinfo")?;
    if has_parent(&mountinfo) {
        return Ok(());
    }
    let root = mounts::clone_tree(CWD, "/", true).doing(what)?;
    let slash = path::open_outside(Path::new("/")).doing(what)?;
    mounts::attach(&root, &slash).doing(what)?;
    rustix::process::fchdir(&root).doing(what)?;
    rustix::process::chroot(".").doing(what)
}

/// Whether the mount at `/` has a parent (proc_pid_mountinfo(5): id, parent, device, root, mount
/// point). The first mount of a namespace is its own.
fn has_parent(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next(), fields.next());
        fields.nth(2) == Some("/") && id != parent
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_initial_root_is_its_own_parent() {
        let initial = "1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:21 / /proc rw - proc proc rw\n";
        assert!(!super::has_parent(initial));
        assert!(super::has_parent(
            "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
        ));
    }
}
