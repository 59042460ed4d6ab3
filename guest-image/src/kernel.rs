//! The guest kernel: Debian's source, our configuration, an ELF `vmlinux`.
//!
//! A build takes about twelve processor minutes, so its result is kept in the [cache](crate::cache) under
//! the digest of [everything that went into it](Inputs).

mod compile;
mod tools;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Making};
use crate::config::{ConfigError, Fragment};
use crate::digest;
use crate::elf::{self, ElfError};

pub use compile::CompileError;
pub use tools::ToolError;

/// The configuration that every kernel starts from.
pub const BASE_FRAGMENT: &str = include_str!("../kernel/config");
/// The Debian package that holds the source.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";
/// Where that package puts it.
pub const SOURCE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Raised when the way of building changes, so that kernels built the old way are not taken for the new.
const RECIPE: u32 = 2;

/// The name of a kernel in an entry of the cache and in an image.
pub const VMLINUX: &str = "vmlinux";
const DOT_CONFIG: &str = "config";
const INFO: &str = "kernel.json";

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The source is not there.
    #[error("kernel source {path} not found: it is in Debian's package {SOURCE_PACKAGE} (apt-get install {SOURCE_PACKAGE})", path = .0.display())]
    NoSource(PathBuf),
    /// A program or library that the build needs is not there, or does not work.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A fragment cannot be read.
    #[error("kernel configuration {path}", path = path.display())]
    Fragment {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A fragment is wrong, or was not obeyed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A step of the build failed.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// What came out is no kernel that a VM can start.
    #[error("the kernel that was built")]
    NotBootable(#[source] ElfError),
    /// A file of the build cannot be read or written.
    #[error("{path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Io {
        path: path.to_owned(),
        source,
    }
}

/// What to build from.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The tarball of the kernel source.
    pub source: PathBuf,
    /// Fragments that are laid over [`BASE_FRAGMENT`], in this order.
    pub variants: Vec<PathBuf>,
    /// How many compilers run at once.
    pub jobs: usize,
}

/// Everything that a kernel depends on. Another value in any field is another kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// The version of the steps that build it.
    pub recipe: u32,
    /// SHA-256 of the source tarball.
    pub source_sha256: String,
    /// SHA-256 of the options asked for (of the options alone: a reworded comment builds nothing).
    pub fragment_sha256: String,
    /// The compiler, as it names itself.
    pub compiler: String,
    /// The linker, as it names itself.
    pub linker: String,
}

impl Inputs {
    /// The key of this kernel in the cache.
    pub fn key(&self) -> String {
        let Self {
            recipe,
            source_sha256,
            fragment_sha256,
            compiler,
            linker,
        } = self;
        digest::of_bytes(
            format!("{recipe}\n{source_sha256}\n{fragment_sha256}\n{compiler}\n{linker}\n")
                .as_bytes(),
        )
    }
}

/// What is known of a kernel that was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// What `uname -r` says in the guest.
    pub release: String,
    /// The size of `vmlinux` in bytes.
    pub size: u64,
    /// SHA-256 of `vmlinux`.
    pub sha256: String,
    /// The physical address at which PVH boot enters it.
    pub pvh_entry: u64,
    /// SHA-256 of the complete configuration.
    pub config_sha256: String,
    /// The version of the Debian package that the source came from, where a package manager knows it.
    pub source_version: Option<String>,
    /// What it was built from.
    pub inputs: Inputs,
}

/// A kernel in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The ELF file.
    pub vmlinux: PathBuf,
    /// What it is.
    pub info: Info,
}

