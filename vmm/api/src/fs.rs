//! The contract between a `cloister-fs` process and whoever runs it.
//!
//! A file server is started with one end of a `SOCK_SEQPACKET` socket pair as file descriptor
//! [`CONTROL_FD`](crate::CONTROL_FD) and nothing else but its standard streams; whatever else it
//! inherits it closes. It reads one [`Request`] and answers with one [`Reply`]:
//!
//! ```text
//!   owner                                        cloister-fs
//!     │ Serve{exports} + [vhost-user, export, …]      │
//!     │──────────────────────────────────────────────▶│  builds the shared tree, jails itself
//!     │                                        Ready  │
//!     │◀──────────────────────────────────────────────│  serves the vhost-user socket
//! ```
//!
//! The shared tree is a directory that holds every export under its name, in a mount namespace of
//! the server's own: the descriptors must come from the mount namespace that the server is started
//! in. The tree cannot be left, through a symbolic link or otherwise, and nothing of it outlives
//! the process.
//!
//! The server ends when the owner closes the control socket or the VMM closes the vhost-user
//! socket, whichever is first.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{API_VERSION, MAX_FDS};

/// The most exports of one server: the descriptors of a packet, less the vhost-user socket's.
pub const MAX_EXPORTS: usize = MAX_FDS - 1;
/// The most threads a server works with.
pub const MAX_THREADS: u8 = 64;
/// The longest name of a file.
const NAME_MAX: usize = 255;

/// From the owner to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Serve a tree. The first packet, and the only one. Beside it travel the server's end of a
    /// connected `AF_UNIX` stream socket that the VMM speaks vhost-user on, then one descriptor an
    /// export, in order; `O_PATH` suffices.
    Serve {
        /// What to share.
        config: ServeConfig,
    },
}

/// What a server shares, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Must equal [`API_VERSION`].
    pub api_version: u32,
    /// The entries of the shared tree's root.
    pub exports: Vec<Export>,
    /// How many requests are worked on at once, 1 to [`MAX_THREADS`]. Threads are started when
    /// there is work for them.
    pub threads: u8,
}

/// A directory, or a file of any kind but a symbolic link, in the root of the shared tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Its name there: one path component.
    pub name: String,
    /// Whether writes are refused with `EROFS`, in it and in every mount below it.
    pub readonly: bool,
    /// Whether its descriptor is a detached tree of mounts, which is moved to its place as it is, and
    /// not one that leads to the mounts to clone: the kernel clones no detached mount before Linux
    /// 6.15, and a clone of one whose ids are mapped cannot get mappings any more.
    pub detached: bool,
}

/// From the server to the owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The tree is built, the process is jailed, and the vhost-user socket is served.
    Ready,
    /// It cannot be; the process exits.
    Error {
        /// What failed, with its causes.
        message: String,
    },
}

/// Why a [`ServeConfig`] cannot be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ServeError {
    /// The two sides are of different builds.
    #[error("api_version: {got} given, this file server speaks {API_VERSION}")]
    Version {
        /// The version that was given.
        got: u32,
    },
    /// `threads` is out of range.
    #[error("threads: {got} given, 1 to {MAX_THREADS} possible")]
    Threads {
        /// The number that was given.
        got: u8,
    },
    /// There is nothing to share, or too much.
    #[error("exports: {got} given, 1 to {MAX_EXPORTS} possible")]
    Exports {
        /// The number that was given.
        got: usize,
    },
    /// A name is not a path component.
    #[error("exports[{index}].name: {name:?} is not a path component")]
    Name {
        /// Which export.
        index: usize,
        /// Its name.
        name: String,
    },
    /// Two exports have one name.
    #[error("exports[{index}].name: {name:?} is there twice")]
    Twice {
        /// Which export.
        index: usize,
        /// Its name.
        name: String,
    },
}

impl ServeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that does not hold, by name.
    pub fn validate(&self) -> Result<(), ServeError> {
        if self.api_version != API_VERSION {
            return Err(ServeError::Version {
                got: self.api_version,
            });
        }
        if !(1..=MAX_THREADS).contains(&self.threads) {
            return Err(ServeError::Threads { got: self.threads });
        }
        if !(1..=MAX_EXPORTS).contains(&self.exports.len()) {
            return Err(ServeError::Exports {
                got: self.exports.len(),
            });
        }
        let mut seen = HashSet::new();
        for (index, Export { name, .. }) in self.exports.iter().enumerate() {
            if !is_component(name) {
                let name = name.clone();
                return Err(ServeError::Name { index, name });
            }
            if !seen.insert(name) {
                let name = name.clone();
                return Err(ServeError::Twice { index, name });
            }
        }
        Ok(())
    }
}

/// Whether `name` names an entry of a directory and nothing else.
fn is_component(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= NAME_MAX
        && !name.bytes().any(|byte| byte == b'/' || byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ServeConfig {
        let export = |name: &str| Export {
            name: name.into(),
            readonly: false,
            detached: false,
        };
        ServeConfig {
            api_version: API_VERSION,
            exports: vec![export("rootfs"), export("resolv.conf")],
            threads: 4,
        }
    }

    #[test]
    fn a_plain_config_holds() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn each_field_is_checked_and_named() {
        type Change = fn(&mut ServeConfig);
        let cases: [(Change, &str); 10] = [
            (|c| c.api_version = 99, "api_version: 99"),
            (|c| c.threads = 0, "threads: 0"),
            (|c| c.threads = 65, "threads: 65"),
            (|c| c.exports.clear(), "exports: 0"),
            (
                |c| c.exports = vec![c.exports[0].clone(); 999],
                "exports: 999",
            ),
            (
                |c| c.exports[1].name = String::new(),
                "exports[1].name: \"\"",
            ),
            (
                |c| c.exports[0].name = "..".into(),
                "exports[0].name: \"..\"",
            ),
            (
                |c| c.exports[0].name = "a/b".into(),
                "exports[0].name: \"a/b\"",
            ),
            (
                |c| c.exports[0].name = "a\0".into(),
                "exports[0].name: \"a\\0\"",
            ),
            (
                |c| c.exports[1].name = "rootfs".into(),
                "exports[1].name: \"rootfs\" is there twice",
            ),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let request = Request::Serve { config: config() };
        let mut json = serde_json::to_value(request).unwrap();
        json["config"]["exports"][0]["follow"] = true.into();
        let error = serde_json::from_value::<Request>(json).unwrap_err();
        assert!(error.to_string().contains("follow"), "{error}");
    }
}
