use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;

fn fill(dir: &Path, files: &[(&str, &str)]) {
    for (file, text) in files {
        fs::write(dir.join(file), text).unwrap();
    }
}

#[test]
fn figures_of_version_2_read_as_with_runc() {
    let dir = tempfile::tempdir().unwrap();
    fill(
        dir.path(),
        &[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\n\
                 throttled_usec 7\n",
            ),
            (
                "cpu.pressure",
                "some avg10=0.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.current", "100\n"),
            ("memory.max", "200\n"),
            ("memory.peak", "150\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "50\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n8:0 \n",
            ),
        ],
    );
    let paths = BTreeMap::from([(String::new(), dir.path().to_owned())]);
    let stats = read(Version::V2, &paths).unwrap();
    assert_eq!(
        serde_json::to_value(&stats).unwrap(),
        json!({
            "cpu": {
                "usage": {"total": 30_000, "kernel": 10_000, "user": 20_000},
                "throttling": {"periods": 5, "throttledPeriods": 2, "throttledTime": 7_000},
                "psi": {"some": {"avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 9}},
            },
            "cpuset": {"cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0,
                "memory_migrate": 0, "memory_spread_page": 0, "memory_spread_slab": 0,
                "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0},
            "memory": {
                "cache": 2,
                "usage": {"limit": 200, "usage": 100, "max": 150, "failcnt": 0},
                "swap": {"limit": 250, "usage": 110, "failcnt": 0},
                "raw": {"anon": 1, "file": 2},
            },
            "pids": {"current": 3},
            "blkio": {
                "ioServiceBytesRecursive": [
                    {"major": 8, "minor": 16, "op": "Read", "value": 1},
                    {"major": 8, "minor": 16, "op": "Write", "value": 2}],
                "ioServicedRecursive": [
                    {"major": 8, "minor": 16, "op": "Read", "value": 3},
                    {"major": 8, "minor": 16, "op": "Write", "value": 4}],
            },
            "hugetlb": {},
        })
    );
}

#[test]
fn figures_of_version_1_read_as_with_runc() {
    let dir = tempfile::tempdir().unwrap();
    fill(
        dir.path(),
        &[
            ("cpuacct.usage", "1234\n"),
            ("cpuacct.stat", "user 2\nsystem 1\n"),
            ("cpuacct.usage_percpu", "1000 234 \n"),
            (
                "cpuacct.usage_all",
                "cpu user system\n0 900 100\n1 200 34\n",
            ),
            (
                "cpu.stat",
                "nr_periods 1\nnr_throttled 0\nthrottled_time 8\n",
            ),
            ("cpuset.cpus", "0-1\n"),
            ("cpuset.mems", "0\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("memory.stat", "cache 7\n"),
            ("memory.usage_in_bytes", "10\n"),
            ("memory.max_usage_in_bytes", "20\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.failcnt", "1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "30\n"),
            (
                "blkio.throttle.io_service_bytes",
                "8:0 Read 5\n8:0 Total 5\nTotal 5\n",
            ),
            ("blkio.throttle.io_serviced", "Total 0\n"),
        ],
    );
    let controllers = [
        "cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb",
    ];
    let paths = controllers.map(|name| (name.to_owned(), dir.path().to_owned()));
    let stats = read(Version::V1, &paths.into()).unwrap();
    assert_eq!(
        serde_json::to_value(&stats).unwrap(),
        json!({
            "cpu": {
                "usage": {"total": 1234, "percpu": [1000, 234], "percpu_kernel": [100, 34],
                    "percpu_user": [900, 200], "kernel": 10_000_000, "user": 20_000_000},
                "throttling": {"periods": 1, "throttledTime": 8},
            },
            "cpuset": {"cpus": [0, 1], "cpu_exclusive": 0, "mems": [0], "mem_hardwall": 0,
                "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
                "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 1,
                "sched_relax_domain_level": -1},
            "memory": {
                "cache": 7,
                "usage": {"limit": 9_223_372_036_854_771_712_u64, "usage": 10, "max": 20,
                    "failcnt": 1},
                "raw": {"cache": 7},
            },
            "pids": {"current": 3, "limit": 30},
            "blkio": {"ioServiceBytesRecursive": [
                {"major": 8, "op": "Read", "value": 5}, {"major": 8, "op": "Total", "value": 5}]},
            "hugetlb": {},
        })
    );
}

#[test]
fn a_cgroup_that_is_gone_uses_nothing() {
    let paths = BTreeMap::from([(String::new(), PathBuf::from("/no/such/cgroup"))]);
    assert_eq!(read(Version::V2, &paths).unwrap(), Stats::default());
    let paths = BTreeMap::from([("memory".to_owned(), PathBuf::from("/no/such/cgroup"))]);
    assert_eq!(read(Version::V1, &paths).unwrap(), Stats::default());
}

#[test]
fn pages_have_the_names_that_files_have() {
    assert_eq!(page_size("hugepages-64kB").unwrap(), "64KB");
    assert_eq!(page_size("hugepages-2048kB").unwrap(), "2MB");
    assert_eq!(page_size("hugepages-1048576kB").unwrap(), "1GB");
    assert_eq!(page_size("other"), None);
}
