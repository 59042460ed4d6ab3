//! The shim's program, called as containerd calls it, and wrongly.

use std::fs;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::types::introspection::RuntimeInfo;

use crate::harness::{Cmd, Machine};

use super::PROGRAM;

fn shim<'a>(words: impl IntoIterator<Item = &'a str>) -> Cmd {
    Cmd::new(PROGRAM).args(words)
}

#[test]
fn version() {
    let machine = Machine::alone(|| ());
    for flag in ["-v", "-version", "--version"] {
        let shown = shim([flag]).run().ok();
        assert!(
            shown.starts_with("io.containerd.cloister.v2:\n  Version: "),
            "{shown}"
        );
    }
    machine.assert_clean(|| ());
}

#[test]
fn what_is_wrong_is_said() {
    let machine = Machine::alone(|| ());
    let id = ["-namespace", "n", "-id", "x"];
    for (words, message) in [
        (
            &["-shape", "start"][..],
            "flag provided but not defined: -shape",
        ),
        (&["-id"], "flag needs an argument: -id"),
        (&["stop"], "unknown action \"stop\""),
        (&["-namespace", "n", "start"], "-id"),
        (&["-namespace", "n", "-id", "../x", "start"], "-id"),
        (&["-id", "x", "start"], "-namespace"),
        (&id, "the shim is started by its action start"),
    ] {
        let finished = shim(words.iter().copied()).run();
        assert_eq!(finished.status.code(), Some(1), "{words:?}: {finished}");
        assert_eq!(finished.out(), "", "{words:?}: {finished}");
        assert!(finished.err().contains(message), "{words:?}: {finished}");
    }
    machine.assert_clean(|| ());
}

#[test]
fn info() {
    let machine = Machine::alone(|| ());
    let given = Any {
        type_url: "runtimeoptions.v1.Options".into(),
        value: vec![],
        ..Any::default()
    };
    let input = given.write_to_bytes().expect("a message");
    for input in [vec![], input] {
        let has_options = !input.is_empty();
        let finished = shim(["-info"]).input(input).run();
        assert_eq!(finished.status.code(), Some(0), "{finished}");
        let info = RuntimeInfo::parse_from_bytes(&finished.stdout).expect("RuntimeInfo");
        assert_eq!(info.name, "io.containerd.cloister.v2");
        assert!(!info.version.version.is_empty());
        assert_eq!(info.options.is_some(), has_options);
        let features = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
        assert_eq!(info.features.type_url, features);
        let features: serde_json::Value =
            serde_json::from_slice(&info.features.value).expect("JSON");
        assert!(features["ociVersionMax"].is_string(), "{features}");
        // Whatever else a root file system is to be made of, containerd's mount manager makes.
        assert!(info.annotations.is_empty(), "{info}");
    }
    machine.assert_clean(|| ());
}

/// `ctr` gives such options to runc's shim alone: a peer gives them here.
#[test]
fn options_that_cannot_be_followed_are_named() {
    let machine = Machine::alone(|| ());
    let dir = tempfile::tempdir().expect("a bundle");
    let runcs = |change: fn(&mut oci::Options)| {
        let mut options = oci::Options::default();
        change(&mut options);
        let value = options.write_to_bytes().expect("a message");
        ("containerd.runc.v1.Options", value)
    };
    for ((type_url, value), message) in [
        (runcs(|o| o.binary_name = "crun".into()), "BinaryName"),
        (runcs(|o| o.shim_cgroup = "/x".into()), "ShimCgroup"),
        (runcs(|o| o.io_uid = 7), "IoUid"),
        (runcs(|o| o.io_gid = 7), "IoGid"),
        (runcs(|o| o.criu_image_path = "/x".into()), "CriuImagePath"),
        (runcs(|o| o.criu_work_path = "/x".into()), "CriuWorkPath"),
        (("kata.Options", vec![]), "kata.Options"),
        (("containerd.runc.v1.Options", vec![0xff]), "malformed"),
    ] {
        let any = Any {
            type_url: type_url.into(),
            value,
            ..Any::default()
        };
        let finished = shim(["-namespace", "n", "-id", "x", "-address", "a", "start"])
            .dir(dir.path())
            .input(any.write_to_bytes().expect("a message"))
            .run();
        assert_eq!(finished.status.code(), Some(1), "{message}: {finished}");
        assert!(finished.err().contains(message), "{message}: {finished}");
        let left: Vec<_> = fs::read_dir(dir.path()).expect("the bundle").collect();
        assert!(left.is_empty(), "{left:?}");
    }
    drop(dir);
    machine.assert_clean(|| ());
}
