use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::json;
use tempfile::TempDir;

use super::process::OUTPUT_MAX;
use super::*;
use crate::sys;
use crate::text::chain;

fn hook(value: serde_json::Value) -> Hook {
    serde_json::from_value(value).unwrap()
}

/// A hook that runs a line of shell.
fn shell(line: &str) -> Hook {
    hook(json!({"path": "/bin/sh", "args": ["sh", "-c", line]}))
}

fn shell_for(line: &str, timeout: i64) -> Hook {
    hook(json!({"path": "/bin/sh", "args": ["sh", "-c", line], "timeout": timeout}))
}

fn at(dir: &TempDir) -> Surroundings<'_> {
    Surroundings {
        dir: dir.path(),
        network: None,
    }
}

fn run_in(dir: &TempDir, hooks: &[Hook]) -> Result<(), String> {
    run(Kind::CreateRuntime, hooks, b"{\"id\":\"a\"}\n", at(dir)).map_err(|e| chain(&e))
}

fn failure(hooks: &[Hook]) -> String {
    let dir = tempfile::tempdir().unwrap();
    run_in(&dir, hooks).unwrap_err()
}

fn pid_in(dir: &TempDir, file: &str) -> Pid {
    let text = fs::read_to_string(dir.path().join(file)).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Waits for the end of a process that is not this one's child.
fn assert_ends(pid: Pid) {
    for _ in 0..500 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if test_kill_process(pid).is_err() || stat.contains(") Z ") {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("process {pid} does not end");
}

#[test]
fn a_hook_gets_the_state_its_arguments_its_environment_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dump = hook(json!({
        "path": "/bin/sh",
        "args": ["another name", "-c", "cat > state; tr '\\0' '\\n' < /proc/$$/cmdline > args; \
            tr '\\0' '\\n' < /proc/$$/environ > env", "x", "y z"],
        "env": ["B=2", "A=1=1", "EMPTY="],
    }));
    run_in(&dir, &[dump]).unwrap();
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("state"), "{\"id\":\"a\"}\n");
    let args = read("args");
    assert!(args.starts_with("another name\n-c\n"), "{args}");
    assert!(args.ends_with("\nx\ny z\n"), "{args}");
    let mut env: Vec<_> = read("env").lines().map(str::to_owned).collect();
    env.sort();
    assert_eq!(env, ["A=1=1", "B=2", "EMPTY="]);

    // A shell without arguments takes its input for a script.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
    let hooks = [hook(json!({"path": link}))];
    run(Kind::Prestart, &hooks, b"echo \"$0 $#\" > args", at(&dir)).unwrap();
    assert_eq!(read("args"), format!("{} 0\n", link.display()));
}

#[test]
fn hooks_run_in_order_and_the_first_failure_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let note = |text: &str| shell(&format!("echo {text} >> notes"));
    let hooks = [note("a"), note("b"), shell("exit 3"), note("c")];
    let error = run(Kind::Poststart, &hooks, b"", at(&dir)).unwrap_err();
    assert_eq!((error.kind, error.index), (Kind::Poststart, 2));
    assert_eq!(error.path, Path::new("/bin/sh"));
    let read = || fs::read_to_string(dir.path().join("notes")).unwrap();
    assert_eq!(read(), "a\nb\n");

    let errors = run_all(Kind::Poststop, &hooks, b"", at(&dir));
    assert_eq!(errors.len(), 1);
    assert_eq!(
        chain(&errors[0]),
        "error running poststop hook #2: exit status 3, stdout: , stderr: "
    );
    assert_eq!(read(), "a\nb\na\nb\nc\n", "all of them are run");
}

#[test]
fn a_failure_tells_the_output() {
    let line = "echo one; echo two; echo what >&2; printf '\\033[31mred' >&2; exit 1";
    assert_eq!(
        failure(&[shell("true"), shell(line)]),
        "error running createRuntime hook #1: exit status 1, stdout: one two, stderr: what  [31mred"
    );
}

#[test]
fn much_output_is_cut_and_harms_nobody() {
    let message = failure(&[shell(
        "head -c 1000000 /dev/zero | tr '\\0' x; echo end; exit 1",
    )]);
    assert!(message.contains("stdout: …xxx") && message.contains("xxxend, stderr: "));
    assert!(message.len() < 2 * OUTPUT_MAX);
    let dir = tempfile::tempdir().unwrap();
    let line = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2";
    run_in(&dir, &[shell_for(line, 60)]).unwrap();
}

#[test]
fn a_signal_and_a_missing_program_are_named() {
    assert_eq!(
        failure(&[shell("kill -SEGV $$")]),
        "error running createRuntime hook #0: killed by signal 11, stdout: , stderr: "
    );
    assert_eq!(
        failure(&[hook(json!({"path": "/no/such program"}))]),
        "error running createRuntime hook #0: cannot start /no/such program: \
         No such file or directory (os error 2)"
    );
    assert!(failure(&[hook(json!({"path": "/"}))]).contains("cannot start /: Permission denied"));
}

