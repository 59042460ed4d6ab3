//! From create to delete.

use std::fs;
use std::io::Write;
use std::time::Duration;

use cloister_container::{Container, ErrorKind, Stdio};
use rustix::process::{Pid, WaitOptions};

use crate::support::{Bundle, Leftovers, Tests, wait};

pub(crate) const TESTS: Tests = &[
    ("says_hello", says_hello),
    ("exit_codes_are_exact", exit_codes_are_exact),
    (
        "signals_that_end_it_are_exact",
        signals_that_end_it_are_exact,
    ),
    ("standard_input_reaches_it", standard_input_reaches_it),
    (
        "missing_streams_are_the_null_device",
        missing_streams_are_the_null_device,
    ),
    (
        "is_created_before_it_is_started",
        is_created_before_it_is_started,
    ),
    ("starts_once", starts_once),
    ("signals_reach_one_or_all", signals_reach_one_or_all),
    ("delete_kills_what_is_left", delete_kills_what_is_left),
    ("delete_before_start", delete_before_start),
    ("an_id_is_taken_once", an_id_is_taken_once),
    (
        "the_process_is_a_child_of_the_caller",
        the_process_is_a_child_of_the_caller,
    ),
    (
        "signal_dispositions_are_the_default",
        signal_dispositions_are_the_default,
    ),
    ("no_descriptor_is_left_open", no_descriptor_is_left_open),
    ("many_bind_mounts", many_bind_mounts),
];

fn says_hello() {
    let outcome = Bundle::script("echo hello; echo oops >&2").run();
    assert_eq!(outcome.stdout, "hello\n");
    assert_eq!(outcome.stderr, "oops\n");
    assert_eq!(outcome.code(), Some(0));
}

fn exit_codes_are_exact() {
    for code in [0, 1, 42, 255] {
        assert_eq!(
            Bundle::script(&format!("exit {code}")).run().code(),
            Some(code)
        );
    }
}

fn signals_that_end_it_are_exact() {
    for number in [9_i32, 11, 15, 34] {
        let mut bundle = Bundle::with_args(&["/bin/sleep", "60"]);
        // The init process of a pid namespace is only ended by SIGKILL.
        if number != 9 {
            let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
        let signal = number.cast_unsigned();
        let outcome = bundle
            .run_with(|container| container.signal(signal, false).unwrap())
            .unwrap();
        assert_eq!(
            outcome.status.terminating_signal(),
            Some(number),
            "{outcome:?}"
        );
    }
}

fn standard_input_reaches_it() {
    let bundle = Bundle::script("cat; echo end");
    let (stdin, mut to) = std::io::pipe().unwrap();
    let (from, stdout) = std::io::pipe().unwrap();
    let stdio = Stdio::Streams {
        stdin: Some(stdin.into()),
        stdout: Some(stdout.into()),
        stderr: None,
    };
    let mut container = Container::create(bundle.options(stdio)).unwrap();
    container.start().unwrap();
    to.write_all(b"\0binary\xff\n").unwrap();
    drop(to);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &from, &mut bytes).unwrap();
    assert_eq!(bytes, b"\0binary\xff\nend\n");
    assert_eq!(wait(&container).exit_status(), Some(0));
    container.delete().unwrap();
}

fn missing_streams_are_the_null_device() {
    let bundle = Bundle::script(
        "for i in 0 1 2; do x=\"$x $(readlink /proc/$$/fd/$i)\"; done; echo $x > /tmp/out",
    );
    let stdio = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut container = Container::create(bundle.options(stdio)).unwrap();
    container.start().unwrap();
    assert_eq!(wait(&container).exit_status(), Some(0));
    container.delete().unwrap();
    let out = fs::read_to_string(bundle.rootfs().join("tmp/out")).unwrap();
    let lines: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(lines, ["/dev/null"; 3]);
}

