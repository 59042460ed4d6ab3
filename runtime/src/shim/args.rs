//! What containerd says on the command line: Go's form of flags, then an action.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the shim is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Serve: what `start` runs in the background.
    Serve,
    /// Start a shim, or find the one of the sandbox, and tell its address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Tell what the runtime can do.
    Info,
    /// Print the version.
    Version,
    /// Print how the program is called.
    Help,
}

/// The flags of the shim contract, and the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    /// containerd's gRPC socket.
    pub(crate) address: String,
    /// The container, or the sandbox.
    pub(crate) id: String,
    /// The bundle; without it the working directory.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
    /// Where to listen, in place of a socket whose name the shim makes up.
    pub(crate) socket: Option<PathBuf>,
}

/// What cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    /// The value is no Unicode.
    #[error("{0:?} is not UTF-8")]
    Encoding(OsString),
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The flag needs a value.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// The flag is no number and no text.
    #[error("invalid boolean value {value:?} for -{flag}")]
    NoBoolean {
        /// The flag.
        flag: String,
        /// What was given.
        value: String,
    },
    /// No such action.
    #[error("unknown action {0:?}: start and delete are known")]
    Action(String),
}

/// How the program is called.
pub(crate) const USAGE: &str = "\
containerd-shim-cloister-v2: runs containerd's containers in virtual machines

It is started by containerd, for the runtime io.containerd.cloister.v2; nobody else needs to call it.

Usage: containerd-shim-cloister-v2 [FLAGS] ACTION

Actions:
  start     start the shim of a container or a sandbox, and print its address
  delete    remove what a shim that died has left

Flags:
  -namespace NAME        containerd's namespace
  -id ID                 the container or the sandbox
  -address PATH          containerd's socket
  -bundle PATH           the bundle, if it is not the working directory
  -publish-binary PATH   accepted: events go over TTRPC_ADDRESS
  -socket PATH           the shim's socket, if it is not to be one of its own choice; who
                         names the same one shares a shim
  -debug                 log what helps to find a fault
  -info                  print what the runtime can do, as a protobuf message
  -v, -version           print the version
";

impl Args {
    /// Reads the words after the program's name.
    pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut this = Self {
            action: Action::Serve,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
            socket: None,
        };
        let mut words = words.into_iter().map(text);
        let mut asked = None;
        while let Some(word) = words.next() {
            let word = word?;
            // Go's flag package: one dash or two, and nothing after the first word without one.
            let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
                this.action = match &*word {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(ArgsError::Action(word)),
                };
                break;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => this.debug = boolean(name, given)?,
                "info" if boolean(name, given.clone())? => asked = Some(Action::Info),
                "v" | "version" if boolean(name, given.clone())? => asked = Some(Action::Version),
                "h" | "help" => asked = Some(Action::Help),
                "info" | "v" | "version" => {}
                "namespace" | "address" | "id" | "bundle" | "publish-binary" | "socket" => {
                    let value = match given {
                        Some(value) => value,
                        None => words
                            .next()
                            .ok_or_else(|| ArgsError::NoValue(name.to_owned()))??,
                    };
                    match name {
                        "namespace" => this.namespace = value,
                        "address" => this.address = value,
                        "id" => this.id = value,
                        "bundle" if !value.is_empty() => this.bundle = Some(value.into()),
                        // The shim leaves the directory that it is started in.
                        "socket" if !value.is_empty() => {
                            let path = value.strip_prefix("unix://").unwrap_or(&value);
                            let socket = std::path::absolute(path);
                            this.socket = Some(socket.unwrap_or_else(|_| path.into()));
                        }
                        _ => {}
                    }
                }
                _ => return Err(ArgsError::Unknown(name.to_owned())),
            }
        }
        this.action = asked.unwrap_or(this.action);
        Ok(this)
    }
}

fn text(word: OsString) -> Result<String, ArgsError> {
    word.into_string().map_err(ArgsError::Encoding)
}

/// A flag without a value is set.
fn boolean(flag: &str, value: Option<String>) -> Result<bool, ArgsError> {
    let Some(value) = value else {
        return Ok(true);
    };
    cloister::text::truth(&value).ok_or_else(|| ArgsError::NoBoolean {
        flag: flag.to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_containerd_says_is_understood() {
        let args = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id x -debug start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!(args.namespace, "k8s.io");
        assert_eq!(args.id, "x");
        assert!(args.debug);
        let args = parse("--namespace=n --id=x -bundle /b delete").unwrap();
        assert_eq!(args.action, Action::Delete);
        assert_eq!(args.bundle, Some(PathBuf::from("/b")));
        assert_eq!(args.socket, None);
        let args = parse("-socket /s/x -id x start").unwrap();
        assert_eq!(args.socket, Some(PathBuf::from("/s/x")));
        let args = parse("-socket unix:///s/x -id x start").unwrap();
        assert_eq!(args.socket, Some(PathBuf::from("/s/x")));
        let args = parse("-socket= -id x start").unwrap();
        assert_eq!(args.socket, None);
        assert_eq!(parse("-id x").unwrap().action, Action::Serve);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(
            parse("-info=false -id x start").unwrap().action,
            Action::Start
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, expected) in [
            (
                "-shape round start",
                "flag provided but not defined: -shape",
            ),
            ("-id", "flag needs an argument: -id"),
            (
                "-debug=maybe start",
                "invalid boolean value \"maybe\" for -debug",
            ),
            (
                "-id x stop",
                "unknown action \"stop\": start and delete are known",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), expected);
        }
    }
}
