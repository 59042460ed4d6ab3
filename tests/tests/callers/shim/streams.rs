//! Where the output of tasks goes: files, logging programs, and `ctr` itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::eventually;

use super::Case;
use super::daemon::Version;

pub(super) fn a_file(version: Version) {
    let case = Case::new(version);
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("new/log");
    let uri = format!("file://{}", log.display());
    let finished = case.run(&["--log-uri", &uri], "f", "echo out; echo err >&2; exit 3");
    assert_eq!(finished.status.code(), Some(3), "{finished}");
    assert_eq!(finished.out(), "", "{finished}");
    assert_eq!(fs::read_to_string(&log).expect("the log"), "out\nerr\n");
}

/// A program that logs both streams: its first argument says what the second is.
fn logger(dir: &Path) -> String {
    let program = dir.join("logger");
    let script = "#!/bin/sh\n\
        exec >\"$2\" 2>&1\n\
        echo \"$1 $CONTAINER_NAMESPACE/$CONTAINER_ID\"\n\
        sed -u 's/^/3: /' <&3 5>&- & sed -u 's/^/4: /' <&4 5>&- &\n\
        test \"$3\" != --ready || printf x >&5\n\
        exec 3<&- 4<&- 5>&-\n\
        wait\n\
        echo ended\n";
    fs::write(&program, script).expect("the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
    program.display().to_string()
}

pub(super) fn a_logging_program(version: Version) {
    let case = Case::new(version);
    let dir = tempfile::tempdir().expect("a directory");
    let program = logger(dir.path());
    for (scheme, more) in [("binary", ""), ("binary-v2", "&--ready")] {
        let log = dir.path().join(scheme);
        let uri = format!("{scheme}://{program}?--to={}{more}", log.display());
        let finished = case.run(&["--log-uri", &uri], "b", "echo out; echo err >&2; exit 3");
        assert_eq!(finished.status.code(), Some(3), "{finished}");
        // It ends by itself, for nobody else has the streams.
        let text = || fs::read_to_string(&log).unwrap_or_default();
        eventually("the logging program has ended", || {
            text().ends_with("ended\n")
        });
        let text = text();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["--to default/b", "3: out", "4: err", "ended"]);
    }
}

pub(super) fn a_logging_program_that_is_not_there(version: Version) {
    let case = Case::new(version);
    let finished = case.run(&["--log-uri", "binary:///no/such/logger"], "b", "true");
    assert_ne!(finished.status.code(), Some(0), "{finished}");
    assert!(finished.err().contains("/no/such/logger"), "{finished}");
    let finished = case.run(&["--log-uri", "binary-v2:///bin/true"], "b", "true");
    assert_ne!(finished.status.code(), Some(0), "{finished}");
    assert!(
        finished.err().contains("did not say that it is ready"),
        "{finished}"
    );
}

pub(super) fn large_output(version: Version) {
    const SIZE: usize = 64 << 20;
    let case = Case::new(version);
    let script = format!("yes 0123456789abcdef0123456789abcde | head -c {SIZE}");
    let expected = b"0123456789abcdef0123456789abcde\n".repeat(SIZE / 32);
    // Through a FIFO and `ctr`, which writes slowly what the container writes fast; and straight into a file.
    let finished = case.run(&[], "fifo", &script);
    assert_eq!(finished.status.code(), Some(0), "{}", finished.err());
    assert!(
        finished.stdout == expected,
        "{} bytes differ",
        finished.stdout.len()
    );
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let uri = format!("file://{}", log.display());
    case.run(&["--log-uri", &uri], "file", &script).ok();
    let written = fs::read(&log).expect("the log");
    assert!(written == expected, "{} bytes differ", written.len());
}
