//! What a pod uses, and what it may use.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::ttrpc::context;
use containerd_shim_protos::{Client, TaskClient, api};
use protobuf::{Message, MessageField};

use crate::cri::daemon::BUNDLES;
use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod, ask, by_pod};
use crate::harness::{LIMIT, eventually};

use super::network::GATEWAY;

pub(super) const MIB: u64 = 1 << 20;

/// Uses 24 MiB of memory and some time: dd(1) waits for the end of a block. What is in `/dev/shm` is the machine's memory.
const BUSY: &str =
    "(head -c 25165824 /dev/zero; exec sleep 1000) | dd of=/dev/null bs=25M iflag=fullblock";

pub(super) fn assert_within(what: &str, value: u64, least: u64, most: u64) {
    assert!(
        (least..=most).contains(&value),
        "{what}: {value} is not within {least} and {most}"
    );
}

fn await_memory(busy: &Container) {
    eventually("it uses memory", || {
        busy.stats().memory.working_set_bytes.value >= 24 * MIB
    });
}

pub(crate) fn of_a_container(case: &Case) {
    let pod = case.pod("figures");
    let busy = pod.start("busy", BUSY);
    let idle = pod.start("idle", "exec sleep 1000");
    await_memory(&busy);
    let stats = busy.stats();
    let memory = stats.memory.working_set_bytes.value;
    assert_within("memory", memory, 24 * MIB, 48 * MIB);
    assert_ne!(stats.cpu.usage_core_nano_seconds.value, 0);
    let memory = idle.stats().memory.working_set_bytes.value;
    assert_within("the other's memory", memory, 1, 16 * MIB);
}

/// Those of a pod are the machine's: of its cgroup there, and of its network namespace.
pub(crate) fn of_a_pod(case: &Case) {
    let pod = case.pod("figures");
    let busy = pod.start("busy", BUSY);
    await_memory(&busy);
    let answer: cri::PodSandboxStatsResponse = ask("PodSandboxStats", &by_pod(&pod.id));
    let stats = answer.stats.linux.clone().unwrap_or_default();
    let memory = stats.memory.working_set_bytes.value;
    assert_within("memory", memory, 24 * MIB, 512 * MIB);
    assert_ne!(stats.cpu.usage_core_nano_seconds.value, 0);
    let network = &stats.network.default_interface;
    assert_eq!(network.name, "eth0");
    assert_ne!(network.rx_bytes.value, 0);
    assert_eq!(stats.containers.len(), 1);
    assert_ne!(stats.process.process_count.value, 0);
}

/// What the shim tells of a pod's interfaces. containerd's own plugin does not ask it, and `ctr task metrics` reads them
/// since 2.2 alone.
pub(crate) fn of_a_network(case: &Case) {
    const SIZE: u64 = 1000;
    const TIMES: u64 = 3;
    let pod = case.pod("figures");
    let container = pod.start("c", "exec sleep 1000");
    let address = Path::new(BUNDLES).join(&pod.id).join("address");
    let address = fs::read_to_string(&address).expect("the shim's address");
    let tasks = TaskClient::new(Client::connect(&address).expect("the shim's socket"));
    let interfaces = |id: &str| {
        let request = api::StatsRequest {
            id: id.into(),
            ..Default::default()
        };
        let stats = tasks.stats(context::with_duration(LIMIT), &request);
        let stats = stats.expect("figures").stats;
        let metrics = Metrics::parse_from_bytes(&stats.value).expect("Metrics");
        metrics.network
    };
    let eth0 = || match &interfaces(&pod.id)[..] {
        [eth0] if eth0.name == "eth0" => eth0.clone(),
        others => panic!("eth0 alone was expected: {others:?}"),
    };
    let before = eth0();
    container.sh(&format!("ping -c {TIMES} -w 60 -s {SIZE} {GATEWAY}"));
    let after = eth0();
    for (what, before, after, least) in [
        ("received", before.rx_bytes, after.rx_bytes, TIMES * SIZE),
        ("sent", before.tx_bytes, after.tx_bytes, TIMES * SIZE),
        ("packets in", before.rx_packets, after.rx_packets, TIMES),
        ("packets out", before.tx_packets, after.tx_packets, TIMES),
    ] {
        // There are others' packets, too: but not as many.
        assert_within(what, after - before, least, 10 * least);
    }
    // Whoever adds up a pod's tasks counts them once.
    assert!(interfaces(&container.id).is_empty());
}

fn limits(memory: u64, quota: i64) -> MessageField<cri::LinuxContainerResources> {
    MessageField::some(cri::LinuxContainerResources {
        memory_limit_in_bytes: memory.cast_signed(),
        cpu_quota: quota,
        cpu_period: 100_000,
        ..cri::LinuxContainerResources::default()
    })
}

/// The guest's memory, in bytes.
fn total(container: &Container) -> u64 {
    let total = container.sh("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    let total = total.trim().parse::<u64>();
    total.unwrap_or_else(|e| panic!("{e}")) * 1024
}

/// How large a virtual machine is, as its guest says: its memory in bytes, and its processors.
pub(super) fn size_of(pod: &Pod) -> (u64, usize) {
    let looker = pod.start("looker", "exec sleep 1000");
    let processors = looker.sh("nproc").trim().parse().expect("a number");
    (total(&looker), processors)
}

pub(crate) fn size(case: &Case) {
    let pod = case.pod_with("large", |config| {
        config.linux.mut_or_insert_default().resources = limits(700 * MIB, 250_000);
    });
    // A limit of two and a half CPUs is three CPUs; and the guest's own needs come on top.
    let (memory, processors) = size_of(&pod);
    assert_within("MemTotal", memory, 690 * MIB, 1024 * MIB);
    // None has more than the machine.
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(processors, 3.min(machine));
}

pub(crate) fn update(case: &Case) {
    let pod = case.pod("update");
    let container = pod.start_with("c", "exec sleep 1000", |config| {
        config.linux.mut_or_insert_default().resources = limits(64 * MIB, 50_000);
    });
    let look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    assert_eq!(container.sh(look), "67108864\n50000 100000\n");
    change(&container, limits(96 * MIB, 20_000));
    assert_eq!(container.sh(look), "100663296\n20000 100000\n");
}

fn change(container: &Container, limits: MessageField<cri::LinuxContainerResources>) {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: limits,
        ..cri::UpdateContainerResourcesRequest::default()
    };
    let _: cri::Empty = ask("UpdateContainerResources", &request);
}

/// A pod's virtual machine becomes larger when limits are raised, and when containers come that may use more.
pub(crate) fn growth(case: &Case) {
    let pod = case.pod_with("growth", |config| {
        config.linux.mut_or_insert_default().resources = limits(64 * MIB, 50_000);
    });
    let start = |name, memory| {
        pod.start_with(name, "exec sleep 1000", |config| {
            config.linux.mut_or_insert_default().resources = limits(memory, 50_000);
        })
    };
    let grown = |container: &Container, mib: u64| {
        let what = format!("the guest has {mib} MiB");
        // Some of it is the kernel's.
        eventually(&what, || total(container) > (mib - 40) * MIB);
        // Below the limit, and more than there was.
        container.sh("dd if=/dev/zero of=/dev/null bs=250M count=1");
    };
    let first = start("first", 64 * MIB);
    assert_within("MemTotal", total(&first), 64 * MIB, 128 * MIB);
    change(&first, limits(300 * MIB, 50_000));
    grown(&first, 364);
    let second = start("second", 300 * MIB);
    grown(&second, 664);
}
