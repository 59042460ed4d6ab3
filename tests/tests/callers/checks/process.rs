//! The rights of the container's process.

use crate::harness::Case;

fn status(case: &Case, options: &[&str], field: &str) -> String {
    let out = case.sh_ok(options, "cat /proc/self/status");
    let line = out.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field} in {out}"))
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

pub(crate) fn user(case: &Case) {
    assert_eq!(
        case.sh_ok(&["--user", "guest"], "id -u; id -g; id -G; echo $HOME"),
        "1000\n1000\n1000 2000\n/home/guest\n"
    );
    let numbers = ["--user", "1234:5678", "--group-add", "99"];
    let out = case.sh_ok(
        &numbers,
        "id -u; id -G; touch /tmp/mine && stat -c %u:%g /tmp/mine",
    );
    assert_eq!(out, "1234\n5678 99\n1234:5678\n");
}

pub(crate) fn capabilities(case: &Case) {
    assert_eq!(
        status(case, &["--cap-drop", "ALL"], "CapEff"),
        "0000000000000000"
    );
    let added = ["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"];
    assert_eq!(status(case, &added, "CapBnd"), "0000000000001000");
    let usual = status(case, &[], "CapEff");
    assert_ne!(usual, "0000000000000000");
    assert_ne!(usual, "000001ffffffffff");
}

pub(crate) fn no_new_privileges(case: &Case) {
    assert_eq!(status(case, &[], "NoNewPrivs"), "0");
    let options = ["--security-opt", "no-new-privileges"];
    assert_eq!(status(case, &options, "NoNewPrivs"), "1");
}

pub(crate) fn seccomp(case: &Case) {
    assert_eq!(status(case, &[], "Seccomp"), "2");
    let options = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(status(case, &options, "Seccomp"), "0");
}

pub(crate) fn sysctl(case: &Case) {
    let options = [
        "--sysctl",
        "kernel.msgmax=12345",
        "--sysctl",
        "net.ipv4.ip_forward=1",
    ];
    let out = case.sh_ok(
        &options,
        "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward",
    );
    assert_eq!(out, "12345\n1\n");
}
