//! Who the program is, and what it may: user, environment, capabilities, limits.

use serde_json::json;

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    (
        "environment_is_the_specifications",
        environment_is_the_specifications,
    ),
    ("home_comes_from_passwd", home_comes_from_passwd),
    ("user_and_groups", user_and_groups),
    ("umask", umask),
    ("the_default_capabilities", the_default_capabilities),
    ("the_five_capability_sets", the_five_capability_sets),
    (
        "no_capabilities_without_the_field",
        no_capabilities_without_the_field,
    ),
    (
        "ambient_capabilities_survive_the_user",
        ambient_capabilities_survive_the_user,
    ),
    (
        "capabilities_that_cannot_be_granted_are_warnings",
        capabilities_that_cannot_be_granted_are_warnings,
    ),
    ("resource_limits", resource_limits),
    ("no_new_privileges", no_new_privileges),
    ("oom_score", oom_score),
    ("working_directory", working_directory),
    (
        "working_directory_that_only_the_user_may_enter",
        working_directory_that_only_the_user_may_enter,
    ),
    (
        "standard_streams_belong_to_the_user",
        standard_streams_belong_to_the_user,
    ),
    ("program_is_searched_in_path", program_is_searched_in_path),
];

fn environment_is_the_specifications() {
    let outcome = Bundle::with_args(&["env"])
        .set(
            "/process/env",
            json!(["PATH=/bin", "A=1", "HOME=/x", "A=2", "EMPTY="]),
        )
        .run();
    assert_eq!(outcome.lines(), ["PATH=/bin", "A=2", "HOME=/x", "EMPTY="]);
}

fn home_comes_from_passwd() {
    for (uid, home) in [(0, "/root"), (1000, "/tmp"), (4711, "/")] {
        let outcome = Bundle::script("echo $HOME")
            .set("/process/user/uid", json!(uid))
            .run();
        assert_eq!(outcome.lines(), [home]);
    }
    // What is not a file is not read: nobody writes to this FIFO.
    let bundle = Bundle::script("echo $HOME");
    let passwd = bundle.rootfs().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    assert_eq!(bundle.run().lines(), ["/"]);
}

fn user_and_groups() {
    let outcome =
        Bundle::script("grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -s '\t ' ' '")
            .set(
                "/process/user",
                json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7]}),
            )
            .run();
    let expected = [
        "Uid: 1000 1000 1000 1000",
        "Gid: 1001 1001 1001 1001",
        "Groups: 5 7 ",
    ];
    assert_eq!(outcome.lines(), expected);
    // None means none, not those of the caller.
    let outcome = Bundle::script("grep ^Groups: /proc/self/status | tr -d '\t '").run();
    assert_eq!(outcome.lines(), ["Groups:"]);
}

fn umask() {
    let script = "umask; touch /tmp/x; stat -c %a /tmp/x";
    assert_eq!(Bundle::script(script).run().lines(), ["0022", "644"]);
    let outcome = Bundle::script(script)
        .set("/process/user/umask", json!(0o27))
        .run();
    assert_eq!(outcome.lines(), ["0027", "640"]);
}

const CAPABILITIES: &str = "grep ^Cap /proc/self/status";

/// CAP_KILL, CAP_NET_BIND_SERVICE, CAP_AUDIT_WRITE
const DEFAULT: &str = "0000000020000420";

fn the_default_capabilities() {
    let outcome = Bundle::script(CAPABILITIES).run();
    let none = "0000000000000000";
    let expected = [none, DEFAULT, DEFAULT, DEFAULT, none];
    let names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let expected: Vec<String> = names
        .iter()
        .zip(expected)
        .map(|(name, set)| format!("{name}:\t{set}"))
        .collect();
    assert_eq!(outcome.lines(), expected);
}

fn the_five_capability_sets() {
    // As a user who is not root, what the program gets is what is ambient.
    let outcome = Bundle::with_args(&["/bin/grep", "^Cap", "/proc/self/status"])
        .set("/process/user/uid", json!(1000))
        .set(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"],
                "permitted": ["CAP_KILL", "CAP_CHOWN"],
                "effective": ["CAP_KILL"],
                "inheritable": ["CAP_KILL", "CAP_CHOWN"],
                "ambient": ["CAP_CHOWN"],
            }),
        )
        .run();
    assert_eq!(
        outcome.lines(),
        [
            "CapInh:\t0000000000000021",
            "CapPrm:\t0000000000000001",
            "CapEff:\t0000000000000001",
            "CapBnd:\t0000000000200021",
            "CapAmb:\t0000000000000001",
        ]
    );
}

