//! CRI-O itself, configured as `docs/kubernetes.md` says. Debian has none: `CLOISTER_TEST_CRIO` names a directory with its
//! programs `crio` and `pinns`, and the tests are run by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use protobuf::{Message, MessageField};
use serde_json::json;

use super::checks::page::{CRI_O, CRI_O_OCI};
use super::client::call;
use super::messages as cri;
use crate::harness::{
    Cmd, Machine, afterwards, eventually, image_archive, mount_tmpfs, program_archive, report_logs,
};

const SOCKET: &str = "/run/crio/crio.sock";
const LOG: &str = "/run/crio.log";
const LOGS: &str = "/var/log/pods/crio";
const IMAGE: &str = "docker.io/library/busybox:latest";
const PAUSE_IMAGE: &str = "docker.io/library/pause:latest";
/// Says on which kernel it runs, and ends when it is asked to.
const SCRIPT: &str =
    "cat /proc/sys/kernel/random/boot_id; trap 'exit 3' TERM; while :; do sleep 0.1; done";

struct Daemon(Child);

fn ask<A: Message>(method: &str, request: &impl Message) -> A {
    call(SOCKET, method, request).unwrap_or_else(|refusal| panic!("{method}: {refusal}"))
}

fn write(path: &str, text: &str) {
    let dir = Path::new(path).parent().expect("a directory");
    fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{path}: {e}"));
    fs::write(path, text).unwrap_or_else(|e| panic!("{path}: {e}"));
}

