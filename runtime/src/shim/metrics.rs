//! What a container uses, as containerd's callers read it: a message for cgroup v2 machines, and
//! one for v1. The figures are those of the guest's cgroup, which is v2; the container that a virtual
//! machine was made for has the machine's overhead beside its own.

use std::collections::HashMap;

use cloister::cgroup::stats::Stats;
use cloister::control::InterfaceCounters;
use cloister::figures::{Table, single};
use containerd_shim_protos::{cgroups, cgroups_v2};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// What a virtual machine uses beyond what its containers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Overhead {
    /// Processor time, in microseconds.
    pub(crate) cpu_usec: u64,
    /// Memory, in bytes.
    pub(crate) memory: u64,
    /// How much memory all of it together may use, in bytes, if there is a limit.
    pub(crate) memory_limit: Option<u64>,
}

impl Overhead {
    /// What is left of a machine's use when that of its containers is taken away, by their files.
    pub(crate) fn of<'a>(
        machine: &Stats,
        containers: impl IntoIterator<Item = &'a HashMap<String, String>>,
    ) -> Self {
        let mut this = Self {
            cpu_usec: machine.cpu.usage.total / 1000,
            memory: machine.memory.usage.usage,
            // No limit is the largest number of either version of cgroups.
            memory_limit: Some(machine.memory.usage.limit)
                .filter(|limit| (1..NO_LIMIT).contains(limit)),
        };
        for files in containers {
            let cpu = Table::of(files, "cpu.stat").number("usage_usec");
            this.cpu_usec = this.cpu_usec.saturating_sub(cpu);
            this.memory = this.memory.saturating_sub(single(files, "memory.current"));
        }
        this
    }
}

/// cgroup v1 has no word for no limit but a number that is larger than any memory.
const NO_LIMIT: u64 = 1 << 62;

/// The files of a guest's cgroup, of which nothing is believed.
pub(crate) struct Metrics<'a> {
    pub(crate) files: &'a HashMap<String, String>,
    pub(crate) overhead: Overhead,
    /// What the virtual machine's interfaces have counted; like its overhead, of the container that it was made for.
    pub(crate) network: &'a [InterfaceCounters],
}

/// The interfaces in the message of either version of cgroups: the fields are the same.
macro_rules! network {
    ($version:ident, $metrics:expr) => {
        $metrics
            .network
            .iter()
            .map(|interface| $version::metrics::NetworkStat {
                name: interface.name.clone(),
                rx_bytes: interface.rx_bytes,
                rx_packets: interface.rx_packets,
                rx_errors: interface.rx_errors,
                rx_dropped: interface.rx_dropped,
                tx_bytes: interface.tx_bytes,
                tx_packets: interface.tx_packets,
                tx_errors: interface.tx_errors,
                tx_dropped: interface.tx_dropped,
                ..Default::default()
            })
            .collect()
    };
}

