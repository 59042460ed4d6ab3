//! The steps of a kernel build: unpack, configure, compile, strip.
//!
//! Every step runs with an environment made here, so that nothing in the caller's (`MAKEFLAGS`, `KCFLAGS`,
//! `ARCH`, a time zone) can change the result; what the steps print goes to a log that is kept on failure.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a line of progress comes while the compiler runs.
const PROGRESS: Duration = Duration::from_secs(20);
/// How many lines of the log a failure shows.
const TAIL: usize = 30;
/// Where `tinyconfig` keeps its options, in the order in which they are laid over each other.
const TINYCONFIG: &[&str] = &[
    "kernel/configs/tiny-base.config",
    "kernel/configs/tiny.config",
    "arch/x86/configs/tiny.config",
];

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The step's program could not be run.
    #[error("{step}: cannot run {program}")]
    Run {
        /// The step.
        step: &'static str,
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The step's program failed.
    #[error("{step} failed ({status}); the whole log is in {log}, its end:\n{tail}", log = log.display())]
    Failed {
        /// The step.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A file of the build cannot be read or written.
    #[error("{path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CompileError {
    move |source| CompileError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A build in one source tree.
pub(super) struct Build<'a> {
    tree: &'a Path,
    log_path: &'a Path,
    log: File,
    progress: &'a mut dyn FnMut(&str),
}

impl<'a> Build<'a> {
    /// A build in `tree`, an empty directory, that logs to `log_path`.
    pub(super) fn new(
        tree: &'a Path,
        log_path: &'a Path,
        progress: &'a mut dyn FnMut(&str),
    ) -> Result<Self, CompileError> {
        let log = File::create(log_path).map_err(io_error(log_path))?;
        Ok(Self {
            tree,
            log_path,
            log,
            progress,
        })
    }

    /// Unpacks the tarball, without the directory that holds everything in it.
    pub(super) fn unpack(&mut self, tarball: &Path) -> Result<(), CompileError> {
        (self.progress)(&format!("kernel: unpacking {}", tarball.display()));
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"])
            .arg(tarball);
        self.run("unpacking the kernel source", tar)
    }

    /// Makes `.config`: what `fragment` says, over `tinyconfig`, over nothing.
    ///
    /// `make tinyconfig` and merging the fragment afterwards would give every option that the
    /// fragment makes visible its default; allnoconfig with all of it at once leaves those off.
    pub(super) fn configure(&mut self, fragment: &str) -> Result<(), CompileError> {
        (self.progress)("kernel: configuring");
        let mut options = String::new();
        for path in TINYCONFIG.iter().map(|name| self.tree.join(name)) {
            options += &fs::read_to_string(&path).map_err(io_error(&path))?;
        }
        options += fragment;
        let path = self.tree.join("all.config");
        fs::write(&path, options).map_err(io_error(&path))?;
        let mut make = self.make();
        make.args(["KCONFIG_ALLCONFIG=all.config", "allnoconfig"]);
        self.run("configuring the kernel", make)
    }

    /// Compiles, and returns the kernel's release name.
    pub(super) fn compile(&mut self, jobs: usize) -> Result<String, CompileError> {
        (self.progress)(&format!(
            "kernel: compiling with {jobs} jobs (about twelve processor minutes), log in {}",
            self.log_path.display()
        ));
        let mut make = self.make();
        make.arg(format!("--jobs={jobs}")).arg("vmlinux");
        self.run("compiling the kernel", make)?;
        let path = self.tree.join("include/config/kernel.release");
        let release = fs::read_to_string(&path).map_err(io_error(&path))?;
        Ok(release.trim_end().to_owned())
    }

    /// The table of symbols, System.map: address, type and name on each line.
    pub(super) fn symbols(&self) -> Result<String, CompileError> {
        let path = self.tree.join("System.map");
        fs::read_to_string(&path).map_err(io_error(&path))
    }

    /// Copies `vmlinux` to `output` without symbols and the compiler's comments. Notes that are loaded, PVH's
    /// among them, stay.
    pub(super) fn strip(&mut self, output: &Path) -> Result<(), CompileError> {
        let mut objcopy = Command::new("objcopy");
        objcopy
            .args(["--strip-all", "--remove-section=.comment", "vmlinux"])
            .arg(output);
        self.run("stripping the kernel", objcopy)
    }

    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.arg("ARCH=x86_64");
        make
    }

    /// Runs a step in the tree and logs what it prints.
    fn run(&mut self, step: &'static str, mut command: Command) -> Result<(), CompileError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let run_error = |source| CompileError::Run {
            step,
            program: program.clone(),
            source,
        };
        let (output, stdout) = io::pipe().map_err(run_error)?;
        let stderr = stdout.try_clone().map_err(run_error)?;
        command
            .current_dir(self.tree)
            .env_clear()
            .envs(
                ["PATH", "TMPDIR"]
                    .iter()
                    .filter_map(|&name| Some((name, std::env::var_os(name)?))),
            )
            .envs(
                ENVIRONMENT
                    .iter()
                    .map(|&(name, value)| (name, OsStr::new(value))),
            )
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        let mut child = command.spawn().map_err(run_error)?;
        // It holds the pipe's other end, which must close when the child exits.
        drop(command);
        self.follow(BufReader::new(output))?;
        let status = child.wait().map_err(run_error)?;
        if status.success() {
            return Ok(());
        }
        let tail = tail(&fs::read(self.log_path).map_err(io_error(self.log_path))?);
        Err(CompileError::Failed {
            step,
            status,
            log: self.log_path.to_owned(),
            tail,
        })
    }

    fn follow(&mut self, mut output: impl BufRead) -> Result<(), CompileError> {
        let start = Instant::now();
        let mut told = start;
        let mut compiled = 0u32;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = output
                .read_until(b'\n', &mut line)
                .map_err(io_error(self.log_path))?;
            if read == 0 {
                return Ok(());
            }
            self.log.write_all(&line).map_err(io_error(self.log_path))?;
            compiled += u32::from(line.starts_with(b"  CC "));
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let seconds = start.elapsed().as_secs();
                (self.progress)(&format!("kernel: {compiled} files compiled in {seconds} s"));
            }
        }
    }
}

