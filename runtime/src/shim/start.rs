//! `start`: a shim for a container, or the one of its pod, and its address.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use cloister::config::Config;
use command_fds::{CommandFdExt, FdMapping};
use rustix::thread::CoreSchedulingScope;
use sha2::{Digest, Sha256};

use super::args::Args;
use super::bootstrap::{INPUT_MAX, Input};
use super::group::Brief;
use super::options::Options;
use super::paths;

/// Where the socket is found by the shim.
pub(crate) const LISTENER: i32 = 3;
/// The file in the bundle that containerd before 1.7 reads the address from.
const ADDRESS_FILE: &str = "address";
/// The file in the bundle with the shim's pid.
const PID_FILE: &str = "shim.pid";
/// The environment variable with containerd's ttrpc socket.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// The environment variable by which containerd asks for core scheduling, as its setting `sched_core` has it.
const SCHED_CORE: &str = "SCHED_CORE";

/// What is read from standard input, unless a person started the program.
pub(crate) fn input() -> anyhow::Result<Input> {
    let stdin = io::stdin();
    let mut bytes = Vec::new();
    if !rustix::termios::isatty(&stdin) {
        let mut stdin = stdin.lock().take(INPUT_MAX);
        stdin.read_to_end(&mut bytes).context("standard input")?;
    }
    Ok(Input::parse(&bytes)?)
}

/// Starts a shim, or finds one, and prints its address.
pub(crate) fn start(mut args: Args) -> anyhow::Result<()> {
    let input = input()?;
    let mut sockets = None;
    let mut events = None;
    if let Some(params) = &input.params {
        // The message goes before the flags.
        let take = |field: &mut String, value: &str| {
            if !value.is_empty() {
                value.clone_into(field);
            }
        };
        take(&mut args.id, &params.instance_id);
        take(&mut args.namespace, &params.namespace);
        take(&mut args.address, &params.containerd_grpc_address);
        // Levels below that of information are more.
        args.debug |= params.log_level.value() < 0;
        sockets.clone_from(&params.socket_dir);
        events =
            Some(params.containerd_ttrpc_address.clone()).filter(|address| !address.is_empty());
    }
    check(&args)?;
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("the bundle")?,
    };
    let mut options = Options::default();
    if let Some(given) = &input.options {
        // For a sandbox, whose creation does not tell them again.
        options = Options::parse(Some(given), &bundle)?;
        options.keep(&bundle)?;
    }
    let version = Config::of_process(options.config)?.shim_version;
    let brief = Brief::of(&bundle).with_context(|| bundle.display().to_string())?;
    let group = brief.group(&args.id);
    let sockets = paths::sockets(sockets.as_deref().filter(|dir| !dir.is_empty()));
    let socket = socket_path(&sockets, &args, group);
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        let pid = match serve(&args, events.as_deref(), &bundle, listener) {
            Ok(pid) => pid,
            Err(e) => {
                // Nobody listens there.
                let _ = fs::remove_file(&socket);
                return Err(e);
            }
        };
        keep(&bundle.join(PID_FILE), &pid.to_string())?;
        if let Err(e) = adjust_oom_score(pid) {
            log::warn!("the shim's oom_score_adj stays as it is: {e}");
        }
    }
    keep(&bundle.join(ADDRESS_FILE), &address)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&input.answer(&address, version))?;
    Ok(stdout.flush()?)
}

/// What every action needs.
pub(crate) fn check(args: &Args) -> anyhow::Result<()> {
    cloister::id::ContainerId::new(&args.id).context("-id")?;
    if args.namespace.is_empty() || args.namespace.contains('/') || args.namespace == ".." {
        bail!("-namespace {:?} is no name", args.namespace);
    }
    Ok(())
}

/// The socket of the shim of a group: that which the caller names, or a name that another containerd of this machine
/// does not make.
pub(crate) fn socket_path(sockets: &Path, args: &Args, group: &str) -> PathBuf {
    if let Some(socket) = &args.socket {
        return socket.clone();
    }
    let name = Sha256::digest(format!("{}/{}/{group}", args.address, args.namespace));
    sockets.join(format!("{name:x}"))
}

/// Listens at a socket; `None` if a shim does already.
fn listen(socket: &Path) -> anyhow::Result<Option<UnixListener>> {
    let context = || format!("cannot listen at {}", socket.display());
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    for _ in 0..2 {
        match UnixListener::bind(socket) {
            Ok(listener) => return Ok(Some(listener)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e).with_context(context),
        }
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            // Another has just taken it away.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(context),
        }
        // A connection to a file that is no socket is refused, too; that one is somebody's.
        let found = fs::symlink_metadata(socket).with_context(context)?;
        if !found.file_type().is_socket() {
            bail!("{}: there is something else", context());
        }
        // A shim that died has left it.
        fs::remove_file(socket).with_context(context)?;
    }
    bail!("{}: others take it away", context());
}

