//! `manifest.json`: what an image consists of, and what it was made from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{self, CacheError};
use crate::kernel;

/// The form of the manifest; raised when a reader of the old form would misread the new.
pub const FORMAT: u32 = 1;
/// The manifest's name in an image.
pub const FILE: &str = "manifest.json";

/// Why a manifest cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no manifest.
    #[error("{path} is not a manifest", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another version of this program wrote it.
    #[error("{path}: format {got}, this program reads format {FORMAT}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that it says.
        got: u32,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] CacheError),
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Is [`FORMAT`].
    pub format: u32,
    /// The version of this program.
    pub generator: String,
    /// The kernel: `vmlinux` beside the manifest.
    pub kernel: kernel::Info,
    /// The initramfs: `initramfs.cpio` beside the manifest.
    pub initramfs: Component,
    /// The agent, which is `/init` in the initramfs.
    pub agent: Component,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Manifest {
    /// Reads the manifest of the image in `directory`.
    ///
    /// # Errors
    ///
    /// It is missing, malformed, or of another format.
    pub fn read(directory: &Path) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }

        let path = directory.join(FILE);
        let malformed = |source| ManifestError::Malformed {
            path: path.clone(),
            source,
        };
        let bytes = fs::read(&path).map_err(|source| ManifestError::Read {
            path: path.clone(),
            source,
        })?;
        // The format first: a manifest of another one may have other fields.
        let Format { format } = serde_json::from_slice(&bytes).map_err(malformed)?;
        if format != FORMAT {
            return Err(ManifestError::Format { path, got: format });
        }
        serde_json::from_slice(&bytes).map_err(malformed)
    }

    /// Writes the manifest of the image in `directory`.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), ManifestError> {
        let path = directory.join(FILE);
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|source| ManifestError::Malformed {
                path: path.clone(),
                source,
            })?;
        json.push(b'\n');
        Ok(cache::write_atomically(&path, &json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            generator: "0.1.0".into(),
            kernel: kernel::Info {
                release: "6.12.0-cloister".into(),
                size: 1,
                sha256: "k".into(),
                pvh_entry: 0x100_0000,
                config_sha256: "c".into(),
                source_version: Some("6.12.0-1".into()),
                inputs: kernel::Inputs {
                    recipe: 1,
                    source_sha256: "s".into(),
                    fragment_sha256: "f".into(),
                    compiler: "gcc".into(),
                    linker: "ld".into(),
                },
            },
            initramfs: Component {
                size: 2,
                sha256: "i".into(),
            },
            agent: Component {
                size: 3,
                sha256: "a".into(),
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        manifest().write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest());
        // Nothing else is left in the directory.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(matches!(
            Manifest::read(dir.path()),
            Err(ManifestError::Read { .. })
        ));
        fs::write(&path, r#"{"format": 2, "what": "else"}"#).unwrap();
        assert_eq!(
            Manifest::read(dir.path()).unwrap_err().to_string(),
            format!("{}: format 2, this program reads format 1", path.display())
        );
        for text in ["", "{}", r#"{"format": 1, "generator": "0.1.0"}"#] {
            fs::write(&path, text).unwrap();
            assert!(matches!(
                Manifest::read(dir.path()),
                Err(ManifestError::Malformed { .. })
            ));
        }
    }
}
