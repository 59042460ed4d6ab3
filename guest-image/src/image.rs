//! A whole image: kernel, initramfs and manifest in one directory.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::cache::{self, CacheError};
use crate::digest;
use crate::initramfs::{Archive, InitramfsError};
use crate::kernel::{Kernel, VMLINUX};
use crate::manifest::{Component, FORMAT, Manifest, ManifestError};

/// The initramfs's name in an image.
pub const INITRAMFS: &str = "initramfs.cpio";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read, or the directory not be made.
    #[error("{path}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The initramfs cannot be packed.
    #[error("initramfs from {agent}", agent = agent.display())]
    Initramfs {
        /// The agent.
        agent: PathBuf,
        /// Why.
        source: InitramfsError,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] CacheError),
    /// The manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Packs `agent` into the initramfs `output`; returns what went in and what came out.
///
/// # Errors
///
/// `agent` cannot be read or cannot run in a guest, or `output` cannot be written.
pub fn initramfs(agent: &Path, output: &Path) -> Result<(Component, Component), ImageError> {
    let program = fs::read(agent).map_err(io_error(agent))?;
    let packed = Component {
        size: program.len() as u64,
        sha256: digest::of_bytes(&program),
    };
    let archive = Archive::guest(program).map_err(|source| ImageError::Initramfs {
        agent: agent.to_owned(),
        source,
    })?;
    cache::create_atomically(output, |file| {
        let mut out = BufWriter::new(file);
        archive.write_to(&mut out)?;
        out.flush()
    })?;
    let (sha256, size) = digest::of_file(output).map_err(io_error(output))?;
    Ok((packed, Component { size, sha256 }))
}

/// Writes the image of `kernel` and `agent` into `directory`, which is made if it is missing. The manifest is
/// written last, so it never describes files that are not there.
///
/// # Errors
///
/// As [`initramfs`]; or the kernel cannot be copied.
pub fn build(kernel: &Kernel, agent: &Path, directory: &Path) -> Result<Manifest, ImageError> {
    fs::create_dir_all(directory).map_err(io_error(directory))?;
    let (agent, initramfs) = initramfs(agent, &directory.join(INITRAMFS))?;
    let mut vmlinux = fs::File::open(&kernel.vmlinux).map_err(io_error(&kernel.vmlinux))?;
    cache::create_atomically(&directory.join(VMLINUX), |file| {
        io::copy(&mut vmlinux, file).map(|_| ())
    })?;
    let manifest = Manifest {
        format: FORMAT,
        generator: env!("CARGO_PKG_VERSION").into(),
        kernel: kernel.info.clone(),
        initramfs,
        agent,
    };
    manifest.write(directory)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::static_program;
    use crate::kernel::{Info, Inputs};

    #[test]
    fn an_image_is_what_its_manifest_says_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("agent"), static_program()).unwrap();
        fs::write(at("kernel"), "kernel").unwrap();
        let kernel = Kernel {
            vmlinux: at("kernel"),
            info: Info {
                release: "6.12.0-cloister".into(),
                size: 6,
                sha256: digest::of_bytes(b"kernel"),
                pvh_entry: 0x100_0000,
                config_sha256: "c".into(),
                source_version: None,
                inputs: Inputs {
                    recipe: 1,
                    source_sha256: "s".into(),
                    fragment_sha256: "f".into(),
                    compiler: "gcc".into(),
                    linker: "ld".into(),
                },
            },
        };
        let first = build(&kernel, &at("agent"), &at("new/first")).unwrap();
        let second = build(&kernel, &at("agent"), &at("second")).unwrap();
        assert_eq!(first, second);
        assert_eq!(Manifest::read(&at("second")).unwrap(), second);
        for name in [VMLINUX, INITRAMFS, crate::manifest::FILE] {
            let read = |directory: &str| fs::read(at(directory).join(name)).unwrap();
            assert_eq!(read("new/first"), read("second"), "{name}");
        }
        for (name, size, sha256) in [
            (VMLINUX, first.kernel.size, &first.kernel.sha256),
            (INITRAMFS, first.initramfs.size, &first.initramfs.sha256),
        ] {
            let bytes = fs::read(at("second").join(name)).unwrap();
            assert_eq!(
                (bytes.len() as u64, &digest::of_bytes(&bytes)),
                (size, sha256),
                "{name}"
            );
        }
        assert_eq!(first.agent.sha256, digest::of_bytes(&static_program()));
    }

    #[test]
    fn a_bad_agent_leaves_no_initramfs() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join(INITRAMFS);
        let error = initramfs(Path::new("/proc/self/exe"), &output).unwrap_err();
        assert_eq!(error.to_string(), "initramfs from /proc/self/exe");
        let error = initramfs(Path::new("/nonexistent/agent"), &output).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/agent");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
