//! The command line: runc's surface.
//!
//! Each command is a module with a function that does it and returns an exit code. Errors are
//! printed once, here, the way callers of runc expect them: as a log line, and additionally plain
//! on standard error if the log is a file.

mod args;
mod check;
mod container;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod list;
mod normalize;
mod pause;
mod ps;
mod spawn;
mod spec;
mod start;
mod state;
mod terminal;
mod update;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use cloister::cgroup::Driver;
use cloister::config::{Config, DefaultProfile};
use cloister::descriptors::{self, DescriptorError};
use cloister::logger::{self, LogFormat};
use cloister_spec::Problem;
use log::LevelFilter;

use args::{Cli, Command};

/// runc's exit code for a command that it does not know.
const EXIT_UNKNOWN_COMMAND: u8 = 3;

/// An error and the exit code that it ends with.
pub(crate) struct Fatal {
    code: u8,
    error: anyhow::Error,
}

impl Fatal {
    /// An error that ends with another code than 1.
    pub(crate) fn new(code: u8, error: anyhow::Error) -> Self {
        Self { code, error }
    }

    /// Says what was attempted.
    pub(crate) fn context(self, context: String) -> Self {
        Self {
            code: self.code,
            error: self.error.context(context),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Fatal {
    fn from(error: E) -> Self {
        Self::new(1, error.into())
    }
}

/// What every command gets.
pub(crate) struct Globals {
    /// The directory of all containers, absolute.
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
    /// `None`: no cgroup is made on this machine.
    pub(crate) cgroup_driver: Option<Driver>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) log_format: LogFormat,
    pub(crate) timeline: Option<PathBuf>,
    pub(crate) exec_ns: u64,
}

/// Runs the command line to its exit code.
pub(crate) fn main(exec_ns: u64) -> ExitCode {
    let args = normalize::normalize(std::env::args_os(), &Cli::command());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help goes to standard output and is no failure; if it cannot be printed, nothing can.
            let _ = e.print();
            if e.use_stderr() {
                log_usage(&args, &e);
            }
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    let has_log_file = cli.log.is_some();
    let format = cli.log_format;
    match run(cli, exec_ns) {
        Ok(code) => ExitCode::from(code),
        Err(Fatal { code, error }) => {
            print_error(&format!("{error:#}"), has_log_file, format);
            ExitCode::from(code)
        }
    }
}

/// Callers read from their log what was wrong with their words, as with anything else.
fn log_usage(args: &[OsString], error: &clap::Error) {
    let known = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(args);
    let Ok(known) = known else {
        return;
    };
    let Some(path) = known.get_one::<PathBuf>("log") else {
        return;
    };
    // What cannot be logged has been printed.
    if let Ok(file) = logger::open(path) {
        let format = known.get_one("log_format").copied().unwrap_or_default();
        logger::start(Some(file), format, LevelFilter::Error);
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        log::error!("{}", line.trim_start_matches("error: "));
    }
}

fn run(cli: Cli, exec_ns: u64) -> Result<u8, Fatal> {
    let preserved = preserved(cli.command.as_ref());
    let log = cli.log.as_deref().map(absolute).transpose()?;
    let level = if cli.debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    let file = match &log {
        Some(path) => match logger::open(path) {
            Ok(file) => Some(file),
            Err(e) => {
                logger::start(None, cli.log_format, level);
                let error = anyhow::Error::new(e);
                return Err(error
                    .context(format!("--log: cannot open {}", path.display()))
                    .into());
            }
        },
        None => None,
    };
    logger::start(file, cli.log_format, level);
    if cli.version {
        print!("{}", version());
        return Ok(0);
    }
    let Some(command) = cli.command else {
        Cli::command().print_help()?;
        return Ok(0);
    };
    if let Command::Other(words) = &command {
        return Err(unknown(words));
    }
    if cli.rootless == args::Rootless::True {
        return Err(
            anyhow::anyhow!("--rootless=true is not supported: cloister runs as root").into(),
        );
    }

    let option = cli.config.as_ref().map(|_| "--config");
    let mut config = named_by(option, Config::of_process(cli.config))?;
    if cli.debug {
        config.log_level = "debug".into();
    }
    log::set_max_level(config.log_level.parse().unwrap_or(level));
    let globals = Globals {
        root: root(&cli.root)?,
        config,
        cgroup_driver: match (cli.systemd_cgroup, cli.cgroup_manager) {
            (_, args::CgroupManager::Disabled) => None,
            (true, _) | (_, args::CgroupManager::Systemd) => Some(Driver::Systemd),
            (false, args::CgroupManager::Cgroupfs) => Some(Driver::Cgroupfs),
        },
        log,
        log_format: cli.log_format,
        timeline: cli.timeline.as_deref().map(timeline).transpose()?,
        exec_ns,
    };
    let preserved = preserved.map_err(|e| Fatal::new(not_done(&command), e.into()))?;
    match command {
        Command::Run(options) => create::run(&globals, &options, preserved),
        Command::Create(options) => create::create(&globals, &options, preserved),
        Command::Start { id } => start::start(&globals, &id),
        Command::State { id } => state::state(&globals, &id),
        Command::Kill(options) => kill::kill(&globals, &options),
        Command::Delete(options) => delete::delete(&globals, &options),
        Command::List(options) => list::list(&globals, &options),
        Command::Spec(options) => spec::spec(&options),
        Command::Check(options) => check::check(&globals, &options),
        Command::Features => features::features(),
        Command::Exec(options) => exec::exec(&globals, &options, preserved),
        Command::Ps(options) => ps::ps(&globals, &options),
        Command::Pause { id } => pause::pause(&globals, &id),
        Command::Resume { id } => pause::resume(&globals, &id),
        Command::Update(options) => update::update(&globals, &options),
        Command::Events(options) => events::events(&globals, &options),
        Command::Checkpoint(_) => Err(refused("checkpoint")),
        Command::Restore(_) => Err(refused("restore")),
        Command::Other(words) => Err(unknown(&words)),
    }
}

/// Takes over the descriptors that a command passes on: before anything is opened, which could get
/// the number of one that is not there.
#[expect(unsafe_code, reason = "takes over inherited descriptors")]
fn preserved(command: Option<&Command>) -> Result<Vec<OwnedFd>, DescriptorError> {
    let count = match command {
        Some(Command::Run(options)) => options.create.preserve_fds,
        Some(Command::Create(options)) => options.preserve_fds,
        Some(Command::Exec(options)) => options.preserve_fds,
        _ => 0,
    };
    // SAFETY: this is the beginning of the process: only arguments were looked at.
    unsafe { descriptors::take(count) }
}

/// The exit code of a command that was not even begun.
fn not_done(command: &Command) -> u8 {
    match command {
        Command::Exec(_) => exec::EXIT_NOT_EXECUTED,
        _ => 1,
    }
}

/// Says what the check of a document passed over; what callers ask for by themselves may be refused.
fn warn(
    globals: &Globals,
    file: &str,
    warnings: &[String],
    defaults: &[Problem],
) -> Result<(), cloister_spec::Error> {
    for warning in warnings {
        log::warn!("{warning}");
    }
    if defaults.is_empty() {
        return Ok(());
    }
    if globals.config.default_apparmor_profile == DefaultProfile::Refuse {
        return Err(cloister_spec::Error::Refused {
            file: file.to_owned(),
            problems: defaults.to_vec(),
        });
    }
    for default in defaults {
        log::warn!("{default}; it is not loaded, the virtual machine confines the container");
    }
    Ok(())
}

/// Where any words may follow, an option that is none would be taken for the first of them.
fn refuse_option(word: &str) -> anyhow::Result<()> {
    if word.starts_with('-') {
        anyhow::bail!("{word}: no such option");
    }
    Ok(())
}

fn refused(command: &str) -> Fatal {
    anyhow::anyhow!("{command} is not supported: a container's processes are in a virtual machine")
        .into()
}

fn unknown(words: &[OsString]) -> Fatal {
    let name = words
        .first()
        .map_or("".into(), |word| word.to_string_lossy());
    Fatal::new(
        EXIT_UNKNOWN_COMMAND,
        anyhow::anyhow!("no such command: {name:?}; `cloister --help` lists what there is"),
    )
}

/// As `runc --version`, whose lines callers take apart.
fn version() -> String {
    let features = cloister_spec::features();
    let spec = features["ociVersionMax"].as_str().unwrap_or_default();
    format!(
        "cloister version {}\nspec: {spec}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The directory of all containers.
fn root(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    // runc's words.
    if path == Path::new("/") {
        anyhow::bail!("Option '--root' argument should not be set to '/'");
    }
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => {
            anyhow::bail!("--root: {} is not a directory", path.display())
        }
        // It is made where something is to be in it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(path),
        Err(e) => Err(anyhow::Error::new(e).context(format!("--root: {}", path.display()))),
        Ok(_) => Ok(path),
    }
}

fn timeline(path: &Path) -> anyhow::Result<PathBuf> {
    writable(path).with_context(|| format!("--timeline: cannot write {}", path.display()))
}

/// Before anything is started: a file can be made at `path`, which is given back absolute.
fn writable(path: &Path) -> anyhow::Result<PathBuf> {
    let path = absolute(path)?;
    if path.is_dir() {
        anyhow::bail!("a directory");
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    if !std::fs::metadata(dir)?.is_dir() {
        anyhow::bail!("not in a directory");
    }
    Ok(path)
}

/// Says which option an error is about, if it is about one.
fn named_by<T, E>(option: Option<&str>, result: Result<T, E>) -> anyhow::Result<T>
where
    E: Into<anyhow::Error>,
{
    result.map_err(|e| match option {
        Some(option) => e.into().context(option.to_owned()),
        None => e.into(),
    })
}

/// The option that went into a field; `origins` are fields and their options.
fn option_of<'a>(field: &str, origins: &[(&str, &'a str)]) -> Option<&'a str> {
    let origin = origins.iter().find(|(origin, _)| *origin == field);
    origin.map(|(_, option)| *option)
}

/// Says of what is wrong with a document that options were made to which of them it came from.
/// `origins` are fields and their options.
fn by_option(mut error: cloister_spec::Error, origins: &[(&str, &str)]) -> cloister_spec::Error {
    use cloister_spec::Error;
    if let Error::Invalid { problems, .. } | Error::Refused { problems, .. } = &mut error {
        for problem in problems.iter_mut() {
            let field = problem.path.split('[').next().unwrap_or_default();
            if let Some(option) = option_of(field, origins) {
                problem.path = option.to_owned();
            }
        }
        // One option may have gone into several fields.
        problems.dedup();
    }
    error
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// The one place that prints an error.
fn print_error(text: &str, has_log_file: bool, format: LogFormat) {
    if has_log_file {
        log::error!("{text}");
        eprintln!("{text}");
        return;
    }
    match text.split_once('\n') {
        // What a guest said last is easier to read as it is.
        Some((first, rest)) if format == LogFormat::Text => {
            log::error!("{first}");
            eprintln!("{rest}");
        }
        _ => log::error!("{text}"),
    }
}
