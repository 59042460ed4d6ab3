//! Ports of the guest, dialled in the namespace on the host as Kubernetes does it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::super::harness::LIMIT;
use super::super::harness::eventually;
use super::*;

fn get(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(30))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_server_on_the_guests_localhost_is_reached_from_the_namespace() {
    let wire = Wire::new();
    let script = "mkdir /www; echo found >/www/page; httpd -f -p 127.0.0.1:8080 -h /www & exec httpd -f -p [::1]:8081 -h /www";
    let bundle = wire.bundle(&["sh", "-c", script]);
    start(&bundle);
    wire.beside_pod(|| {
        for address in [
            "127.0.0.1:8080",
            "[::1]:8081",
            "127.0.0.1:8081",
            "[::1]:8080",
        ] {
            eventually(address, || {
                get(address).is_ok_and(|page| page.ends_with("found\n"))
            });
        }
        // The pod's own address leads there as well: nothing else is at it on this machine.
        assert!(get(&format!("{POD}:8080")).unwrap().ends_with("found\n"));
        // Where nobody listens the connection breaks.
        let error = get("127.0.0.1:9").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    });
    bundle.cloister(["delete", "--force", "pod"]).run().ok();
    wire.beside_pod(|| {
        let error = get("127.0.0.1:8080").unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{error}"
        );
    });
}

#[test]
fn a_forwarded_stream_is_whole_and_half_closed() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sh", "-c", "exec nc -ll -p 7 -e cat"]);
    start(&bundle);
    let bytes: Vec<u8> = (0..8_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let echoed = wire.beside_pod(|| {
        eventually("the server answers", || {
            let mut stream = TcpStream::connect("127.0.0.1:7").unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut byte = [0];
            stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
        });
        let mut stream = TcpStream::connect("127.0.0.1:7").unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).unwrap();
            echoed
        })
    });
    assert!(echoed == bytes, "{} of {} bytes", echoed.len(), bytes.len());
}

#[test]
fn a_network_that_comes_after_the_start_has_its_ports_forwarded() {
    let wire = Wire::bare();
    let script = "mkdir /www; echo found >/www/page; exec httpd -f -p 127.0.0.1:8080 -h /www";
    let bundle = Bundle::sh(script);
    start(&bundle);
    let pid = bundle.state("pod")["pid"].to_string();
    wire.on_host("link add eth0 type veth peer name peer0");
    wire.on_host(&format!("link set eth0 netns {pid}"));
    let nsenter = |command: &str| {
        let nsenter = Cmd::new("nsenter").args(["--net", "--target", &pid]);
        nsenter.args(command.split(' ')).run()
    };
    nsenter("ip link set lo up").ok();
    nsenter("ip link set eth0 up").ok();
    eventually("the server is reached", || {
        let found = nsenter("timeout 30 /bin/busybox wget -q -O - http://127.0.0.1:8080/page");
        found.out() == "found\n"
    });
}