/// Is the shim, at a socket that the caller names.
pub(crate) fn serve_at(args: &Args, socket: &Path) -> anyhow::Result<()> {
    check(args)?;
    share_cores_with_nobody()?;
    let taken = || format!("a shim listens at {}", socket.display());
    let listener = listen(socket)?.with_context(taken)?;
    let served = super::serve::serve(args, listener.into());
    if served.is_err() {
        // Nobody listens there; at an ordinary end it is gone already.
        let _ = fs::remove_file(socket);
    }
    served
}

/// Starts the shim itself.
fn serve(
    args: &Args,
    events: Option<&str>,
    bundle: &Path,
    listener: UnixListener,
) -> anyhow::Result<u32> {
    share_cores_with_nobody()?;
    let program = std::env::current_exe().context("the shim's program")?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id])
        .args(["-address", &args.address])
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What a terminal or a service manager sends to containerd's group is not for it.
        .process_group(0);
    if args.debug {
        command.arg("-debug");
    }
    if let Some(events) = events {
        command.env(TTRPC_ADDRESS, events);
    }
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(listener),
            child_fd: LISTENER,
        }])
        .context("the shim's socket")?;
    let child = command.spawn().context("cannot start the shim")?;
    Ok(child.id())
}

/// If containerd asks for it, gives this process, and so the shim and all that comes from it, the VMM's threads among
/// them, a cookie of core scheduling of its own: no other process is run by a thread of a core whose other thread runs one of these
/// (Documentation/admin-guide/hw-vuln/core-scheduling.rst of Linux). As runc's shim, it fails where the kernel does
/// not do it; that one's scope is the process group, of which containerd makes this process the only member.
fn share_cores_with_nobody() -> anyhow::Result<()> {
    if std::env::var_os(SCHED_CORE).is_none_or(|asked| asked.is_empty()) {
        return Ok(());
    }
    let own = rustix::process::getpid();
    rustix::thread::create_core_scheduling_cookie(own, CoreSchedulingScope::ThreadGroup).context(
        "SCHED_CORE is set, but the kernel refuses prctl PR_SCHED_CORE: it needs CONFIG_SCHED_CORE and a processor with \
         more than one thread a core",
    )
}

/// Writes a file that is there whole or not at all.
fn keep(path: &Path, text: &str) -> anyhow::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.persist(path).map_err(|e| e.error)?;
        io::Result::Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The shim is a little more expendable than containerd.
fn adjust_oom_score(pid: u32) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    let own: i32 = own.trim().parse().map_err(io::Error::other)?;
    let score = (own + 1).min(1000);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_over_from_the_dead_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s/x");
        let first = listen(&socket).unwrap().unwrap();
        assert!(listen(&socket).unwrap().is_none());
        drop(first);
        assert!(listen(&socket).unwrap().is_some());
    }

    #[test]
    fn sockets_differ_by_containerd_namespace_and_group() {
        let args = |line: &str| Args::parse(line.split(' ').map(Into::into)).unwrap();
        let path = |line: &str, group| socket_path(Path::new("/s"), &args(line), group);
        let one = path("-address a -namespace n -id x start", "g");
        assert_eq!(one, path("-address a -namespace n -id y start", "g"));
        assert_ne!(one, path("-address b -namespace n -id x start", "g"));
        assert_ne!(one, path("-address a -namespace m -id x start", "g"));
        assert_ne!(one, path("-address a -namespace n -id x start", "h"));
        assert_eq!(one.as_os_str().len(), 3 + 64);
        assert_eq!(path("-socket /t/u -id x start", "g"), Path::new("/t/u"));
    }

    #[test]
    fn what_is_no_dead_shims_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = format!("{:#}", listen(&file).unwrap_err());
        assert!(error.contains("there is something else"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        let other = dir.path().join("other");
        let _datagrams = std::os::unix::net::UnixDatagram::bind(&other).unwrap();
        listen(&other).unwrap_err();
        assert!(other.exists());
        // A dead one's is taken, a live one's is not.
        let dead = dir.path().join("dead");
        drop(UnixListener::bind(&dead).unwrap());
        let listener = listen(&dead).unwrap();
        assert!(listener.is_some());
        assert!(listen(&dead).unwrap().is_none());
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for line in ["-namespace a/b -id x", "-namespace n -id ../x", "-id x"] {
            let args = Args::parse(line.split(' ').map(Into::into)).unwrap();
            check(&args).unwrap_err();
        }
    }
}