/// Gets the kernel of `recipe` from `cache`, after building it if it is not there. `progress` receives
/// lines for a person.
///
/// # Errors
///
/// The source, a tool or the cache is not usable, an option did not take effect, or the build failed.
pub fn obtain(
    recipe: &Recipe,
    cache: &Cache,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, KernelError> {
    let fragment = fragment(&recipe.variants)?;
    if !recipe.source.is_file() {
        return Err(KernelError::NoSource(recipe.source.clone()));
    }
    tools::check()?;
    let inputs = Inputs {
        recipe: RECIPE,
        source_sha256: cache.digest_of(&recipe.source)?,
        fragment_sha256: digest::of_bytes(fragment.to_string().as_bytes()),
        compiler: tools::version("gcc")?,
        linker: tools::version("ld")?,
    };
    let key = inputs.key();
    if let Some(kernel) = find(&cache.entry("kernel", &key), &inputs) {
        return Ok(kernel);
    }
    let making = cache.lock("kernel", &key, || {
        progress("kernel: waiting for another build of the same")
    })?;
    if let Some(kernel) = find(making.entry(), &inputs) {
        return Ok(kernel);
    }
    make(recipe, &fragment, inputs, &making, progress)
}

fn fragment(variants: &[PathBuf]) -> Result<Fragment, KernelError> {
    let mut fragment = Fragment::parse("guest-image/kernel/config", BASE_FRAGMENT)?;
    for path in variants {
        let text = fs::read_to_string(path).map_err(|source| KernelError::Fragment {
            path: path.clone(),
            source,
        })?;
        fragment.overlay(Fragment::parse(&path.display().to_string(), &text)?);
    }
    Ok(fragment)
}

/// The kernel in `entry`, if it is there, was built from `inputs`, and is undamaged.
fn find(entry: &Path, inputs: &Inputs) -> Option<Kernel> {
    let info: Info = serde_json::from_slice(&fs::read(entry.join(INFO)).ok()?).ok()?;
    let vmlinux = entry.join(VMLINUX);
    let (sha256, size) = digest::of_file(&vmlinux).ok()?;
    let same = info.inputs == *inputs && info.sha256 == sha256 && info.size == size;
    same.then_some(Kernel { vmlinux, info })
}

fn make(
    recipe: &Recipe,
    fragment: &Fragment,
    inputs: Inputs,
    making: &Making,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, KernelError> {
    let work = making.work()?;
    let (tree, complete) = (work.join("linux"), work.join("complete"));
    for directory in [&tree, &complete] {
        fs::create_dir(directory).map_err(io_error(directory))?;
    }
    let mut build = compile::Build::new(&tree, making.log(), progress)?;
    build.unpack(&recipe.source)?;
    build.configure(&fragment.to_string())?;
    let dot_config_path = tree.join(".config");
    let dot_config = fs::read_to_string(&dot_config_path).map_err(io_error(&dot_config_path))?;
    fragment.check(&dot_config)?;
    let release = build.compile(recipe.jobs)?;
    let vmlinux = complete.join(VMLINUX);
    let symbols = build.symbols()?;
    build.strip(&vmlinux)?;

    let mut bytes = fs::read(&vmlinux).map_err(io_error(&vmlinux))?;
    elf::mark_shareable(&mut bytes, &symbols).map_err(KernelError::NotBootable)?;
    fs::write(&vmlinux, &bytes).map_err(io_error(&vmlinux))?;
    let info = Info {
        release,
        size: bytes.len() as u64,
        sha256: digest::of_bytes(&bytes),
        pvh_entry: elf::pvh_entry(&bytes).map_err(KernelError::NotBootable)?,
        config_sha256: digest::of_bytes(dot_config.as_bytes()),
        source_version: tools::package_version(SOURCE_PACKAGE),
        inputs,
    };
    let mut json = serde_json::to_vec_pretty(&info)
        .map_err(io::Error::from)
        .map_err(io_error(&complete))?;
    json.push(b'\n');
    for (name, contents) in [(DOT_CONFIG, dot_config.as_bytes()), (INFO, &json)] {
        let path = complete.join(name);
        fs::write(&path, contents).map_err(io_error(&path))?;
    }
    making.finish(&complete)?;
    Ok(Kernel {
        vmlinux: making.entry().join(VMLINUX),
        info,
    })
}

#[cfg(test)]
mod tests;
