//! The network that CNI's plugins make for a pod.

use protobuf::MessageField;

use crate::checks::network::await_page;
use crate::cri::messages as cri;
use crate::cri::pod::Case;
use crate::harness::{Cmd, eventually};

/// The bridge's own address.
pub(super) const GATEWAY: &str = "10.88.9.1";

/// What a web server's container runs.
pub(super) const SERVER: &str = "mkdir -p /www; echo found >/www/page; exec httpd -f -p 80 -h /www";

pub(crate) fn address_and_traffic(case: &Case) {
    let pod = case.pod_with("net", |config| {
        config.port_mappings.push(cri::PortMapping {
            container_port: 80,
            host_port: 8090,
            ..cri::PortMapping::default()
        });
    });
    let web = pod.start("web", SERVER);
    let address = pod.address();
    let shown = web.sh("ip addr show eth0; ip route");
    assert!(
        shown.contains(&format!("inet {address}/")),
        "{address}: {shown}"
    );
    assert!(
        shown.contains(&format!("default via {GATEWAY} ")),
        "{shown}"
    );
    let ping = Cmd::new("ping").args(["-c", "1", "-w", "60", &address]);
    ping.run().ok();
    web.sh(&format!("ping -c 1 -w 60 {GATEWAY}"));
    await_page(&format!("{address}:80"));
    await_page("127.0.0.1:8090");
}

pub(crate) fn names(case: &Case) {
    let pod = case.pod_with("named", |config| {
        config.dns_config = MessageField::some(cri::DNSConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
            ..cri::DNSConfig::default()
        });
    });
    let container = pod.start("c", "exec sleep 1000");
    assert_eq!(
        container.sh("hostname; cat /etc/hostname"),
        "named\nnamed\n"
    );
    assert_eq!(
        container.sh("cat /etc/resolv.conf"),
        "search default.svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
    let hosts = container.sh("cat /etc/hosts");
    assert!(hosts.contains("localhost"), "{hosts}");
}

/// As containerd forwards a port: from inside the pod's network namespace to a server that listens on the loopback
/// address of the pod alone.
pub(crate) fn port_forward(case: &Case) {
    let pod = case.pod("forward");
    pod.start(
        "web",
        "mkdir -p /www; echo found >/www/page; exec httpd -f -p 127.0.0.1:8091 -h /www",
    );
    let namespaces = std::fs::read_dir("/run/netns").expect("the pod's namespace");
    let namespace = namespaces.flatten().next().expect("the pod's namespace");
    let inside = format!("--net={}", namespace.path().display());
    let url = "http://127.0.0.1:8091/page";
    eventually(url, || {
        let fetched = Cmd::new("nsenter")
            .args([&inside, "/bin/busybox", "wget", "-q", "-O", "-", url])
            .run();
        fetched.out() == "found\n"
    });
}
