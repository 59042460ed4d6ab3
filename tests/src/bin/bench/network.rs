//! What a container's network carries, against runc's on the same wire and against a guest of QEMU
//! behind the same taps.
//!
//! The wire is a veth pair between two namespaces, as CNI and Docker make one.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::load::{self, Figures};
use crate::run::{self, Output};

const POD: &str = "bench-pod";
const HOST: &str = "bench-host";
/// Where the server listens.
const SERVER: &str = "10.66.0.1:5000";
const QEMU: &str = "qemu-system-x86_64";

/// A pair of namespaces with a wire between them.
struct Wire;

impl Wire {
    fn new() -> anyhow::Result<Self> {
        let this = Self;
        for namespace in [POD, HOST] {
            sh(&format!(
                "ip netns add {namespace}; ip -n {namespace} link set lo up"
            ))?;
        }
        sh(&format!(
            "ip -n {HOST} link add peer0 type veth peer name eth0 netns {POD}
             ip -n {HOST} addr add 10.66.0.1/24 dev peer0
             ip -n {HOST} link set peer0 up
             ip -n {POD} addr add 10.66.0.2/24 dev eth0
             ip -n {POD} link set eth0 up"
        ))?;
        Ok(this)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [POD, HOST] {
            if let Err(error) = sh(&format!("ip netns delete {namespace}")) {
                eprintln!("bench: {error:#}");
            }
        }
    }
}

fn sh(script: &str) -> anyhow::Result<()> {
    let output = Command::new("sh")
        .args(["-ec", script])
        .output()
        .context("sh")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {errors}");
    Ok(())
}

/// Measures with the container of a runtime, which has these variables in its environment.
pub(crate) fn of_a_container(
    runtime: &str,
    bundle: &Path,
    environment: &[(&str, &str)],
) -> anyhow::Result<Figures> {
    let _wire = Wire::new()?;
    fs::copy("/proc/self/exe", bundle.join("rootfs/bin/load")).context("copy this program")?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["args"] = serde_json::json!(["/bin/load", "load", SERVER]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    let network = namespaces.and_then(|all| all.iter_mut().find(|n| n["type"] == "network"));
    network.context("no network namespace")?["path"] = format!("/run/netns/{POD}").into();
    fs::write(&path, spec.to_string())?;
    let mut command = Command::new(runtime);
    command.args(["run", "--bundle"]).arg(bundle).arg("load");
    command.envs(environment.iter().copied());
    measure(command, runtime)
}

/// Runs the client and serves it.
fn measure(command: Command, what: &str) -> anyhow::Result<Figures> {
    let server = std::thread::spawn(|| {
        let namespace = File::open(format!("/run/netns/{HOST}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        load::serve(&TcpListener::bind(SERVER)?)
    });
    let client = run::timed_within(command, what, Output::Pipes, Duration::from_secs(120));
    let figures = server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?;
    client?;
    figures.with_context(|| what.to_owned())
}

/// Measures with a guest of QEMU: the same kernel, one tap joined to the wire as ours is, and QEMU's
/// own virtio-net, or vhost-net.
pub(crate) fn of_a_qemu_guest(dir: &Path, kernel: &Path, vhost: bool) -> anyhow::Result<Figures> {
    let _wire = Wire::new()?;
    sh(&format!(
        "ip netns exec {POD} ip tuntap add tap0 mode tap vnet_hdr
         ip -n {POD} link set tap0 up
         for pair in 'eth0 tap0' 'tap0 eth0'; do
             set -- $pair
             tc -n {POD} qdisc add dev $1 ingress
             tc -n {POD} filter add dev $1 ingress matchall action mirred egress redirect dev $2
         done"
    ))?;
    let initramfs = initramfs(dir)?;
    let link = ["-n", POD, "-o", "link", "show", "eth0"];
    let link = Command::new("ip").args(link).output().context("ip")?;
    let link = String::from_utf8_lossy(&link.stdout).into_owned();
    let mac = link
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1);
    let mac = mac.context("eth0 has no address")?;
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        POD,
        QEMU,
        "-enable-kvm",
        "-cpu",
        "host",
        "-m",
        "256",
    ]);
    command.args(["-M", "microvm,acpi=off,rtc=off", "-nodefaults"]);
    command.args([
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-serial",
        "none",
    ]);
    command
        .args(["-append", "quiet panic=-1 reboot=t", "-kernel"])
        .arg(kernel);
    command.arg("-initrd").arg(initramfs);
    let vhost = if vhost { "on" } else { "off" };
    let tap = format!("tap,id=n,ifname=tap0,script=no,downscript=no,vhost={vhost}");
    command.args(["-netdev", &tap]);
    command.args(["-device", &format!("virtio-net-device,netdev=n,mac={mac}")]);
    measure(command, "qemu")
}

/// An initramfs whose first process sets up the network and is the client.
fn initramfs(dir: &Path) -> anyhow::Result<PathBuf> {
    let root = dir.join("qemu");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::copy("/proc/self/exe", root.join("bin/load"))?;
    let init = format!(
        "#!/bin/busybox sh
/bin/busybox ip addr add 10.66.0.2/24 dev eth0
/bin/busybox ip link set eth0 up
/bin/load load {SERVER}
exec /bin/busybox reboot -f
"
    );
    fs::write(root.join("init"), init)?;
    let archive = dir.join("qemu.cpio");
    sh(&format!(
        "cd {}; chmod +x init; find . | cpio --quiet -o -H newc >{}",
        root.display(),
        archive.display()
    ))?;
    Ok(archive)
}

/// Whether QEMU is there to be measured.
pub(crate) fn has_qemu() -> bool {
    Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
}
