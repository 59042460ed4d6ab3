//! A filter program that finds a system call by halving.
//!
//! A list of rules that is walked from its start costs twice: on every `KVM_RUN`, and above all
//! when it is installed, since the kernel then tries it on every system call number there is to
//! learn which are always allowed. For fifty rules that is a millisecond, more than anything else in
//! the start of a VMM; as a tree it is a twentieth of that.
//!
//! ```text
//!   right architecture? ──no──▶ kill
//!     number ≥ middle? ──▶ … ──▶ number = n? ──▶ allow, or compare an argument
//!                                     no──▶ kill
//! ```

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::{BpfProgram, sock_filter};

/// include/uapi/linux/audit.h: AUDIT_ARCH_X86_64.
const ARCHITECTURE: u32 = 0xc000_003e;
/// `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// When a system call is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// Always.
    Always,
    /// If the lower half of argument `argument`, under `mask`, is one of `values`.
    Argument {
        argument: u8,
        mask: u32,
        values: Vec<u32>,
    },
    /// Never: it fails with this error number.
    Fail(u16),
}

/// A jump of the tree is longer than the instruction can hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the filter is too long")]
pub(super) struct TooLong;

fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        // The codes of classic BPF are all below 256.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn allow() -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW)
}

fn fail(errno: u16) -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | u32::from(errno))
}

fn kill() -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_KILL_PROCESS)
}

/// The program for `rules`, sorted by system call number.
pub(super) fn compile(rules: &[(u32, Rule)]) -> Result<BpfProgram, TooLong> {
    let mut program = vec![
        load(ARCH),
        jump(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        kill(),
        load(NUMBER),
    ];
    program.extend(tree(rules)?);
    Ok(program)
}

fn tree(rules: &[(u32, Rule)]) -> Result<BpfProgram, TooLong> {
    match rules {
        [] => Ok(vec![kill()]),
        [(number, rule)] => {
            let mut leaf = vec![jump(BPF_JMP | BPF_JEQ | BPF_K, *number, 1, 0), kill()];
            leaf.extend(condition(rule)?);
            Ok(leaf)
        }
        _ => {
            let (left, right) = rules.split_at(rules.len() / 2);
            let middle = right.first().map_or(0, |(number, _)| *number);
            let left = tree(left)?;
            let over = u8::try_from(left.len()).map_err(|_| TooLong)?;
            let mut node = vec![jump(BPF_JMP | BPF_JGE | BPF_K, middle, over, 0)];
            node.extend(left);
            node.extend(tree(right)?);
            Ok(node)
        }
    }
}

fn condition(rule: &Rule) -> Result<BpfProgram, TooLong> {
    let (argument, mask, values) = match rule {
        Rule::Always => return Ok(vec![allow()]),
        Rule::Fail(errno) => return Ok(vec![fail(*errno)]),
        Rule::Argument {
            argument,
            mask,
            values,
        } => (argument, mask, values),
    };
    // Little-endian: the lower half comes first.
    let mut program = vec![load(ARGUMENTS + 8 * u32::from(*argument))];
    if *mask != u32::MAX {
        program.push(statement(BPF_ALU | BPF_AND | BPF_K, *mask));
    }
    for (index, value) in values.iter().enumerate() {
        // To the last instruction, past the comparisons that are left and the kill.
        let left = u8::try_from(values.len() - index).map_err(|_| TooLong)?;
        program.push(jump(BPF_JMP | BPF_JEQ | BPF_K, *value, left, 0));
    }
    program.push(kill());
    program.push(allow());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program decides, and in how many instructions.
    fn run(program: &BpfProgram, number: u32, arch: u32, arguments: [u32; 6]) -> (bool, usize) {
        let (mut at, mut accumulator) = (0, 0);
        for steps in 1.. {
            let instruction = &program[at];
            at += 1;
            match u32::from(instruction.code) {
                0x20 => {
                    accumulator = match instruction.k {
                        NUMBER => number,
                        ARCH => arch,
                        offset => arguments[usize::try_from((offset - ARGUMENTS) / 8).unwrap()],
                    }
                }
                0x54 => accumulator &= instruction.k,
                code @ (0x15 | 0x35) => {
                    let holds = if code == 0x15 {
                        accumulator == instruction.k
                    } else {
                        accumulator >= instruction.k
                    };
                    at += usize::from(if holds {
                        instruction.jt
                    } else {
                        instruction.jf
                    });
                }
                0x06 => return (instruction.k == libc::SECCOMP_RET_ALLOW, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    fn rules() -> Vec<(u32, Rule)> {
        let mut rules: Vec<_> = (0..60).map(|n| (n * 5, Rule::Always)).collect();
        rules[3].1 = Rule::Argument {
            argument: 1,
            mask: u32::MAX,
            values: vec![7, 9, 11],
        };
        rules[4].1 = Rule::Argument {
            argument: 2,
            mask: 4,
            values: vec![0],
        };
        rules
    }

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        let program = compile(&rules()).unwrap();
        for number in 0..400 {
            let listed = number % 5 == 0 && number < 300;
            let expected = listed && number != 15;
            let (allowed, steps) = run(&program, number, ARCHITECTURE, [0; 6]);
            assert_eq!(allowed, expected, "{number}");
            assert!(steps <= 16, "{number}: {steps}");
            assert!(!run(&program, number, 0x4000_0003, [0; 6]).0);
            // The x32 interface numbers its calls from here.
            assert!(!run(&program, number | 0x4000_0000, ARCHITECTURE, [0; 6]).0);
        }
    }

    #[test]
    fn arguments_are_compared() {
        let program = compile(&rules()).unwrap();
        for (value, expected) in [(7, true), (9, true), (11, true), (8, false), (0, false)] {
            let arguments = [0, value, 0, 0, 0, 0];
            assert_eq!(
                run(&program, 15, ARCHITECTURE, arguments).0,
                expected,
                "{value}"
            );
        }
        for (value, expected) in [(0, true), (3, true), (4, false), (7, false)] {
            let arguments = [0, 0, value, 0, 0, 0];
            assert_eq!(
                run(&program, 20, ARCHITECTURE, arguments).0,
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn what_fails_is_not_allowed() {
        let program = compile(&[(3, Rule::Always), (5, Rule::Fail(38))]).unwrap();
        assert!(run(&program, 3, ARCHITECTURE, [0; 6]).0);
        assert!(!run(&program, 5, ARCHITECTURE, [0; 6]).0);
        let error = libc::SECCOMP_RET_ERRNO | 38;
        assert!(program.iter().any(|instruction| instruction.k == error));
    }

    #[test]
    fn a_tree_that_is_too_large_is_an_error() {
        let rules: Vec<_> = (0..400).map(|n| (n, Rule::Always)).collect();
        assert_eq!(compile(&rules), Err(TooLong));
    }
}
