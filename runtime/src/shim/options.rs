//! The runtime's options, as a caller of containerd gives them.
//!
//! They come as `runtimeoptions.v1.Options` from the CRI plugin and `ctr`, or in runc's form,
//! `containerd.runc.v1.Options`. What cannot be done is refused by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use super::callers::RuntimeOptions;

/// The file in a bundle that keeps the options, for whoever cleans up.
const FILE: &str = "cloister-options.json";
/// The file in a bundle that holds a configuration that came as text.
const CONFIG_FILE: &str = "cloister.toml";

const RUNTIME: &str = "runtimeoptions.v1.Options";
/// Before containerd 1.5.
const RUNTIME_BEFORE: &str = "cri.runtimeoptions.v1.Options";
const RUNC: &str = "containerd.runc.v1.Options";

/// What callers may choose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Where the state of containers is, in place of containerd's.
    pub(crate) root: Option<PathBuf>,
    /// The configuration file, in place of the machine's.
    pub(crate) config: Option<PathBuf>,
    /// Whether systemd makes cgroups, whatever their paths look like.
    pub(crate) systemd_cgroup: bool,
}

/// Why options cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    /// A message of another type.
    #[error("runtime options of type {0:?} are not supported: {RUNTIME} and {RUNC} are")]
    Type(String),
    /// The message is not what its type says.
    #[error("malformed runtime options of type {type_url}")]
    Malformed {
        /// The type.
        type_url: String,
        /// What the decoder says.
        source: protobuf::Error,
    },
    /// Nothing here can do it.
    #[error("runtime option {name} is not supported: {reason}")]
    Refused {
        /// The option's name.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// It could not be kept.
    #[error("cannot keep the runtime options in {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Whether a type is one of the options' forms.
pub(crate) fn is_known(type_url: &str) -> bool {
    [RUNTIME, RUNTIME_BEFORE, RUNC].contains(&name(type_url))
}

/// A type's name without the prefix that protobuf allows for.
fn name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

impl Options {
    /// Understands options; what is written in them goes into `bundle`.
    pub(crate) fn parse(given: Option<&Any>, bundle: &Path) -> Result<Self, OptionsError> {
        let Some(given) = given.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let malformed = |source| OptionsError::Malformed {
            type_url: given.type_url.clone(),
            source,
        };
        match name(&given.type_url) {
            RUNTIME | RUNTIME_BEFORE => {
                let options = RuntimeOptions::parse_from_bytes(&given.value).map_err(malformed)?;
                follow(options, bundle)
            }
            RUNC => {
                let options = oci::Options::parse_from_bytes(&given.value).map_err(malformed)?;
                follow_runcs(options)
            }
            _ => Err(OptionsError::Type(given.type_url.clone())),
        }
    }

    /// Keeps them beside the bundle's other files.
    pub(crate) fn keep(&self, bundle: &Path) -> Result<(), OptionsError> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self).unwrap_or_default();
        fs::write(&path, text).map_err(|source| OptionsError::Keep { path, source })
    }

    /// Those that were kept; the usual ones if none were.
    pub(crate) fn kept(bundle: &Path) -> Self {
        let text = fs::read(bundle.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

fn follow(given: RuntimeOptions, bundle: &Path) -> Result<Options, OptionsError> {
    let config = if !given.config_path.is_empty() {
        Some(PathBuf::from(given.config_path))
    } else if !given.config_body.is_empty() {
        let path = bundle.join(CONFIG_FILE);
        fs::write(&path, &given.config_body).map_err(|source| OptionsError::Keep {
            path: path.clone(),
            source,
        })?;
        Some(path)
    } else {
        None
    };
    Ok(Options {
        config,
        ..Options::default()
    })
}

fn follow_runcs(options: oci::Options) -> Result<Options, OptionsError> {
    // no_pivot_root and no_new_keyring ask for what a virtual machine gives anyway, and
    // task_api_address is where the sandbox's shim listens, which is found by the sandbox's name.
    let refused = [
        (
            !options.shim_cgroup.is_empty(),
            "ShimCgroup",
            "the shim stays in containerd's cgroup",
        ),
        (
            options.io_uid != 0 || options.io_gid != 0,
            "IoUid, IoGid",
            "the streams of a container are made in its virtual machine",
        ),
        (
            !options.binary_name.is_empty(),
            "BinaryName",
            "this shim runs cloister alone",
        ),
        (
            !options.criu_image_path.is_empty() || !options.criu_work_path.is_empty(),
            "CriuImagePath, CriuWorkPath",
            "containers are not checkpointed",
        ),
    ];
    if let Some((_, name, reason)) = refused.into_iter().find(|(is_given, ..)| *is_given) {
        return Err(OptionsError::Refused { name, reason });
    }
    Ok(Options {
        root: (!options.root.is_empty()).then(|| PathBuf::from(options.root)),
        config: None,
        systemd_cgroup: options.systemd_cgroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.to_vec(),
            ..Any::default()
        }
    }

    #[test]
    fn a_configuration_is_named_or_written() {
        let dir = tempfile::tempdir().unwrap();
        let parse = |any: Option<&Any>| Options::parse(any, dir.path());
        assert_eq!(parse(None).unwrap(), Options::default());
        let named = any(
            "types.containerd.io/runtimeoptions.v1.Options",
            b"\x12\x02/c\x20\x07",
        );
        assert_eq!(parse(Some(&named)).unwrap().config, Some("/c".into()));
        let written = any(RUNTIME, b"\x0a\x01x\x1a\x09vcpus = 2");
        let options = parse(Some(&written)).unwrap();
        let config = options.config.clone().unwrap();
        assert_eq!(fs::read_to_string(config).unwrap(), "vcpus = 2");
        options.keep(dir.path()).unwrap();
        assert_eq!(Options::kept(dir.path()), options);
        assert_eq!(Options::kept(Path::new("/nonexistent")), Options::default());
    }

    #[test]
    fn runcs_form_is_followed_as_far_as_it_goes() {
        let parse = |options: &oci::Options| {
            let any = any(RUNC, &options.write_to_bytes().unwrap());
            Options::parse(Some(&any), Path::new("/nonexistent"))
        };
        let options = oci::Options {
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            task_api_address: "unix:///s".into(),
            ..oci::Options::default()
        };
        let expected = Options {
            root: Some("/r".into()),
            config: None,
            systemd_cgroup: true,
        };
        assert_eq!(parse(&options).unwrap(), expected);
        let options = oci::Options {
            binary_name: "crun".into(),
            ..oci::Options::default()
        };
        assert_eq!(
            parse(&options).unwrap_err().to_string(),
            "runtime option BinaryName is not supported: this shim runs cloister alone"
        );
    }

    #[test]
    fn other_types_and_garbage_are_refused_by_name() {
        let parse = |type_url, value| {
            let given = any(type_url, value);
            Options::parse(Some(&given), Path::new("/nonexistent"))
        };
        let error = parse("kata.Options", b"").unwrap_err().to_string();
        assert!(
            error.starts_with("runtime options of type \"kata.Options\""),
            "{error}"
        );
        for type_url in [RUNTIME, RUNC] {
            let error = parse(type_url, &[0xff; 3]).unwrap_err();
            assert!(matches!(error, OptionsError::Malformed { .. }), "{error}");
        }
    }
}
