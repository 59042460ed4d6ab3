//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Runs commands in a virtual machine that has a real /dev/kvm
///
/// The bed sees this machine's files; what is written inside does not last. Where this machine's own KVM can run
/// guests, `run` runs the command directly.
#[derive(Debug, Parser)]
#[command(name = "tests/bed", version)]
pub(super) struct Bed {
    #[command(subcommand)]
    pub(super) action: Action,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Run a command as root inside and exit as it does
    ///
    /// 128+n: signal n ended it; 124: it took too long, was silent for too long, or too many of its tests failed; 125: the bed itself failed.
    Run(RunOptions),
    /// Open a shell inside
    Shell(ShellOptions),
    /// Keep a bed running, for `run` and `shell` with the same options
    Up(MachineOptions),
    /// Stop the beds that are kept running and remove their files
    Down,
}

#[derive(Debug, Args)]
pub(super) struct RunOptions {
    #[command(flatten)]
    pub(super) machine: MachineOptions,
    /// Kill the command after this many seconds (0: never)
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(super) timeout: u64,
    /// Kill the command when it has printed nothing for this many seconds (0: never); in the bed only
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    silence: u64,
    /// Kill the command, a Rust test program, when so many tests in a row have failed (0: never); in the bed only
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    failures: u32,
    /// Use the bed even where this machine's KVM can run guests
    #[arg(long)]
    pub(super) force: bool,
    /// Copy this file or directory into the bed's memory first, to the same path (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(super) fast: Vec<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

impl RunOptions {
    /// Whether only the bed can do what is asked.
    pub(super) fn needs_bed(&self) -> bool {
        self.force || self.machine.icount || self.machine.cgroup == Some(Cgroup::V1)
    }

    /// None when the command may take for ever.
    pub(super) fn timeout(&self) -> Option<Duration> {
        limit(self.timeout)
    }

    /// None when tests may go on to fail.
    pub(super) fn failures(&self) -> Option<u32> {
        (self.failures > 0).then_some(self.failures)
    }