impl Metrics<'_> {
    fn number(&self, file: &str) -> u64 {
        single(self.files, file)
    }

    fn table(&self, file: &str) -> Table<'_> {
        Table::of(self.files, file)
    }

    fn cpu_total(&self) -> u64 {
        let own = self.table("cpu.stat").number("usage_usec");
        own.saturating_add(self.overhead.cpu_usec)
    }

    /// The machine works for the container as a kernel does.
    fn cpu_system(&self) -> u64 {
        let own = self.table("cpu.stat").number("system_usec");
        own.saturating_add(self.overhead.cpu_usec)
    }

    fn memory_usage(&self) -> u64 {
        let own = self.number("memory.current");
        own.saturating_add(self.overhead.memory)
    }

    /// The limit of what the usage is of.
    fn memory_limit(&self) -> u64 {
        let own = || self.number("memory.max");
        self.overhead.memory_limit.unwrap_or_else(own)
    }

    /// In the form of this machine's cgroups.
    pub(crate) fn message(&self, is_v2: bool) -> Any {
        let (name, value) = if is_v2 {
            (
                "io.containerd.cgroups.v2.Metrics",
                self.v2().write_to_bytes(),
            )
        } else {
            (
                "io.containerd.cgroups.v1.Metrics",
                self.v1().write_to_bytes(),
            )
        };
        Any {
            type_url: name.into(),
            // Encoding fails for messages beyond 2 GiB alone.
            value: value.unwrap_or_default(),
            ..Any::default()
        }
    }

    fn v2(&self) -> cgroups_v2::metrics::Metrics {
        use cgroups_v2::metrics::{
            CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
        };
        let cpu = self.table("cpu.stat");
        let memory = self.table("memory.stat");
        let events = self.table("memory.events");
        Metrics {
            pids: MessageField::some(PidsStat {
                current: self.number("pids.current"),
                limit: self.number("pids.max"),
                ..PidsStat::default()
            }),
            cpu: MessageField::some(CPUStat {
                usage_usec: self.cpu_total(),
                user_usec: cpu.number("user_usec"),
                system_usec: self.cpu_system(),
                nr_periods: cpu.number("nr_periods"),
                nr_throttled: cpu.number("nr_throttled"),
                throttled_usec: cpu.number("throttled_usec"),
                ..CPUStat::default()
            }),
            memory: MessageField::some(MemoryStat {
                anon: memory.number("anon"),
                file: memory.number("file"),
                kernel_stack: memory.number("kernel_stack"),
                slab: memory.number("slab"),
                sock: memory.number("sock"),
                shmem: memory.number("shmem"),
                file_mapped: memory.number("file_mapped"),
                file_dirty: memory.number("file_dirty"),
                file_writeback: memory.number("file_writeback"),
                anon_thp: memory.number("anon_thp"),
                inactive_anon: memory.number("inactive_anon"),
                active_anon: memory.number("active_anon"),
                inactive_file: memory.number("inactive_file"),
                active_file: memory.number("active_file"),
                unevictable: memory.number("unevictable"),
                slab_reclaimable: memory.number("slab_reclaimable"),
                slab_unreclaimable: memory.number("slab_unreclaimable"),
                pgfault: memory.number("pgfault"),
                pgmajfault: memory.number("pgmajfault"),
                pgrefill: memory.number("pgrefill"),
                pgscan: memory.number("pgscan"),
                pgsteal: memory.number("pgsteal"),
                pgactivate: memory.number("pgactivate"),
                pgdeactivate: memory.number("pgdeactivate"),
                usage: self.memory_usage(),
                usage_limit: self.memory_limit(),
                swap_usage: self.number("memory.swap.current"),
                swap_limit: self.number("memory.swap.max"),
                ..MemoryStat::default()
            }),
            memory_events: MessageField::some(MemoryEvents {
                low: events.number("low"),
                high: events.number("high"),
                max: events.number("max"),
                oom: events.number("oom"),
                oom_kill: events.number("oom_kill"),
                ..MemoryEvents::default()
            }),
            io: MessageField::some(IOStat {
                usage: self
                    .io()
                    .into_iter()
                    .map(|entry| IOEntry {
                        major: entry.major,
                        minor: entry.minor,
                        rbytes: entry.rbytes,
                        wbytes: entry.wbytes,
                        rios: entry.rios,
                        wios: entry.wios,
                        ..IOEntry::default()
                    })
                    .collect(),
                ..IOStat::default()
            }),
            hugetlb: self
                .hugetlb()
                .into_iter()
                .map(|(pagesize, current, max)| HugeTlbStat {
                    current,
                    max,
                    pagesize,
                    ..HugeTlbStat::default()
                })
                .collect(),
            network: network!(cgroups_v2, self),
            ..Metrics::default()
        }
    }

    fn v1(&self) -> cgroups::metrics::Metrics {
        use cgroups::metrics::{
            BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
            MemoryStat, Metrics, PidsStat, Throttle,
        };
        let cpu = self.table("cpu.stat");
        let memory = self.table("memory.stat");
        let events = self.table("memory.events");
        // cgroup v2 counts in microseconds.
        let ns = |name: &str| cpu.number(name).saturating_mul(1000);
        let entry = |usage, limit| {
            MessageField::some(MemoryEntry {
                usage,
                limit,
                ..MemoryEntry::default()
            })
        };
        let io = self.io();
        let blkio = |values: fn(&Io) -> [(&'static str, u64); 2]| {
            io.iter()
                .flat_map(|device| {
                    values(device).map(|(op, value)| BlkIOEntry {
                        op: op.into(),
                        major: device.major,
                        minor: device.minor,
                        value,
                        ..BlkIOEntry::default()
                    })
                })
                .collect()
        };
        Metrics {
            pids: MessageField::some(PidsStat {
                current: self.number("pids.current"),
                limit: match self.number("pids.max") {
                    u64::MAX => 0,
                    limit => limit,
                },
                ..PidsStat::default()
            }),
            cpu: MessageField::some(CPUStat {
                usage: MessageField::some(CPUUsage {
                    total: self.cpu_total().saturating_mul(1000),
                    kernel: self.cpu_system().saturating_mul(1000),
                    user: ns("user_usec"),
                    ..CPUUsage::default()
                }),
                throttling: MessageField::some(Throttle {
                    periods: cpu.number("nr_periods"),
                    throttled_periods: cpu.number("nr_throttled"),
                    throttled_time: ns("throttled_usec"),
                    ..Throttle::default()
                }),
                ..CPUStat::default()
            }),
            memory: MessageField::some(MemoryStat {
                cache: memory.number("file"),
                rss: memory.number("anon"),
                rss_huge: memory.number("anon_thp"),
                mapped_file: memory.number("file_mapped"),
                dirty: memory.number("file_dirty"),
                writeback: memory.number("file_writeback"),
                pg_fault: memory.number("pgfault"),
                pg_maj_fault: memory.number("pgmajfault"),
                inactive_anon: memory.number("inactive_anon"),
                active_anon: memory.number("active_anon"),
                inactive_file: memory.number("inactive_file"),
                active_file: memory.number("active_file"),
                unevictable: memory.number("unevictable"),
                total_cache: memory.number("file"),
                total_rss: memory.number("anon"),
                total_inactive_file: memory.number("inactive_file"),
                total_active_file: memory.number("active_file"),
                usage: MessageField::some(MemoryEntry {
                    usage: self.memory_usage(),
                    limit: self.memory_limit(),
                    // No less than the usage: what the machine needs is in both.
                    max: self
                        .number("memory.peak")
                        .saturating_add(self.overhead.memory),
                    failcnt: events.number("max"),
                    ..MemoryEntry::default()
                }),
                swap: entry(
                    self.number("memory.swap.current"),
                    self.number("memory.swap.max"),
                ),
                kernel: entry(memory.number("kernel"), 0),
                kernel_tcp: entry(memory.number("sock"), 0),
                ..MemoryStat::default()
            }),
            memory_oom_control: MessageField::some(MemoryOomControl {
                oom_kill: events.number("oom_kill"),
                ..MemoryOomControl::default()
            }),
            blkio: MessageField::some(BlkIOStat {
                io_service_bytes_recursive: blkio(|io| [("Read", io.rbytes), ("Write", io.wbytes)]),
                io_serviced_recursive: blkio(|io| [("Read", io.rios), ("Write", io.wios)]),
                ..BlkIOStat::default()
            }),
            hugetlb: self
                .hugetlb()
                .into_iter()
                .map(|(pagesize, usage, _)| HugetlbStat {
                    usage,
                    pagesize,
                    ..HugetlbStat::default()
                })
                .collect(),
            network: network!(cgroups, self),
            ..Metrics::default()
        }
    }

    /// io.stat: a line for each device.
    fn io(&self) -> Vec<Io> {
        let lines = self.files.get("io.stat").map_or("", String::as_str).lines();
        lines.take(LINES_MAX).filter_map(Io::parse).collect()
    }

    /// hugetlb.SIZE.current and .max: the size, and both.
    fn hugetlb(&self) -> Vec<(String, u64, u64)> {
        let mut sizes: Vec<&str> = self
            .files
            .keys()
            .filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(".current"))
            .filter(|size| size.len() <= 16 && size.bytes().all(|b| b.is_ascii_alphanumeric()))
            .collect();
        sizes.sort_unstable();
        sizes.truncate(LINES_MAX);
        sizes
            .into_iter()
            .map(|size| {
                let current = self.number(&format!("hugetlb.{size}.current"));
                let max = self.number(&format!("hugetlb.{size}.max"));
                (size.to_owned(), current, max)
            })
            .collect()
    }
}

