//! Further processes of a container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cloister_container::{Container, Exec, ExecOptions, Stdio};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use serde_json::{Value, json};

use crate::support::{Bundle, TERMINAL, Tests};

pub(crate) const TESTS: Tests = &[
    (
        "descriptors_are_found_from_number_3_on",
        descriptors_are_found_from_number_3_on,
    ),
    ("runs_inside_the_container", runs_inside_the_container),
    ("is_another_user_with_less", is_another_user_with_less),
    ("has_a_terminal_of_its_own", has_a_terminal_of_its_own),
    ("errors_name_what_is_wrong", errors_name_what_is_wrong),
    ("enters_a_user_namespace", enters_a_user_namespace),
    ("namespaces_are_shared", namespaces_are_shared),
    ("starts_in_a_cgroup_below", starts_in_a_cgroup_below),
    ("pauses_and_resumes", pauses_and_resumes),
    (
        "is_not_possible_after_the_end",
        is_not_possible_after_the_end,
    ),
];

/// Longer than any test; killed by the deletion.
pub(crate) const SLEEPER: &str = "exec sleep 1000";

pub(crate) fn process(script: &str) -> Value {
    json!({
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    })
}

fn options(process: &Value, stdio: Stdio) -> ExecOptions {
    ExecOptions {
        process: process.to_string().into_bytes(),
        stdio,
        descriptors: Vec::new(),
        cgroup: "".into(),
        init_exe: std::env::current_exe().unwrap(),
    }
}

fn streams() -> (OwnedFd, Stdio) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio::Streams {
        stdin: None,
        stderr: Some(write.try_clone().unwrap()),
        stdout: Some(write),
    };
    (read, stdio)
}

fn reap(exec: &Exec) -> WaitStatus {
    let pid = Pid::from_raw(exec.pid().cast_signed());
    waitpid(pid, WaitOptions::empty()).unwrap().unwrap().1
}

/// Executes to the end; gives the output and the exit code.
pub(crate) fn exec(container: &Container, process: &Value) -> (String, Option<i32>) {
    let (read, stdio) = streams();
    let exec = container.exec(options(process, stdio)).unwrap();
    let mut output = String::new();
    File::from(read).read_to_string(&mut output).unwrap();
    (output, reap(&exec).exit_status())
}

/// Runs `look` beside the first process of a container, then kills that.
pub(crate) fn beside(bundle: &Bundle, look: impl FnOnce(&mut Container)) {
    bundle
        .run_with(|container| {
            look(container);
            // It may be over already.
            let _ = container.signal(9, false);
        })
        .unwrap();
}

fn runs_inside_the_container() {
    let bundle = Bundle::script(SLEEPER).set("/hostname", json!("inside"));
    beside(&bundle, |container| {
        let script =
            "hostname; echo $$; tr '\\0' ' ' </proc/1/cmdline; cat /proc/self/cgroup; exit 7";
        let (output, code) = exec(container, &process(script));
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[0], "inside", "{output}");
        assert_ne!(lines[1], "1", "{output}");
        assert!(lines[2].starts_with("sleep 1000"), "{output}");
        assert_eq!(code, Some(7));
        // Descriptors of the caller or of the init stage would be more than these and ls's own.
        let (output, _) = exec(container, &process("ls /proc/self/fd | wc -l"));
        assert_eq!(output.trim(), "4");
        let (output, code) = exec(container, &process("kill -9 $$"));
        assert_eq!((output.as_str(), code), ("", None));
    });
}

fn is_another_user_with_less() {
    let bundle = Bundle::script(SLEEPER);
    beside(&bundle, |container| {
        let mut process = process(
            "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status; pwd; umask; ulimit -n",
        );
        process["user"] = json!({"uid": 12, "gid": 34, "additionalGids": [56], "umask": 0o77});
        process["noNewPrivileges"] = json!(true);
        process["cwd"] = json!("/tmp");
        process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]);
        let (output, code) = exec(container, &process);
        let words: Vec<_> = output.split_ascii_whitespace().collect();
        let expected = "12 34 34 56 CapEff: 0000000000000000 NoNewPrivs: 1 /tmp 0077 99";
        assert_eq!(words.join(" "), expected);
        assert_eq!(code, Some(0));
    });
}

