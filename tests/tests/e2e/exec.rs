//! Further processes of a container.

use std::fs;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;

use super::harness::{Bundle, Residue, Running, eventually};

/// A container that runs until it is killed.
fn sleeper() -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.command("run", &["--detach"], "test").run().ok();
    bundle
}

/// A command in the foreground whose process runs.
fn in_foreground(bundle: &Bundle) -> Running {
    let sleeping = || {
        let table = bundle.cloister(["ps", "test"]).run().ok();
        table.matches("sleep 1000").count()
    };
    let before = sleeping();
    let running = bundle.cloister(["exec", "test", "sleep", "1000"]).spawn();
    eventually("the process runs", || sleeping() == before + 1);
    running
}

fn exec(bundle: &Bundle, args: &[&str]) -> super::harness::Finished {
    bundle.cloister(["exec"]).args(args).run()
}

#[test]
fn a_program_runs_inside_with_streams_and_an_exit_code() {
    let bundle = sleeper();
    let done = exec(
        &bundle,
        &[
            "test",
            "sh",
            "-c",
            "hostname; cat /proc/1/cmdline; echo oops >&2; exit 7",
        ],
    );
    assert_eq!(done.code(), 7, "{done}");
    assert_eq!(done.out(), "cloister\nsleep\x001000\0", "{done}");
    assert_eq!(done.err(), "oops\n", "{done}");
    let killed = exec(&bundle, &["test", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(killed.code(), 128 + 15, "{killed}");
    let input = vec![b'x'; 300_000];
    let counted = bundle
        .cloister(["exec", "test", "wc", "-c"])
        .input(input)
        .run();
    assert_eq!(counted.ok().trim(), "300000");
    // What goes on in the background does not hold up the command.
    let done = exec(&bundle, &["test", "sh", "-c", "sleep 500 & echo started"]);
    assert_eq!(done.ok(), "started\n");
    // Words that look like options are the program's.
    let done = exec(&bundle, &["test", "echo", "-e", "--tty", "-n"]);
    assert_eq!(done.ok(), "--tty -n\n");
}

#[test]
fn the_command_line_says_who_runs_where() {
    let bundle = sleeper();
    let options = [
        "--user", "12:34", "-g", "56", "--cwd", "/tmp", "-e", "A=1", "--env", "B=2", "test",
    ];
    let script = "id -u; id -g; id -G; pwd; echo $A$B; grep CapEff /proc/self/status";
    let mut args: Vec<&str> = options.into();
    args.extend(["sh", "-c", script]);
    let out = exec(&bundle, &args).ok();
    let words: Vec<_> = out.split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "12 34 34 56 /tmp 12 CapEff: 0000000000000000"
    );
    let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status";
    let out = exec(
        &bundle,
        &[
            "--cap",
            "CAP_SYS_PTRACE",
            "--no-new-privs",
            "test",
            "sh",
            "-c",
            script,
        ],
    )
    .ok();
    let words: Vec<_> = out.split_whitespace().collect();
    let effective = u64::from_str_radix(words[1], 16).unwrap();
    assert_ne!(effective & 1 << 19, 0, "{out}");
    assert_eq!(words[3], "1", "{out}");
}

#[test]
fn a_process_file_says_everything() {
    let bundle = sleeper();
    let file = bundle.scratch("process.json");
    let process = json!({
        "args": ["sh", "-c", "pwd; echo $X; ulimit -n"],
        "cwd": "/proc",
        "env": ["PATH=/bin", "X=y"],
        "user": {"uid": 0, "gid": 0},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}],
    });
    fs::write(&file, process.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let done = exec(&bundle, &["--process", file, "test"]);
    assert_eq!(done.ok(), "/proc\ny\n77\n");
    for (change, expected) in [
        (json!({"args": []}), "args: must not be empty"),
        (json!({"args": ["ls"], "cwd": "x"}), "cwd: "),
        (json!({"args": "ls", "cwd": "/"}), "args: expected an array"),
    ] {
        fs::write(file, change.to_string()).unwrap();
        exec(&bundle, &["-p", file, "test"]).fails(255, &["exec failed: ", file, expected]);
    }
    fs::write(file, "{").unwrap();
    exec(&bundle, &["-p", file, "test"]).fails(255, &[file]);
    exec(&bundle, &["-p", "/nonesuch", "test"]).fails(255, &["/nonesuch", "No such file"]);
}

#[test]
fn a_detached_process_has_a_pid_that_ends_with_it() {
    let bundle = sleeper();
    let pid_file = bundle.scratch("pid");
    bundle
        .cloister(["exec", "--detach", "--pid-file"])
        .args([pid_file.to_str().unwrap(), "test", "sleep", "1000"])
        .outlived()
        .run()
        .ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let init = bundle.state("test")["pid"].as_i64().unwrap();
    let listed = bundle
        .cloister(["ps", "--format", "json", "test"])
        .run()
        .ok();
    assert_eq!(listed.trim(), format!("[{init},{pid}]"));
    let namespaces = |pid: i64| {
        ["net", "ipc", "uts"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap())
    };
    assert_eq!(namespaces(pid.into()), namespaces(init));
    let table = || bundle.cloister(["ps", "test"]).run().ok();
    assert_eq!(table().matches("sleep 1000").count(), 2);
    // A signal to it is one to the process, and killing it kills the process.
    let pid = Pid::from_raw(pid).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    eventually("the process is gone", || {
        table().matches("sleep 1000").count() == 1
    });
    bundle
        .cloister([
            "exec",
            "-d",
            "--pid-file",
            pid_file.to_str().unwrap(),
            "test",
        ])
        .args(["sleep", "999"])
        .outlived()
        .run()
        .ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the process has ended", || test_kill_process(pid).is_err());
    assert!(!table().contains("sleep 999"));
}

