use std::fs;

use serde_json::{Value, json};

use super::*;

const OVERHEAD: Overhead = Overhead {
    memory_bytes: 1000,
    pids: 64,
};

fn resources(value: Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn lines(version: Version, value: Value) -> Vec<String> {
    let all = settings(version, &resources(value), OVERHEAD).unwrap();
    let line = |setting: Setting| {
        let choices: Vec<_> = setting
            .choices
            .iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        let optional = if setting.optional { "?" } else { "" };
        format!("{}{optional}", choices.join(" or "))
    };
    all.into_iter().map(line).collect()
}

fn v1(value: Value) -> Vec<String> {
    lines(Version::V1, value)
}

fn v2(value: Value) -> Vec<String> {
    lines(Version::V2, value)
}

fn refusal(version: Version, value: Value) -> String {
    let resources = resources(value);
    let result = check(version, &resources).and_then(|_| settings(version, &resources, OVERHEAD));
    result.unwrap_err().to_string()
}

#[test]
fn memory_is_limited_with_overhead() {
    let limits = json!({"memory": {"limit": 5000, "swap": 8000, "reservation": 4000}});
    assert_eq!(
        v1(limits.clone()),
        [
            "memory.limit_in_bytes=6000",
            "memory.memsw.limit_in_bytes=9000",
            "memory.soft_limit_in_bytes=5000"
        ]
    );
    assert_eq!(
        v2(limits),
        ["memory.swap.max=3000", "memory.max=6000", "memory.low=5000"],
        "swap alone needs no overhead"
    );
    let huge = json!({"memory": {"limit": i64::MAX}});
    assert_eq!(v2(huge), [format!("memory.max={}", i64::MAX)]);
    assert!(v2(json!({"memory": {"limit": 0, "swap": 0, "reservation": 0}})).is_empty());
}

#[test]
fn no_limit_of_memory_is_none_with_overhead() {
    let none = json!({"memory": {"limit": -1, "reservation": -1}});
    assert_eq!(
        v1(none.clone()),
        [
            "memory.limit_in_bytes=-1",
            "memory.memsw.limit_in_bytes=-1?",
            "memory.soft_limit_in_bytes=-1"
        ]
    );
    assert_eq!(
        v2(none),
        ["memory.swap.max=max?", "memory.max=max", "memory.low=max"]
    );
    let swap = json!({"memory": {"limit": 5000, "swap": -1}});
    assert_eq!(
        v2(swap.clone()),
        ["memory.swap.max=max?", "memory.max=6000"]
    );
    assert_eq!(v1(swap)[1], "memory.memsw.limit_in_bytes=-1?");
    let no_swap = json!({"memory": {"limit": 5000, "swap": 5000}});
    assert_eq!(
        v2(no_swap.clone()),
        ["memory.swap.max=0?", "memory.max=6000"]
    );
    assert_eq!(v1(no_swap)[1], "memory.memsw.limit_in_bytes=6000");
    let only_swap = json!({"memory": {"limit": -1, "swap": 7000}});
    assert_eq!(v2(only_swap)[0], "memory.swap.max=7000");
}

#[test]
fn swap_without_sense_is_refused() {
    for version in [Version::V1, Version::V2] {
        assert_eq!(
            refusal(version, json!({"memory": {"swap": 5}})),
            "linux.resources.memory.swap: cannot be set without memory.limit"
        );
        assert_eq!(
            refusal(version, json!({"memory": {"limit": 9, "swap": 5}})),
            "linux.resources.memory.swap: 5 is less than memory.limit, 9"
        );
    }
}

#[test]
fn tasks_of_the_guest_are_not_limited_on_the_host() {
    for (limit, file) in [
        (5, "pids.max=64"),
        (0, "pids.max=64"),
        (100_000, "pids.max=64"),
    ] {
        assert_eq!(v1(json!({"pids": {"limit": limit}})), [file]);
        assert_eq!(v2(json!({"pids": {"limit": limit}})), [file]);
    }
    assert_eq!(v1(json!({"pids": {"limit": -1}})), ["pids.max=max"]);
    assert_eq!(v2(json!({"pids": {"limit": -1}})), ["pids.max=max"]);
    assert!(v2(json!({})).is_empty());
}

#[test]
fn processor_time_is_set_in_the_words_of_the_version() {
    let cpu = json!({"cpu": {"shares": 1024, "quota": 50_000, "period": 200_000, "burst": 10_000,
        "cpus": "0", "mems": "0", "idle": 1}});
    assert_eq!(
        v1(cpu.clone()),
        [
            "cpuset.cpus=0",
            "cpuset.mems=0",
            "cpu.shares=1024",
            "cpu.cfs_period_us=200000",
            "cpu.cfs_burst_us=10000",
            "cpu.cfs_quota_us=50000",
            "cpu.idle=1"
        ]
    );
    assert_eq!(
        v2(cpu),
        [
            "cpu.idle=1",
            "cpu.weight=100",
            "cpu.max.burst=10000",
            "cpu.max=50000 200000",
            "cpuset.cpus=0",
            "cpuset.mems=0"
        ]
    );
    assert_eq!(v2(json!({"cpu": {"quota": -1}})), ["cpu.max=max 100000"]);
    assert_eq!(v2(json!({"cpu": {"period": 5000}})), ["cpu.max=max 5000"]);
    assert_eq!(v1(json!({"cpu": {"quota": -1}})), ["cpu.cfs_quota_us=-1"]);
    assert_eq!(
        v1(json!({"cpu": {"realtimeRuntime": 1, "realtimePeriod": 2}})),
        ["cpu.rt_period_us=2", "cpu.rt_runtime_us=1"]
    );
    let zeros = json!({"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "",
        "realtimeRuntime": 0, "realtimePeriod": 0}});
    assert!(v1(zeros.clone()).is_empty());
    assert!(v2(zeros).is_empty());
}