fn is_created_before_it_is_started() {
    let bundle = Bundle::script("touch /tmp/ran");
    let stdio = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut container = Container::create(bundle.options(stdio)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(!bundle.rootfs().join("tmp/ran").exists());
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    assert!(cgroup.contains(&bundle.id), "{cgroup}");
    container.start().unwrap();
    assert_eq!(wait(&container).exit_status(), Some(0));
    assert!(bundle.rootfs().join("tmp/ran").exists());
    container.delete().unwrap();
}

fn starts_once() {
    Bundle::with_args(&["/bin/sleep", "60"])
        .run_with(|container| {
            let error = container.start().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(
                error.to_string().ends_with("has been started already"),
                "{error}"
            );
            container.signal(9, false).unwrap();
        })
        .unwrap();
}

fn signals_reach_one_or_all() {
    // The trap of the shell answers to the one, the background process dies of the other.
    let script = "trap 'echo usr1; exit 3' USR1; sleep 60 & echo ready > /tmp/ready; wait";
    let bundle = Bundle::script(script);
    let ready = bundle.rootfs().join("tmp/ready");
    let outcome = bundle
        .run_with(|container| {
            while !ready.exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(
                container.signal(0, false).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
            assert_eq!(
                container.signal(65, false).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
            container.signal(10, true).unwrap();
        })
        .unwrap();
    assert_eq!(outcome.code(), Some(3));
    assert_eq!(outcome.stdout, "usr1\n");
}

fn delete_kills_what_is_left() {
    let mut bundle = Bundle::script("sleep 1000 & echo started");
    // Without a pid namespace the background process outlives its parent.
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    let stdio = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut container = Container::create(bundle.options(stdio)).unwrap();
    container.start().unwrap();
    wait(&container);
    let procs = bundle.cgroup_parent.join(&bundle.id).join("cgroup.procs");
    assert_eq!(fs::read_to_string(&procs).unwrap().lines().count(), 1);
    container.delete().unwrap();
    assert!(!procs.exists());
    container.delete().unwrap();
}

fn delete_before_start() {
    let bundle = Bundle::script("touch /tmp/ran");
    let before = Leftovers::now(&bundle);
    let stdio = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut container = Container::create(bundle.options(stdio)).unwrap();
    container.delete().unwrap();
    assert!(!wait(&container).exited());
    let error = container.start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    drop(container);
    before.compare(&Leftovers::now(&bundle));
    assert!(!bundle.rootfs().join("tmp/ran").exists());
}

fn an_id_is_taken_once() {
    let bundle = Bundle::with_args(&["/bin/sleep", "60"]);
    bundle
        .run_with(|container| {
            let stdio = Stdio::Streams {
                stdin: None,
                stdout: None,
                stderr: None,
            };
            let error = Container::create(bundle.options(stdio)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            container.signal(9, false).unwrap();
        })
        .unwrap();
}

fn the_process_is_a_child_of_the_caller() {
    Bundle::with_args(&["/bin/sleep", "60"])
        .run_with(|container| {
            let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
            assert!(
                status.contains(&format!("PPid:\t{}\n", std::process::id())),
                "{status}"
            );
            container.signal(9, false).unwrap();
        })
        .unwrap();
    let any = rustix::process::waitpid(None::<Pid>, WaitOptions::NOHANG);
    assert_eq!(any.err(), Some(rustix::io::Errno::CHILD));
}

fn signal_dispositions_are_the_default() {
    // Rust programs ignore SIGPIPE; what they execute must not.
    let outcome = Bundle::with_args(&["/bin/grep", "^Sig[BI]", "/proc/self/status"]).run();
    assert_eq!(
        outcome.lines(),
        ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]
    );
}

fn no_descriptor_is_left_open() {
    // Not as the last command, which would take the shell's place.
    let outcome = Bundle::script("ls /proc/$$/fd; true").run();
    assert_eq!(outcome.lines(), ["0", "1", "2"]);
}

fn many_bind_mounts() {
    let mut bundle = Bundle::script("cat /m/0/x /m/199/x; ls /m | wc -l");
    for index in 0..200 {
        let source = bundle.dir.path().join(format!("source-{index}"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("x"), format!("{index}\n")).unwrap();
        let position = bundle.spec["mounts"].as_array().unwrap().len();
        bundle.bind_sources.insert(position, source);
        bundle = bundle.mount(serde_json::json!({
            "destination": format!("/m/{index}"), "type": "bind", "source": "/elsewhere", "options": ["bind"],
        }));
    }
    assert_eq!(bundle.run().lines(), ["0", "199", "200"]);
}
