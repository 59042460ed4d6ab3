//! What can be set: the configuration file, the environment, the defaults.
//!
//! A key is looked for in the environment as `CLOISTER_<KEY>` and then in the file. `KEYS` is the
//! table of what there is; `docs/configuration.md` says the same to people, and a test compares.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use serde::{Deserialize, Serialize};

use crate::annotations::CHOOSABLE;
use crate::network;
use crate::paths::{DEFAULT_CONFIG, Install};

/// What a key holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    /// Texts; in the environment with commas between them.
    List,
}

/// Every key.
const KEYS: [(&str, Kind); 20] = [
    ("vmm", Kind::Text),
    ("fs", Kind::Text),
    ("kernel", Kind::Text),
    ("initramfs", Kind::Text),
    ("kernel_cmdline", Kind::Text),
    ("memory_mib", Kind::Number),
    ("max_memory_mib", Kind::Number),
    ("vcpus", Kind::Number),
    ("max_vcpus", Kind::Number),
    ("boot_timeout_s", Kind::Number),
    ("request_timeout_s", Kind::Number),
    ("jail_uid", Kind::Number),
    ("jail_gid", Kind::Number),
    ("network_receive_limit", Kind::Text),
    ("network_send_limit", Kind::Text),
    ("network_vhost", Kind::Text),
    ("default_apparmor_profile", Kind::Text),
    ("allowed_annotations", Kind::List),
    ("shim_version", Kind::Number),
    ("log_level", Kind::Text),
];

/// Guest memory unless told otherwise, in MiB.
const DEFAULT_MEMORY_MIB: u32 = 128;
/// How long the agent may take from the start of its virtual machine to its first word.
const DEFAULT_BOOT_TIMEOUT_S: u64 = 30;
/// How long the agent may take to answer.
const DEFAULT_REQUEST_TIMEOUT_S: u64 = 30;
/// `nobody` on Debian and Fedora alike: owns nothing.
const DEFAULT_JAIL_ID: u32 = 65534;
/// The versions of the shim's interface that it can have; the first is the usual one.
const SHIM_VERSIONS: [u8; 2] = [2, 3];
/// A day: longer waits are as good as none, and a deadline must stay representable.
const MAX_TIMEOUT_S: u64 = 86_400;

/// What becomes of an AppArmor profile that a caller asks for by itself, and that no user has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultProfile {
    /// It is passed over with a warning.
    #[default]
    Warn,
    /// It is refused as any other.
    Refuse,
}

/// The settings of one run of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The program that runs a virtual machine.
    pub vmm: PathBuf,
    /// The program that serves shared directories.
    pub fs: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest's initial file system.
    pub initramfs: PathBuf,
    /// Appended to the guest kernel's command line.
    pub kernel_cmdline: String,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Up to how much of it a virtual machine can grow, in MiB; `None` leaves it to this machine.
    pub max_memory_mib: Option<u32>,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Up to how many of them a virtual machine can grow; `None` leaves it to the container's limits.
    pub max_vcpus: Option<u8>,
    /// How long the agent may take from the start of its virtual machine to its first word.
    pub boot_timeout: Duration,
    /// How long the agent may take to answer.
    pub request_timeout: Duration,
    /// Who a virtual machine's process becomes.
    pub jail_uid: u32,
    /// Its group.
    pub jail_gid: u32,
    /// How much each interface of a virtual machine may receive, in bits a second.
    pub network_receive_limit: Option<u64>,
    /// How much each interface of a virtual machine may send, in bits a second.
    pub network_send_limit: Option<u64>,
    /// Whether this machine's kernel moves the packets of an interface without limits, where it can.
    pub network_vhost: bool,
    /// What becomes of a caller's own AppArmor profile.
    pub default_apparmor_profile: DefaultProfile,
    /// The keys that a container's annotations may set (`io.cloister.<key>`).
    pub allowed_annotations: Vec<String>,
    /// The version of its interface that the shim tells a containerd that does not say what it understands.
    pub shim_version: u8,
    /// What is logged, as [`LevelFilter`] writes it.
    pub log_level: String,
}

