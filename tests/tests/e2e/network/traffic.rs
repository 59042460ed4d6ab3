//! Packets pass, both ways, whatever their protocol and size.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use cloister_tests::noise;

use super::super::harness::{Finished, LIMIT, Running, add_program, eventually};
use super::*;

#[test]
fn pings_of_both_families_pass_both_ways() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    exec(&bundle, &format!("ping -c 2 -w 20 {HOST}"));
    exec(&bundle, &format!("ping -6 -c 2 -w 20 {HOST_IPV6}"));
    // A frame of AF_PACKET, as tcpdump(8) and DHCP clients use it.
    exec(&bundle, &format!("arping -c 1 -w 20 -I eth0 {HOST}"));
    let ping = |address: &str| {
        let ping = wire.host_command("/bin/busybox");
        ping.args(["ping", "-c", "2", "-w", "20", address]).run()
    };
    ping(POD).ok();
    ping(POD_IPV6).ok();
    // In fragments, and as large as a packet can be.
    exec(&bundle, &format!("ping -c 1 -w 20 -s 60000 {HOST}"));
    exec(&bundle, &format!("ping -6 -c 1 -w 20 -s 60000 {HOST_IPV6}"));
}

/// Runs it in the host's namespace.
fn peer_outside(wire: &Wire, args: &[&str]) -> Cmd {
    wire.host_command(PEER).args(args)
}

/// Runs it in the container, which must have it.
fn peer_inside(bundle: &Bundle, args: &[&str]) -> Finished {
    let peer = bundle.cloister(["exec", "pod", "/peer"]).args(args);
    peer.run()
}

/// A container that gives back what it gets at port 7.
fn echo_inside(wire: &Wire) -> Bundle {
    let bundle = wire.bundle(&["/peer", "echo", "[::]:7"]);
    add_program(&bundle.rootfs(), Path::new(PEER), "/peer");
    start(&bundle);
    bundle
}

/// The same in the host's namespace, until it is dropped.
struct EchoOutside(Option<Running>);

impl EchoOutside {
    fn start(wire: &Wire) -> Self {
        Self(Some(peer_outside(wire, &["echo", "[::]:7"]).spawn()))
    }
}

impl Drop for EchoOutside {
    fn drop(&mut self) {
        let ended = self.0.take().map(Running::kill);
        if std::thread::panicking() {
            eprintln!("=== peer echo: {ended:?}");
        }
    }
}

#[test]
fn a_stream_arrives_whole_both_ways_at_once() {
    // A gibibyte takes a minute in the bed, if it is alone there.
    let mib = std::env::var("CLOISTER_TEST_STREAM_MIB").unwrap_or_else(|_| "1024".into());
    let seconds = mib.parse().expect("a number of MiB");
    let wire = Wire::new();
    let _bundle = echo_inside(&wire);
    let stream = peer_outside(&wire, &["stream", &format!("{POD}:7"), &mib]);
    let stream = stream.within(LIMIT + Duration::from_secs(seconds)).run();
    println!("{}", stream.ok());
}

#[test]
fn ten_thousand_connections() {
    let wire = Wire::new();
    let bundle = echo_inside(&wire);
    let _outside = EchoOutside::start(&wire);
    let inwards = ["connections", &format!("{POD}:7"), "5000"];
    peer_outside(&wire, &inwards).run().ok();
    let outwards = ["connections", &format!("{HOST}:7"), "5000"];
    peer_inside(&bundle, &outwards).ok();
}

#[test]
fn datagrams_of_any_size_pass_both_ways() {
    // What fits into a packet, what needs two, and as large as one can be.
    let sizes = ["0", "1", "1452", "1472", "1473", "9000", "65507"];
    let wire = Wire::new();
    let bundle = echo_inside(&wire);
    let _outside = EchoOutside::start(&wire);
    for (pod, host) in [
        (format!("{POD}:7"), format!("{HOST}:7")),
        (format!("[{POD_IPV6}]:7"), format!("[{HOST_IPV6}]:7")),
    ] {
        let inwards = [&["datagrams", &pod], &sizes[..]].concat();
        peer_outside(&wire, &inwards).run().ok();
        let outwards = [&["datagrams", &host], &sizes[..]].concat();
        peer_inside(&bundle, &outwards).ok();
    }
}