impl Daemon {
    /// Starts it with a runtime.
    fn start(runtime: &str) -> Self {
        let place = std::env::var_os("CLOISTER_TEST_CRIO").expect("CLOISTER_TEST_CRIO");
        let programs = PathBuf::from(place);
        let pinns = programs.join("pinns").display().to_string();
        // The section is there already.
        let runtime = runtime.trim_start_matches("[crio.runtime]\n");
        let config = format!(
            "[crio]\nroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n\
             storage_driver = \"overlay\"\n\
             [crio.api]\nlisten = \"{SOCKET}\"\nstream_address = \"127.0.0.1\"\n\
             [crio.runtime]\ndefault_runtime = \"cloister\"\npinns_path = \"{pinns}\"\nselinux = false\n\
             cgroup_manager = \"cgroupfs\"\nconmon_cgroup = \"pod\"\napparmor_profile = \"unconfined\"\n\
             {runtime}\
             [crio.image]\npause_image = \"{PAUSE_IMAGE}\"\npause_command = \"\"\n\
             [crio.network]\nnetwork_dir = \"/etc/cni/crio\"\nplugin_dirs = [\"/usr/lib/cni\"]\n"
        );
        write("/etc/crio/crio.conf", &config);
        write(
            "/etc/containers/policy.json",
            "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}",
        );
        let network = json!({
            "cniVersion": "0.4.0", "name": "crio",
            "plugins": [{
                "type": "bridge", "bridge": "crio0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": "10.88.10.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        });
        write("/etc/cni/crio/10-crio.conflist", &network.to_string());
        mount_tmpfs("/var/lib/containers");
        let program = Path::new("/usr/local/libexec/cloister/cloister-pause");
        let settings = json!({"Entrypoint": ["/cloister-pause"], "Env": ["PATH=/"]});
        let pause = program_archive(program, PAUSE_IMAGE, &settings);
        for archive in [image_archive(), &pause] {
            let archive = archive.to_string_lossy();
            Cmd::new("podman")
                .args(["--storage-driver", "overlay", "load", "--input", &archive])
                .run()
                .ok();
        }
        let log = fs::File::create(LOG).expect("the daemon's log");
        let child = Command::new(programs.join("crio"))
            .args(["--config", "/etc/crio/crio.conf", "--config-dir", ""])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("CRI-O");
        let this = Self(child);
        eventually("CRI-O is ready for pods", || {
            call::<cri::StatusResponse>(SOCKET, "Status", &cri::Empty::new()).is_ok_and(|answer| {
                answer
                    .status
                    .conditions
                    .iter()
                    .all(|condition| condition.status)
            })
        });
        this
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = fs::read_to_string(LOG).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!(
                "=== {LOG}\n{}",
                lines[lines.len().saturating_sub(80)..].join("\n")
            );
            afterwards(report_logs);
        }
        let listed =
            call::<cri::ListPodSandboxResponse>(SOCKET, "ListPodSandbox", &cri::Empty::new());
        for pod in listed.map(|listed| listed.items).unwrap_or_default() {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let request = by_pod(&pod.id);
                if let Err(refusal) = call::<cri::Empty>(SOCKET, method, &request) {
                    eprintln!("{method}: {refusal}");
                }
            }
        }
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

fn by_pod(id: &str) -> cri::PodSandboxRequest {
    cri::PodSandboxRequest {
        pod_sandbox_id: id.to_owned(),
        ..Default::default()
    }
}

fn by_container(id: &str) -> cri::ContainerRequest {
    cri::ContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

fn pod_config() -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: MessageField::some(cri::PodSandboxMetadata {
            name: "crio".into(),
            uid: "uid-crio".into(),
            namespace: "default".into(),
            ..Default::default()
        }),
        hostname: "crio".into(),
        log_directory: LOGS.into(),
        linux: MessageField::some(cri::LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

/// Creates and starts a container.
fn start(pod: &str, name: &str) -> String {
    let config = cri::ContainerConfig {
        metadata: MessageField::some(cri::ContainerMetadata {
            name: name.to_owned(),
            ..Default::default()
        }),
        image: MessageField::some(cri::ImageSpec {
            image: IMAGE.to_owned(),
            ..Default::default()
        }),
        command: ["sh", "-c", SCRIPT].map(str::to_owned).into(),
        log_path: format!("{name}.log"),
        linux: MessageField::some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    };
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: MessageField::some(config),
        sandbox_config: MessageField::some(pod_config()),
        ..Default::default()
    };
    let created: cri::CreateContainerResponse = ask("CreateContainer", &request);
    let _: cri::Empty = ask("StartContainer", &by_container(&created.container_id));
    created.container_id
}

fn exec(container: &str, script: &str) -> cri::ExecSyncResponse {
    let request = cri::ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).into(),
        timeout: 100,
        ..Default::default()
    };
    ask("ExecSync", &request)
}

/// Limits a container's memory.
fn limit(container: &str, bytes: i64) {
    let change = cri::UpdateContainerResourcesRequest {
        container_id: container.to_owned(),
        linux: MessageField::some(cri::LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..Default::default()
        }),
        ..Default::default()
    };
    let _: cri::Empty = ask("UpdateContainerResources", &change);
}

/// Ends a container, and gives what is said of it then.
fn stop(container: &str) -> cri::ContainerStatus {
    let request = cri::StopContainerRequest {
        container_id: container.to_owned(),
        timeout: 60,
        ..Default::default()
    };
    let _: cri::Empty = ask("StopContainer", &request);
    let ended: cri::ContainerStatusResponse = ask("ContainerStatus", &by_container(container));
    ended.status.unwrap_or_default()
}

#[test]
#[ignore = "Debian has no CRI-O: CLOISTER_TEST_CRIO names the directory of its programs"]
fn a_pod_of_the_shims() {
    a_pod(CRI_O, true);
}

#[test]
#[ignore = "Debian has no CRI-O: CLOISTER_TEST_CRIO names the directory of its programs"]
fn a_pod_of_the_command_lines() {
    a_pod(CRI_O_OCI, false);
}

fn a_pod(runtime: &str, is_shims: bool) {
    let machine = Machine::alone(|| {
        // What another test has left there.
        fs::remove_dir_all(LOGS).ok();
        fs::create_dir_all(LOGS).expect("the logs' directory");
    });
    let daemon = Daemon::start(runtime);
    let request = cri::RunPodSandboxRequest {
        config: MessageField::some(pod_config()),
        runtime_handler: "cloister".into(),
        ..Default::default()
    };
    let pod: cri::RunPodSandboxResponse = ask("RunPodSandbox", &request);
    let pod = pod.pod_sandbox_id;
    let status: cri::PodSandboxStatusResponse = ask("PodSandboxStatus", &by_pod(&pod));
    let address = status.status.network.ip.clone();
    let [one, two] = ["one", "two"].map(|name| start(&pod, name));
    let log = |name: &str| fs::read_to_string(format!("{LOGS}/{name}.log")).unwrap_or_default();
    let boot = |name: &str| log(name).split_whitespace().nth(3).map(str::to_owned);
    eventually("both have said on which kernel they run", || {
        boot("one").is_some() && boot("two").is_some()
    });
    assert_eq!(boot("one"), boot("two"), "{}", log("one"));
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("this machine's");
    assert_ne!(boot("one").as_deref(), Some(own.trim()));
    let done = exec(&one, "hostname; ip addr show eth0; echo err >&2; exit 5");
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!((done.exit_code, &*done.stderr), (5, &b"err\n"[..]), "{out}");
    assert!(
        out.starts_with("crio\n") && out.contains(&format!("inet {address}/")),
        "{out}"
    );
    let ping = Cmd::new("ping").args(["-c", "1", "-w", "60", &address]);
    ping.run().ok();
    limit(&one, 96 << 20);
    let done = exec(&one, "cat /sys/fs/cgroup/memory.max");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "100663296\n");
    // As the kubelet does when it has moved a log away.
    fs::rename(format!("{LOGS}/one.log"), format!("{LOGS}/old.log")).expect("a log");
    let _: cri::Empty = ask("ReopenContainerLog", &by_container(&one));
    let ended = stop(&one);
    assert_eq!((ended.exit_code, &*ended.reason), (3, "Error"), "{ended}");
    assert!(Path::new(LOGS).join("one.log").exists());
    let _: cri::Empty = ask("RemoveContainer", &by_container(&one));
    limit(&two, 32 << 20);
    let fill = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    assert_eq!(exec(&two, fill).exit_code, 137);
    // conmon, which stands between CRI-O and the command line, looks at this machine's cgroup alone.
    let ended = stop(&two);
    let reason = if is_shims { "OOMKilled" } else { "Error" };
    assert_eq!((ended.exit_code, &*ended.reason), (3, reason), "{ended}");
    for method in ["StopPodSandbox", "RemovePodSandbox"] {
        let _: cri::Empty = ask(method, &by_pod(&pod));
    }
    drop(daemon);
    for name in ["cloister-vmm", "cloister-fs", "containerd-shim"] {
        let found = Cmd::new("pgrep").args(["-l", name]).run();
        assert_eq!(found.out(), "", "{name} is left");
    }
    // What CRI-O keeps is not ours.
    drop(machine);
}