/// Why the settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A path that was set leads nowhere.
    #[error("no path: {:?}", .0)]
    Path(PathBuf, #[source] io::Error),
    /// The file is not TOML, or has a wrong key or value.
    #[error("configuration file {}: line {line}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where in it, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A variable of the environment has a wrong value.
    #[error("environment variable {name}={}: {message}", value.display())]
    Environment {
        /// The variable.
        name: String,
        /// Its value.
        value: OsString,
        /// What is wrong with it.
        message: &'static str,
    },
    /// A value is out of range.
    #[error("configuration key {key}: {message}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The installation cannot be found.
    #[error("cannot find out where cloister is installed")]
    Locate(#[source] io::Error),
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    vmm: Option<PathBuf>,
    fs: Option<PathBuf>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    kernel_cmdline: Option<String>,
    memory_mib: Option<u32>,
    max_memory_mib: Option<u32>,
    vcpus: Option<u8>,
    max_vcpus: Option<u8>,
    boot_timeout_s: Option<u64>,
    request_timeout_s: Option<u64>,
    jail_uid: Option<u32>,
    jail_gid: Option<u32>,
    network_receive_limit: Option<String>,
    network_send_limit: Option<String>,
    network_vhost: Option<String>,
    default_apparmor_profile: Option<String>,
    allowed_annotations: Option<Vec<String>>,
    shim_version: Option<u8>,
    log_level: Option<String>,
}

impl Config {
    /// Reads the settings. `named` is a file that somebody asked for and that must exist;
    /// without it `default` is read if it is there.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file or variable it is in.
    pub fn load(
        named: Option<&Path>,
        default: &Path,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(default);
        let file = match fs::read_to_string(path) {
            Ok(text) => parse(path, &text)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => File::default(),
            Err(e) => return Err(ConfigError::Read(path.to_owned(), e)),
        };
        let install = Install::locate().map_err(ConfigError::Locate)?;
        overlay(file, environment)?.resolve(&install)
    }

    /// Reads the settings of this process: of the file that `named` or `CLOISTER_CONFIG` names, or of the
    /// machine's, and of its environment.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn of_process(named: Option<PathBuf>) -> Result<Self, ConfigError> {
        let variable = || env::var_os("CLOISTER_CONFIG").map(PathBuf::from);
        let named = named.or_else(variable);
        let default = Path::new(DEFAULT_CONFIG);
        Self::load(named.as_deref(), default, |name| env::var_os(name))
    }
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let before = e.span().and_then(|span| text.get(..span.start));
        ConfigError::File {
            path: path.to_owned(),
            line: 1 + before.unwrap_or_default().matches('\n').count(),
            message: e.message().to_owned(),
        }
    })
}