    /// None when the command may be silent for ever.
    pub(super) fn silence(&self) -> Option<Duration> {
        limit(self.silence)
    }
}

/// None for 0.
fn limit(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[derive(Debug, Args)]
pub(super) struct ShellOptions {
    #[command(flatten)]
    pub(super) machine: MachineOptions,
    /// Copy this file or directory into the bed's memory first, to the same path (repeatable)
    #[arg(long, value_name = "PATH")]
    pub(super) fast: Vec<PathBuf>,
    /// A command to run on the terminal instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// What makes one bed differ from another.
#[derive(Debug, Clone, Args)]
pub(super) struct MachineOptions {
    /// Count instructions: one CPU, and a clock that advances 1 ns an instruction
    #[arg(long)]
    pub(super) icount: bool,
    /// The cgroup hierarchy at /sys/fs/cgroup [default: v2]
    #[arg(long, value_name = "VERSION")]
    cgroup: Option<Cgroup>,
    /// Memory, in MiB or with a suffix M or G [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u32>,
    /// Virtual CPUs, 1 to 16 [default: 2, with --icount 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: Option<u32>,
    /// Give up when the bed is not up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    boot_timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Cgroup {
    V1,
    V2,
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The machine that options ask for, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) icount: bool,
    pub(super) cgroup: Cgroup,
    /// In MiB.
    pub(super) memory: u32,
    pub(super) cpus: u32,
}

impl Shape {
    /// A name that tells it from every other shape, fit for a file name.
    pub(super) fn name(&self) -> String {
        let clock = if self.icount { "icount" } else { "smp" };
        format!(
            "{clock}-cgroup-{}-{}M-{}",
            self.cgroup, self.memory, self.cpus
        )
    }

    /// The shape with that name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let (clock, rest) = name.split_once("-cgroup-")?;
        let mut rest = rest.split('-');
        let cgroup = match rest.next()? {
            "v1" => Cgroup::V1,
            "v2" => Cgroup::V2,
            _ => return None,
        };
        let memory = rest.next()?.strip_suffix('M')?.parse().ok()?;
        let cpus = rest.next()?.parse().ok()?;
        let shape = Self {
            icount: clock == "icount",
            cgroup,
            memory,
            cpus,
        };
        (shape.name() == name).then_some(shape)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--icount has one CPU: --cpus {0} cannot be had with it")]
pub(super) struct TooManyCpus(u32);

impl MachineOptions {
    pub(super) fn shape(&self) -> Result<Shape, TooManyCpus> {
        let cpus = match self.cpus {
            Some(cpus) if cpus > 1 && self.icount => return Err(TooManyCpus(cpus)),
            Some(cpus) => cpus,
            None if self.icount => 1,
            None => 2,
        };
        let cgroup = self.cgroup.unwrap_or(Cgroup::V2);
        Ok(Shape {
            icount: self.icount,
            cgroup,
            memory: self.memory.unwrap_or(4096),
            cpus,
        })
    }

    /// Whether a running bed of this shape will do: size matters only to those who name one.
    pub(super) fn accept(&self, shape: Shape) -> bool {
        shape.icount == self.icount
            && shape.cgroup == self.cgroup.unwrap_or(Cgroup::V2)
            && self.memory.is_none_or(|memory| memory == shape.memory)
            && self.cpus.is_none_or(|cpus| cpus == shape.cpus)
    }

    pub(super) fn boot_timeout(&self) -> Duration {
        Duration::from_secs(self.boot_timeout)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum BadMemory {
    #[error("expected a number of MiB, or one with the suffix M or G")]
    NotASize,
    #[error("the bed needs at least 256M")]
    TooSmall,
}

fn parse_memory(text: &str) -> Result<u32, BadMemory> {
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let size = digits
        .parse::<u32>()
        .ok()
        .and_then(|size| size.checked_mul(factor));
    match size {
        Some(size @ 256..) => Ok(size),
        Some(_) => Err(BadMemory::TooSmall),
        None => Err(BadMemory::NotASize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Action {
        Bed::try_parse_from([&["bed"], words].concat())
            .unwrap()
            .action
    }

    fn run(words: &[&str]) -> RunOptions {
        match parse(&[&["run"], words].concat()) {
            Action::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_needs_no_options() {
        let options = run(&["--", "sh", "-c", "exit 7", "--icount"]);
        assert_eq!(options.command, ["sh", "-c", "exit 7", "--icount"]);
        assert!(!options.needs_bed());
        assert_eq!(options.timeout(), Some(Duration::from_secs(600)));
        assert_eq!((options.silence(), options.failures()), (None, None));
        let shape = Shape {
            icount: false,
            cgroup: Cgroup::V2,
            memory: 4096,
            cpus: 2,
        };
        assert_eq!(options.machine.shape(), Ok(shape));
    }

    #[test]
    fn every_option_is_understood() {
        let words = "--icount --cgroup v1 --memory 8G --cpus 1 --timeout 0 --silence 9 --failures 2 --force --fast /a --fast /b -- true";
        let options = run(&words.split(' ').collect::<Vec<_>>());
        assert!(options.needs_bed());
        assert_eq!(options.timeout(), None);
        assert_eq!(options.silence(), Some(Duration::from_secs(9)));
        assert_eq!(options.failures(), Some(2));
        assert_eq!(options.fast, [PathBuf::from("/a"), PathBuf::from("/b")]);
        let shape = Shape {
            icount: true,
            cgroup: Cgroup::V1,
            memory: 8192,
            cpus: 1,
        };
        assert_eq!(options.machine.shape(), Ok(shape));
    }

    #[test]
    fn counting_instructions_takes_one_cpu() {
        assert_eq!(
            run(&["--icount", "--", "true"])
                .machine
                .shape()
                .unwrap()
                .cpus,
            1
        );
        assert_eq!(
            run(&["--icount", "--cpus", "2", "--", "true"])
                .machine
                .shape(),
            Err(TooManyCpus(2))
        );
    }

    #[test]
    fn a_missing_command_and_nonsense_are_refused() {
        for words in [
            &["run"][..],
            &["run", "--"],
            &["run", "true"],
            &["run", "--memory", "lots", "--", "true"],
            &["run", "--memory", "16", "--", "true"],
            &["run", "--cpus", "0", "--", "true"],
            &["run", "--cgroup", "v3", "--", "true"],
            &["down", "now"],
        ] {
            assert!(
                Bed::try_parse_from([&["bed"], words].concat()).is_err(),
                "{words:?}"
            );
        }
    }

    #[test]
    fn memory_is_counted_in_mebibytes() {
        assert_eq!(parse_memory("512"), Ok(512));
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("2g"), Ok(2048));
        assert_eq!(parse_memory("255"), Err(BadMemory::TooSmall));
        assert_eq!(parse_memory("9999999G"), Err(BadMemory::NotASize));
    }

    #[test]
    fn a_warm_bed_is_taken_when_nothing_named_differs() {
        let warm = Shape {
            icount: false,
            cgroup: Cgroup::V2,
            memory: 8192,
            cpus: 4,
        };
        assert!(run(&["--", "true"]).machine.accept(warm));
        assert!(
            run(&["--memory", "8G", "--cgroup", "v2", "--", "true"])
                .machine
                .accept(warm)
        );
        assert!(!run(&["--memory", "4G", "--", "true"]).machine.accept(warm));
        assert!(!run(&["--cgroup", "v1", "--", "true"]).machine.accept(warm));
        assert!(!run(&["--icount", "--", "true"]).machine.accept(warm));
    }

    #[test]
    fn a_shape_survives_its_name() {
        for shape in [
            Shape {
                icount: false,
                cgroup: Cgroup::V2,
                memory: 4096,
                cpus: 2,
            },
            Shape {
                icount: true,
                cgroup: Cgroup::V1,
                memory: 512,
                cpus: 1,
            },
        ] {
            assert_eq!(Shape::from_name(&shape.name()), Some(shape));
        }
        assert_eq!(Shape::from_name("smp-cgroup-v2-4096M"), None);
        assert_eq!(Shape::from_name("lock"), None);
    }
}
