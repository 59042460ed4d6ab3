//! Containers that live and end, and what can happen to them.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};

use super::harness::{Setup, eventually, finish, read};

fn pid_of(value: &serde_json::Value) -> Pid {
    Pid::from_raw(value.as_i64().unwrap().try_into().unwrap()).unwrap()
}

#[test]
fn streams_are_separate_and_the_exit_code_is_the_workloads() {
    let setup = Setup::new(&["say", "to out", "to err", "42"]);
    let finished = setup.run(&["run", "x"]);
    assert_eq!(finished.code, Some(42), "{finished:?}");
    assert_eq!((&*finished.out, &*finished.err), ("to out", "to err"));
    setup.assert_nothing_left("x");
    let finished = Setup::new(&["die", "11"]).run(&["run", "x"]);
    assert_eq!(finished.code, Some(128 + 11), "{finished:?}");
}

#[test]
fn input_passes_through_whole() {
    let setup = Setup::new(&["cat"]);
    let input = "0123456789abcdef".repeat(1 << 16);
    let mut command = setup.command(&["run", "x"]);
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    assert!(finish(child, input.as_bytes()).ok() == input);
    // A regular file as well, which cannot be polled.
    let file = setup.path("input");
    fs::write(&file, &input).unwrap();
    let mut command = setup.command(&["run", "x"]);
    let child = command
        .stdin(fs::File::open(&file).unwrap())
        .spawn()
        .unwrap();
    assert!(finish(child, b"").ok() == input);
    setup.assert_nothing_left("x");
}

