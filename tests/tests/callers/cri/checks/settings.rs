//! What the configuration of a runtime class says, and what it lets pods choose.

use std::fs;

use crate::cri::client::Refusal;
use crate::cri::daemon::Node;
use crate::cri::pod::{Case, Pod};

use super::figures::{MIB, assert_within, size_of};

fn configure(case: &Case, text: &str) {
    let (_, file) = case.node.chosen();
    fs::write(file, text).unwrap_or_else(|e| panic!("{file}: {e}"));
}

/// Runs a pod that asks for settings.
fn run(case: &Case, handler: &str, asked: &[(&str, &str)]) -> Result<Pod, Refusal> {
    let mut config = case.config("chosen");
    let asked = asked
        .iter()
        .map(|&(key, value)| (format!("io.cloister.{key}"), value.to_owned()));
    config.annotations = asked.collect();
    case.run_with(handler, config)
}

/// Asserts how large a pod's virtual machine is; some of its memory is the kernel's.
fn assert_size(pod: &Pod, memory_mib: u64, vcpus: usize) {
    let (memory, processors) = size_of(pod);
    assert_within(
        "MemTotal",
        memory,
        (memory_mib - 56) * MIB,
        memory_mib * MIB,
    );
    assert_eq!(processors, vcpus);
    pod.stop();
    pod.remove();
}

pub(crate) fn of_a_file(case: &Case) {
    let (handler, _) = case.node.chosen();
    for (memory_mib, vcpus) in [(256, 1), (192, 2)] {
        configure(
            case,
            &format!("memory_mib = {memory_mib}\nvcpus = {vcpus}\n"),
        );
        let pod = run(case, handler, &[]).unwrap_or_else(|refusal| panic!("{refusal}"));
        assert_size(&pod, memory_mib, vcpus);
    }
}

pub(crate) fn of_annotations(case: &Case) {
    let (handler, _) = case.node.chosen();
    let asked = [("memory_mib", "320"), ("vcpus", "2")];
    configure(case, "allowed_annotations = [\"memory_mib\", \"vcpus\"]\n");
    let pod = run(case, handler, &asked).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_size(&pod, 320, 2);
    configure(
        case,
        "memory_mib = 192\nallowed_annotations = [\"vcpus\"]\n",
    );
    let pod = run(case, handler, &asked[1..]).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_size(&pod, 192, 2);
    for (asked, parts) in [
        (
            &asked[..],
            ["io.cloister.memory_mib", "allowed_annotations"],
        ),
        (&[("vcpus", "many")], ["io.cloister.vcpus", "many"]),
        (
            &[("colour", "blue")],
            ["io.cloister.colour", "no such setting"],
        ),
    ] {
        let refused = run(case, handler, asked)
            .err()
            .expect("what is not allowed");
        for part in parts {
            assert!(refused.message.contains(part), "no {part}: {refused}");
        }
    }
    if case.node == Node::V2Shim {
        // There the shim sees all annotations of a pod.
        return;
    }
    let pod =
        run(case, "cloister-chosen-alone", &asked).unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_size(&pod, 192, 1);
}