#[test]
fn processors_must_be_there() {
    check_list("cpu.cpus", "0-1,3", "CPU", "0-3").unwrap();
    let error = check_list("cpu.cpus", "0,4-5", "CPU", "0-3").unwrap_err();
    assert_eq!(
        error.to_string(),
        "linux.resources.cpu.cpus: CPU 4 does not exist on this machine, which has 0-3"
    );
    let message = refusal(Version::V2, json!({"cpu": {"cpus": "9999"}}));
    assert!(message.starts_with("linux.resources.cpu.cpus: CPU 9999 does not exist"));
    let message = refusal(Version::V1, json!({"cpu": {"mems": "999"}}));
    assert!(message.starts_with("linux.resources.cpu.mems: memory node 999 does not exist"));
    assert_eq!(
        refusal(Version::V1, json!({"cpu": {"cpus": "a"}})),
        "linux.resources.cpu.cpus: \"a\" is no list"
    );
}

#[test]
fn what_a_version_does_not_have_is_refused_by_name() {
    for (value, message) in [
        (
            json!({"memory": {"swappiness": 10}}),
            "memory.swappiness: cgroup v2 has no such control",
        ),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            "memory.disableOOMKiller: cgroup v2 has no such control",
        ),
        (
            json!({"cpu": {"realtimeRuntime": 1}}),
            "cpu.realtimeRuntime: cgroup v2 has no such control",
        ),
        (
            json!({"cpu": {"realtimePeriod": 1}}),
            "cpu.realtimePeriod: cgroup v2 has no such control",
        ),
        (
            json!({"blockIO": {"leafWeight": 10}}),
            "blockIO.leafWeight: cgroup v2 has no leaf weights",
        ),
        (
            json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}),
            "blockIO.weightDevice[0].leafWeight: cgroup v2 has no leaf weights",
        ),
        (
            json!({"network": {"classID": 1}}),
            "network: cgroup v2 has no network controllers",
        ),
        (
            json!({"unified": {"a/b.c": ""}}),
            "unified[\"a/b.c\"]: is not the name of a cgroup v2 file",
        ),
        (
            json!({"unified": {"cpu": ""}}),
            "unified[\"cpu\"]: is not the name of a cgroup v2 file",
        ),
    ] {
        assert_eq!(
            refusal(Version::V2, value),
            format!("linux.resources.{message}")
        );
    }
    assert_eq!(
        refusal(Version::V1, json!({"unified": {"cpu.max": "max"}})),
        "linux.resources.unified: this machine limits with cgroup v1"
    );
    assert_eq!(
        refusal(Version::V1, json!({"cpu": {"shares": 1}})),
        "linux.resources.cpu.shares: is not between 2 and 262144"
    );
    assert_eq!(
        refusal(Version::V1, json!({"memory": {"swappiness": 101}})),
        "linux.resources.memory.swappiness: is not between 0 and 100"
    );
    assert_eq!(
        refusal(Version::V2, json!({"cpu": {"quota": 5, "burst": 6}})),
        "linux.resources.cpu.burst: 6 is larger than the quota 5"
    );
    // Those that say nothing are no matter.
    let nothing = json!({"memory": {"disableOOMKiller": false}, "network": {"classID": 0},
        "unified": {}, "blockIO": {"leafWeight": 0}});
    check(Version::V1, &resources(nothing.clone())).unwrap();
    assert!(v1(nothing.clone()).is_empty());
    assert!(v2(nothing).is_empty());
}

