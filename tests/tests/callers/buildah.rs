//! Buildah: commands of a build, run by the runtime.

use std::fs;
use std::sync::Once;

use crate::harness::{
    Cmd, Finished, Machine, afterwards, busybox_tar, mount_tmpfs, report_logs, runtime,
};

/// One check. Dropping it removes every container and image and asserts that nothing is left.
struct Case {
    machine: Machine,
}

impl Case {
    fn new() -> Self {
        static STORAGE: Once = Once::new();
        Self {
            machine: Machine::alone(|| {
                STORAGE.call_once(|| {
                    mount_tmpfs("/var/lib/containers");
                    // What is made once and kept is made now; the tests tell whether it works.
                    let name = working_container();
                    run(&[], &name, "true").run();
                    buildah(&["rm", "--all"]).run();
                });
            }),
        }
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            afterwards(report_logs);
        }
        afterwards(|| {
            buildah(&["rm", "--all"]).run();
            buildah(&["rmi", "--all", "--force"]).run();
        });
        if !failed {
            self.machine.assert_clean(|| {
                Cmd::new("umount")
                    .args(["/var/lib/containers/storage/overlay"])
                    .run();
            });
        }
    }
}

fn buildah(args: &[&str]) -> Cmd {
    Cmd::new("buildah")
        .args(["--storage-driver", "overlay"])
        .args(args)
}

/// `buildah run OPTIONS NAME -- sh -c SCRIPT`
fn run(options: &[&str], name: &str, script: &str) -> Cmd {
    buildah(&[
        "run",
        "--isolation",
        "oci",
        "--network",
        "none",
        "--runtime",
        runtime(),
    ])
    .args(options)
    .args([name, "--", "sh", "-c", script])
}

fn working_container() -> String {
    let name = buildah(&["from", "scratch"]).run().ok().trim().to_owned();
    let tar = busybox_tar().to_string_lossy().into_owned();
    buildah(&["add", &name, &tar, "/"]).run().ok();
    name
}

/// Builds an image by a recipe, beside which busybox.tar is.
fn build(recipe: &str, options: &[&str]) -> Finished {
    let dir = tempfile::tempdir().expect("a directory");
    fs::copy(busybox_tar(), dir.path().join("busybox.tar")).expect("the layer");
    fs::write(dir.path().join("Dockerfile"), recipe).expect("Dockerfile");
    buildah(&[
        "bud",
        "--isolation",
        "oci",
        "--network",
        "none",
        "--runtime",
        runtime(),
    ])
    .args(options)
    .args([dir.path()])
    .run()
}

#[test]
fn run_writes_into_the_container() {
    let _case = Case::new();
    let name = working_container();
    let finished = run(&[], &name, "echo out; echo kept >/kept; exit 7").run();
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert!(finished.err().contains("exit status 7"), "{finished}");
    assert_eq!(run(&[], &name, "cat /kept").run().ok(), "kept\n");
}

#[test]
fn run_with_settings() {
    let _case = Case::new();
    let name = working_container();
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("file"), "volume\n").expect("a file");
    let volume = format!("{}:/data:ro", dir.path().display());
    let options = [
        "--user",
        "guest",
        "--env",
        "A=b",
        "--hostname",
        "builder",
        "-v",
        &volume,
    ];
    let out = run(&options, &name, "id -u; echo $A; hostname; cat /data/file")
        .run()
        .ok();
    assert_eq!(out, "1000\nb\nbuilder\nvolume\n");
}

#[test]
fn terminal() {
    let _case = Case::new();
    let name = working_container();
    let line = format!(
        "buildah --storage-driver overlay run --isolation oci --network none --tty --runtime {} {name} -- sh",
        runtime()
    );
    let shown = Cmd::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .input("test -t 0 && echo sum $((40+2))\nexit\n")
        .run();
    assert!(shown.out().contains("sum 42"), "{shown}");
}

#[test]
fn build_from_a_file() {
    let _case = Case::new();
    let recipe = "FROM scratch\nADD busybox.tar /\nENV WHO=build\nRUN echo $WHO >/who; id -u >>/who\n\
                  USER guest\nWORKDIR /home/guest\nRUN [\"sh\", \"-c\", \"cat /who; pwd; id -u\"]\n";
    let out = build(recipe, &["--tag", "built"]).ok();
    assert!(out.contains("build\n0\n/home/guest\n1000\n"), "{out}");
}

#[test]
fn a_build_fails_with_its_command() {
    let _case = Case::new();
    let recipe = "FROM scratch\nADD busybox.tar /\nRUN exit 9\n";
    let finished = build(recipe, &[]);
    assert_ne!(finished.status.code(), Some(0), "{finished}");
    assert!(finished.err().contains("exit status 9"), "{finished}");
}
