//! Against a peer that takes messages apart by their signatures alone, as D-Bus prescribes.

mod peer;

use serde_json::{Value as Json, json};

use self::peer::{Answer, Peer, job_removed, message, text};
use super::wire::Message;
use super::*;

const OVERHEAD: Overhead = Overhead {
    memory_bytes: 1000,
    pids: 64,
};

fn resources(value: Json) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn unit() -> Unit {
    Unit {
        name: "cri-1.scope".into(),
        slice: "a-b.slice".into(),
    }
}

#[test]
fn a_scope_is_started_with_its_process_and_its_limits() {
    let peer = Peer::willing(true);
    let limits = resources(json!({
        "memory": {"limit": 5000, "swap": 8000, "reservation": 4000},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1,9"},
        "pids": {"limit": 5},
    }));
    let annotations = [
        ("DefaultDependencies", "true"),
        ("TimeoutStopSec", "10"),
        ("Nice", "-5"),
    ];
    let annotations = annotations.map(|(name, value)| {
        let name = format!("org.systemd.property.{name}");
        (name, value.to_owned())
    });
    let asked = from_annotations(&annotations.into()).unwrap();
    let rounded = peer
        .manager()
        .start(&unit(), Version::V2, &limits, OVERHEAD, &asked, 4711);
    assert_eq!(rounded.unwrap(), limits);
    assert_eq!(
        peer.calls(),
        [
            "Hello()",
            "AddMatch(\"type='signal',sender='org.freedesktop.systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved'\")",
            "Get(\"org.freedesktop.systemd1.Manager\", \"Version\")",
            "StartTransientUnit(\"cri-1.scope\", \"replace\", \
             [(\"Description\" \"Cloister sandbox cri-1.scope\") (\"Slice\" \"a-b.slice\") \
             (\"Delegate\" yes) (\"PIDs\" [4711]) (\"MemoryAccounting\" yes) \
             (\"CPUAccounting\" yes) (\"IOAccounting\" yes) (\"TasksAccounting\" yes) \
             (\"DefaultDependencies\" yes) (\"Nice\" 4294967291) \
             (\"TimeoutStopUSec\" 10000000) (\"MemoryMax\" 6000) (\"MemoryLow\" 5000) \
             (\"MemorySwapMax\" 3000) (\"CPUWeight\" 100) (\"CPUQuotaPeriodUSec\" 100000) \
             (\"CPUQuotaPerSecUSec\" 500000) (\"AllowedCPUs\" [3 2]) (\"TasksMax\" 64)], [])"
        ]
    );
}

#[test]
fn without_a_bus_there_is_only_systemd() {
    let peer = Peer::willing(false);
    let none = LinuxResources::default();
    let mut manager = peer.manager();
    manager
        .start(&unit(), Version::V1, &none, OVERHEAD, &Vec::new(), 1)
        .unwrap();
    let calls = peer.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(
        calls[0].contains("(\"BlockIOAccounting\" yes)"),
        "{}",
        calls[0]
    );
    manager.stop("cri-1.scope").unwrap();
    assert_eq!(
        peer.calls(),
        [
            "StopUnit(\"cri-1.scope\", \"replace\")",
            "ResetFailedUnit(\"cri-1.scope\")"
        ]
    );
}

#[test]
fn a_slice_takes_no_process() {
    let unit = Unit {
        name: "a-b-c.slice".into(),
        slice: "a-b.slice".into(),
    };
    let all = basic(&unit, Version::V2, 1);
    let has = |name| all.iter().any(|(set, _)| set == name);
    assert!(has("Wants") && !has("PIDs") && !has("Slice") && !has("Delegate"));
}

#[test]
fn limits_are_changed() {
    let peer = Peer::willing(true);
    let limits = resources(json!({"memory": {"limit": -1}}));
    let mut manager = peer.manager();
    manager
        .update(&unit(), Version::V2, &limits, OVERHEAD)
        .unwrap();
    let none = LinuxResources::default();
    manager
        .update(&unit(), Version::V2, &none, OVERHEAD)
        .unwrap();
    assert_eq!(
        peer.calls()[2..],
        [format!(
            "SetUnitProperties(\"cri-1.scope\", yes, [(\"MemoryMax\" {0}) (\"MemorySwapMax\" {0})])",
            u64::MAX
        )]
    );
}