#[test]
fn a_path_with_a_smaller_mtu_is_found_out() {
    const LENGTH: usize = 1 << 20;
    let wire = Wire::new();
    // Behind the host, which is a router.
    let far = Wire::bare();
    let (host, remote) = (&wire.host, &far.host);
    ip(
        host,
        &format!("link add far0 mtu 1300 type veth peer name near0 mtu 1300 netns {remote}"),
    );
    ip(host, "addr add 10.98.0.1/24 dev far0");
    ip(host, "link set far0 up");
    far.on_host("addr add 10.98.0.2/24 dev near0");
    far.on_host("link set near0 up");
    far.on_host("route add default via 10.98.0.1");
    wire.as_host(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    let listener = far.as_host(|| TcpListener::bind("10.98.0.2:7").unwrap());
    std::fs::write(bundle.rootfs().join("bytes"), noise(LENGTH)).unwrap();
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got == noise(LENGTH)
        });
        exec(&bundle, "nc 10.98.0.2 7 </bytes");
        assert!(sink.join().unwrap());
    });
}

/// How long it takes to move so many bytes out of a container, and into it.
fn durations(wire: &Wire, bundle: &Bundle, length: usize) -> (Duration, Duration) {
    let listener = wire.as_host(|| TcpListener::bind((HOST, 7)).unwrap());
    std::fs::write(bundle.rootfs().join("bytes"), noise(length)).unwrap();
    // Connections, read and written by turns.
    let accept = || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        (stream, Instant::now())
    };
    let out = std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, start) = accept();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), length);
            start.elapsed()
        });
        exec(bundle, &format!("nc {HOST} 7 </bytes"));
        sink.join().unwrap()
    });
    let into = std::thread::scope(|scope| {
        let source = scope.spawn(|| {
            let (mut stream, start) = accept();
            stream.write_all(&noise(length)).unwrap();
            start
        });
        let got = exec(bundle, &format!("nc {HOST} 7 | wc -c"));
        assert_eq!(got.trim(), length.to_string());
        source.join().unwrap().elapsed()
    });
    (out, into)
}

#[test]
fn a_bandwidth_holds_in_its_own_direction() {
    const LENGTH: usize = 2 << 20;
    // Half a megabyte a second: four seconds, less a burst.
    const LIMITED: Duration = Duration::from_secs(3);
    for (given, is_out) in [
        ("kubernetes.io/egress-bandwidth", true),
        ("kubernetes.io/ingress-bandwidth", false),
        ("CLOISTER_NETWORK_SEND_LIMIT", true),
        ("CLOISTER_NETWORK_RECEIVE_LIMIT", false),
    ] {
        let wire = Wire::new();
        let by_annotation = given.contains('/');
        let bundle = wire.bundle(&["sleep", "1000"]).with(|spec| {
            if by_annotation {
                spec["annotations"] = serde_json::json!({given: "4e6"});
            }
        });
        let run = bundle.command("run", &["--detach"], "pod");
        let run = if by_annotation {
            run
        } else {
            run.env(given, "4e6")
        };
        run.run().ok();
        let (out, into) = durations(&wire, &bundle, LENGTH);
        // How long the other direction takes is a matter of the machine.
        let limited = if is_out { out } else { into };
        assert!(limited > LIMITED, "{given}: out {out:?}, into {into:?}");
    }
}

