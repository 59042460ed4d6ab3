//! `cloister-guest-image`: builds what a guest starts from.
//!
//! - `build` makes a whole image: `vmlinux`, `initramfs.cpio` and `manifest.json` in one directory;
//! - `kernel` makes the kernel alone, in the cache, and prints its path;
//! - `initramfs` packs an agent.
//!
//! Progress goes to standard error, results to standard output.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use cloister_guest_image::cache::Cache;
use cloister_guest_image::image;
use cloister_guest_image::kernel::{self, Kernel, Recipe, SOURCE_TARBALL};

/// Builds what a Cloister guest starts from.
#[derive(Debug, Parser)]
#[command(name = "cloister-guest-image", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes vmlinux, initramfs.cpio and manifest.json in one directory.
    Build {
        /// The agent: a static x86-64 program.
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// The directory, made if it is missing.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Builds the kernel if it is not in the cache, and prints the path of its vmlinux.
    Kernel {
        #[command(flatten)]
        kernel: KernelArgs,
    },
    /// Packs the agent into an initramfs.
    Initramfs {
        /// The agent: a static x86-64 program.
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// The archive.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
struct KernelArgs {
    /// Where kernels are kept [default: $XDG_CACHE_HOME/cloister, else ~/.cache/cloister].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The kernel source.
    #[arg(long, value_name = "TARBALL", default_value = SOURCE_TARBALL)]
    source: PathBuf,
    /// Configuration laid over the project's; may be given several times.
    #[arg(long = "variant", value_name = "FILE")]
    variants: Vec<PathBuf>,
    /// How many compilers run at once [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
}

impl KernelArgs {
    fn obtain(self) -> anyhow::Result<Kernel> {
        let cache = match self.cache {
            Some(root) => Cache::at(
                std::path::absolute(&root)
                    .with_context(|| format!("--cache {}", root.display()))?,
            ),
            None => Cache::of_user(|name| std::env::var_os(name).map(PathBuf::from))?,
        };
        let source = std::path::absolute(&self.source)
            .with_context(|| format!("--source {}", self.source.display()))?;
        let jobs = match self.jobs {
            Some(jobs) => usize::from(jobs),
            None => std::thread::available_parallelism()?.get(),
        };
        let recipe = Recipe {
            source,
            variants: self.variants,
            jobs,
        };
        Ok(kernel::obtain(&recipe, &cache, &mut |line| {
            eprintln!("{line}")
        })?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-guest-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Build {
            agent,
            output,
            kernel,
        } => build(&agent, &output, kernel),
        Command::Kernel { kernel } => {
            println!("{}", kernel.obtain()?.vmlinux.display());
            Ok(())
        }
        Command::Initramfs { agent, output } => {
            let (_, archive) = image::initramfs(&agent, &output)?;
            println!(
                "{} ({} bytes, sha256 {})",
                output.display(),
                archive.size,
                archive.sha256
            );
            Ok(())
        }
    }
}

fn build(agent: &Path, output: &Path, kernel: KernelArgs) -> anyhow::Result<()> {
    // The cheap check first: a wrong agent must not cost a kernel build.
    let program = std::fs::read(agent).with_context(|| format!("agent {}", agent.display()))?;
    cloister_guest_image::elf::check_static_program(&program)
        .with_context(|| format!("agent {}", agent.display()))?;
    let manifest = image::build(&kernel.obtain()?, agent, output)?;
    println!(
        "{}: kernel {} ({} bytes), initramfs {} bytes",
        output.display(),
        manifest.kernel.release,
        manifest.kernel.size,
        manifest.initramfs.size
    );
    Ok(())
}
