//! runC's own walk-through, word for word, with `cloister` in place of `runc`.

use super::harness::{Bundle, Cmd, eventually};

#[test]
fn the_walkthrough_of_runc() {
    // mkdir /mycontainer; cd /mycontainer; mkdir rootfs; fill it; runc spec
    let bundle = Bundle::new(&["sh"]);
    std::fs::remove_file(bundle.config()).expect("config.json");
    Cmd::new("cloister")
        .args(["spec"])
        .dir(bundle.path())
        .run()
        .ok();
    Cmd::new("cloister")
        .args(["spec"])
        .dir(bundle.path())
        .run()
        .fails(1, &["config.json", "exist"]);

    // The specification's shell, with a terminal: `runc run mycontainerid`.
    let script = format!(
        "cd {} && printf 'echo in-$((40 + 2)); exit\\n' | script -qec 'cloister --root {} run mycontainerid' /dev/null",
        bundle.path().display(),
        bundle.state_root().display()
    );
    let session = Cmd::new("sh").args(["-c", &script]).run();
    assert!(session.out().contains("in-42"), "{session}");

    // "Remove the terminal setting, sleep": create, list, start, kill, delete.
    let bundle = bundle.with(|spec| {
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["sleep", "5"]);
    });
    let command = |args: &[&str]| {
        Cmd::new("cloister")
            .args([std::path::Path::new("--root"), &bundle.state_root()])
            .args(args)
            .dir(bundle.path())
    };
    let cloister = |args: &[&str]| command(args).run();
    command(&["create", "mycontainerid"]).outlived().run().ok();
    assert!(cloister(&["list"]).ok().contains("created"));
    cloister(&["start", "mycontainerid"]).ok();
    assert!(cloister(&["list"]).ok().contains("running"));
    eventually("stopped", || cloister(&["list"]).ok().contains("stopped"));
    cloister(&["delete", "mycontainerid"]).ok();
    assert!(!cloister(&["list"]).ok().contains("mycontainerid"));
}
