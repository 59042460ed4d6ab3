//! A sandbox's network: what the caller has made of a namespace is what the guest has.

mod cards;
mod devices;
mod faults;
mod forward;
mod identity;
mod live;
mod refused;
mod traffic;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Pid;
use serde_json::Value;

use super::harness::{Bundle, Cmd};

/// The addresses of the pod, and of the host that it is wired to.
const POD: &str = "10.77.0.2";
const HOST: &str = "10.77.0.1";
const POD_IPV6: &str = "fd77::2";
const HOST_IPV6: &str = "fd77::1";

/// `tests/src/bin/peer.rs`, which containers may have as well.
const PEER: &str = env!("CARGO_BIN_EXE_peer");
/// `tests/src/bin/cable.rs`.
const CABLE: &str = env!("CARGO_BIN_EXE_cable");

/// Two network namespaces: a pod's, and that of a host on the other end of its wire.
struct Wire {
    pod: String,
    host: String,
}

impl Wire {
    /// Namespaces with nothing between them.
    fn bare() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("{role}-{}-{number}", std::process::id());
        let this = Self {
            pod: name("pod"),
            host: name("host"),
        };
        for namespace in [&this.pod, &this.host] {
            Cmd::new("ip").args(["netns", "add", namespace]).run().ok();
            ip(namespace, "link set lo up");
        }
        this
    }

    /// A veth pair, as Docker, Podman and CNI's bridge make one: `eth0` in the pod.
    fn new() -> Self {
        let this = Self::bare();
        this.add_veth("eth0", "peer0");
        this.in_pod(&format!("addr add {POD}/24 brd + dev eth0"));
        this.in_pod(&format!("addr add {POD_IPV6}/64 dev eth0 nodad"));
        this.in_pod(&format!("route add default via {HOST}"));
        this.in_pod(&format!("route add default via {HOST_IPV6}"));
        this.on_host(&format!("addr add {HOST}/24 dev peer0"));
        this.on_host(&format!("addr add {HOST_IPV6}/64 dev peer0 nodad"));
        this
    }

    /// Another pair, up, without addresses.
    fn add_veth(&self, in_pod: &str, on_host: &str) {
        let (pod, host) = (&self.pod, &self.host);
        let pair = format!("link add {in_pod} netns {pod} type veth peer name {on_host}");
        ip(host, &pair);
        ip(pod, &format!("link set {in_pod} up"));
        ip(host, &format!("link set {on_host} up"));
    }

    /// `ip` in the pod's namespace.
    fn in_pod(&self, arguments: &str) -> String {
        ip(&self.pod, arguments)
    }

    /// `ip` in the host's namespace.
    fn on_host(&self, arguments: &str) -> String {
        ip(&self.host, arguments)
    }

    /// `tc` in the pod's namespace.
    fn tc(&self, arguments: &str) -> String {
        let tc = Cmd::new("tc").args(["-netns", &self.pod]);
        tc.args(arguments.split(' ')).run().ok()
    }

    /// A command in the host's namespace.
    fn host_command(&self, program: &str) -> Cmd {
        Cmd::new("ip").args(["netns", "exec", &self.host, program])
    }

    /// Does something in the host's namespace: sockets made there are its own.
    fn as_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.host, work)
    }

    /// Does something in the pod's namespace on this machine.
    fn beside_pod<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.pod, work)
    }

    /// A bundle whose container lives in the pod's namespace.
    fn bundle(&self, args: &[&str]) -> Bundle {
        let path = self.path();
        Bundle::new(args).with(|spec| {
            join(spec, &path.to_string_lossy());
            grant(spec, &["CAP_NET_RAW"]);
        })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    /// Everything of the pod's namespace that a runtime could have changed.
    fn state(&self) -> String {
        // Until addresses are proven they change by themselves; without a carrier they never are.
        for _ in 0..100 {
            if self.in_pod("-o addr show tentative").trim().is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // What counts packets and time is not asked for.
        let mut all = self.in_pod("-d link show");
        for what in ["addr show", "route show table all", "-6 route show", "rule"] {
            all += &self.in_pod(what);
        }
        all + &self.tc("qdisc show")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for namespace in [&self.pod, &self.host] {
                for what in ["-d -s link show", "addr show", "route show", "neigh show"] {
                    let seen = Cmd::new("ip")
                        .args(["-netns", namespace])
                        .args(what.split(' '))
                        .run();
                    eprintln!("=== {namespace}: ip {what}\n{seen}");
                }
                let tc = Cmd::new("tc").args(["-netns", namespace, "-s", "qdisc", "show"]);
                eprintln!("=== {namespace}: tc\n{}", tc.run());
            }
        }
        for namespace in [&self.pod, &self.host] {
            let gone = Cmd::new("ip").args(["netns", "delete", namespace]).run();
            if gone.status.code() != Some(0) {
                eprintln!("ip netns delete: {gone}");
            }
        }
    }
}

/// Gives a specification the network namespace at `path`.
fn join(spec: &mut Value, path: &str) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces.iter_mut().find(|n| n["type"] == "network");
    network.unwrap()["path"] = path.into();
}

fn grant(spec: &mut Value, capabilities: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut spec["process"]["capabilities"][set];
        let granted = set.as_array_mut().unwrap();
        granted.extend(capabilities.iter().map(|name| Value::from(*name)));
    }
}

fn ip(namespace: &str, arguments: &str) -> String {
    Cmd::new("ip")
        .args(["-netns", namespace])
        .args(arguments.split(' '))
        .run()
        .ok()
}

fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let namespace = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a script in a running container and gives its output.
fn exec(bundle: &Bundle, script: &str) -> String {
    bundle
        .cloister(["exec", "pod", "sh", "-c", script])
        .run()
        .ok()
}

/// The pid of a process of the container, as its state file has it.
fn process(bundle: &Bundle, which: &str) -> Pid {
    let state = std::fs::read_to_string(bundle.state_root().join("pod/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let pid = state[which]["pid"].as_i64().unwrap();
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Starts a bundle in the background as `pod`.
fn start(bundle: &Bundle) {
    bundle.command("run", &["--detach"], "pod").run().ok();
}
