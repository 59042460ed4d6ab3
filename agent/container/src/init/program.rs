//! Finding the program, with the errors that runc gives (Go's os/exec.LookPath).

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::error::{Failure, reason};

/// Finds what `name` executes: a path if there is a slash in it, else a file in PATH.
pub(crate) fn find(name: &str, env: &[CString]) -> Result<CString, Failure> {
    let failure = |text: String, errno: Option<Errno>| Failure {
        message: format!("exec: {name:?}: {text}"),
        errno: errno.map(Errno::raw_os_error),
        invalid: true,
    };
    let c_path =
        |path: &str| CString::new(path).map_err(|_| failure("contains a NUL".into(), None));
    if name.contains('/') {
        return match check(name) {
            Ok(()) => c_path(name),
            Err((Problem::Stat, errno)) => Err(failure(
                format!("stat {name}: {}", text(errno)),
                Some(errno),
            )),
            Err((Problem::File, errno)) => Err(failure(text(errno), Some(errno))),
        };
    }
    let path = env
        .iter()
        .find_map(|entry| entry.to_str().ok()?.strip_prefix("PATH="));
    for dir in path
        .unwrap_or_default()
        .split(':')
        .filter(|_| path.is_some_and(|p| !p.is_empty()))
    {
        // An empty entry is the working directory, which nothing is executed from by name alone.
        let candidate = if dir.is_empty() {
            format!("./{name}")
        } else {
            format!("{dir}/{name}")
        };
        if check(&candidate).is_ok() {
            if !candidate.starts_with('/') {
                let text = "cannot run executable found relative to current directory";
                return Err(failure(text.into(), None));
            }
            return c_path(&candidate);
        }
    }
    Err(failure(
        "executable file not found in $PATH".into(),
        Some(Errno::NOENT),
    ))
}

enum Problem {
    Stat,
    File,
}

fn check(path: &str) -> Result<(), (Problem, Errno)> {
    let stat = rustix::fs::stat(path).map_err(|errno| (Problem::Stat, errno))?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err((Problem::File, Errno::ISDIR));
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // A system call filter that is older than faccessat2. The execution will tell.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::NOSYS | Errno::PERM) => Err((Problem::File, Errno::ACCESS)),
        result => result.map_err(|errno| (Problem::File, errno)),
    }
}

fn text(errno: Errno) -> String {
    reason(&errno.into())
}