/// More devices, or sizes of pages, than there are.
const LINES_MAX: usize = 256;

/// What was read from and written to a device.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Io {
    major: u64,
    minor: u64,
    rbytes: u64,
    wbytes: u64,
    rios: u64,
    wios: u64,
}

impl Io {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        let mut this = Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..Self::default()
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => this.rbytes = value,
                "wbytes" => this.wbytes = value,
                "rios" => this.rios = value,
                "wios" => this.wios = value,
                _ => {}
            }
        }
        Some(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> HashMap<String, String> {
        [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("memory.events", "oom 2\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4\nx\n"),
            ("hugetlb.2MB.current", "8\n"),
            ("hugetlb.2MB.max", "16\n"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into()
    }

    #[test]
    fn both_forms_say_the_same() {
        let files = files();
        let network = [InterfaceCounters {
            name: "eth0".into(),
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        }];
        let metrics = Metrics {
            files: &files,
            overhead: Overhead::default(),
            network: &network,
        };
        let any = metrics.message(true);
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let v2 = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((v2.cpu.usage_usec, v2.cpu.system_usec), (30, 10));
        assert_eq!((v2.memory.usage, v2.memory.usage_limit), (4096, u64::MAX));
        assert_eq!((v2.memory.anon, v2.memory_events.oom_kill), (100, 1));
        assert_eq!((v2.pids.current, v2.pids.limit), (3, u64::MAX));
        assert_eq!((v2.io.usage.len(), v2.io.usage[0].wbytes), (1, 2));
        assert_eq!((v2.hugetlb[0].current, v2.hugetlb[0].max), (8, 16));
        let [eth0] = &v2.network[..] else {
            panic!("{v2}");
        };
        assert_eq!(
            (&*eth0.name, eth0.rx_bytes, eth0.rx_packets),
            ("eth0", 1, 2)
        );
        assert_eq!((eth0.rx_errors, eth0.rx_dropped), (3, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets), (5, 6));
        assert_eq!((eth0.tx_errors, eth0.tx_dropped), (7, 8));

        let any = metrics.message(false);
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let v1 = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(v1.cpu.usage.total, 30_000);
        assert_eq!((v1.memory.usage.usage, v1.memory.rss), (4096, 100));
        assert_eq!((v1.pids.current, v1.pids.limit), (3, 0));
        assert_eq!(v1.blkio.io_serviced_recursive[1].value, 4);
        assert_eq!(v1.memory_oom_control.oom_kill, 1);
        // The messages have the interfaces in the same form.
        let encoded = |network: &dyn protobuf::MessageDyn| network.write_to_bytes_dyn().unwrap();
        assert_eq!(v1.network.len(), 1);
        assert_eq!(encoded(&v1.network[0]), encoded(eth0));
    }

    #[test]
    fn nothing_is_nothing() {
        let metrics = Metrics {
            files: &HashMap::new(),
            overhead: Overhead::default(),
            network: &[],
        };
        assert_eq!(metrics.v2().memory.usage, 0);
        assert_eq!(metrics.v1().pids.current, 0);
    }

    #[test]
    fn a_machines_overhead_is_what_its_containers_leave_of_its_use() {
        let files = files();
        let mut machine = Stats::default();
        machine.cpu.usage.total = 100_000;
        machine.memory.usage.usage = 10_000;
        machine.memory.usage.limit = u64::MAX;
        let overhead = Overhead::of(&machine, [&files]);
        let expected = Overhead {
            cpu_usec: 70,
            memory: 10_000 - 4096,
            memory_limit: None,
        };
        assert_eq!(overhead, expected);
        // A guest that says more than there can be takes nothing away from others.
        assert_eq!(Overhead::of(&machine, [&files; 4]).cpu_usec, 0);
        machine.memory.usage.limit = 50_000;
        let metrics = Metrics {
            files: &files,
            overhead: Overhead::of(&machine, [&files]),
            network: &[],
        };
        let v2 = metrics.v2();
        assert_eq!((v2.cpu.usage_usec, v2.cpu.user_usec), (100, 20));
        assert_eq!((v2.memory.usage, v2.memory.usage_limit), (10_000, 50_000));
        let v1 = metrics.v1();
        assert_eq!(v1.cpu.usage.kernel, 80_000);
        assert_eq!(v1.memory.usage.limit, 50_000);
    }
}
