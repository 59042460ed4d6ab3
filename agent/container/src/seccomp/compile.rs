//! From rules to instructions.

use std::collections::BTreeMap;

use super::table::SYSCALLS;
use super::{Condition, Operator, Rule};

/// A system call interface of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    I386,
}

impl Abi {
    /// linux/audit.h
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Abi::X86_64 => 0xc000_003e,
            Abi::I386 => 0x4000_0003,
        }
    }

    pub(super) fn number(self, name: &str) -> Option<u32> {
        let index = SYSCALLS
            .binary_search_by_key(&name, |(known, _, _)| known)
            .ok()?;
        let (_, x86_64, i386) = SYSCALLS.get(index)?;
        match self {
            Abi::X86_64 => x86_64,
            Abi::I386 => i386,
        }
        .map(u32::from)
    }
}

/// __X32_SYSCALL_BIT
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Offsets in struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// What happens to a system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decision {
    /// Conditions that all have to hold, and the verdict if they do.
    conditional: Vec<(Vec<Condition>, u32)>,
    /// The verdict otherwise.
    otherwise: Option<u32>,
}

/// The rules for one interface.
#[derive(Debug)]
struct Block {
    abi: Abi,
    decisions: BTreeMap<u32, Decision>,
    newest: Option<u32>,
}

/// A filter that can be assembled.
#[derive(Debug)]
pub(super) struct Program {
    default: u32,
    restrictive: bool,
    blocks: Vec<Block>,
}

impl Program {
    pub(super) fn new(default: u32, restrictive: bool, abis: &[Abi], rules: &[Rule<'_>]) -> Self {
        let blocks = abis.iter().map(|&abi| Block::new(abi, rules)).collect();
        Program {
            default,
            restrictive,
            blocks,
        }
    }

    pub(super) fn assemble(&self) -> Vec<libc::sock_filter> {
        let mut code = vec![load(ARCH)];
        for block in &self.blocks {
            let body = block.assemble(self.default, self.restrictive);
            // Equal: skip the long jump and go on in the body.
            code.push(jump(libc::BPF_JEQ, block.abi.audit_arch(), 1, 0));
            code.push(jump_always(body.len()));
            code.extend(body);
        }
        code.push(ret(libc::SECCOMP_RET_KILL_PROCESS));
        code
    }
}

impl Block {
    fn new(abi: Abi, rules: &[Rule<'_>]) -> Self {
        let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
        for rule in rules {
            for number in rule.names.iter().filter_map(|name| abi.number(name)) {
                let decision = decisions.entry(number).or_default();
                for conditions in &rule.alternatives {
                    if conditions.is_empty() {
                        decision.otherwise.get_or_insert(rule.verdict);
                    } else {
                        decision
                            .conditional
                            .push((conditions.clone(), rule.verdict));
                    }
                }
            }
        }
        let newest = decisions.keys().next_back().copied();
        Block {
            abi,
            decisions,
            newest,
        }
    }

    fn assemble(&self, default: u32, restrictive: bool) -> Vec<libc::sock_filter> {
        let mut code = vec![load(NR)];
        if self.abi == Abi::X86_64 {
            code.push(jump(libc::BPF_JGE, X32_BIT, 0, 1));
            code.push(ret(ENOSYS));
        }
        if let Some(newest) = self.newest.filter(|_| restrictive) {
            code.push(jump(libc::BPF_JGT, newest, 0, 1));
            code.push(ret(ENOSYS));
        }
        code.extend(search(&self.ranges(default), default));
        code
    }

    /// Where a new decision starts, from number 0 on.
    fn ranges(&self, default: u32) -> Vec<(u32, Decision)> {
        let nothing = Decision {
            conditional: Vec::new(),
            otherwise: Some(default),
        };
        let mut ranges: Vec<(u32, Decision)> = vec![(0, nothing.clone())];
        let mut push = |start: u32, decision: Decision| match ranges.last_mut() {
            Some((last, known)) if *last == start => *known = decision,
            Some((_, known)) if *known == decision => {}
            _ => ranges.push((start, decision)),
        };
        for (&number, decision) in &self.decisions {
            let otherwise = Some(decision.otherwise.unwrap_or(default));
            push(
                number,
                Decision {
                    conditional: decision.conditional.clone(),
                    otherwise,
                },
            );
            push(number + 1, nothing.clone());
        }
        // A start that was overwritten may have become equal to the one before it.
        ranges.dedup_by(|later, earlier| later.1 == earlier.1);
        ranges
    }
}

/// A binary search for the number in the accumulator.
fn search(ranges: &[(u32, Decision)], default: u32) -> Vec<libc::sock_filter> {
    let middle = ranges.len() / 2;
    let (Some((start, _)), true) = (ranges.get(middle), ranges.len() > 1) else {
        return match ranges.first() {
            Some((_, decision)) => decide(decision, default),
            None => vec![ret(default)],
        };
    };
    let (below, above) = ranges.split_at(middle);
    let below = search(below, default);
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![jump(libc::BPF_JGE, *start, distance, 0)],
        Err(_) => vec![jump(libc::BPF_JGE, *start, 0, 1), jump_always(below.len())],
    };
    code.extend(below);
    code.extend(search(above, default));
    code
}

fn decide(decision: &Decision, default: u32) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    for (conditions, verdict) in &decision.conditional {
        let mut rule: Vec<Step> = conditions.iter().flat_map(test).collect();
        rule.push(Step::Do(ret(*verdict)));
        let end = rule.len();
        for (position, step) in rule.into_iter().enumerate() {
            // At most six conditions of six instructions each.
            let out = u8::try_from(end - position - 1).unwrap_or(u8::MAX);
            code.push(match step {
                Step::Do(instruction) => instruction,
                Step::UnlessLeave(kind, value) => jump(kind, value, 0, out),
                Step::IfLeave(kind, value) => jump(kind, value, out, 0),
            });
        }
    }
    code.push(ret(decision.otherwise.unwrap_or(default)));
    code
}

