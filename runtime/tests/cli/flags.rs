//! Every option with wrong values. The options are those of the definitions that the command line is
//! parsed by: one that is not in the table here fails the test.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "of the definitions only what options there are is used"
)]
#[path = "../../src/cli/args.rs"]
mod args;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};

use super::harness::Setup;

/// A wrong value, and what is said of it beside the option's name and the value.
type Wrong = (&'static str, &'static str);

/// An option of a command, or of the program, and what it does not take.
struct Row {
    command: &'static str,
    option: &'static str,
    /// What else has to be said so that the value is looked at.
    more: &'static [&'static str],
    /// What is wrong by its form: the command is not begun.
    form: &'static [Wrong],
    /// What is wrong by what it means.
    meaning: &'static [Wrong],
}

const fn row(
    command: &'static str,
    option: &'static str,
    form: &'static [Wrong],
    meaning: &'static [Wrong],
) -> Row {
    Row {
        command,
        option,
        more: &[],
        form,
        meaning,
    }
}

const U16: &[Wrong] = &[
    ("many", "invalid digit"),
    ("-1", "not in"),
    ("65536", "not in"),
    ("1.5", "invalid digit"),
];
const U32: &[Wrong] = &[
    ("many", "invalid digit"),
    ("-1", "not in"),
    ("4294967296", "not in"),
    ("1.5", "invalid digit"),
];
const U64: &[Wrong] = &[
    ("many", "invalid digit"),
    ("-1", "invalid digit"),
    ("18446744073709551616", "too large"),
    ("1.5", "invalid digit"),
];
const I64: &[Wrong] = &[
    ("many", "invalid digit"),
    ("9223372036854775808", "too large"),
    ("-9223372036854775809", "too small"),
    ("1.5", "invalid digit"),
];
const ENUM: &[Wrong] = &[
    ("frobnicate", "possible values: "),
    ("1", "possible values: "),
];
const DIRECTORY: &[Wrong] = &[
    ("/nonexistent", "No such file"),
    ("config.json", "not a directory"),
];
/// Where a file is to be made.
const PLACE: &[Wrong] = &[
    ("/nonexistent", "No such file"),
    ("config.json", "Not a directory"),
];
const SOCKET: &[Wrong] = &[
    ("/nonexistent", "No such file"),
    ("config.json", "Connection refused"),
];
/// A file to write.
const TARGET: &[Wrong] = &[
    ("/nonexistent/file", "No such file"),
    ("/dev/null/file", "not in a directory"),
    ("/tmp", "a directory"),
];
/// A specification in place of the bundle's.
const SPECIFICATION: &[Wrong] = &[
    ("/nonexistent", "not found"),
    ("/tmp", "Is a directory"),
    ("no.json", "line 1"),
    ("list.json", "not an object"),
];
/// A file with a JSON object.
const DOCUMENT: &[Wrong] = &[
    ("/nonexistent", "No such file"),
    ("/tmp", "Is a directory"),
    ("no.json", "line 1"),
    ("list.json", "not an object"),
];
const BYTES: &[Wrong] = &[
    ("much", "not a number of bytes"),
    ("-2", "not a number of bytes"),
    ("1q", "not a number of bytes"),
    ("9999999999g", "not a number of bytes"),
];
const LIST: &[Wrong] = &[
    ("some", "not a list"),
    ("3-1", "not a list"),
    ("1-", "not a list"),
    ("99999", "not a list"),
];
/// The container has no cgroup of this machine, whatever the processors are.
const NO_CGROUP: &str = "has no cgroup here";
const PROCESSORS: &[Wrong] = &[("some", "not a list"), ("0", NO_CGROUP)];
const NO_CACHE: &[Wrong] = &[("L3:0=f", REFUSED)];

