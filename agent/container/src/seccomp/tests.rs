use serde_json::json;

use super::compile::Abi;
use super::table::SYSCALLS;
use super::*;

/// A classic BPF machine with the instructions that filters use.
fn run(program: &[libc::sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let i = program[at];
        at += 1;
        let taken = |condition: bool| usize::from(if condition { i.jt } else { i.jf });
        match u32::from(i.code) {
            0x20 => {
                let at = i.k as usize;
                accumulator = u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => accumulator &= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += taken(accumulator == i.k),
            0x25 => at += taken(accumulator > i.k),
            0x35 => at += taken(accumulator >= i.k),
            0x06 => return i.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn filter(profile: serde_json::Value) -> Filter {
    Filter::compile(&serde_json::from_value(profile).unwrap()).unwrap()
}

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

fn nr(name: &str) -> u32 {
    Abi::X86_64.number(name).unwrap()
}

#[test]
fn the_table_is_sorted_and_numbers_are_those_of_libc() {
    assert!(SYSCALLS.is_sorted_by_key(|(name, _, _)| *name));
    for (name, number) in [
        ("read", libc::SYS_read),
        ("clone3", libc::SYS_clone3),
        ("faccessat2", libc::SYS_faccessat2),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("fchmodat2", libc::SYS_fchmodat2),
        ("mseal", libc::SYS_mseal),
    ] {
        assert_eq!(i64::from(nr(name)), number, "{name}");
    }
    assert_eq!(Abi::I386.number("socketcall"), Some(102));
    assert_eq!(Abi::X86_64.number("socketcall"), None);
}

#[test]
fn a_list_of_allowed_calls_refuses_the_rest() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write", "mseal", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
        ],
    }));
    let verdict = |name| run(&filter.program, X86_64, nr(name), [0; 6]);
    assert_eq!(verdict("read"), ALLOW);
    assert_eq!(verdict("mseal"), ALLOW);
    assert_eq!(verdict("clone3"), ENOSYS);
    assert_eq!(verdict("reboot"), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(verdict("ptrace"), libc::SECCOMP_RET_TRACE | 7);
    assert_eq!(verdict("mount"), EPERM);
    // Newer than everything the profile names.
    assert_eq!(
        run(&filter.program, X86_64, nr("mseal") + 1, [0; 6]),
        ENOSYS
    );
    assert_eq!(run(&filter.program, X86_64, 0x4000_0000, [0; 6]), ENOSYS);
    assert_eq!(
        run(&filter.program, I386, 3, [0; 6]),
        libc::SECCOMP_RET_KILL_PROCESS
    );
}

#[test]
fn a_list_of_refused_calls_allows_the_rest_and_newer_ones() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_ARM"],
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
    }));
    assert_eq!(
        run(&filter.program, X86_64, nr("getcwd"), [0; 6]),
        libc::SECCOMP_RET_ERRNO | 13
    );
    assert_eq!(
        run(&filter.program, X86_64, nr("getcwd") - 1, [0; 6]),
        ALLOW
    );
    assert_eq!(run(&filter.program, X86_64, 1000, [0; 6]), ALLOW);
    let i386 = Abi::I386.number("getcwd").unwrap();
    assert_eq!(
        run(&filter.program, I386, i386, [0; 6]),
        libc::SECCOMP_RET_ERRNO | 13
    );
    assert_eq!(run(&filter.program, I386, nr("getcwd"), [0; 6]), ALLOW);
}

fn holds(operator: &str, argument: u64, value: u64, value_two: u64) -> bool {
    match operator {
        "SCMP_CMP_EQ" => argument == value,
        "SCMP_CMP_NE" => argument != value,
        "SCMP_CMP_LT" => argument < value,
        "SCMP_CMP_LE" => argument <= value,
        "SCMP_CMP_GT" => argument > value,
        "SCMP_CMP_GE" => argument >= value,
        _ => argument & value == value_two,
    }
}

#[test]
fn conditions_compare_all_64_bits() {
    let samples = [
        0,
        1,
        2,
        7,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        0x7_0000_0002,
        u64::MAX - 1,
        u64::MAX,
    ];
    for operator in [
        "SCMP_CMP_EQ",
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_GT",
        "SCMP_CMP_GE",
        "SCMP_CMP_MASKED_EQ",
    ] {
        for value in samples {
            for value_two in [0, 1, value] {
                let filter = filter(json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{
                        "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 3, "value": value, "valueTwo": value_two, "op": operator}],
                    }],
                }));
                for argument in samples {
                    let mut args = [5; 6];
                    args[3] = argument;
                    let expected = holds(operator, argument, value, value_two);
                    let verdict = run(&filter.program, X86_64, nr("socket"), args);
                    assert_eq!(
                        verdict == ALLOW,
                        expected,
                        "{argument:#x} {operator} {value:#x} {value_two:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn conditions_on_different_arguments_all_hold_and_on_the_same_are_alternatives() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [
                {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
                {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"},
            ]},
            {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 3, "op": "SCMP_CMP_EQ"},
            ]},
            // Listed before, but without a condition: it comes last.
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"},
            ]},
        ],
    }));
    let verdict = |name, args: [u64; 3]| {
        run(
            &filter.program,
            X86_64,
            nr(name),
            [args[0], args[1], args[2], 0, 0, 0],
        )
    };
    assert_eq!(verdict("socket", [16, 3, 9]), libc::SECCOMP_RET_ERRNO | 22);
    assert_eq!(verdict("socket", [16, 3, 0]), ALLOW);
    assert_eq!(verdict("socket", [2, 3, 9]), ALLOW);
    assert_eq!(verdict("personality", [1, 0, 0]), EPERM);
    assert_eq!(verdict("personality", [3, 0, 0]), EPERM);
    assert_eq!(verdict("personality", [2, 0, 0]), ALLOW);
    assert_eq!(verdict("kill", [1, 15, 0]), ALLOW);
    assert_eq!(verdict("kill", [1, 9, 0]), libc::SECCOMP_RET_ERRNO | 2);
}

/// Every call of both interfaces against a plain look-up, with a profile as large as Docker's.
#[test]
fn the_search_finds_every_call() {
    let names: Vec<&str> = SYSCALLS.iter().map(|(name, _, _)| *name).collect();
    let allowed: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(i, _)| i % 3 != 0)
        .map(|(_, name)| *name)
        .collect();
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": allowed, "action": "SCMP_ACT_ALLOW"}],
    }));
    for (abi, arch) in [(Abi::X86_64, X86_64), (Abi::I386, I386)] {
        let numbers: Vec<u32> = allowed.iter().filter_map(|name| abi.number(name)).collect();
        let newest = *numbers.iter().max().unwrap();
        for number in 0..600 {
            let expected = match number {
                _ if numbers.contains(&number) => ALLOW,
                _ if number > newest => ENOSYS,
                _ => EPERM,
            };
            assert_eq!(
                run(&filter.program, arch, number, [0; 6]),
                expected,
                "{abi:?} {number}"
            );
        }
    }
    assert!(filter.program.len() < 1500, "{}", filter.program.len());
}