fn has_a_terminal_of_its_own() {
    let bundle = Bundle::script(SLEEPER);
    beside(&bundle, |container| {
        let mut process = process("tty; stty size; test ! -e /dev/console || echo console");
        process["terminal"] = json!(true);
        process["consoleSize"] = json!({"height": 5, "width": 77});
        let stdio = TERMINAL;
        let mut exec = container.exec(options(&process, stdio)).unwrap();
        let mut output = Vec::new();
        // EIO is a terminal's end of file.
        let _ = File::from(exec.take_terminal().unwrap()).read_to_end(&mut output);
        assert_eq!(String::from_utf8_lossy(&output), "/dev/pts/0\r\n5 77\r\n");
        assert_eq!(reap(&exec).exit_status(), Some(0));
    });
}

fn errors_name_what_is_wrong() {
    let bundle = Bundle::script(SLEEPER);
    beside(&bundle, |container| {
        let attempt = |change: fn(&mut Value), expected: &str| {
            let mut process = process("true");
            change(&mut process);
            let (_read, stdio) = streams();
            let error = container.exec(options(&process, stdio)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        attempt(
            |p| p["args"] = json!(["nonesuch"]),
            "exec: \"nonesuch\": executable file not found in $PATH",
        );
        attempt(
            |p| p["args"] = json!(["/etc"]),
            "exec: \"/etc\": is a directory",
        );
        attempt(
            |p| p["cwd"] = json!("/nonesuch"),
            "chdir to cwd (\"/nonesuch\") set in config.json failed: no such file or directory",
        );
        attempt(
            |p| p["user"] = json!({"uid": "root"}),
            "process: user.uid: expected an integer from 0 to 4294967294, found a string",
        );
        attempt(
            |p| p["args"] = json!([]),
            "process: args: must not be empty",
        );
        attempt(
            |p| p["terminal"] = json!(true),
            "terminal is true, the streams given are not for that",
        );
    });
}

fn enters_a_user_namespace() {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let bundle = Bundle::script(SLEEPER)
        .namespace("user")
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    std::os::unix::fs::chown(bundle.rootfs(), Some(100_000), Some(100_000)).unwrap();
    beside(&bundle, |container| {
        let (output, code) = exec(container, &process("id -u; cat /proc/self/uid_map"));
        let words: Vec<_> = output.split_ascii_whitespace().collect();
        assert_eq!(words, ["0", "0", "100000", "1000"]);
        assert_eq!(code, Some(0));
    });
}

fn namespaces_are_shared() {
    let first = Bundle::script(SLEEPER).set("/hostname", json!("shared"));
    beside(&first, |container| {
        let kinds = ["pid", "ipc", "uts", "network"];
        let second = Bundle::script(
            "hostname; tr '\\0' ' ' </proc/1/cmdline; echo; for ns in net ipc pid; do readlink /proc/self/ns/$ns; done",
        )
        .set("/hostname", json!(""));
        let (read, stdio) = streams();
        let mut options = second.options(stdio);
        for kind in kinds {
            let pidfd = container.pidfd().try_clone_to_owned().unwrap();
            options.joins.push((kind.into(), pidfd));
        }
        let mut joined = Container::create(options).unwrap();
        joined.start().unwrap();
        let mut output = String::new();
        File::from(read).read_to_string(&mut output).unwrap();
        crate::support::wait(&joined);
        joined.delete().unwrap();
        let script = "for ns in net ipc pid; do readlink /proc/self/ns/$ns; done";
        let (own, _) = exec(container, &process(script));
        assert_eq!(output, format!("shared\nsleep 1000 \n{own}"));
    });
}

fn starts_in_a_cgroup_below() {
    let bundle = Bundle::script(SLEEPER);
    beside(&bundle, |container| {
        let (_read, stdio) = streams();
        let mut below = options(&process("true"), stdio);
        below.cgroup = "../other".into();
        let error = container.exec(below).unwrap_err().to_string();
        assert!(error == "../other is not a sub cgroup path", "{error}");

        std::fs::create_dir(container.cgroup().join("below")).unwrap();
        let (read, stdio) = streams();
        let mut below = options(&process("cat /proc/self/cgroup"), stdio);
        below.cgroup = "/below".into();
        let exec = container.exec(below).unwrap();
        let mut output = String::new();
        File::from(read).read_to_string(&mut output).unwrap();
        reap(&exec);
        assert!(output.trim_end().ends_with("/below"), "{output}");
    });
}

fn pauses_and_resumes() {
    let bundle = Bundle::script(SLEEPER);
    beside(&bundle, |container| {
        assert!(!container.is_paused());
        let error = container.resume().unwrap_err().to_string();
        assert!(error.ends_with("is not paused"), "{error}");
        container.pause().unwrap();
        assert!(container.is_paused());
        let events = std::fs::read_to_string(container.cgroup().join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        container.resume().unwrap();
        assert!(!container.is_paused());
        container.pause().unwrap();
    });
}

fn is_not_possible_after_the_end() {
    let bundle = Bundle::script("true");
    bundle
        .run_with(|container| {
            // Ended, and not reaped yet.
            let options_of_wait =
                rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
            rustix::process::waitid(
                rustix::process::WaitId::PidFd(container.pidfd()),
                options_of_wait,
            )
            .unwrap();
            let (_read, stdio) = streams();
            let error = container
                .exec(options(&process("true"), stdio))
                .unwrap_err();
            assert!(error.to_string().ends_with("is not running"), "{error}");
        })
        .unwrap();
}

/// More of them than one message takes, of the first program and of a further one, and not of a hook.
fn descriptors_are_found_from_number_3_on() {
    let look = "echo $(ls /proc/self/fd | grep -c -v '^[0-2]$')";
    let bundle = Bundle::script("cat <&3 >/proc/self/fd/71; sleep 1000");
    let bundle = bundle.set(
        "/hooks",
        json!({"startContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", format!("{look} >/tmp/hook")],
        }]}),
    );
    let descriptors = || {
        let (read, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (ours, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        let between = (4..71).map(|_| null.try_clone().unwrap().into());
        let all: Vec<OwnedFd> = [read].into_iter().chain(between).chain([write]).collect();
        (File::from(theirs), File::from(ours), all)
    };
    let (_, stdio) = streams();
    let mut options = bundle.options(stdio);
    let (mut input, mut output, all) = descriptors();
    options.descriptors = all;
    let mut container = Container::create(options).unwrap();
    container.start().unwrap();
    input.write_all(b"to the first").unwrap();
    drop(input);
    let mut text = [0; 12];
    output.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to the first");
    // The shell's own, which lists.
    let hook = std::fs::read_to_string(bundle.rootfs().join("tmp/hook")).unwrap();
    assert_eq!(hook, "1\n");

    let (_, stdio) = streams();
    let further = process(&format!(
        "cat <&3 >/proc/self/fd/71; {look} >/proc/self/fd/71"
    ));
    let mut options = self::options(&further, stdio);
    let (mut input, mut output, all) = descriptors();
    options.descriptors = all;
    let exec = container.exec(options).unwrap();
    input.write_all(b"to the other\n").unwrap();
    drop(input);
    assert_eq!(reap(&exec).exit_status(), Some(0));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to the other\n70\n");
    container.delete().unwrap();
    crate::support::wait(&container);
}