const ROWS: &[Row] = &[
    row(
        "",
        "--root",
        &[],
        &[
            ("config.json", "is not a directory"),
            ("/", "should not be"),
        ],
    ),
    row(
        "",
        "--log",
        &[],
        &[
            ("/nonexistent/log", "No such file"),
            ("/tmp", "Is a directory"),
        ],
    ),
    row("", "--log-format", ENUM, &[]),
    row(
        "",
        "--config",
        &[],
        &[
            ("/nonexistent", "No such file"),
            ("/tmp", "Is a directory"),
            ("no.json", "line 1"),
        ],
    ),
    row("", "--timeline", &[], TARGET),
    row("", "--cgroup-manager", ENUM, &[]),
    row("", "--rootless", ENUM, &[("true", "not supported")]),
    row("create", "--bundle", &[], DIRECTORY),
    row("create", "--config", &[], SPECIFICATION),
    Row {
        command: "create",
        option: "--console-socket",
        more: &["--config", "tty.json"],
        form: &[],
        meaning: SOCKET,
    },
    row("create", "--pidfd-socket", &[], SOCKET),
    row("create", "--pid-file", &[], TARGET),
    row("create", "--preserve-fds", U32, &[("33", "at most")]),
    row("run", "--bundle", &[], DIRECTORY),
    row("run", "--config", &[], SPECIFICATION),
    Row {
        command: "run",
        option: "--console-socket",
        more: &["--config", "tty.json", "--detach"],
        form: &[],
        meaning: SOCKET,
    },
    row("run", "--pidfd-socket", &[], SOCKET),
    row("run", "--pid-file", &[], TARGET),
    row("run", "--preserve-fds", U32, &[("33", "at most")]),
    Row {
        command: "exec",
        option: "--console-socket",
        more: &["--detach", "--tty"],
        form: &[],
        meaning: SOCKET,
    },
    row("exec", "--pidfd-socket", &[], SOCKET),
    row("exec", "--cwd", &[], &[("here", "not an absolute path")]),
    row(
        "exec",
        "--env",
        &[],
        &[("NAME", "NAME=value"), ("=value", "NAME=value")],
    ),
    row(
        "exec",
        "--user",
        &[],
        &[
            ("me", "as a uid"),
            ("-1", "as a uid"),
            ("4294967296", "as a uid"),
            ("0:us", "as a gid"),
            ("0:", "as a gid"),
            ("0:4294967296", "as a gid"),
        ],
    ),
    row("exec", "--additional-gids", U32, &[]),
    row("exec", "--process", &[], DOCUMENT),
    row("exec", "--pid-file", &[], TARGET),
    row("exec", "--process-label", &[], &[("mine", REFUSED)]),
    row("exec", "--apparmor", &[], &[("mine", "no AppArmor")]),
    row(
        "exec",
        "--no-new-privs",
        &[("maybe", "possible values: ")],
        &[],
    ),
    // One that the kernel does not have is passed over with a warning, as by runc.
    row("exec", "--cap", &[], &[]),
    row("exec", "--preserve-fds", U32, &[("33", "at most")]),
    row("exec", "--cgroup", &[], &[("cpu:/x", "cgroup v2")]),
    row("ps", "--format", ENUM, &[]),
    row(
        "events",
        "--interval",
        &[
            ("often", "not a time"),
            ("5", "not a time"),
            ("5y", "not a time"),
            ("0s", "longer than nothing"),
            ("-1s", "not a time"),
        ],
        &[],
    ),
    row("update", "--resources", &[], DOCUMENT),
    row(
        "update",
        "--blkio-weight",
        U16,
        &[
            ("5", "between 10 and 1000"),
            ("1001", "between 10 and 1000"),
        ],
    ),
    row("update", "--cpu-period", U64, &[]),
    row("update", "--cpu-quota", I64, &[]),
    row("update", "--cpu-burst", U64, &[]),
    row("update", "--cpu-share", U64, &[]),
    row("update", "--cpu-rt-period", U64, &[("1000", REFUSED)]),
    row("update", "--cpu-rt-runtime", I64, &[("1000", REFUSED)]),
    row("update", "--cpuset-cpus", &[], PROCESSORS),
    row("update", "--cpuset-mems", &[], LIST),
    row("update", "--cpu-idle", I64, &[("2", "0"), ("-1", "0")]),
    row("update", "--kernel-memory", &[], BYTES),
    row("update", "--kernel-memory-tcp", &[], BYTES),
    row("update", "--memory", &[], BYTES),
    row("update", "--memory-reservation", &[], BYTES),
    row("update", "--memory-swap", &[], BYTES),
    row("update", "--pids-limit", I64, &[]),
    row("update", "--l3-cache-schema", &[], NO_CACHE),
    row("update", "--mem-bw-schema", &[], NO_CACHE),
    row("list", "--format", ENUM, &[]),
    row("spec", "--bundle", &[], PLACE),
    row("check", "--format", ENUM, &[]),
];