/// Puts what the environment says over what the file says.
fn overlay(
    mut file: File,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<File, ConfigError> {
    for (key, kind) in KEYS {
        let name = format!("CLOISTER_{}", key.to_ascii_uppercase());
        let Some(value) = environment(&name) else {
            continue;
        };
        let wrong = |message| ConfigError::Environment {
            name: name.clone(),
            value: value.clone(),
            message,
        };
        let text = value.to_str().ok_or_else(|| wrong("not UTF-8"))?;
        let number = match kind {
            Kind::Text | Kind::List => 0,
            Kind::Number => text
                .parse::<u64>()
                .map_err(|_| wrong("not a whole number"))?,
        };
        let large = |_| wrong("too large");
        match key {
            "vmm" => file.vmm = Some(text.into()),
            "fs" => file.fs = Some(text.into()),
            "kernel" => file.kernel = Some(text.into()),
            "initramfs" => file.initramfs = Some(text.into()),
            "kernel_cmdline" => file.kernel_cmdline = Some(text.into()),
            "memory_mib" => file.memory_mib = Some(number.try_into().map_err(large)?),
            "max_memory_mib" => {
                file.max_memory_mib = Some(number.try_into().map_err(large)?);
            }
            "vcpus" => file.vcpus = Some(number.try_into().map_err(large)?),
            "max_vcpus" => file.max_vcpus = Some(number.try_into().map_err(large)?),
            "boot_timeout_s" => file.boot_timeout_s = Some(number),
            "request_timeout_s" => file.request_timeout_s = Some(number),
            "jail_uid" => file.jail_uid = Some(number.try_into().map_err(large)?),
            "jail_gid" => file.jail_gid = Some(number.try_into().map_err(large)?),
            "network_receive_limit" => file.network_receive_limit = Some(text.into()),
            "network_send_limit" => file.network_send_limit = Some(text.into()),
            "network_vhost" => file.network_vhost = Some(text.into()),
            "default_apparmor_profile" => file.default_apparmor_profile = Some(text.into()),
            "allowed_annotations" => {
                let keys = text.split(',').map(str::trim).filter(|key| !key.is_empty());
                file.allowed_annotations = Some(keys.map(Into::into).collect());
            }
            "shim_version" => file.shim_version = Some(number.try_into().map_err(large)?),
            _ => file.log_level = Some(text.into()),
        }
    }
    Ok(file)
}

impl File {
    fn resolve(self, install: &Install) -> Result<Config, ConfigError> {
        let log_level = self.log_level.unwrap_or_else(|| "info".into());
        if log_level.parse::<LevelFilter>().is_err() {
            return Err(ConfigError::Value {
                key: "log_level",
                message: format!(
                    "{log_level:?} given, one of off, error, warn, info, debug, trace possible"
                ),
            });
        }
        let network_vhost = match self.network_vhost.as_deref() {
            None | Some("auto") => true,
            Some("never") => false,
            Some(other) => {
                return Err(ConfigError::Value {
                    key: "network_vhost",
                    message: format!("{other:?} given, auto or never possible"),
                });
            }
        };
        let default_apparmor_profile = match self.default_apparmor_profile.as_deref() {
            None | Some("warn") => DefaultProfile::Warn,
            Some("refuse") => DefaultProfile::Refuse,
            Some(other) => {
                return Err(ConfigError::Value {
                    key: "default_apparmor_profile",
                    message: format!("{other:?} given, warn or refuse possible"),
                });
            }
        };
        let allowed_annotations = self.allowed_annotations.unwrap_or_default();
        if let Some(other) = allowed_annotations
            .iter()
            .find(|key| !CHOOSABLE.contains(&key.as_str()))
        {
            return Err(ConfigError::Value {
                key: "allowed_annotations",
                message: format!("{other:?} given, {} possible", CHOOSABLE.join(", ")),
            });
        }
        let shim_version = self.shim_version.unwrap_or(SHIM_VERSIONS[0]);
        if !SHIM_VERSIONS.contains(&shim_version) {
            return Err(ConfigError::Value {
                key: "shim_version",
                message: format!("{shim_version} given, 2 or 3 possible"),
            });
        }
        Ok(Config {
            vmm: absolute(self.vmm, install.vmm())?,
            fs: absolute(self.fs, install.fs())?,
            kernel: absolute(self.kernel, install.kernel())?,
            initramfs: absolute(self.initramfs, install.initramfs())?,
            kernel_cmdline: self.kernel_cmdline.unwrap_or_default(),
            memory_mib: self.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB),
            max_memory_mib: self.max_memory_mib,
            vcpus: self.vcpus.unwrap_or(1),
            max_vcpus: self.max_vcpus,
            boot_timeout: timeout(
                "boot_timeout_s",
                self.boot_timeout_s,
                DEFAULT_BOOT_TIMEOUT_S,
            )?,
            request_timeout: timeout(
                "request_timeout_s",
                self.request_timeout_s,
                DEFAULT_REQUEST_TIMEOUT_S,
            )?,
            jail_uid: self.jail_uid.unwrap_or(DEFAULT_JAIL_ID),
            jail_gid: self.jail_gid.unwrap_or(DEFAULT_JAIL_ID),
            network_receive_limit: bandwidth("network_receive_limit", self.network_receive_limit)?,
            network_send_limit: bandwidth("network_send_limit", self.network_send_limit)?,
            network_vhost,
            default_apparmor_profile,
            allowed_annotations,
            shim_version,
            log_level,
        })
    }
}

/// The monitor works in another directory than the command.
fn absolute(given: Option<PathBuf>, default: PathBuf) -> Result<PathBuf, ConfigError> {
    match given {
        Some(path) => std::path::absolute(&path).map_err(|e| ConfigError::Path(path, e)),
        None => Ok(default),
    }
}

fn timeout(key: &'static str, given: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    let seconds = given.unwrap_or(default);
    if !(1..=MAX_TIMEOUT_S).contains(&seconds) {
        return Err(ConfigError::Value {
            key,
            message: format!("{seconds} given, 1 to {MAX_TIMEOUT_S} possible"),
        });
    }
    Ok(Duration::from_secs(seconds))
}