#[test]
fn memory_of_the_kernel_is_ignored_with_a_reason() {
    let value = json!({"memory": {"kernel": 1, "kernelTCP": -1}});
    assert_eq!(
        check(Version::V1, &resources(value)).unwrap(),
        [
            "linux.resources.memory.kernel is ignored: the kernel has no such limit since version 5.4"
        ]
    );
}

#[test]
fn other_resources_of_version_1() {
    assert_eq!(
        v1(json!({"memory": {"swappiness": 0, "disableOOMKiller": true}})),
        ["memory.oom_control=1", "memory.swappiness=0"]
    );
    assert_eq!(
        v1(
            json!({"network": {"classID": 0x10001, "priorities": [{"name": "eth0", "priority": 5}]}})
        ),
        ["net_cls.classid=65537", "net_prio.ifpriomap=eth0 5"]
    );
    assert_eq!(
        v1(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]})),
        [
            "hugetlb.2MB.limit_in_bytes=4",
            "hugetlb.2MB.rsvd.limit_in_bytes=4?"
        ]
    );
}

#[test]
fn block_devices_are_those_of_the_host() {
    let block_io = json!({"blockIO": {"weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 600}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 300},
            {"major": 8, "minor": 32, "rate": 0}]}});
    assert_eq!(
        v1(block_io.clone()),
        [
            "blkio.weight=500 or blkio.bfq.weight=500",
            "blkio.weight_device=8:0 10 or blkio.bfq.weight_device=8:0 10",
            "blkio.throttle.read_bps_device=8:16 600",
            "blkio.throttle.write_iops_device=8:16 300",
            "blkio.throttle.write_iops_device=8:32 0"
        ]
    );
    assert_eq!(
        v2(block_io),
        [
            "io.bfq.weight=500 or io.weight=default 4950",
            "io.bfq.weight=8:0 10 or io.weight=8:0 1",
            "io.max=8:16 rbps=600",
            "io.max=8:16 wiops=300",
            "io.max=8:32 wiops=max"
        ]
    );
}

#[test]
fn rdma_and_huge_pages_of_version_2() {
    assert_eq!(
        v2(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10_000}}})),
        [
            "hugetlb.2MB.max=0",
            "hugetlb.2MB.rsvd.max=0?",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10000"
        ]
    );
}

#[test]
fn unified_files_have_the_overhead_where_it_belongs() {
    let unified = json!({"unified": {"memory.high": "5000", "memory.max": "max", "pids.max": "7",
        "memory.swap.max": "1", "io.max": "8:0 rbps=1\n8:16 rbps=2", "future.thing": "x"}});
    assert_eq!(
        v2(unified),
        [
            "future.thing=x",
            "io.max=8:0 rbps=1",
            "io.max=8:16 rbps=2",
            "memory.high=6000",
            "memory.max=max",
            "memory.swap.max=1",
            "pids.max=64"
        ]
    );
}

#[test]
fn settings_go_to_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let (cpu, memory) = (dir.path().join("cpu"), dir.path().join("memory"));
    for (dir, files) in [
        (&cpu, ["cpu.shares", "cpu.cfs_quota_us"]),
        (&memory, ["memory.limit_in_bytes", "memory.swappiness"]),
    ] {
        fs::create_dir(dir).unwrap();
        for file in files {
            fs::write(dir.join(file), "").unwrap();
        }
    }
    let paths = BTreeMap::from([
        ("cpu".into(), cpu.clone()),
        ("memory".into(), memory.clone()),
    ]);
    let set = |value| {
        let all = settings(Version::V1, &resources(value), OVERHEAD).unwrap();
        apply(&all, &paths).map_err(|e| crate::text::chain(&e))
    };
    set(json!({"cpu": {"shares": 2, "quota": -1}, "memory": {"limit": -1}})).unwrap();
    assert_eq!(fs::read_to_string(cpu.join("cpu.shares")).unwrap(), "2");
    let limit = memory.join("memory.limit_in_bytes");
    assert_eq!(fs::read_to_string(limit).unwrap(), "-1");
    assert_eq!(
        set(json!({"cpu": {"burst": 1}})).unwrap_err(),
        format!(
            "linux.resources.cpu.burst: no {}/cpu.cfs_burst_us \
             (cgroup controller \"cpu\" is not available)",
            cpu.display()
        )
    );
    assert_eq!(
        set(json!({"pids": {"limit": 1}})).unwrap_err(),
        "linux.resources.pids.limit: no pids.max (cgroup controller \"pids\" is not available)"
    );
    // A directory cannot be written to.
    fs::remove_file(cpu.join("cpu.shares")).unwrap();
    fs::create_dir(cpu.join("cpu.shares")).unwrap();
    assert_eq!(
        set(json!({"cpu": {"shares": 5}})).unwrap_err(),
        format!(
            "linux.resources.cpu.shares: cannot write \"5\" to {}/cpu.shares: \
             Is a directory (os error 21)",
            cpu.display()
        )
    );
}