#[test]
fn two_pods_talk_through_a_bridge() {
    let bridge = Wire::bare();
    bridge.on_host("link add br0 type bridge");
    bridge.on_host("link set br0 up");
    let plug = |number: u8| {
        let pod = Wire::bare();
        let name = format!("port{number}");
        let (pod_name, host) = (&pod.pod, &bridge.host);
        ip(
            host,
            &format!("link add {name} type veth peer name eth0 netns {pod_name}"),
        );
        ip(host, &format!("link set {name} master br0 up"));
        pod.in_pod("link set eth0 up");
        pod.in_pod(&format!("addr add 10.90.0.{number}/24 dev eth0"));
        pod
    };
    let (one, two) = (plug(1), plug(2));
    let server = one.bundle(&[
        "sh",
        "-c",
        "mkdir /www; echo found >/www/page; exec httpd -f -p 80 -h /www",
    ]);
    start(&server);
    let client = two.bundle(&["sleep", "1000"]);
    start(&client);
    let get = "until wget -q -O - http://10.90.0.1/page; do sleep 0.2; done";
    assert_eq!(exec(&client, get), "found\n");
    assert!(exec(&client, "ping -c 1 -w 20 10.90.0.1").contains("1 packets received"));
}

/// A container with its name servers in a file of the host.
fn with_resolv_conf(wire: &Wire, file: &Path) -> Bundle {
    wire.bundle(&["sleep", "1000"]).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(serde_json::json!({
            "destination": "/etc/resolv.conf", "type": "bind", "source": file, "options": ["rbind", "rw"]
        }));
    })
}

/// Looks a name up in the container, for which `server` answers.
fn assert_resolves(bundle: &Bundle, server: &UdpSocket) {
    let limit = Some(Duration::from_millis(100));
    server.set_read_timeout(limit).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let mut query = [0; 512];
                if let Ok((length, from)) = server.recv_from(&mut query) {
                    let answer = dns_answer(&query[..length]);
                    server.send_to(&answer, from).unwrap();
                }
            }
        });
        let found = bundle
            .cloister(["exec", "pod", "nslookup", "-type=a", "name.test"])
            .run();
        done.store(true, Ordering::Relaxed);
        assert!(Finished::out(&found).contains("192.0.2.77"), "{found}");
    });
}

#[test]
fn names_are_resolved_as_resolv_conf_says_also_after_it_has_changed() {
    let wire = Wire::new();
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), "nameserver 192.0.2.1\n").unwrap();
    let bundle = with_resolv_conf(&wire, resolv.path());
    start(&bundle);
    assert_eq!(
        exec(&bundle, "cat /etc/resolv.conf"),
        "nameserver 192.0.2.1\n"
    );
    // In place, as Docker writes it.
    std::fs::write(resolv.path(), format!("nameserver {HOST}\n")).unwrap();
    let server = wire.as_host(|| UdpSocket::bind((HOST, 53)).unwrap());
    assert_resolves(&bundle, &server);
}

#[test]
fn names_that_come_into_the_files_of_a_running_container_are_seen() {
    let wire = Wire::new();
    let files = tempfile::tempdir().unwrap();
    let [hosts, hostname] = ["hosts", "hostname"].map(|name| files.path().join(name));
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    std::fs::write(&hostname, "pod\n").unwrap();
    let bundle = wire.bundle(&["sleep", "1000"]).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.extend([&hosts, &hostname].map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            serde_json::json!({
                "destination": format!("/etc/{name}"), "type": "bind", "source": file,
                "options": ["rbind", "rw"]
            })
        }));
    });
    start(&bundle);
    assert_eq!(exec(&bundle, "cat /etc/hostname"), "pod\n");
    // In place, as Docker writes them when a container joins a network.
    std::fs::write(&hosts, format!("127.0.0.1 localhost\n{HOST} neighbour\n")).unwrap();
    std::fs::write(&hostname, "renamed\n").unwrap();
    exec(&bundle, "ping -c 1 -w 20 neighbour");
    assert_eq!(exec(&bundle, "cat /etc/hostname"), "renamed\n");
    // And the other way.
    exec(&bundle, "echo '192.0.2.9 another' >>/etc/hosts");
    let hosts = std::fs::read_to_string(&hosts).unwrap();
    assert!(hosts.ends_with("192.0.2.9 another\n"), "{hosts}");
}