fn bandwidth(key: &'static str, given: Option<String>) -> Result<Option<u64>, ConfigError> {
    let Some(text) = given else {
        return Ok(None);
    };
    let bits = network::bandwidth(&text).ok_or_else(|| ConfigError::Value {
        key,
        message: format!(
            "{text:?} given, bits a second possible as Kubernetes writes quantities, such as \"10M\", \
             from 1k to 1P"
        ),
    })?;
    Ok(Some(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path), Path::new("/nonexistent"), |name| {
            environment
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| OsString::from(v))
        })
    }

    #[test]
    fn defaults_hold_without_a_file() {
        let config = Config::load(None, Path::new("/nonexistent"), |_| None).unwrap();
        assert_eq!(config.memory_mib, DEFAULT_MEMORY_MIB);
        assert!(config.vmm.ends_with("libexec/cloister/cloister-vmm"));
        assert!(config.initramfs.ends_with("share/cloister/initramfs.cpio"));
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let path = Path::new("/nonexistent");
        let error = Config::load(Some(path), path, |_| None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the configuration file /nonexistent"
        );
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let config = load(
            "memory_mib = 64\nvcpus = 2\nvmm = \"/a\"",
            &[("CLOISTER_MEMORY_MIB", "96"), ("CLOISTER_VMM", "/b")],
        )
        .unwrap();
        assert_eq!((config.memory_mib, config.vcpus), (96, 2));
        assert_eq!(config.vmm, Path::new("/b"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, environment, expected) in [
            (
                "memory_mib = 1\nmemroy = 2",
                None,
                "line 2: unknown field `memroy`",
            ),
            (
                "vcpus = \"two\"",
                None,
                "line 1: invalid type: string \"two\"",
            ),
            ("vcpus = ", None, "line 1: "),
            ("vcpus = 256", None, "line 1: invalid value: integer `256`"),
            (
                "",
                Some(("CLOISTER_MEMORY_MIB", "many")),
                "environment variable CLOISTER_MEMORY_MIB=many: not a whole number",
            ),
            (
                "",
                Some(("CLOISTER_VCPUS", "256")),
                "environment variable CLOISTER_VCPUS=256: too large",
            ),
            (
                "boot_timeout_s = 0",
                None,
                "configuration key boot_timeout_s: 0 given",
            ),
            (
                "shim_version = 4",
                None,
                "configuration key shim_version: 4 given, 2 or 3 possible",
            ),
            (
                "log_level = \"loud\"",
                None,
                "configuration key log_level: \"loud\"",
            ),
            (
                "network_send_limit = \"10 Mbit\"",
                None,
                "configuration key network_send_limit: \"10 Mbit\" given, bits a second possible",
            ),
            (
                "network_vhost = \"always\"",
                None,
                "configuration key network_vhost: \"always\" given, auto or never possible",
            ),
            (
                "allowed_annotations = [\"vmm\"]",
                None,
                "configuration key allowed_annotations: \"vmm\" given, vcpus, memory_mib possible",
            ),
            (
                "default_apparmor_profile = \"load\"",
                None,
                "configuration key default_apparmor_profile: \"load\" given, warn or refuse possible",
            ),
        ] {
            let environment: Vec<_> = environment.into_iter().collect();
            let error = load(text, &environment).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(
                !expected.starts_with("line") || error.contains("config.toml"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_key_is_in_the_environment_in_the_file_and_in_the_documentation() {
        let page = include_str!("../../docs/configuration.md");
        for (key, kind) in KEYS {
            let value = match kind {
                Kind::Text if key == "log_level" => "\"warn\"",
                Kind::Text if key == "default_apparmor_profile" => "\"refuse\"",
                Kind::Text if key.ends_with("_limit") => "\"10M\"",
                Kind::Text if key == "network_vhost" => "\"never\"",
                Kind::Text => "\"/x\"",
                Kind::Number if key == "shim_version" => "3",
                Kind::Number => "33",
                Kind::List => "[\"vcpus\"]",
            };
            let from_file = load(&format!("{key} = {value}"), &[]).unwrap();
            let name = format!("CLOISTER_{}", key.to_ascii_uppercase());
            let from_environment =
                load("", &[(&name, value.trim_matches(['"', '[', ']']))]).unwrap();
            assert_eq!(from_file, from_environment, "{key}");
            assert_ne!(from_file, load("", &[]).unwrap(), "{key}");
            assert!(
                page.contains(&format!("`{key}`")),
                "{key} is not documented"
            );
        }
    }
}
