//! What looks after many pods is killed, again and again, and whoever was not killed goes on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::faults::{assert_ends, kill_pid, pid_in};
use super::many;
use super::network::SERVER;
use crate::cri::daemon;
use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod};

/// So often something is killed.
const KILLS: usize = 10;

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Containerd,
    /// The same, and the next one while it loads its shims.
    ContainerdTwice,
    Shim,
    /// The shim, while containerd is away, which was killed too.
    BothShimAndContainerd,
    /// The monitor of the pod's sandbox, which owns the virtual machine.
    Monitor,
    /// That of its container.
    ContainersMonitor,
    VirtualMachine,
    FileServer,
}

const VICTIMS: [Victim; 8] = [
    Victim::Containerd,
    Victim::ContainerdTwice,
    Victim::Shim,
    Victim::BothShimAndContainerd,
    Victim::Monitor,
    Victim::ContainersMonitor,
    Victim::VirtualMachine,
    Victim::FileServer,
];

/// Numbers that look random: those of Knuth's generator. `CLOISTER_TEST_SEED` in the environment gives the same ones again.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let asked = std::env::var("CLOISTER_TEST_SEED").ok();
        let seed = asked.map_or_else(
            || {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                u64::from(now.expect("a time after 1970").subsec_nanos())
            },
            |text| text.parse().expect("a number"),
        );
        println!("CLOISTER_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, count: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The low bits are not random.
        usize::try_from(self.0 >> 33).expect("31 bits") % count
    }
}

/// The pods of those that were killed can be removed, and nothing is left of them.
pub(crate) fn at_random(case: &Case) {
    let mut random = Random::new();
    let mut victims = Vec::new();
    let mut pods = many::start(case);
    for _ in 0..KILLS.min(pods.len()) {
        // Each of them once, before any is again.
        if victims.is_empty() {
            victims.extend(VICTIMS);
        }
        let victim = victims.swap_remove(random.below(victims.len()));
        let chosen = random.below(pods.len());
        println!("{victim:?} {}", pods[chosen].0.config.metadata.name);
        let (pod, web) = pods.swap_remove(chosen);
        pods.extend(strike(case, victim, pod, web));
        for (pod, web) in &pods {
            assert_runs(pod, web);
        }
    }
    for (_, web) in &pods {
        assert_eq!(web.sh("wget -q -O - http://127.0.0.1/page"), "found\n");
    }
}

/// Kills containerd or something of a pod, and sees to what is left of that pod: one that goes on, or none.
fn strike(case: &Case, victim: Victim, pod: Pod, web: Container) -> Option<(Pod, Container)> {
    let monitor = || pid_in(&pod.id, "init.pid");
    let shim = || kill_pid(pid_in(&pod.id, "shim.pid"));
    match victim {
        Victim::Containerd => {
            case.crash_daemon(|| ());
            return Some((pod, web));
        }
        Victim::ContainerdTwice => {
            case.crash_daemon(|| {
                case.node.start_loading();
                daemon::kill();
            });
            return Some((pod, web));
        }
        Victim::Shim => shim(),
        Victim::BothShimAndContainerd => case.crash_daemon(shim),
        Victim::Monitor => kill_pid(monitor()),
        Victim::ContainersMonitor => kill_pid(pid_in(&web.id, "init.pid")),
        Victim::VirtualMachine => kill_pid(child_of(monitor(), "cloister-vmm")),
        Victim::FileServer => kill_pid(child_of(monitor(), "cloister-fs")),
    }
    // containerd removes no pod with a container whose end it has not seen yet.
    assert_ne!(web.wait(), 0);
    if let Victim::ContainersMonitor = victim {
        // The virtual machine is another's, and takes a new container.
        web.remove();
        let web = pod.start("web", SERVER);
        return Some((pod, web));
    }
    assert_ends(&pod);
    None
}

fn assert_runs(pod: &Pod, web: &Container) {
    let name = &pod.config.metadata.name;
    let (ready, runs) = (
        cri::PodSandboxState::SANDBOX_READY,
        cri::ContainerState::CONTAINER_RUNNING,
    );
    assert_eq!(pod.status().state, ready.into(), "{name}");
    assert_eq!(web.status().state, runs.into(), "{name}");
}

/// A process that a monitor has started, in one thread or another.
fn child_of(monitor: u32, name: &str) -> u32 {
    let tasks = format!("/proc/{monitor}/task");
    let threads = fs::read_dir(&tasks).unwrap_or_else(|e| panic!("{tasks}: {e}"));
    let children = threads.flatten().map(|thread| {
        let children = fs::read_to_string(thread.path().join("children"));
        children.unwrap_or_default()
    });
    let children = children.collect::<String>();
    let is_called = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name
    };
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.find(is_called)
        .unwrap_or_else(|| panic!("the monitor {monitor} has no {name}: {children}"))
}