fn failure(answer: impl FnMut(&str) -> Vec<Answer> + Send + 'static) -> (String, Vec<String>) {
    let peer = Peer::new(false, answer);
    let none = LinuxResources::default();
    let result = Manager::open(&[peer.socket()]).and_then(|mut manager| {
        manager.start(&unit(), Version::V2, &none, OVERHEAD, &Vec::new(), 1)
    });
    let calls = peer.calls();
    let names = calls
        .iter()
        .map(|call| call.split('(').next().unwrap().to_owned());
    (crate::text::chain(&result.unwrap_err()), names.collect())
}

#[test]
fn what_systemd_refuses_is_told() {
    let (message, _) = failure(|call| match call {
        "Subscribe" => vec![Answer::Error("x.AlreadySubscribed", "again?")],
        _ => vec![Answer::Error("x.AccessDenied", "not you")],
    });
    assert_eq!(message, "systemd has refused: not you (x.AccessDenied)");
}

#[test]
fn what_is_left_of_a_unit_is_reset_once() {
    let exists = || Answer::Error("org.freedesktop.systemd1.UnitExists", "it is there");
    let (message, calls) = failure(move |call| match call {
        "StartTransientUnit" => vec![exists()],
        _ => vec![Answer::Return("", Vec::new())],
    });
    assert!(
        message.starts_with("systemd has refused: it is there"),
        "{message}"
    );
    let start = "StartTransientUnit";
    assert_eq!(calls, [start, "ResetFailedUnit", start]);
}

#[test]
fn a_job_that_fails_is_told() {
    let (message, calls) = failure(|call| match call {
        "StartTransientUnit" => vec![
            // Over before the call returns.
            Answer::Ended("/job/1", "timeout"),
            Answer::Return("o", text("/job/1")),
        ],
        _ => vec![Answer::Return("", Vec::new())],
    });
    assert_eq!(message, "the job of systemd has ended with \"timeout\"");
    assert_eq!(calls, ["StartTransientUnit", "ResetFailedUnit"]);
}

#[test]
fn a_peer_that_speaks_something_else_does_no_harm() {
    let raw = |bytes: Vec<u8>| {
        failure(move |call| match call {
            "Subscribe" => vec![Answer::Return("", Vec::new())],
            _ => vec![Answer::Raw(bytes.clone()), Answer::HangUp],
        })
        .0
    };
    let lost = raw(Vec::new());
    assert!(
        lost.starts_with("the connection to systemd is lost: "),
        "{lost}"
    );
    let short = raw(vec![b'l', 2, 0]);
    assert!(
        short.starts_with("the connection to systemd is lost: "),
        "{short}"
    );
    let malformed = "cannot speak to systemd: a message from it is malformed";
    assert_eq!(raw(vec![b'x'; 64]), malformed);
    let too_long = "cannot speak to systemd: a message from it is too long";
    let mut long = message(2, &[(5, 'u', "2")], b"");
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(raw(long), too_long);
    let mut field = message(2, &[(5, 'u', "2"), (8, 'g', "o")], &text("/job/1"));
    field[17] = 200;
    assert_eq!(raw(field), malformed);
    // The reply has no job.
    assert_eq!(raw(message(2, &[(5, 'u', "2")], b"")), malformed);
    // Any message at all, cut and bent.
    let whole = job_removed("/job/1", "done");
    for at in 0..whole.len() {
        let mut bent = whole.clone();
        bent[at] ^= 0x55;
        let _ = Message::parse(&bent);
        let _ = Message::parse(&whole[..at]);
    }
}

#[test]
fn messages_of_the_other_endianness_are_understood() {
    let mut bytes = vec![b'B', 2, 1, 1];
    for number in [8_u32, 7, 15] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend([5, 1, b'u', 0, 0, 0, 0, 9, 8, 1, b'g', 0, 1, b's', 0, 0]);
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend(b"abc\0");
    let prefix = bytes.first_chunk().unwrap();
    assert_eq!(wire::length(prefix).unwrap(), bytes.len());
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.reply_to, &*message.signature), (9, "s"));
    assert_eq!(message.body().text().unwrap(), "abc");
}

