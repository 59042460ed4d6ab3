//! Sharing further directories with a virtual machine that runs.
//!
//! The file server has given up what it takes to mount anything. So whoever adds a container to
//! its virtual machine clones the mounts in its own namespace, and attaches the clones below the
//! root of the server's:
//!
//! ```text
//!   host                                   namespace of cloister-fs
//!   /var/lib/…/rootfs  ──clone──▶ ──move──▶ /j12-345-rootfs
//! ```
//!
//! The names begin with a prefix that belongs to one monitor, so that nobody's are taken and
//! whoever cleans up after a monitor that was killed finds them.

use std::io;
use std::os::fd::OwnedFd;

use cloister_vmm_api::fs::Export;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::process::ProcessId;
use crate::sys;

/// What the server does not need of a mount, as in its own tree.
const RESTRICTED: u64 = libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// What all names of a monitor's exports begin with.
pub(crate) fn prefix(monitor: ProcessId) -> String {
    format!("j{}-{}-", monitor.pid, monitor.start_time)
}

/// Shares `exports`, each what the descriptor at the same place leads to, through a file server.
/// After an error nothing more is shared than before.
pub(crate) fn attach(
    server: ProcessId,
    exports: Vec<Export>,
    sources: Vec<OwnedFd>,
    prefix: String,
) -> io::Result<()> {
    let clones = exports
        .iter()
        .zip(&sources)
        .map(|(export, source)| clone(export, source))
        .collect::<io::Result<Vec<_>>>()?;
    inside(server, move |root| {
        let writable = writable(root)?;
        let mut result = Ok(());
        for (export, (clone, is_directory)) in exports.iter().zip(&clones) {
            result = place(root, &writable, &export.name, clone, *is_directory);
            if result.is_err() {
                break;
            }
        }
        if result.is_err()
            && let Err(e) = remove(root, &writable, &prefix)
        {
            log::warn!("cannot take the container's directories away: {e}");
        }
        result
    })
}

/// Takes away everything whose name begins with `prefix`. A server that is gone shares nothing.
pub(crate) fn detach(server: ProcessId, prefix: String) -> io::Result<()> {
    if !server.alive() {
        return Ok(());
    }
    inside(server, move |root| {
        let writable = writable(root)?;
        remove(root, &writable, &prefix)
    })
}

/// Clones the mounts that a descriptor leads to, or takes the clone that it is; tells whether it is a
/// directory.
fn clone(export: &Export, source: &OwnedFd) -> io::Result<(OwnedFd, bool)> {
    let stat = statat(source, c"", AtFlags::EMPTY_PATH)?;
    let read_only = match export.readonly {
        true => libc::MOUNT_ATTR_RDONLY,
        false => 0,
    };
    let attributes = RESTRICTED | read_only;
    let clone = if export.detached {
        sys::set_mount_attributes(source, attributes, 0, libc::MS_PRIVATE, true)?;
        source.try_clone()?
    } else {
        sys::clone_mounts(source, c"", attributes)?
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok((clone, is_directory))
}

/// Does something in the mount namespace of the server, on a thread that then ends.
fn inside<T: Send + 'static>(
    server: ProcessId,
    work: impl FnOnce(&OwnedFd) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the file server is gone");
    let server = server.open()?.ok_or_else(gone)?;
    let thread = std::thread::Builder::new()
        .name("attach".into())
        .spawn(move || {
            sys::own_directories()?;
            sys::join(&server, libc::CLONE_NEWNS)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(CWD, c"/", flags, Mode::empty())?;
            work(&root)
        })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
}

/// The server's root, which it cannot write to, where this process can.
fn writable(root: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(root, c"", flags)?;
    sys::set_mount_attributes(&clone, 0, libc::MOUNT_ATTR_RDONLY, 0, false)?;
    Ok(clone)
}

fn place(
    root: &OwnedFd,
    writable: &OwnedFd,
    name: &str,
    clone: &OwnedFd,
    is_directory: bool,
) -> io::Result<()> {
    if is_directory {
        mkdirat(writable, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(writable, name, flags, Mode::from_raw_mode(0o644))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(clone, c"", root, name, flags)?)
}

fn remove(root: &OwnedFd, writable: &OwnedFd, prefix: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(root, c".", flags, Mode::empty())?;
    let names: Vec<_> = rustix::fs::Dir::read_from(&listed)?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| name.to_bytes().starts_with(prefix.as_bytes()))
        .collect();
    for name in names {
        let path = [b"/", name.to_bytes()].concat();
        match unmount(path.as_slice(), UnmountFlags::DETACH) {
            // A place in which nothing was mounted yet.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        match unlinkat(writable, &*name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => unlinkat(writable, &*name, AtFlags::empty())?,
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn open_source(path: &std::path::Path) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    #[test]
    fn directories_and_files_come_and_go_in_a_namespace_of_another() {
        if !rustix::process::geteuid().is_root() {
            println!("not root: nothing tested");
            return;
        }
        // A process with a read-only tmpfs for its root, as the server has.
        let base = tempfile::tempdir().unwrap();
        let script = format!(
            "mount -t tmpfs none {0} && mkdir {0}/old && mount -o remount,bind,ro {0} && cd {0} && \
             pivot_root . old && echo ready && read wait",
            base.path().display()
        );
        let mut server = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let id = ProcessId::of(server.id().cast_signed()).unwrap();

        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("file"), "text").unwrap();
        let export = |name: &str, readonly| Export {
            name: name.into(),
            readonly,
            detached: false,
        };
        let exports = vec![export("p-dir", false), export("p-file", true)];
        let sources = || {
            vec![
                open_source(source.path()).unwrap(),
                open_source(&source.path().join("file")).unwrap(),
            ]
        };
        let names = || -> Vec<String> {
            let root = format!("/proc/{}/root", id.pid);
            let mut names: Vec<_> = std::fs::read_dir(root)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        attach(id, exports.clone(), sources(), "p-".into()).unwrap();
        assert_eq!(names(), ["old", "p-dir", "p-file"]);
        let text = std::fs::read_to_string(format!("/proc/{}/root/p-dir/file", id.pid)).unwrap();
        assert_eq!(text, "text");
        let file = format!("/proc/{}/root/p-file", id.pid);
        let error = std::fs::write(file, "other").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        // A name that is taken: nothing of the second attempt stays.
        let twice = vec![export("q-dir", false), export("p-file", false)];
        attach(id, twice, sources(), "q-".into()).unwrap_err();
        assert_eq!(names(), ["old", "p-dir", "p-file"]);
        detach(id, "p-".into()).unwrap();
        assert_eq!(names(), ["old"]);
        server.kill().unwrap();
        server.wait().unwrap();
        detach(id, "p-".into()).unwrap();
    }
}
