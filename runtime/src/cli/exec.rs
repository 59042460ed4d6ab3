//! `cloister exec`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use cloister::launch::{ExecLaunch, Job, Terminal};
use cloister::monitor::exec_in_foreground;
use cloister::state::Status;
use cloister::sys::SignalFd;
use cloister_spec::Side;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Value, json};

use super::args::ExecOptions;
use super::container::Container;
use super::create::{connect_console, connect_pidfd, pid_file, refuse_listening};
use super::spawn;
use super::terminal::RawTerminal;
use super::{Fatal, Globals, by_option, named_by, refuse_option, warn};

/// Which options go into which fields of the process.
const ORIGINS: [(&str, &str); 9] = [
    ("cwd", "--cwd"),
    ("env", "--env"),
    ("user.additionalGids", "--additional-gids"),
    ("selinuxLabel", "--process-label"),
    ("apparmorProfile", "--apparmor"),
    ("capabilities.bounding", "--cap"),
    ("capabilities.effective", "--cap"),
    ("capabilities.permitted", "--cap"),
    ("capabilities.ambient", "--cap"),
];

/// runc's exit code for a program that was not executed.
pub(super) const EXIT_NOT_EXECUTED: u8 = 255;

pub(crate) fn exec(
    globals: &Globals,
    options: &ExecOptions,
    preserved: Vec<OwnedFd>,
) -> Result<u8, Fatal> {
    execute(globals, options, preserved).map_err(|fatal| {
        let code = match fatal.code {
            1 => EXIT_NOT_EXECUTED,
            code => code,
        };
        Fatal::new(code, fatal.error).context("exec failed".into())
    })
}

fn execute(globals: &Globals, options: &ExecOptions, preserved: Vec<OwnedFd>) -> Result<u8, Fatal> {
    refuse_listening()?;
    let (id, words) = options
        .words
        .split_first()
        .ok_or_else(|| anyhow!("no container is named"))?;
    refuse_option(id)?;
    let Container {
        dir, state, status, ..
    } = Container::find(globals, id)?;
    match status {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        // runc's words, and the container's name.
        Status::Paused => {
            let text = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(anyhow!("{text}: {id}").into());
        }
        Status::Stopped => {
            return Err(anyhow!("cannot exec in a stopped container: {id}").into());
        }
        Status::Creating => {
            return Err(anyhow!("cannot exec in a container in the creating state: {id}").into());
        }
    }
    let process = match &options.process {
        Some(path) => read_process(path)?,
        None => overlay(&dir.spec()?, options, words)?,
    };
    let document = serde_json::to_vec(&process)?;
    let name = match &options.process {
        Some(path) => path.display().to_string(),
        None => "process".into(),
    };
    let checked = cloister_spec::check_process(&document, &name, Side::Host);
    let checked = match &options.process {
        Some(_) => named_by(Some("--process"), checked)?,
        None => checked.map_err(|e| by_option(e, &ORIGINS))?,
    };
    // What the container was made with has been warned of then.
    let is_asked = options.process.is_some() || options.apparmor.is_some();
    let defaults = if is_asked { &*checked.defaults } else { &[] };
    warn(globals, &name, &checked.warnings, defaults)?;
    let has_terminal = process["terminal"].as_bool().unwrap_or(false);
    check_terminal(options, has_terminal)?;
    let pid_file = options.pid_file.as_deref().map(pid_file).transpose()?;
    let console_socket = options.console_socket.as_deref();
    let console_socket = console_socket.map(connect_console).transpose()?;
    let pidfd_socket = options.pidfd_socket.as_deref();
    let pidfd_socket = pidfd_socket.map(connect_pidfd).transpose()?;

    let mut launch = ExecLaunch {
        root: globals.root.clone(),
        machine: dir.machine(&state),
        id: id.to_string(),
        exec_id: random_name()?,
        terminal: Terminal::None,
        cgroup: cgroup(&options.cgroup)?,
        ignore_paused: options.ignore_paused,
        pid_file,
        monitor: state.monitor,
        config: globals.config.clone(),
        log_format: globals.log_format,
    };
    if options.detach {
        if console_socket.is_some() {
            launch.terminal = Terminal::Socket;
        }
        let detached = spawn::Detached {
            id,
            job: &Job::Exec(Box::new(launch)),
            process: &document,
            console_socket: console_socket.as_ref(),
            pidfd_socket: pidfd_socket.as_ref(),
            log: globals.log.as_deref(),
            preserved: &preserved,
        };
        return detached.start();
    }
    if let Some(socket) = &pidfd_socket {
        spawn::send_pidfd(socket, rustix::process::getpid(), spawn::PIDFD_OF_EXEC)?;
    }
    // From here on signals are for the program.
    let signals = SignalFd::block_all()?;
    let raw = has_terminal.then(RawTerminal::enter).transpose()?;
    if let Some(raw) = &raw {
        let (columns, rows) = raw.size()?;
        launch.terminal = Terminal::Inherited { columns, rows };
    }
    let size = raw.as_ref().map(|raw| || raw.size());
    let size = size
        .as_ref()
        .map(|size| size as &dyn Fn() -> io::Result<(u16, u16)>);
    let result = exec_in_foreground(&launch, document, signals, preserved, size);
    // Before anything is printed.
    drop(raw);
    match result {
        Ok(exit) if exit.signal == 0 => Ok(u8::try_from(exit.code).unwrap_or(u8::MAX)),
        // A shell's rule, and runc's.
        Ok(exit) => Ok(u8::try_from(128 + exit.signal).unwrap_or(u8::MAX)),
        Err(message) => Err(anyhow!(message).into()),
    }
}