/// What the steps see besides the `PATH`: names and times that would be the machine's otherwise
/// (`Documentation/kbuild/reproducible-builds.rst`).
const ENVIRONMENT: &[(&str, &str)] = &[
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "cloister"),
    ("KBUILD_BUILD_HOST", "cloister"),
    ("KBUILD_BUILD_VERSION", "1"),
    // Set and empty: nothing is appended for a git checkout that the tree may happen to lie in.
    ("LOCALVERSION", ""),
];

/// The last lines of a log.
fn tail(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `script` as a step; gives its result and the progress lines.
    fn step(script: &str) -> (Result<(), CompileError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut progress = |_: &str| {};
        let mut build = Build::new(dir.path(), &log, &mut progress).unwrap();
        let mut sh = Command::new("sh");
        sh.args(["-c", script]);
        let result = build.run("testing", sh);
        (result, fs::read_to_string(log).unwrap())
    }

    #[test]
    fn what_a_step_prints_is_logged() {
        let (result, log) = step("echo out; echo err >&2; printf last");
        result.unwrap();
        assert_eq!(log, "out\nerr\nlast");
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let (result, _) = step("seq 100; exit 3");
        let message = result.unwrap_err().to_string();
        assert!(
            message.starts_with("testing failed (exit status: 3); the whole log is in /"),
            "{message}"
        );
        assert!(message.contains(":\n71\n72\n"), "{message}");
        assert!(message.ends_with("\n100"), "{message}");
    }

    #[test]
    fn steps_do_not_see_the_callers_environment() {
        // Cargo sets CARGO_MANIFEST_DIR for tests, so there is something to hide.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        let (result, log) = step("env");
        result.unwrap();
        assert!(!log.contains("CARGO"), "{log}");
        assert!(
            log.contains("PATH=") && log.contains("KBUILD_BUILD_HOST=cloister"),
            "{log}"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut progress = |_: &str| {};
        let mut build = Build::new(dir.path(), &log, &mut progress).unwrap();
        let error = build
            .run("testing", Command::new("no-such-make"))
            .unwrap_err();
        assert_eq!(error.to_string(), "testing: cannot run no-such-make");
    }
}