#[test]
fn created_running_stopped_deleted() {
    let setup =
        Setup::new(&["sleep"]).with(|spec| spec["annotations"] = serde_json::json!({"k": "v"}));
    let pid_file = setup.path("pid");
    setup
        .run_detached(&["create", "--pid-file", pid_file.to_str().unwrap(), "x"])
        .ok();
    let state = setup.state("x");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "x");
    assert_eq!(state["ociVersion"], "1.0.2");
    assert_eq!(state["bundle"], setup.path("bundle").to_str().unwrap());
    assert_eq!(
        state["rootfs"],
        setup.path("bundle/rootfs").to_str().unwrap()
    );
    assert_eq!(state["annotations"]["k"], "v");
    assert_eq!(state["pid"].to_string(), read(&pid_file));
    let pid = pid_of(&state["pid"]).as_raw_pid();
    assert_eq!(read(format!("/proc/{pid}/comm").as_ref()), "cloister\n");
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(namespace(&pid.to_string()), namespace("self"));

    setup
        .run(&["run", "x"])
        .fails(1, &["container with given ID already exists: x"]);
    setup.run(&["start", "x"]).ok();
    assert_eq!(setup.state("x")["status"], "running");
    setup
        .run(&["start", "x"])
        .fails(1, &["cannot start an already running container: x"]);
    setup.run(&["delete", "x"]).fails(
        1,
        &["cannot delete container x that is not stopped: running"],
    );
    let table = setup.run(&["list"]).ok();
    assert!(
        table.lines().nth(1).unwrap().starts_with("x           "),
        "{table}"
    );
    assert!(table.contains(" running     /"), "{table}");
    let list: serde_json::Value =
        serde_json::from_str(&setup.run(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(list[0]["id"], "x");
    assert_eq!(list[0]["owner"], "root");

    setup
        .run(&["kill", "x", "NOPE"])
        .fails(1, &["unknown signal \\\"NOPE\\\""]);
    setup.run(&["kill", "x", "USR1"]).ok();
    eventually("it is stopped", || setup.state("x")["status"] == "stopped");
    assert_eq!(setup.state("x")["pid"], 0);
    setup
        .run(&["kill", "x"])
        .fails(1, &["container not running: x"]);
    setup
        .run(&["start", "x"])
        .fails(1, &["cannot start a container that has stopped: x"]);
    setup.run(&["delete", "x"]).ok();
    setup
        .run(&["state", "x"])
        .fails(1, &["container does not exist: x"]);
    setup.assert_nothing_left("x");
}

#[test]
fn a_created_container_is_deleted_without_force_and_a_running_one_with() {
    let setup = Setup::new(&["sleep"]);
    setup.run_detached(&["create", "x"]).ok();
    setup.run(&["delete", "x"]).ok();
    setup.assert_nothing_left("x");
    setup.run_detached(&["run", "--detach", "x"]).ok();
    assert_eq!(setup.state("x")["status"], "running");
    setup.run(&["delete", "--force", "x"]).ok();
    setup.assert_nothing_left("x");
}

#[test]
fn a_container_whose_state_cannot_be_read_is_deleted_by_force_with_its_processes() {
    let setup = Setup::new(&["sleep"]);
    let newer: fn(&str) -> String = |text| {
        let mut state: serde_json::Value = serde_json::from_str(text).unwrap();
        state["version"] = 99.into();
        state["monitor"]["new"] = true.into();
        state.to_string()
    };
    let half: fn(&str) -> String = |text| text[..text.len() / 2].to_owned();
    let nothing: fn(&str) -> String = |_| String::new();
    for (damage, message) in [
        (newer, "version 99 of the state file is not understood"),
        (half, "is damaged"),
        (nothing, "is damaged"),
    ] {
        setup.run_detached(&["run", "--detach", "x"]).ok();
        let path = setup.root().join("x/state.json");
        fs::write(&path, damage(&read(&path))).unwrap();
        setup.run(&["delete", "x"]).fails(1, &[message]);
        assert!(path.exists());
        setup.run(&["delete", "--force", "x"]).fails(0, &[message]);
        setup.assert_nothing_left("x");
    }
}

#[test]
fn a_container_of_another_boot_has_stopped_and_nobody_is_killed_for_it() {
    let setup = Setup::new(&["sleep"]);
    setup.run_detached(&["create", "x"]).ok();
    let path = setup.root().join("x/state.json");
    let mut state: serde_json::Value = serde_json::from_str(&read(&path)).unwrap();
    state["boot_id"] = "7a1f3a8e-0000-4000-8000-000000000000".into();
    fs::write(&path, state.to_string()).unwrap();
    assert_eq!(setup.state("x")["status"], "stopped");
    assert_eq!(setup.state("x")["pid"], 0);
    setup.run(&["delete", "x"]).ok();
    assert!(!setup.root().join("x").exists());
    // What has the pids of the monitor and the VMM now, and was born at the same tick.
    for name in ["monitor", "vmm", "fs"] {
        rustix::process::test_kill_process(pid_of(&state[name]["pid"])).unwrap();
    }
    kill_process(pid_of(&state["monitor"]["pid"]), Signal::KILL).unwrap();
    setup.assert_nothing_left("x");
}

#[test]
fn what_is_left_of_a_container_that_never_was_is_removed() {
    let setup = Setup::new(&["sleep"]);
    for (options, code) in [(&["delete", "x"][..], 1), (&["delete", "--force", "x"], 0)] {
        fs::create_dir_all(setup.root().join("x/execs")).unwrap();
        let finished = setup.run(options);
        let told = finished.err.contains("container does not exist: x");
        assert_eq!((finished.code, told), (Some(code), code != 0));
        setup.assert_nothing_left("x");
    }
}

#[test]
fn the_monitor_dies_by_the_signal_that_killed_the_workload() {
    use std::os::unix::process::ExitStatusExt;
    // The child of a process that ends is this process' child then.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let setup = Setup::new(&["sleep"]);
    for (signal, keeps) in [("USR1", 10), ("SEGV", 11)] {
        setup.run_detached(&["run", "--detach", "x"]).ok();
        let pid = pid_of(&setup.state("x")["pid"]);
        setup.run(&["kill", "x", signal]).ok();
        let (_, status) =
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
                .unwrap()
                .unwrap();
        let status = std::process::ExitStatus::from_raw(status.as_raw());
        assert_eq!(status.signal(), Some(keeps));
        assert!(!status.core_dumped());
        setup.run(&["delete", "x"]).ok();
    }
}

#[test]
fn signals_to_the_command_and_to_the_monitor_are_the_workloads() {
    let setup = Setup::new(&["sleep"]);
    for to_monitor in [true, false] {
        let child = setup.command(&["run", "x"]).spawn().unwrap();
        let running = || {
            let state = setup.run(&["state", "x"]);
            state.out.contains("\"running\"")
        };
        eventually("it runs", running);
        let pid = if to_monitor {
            pid_of(&setup.state("x")["pid"])
        } else {
            Pid::from_child(&child)
        };
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(finish(child, b"").code, Some(128 + 15));
        setup.assert_nothing_left("x");
    }
}

#[test]
fn a_monitor_that_is_killed_takes_everything_with_it() {
    let setup = Setup::new(&["sleep"]);
    let child = setup.command(&["run", "x"]).spawn().unwrap();
    eventually("it runs", || {
        setup.run(&["state", "x"]).out.contains("\"running\"")
    });
    kill_process(pid_of(&setup.state("x")["pid"]), Signal::KILL).unwrap();
    let finished = finish(child, b"");
    finished.fails(137, &["the monitor was killed by signal 9"]);
    setup.assert_nothing_left("x");

    setup.run_detached(&["run", "--detach", "x"]).ok();
    kill_process(pid_of(&setup.state("x")["pid"]), Signal::KILL).unwrap();
    eventually("it is stopped", || setup.state("x")["status"] == "stopped");
    setup.run(&["delete", "x"]).ok();
    setup.assert_nothing_left("x");
}

#[test]
fn a_vmm_that_ends_under_the_workload_is_told() {
    let setup = Setup::new(&["panic"]).behaving("");
    let finished = setup.run(&["run", "x"]);
    // It may be that the start is not even answered.
    assert!(matches!(finished.code, Some(1 | 255)), "{finished:?}");
    assert!(
        finished.err.contains("was killed by signal 6"),
        "{finished:?}"
    );
    assert!(finished.err.contains("    Linux version 0"), "{finished:?}");
    setup.assert_nothing_left("x");

    let setup = Setup::new(&["sleep"]);
    let child = setup.command(&["run", "x"]).spawn().unwrap();
    eventually("it runs", || {
        setup.run(&["state", "x"]).out.contains("\"running\"")
    });
    let state: serde_json::Value =
        serde_json::from_str(&read(&setup.root().join("x/state.json"))).unwrap();
    kill_process(pid_of(&state["vmm"]["pid"]), Signal::KILL).unwrap();
    finish(child, b"").fails(
        255,
        &[
            "the virtual machine ended: its process was killed by signal 9",
            "    Linux version 0",
            "    {\"msg\":\"agent starts\"}",
        ],
    );
    setup.assert_nothing_left("x");
}

#[test]
fn a_guest_that_does_not_answer_is_killed_with_its_machine() {
    let setup = Setup::new(&["sleep"]).behaving("hang");
    setup.run_detached(&["run", "--detach", "x"]).ok();
    let impatient = |args: &[&str]| {
        let mut command = setup.command(args);
        command.env("CLOISTER_REQUEST_TIMEOUT_S", "1");
        finish(command.spawn().unwrap(), b"")
    };
    impatient(&["kill", "x", "TERM"]).fails(1, &["did not answer Hello within 1 s"]);
    assert_eq!(setup.state("x")["status"], "running");
    impatient(&["kill", "x", "KILL"]).ok();
    eventually("it is stopped", || setup.state("x")["status"] == "stopped");
    setup.run(&["delete", "x"]).ok();
    setup.assert_nothing_left("x");
}

#[test]
fn a_command_that_is_killed_while_it_creates_leaves_nothing() {
    let setup = Setup::new(&["cat"]).behaving("silent");
    for kept in ["create", "run"] {
        let mut child = setup.command(&[kept, "x"]).spawn().unwrap();
        eventually("the monitor has begun", || {
            setup.root().join("x/state.json").exists()
        });
        assert_eq!(setup.state("x")["status"], "creating");
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the directory is gone", || !setup.root().join("x").exists());
        setup.assert_nothing_left("x");
    }
}

#[test]
fn a_console_socket_gets_the_terminal() {
    let setup = Setup::new(&["size"]).with(|spec| spec["process"]["terminal"] = true.into());
    let path = setup.path("console");
    let listener = UnixListener::bind(&path).unwrap();
    setup
        .run_detached(&["create", "--console-socket", path.to_str().unwrap(), "x"])
        .ok();
    let (socket, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [IoSliceMut::new(&mut name)];
    recvmsg(&socket, &mut name, &mut control, RecvFlags::empty()).unwrap();
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut master = fs::File::from(master.unwrap());
    setup.run(&["start", "x"]).ok();
    let mut line = [0; 4];
    master.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"0x0\n");
    eventually("it is stopped", || setup.state("x")["status"] == "stopped");
    // As the terminal of a process that has ended.
    let end = master.read(&mut line);
    assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EIO));
    setup.run(&["delete", "x"]).ok();
    setup.assert_nothing_left("x");
}

#[test]
fn the_timeline_tells_the_phases_in_their_order() {
    let setup = Setup::new(&["say", "", "", "0"]);
    let file = setup.path("timeline.json");
    setup
        .run(&["--timeline", file.to_str().unwrap(), "run", "x"])
        .ok();
    let phases: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&read(&file)).unwrap();
    let order = [
        "exec",
        "monitor_main",
        "machine_started",
        "agent_connected",
        "agent_ready",
        "container_created",
        "process_started",
        "exit_seen",
        "output_delivered",
        "container_deleted",
        "cleaned_up",
    ];
    let times = order.map(|phase| phases[phase].as_u64().unwrap());
    assert!(times.is_sorted(), "{phases:?}");
    assert!(times[0] > 0);
}