fn no_capabilities_without_the_field() {
    let outcome = Bundle::script(CAPABILITIES)
        .set("/process/capabilities", json!(null))
        .run();
    assert!(
        outcome
            .lines()
            .iter()
            .all(|line| line.ends_with("0000000000000000")),
        "{outcome:?}"
    );
}

fn ambient_capabilities_survive_the_user() {
    let all = json!(["CAP_CHOWN"]);
    let script = "touch /tmp/x; chown 7:7 /tmp/x; stat -c %u /tmp/x";
    let bundle = |ambient: serde_json::Value| {
        let bundle = Bundle::script(script).set("/process/user/uid", json!(1000));
        std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(1000), None).unwrap();
        bundle.set(
            "/process/capabilities",
            json!({"bounding": all, "permitted": all, "effective": all, "inheritable": all, "ambient": ambient}),
        )
    };
    assert_eq!(bundle(all.clone()).run().lines(), ["7"]);
    assert_eq!(bundle(json!([])).run().lines(), ["1000"]);
}

fn capabilities_that_cannot_be_granted_are_warnings() {
    let outcome = Bundle::script("true")
        .set(
            "/process/capabilities/ambient",
            json!(["CAP_KILL", "CAP_NONSENSE"]),
        )
        .run();
    assert_eq!(
        outcome.warnings,
        [
            "process.capabilities.ambient[1]: unknown capability \"CAP_NONSENSE\", ignored",
            "process.capabilities.ambient[0]: CAP_KILL is not granted: it is not both permitted and inheritable",
        ]
    );
}

fn resource_limits() {
    let outcome = Bundle::script(
        "grep -E '^Max (open files|core|processes|cpu)' /proc/self/limits | tr -s ' '",
    )
    .set(
        "/process/rlimits",
        json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
            {"type": "RLIMIT_CPU", "soft": 1000, "hard": 1000},
        ]),
    )
    .run();
    let lines = outcome.lines();
    assert!(
        lines.contains(&"Max open files 100 200 files "),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"Max core file size 0 4096 bytes "),
        "{lines:?}"
    );
    assert!(
        lines.contains(&"Max cpu time 1000 1000 seconds "),
        "{lines:?}"
    );
}

fn no_new_privileges() {
    let script = "grep NoNewPrivs /proc/self/status";
    assert_eq!(Bundle::script(script).run().lines(), ["NoNewPrivs:\t1"]);
    let outcome = Bundle::script(script)
        .set("/process/noNewPrivileges", json!(false))
        .run();
    assert_eq!(outcome.lines(), ["NoNewPrivs:\t0"]);
}

fn oom_score() {
    let script = "cat /proc/self/oom_score_adj";
    let inherited = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(Bundle::script(script).run().stdout, inherited);
    let outcome = Bundle::script(script)
        .set("/process/oomScoreAdj", json!(500))
        .run();
    assert_eq!(outcome.lines(), ["500"]);
}

fn working_directory() {
    let outcome = Bundle::script("pwd; stat -c %a .")
        .set("/process/cwd", json!("/a/new/one"))
        .run();
    assert_eq!(outcome.lines(), ["/a/new/one", "755"]);
    // CVE-2024-21626: a descriptor of the outside is no way out.
    let error = Bundle::script("pwd")
        .set("/process/cwd", json!("/proc/self/fd/3"))
        .error();
    assert!(error.contains("cwd"), "{error}");
    let error = Bundle::script("pwd")
        .set("/process/cwd", json!("/etc/passwd"))
        .error();
    assert!(error.ends_with("not a directory"), "{error}");
}

fn working_directory_that_only_the_user_may_enter() {
    let bundle = |uid: u32| {
        let bundle = Bundle::script("pwd").set("/process/user/uid", json!(uid));
        let dir = bundle.rootfs().join("private");
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&dir, mode).unwrap();
        bundle.set("/process/cwd", json!("/private"))
    };
    assert_eq!(bundle(1000).run().lines(), ["/private"]);
}

fn standard_streams_belong_to_the_user() {
    let outcome = Bundle::script("echo again > /dev/stdout")
        .set("/process/user/uid", json!(1000))
        .run();
    assert_eq!(outcome.lines(), ["again"]);
}

fn program_is_searched_in_path() {
    let outcome = Bundle::with_args(&["echo", "found"])
        .set("/process/env", json!(["PATH=/nowhere:/bin"]))
        .run();
    assert_eq!(outcome.lines(), ["found"]);
    let outcome = Bundle::with_args(&["./echo", "found"])
        .set("/process/cwd", json!("/bin"))
        .run();
    assert_eq!(outcome.lines(), ["found"]);
}