#[test]
fn a_limit_below_what_is_used_is_refused_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let limits = |limit, check| {
        let memory = json!({"limit": limit, "checkBeforeUpdate": check});
        check_usage(dir.path(), &resources(json!({"memory": memory})), OVERHEAD)
            .map_err(|e| e.to_string())
    };
    limits(1, true).unwrap();
    fs::write(dir.path().join("memory.current"), "5000\n").unwrap();
    limits(3000, false).unwrap();
    limits(-1, true).unwrap();
    limits(4001, true).unwrap();
    assert_eq!(
        limits(4000, true).unwrap_err(),
        "linux.resources.memory.limit: 5000 with overhead is not above what is used, 5000"
    );
}

#[test]
fn the_other_half_of_a_pair_stays_as_the_cgroup_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |key: &str| (key.to_owned(), dir.path().to_owned());
    let unified = BTreeMap::from([path(Hierarchies::UNIFIED)]);
    let separate = BTreeMap::from([path("cpu"), path("memory")]);
    let write = |files: &[(&str, &str)]| {
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
    };
    let lines = |version, value: Value| {
        let paths = match version {
            Version::V1 => &separate,
            Version::V2 => &unified,
        };
        let whole = complete(version, &resources(value), OVERHEAD, paths).unwrap();
        super::tests::lines(version, serde_json::to_value(whole).unwrap())
    };
    write(&[("cpu.max", "30000 200000\n"), ("memory.max", "6000\n")]);
    let v2 = |value| lines(Version::V2, value);
    assert_eq!(
        v2(json!({"cpu": {"period": 50_000}})),
        ["cpu.max=30000 50000"]
    );
    assert_eq!(
        v2(json!({"cpu": {"quota": 40_000}})),
        ["cpu.max=40000 200000"]
    );
    assert_eq!(v2(json!({"cpu": {"quota": -1}})), ["cpu.max=max 200000"]);
    assert_eq!(
        v2(json!({"cpu": {"quota": 1000, "period": 2000}})),
        ["cpu.max=1000 2000"]
    );
    assert!(v2(json!({"cpu": {"quota": 0}})).is_empty());
    assert_eq!(
        v2(json!({"memory": {"swap": 8000}})),
        ["memory.swap.max=3000", "memory.max=6000"],
        "memory and swap together are 8000"
    );
    assert_eq!(
        v2(json!({"memory": {"swap": -1}})),
        ["memory.swap.max=max?"]
    );
    write(&[("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
    assert_eq!(
        v2(json!({"cpu": {"period": 50_000}})),
        ["cpu.max=max 50000"]
    );
    assert_eq!(
        v2(json!({"memory": {"swap": 8000}})),
        ["memory.swap.max=8000", "memory.max=max"]
    );
    write(&[("cpu.max", "max\n")]);
    let broken = resources(json!({"cpu": {"period": 50_000}}));
    let error = complete(Version::V2, &broken, OVERHEAD, &unified).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("cpu.max: \"max\" is not understood")
    );

    write(&[
        ("cpu.cfs_quota_us", "30000\n"),
        ("cpu.cfs_period_us", "200000\n"),
        ("memory.limit_in_bytes", "6000\n"),
    ]);
    let v1 = |value| lines(Version::V1, value);
    assert_eq!(
        v1(json!({"cpu": {"period": 50_000}})),
        ["cpu.cfs_period_us=50000", "cpu.cfs_quota_us=30000"]
    );
    assert_eq!(
        v1(json!({"memory": {"swap": 8000}})),
        [
            "memory.limit_in_bytes=6000",
            "memory.memsw.limit_in_bytes=9000"
        ]
    );
    write(&[("memory.limit_in_bytes", "9223372036854771712\n")]);
    assert_eq!(
        v1(json!({"memory": {"swap": 8000}}))[0],
        "memory.limit_in_bytes=-1"
    );
    // What cannot be read is not there to be written either, which is said then.
    fs::remove_file(dir.path().join("cpu.max")).unwrap();
    assert_eq!(v2(json!({"cpu": {"quota": 5000}})), ["cpu.max=5000 100000"]);
}
