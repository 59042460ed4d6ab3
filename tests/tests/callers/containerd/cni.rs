//! Networks that CNI's plugins make, asked as containerd and CRI-O ask them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checks::network::{await_page, page};
use crate::harness::{Cmd, Machine, afterwards, busybox_rootfs, eventually, report_logs, runtime};

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
const NAMESPACE: &str = "cni-pod";
const SUBNET: &str = "10.88.7.0/24";
const BRIDGE: &str = "cni-bridge";

/// A namespace, a bundle that lives there, and the plugins that have made its network.
struct Pod {
    machine: Machine,
    dir: tempfile::TempDir,
    /// The configuration of each plugin that was called, in order.
    plugins: Vec<Value>,
}

impl Pod {
    fn new(script: &str) -> Self {
        let machine = Machine::alone(|| {
            // What `ip netns` and iptables keep for good.
            ip("netns add first");
            ip("netns delete first");
            Cmd::new("iptables").args(["-w", "-L", "-n"]).run().ok();
        });
        ip(&format!("netns add {NAMESPACE}"));
        let this = Self {
            machine,
            dir: tempfile::tempdir().expect("a directory"),
            plugins: Vec::new(),
        };
        let bundle = this.bundle();
        fs::create_dir(&bundle).expect("a bundle");
        Cmd::new(runtime())
            .args([Path::new("spec"), Path::new("--bundle"), &bundle])
            .run()
            .ok();
        let text = fs::read(bundle.join("config.json")).expect("config.json");
        let mut spec: Value = serde_json::from_slice(&text).expect("JSON");
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["root"] = json!({"path": busybox_rootfs(), "readonly": false});
        for set in ["bounding", "effective", "permitted"] {
            let set = spec["process"]["capabilities"][set].as_array_mut();
            set.expect("a list").push("CAP_NET_RAW".into());
        }
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        let mut namespaces = namespaces.expect("a list").iter_mut();
        let network = namespaces.find(|n| n["type"] == "network");
        network.expect("one")["path"] = format!("/run/netns/{NAMESPACE}").into();
        fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        this
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// Asks one plugin; gives its result.
    fn plugin(&self, command: &str, config: &Value) -> Value {
        let kind = config["type"].as_str().expect("a plugin");
        let called = Cmd::new(Path::new(PLUGINS).join(kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "pod")
            .env("CNI_NETNS", format!("/run/netns/{NAMESPACE}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .input(config.to_string())
            .run();
        assert_eq!(
            called.status.code(),
            Some(0),
            "{command} {config}: {called}"
        );
        serde_json::from_slice(&called.stdout).unwrap_or_default()
    }

    /// Adds what a plugin makes; gives the address and the gateway of the pod.
    fn add(&mut self, mut config: Value, before: Option<Value>) -> Value {
        config["cniVersion"] = "0.4.0".into();
        config["name"] = "network".into();
        if let Some(before) = before {
            config["prevResult"] = before;
        }
        let result = self.plugin("ADD", &config);
        config["prevResult"] = result.clone();
        self.plugins.push(config);
        result
    }

    /// Takes everything away, the last first.
    fn delete_network(&mut self) {
        while let Some(config) = self.plugins.pop() {
            self.plugin("DEL", &config);
        }
    }

    fn ipam(&self) -> Value {
        json!({
            "type": "host-local",
            "subnet": SUBNET,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": self.dir.path().join("addresses"),
        })
    }

    fn cloister<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new(runtime())
            .args([Path::new("--root"), &self.dir.path().join("state")])
            .args(args)
    }

    fn start(&self) {
        let bundle = self.bundle();
        let started = self.cloister(["run", "--detach", "--bundle"]);
        let started = started.args([&bundle]).args(["pod"]).outlived().run();
        assert_eq!(started.status.code(), Some(0), "{started}");
    }

    fn delete(&self) {
        self.cloister(["delete", "--force", "pod"]).run().ok();
    }

    /// What the namespace has. What IPv6 makes by itself changes by itself.
    fn state(&self) -> String {
        let tc = Cmd::new("tc").args(["-netns", NAMESPACE, "qdisc", "show"]);
        let looks = ["-d link show", "-4 addr show", "-4 route show table all"];
        let looks = looks.map(|what| ip(&format!("-netns {NAMESPACE} {what}")));
        let state = looks.concat() + &tc.run().ok();
        // The plugins give their interfaces a queue of length zero, which the kernel takes for a mistake as soon as there
        // is a qdisc beside the one for sending (net/sched/sch_api.c: qdisc_create). They have no queue either way.
        let state = state.replace("qlen 1000", "");
        state.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Asserts that nothing is left: neither in the namespace nor on the machine.
    fn end(self) {
        let left = ip(&format!("-netns {NAMESPACE} -o link show"));
        assert_eq!(left.lines().count(), 1, "{left}");
        assert!(left.contains(": lo:"), "{left}");
        ip(&format!("netns delete {NAMESPACE}"));
        fs::remove_dir_all(self.dir.path()).expect("a directory");
        self.machine.assert_clean(|| ());
    }
}

fn ip(arguments: &str) -> String {
    Cmd::new("ip").args(arguments.split(' ')).run().ok()
}

/// The address of a result, without the length of its prefix.
fn address(result: &Value) -> String {
    let address = result["ips"][0]["address"].as_str().expect("an address");
    address.split('/').next().unwrap_or(address).to_owned()
}

/// Looks at what the guest has of a network, from both sides.
fn assert_reachable(pod: &Pod, result: &Value) {
    let address = address(result);
    let gateway = result["ips"][0]["gateway"].as_str().expect("a gateway");
    let exec = |script: &str| {
        let looked = pod.cloister(["exec", "pod", "sh", "-c", script]).run();
        assert_eq!(looked.status.code(), Some(0), "{looked}");
        looked.out()
    };
    let shown = exec("ip addr show eth0; ip route");
    assert!(shown.contains(&format!("inet {address}/")), "{shown}");
    assert!(
        shown.contains(&format!("default via {gateway} ")),
        "{shown}"
    );
    exec(&format!("ping -c 1 -w 60 {gateway}"));
    await_page(&format!("{address}:80"));
}

const SERVER: &str =
    "mkdir -p /tmp/www; echo found >/tmp/www/page; exec httpd -f -p 80 -h /tmp/www";

#[test]
fn a_bridge_with_a_published_port() {
    let mut pod = Pod::new(SERVER);
    let bridge = json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": pod.ipam(),
    });
    let result = pod.add(bridge, None);
    let ports = json!([{"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}]);
    let portmap = json!({
        "type": "portmap", "snat": true, "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": ports},
    });
    pod.add(portmap, Some(result.clone()));
    let before = pod.state();
    pod.start();
    assert_reachable(&pod, &result);
    await_page("127.0.0.1:8088");
    // The container ends before its network does, as Kubernetes has it.
    pod.delete();
    assert_eq!(pod.state(), before);
    pod.delete_network();
    let refused = page("127.0.0.1:8088").map_err(|e| e.kind());
    assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused));
    // The plugin leaves it to the next pod.
    ip(&format!("link delete {BRIDGE}"));
    pod.end();
}

#[test]
fn a_pair_of_interfaces_that_goes_before_the_container() {
    let mut pod = Pod::new(SERVER);
    let ptp = json!({"type": "ptp", "ipMasq": true, "ipam": pod.ipam()});
    let result = pod.add(ptp, None);
    pod.start();
    assert_reachable(&pod, &result);
    pod.delete_network();
    eventually("the guest has lost its interface", || {
        let look = ["exec", "pod", "test", "-e", "/sys/class/net/eth0"];
        pod.cloister(look).run().status.code() == Some(1)
    });
    pod.delete();
    pod.end();
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            afterwards(|| eprintln!("=== {NAMESPACE}\n{}", self.state()));
            afterwards(report_logs);
            afterwards(|| self.delete());
            afterwards(|| self.delete_network());
            afterwards(|| drop(ip(&format!("netns delete {NAMESPACE}"))));
        }
    }
}
