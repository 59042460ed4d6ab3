//! System call filters that are cheap to install.
//!
//! When a filter is installed the kernel compiles it, and runs it for every system call there is to
//! learn which are always allowed. A list of rules that is walked from its start makes that the
//! longest step of a server's start: two million instructions for eighty rules. Here neighbours
//! with the same rule are one range, and a range is found by halving.
//!
//! ```text
//!   right architecture? ──no──▶ kill
//!     number ≥ middle? ──▶ … ──▶ kill, allow, answer, or compare an argument
//! ```

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

/// Where a range of system calls begins, and its rule.
type Range<'a> = (u32, Option<&'a Rule>);

/// The program for `rules`, each with its system call's number.
pub(crate) fn compile(mut rules: Vec<(u32, Rule)>) -> Result<BpfProgram, TooLong> {
    rules.sort_unstable_by_key(|(number, _)| *number);
    let mut ranges: Vec<Range<'_>> = vec![(0, None)];
    for (number, rule) in &rules {
        // The range that begins here says that there is no rule; the one before may continue.
        if ranges.last().is_some_and(|(start, _)| start == number) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != Some(rule)) {
            ranges.push((*number, Some(rule)));
        }
        ranges.push((number + 1, None));
    }
    let mut program = Vec::with_capacity(512);
    program.extend([
        load(ARCH),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        end(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ]);
    tree(&ranges, &mut program)?;
    Ok(program)
}

fn tree(ranges: &[Range<'_>], program: &mut BpfProgram) -> Result<(), TooLong> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    match (below, above) {
        ([], [(_, Some(rule))]) => decide(rule, program),
        ([], _) => {
            program.push(end(libc::SECCOMP_RET_KILL_PROCESS));
            Ok(())
        }
        (_, _) => {
            let middle = above.first().map_or(0, |(start, _)| *start);
            let node = program.len();
            program.push(jump(BPF_JGE, middle, 0, 0));
            tree(below, program)?;
            let over = distance(program.len() - node - 1)?;
            if let Some(node) = program.get_mut(node) {
                node.jt = over;
            }
            tree(above, program)
        }
    }
}

fn decide(rule: &Rule, program: &mut BpfProgram) -> Result<(), TooLong> {
    let allow = end(libc::SECCOMP_RET_ALLOW);
    let kill = end(libc::SECCOMP_RET_KILL_PROCESS);
    match rule {
        Rule::Allow => program.push(allow),
        Rule::Fail(errno) => program.push(end(libc::SECCOMP_RET_ERRNO | u32::from(*errno))),
        Rule::OneOf { argument, values } => {
            program.push(load(ARGUMENTS + 8 * u32::from(*argument)));
            for (index, value) in values.iter().enumerate() {
                // Past the comparisons that are left and the kill.
                let left = distance(values.len() - index)?;
                program.push(jump(BPF_JEQ, *value, left, 0));
            }
            program.extend([kill, allow]);
        }
        Rule::Without { argument, bits } => program.extend([
            load(ARGUMENTS + 8 * u32::from(*argument)),
            jump(BPF_JSET, *bits, 0, 1),
            kill,
            allow,
        ]),
    }
    Ok(())
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

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    /// Runs of one, two and three, in no order, with rules of every kind inside and at the edges.
    fn rules() -> Vec<(u32, Rule)> {
        let allowed = (1..90).filter(|number| number % 7 < 1 + number % 3);
        let special = [15, 16, 28, 29, 100, 0];
        let mut rules: Vec<_> = allowed
            .filter(|number| !special.contains(number))
            .map(|number| (number, Rule::Allow))
            .collect();
        let one_of = || Rule::OneOf {
            argument: 1,
            values: vec![7, 9, 11],
        };
        rules.insert(0, (100, Rule::Fail(38)));
        rules.insert(3, (15, one_of()));
        rules.insert(4, (16, one_of()));
        rules.push((28, Rule::Fail(1)));
        rules.push((
            29,
            Rule::Without {
                argument: 2,
                bits: 4,
            },
        ));
        rules.push((0, Rule::Allow));
        rules
    }

    #[test]
    fn what_has_a_rule_follows_it_and_nothing_else_is_allowed() {
        let program = compile(rules()).unwrap();
        let table = rules();
        for number in 0..600 {
            let rule = table
                .iter()
                .find(|(n, _)| *n == number)
                .map(|(_, rule)| rule);
            let expected = match rule {
                Some(Rule::Allow | Rule::Without { .. }) => ALLOW,
                Some(Rule::Fail(errno)) => libc::SECCOMP_RET_ERRNO | u32::from(*errno),
                Some(Rule::OneOf { .. }) | None => KILL,
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
        let program = compile(rules()).unwrap();
        for (value, expected) in [(7, ALLOW), (9, ALLOW), (11, ALLOW), (8, KILL), (0, KILL)] {
            for number in [15, 16] {
                let (action, _) = run(&program, number, ARCHITECTURE, [0, value, 0, 0, 0, 0]);
                assert_eq!(action, expected, "{value}");
            }
        }
        for (value, expected) in [(0, ALLOW), (3, ALLOW), (4, KILL), (7, KILL)] {
            let (action, _) = run(&program, 29, ARCHITECTURE, [0, 0, value, 0, 0, 0]);
            assert_eq!(action, expected, "{value}");
        }
    }

    #[test]
    fn neighbours_share_a_range() {
        let program = compile((10..300).map(|number| (number, Rule::Allow)).collect()).unwrap();
        // The head, two comparisons, and an end for below, in and above.
        assert_eq!(program.len(), 4 + 2 + 3);
    }

    #[test]
    fn no_rules_and_too_many_are_no_trap() {
        let none = compile(Vec::new()).unwrap();
        assert_eq!(run(&none, 0, ARCHITECTURE, [0; 6]).0, KILL);
        let many = (0..400).map(|number| (2 * number, Rule::Allow)).collect();
        assert_eq!(compile(many), Err(TooLong));
    }
}