#[test]
fn a_name_server_at_a_loopback_address_of_the_namespace_is_asked_there() {
    const SERVER: &str = "127.0.0.11";
    let wire = Wire::new();
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), format!("nameserver {SERVER}\n")).unwrap();
    let bundle = with_resolv_conf(&wire, resolv.path());
    let (datagrams, connections) = wire.beside_pod(|| {
        let datagrams = UdpSocket::bind((SERVER, 53)).unwrap();
        (datagrams, TcpListener::bind((SERVER, 53)).unwrap())
    });
    start(&bundle);
    assert_resolves(&bundle, &datagrams);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            connections.set_nonblocking(true).unwrap();
            let mut accepted = None;
            eventually("the question comes", || {
                accepted = connections.accept().ok();
                accepted.is_some()
            });
            let (mut connection, _) = accepted.unwrap();
            connection.set_nonblocking(false).unwrap();
            connection.set_read_timeout(Some(LIMIT)).unwrap();
            let mut question = [0; 4];
            connection.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"\x00\x02ab");
            connection.write_all(b"\x00\x03cde").unwrap();
        });
        let ask = format!(r"printf '\000\002ab' | timeout 100 nc {SERVER} 53 | tr '\000\003' '03'");
        assert_eq!(exec(&bundle, &ask), "03cde");
    });
}

/// Whether a worker of the kernel's moves the packets of the container's virtual machine: a thread of it, made when the
/// guest's driver has set up its queues.
fn has_worker(bundle: &Bundle) -> bool {
    let tasks = Path::new("/proc")
        .join(process(bundle, "vmm").to_string())
        .join("task");
    let mut tasks = std::fs::read_dir(tasks).unwrap().flatten();
    tasks.any(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("vhost-"))
    })
}

#[test]
fn the_kernel_moves_the_packets_unless_told_otherwise() {
    let can = Path::new("/dev/vhost-net").exists();
    for (setting, worker) in [("auto", can), ("never", false)] {
        let wire = Wire::new();
        let bundle = wire.bundle(&["/peer", "echo", "[::]:7"]);
        add_program(&bundle.rootfs(), Path::new(PEER), "/peer");
        let run = bundle.command("run", &["--detach"], "pod");
        run.env("CLOISTER_NETWORK_VHOST", setting).run().ok();
        assert_eq!(has_worker(&bundle), worker, "{setting}");
        exec(&bundle, &format!("ping -c 1 -w 20 -s 60000 {HOST}"));
        let stream = ["stream", &format!("{POD}:7"), "64"];
        peer_outside(&wire, &stream).run().ok();
        let connections = ["connections", &format!("{POD}:7"), "500"];
        peer_outside(&wire, &connections).run().ok();
        assert_counted(&bundle, 500 * 3, 64 << 20);
    }
}

#[test]
fn what_an_interface_has_carried_is_in_the_statistics() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    exec(&bundle, &format!("ping -c 3 -w 20 -s 1000 {HOST}"));
    assert_counted(&bundle, 3, 3000);
}

/// The statistics tell of at least so much in either direction.
fn assert_counted(bundle: &Bundle, packets: u64, bytes: u64) {
    let events = bundle.cloister(["events", "--stats", "pod"]).run().ok();
    let stats: Value = serde_json::from_str(&events).unwrap();
    let interfaces = stats["data"]["network_interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 1, "{events}");
    assert_eq!(interfaces[0]["Name"], "eth0");
    for (what, least) in [
        ("RxPackets", packets),
        ("TxPackets", packets),
        ("RxBytes", bytes),
        ("TxBytes", bytes),
    ] {
        assert!(interfaces[0][what].as_u64().unwrap() >= least, "{events}");
    }
}

/// An answer of one address to a query (RFC 1035).
fn dns_answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    // An answer without an error; one record.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..8].copy_from_slice(&[0, 1]);
    // The name in the question, A, IN, a minute, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend([192, 0, 2, 77]);
    answer
}