#[test]
fn the_next_socket_is_tried_and_the_first_error_told() {
    let peer = Peer::willing(false);
    let nobody = |name: &str| Socket {
        path: peer.dir.path().join(name),
        is_bus: true,
    };
    Manager::open(&[nobody("first"), peer.socket()])
        .map(drop)
        .unwrap();
    let error = Manager::open(&[nobody("first"), nobody("second")])
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().ends_with("/first"), "{error}");
}

fn v2(systemd: u32, value: Json) -> Vec<String> {
    let (all, _) = properties::of(Version::V2, &resources(value), OVERHEAD, systemd).unwrap();
    let line = |(name, value): (String, Value)| match value {
        Value::U64(u64::MAX) => format!("{name}=infinity"),
        Value::U64(number) => format!("{name}={number}"),
        Value::Bytes(bytes) => format!("{name}={bytes:?}"),
        other => format!("{name}={other:?}"),
    };
    all.into_iter().map(line).collect()
}

#[test]
fn what_an_older_systemd_does_not_know_is_left_to_the_files() {
    let cpu = json!({"cpu": {"period": 50_000, "cpus": "0", "mems": "1", "idle": 1}});
    assert_eq!(v2(241, cpu.clone()), ["CPUQuotaPerSecUSec=infinity"]);
    assert_eq!(
        v2(252, cpu),
        [
            "CPUWeight=0",
            "CPUQuotaPeriodUSec=50000",
            "CPUQuotaPerSecUSec=infinity",
            "AllowedCPUs=[1]",
            "AllowedMemoryNodes=[2]"
        ]
    );
    let group = resources(json!({"unified": {"memory.oom.group": "1"}}));
    assert!(properties::at_creation(&group, 252).is_empty());
    assert_eq!(properties::at_creation(&group, 253).len(), 1);
}

#[test]
fn a_quota_is_rounded_up_to_what_systemd_counts_in() {
    let limits = resources(json!({"cpu": {"quota": 33_333, "period": 100_000}}));
    let (_, rounded) = properties::of(Version::V2, &limits, OVERHEAD, 255).unwrap();
    let quota = |limits: &LinuxResources| limits.cpu().as_ref().unwrap().quota();
    assert_eq!(quota(&rounded), Some(34_000));
    let lines = v2(255, json!({"cpu": {"quota": 33_333}}));
    assert_eq!(lines, ["CPUQuotaPerSecUSec=340000"]);
}

#[test]
fn unified_files_have_properties() {
    assert_eq!(
        v2(
            255,
            json!({"unified": {"cpu.max": "50000 200000", "cpu.weight": "7", "memory.high": "5",
            "memory.max": "max", "memory.swap.max": "3", "pids.max": "9", "cpuset.cpus": "0",
            "io.max": "8:0 rbps=1"}})
        ),
        [
            "CPUQuotaPeriodUSec=200000",
            "CPUQuotaPerSecUSec=250000",
            "CPUWeight=7",
            "AllowedCPUs=[1]",
            "MemoryHigh=1005",
            "MemoryMax=infinity",
            "MemorySwapMax=3",
            "TasksMax=64"
        ]
    );
    assert_eq!(
        v2(
            255,
            json!({"unified": {"cpu.idle": "1", "cpu.weight": "7"}})
        ),
        ["CPUWeight=0"]
    );
    let bad = resources(json!({"unified": {"memory.max": "much"}}));
    let error = properties::of(Version::V2, &bad, OVERHEAD, 255).unwrap_err();
    assert_eq!(error.to_string(), "memory.max: \"much\" is not understood");
}

#[test]
fn versions_come_in_many_forms() {
    for (text, version) in [
        ("255.4-1ubuntu8", Some(255)),
        ("v245.4-1.fc32", Some(245)),
        ("\"v247\"", Some(247)),
        ("258~rc1", Some(258)),
        ("", None),
        ("x", None),
    ] {
        assert_eq!(parse_version(text), version, "{text}");
    }
}
