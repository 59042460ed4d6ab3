//! The networks that an engine makes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::harness::{Case, Cmd, Engine, LIMIT, eventually};

/// What a web server's container runs.
const SERVER: &str = "mkdir -p /www; echo found >/www/page; exec httpd -f -p 80 -h /www";

/// Starts a container with the engine's default network, or that of `options`.
fn detached(case: &Case, name: &str, options: &[&str], script: &str) {
    let started = case
        .command(["run", "--detach", "--name", name])
        .args(options)
        .args(["busybox", "sh", "-c", script])
        .outlived()
        .run();
    assert_eq!(started.status.code(), Some(0), "{options:?}: {started}");
}

pub(crate) fn page(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub(crate) fn await_page(address: &str) {
    eventually(address, || {
        page(address).is_ok_and(|page| page.ends_with("found\n"))
    });
}

pub(crate) fn published_port(case: &Case) {
    detached(
        case,
        "web",
        &["--publish", "8080:80", "--cap-add", "NET_RAW"],
        SERVER,
    );
    let settings = case.inspect("web")["NetworkSettings"].clone();
    let address = settings["IPAddress"].as_str().expect("an address");
    let mac = settings["MacAddress"].as_str().expect("an address");
    let link = case.ok(["exec", "web", "sh", "-c", "ip addr show eth0"]);
    assert!(
        link.contains(&format!("inet {address}/")),
        "{address}: {link}"
    );
    assert!(link.contains(mac), "{mac}: {link}");
    await_page(&format!("{address}:80"));
    await_page("127.0.0.1:8080");
    let gateway = settings["Gateway"].as_str().expect("a gateway");
    case.ok(["exec", "web", "ping", "-c", "1", "-w", "60", gateway]);
    let names = case.ok(["exec", "web", "cat", "/etc/hosts"]);
    assert!(names.contains(address), "{names}");
    // Where the engine itself would look.
    let pid = case.inspect("web")["State"]["Pid"].to_string();
    let outside = Cmd::new("nsenter")
        .args(["--net", "--target", &pid, "ip", "addr", "show", "eth0"])
        .run();
    assert!(outside.out().contains(address), "{outside}");
}

pub(crate) fn two_containers(case: &Case) {
    detached(case, "web", &[], SERVER);
    let address = case.inspect("web")["NetworkSettings"]["IPAddress"].clone();
    let url = format!("http://{}/page", address.as_str().expect("an address"));
    let script = format!("until wget -q -O - {url}; do sleep 0.3; done");
    let fetched = case
        .command(["run", "--rm", "busybox", "sh", "-c", &script])
        .run();
    assert_eq!(fetched.out(), "found\n", "{fetched}");
}

pub(crate) fn names_in_a_network_of_ones_own(case: &Case) {
    case.ok(["network", "create", "own"]);
    detached(
        case,
        "web",
        &["--network", "own", "--network-alias", "alias"],
        SERVER,
    );
    for name in ["web", "alias"] {
        let script = format!("until wget -q -O - http://{name}/page; do sleep 0.3; done");
        let fetched = case
            .command([
                "run",
                "--rm",
                "--network",
                "own",
                "busybox",
                "sh",
                "-c",
                &script,
            ])
            .run();
        assert_eq!(fetched.out(), "found\n", "{name}: {fetched}");
    }
    case.ok(["rm", "--force", "web"]);
    case.ok(["network", "rm", "own"]);
}

/// Networks whose interfaces share one of the machine's, without a bridge.
pub(crate) fn interfaces_on_one_of_the_machine(case: &Case) {
    let ip = |words: &str| Cmd::new("ip").args(words.split(' ')).run();
    let drivers = [("macvlan", "10.91.0"), ("ipvlan", "10.92.0")];
    // Podman 4.3 has the first alone, with netavark.
    let had = if case.engine == Engine::Podman { 1 } else { 2 };
    for (driver, subnet) in drivers.into_iter().take(had) {
        let made = ip("link add parent0 type dummy");
        assert_eq!(made.status.code(), Some(0), "{made}");
        ip("link set parent0 up");
        let range = format!("{subnet}.0/24");
        case.ok([
            "network",
            "create",
            "--driver",
            driver,
            "--opt",
            "parent=parent0",
            "--subnet",
            &range,
            "lan",
        ]);
        let address = format!("{subnet}.7");
        detached(case, "web", &["--network", "lan", "--ip", &address], SERVER);
        let script = format!("until wget -q -O - http://{address}/page; do sleep 0.3; done");
        let fetched = case
            .command([
                "run",
                "--rm",
                "--network",
                "lan",
                "busybox",
                "sh",
                "-c",
                &script,
            ])
            .run();
        assert_eq!(fetched.out(), "found\n", "{driver}: {fetched}");
        case.ok(["rm", "--force", "web"]);
        case.ok(["network", "rm", "lan"]);
        ip("link delete parent0");
    }
}

pub(crate) fn connect_and_disconnect(case: &Case) {
    case.ok(["network", "create", "first"]);
    case.ok(["network", "create", "second"]);
    let options = ["--network", "first", "--cap-add", "NET_RAW"];
    detached(case, "con", &options, "exec sleep 1000");
    case.ok(["network", "connect", "second", "con"]);
    let networks = case.inspect("con")["NetworkSettings"]["Networks"].clone();
    for network in ["first", "second"] {
        let gateway = networks[network]["Gateway"].as_str().expect("a gateway");
        eventually("the gateway answers", || {
            let ping = case.command(["exec", "con", "ping", "-c", "1", "-w", "10", gateway]);
            ping.run().status.code() == Some(0)
        });
    }
    case.ok(["network", "disconnect", "second", "con"]);
    eventually("the second network is gone", || {
        let look = case.command(["exec", "con", "test", "-e", "/sys/class/net/eth1"]);
        look.run().status.code() == Some(1)
    });
    let gateway = networks["first"]["Gateway"].as_str().expect("a gateway");
    case.ok(["exec", "con", "ping", "-c", "1", "-w", "60", gateway]);
    case.ok(["rm", "--force", "con"]);
    case.ok(["network", "rm", "first", "second"]);
}

pub(crate) fn the_network_of_another_container(case: &Case) {
    detached(case, "web", &[], SERVER);
    let script = "until wget -q -O - http://127.0.0.1/page; do sleep 0.3; done";
    let fetched = case
        .command([
            "run",
            "--rm",
            "--network",
            "container:web",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .run();
    assert_eq!(fetched.out(), "found\n", "{fetched}");
}

pub(crate) fn the_hosts_network(case: &Case) {
    let refused = case
        .command(["run", "--rm", "--network", "host", "busybox", "true"])
        .run();
    assert_ne!(refused.status.code(), Some(0), "{refused}");
    let said = refused.err();
    let ours = [
        // The specification has none.
        "without a network namespace the container would join the host's network",
        // It has that of the machine, by a path.
        "is the network of this machine, which a virtual machine cannot join",
    ];
    assert!(ours.iter().any(|ours| said.contains(ours)), "{refused}");
}
