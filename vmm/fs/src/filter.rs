//! System call filters that are cheap to install.
//!
//! When a filter is installed the kernel runs it for every system call there is, to learn which
//! are always allowed, and a list of rules that is walked from its start makes that the longest
//! step of a server's start: two million instructions for eighty rules. Here a rule is found by
//! halving, in eight comparisons.
//!
//! ```text
//!   right architecture? ──no──▶ kill
//!     number ≥ middle? ──▶ … ──▶ number = n? ──▶ allow, answer, or compare an argument
//!                                     no──▶ kill
//! ```

use std::collections::BTreeMap;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::{BpfProgram, sock_filter};

/// include/uapi/linux/audit.h: `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`. Of an argument the lower half comes first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What becomes of a system call. One without a rule ends the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It is carried out.
    Allow,
    /// It fails with this errno.
    Fail(u16),
    /// It is carried out if the lower half of `argument` is one of `values`, and ends the process
    /// otherwise.
    OneOf {
        /// Which argument, from 0.
        argument: u8,
        /// What it may be.
        values: Vec<u32>,
    },
    /// It is carried out if `argument` has none of `bits`, and ends the process otherwise.
    Without {
        /// Which argument, from 0.
        argument: u8,
        /// What it must not have.
        bits: u32,
    },
}

/// There are more rules than a jump can pass over.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the system call filter is too long")]
pub struct TooLong;

/// The program for `rules`, by system call number.
pub(crate) fn compile(rules: &BTreeMap<u32, Rule>) -> Result<BpfProgram, TooLong> {
    let rules: Vec<_> = rules.iter().map(|(number, rule)| (*number, rule)).collect();
    let mut program = vec![
        load(ARCH),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    program.extend(tree(&rules)?);
    Ok(program)
}

fn tree(rules: &[(u32, &Rule)]) -> Result<BpfProgram, TooLong> {
    let (below, above) = rules.split_at(rules.len() / 2);
    match (below, above) {
        ([], [(number, rule)]) => {
            let mut leaf = vec![
                jump(BPF_JEQ, *number, 1, 0),
                end(libc::SECCOMP_RET_KILL_PROCESS),
            ];
            leaf.extend(decide(rule)?);
            Ok(leaf)
        }
        (_, [(middle, _), ..]) => {
            let below = tree(below)?;
            let mut node = vec![jump(BPF_JGE, *middle, distance(below.len())?, 0)];
            node.extend(below);
            node.extend(tree(above)?);
            Ok(node)
        }
        (_, []) => Ok(vec![end(libc::SECCOMP_RET_KILL_PROCESS)]),
    }
}

fn decide(rule: &Rule) -> Result<BpfProgram, TooLong> {
    let allow = end(libc::SECCOMP_RET_ALLOW);
    let kill = end(libc::SECCOMP_RET_KILL_PROCESS);
    match rule {
        Rule::Allow => Ok(vec![allow]),
        Rule::Fail(errno) => Ok(vec![end(libc::SECCOMP_RET_ERRNO | u32::from(*errno))]),
        Rule::OneOf { argument, values } => {
            let mut program = vec![load(ARGUMENTS + 8 * u32::from(*argument))];
            for (index, value) in values.iter().enumerate() {
                // Past the comparisons that are left and the kill.
                let left = distance(values.len() - index)?;
                program.push(jump(BPF_JEQ, *value, left, 0));
            }
            program.extend([kill, allow]);
            Ok(program)
        }
        Rule::Without { argument, bits } => Ok(vec![
            load(ARGUMENTS + 8 * u32::from(*argument)),
            jump(BPF_JSET, *bits, 0, 1),
            kill,
            allow,
        ]),
    }
}

fn distance(instructions: usize) -> Result<u8, TooLong> {
    u8::try_from(instructions).map_err(|_| TooLong)
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn jump(condition: u32, value: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(BPF_JMP | condition | BPF_K, value, jt, jf)
}

fn end(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, action, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        // The codes of classic BPF are all below 256.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program returns, and after how many instructions.
    fn run(program: &BpfProgram, number: u32, arch: u32, arguments: [u32; 6]) -> (u32, usize) {
        let (mut at, mut accumulator) = (0, 0);
        for steps in 1.. {
            let instruction = &program[at];
            at += 1;
            let k = instruction.k;
            let holds = match u32::from(instruction.code) {
                0x20 => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCH => arch,
                        offset => arguments[usize::try_from((offset - ARGUMENTS) / 8).unwrap()],
                    };
                    continue;
                }
                0x15 => accumulator == k,
                0x35 => accumulator >= k,
                0x45 => accumulator & k != 0,
                0x06 => return (k, steps),
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds {
                instruction.jt
            } else {
                instruction.jf
            });
        }
        unreachable!()
    }

    fn rules() -> BTreeMap<u32, Rule> {
        let mut rules: BTreeMap<_, _> = (0..80).map(|n| (n * 5, Rule::Allow)).collect();
        rules.insert(15, Rule::Fail(38));
        let values = vec![7, 9, 11];
        rules.insert(
            20,
            Rule::OneOf {
                argument: 1,
                values,
            },
        );
        rules.insert(
            25,
            Rule::Without {
                argument: 2,
                bits: 4,
            },
        );
        rules
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    #[test]
    fn what_has_a_rule_follows_it_and_nothing_else_is_allowed() {
        let program = compile(&rules()).unwrap();
        for number in 0..600 {
            let expected = match number {
                15 => libc::SECCOMP_RET_ERRNO | 38,
                20 => KILL,
                _ if number % 5 == 0 && number < 400 => ALLOW,
                _ => KILL,
            };
            let (action, steps) = run(&program, number, ARCHITECTURE, [0; 6]);
            assert_eq!(action, expected, "{number}");
            assert!(steps <= 16, "{number}: {steps}");
            assert_eq!(run(&program, number, 0x4000_0003, [0; 6]).0, KILL);
            // The x32 interface numbers its calls from here.
            assert_eq!(
                run(&program, number | 0x4000_0000, ARCHITECTURE, [0; 6]).0,
                KILL
            );
        }
    }

    #[test]
    fn arguments_are_compared() {
        let program = compile(&rules()).unwrap();
        for (value, expected) in [(7, ALLOW), (9, ALLOW), (11, ALLOW), (8, KILL), (0, KILL)] {
            let (action, _) = run(&program, 20, ARCHITECTURE, [0, value, 0, 0, 0, 0]);
            assert_eq!(action, expected, "{value}");
        }
        for (value, expected) in [(0, ALLOW), (3, ALLOW), (4, KILL), (7, KILL)] {
            let (action, _) = run(&program, 25, ARCHITECTURE, [0, 0, value, 0, 0, 0]);
            assert_eq!(action, expected, "{value}");
        }
    }

    #[test]
    fn no_rules_and_too_many_are_no_trap() {
        let none = compile(&BTreeMap::new()).unwrap();
        assert_eq!(run(&none, 0, ARCHITECTURE, [0; 6]).0, KILL);
        let many = (0..400).map(|number| (number, Rule::Allow)).collect();
        assert_eq!(compile(&many), Err(TooLong));
    }
}