/// runc's rules, in runc's words.
fn check_terminal(options: &ExecOptions, terminal: bool) -> anyhow::Result<()> {
    let has_socket = options.console_socket.is_some();
    if options.detach && terminal && !has_socket {
        bail!("cannot allocate tty if cloister will detach without setting console socket");
    }
    if (!options.detach || !terminal) && has_socket {
        bail!("cannot use console socket if cloister will not detach or allocate tty");
    }
    Ok(())
}

fn read_process(path: &Path) -> anyhow::Result<Value> {
    let name = || format!("--process: {}", path.display());
    let text = std::fs::read(path).with_context(name)?;
    serde_json::from_slice(&text).with_context(name)
}

/// The process of the container's specification, with what the command line says instead.
fn overlay(spec: &[u8], options: &ExecOptions, words: &[String]) -> anyhow::Result<Value> {
    let mut spec: Value = serde_json::from_slice(spec).context("the container's config.json")?;
    let mut process = spec["process"].take();
    // runc's words.
    if words.is_empty() {
        bail!("process args cannot be empty");
    }
    process["args"] = json!(words);
    process["terminal"] = json!(options.tty);
    if let Some(object) = process.as_object_mut() {
        object.remove("consoleSize");
    }
    if let Some(cwd) = &options.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &options.user {
        let (uid, gid) = parse_user(user)?;
        process["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    append(
        &mut process["user"],
        "additionalGids",
        &options.additional_gids,
    );
    append(&mut process, "env", &options.env);
    if let Some(wanted) = options.no_new_privs {
        process["noNewPrivileges"] = json!(wanted);
    }
    if let Some(label) = &options.process_label {
        process["selinuxLabel"] = json!(label);
    }
    if let Some(profile) = &options.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    let capabilities = &mut process["capabilities"];
    for set in ["bounding", "effective", "permitted"] {
        append(capabilities, set, &options.cap);
    }
    // As runc: without inheritable ones none can be ambient.
    if capabilities
        .get("inheritable")
        .is_some_and(|set| !set.is_null())
    {
        append(capabilities, "ambient", &options.cap);
    }
    Ok(process)
}

/// Adds values to a list in an object, which is made if there are any.
fn append<T: serde::Serialize>(object: &mut Value, name: &str, values: &[T]) {
    if values.is_empty() {
        return;
    }
    let added = values.iter().map(|value| json!(value));
    match object[name].as_array_mut() {
        Some(list) => list.extend(added),
        None => object[name] = added.collect(),
    }
}

fn parse_user(text: &str) -> anyhow::Result<(u32, Option<u32>)> {
    let number = |what: &str, part: &str| {
        part.parse::<u32>()
            .with_context(|| format!("--user {text}: parsing {part:?} as a {what} failed"))
    };
    match text.split_once(':') {
        Some((user, group)) => Ok((number("uid", user)?, Some(number("gid", group)?))),
        None => Ok((number("uid", text)?, None)),
    }
}

/// runc takes a path, or on cgroup v1 controllers and a path.
fn cgroup(given: &[String]) -> anyhow::Result<String> {
    match given {
        [] => Ok(String::new()),
        [path] if !path.contains(':') => Ok(path.clone()),
        [path] => bail!(
            "--cgroup {path}: the guest has cgroup v2, which takes one path for all controllers"
        ),
        _ => bail!("--cgroup: the guest has cgroup v2, which takes one path"),
    }
}

/// A name that no other process of the container has.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    // A short read does not happen below 256 bytes.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn merged(line: &str) -> anyhow::Result<Value> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Some(Command::Exec(options)) = cli.command else {
            panic!("{cli:?}");
        };
        let spec = json!({"process": {
            "args": ["sh"], "cwd": "/", "env": ["A=1"], "terminal": true,
            "user": {"uid": 1, "gid": 2},
            "capabilities": {"bounding": ["CAP_CHOWN"], "inheritable": []},
        }});
        overlay(spec.to_string().as_bytes(), &options, &options.words[1..])
    }

    #[test]
    fn the_command_line_goes_before_the_specification() {
        let process =
            merged("c exec -e B=2 --user 5 -g 7 --cap CAP_KILL --cwd /tmp id ls -l -t").unwrap();
        assert_eq!(
            process,
            json!({
                "args": ["ls", "-l", "-t"], "cwd": "/tmp", "env": ["A=1", "B=2"],
                "terminal": false,
                "user": {"uid": 5, "gid": 2, "additionalGids": [7]},
                "capabilities": {
                    "bounding": ["CAP_CHOWN", "CAP_KILL"], "inheritable": [],
                    "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"],
                },
            })
        );
    }

    #[test]
    fn what_makes_no_process_is_refused_by_name() {
        for (line, expected) in [
            ("c exec id", "process args cannot be empty"),
            (
                "c exec -u me id ls",
                "--user me: parsing \"me\" as a uid failed",
            ),
            (
                "c exec -u 1:x id ls",
                "--user 1:x: parsing \"x\" as a gid failed",
            ),
        ] {
            assert_eq!(merged(line).unwrap_err().to_string(), expected);
        }
        assert!(cgroup(&["cpu:/x".into()]).is_err());
    }
}
