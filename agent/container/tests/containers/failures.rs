//! What is said when a container cannot be, and that nothing is left of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cloister_container::{Container, ErrorKind, Stdio};
use serde_json::{Value, json};

use crate::support::{Bundle, Leftovers, TERMINAL, Tests};

pub(crate) const TESTS: Tests = &[
    (
        "programs_that_cannot_be_executed",
        programs_that_cannot_be_executed,
    ),
    (
        "programs_that_fail_at_the_start",
        programs_that_fail_at_the_start,
    ),
    (
        "specifications_that_are_refused",
        specifications_that_are_refused,
    ),
    (
        "steps_that_fail_name_their_field",
        steps_that_fail_name_their_field,
    ),
    ("ids", ids),
    ("a_missing_root", a_missing_root),
    (
        "an_init_stage_that_cannot_be_executed",
        an_init_stage_that_cannot_be_executed,
    ),
    (
        "an_init_stage_that_is_something_else",
        an_init_stage_that_is_something_else,
    ),
    (
        "the_executable_cannot_be_overwritten",
        the_executable_cannot_be_overwritten,
    ),
];

fn programs_that_cannot_be_executed() {
    for (args, user, expected) in [
        (
            vec!["nowhere"],
            0,
            "exec: \"nowhere\": executable file not found in $PATH",
        ),
        (
            vec!["/no/where"],
            0,
            "exec: \"/no/where\": stat /no/where: no such file or directory",
        ),
        (vec!["/etc"], 0, "exec: \"/etc\": is a directory"),
        (
            vec!["/etc/passwd"],
            0,
            "exec: \"/etc/passwd\": permission denied",
        ),
        (
            vec!["/private"],
            1000,
            "exec: \"/private\": permission denied",
        ),
        (
            vec!["./relative"],
            0,
            "exec: \"./relative\": stat ./relative: no such file or directory",
        ),
        (
            vec![""],
            0,
            "exec: \"\": executable file not found in $PATH",
        ),
    ] {
        let bundle = Bundle::with_args(&args).set("/process/user/uid", json!(user));
        fs::copy("/bin/busybox", bundle.rootfs().join("private")).unwrap();
        fs::set_permissions(
            bundle.rootfs().join("private"),
            fs::Permissions::from_mode(0o700),
        )
        .unwrap();
        let error = bundle.try_run().unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let relative = Bundle::with_args(&["echo"]).set("/process/env", json!(["PATH=bin"]));
    assert_eq!(
        relative.error(),
        "exec: \"echo\": cannot run executable found relative to current directory"
    );
    let without = Bundle::with_args(&["echo"]).set("/process/env", json!([]));
    assert_eq!(
        without.error(),
        "exec: \"echo\": executable file not found in $PATH"
    );
}

fn programs_that_fail_at_the_start() {
    let bundle = Bundle::with_args(&["/nonsense"]);
    fs::write(bundle.rootfs().join("nonsense"), "\u{1}\u{2}").unwrap();
    fs::set_permissions(
        bundle.rootfs().join("nonsense"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(bundle.error(), "exec /nonsense: exec format error");
    let bundle = Bundle::with_args(&["/script"]);
    fs::write(bundle.rootfs().join("script"), "#!/no/interpreter\n").unwrap();
    fs::set_permissions(
        bundle.rootfs().join("script"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(bundle.error(), "exec /script: no such file or directory");
}

fn specifications_that_are_refused() {
    let error = Bundle::script("true")
        .set("/process/selinuxLabel", json!("x"))
        .set("/linux/intelRdt", json!({"closID": "x"}))
        .try_run()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let text = error.to_string();
    for refused in [
        "process.selinuxLabel: refused: ",
        "linux.intelRdt: refused: ",
        "; ",
    ] {
        assert!(text.contains(refused), "{text}");
    }
}

fn steps_that_fail_name_their_field() {
    let huge = u64::MAX - 1;
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": huge, "hard": huge}]),
            "process.rlimits[0]: set RLIMIT_NOFILE: operation not permitted",
        ),
        (
            "/process/user/additionalGids",
            json!([u32::MAX]),
            "config.json: process.user.additionalGids[0]: expected an integer from 0 to 4294967294, found the number 4294967295",
        ),
        (
            "/process/capabilities",
            json!({"effective": ["CAP_KILL"]}),
            "process.capabilities: set: operation not permitted",
        ),
    ];
    for (pointer, value, expected) in cases {
        assert_eq!(Bundle::script("true").set(pointer, value).error(), expected);
    }
}

fn ids() {
    for id in ["", ".", "..", "a/b", "a b", "ä", "a\n"] {
        let mut bundle = Bundle::script("true");
        bundle.id = id.to_owned();
        let error = Container::create(bundle.options(TERMINAL)).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid container id {id:?}"));
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

fn a_missing_root() {
    let bundle = Bundle::script("true");
    let before = Leftovers::now(&bundle);
    let streams = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut options = bundle.options(streams);
    options.rootfs = "/no/such/root".into();
    let error = Container::create(options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "root file system /no/such/root: no such file or directory"
    );
    before.compare(&Leftovers::now(&bundle));
}

fn an_init_stage_that_cannot_be_executed() {
    let bundle = Bundle::script("true");
    let before = Leftovers::now(&bundle);
    let streams = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut options = bundle.options(streams);
    options.init_exe = "/etc/passwd".into();
    let error = Container::create(options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "execute the init stage: permission denied"
    );
    before.compare(&Leftovers::now(&bundle));
}

fn an_init_stage_that_is_something_else() {
    let bundle = Bundle::script("true");
    let before = Leftovers::now(&bundle);
    let streams = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut options = bundle.options(streams);
    options.init_exe = "/bin/busybox".into();
    let error = Container::create(options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the container's process exited with code 127 while it was being created"
    );
    before.compare(&Leftovers::now(&bundle));
}

/// CVE-2019-5736: who gets hold of the init stage's executable cannot write to it.
fn the_executable_cannot_be_overwritten() {
    let bundle = Bundle::with_args(&["/bin/sleep", "60"]);
    // A copy: nobody can write to what is being executed, and this process executes itself.
    let exe = bundle.dir.path().join("exe");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let streams = Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut options = bundle.options(streams);
    options.init_exe.clone_from(&exe);
    let mut container = Container::create(options).unwrap();
    let flags = rustix::fs::OFlags::PATH;
    let link = format!("/proc/{}/exe", container.pid());
    let held = rustix::fs::open(link, flags, rustix::fs::Mode::empty()).unwrap();
    container.start().unwrap();
    let write = |path: &std::path::Path| fs::OpenOptions::new().write(true).open(path);
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let error = write(again.as_ref()).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::ROFS.raw_os_error())
    );
    write(&exe).unwrap();
    container.delete().unwrap();
    crate::support::wait(&container);
}
