//! `docs/containerd.md`, as it is printed.

use std::fs;

use crate::harness::{Cmd, Page};

use super::Case;
use super::daemon::Version;

pub(super) fn containerd(version: Version) {
    let case = Case::new(version);
    let mut page = Page::open("containerd.md");
    // The bed has what `make stage` installs by the same rule.
    page.pass("", "make install\n");
    let commands = page.take("");
    let mut commands = commands.lines();
    let ctr = version.program("ctr");
    let path = format!(
        "{}:/usr/bin:/bin",
        ctr.parent().expect("a directory").display()
    );
    let line = commands.next().expect("a command");
    let ran = Cmd::new("sh").args(["-c", line]).env("PATH", path).run();
    assert_eq!(ran.ok(), "hello\n");
    // Debian has no nerdctl.
    let nerdctl = "nerdctl run --runtime io.containerd.cloister.v2 --rm busybox echo hello";
    assert_eq!(commands.next(), Some(nerdctl));
    assert_eq!(commands.next(), None);
    // What nodes of the tests of pods are configured with.
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/containerd/version-2.toml"
    );
    let file = fs::read_to_string(file).expect("a configuration");
    let lines = page.take("toml");
    assert!(lines.lines().count() == 3, "three lines: {lines}");
    for line in lines.lines() {
        assert!(
            file.lines().any(|other| other == line),
            "no {line} in {file}"
        );
    }
    page.assert_followed();
    assert_eq!(case.status("hello"), "gone");
}
