//! The directory trees that the host shares over virtio-fs.
//!
//! A share is mounted when a container first names it, at `<root>/<tag>`, and stays. The host's
//! server may present file systems mounted inside the tree as mounts of their own: a path may lead
//! across them.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use cloister_protocol::agent::SharedPath;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// virtio-v1.3 §5.11.4: the tag field of a file system device is 36 bytes.
const MAX_TAG: usize = 36;

/// Why a shared path cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// The request is at fault.
    #[error("{field}: {tag:?} is not the tag of a share")]
    Tag {
        /// The field of the request.
        field: String,
        /// What was given.
        tag: String,
    },
    /// The request is at fault.
    #[error("{field}: {path:?} must be relative, without \"..\"")]
    Path {
        /// The field of the request.
        field: String,
        /// What was given.
        path: String,
    },
    /// The guest could not do it.
    #[error("cannot mount share {tag:?}")]
    Mount {
        /// The share.
        tag: String,
        /// Why.
        source: io::Error,
    },
    /// The path leads nowhere, or out of the share.
    #[error("{field}: cannot open {path:?} of share {tag:?}")]
    Open {
        /// The field of the request.
        field: String,
        /// The share.
        tag: String,
        /// Relative to it.
        path: String,
        /// Why.
        source: Errno,
    },
}

/// Where shares are mounted.
#[derive(Debug)]
pub(crate) struct Shares {
    root: PathBuf,
}

impl Shares {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The path in this guest of a path in a share; `field` names the part of the request it came
    /// in. Symbolic links are the container's business, so the host resolves them beforehand and
    /// none is followed here.
    pub(crate) fn resolve(&self, field: &str, shared: &SharedPath) -> Result<PathBuf, ShareError> {
        let tag = &shared.tag;
        if !is_tag(tag) {
            return Err(ShareError::Tag {
                field: format!("{field}.tag"),
                tag: tag.clone(),
            });
        }
        let relative = Path::new(&shared.path);
        let plain = |component| matches!(component, Component::Normal(_) | Component::CurDir);
        if !relative.components().all(plain) || shared.path.contains('\0') {
            return Err(ShareError::Path {
                field: format!("{field}.path"),
                path: shared.path.clone(),
            });
        }
        let share = self.mounted(tag).map_err(|source| ShareError::Mount {
            tag: tag.clone(),
            source,
        })?;
        let inside = if shared.path.is_empty() {
            "."
        } else {
            shared.path.as_str()
        };
        let found = File::open(&share)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .and_then(|share| {
                openat2(
                    share,
                    inside,
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
                )
            });
        match found {
            Ok(_) => Ok(share.join(relative)),
            Err(source) => Err(ShareError::Open {
                field: format!("{field}.path"),
                tag: tag.clone(),
                path: shared.path.clone(),
                source,
            }),
        }
    }

    /// Mounts the share unless it is mounted.
    fn mounted(&self, tag: &str) -> io::Result<PathBuf> {
        let target = self.root.join(tag);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&target)?;
        let status = statx(CWD, &target, AtFlags::empty(), StatxFlags::empty())?;
        if !status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            mount(tag, &target, "virtiofs", MountFlags::empty(), None)?;
        }
        Ok(target)
    }
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(plain) && tag != "." && tag != ".."
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn shared(tag: &str, path: &str) -> SharedPath {
        SharedPath {
            tag: tag.into(),
            path: path.into(),
            ..SharedPath::default()
        }
    }

    #[test]
    fn bad_tags_and_paths_are_refused_by_field() {
        let shares = Shares::new("/nonexistent".into());
        let long = "x".repeat(37);
        for tag in ["", ".", "..", "a/b", "a b", "a\0", long.as_str()] {
            let error = shares.resolve("rootfs", &shared(tag, "x")).unwrap_err();
            assert!(error.to_string().starts_with("rootfs.tag: "), "{error}");
        }
        for path in ["/etc", "../x", "a/../../x", "a\0b"] {
            let error = shares.resolve("rootfs", &shared("t", path)).unwrap_err();
            assert!(error.to_string().starts_with("rootfs.path: "), "{error}");
        }
    }

    #[test]
    fn a_path_inside_a_mounted_share_is_found_and_a_link_is_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("tag");
        std::fs::create_dir(&root).unwrap();
        let _mount = TestMount::tmpfs(&root);
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("/etc", root.join("out")).unwrap();

        let shares = Shares::new(base.path().to_path_buf());
        let found = |path| shares.resolve("rootfs", &shared("tag", path));
        assert_eq!(found("a/b").unwrap(), root.join("a/b"));
        assert_eq!(found("").unwrap(), root.join(""));
        assert!(matches!(
            found("missing"),
            Err(ShareError::Open {
                source: Errno::NOENT,
                ..
            })
        ));
        assert!(matches!(
            found("out/passwd"),
            Err(ShareError::Open {
                source: Errno::LOOP,
                ..
            })
        ));
    }

    struct TestMount<'a>(&'a Path);

    impl<'a> TestMount<'a> {
        fn tmpfs(target: &'a Path) -> Self {
            mount("tmpfs", target, "tmpfs", MountFlags::empty(), None).unwrap();
            Self(target)
        }
    }

    impl Drop for TestMount<'_> {
        fn drop(&mut self) {
            rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}