/// An instruction of a test; to leave is to go to the next rule.
enum Step {
    Do(libc::sock_filter),
    UnlessLeave(u32, u32),
    IfLeave(u32, u32),
}

/// A 64-bit comparison, as two of 32 bits: the machine is little-endian, the accumulator narrow.
#[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
fn test(condition: &Condition) -> Vec<Step> {
    use Step::{Do, IfLeave, UnlessLeave};
    use libc::{BPF_JEQ, BPF_JGE, BPF_JGT};
    let low_half = ARGS + condition.index * 8;
    let load_low = Do(load(low_half));
    let load_high = Do(load(low_half + 4));
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    match condition.operator {
        Operator::Eq => vec![
            load_high,
            UnlessLeave(BPF_JEQ, high),
            load_low,
            UnlessLeave(BPF_JEQ, low),
        ],
        Operator::Ne => vec![
            load_high,
            Do(jump(BPF_JEQ, high, 0, 2)),
            load_low,
            IfLeave(BPF_JEQ, low),
        ],
        Operator::Gt | Operator::Ge => vec![
            load_high,
            Do(jump(BPF_JGT, high, 3, 0)),
            UnlessLeave(BPF_JEQ, high),
            load_low,
            UnlessLeave(
                if condition.operator == Operator::Gt {
                    BPF_JGT
                } else {
                    BPF_JGE
                },
                low,
            ),
        ],
        Operator::Lt | Operator::Le => vec![
            load_high,
            IfLeave(BPF_JGT, high),
            Do(jump(BPF_JEQ, high, 0, 2)),
            load_low,
            IfLeave(
                if condition.operator == Operator::Lt {
                    BPF_JGE
                } else {
                    BPF_JGT
                },
                low,
            ),
        ],
        Operator::MaskedEq => {
            let (high_two, low_two) = halves(condition.value_two);
            vec![
                load_high,
                Do(and(high)),
                UnlessLeave(BPF_JEQ, high_two),
                load_low,
                Do(and(low)),
                UnlessLeave(BPF_JEQ, low_two),
            ]
        }
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    // All codes are below 256.
    libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    }
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn and(mask: u32) -> libc::sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

fn jump(kind: u32, value: u32, jt: u8, jf: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | kind | libc::BPF_K, jt, jf, value)
}

fn jump_always(distance: usize) -> libc::sock_filter {
    // A program that long is refused before it is loaded.
    let distance = u32::try_from(distance).unwrap_or(u32::MAX);
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, distance)
}

fn ret(verdict: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict)
}