#[test]
fn what_the_specification_forbids_is_refused() {
    for (value, message) in [
        (json!({"path": "sh"}), "path sh is not absolute"),
        (json!({"path": ""}), "path  is not absolute"),
        (
            json!({"path": "/bin/true", "timeout": 0}),
            "timeout 0 is not greater than zero",
        ),
        (
            json!({"path": "/bin/true", "timeout": -1}),
            "timeout -1 is not greater than zero",
        ),
        (
            json!({"path": "/bin/true", "env": ["A=1", "B"]}),
            "env[1] is no NAME=VALUE",
        ),
    ] {
        let hooks = [shell("true"), hook(value)];
        let expected = format!("error running createRuntime hook #1: {message}");
        assert_eq!(failure(&hooks), expected);
        let error = check(Kind::CreateRuntime, &hooks).unwrap_err();
        assert_eq!(chain(&error), expected);
    }
    check(Kind::Prestart, &[shell_for("exit 1", 1)]).unwrap();
}

#[test]
fn a_timeout_kills_the_hook_and_what_it_has_started() {
    let dir = tempfile::tempdir().unwrap();
    let line = "sleep 100 & echo $! > child; echo $$ > self; echo waiting; wait";
    let started = Instant::now();
    assert_eq!(
        run_in(&dir, &[shell_for(line, 1)]).unwrap_err(),
        "error running createRuntime hook #0: /bin/sh ran past its timeout of 1s, \
         stdout: waiting, stderr: "
    );
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(test_kill_process(pid_in(&dir, "self")).is_err(), "reaped");
    assert_ends(pid_in(&dir, "child"));
}

#[test]
fn a_hook_that_prints_without_end_meets_its_timeout() {
    let message = failure(&[shell_for("yes", 1)]);
    assert!(
        message.contains("ran past its timeout of 1s, stdout: …y y"),
        "{message}"
    );
}

#[test]
fn a_process_that_keeps_the_streams_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    run_in(&dir, &[shell("sleep 100 & echo $! > child")]).unwrap();
    let child = pid_in(&dir, "child");
    test_kill_process(child).expect("a hook may leave a process");
    rustix::process::kill_process(child, Signal::KILL).unwrap();
    // It keeps its own output, and even goes on to print.
    let message = run_in(&dir, &[shell("yes >&2 & echo $! > child; echo so; exit 7")]).unwrap_err();
    assert!(
        message.contains("exit status 7, stdout: so, stderr: "),
        "{message}"
    );
    assert!(started.elapsed() < Duration::from_secs(50));
    let _ = rustix::process::kill_process(pid_in(&dir, "child"), Signal::KILL);
}

#[test]
fn output_that_comes_right_after_a_failure_is_told() {
    let line = "{ sleep 0.02; echo late; } & exit 1";
    let told = || failure(&[shell(line)]).contains("stdout: late, stderr: ");
    // A machine with much to do may not be done within the limit.
    assert!((0..20).any(|_| told()));
}

#[test]
fn a_hook_need_not_read_its_input_nor_keep_its_streams() {
    let dir = tempfile::tempdir().unwrap();
    let state = vec![b'x'; 1 << 20];
    for line in [
        "exit 0",
        "exec <&-; sleep 0.05",
        "exec >&- 2>&-; cat > copy",
        "exec <&- >&- 2>&-; sleep 0.05",
        "cat",
    ] {
        run(Kind::Prestart, &[shell(line)], &state, at(&dir)).expect(line);
    }
    assert_eq!(fs::read(dir.path().join("copy")).unwrap(), state);
}

#[test]
fn signals_are_as_from_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    // As in the monitor; the thread is this test's own.
    let blocked = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _signals = sys::SignalFd::block_all().unwrap();
            run_in(&dir, &[shell("exec grep ^Sig /proc/self/status > status")])
        });
        thread.join().unwrap()
    });
    blocked.unwrap();
    let status = fs::read_to_string(dir.path().join("status")).unwrap();
    for name in ["SigBlk", "SigIgn"] {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
}

#[test]
fn hooks_have_no_descriptors_but_their_streams() {
    let dir = tempfile::tempdir().unwrap();
    let inherited = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    run_in(&dir, &[shell("exec ls /proc/self/fd > fds")]).unwrap();
    let fds = fs::read_to_string(dir.path().join("fds")).unwrap();
    let fds: Vec<_> = fds.lines().collect();
    assert_eq!(
        fds,
        ["0", "1", "2", "3"],
        "and the directory that is listed"
    );
}

#[test]
fn the_kinds_are_those_of_the_specification() {
    let mut all = serde_json::Map::new();
    for kind in Kind::ALL {
        all.insert(kind.to_string(), json!([{"path": format!("/{kind}")}]));
    }
    let hooks: Hooks = serde_json::from_value(all.into()).unwrap();
    for kind in Kind::ALL {
        assert_eq!(
            kind.of(&hooks)[0].path(),
            &PathBuf::from(format!("/{kind}"))
        );
    }
    assert!(Kind::Poststop.of(&Hooks::default()).is_empty());
}

#[test]
fn a_hook_runs_in_the_network_namespace_that_is_asked_for() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = fs::File::open("/proc/self/ns/net").unwrap();
    let ours = fs::read_link("/proc/self/ns/net").unwrap();
    let line = "readlink /proc/$$/ns/net > net";
    let read = || PathBuf::from(fs::read_to_string(dir.path().join("net")).unwrap().trim());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::new_namespaces(libc::CLONE_NEWNET).unwrap();
            run_in(&dir, &[shell(line)]).unwrap();
            assert_ne!(read(), ours);
            let surroundings = Surroundings {
                network: Some(network.as_fd()),
                ..at(&dir)
            };
            run(Kind::Prestart, &[shell(line)], b"", surroundings).unwrap();
            assert_eq!(read(), ours);
        });
        thread.join().unwrap();
    });
}