/// What is said of an option that is refused whatever its value is.
const REFUSED: &str = "refused";
/// To have no label is one, to have no profile is one.
const EMPTY_IS_A_VALUE: [&str; 2] = ["--process-label", "--apparmor"];
/// The container that a command is about which makes none.
const OLD: &str = "x";

/// A command and one of its options.
type Named = (String, String);

/// The options of the program, whose command is empty, and of its commands: those with a value, and
/// those without.
fn defined() -> (BTreeSet<Named>, BTreeSet<Named>) {
    let program = args::Cli::command();
    let commands = program.get_subcommands().map(|c| (c.get_name(), c));
    let all = [("", &program)].into_iter().chain(commands);
    all.flat_map(|(name, command): (&str, &Command)| {
        command
            .get_opts()
            .chain(command.get_arguments())
            .map(move |option| (name, option))
    })
    .filter_map(|(command, option): (&str, &Arg)| {
        let named = (command.to_owned(), format!("--{}", option.get_long()?));
        Some((named, option.get_action().takes_values()))
    })
    .fold(
        Default::default(),
        |(mut with, mut without), (named, takes_value)| {
            if takes_value {
                with.insert(named);
            } else {
                without.insert(named);
            }
            (with, without)
        },
    )
}

/// A command line with one option.
fn words(command: &str, more: &[&str], option: &str) -> Vec<String> {
    let (before, after): (&[&str], &[&str]) = match command {
        "" => (&[], &["create", "new"]),
        "create" | "run" => (&[command], &["new"]),
        "exec" => (&[command], &[OLD, "true"]),
        "list" | "spec" | "check" | "features" => (&[command], &[]),
        _ => (&[command], &[OLD]),
    };
    let all = before.iter().chain(more).chain([&option]).chain(after);
    all.map(|word| (*word).to_owned()).collect()
}

/// Whatever there is below a directory.
fn below(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let mut all = below(&entry.path());
            all.insert(entry.path().display().to_string());
            all
        })
        .collect()
}

#[test]
fn every_option_names_itself_when_its_value_is_wrong() {
    let (with_value, without) = defined();
    let rows = ROWS
        .iter()
        .map(|row| (row.command.to_owned(), row.option.to_owned()));
    assert_eq!(rows.collect::<BTreeSet<_>>(), with_value);

    let setup = Setup::new(&["sleep"]);
    let spec = fs::read_to_string(setup.config()).unwrap();
    let mut spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    spec["process"]["terminal"] = true.into();
    for (name, text) in [
        ("tty.json", spec.to_string().as_str()),
        ("no.json", "{oops"),
        ("list.json", "[1, 2]"),
    ] {
        fs::write(setup.path("bundle").join(name), text).unwrap();
    }
    let run = ["--cgroup-manager", "disabled", "run", "--detach", OLD];
    setup.run_detached(&run).ok();
    let before = below(&setup.root());
    let mut wrong = String::new();
    let mut check = |words: &[String], code: i32, parts: &[&str]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let finished = setup.run(&words);
        let is_told = parts.iter().all(|part| finished.err.contains(part));
        let left: Vec<_> = below(&setup.root()).difference(&before).cloned().collect();
        if finished.code != Some(code) || !is_told || !left.is_empty() {
            wrong += &format!("{words:?}: {code}, {parts:?}\n  {finished:?}, left: {left:?}\n");
        }
    };
    for row in ROWS {
        let with = |value: &str| {
            let option = format!("{}={value}", row.option);
            words(row.command, row.more, &option)
        };
        for (value, part) in row.form {
            check(&with(value), 1, &[row.option, value, part]);
        }
        // runc's exit code of a program that is not executed.
        let refused = if row.command == "exec" { 255 } else { 1 };
        for (value, part) in row.meaning {
            let line = with(value);
            let value = match *part {
                REFUSED | NO_CGROUP => "",
                _ => value,
            };
            check(&line, refused, &[row.option, value, part]);
        }
        if !EMPTY_IS_A_VALUE.contains(&row.option) {
            check(&with(""), 1, &[row.option]);
        }
    }
    for (command, option) in &without {
        check(
            &words(command, &[], &format!("{option}=maybe")),
            1,
            &[option, "maybe"],
        );
    }
    assert!(wrong.is_empty(), "{wrong}");
}
