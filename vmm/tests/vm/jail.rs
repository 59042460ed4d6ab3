//! The confinement of a running VMM process, seen from outside.

use std::path::PathBuf;

use crate::harness::{Plan, Vm, kvm_expected};

fn running() -> Vm {
    let mut plan = Plan::new("hello wait");
    (plan.config.vcpus, plan.config.max_vcpus) = (2, 2);
    let vm = plan.start();
    vm.booted();
    vm
}

/// `/proc/PID/task/TID/status` of every thread.
fn statuses(vm: &Vm) -> Vec<String> {
    let tasks = PathBuf::from(format!("/proc/{}/task", vm.child.id()));
    (std::fs::read_dir(tasks).unwrap())
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].trim_start_matches(':').trim()
}

#[test]
fn every_thread_is_without_privileges() {
    if !kvm_expected("every_thread_is_without_privileges") {
        return;
    }
    let vm = running();
    let statuses = statuses(&vm);
    // The event thread, two vCPU threads, and what KVM starts by itself.
    assert!(statuses.len() >= 3, "{}", statuses.len());
    for status in statuses {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Seccomp"), "2");
        assert_eq!(field(&status, "Uid"), "65533\t65533\t65533\t65533");
        assert_eq!(field(&status, "Gid"), "65533\t65533\t65533\t65533");
        assert_eq!(field(&status, "Groups"), "");
    }
}

#[test]
fn the_root_is_empty_and_cannot_be_written() {
    if !kvm_expected("the_root_is_empty_and_cannot_be_written") {
        return;
    }
    let vm = running();
    let root = PathBuf::from(format!("/proc/{}/root", vm.child.id()));
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    assert!(std::fs::write(root.join("file"), "x").is_err());
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", vm.child.id())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let theirs = std::fs::read_link(format!("/proc/{}/ns/mnt", vm.child.id())).unwrap();
    assert_ne!(own, theirs);
}

#[test]
fn nothing_inherited_stays_open() {
    if !kvm_expected("nothing_inherited_stays_open") {
        return;
    }
    let leaked = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let vm = running();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", vm.child.id())).unwrap();
    for fd in fds {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap();
        let target = target.to_string_lossy();
        assert!(!target.ends_with("passwd"), "{target}");
        assert!(!target.starts_with("/dev/kvm"), "{target}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", vm.child.id())).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core")).unwrap();
    assert!(core.contains(" 0 "), "{core}");
}