#[test]
fn a_process_ends_with_its_container() {
    let bundle = sleeper();
    let running = in_foreground(&bundle);
    bundle.cloister(["kill", "test", "KILL"]).run().ok();
    let done = running.wait();
    assert_eq!(done.code(), 128 + 9, "{done}");
    exec(&bundle, &["test", "true"]).fails(255, &["cannot exec in a stopped container"]);
    bundle.cloister(["delete", "test"]).run().ok();
    exec(&bundle, &["test", "true"]).fails(255, &["container does not exist: test"]);
}

#[test]
fn a_command_in_the_foreground_stands_for_its_process() {
    let bundle = sleeper();
    let listed = || {
        let json = bundle.cloister(["ps", "-f", "json", "test"]).run().ok();
        serde_json::from_str::<Vec<i64>>(&json).unwrap()
    };
    let init = bundle.state("test")["pid"].as_i64().unwrap();
    let running = in_foreground(&bundle);
    assert_eq!(listed(), [init, running.pid().into()]);
    let other = in_foreground(&bundle);
    assert_eq!(listed().len(), 3);
    let pid = Pid::from_raw(other.pid()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    other.wait();
    assert_eq!(listed(), [init, running.pid().into()], "one that is gone");
    // It tells its caller how the process has ended, also when the container goes at once.
    bundle.cloister(["delete", "--force", "test"]).run().ok();
    let done = running.wait();
    assert_eq!(done.code(), 128 + 9, "{done}");
}

#[test]
fn what_cannot_be_executed_is_named_and_leaves_nothing() {
    let bundle = Bundle::alone(&["sleep", "1000"]);
    bundle.command("run", &["--detach"], "test").run().ok();
    let before = Residue::now();
    for (args, expected) in [
        (
            &["test", "nonesuch"][..],
            "nonesuch\\\": executable file not found in $PATH",
        ),
        (&["test", "/etc"], "/etc\\\": is a directory"),
        (&["test"], "process args cannot be empty"),
        (&["-u", "x", "test", "ls"], "--user x: parsing "),
        (&["--cwd", "/none", "test", "ls"], "chdir to cwd ("),
        (
            &["--cgroup", "no", "test", "ls"],
            "/no/cgroup.procs: no such file or directory",
        ),
        (
            &["--cgroup", "..", "test", "ls"],
            ".. is not a sub cgroup path",
        ),
        (&["--apparmor", "x", "test", "ls"], "AppArmor"),
        (&["--process-label", "x", "test", "ls"], "SELinux"),
        (&["--pid-file", "/none/p", "test", "ls"], "/none/p"),
        (&["-d", "-t", "test", "ls"], "cannot allocate tty"),
        (&["--console-socket", "/s", "test", "ls"], "console socket"),
        (&["--env"], "--env"),
    ] {
        let code = if args.len() == 1 && args[0] == "--env" {
            1
        } else {
            255
        };
        exec(&bundle, args).fails(code, &[expected]);
    }
    let detached = bundle
        .cloister(["exec", "-d", "test", "nonesuch"])
        .outlived();
    detached.run().fails(255, &["executable file not found"]);
    let listed = bundle.cloister(["ps", "-f", "json", "test"]).run().ok();
    assert_eq!(listed.matches(',').count(), 0, "{listed}");
    before.assert_nothing_new();
}

#[test]
fn a_callers_default_profile_is_warned_of_where_it_is_asked_for() {
    let bundle = Bundle::new(&["sleep", "1000"])
        .with(|spec| spec["process"]["apparmorProfile"] = "docker-default".into());
    bundle.command("run", &["--detach"], "test").run().ok();
    let warning = "is a caller's default AppArmor profile";
    let own = exec(&bundle, &["--apparmor", "nerdctl-default", "test", "true"]);
    assert_eq!(own.err().matches(warning).count(), 1, "{own:?}");
    let process = bundle.scratch("process.json");
    let text =
        r#"{"args": ["/bin/true"], "cwd": "/", "apparmorProfile": "cri-containerd.apparmor.d"}"#;
    fs::write(&process, text).unwrap();
    let own = exec(&bundle, &["-p", process.to_str().unwrap(), "test"]);
    assert_eq!(own.err().matches(warning).count(), 1, "{own:?}");
    // The container was warned of.
    let inherited = exec(&bundle, &["test", "true"]);
    assert_eq!(inherited.err(), "");
}

#[test]
fn a_container_that_was_created_takes_further_processes() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.command("create", &[], "test").run().ok();
    assert_eq!(exec(&bundle, &["test", "echo", "hello"]).ok(), "hello\n");
    bundle.cloister(["start", "test"]).run().ok();
    assert_eq!(exec(&bundle, &["test", "echo", "hello"]).ok(), "hello\n");
}

#[test]
fn many_at_once() {
    let bundle = sleeper();
    let running: Vec<_> = (0..12)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            bundle
                .cloister(["exec", "test", "sh", "-c", &script])
                .spawn()
        })
        .collect();
    for (number, running) in (0..).zip(running) {
        let done = running.wait();
        assert_eq!((done.code(), done.out()), (number, format!("{number}\n")));
    }
}
