//! `linux.resources.devices`: which devices the container may use (config-linux.md#allowed-device-list).
//!
//! The kernel asks an eBPF program with the type, the numbers and the accesses wanted. Entries apply in
//! their order, so for every single access the last entry that speaks of it decides. What no entry
//! speaks of is denied, as by runc. All that is decided here, for every device that an entry names and
//! for all the others; the program only looks up. One that walks the entries has the kernel's
//! verifier follow each combination of their outcomes: 1.4 million instructions for the default list,
//! a fifth of the cost of a container.

use std::collections::BTreeSet;

use super::Cgroup;
use crate::config::DeviceRule;
use crate::error::{Context, Failure};
use crate::sys::{BpfInstruction, attach_device_filter};

/// BPF_DEVCG_ACC_*
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// BPF_DEVCG_DEV_*
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// An entry of the list; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Entry {
    const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Self {
        Entry {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    fn parse(rule: &DeviceRule) -> Self {
        let kind = match rule.kind.as_deref() {
            Some("b") => Some(BLOCK),
            Some("c") => Some(CHARACTER),
            _ => None,
        };
        let access = rule
            .access
            .as_deref()
            .unwrap_or("rwm")
            .bytes()
            .fold(0, |access, letter| {
                access
                    | match letter {
                        b'r' => READ,
                        b'w' => WRITE,
                        _ => MKNOD,
                    }
            });
        let number = |number: Option<i32>| number.filter(|&number| number >= 0);
        Entry {
            allow: rule.allow,
            kind,
            major: number(rule.major),
            minor: number(rule.minor),
            access: if access == 0 { ALL } else { access },
        }
    }
}

/// What every container may use: nodes may be made, and the default devices, terminals and tunnels
/// may be opened, whatever the list says (as with runc).
const DEFAULTS: [Entry; 11] = [
    Entry::allow(CHARACTER, None, None, MKNOD),
    Entry::allow(BLOCK, None, None, MKNOD),
    Entry::allow(CHARACTER, Some(1), Some(3), ALL),
    Entry::allow(CHARACTER, Some(1), Some(5), ALL),
    Entry::allow(CHARACTER, Some(1), Some(7), ALL),
    Entry::allow(CHARACTER, Some(1), Some(8), ALL),
    Entry::allow(CHARACTER, Some(1), Some(9), ALL),
    Entry::allow(CHARACTER, Some(5), Some(0), ALL),
    Entry::allow(CHARACTER, Some(5), Some(2), ALL),
    Entry::allow(CHARACTER, Some(10), Some(200), ALL),
    Entry::allow(CHARACTER, Some(136), None, ALL),
];

pub(super) fn apply(cgroup: &Cgroup, rules: &[DeviceRule]) -> Result<(), Failure> {
    const FIELD: &str = "linux.resources.devices";
    let program = program(&entries(rules));
    if i16::try_from(program.len()).is_err() {
        return Err(Failure::invalid(format!(
            "{FIELD}: the list is too long for a device filter"
        )));
    }
    attach_device_filter(cgroup, &program).doing(|| format!("{FIELD}: attach the device filter"))
}

fn entries(rules: &[DeviceRule]) -> Vec<Entry> {
    rules.iter().map(Entry::parse).chain(DEFAULTS).collect()
}

/// The accesses that are allowed to a device. A number that is `None` is one that no entry names.
fn allowed(entries: &[Entry], kind: i32, major: Option<i32>, minor: Option<i32>) -> i32 {
    let speaks = |entry: &&Entry| {
        entry.kind.is_none_or(|named| named == kind)
            && (entry.major.is_none() || entry.major == major)
            && (entry.minor.is_none() || entry.minor == minor)
    };
    let (mut allowed, mut undecided) = (0, ALL);
    for entry in entries.iter().rev().filter(speaks) {
        if entry.allow {
            allowed |= entry.access & undecided;
        }
        undecided &= !entry.access;
    }
    allowed
}

/// Registers: result, context, type, accesses, numbers.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;

/// struct bpf_cgroup_dev_ctx: type and access in halves of one word, major, minor.
fn program(entries: &[Entry]) -> Vec<BpfInstruction> {
    let numbers = |of: fn(&Entry) -> Option<i32>| -> BTreeSet<i32> {
        entries.iter().filter_map(of).collect()
    };
    let majors = numbers(|entry| entry.major);
    let minors = numbers(|entry| entry.minor);
    let mut code = Code::default();
    code.extend([
        load(R2, 0),
        copy(R3, R2),
        alu(AND, R2, 0xffff),
        alu(RSH, R3, 16),
        load(R4, 4),
        load(R5, 8),
    ]);
    let block = kind_section(entries, BLOCK, &majors, &minors);
    code.push(jump_unless(R2, BLOCK, distance(block.len())));
    code.append(block);
    code.append(kind_section(entries, CHARACTER, &majors, &minors));
    code.link()
}

/// The decisions for the devices of a type.
fn kind_section(
    entries: &[Entry],
    kind: i32,
    majors: &BTreeSet<i32>,
    minors: &BTreeSet<i32>,
) -> Code {
    let mut code = Code::default();
    let elsewhere = major_section(entries, kind, None, minors);
    for &major in majors {
        let section = major_section(entries, kind, Some(major), minors);
        if section != elsewhere {
            code.push(jump_unless(R4, major, distance(section.len())));
            code.append(section);
        }
    }
    code.append(elsewhere);
    code
}

fn major_section(entries: &[Entry], kind: i32, major: Option<i32>, minors: &BTreeSet<i32>) -> Code {
    let mut code = Code::default();
    let elsewhere = allowed(entries, kind, major, None);
    for &minor in minors {
        let decision = allowed(entries, kind, major, Some(minor));
        if decision != elsewhere {
            code.answer(jump_if(R5, minor, 0), decision);
        }
    }
    code.answer(jump_always(), elsewhere);
    code
}

/// Instructions, and the jumps among them that go to the answer for a set of accesses.
#[derive(Debug, Default, PartialEq, Eq)]
struct Code {
    instructions: Vec<BpfInstruction>,
    answers: Vec<(usize, i32)>,
}

impl Code {
    fn len(&self) -> usize {
        self.instructions.len()
    }

    fn push(&mut self, instruction: BpfInstruction) {
        self.instructions.push(instruction);
    }

    fn extend(&mut self, instructions: impl IntoIterator<Item = BpfInstruction>) {
        self.instructions.extend(instructions);
    }

    fn answer(&mut self, jump: BpfInstruction, allowed: i32) {
        self.answers.push((self.len(), allowed));
        self.push(jump);
    }

    fn append(&mut self, other: Code) {
        let offset = self.len();
        self.instructions.extend(other.instructions);
        self.answers.extend(
            other
                .answers
                .iter()
                .map(|(at, allowed)| (at + offset, *allowed)),
        );
    }

    /// Adds the answers and leads the jumps there.
    fn link(mut self) -> Vec<BpfInstruction> {
        let sets: BTreeSet<i32> = self.answers.iter().map(|(_, allowed)| *allowed).collect();
        for set in sets {
            let answer = self.instructions.len();
            for (at, _) in self.answers.iter().filter(|(_, allowed)| *allowed == set) {
                if let Some(jump) = self.instructions.get_mut(*at) {
                    jump.offset = distance(answer - at - 1);
                }
            }
            // Whether nothing is wanted but what is allowed.
            self.instructions.extend([
                mov(R0, 0),
                alu(AND, R3, !set),
                jump_unless(R3, 0, 1),
                mov(R0, 1),
                exit(),
            ]);
        }
        self.instructions
    }
}

/// No program that is attached is longer than the longest jump.
fn distance(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

/// bpf(2) and linux/bpf.h: 32-bit operations with an immediate operand.
const AND: u8 = 0x50;
const RSH: u8 = 0x70;

fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> BpfInstruction {
    BpfInstruction {
        code,
        registers,
        offset,
        immediate,
    }
}

/// BPF_LDX | BPF_W | BPF_MEM from the context.
fn load(to: u8, offset: i16) -> BpfInstruction {
    instruction(0x61, to | R1 << 4, offset, 0)
}

/// BPF_ALU | BPF_MOV | BPF_X
fn copy(to: u8, from: u8) -> BpfInstruction {
    instruction(0xbc, to | from << 4, 0, 0)
}

/// BPF_ALU | BPF_K
fn alu(operation: u8, register: u8, operand: i32) -> BpfInstruction {
    instruction(0x04 | operation, register, 0, operand)
}

/// BPF_JMP | BPF_JNE | BPF_K
fn jump_unless(register: u8, value: i32, distance: i16) -> BpfInstruction {
    instruction(0x55, register, distance, value)
}

/// BPF_JMP | BPF_JEQ | BPF_K
fn jump_if(register: u8, value: i32, distance: i16) -> BpfInstruction {
    instruction(0x15, register, distance, value)
}

/// BPF_JMP | BPF_JA
fn jump_always() -> BpfInstruction {
    instruction(0x05, 0, 0, 0)
}

/// BPF_ALU64 | BPF_MOV | BPF_K
fn mov(register: u8, value: i32) -> BpfInstruction {
    instruction(0xb7, register, 0, value)
}

/// BPF_JMP | BPF_EXIT
fn exit() -> BpfInstruction {
    instruction(0x95, 0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An eBPF machine with the instructions that filters use.
    fn run(code: &[BpfInstruction], kind: i32, access: i32, major: i32, minor: i32) -> i32 {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0_i32; 6], 0_i64);
        loop {
            let i = code[usize::try_from(at).unwrap()];
            at += 1;
            let to = usize::from(i.registers & 15);
            let from = usize::from(i.registers >> 4);
            match i.code {
                0x61 => registers[to] = context[usize::try_from(i.offset / 4).unwrap()],
                0xbc => registers[to] = registers[from],
                0x54 => registers[to] &= i.immediate,
                0x74 => registers[to] >>= i.immediate,
                0xb7 => registers[to] = i.immediate,
                0x55 if registers[to] != i.immediate => at += i64::from(i.offset),
                0x15 if registers[to] == i.immediate => at += i64::from(i.offset),
                0x55 | 0x15 => {}
                0x05 => at += i64::from(i.offset),
                0x95 => return registers[0],
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn filter(rules: serde_json::Value) -> Vec<BpfInstruction> {
        let rules: Vec<DeviceRule> = serde_json::from_value(rules).unwrap();
        program(&entries(&rules))
    }

    #[test]
    fn the_default_rule_leaves_the_default_devices() {
        for rules in [json!([]), json!([{"allow": false, "access": "rwm"}])] {
            let code = filter(rules);
            assert_eq!(run(&code, CHARACTER, READ | WRITE, 1, 3), 1);
            assert_eq!(run(&code, CHARACTER, READ | WRITE, 136, 7), 1);
            assert_eq!(run(&code, CHARACTER, MKNOD, 9, 9), 1);
            assert_eq!(run(&code, BLOCK, MKNOD, 8, 0), 1);
            assert_eq!(run(&code, BLOCK, READ, 8, 0), 0);
            assert_eq!(run(&code, CHARACTER, READ, 1, 1), 0);
            assert_eq!(run(&code, CHARACTER, READ | MKNOD, 1, 1), 0);
        }
    }

    #[test]
    fn the_last_entry_that_speaks_of_an_access_decides_it() {
        let code = filter(json!([
            {"allow": false},
            {"allow": true, "type": "c", "major": 7, "minor": -1, "access": "rw"},
            {"allow": false, "type": "c", "major": 7, "minor": 1, "access": "w"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "access": "w"},
        ]));
        assert_eq!(run(&code, CHARACTER, READ | WRITE, 7, 0), 1);
        assert_eq!(run(&code, CHARACTER, READ, 7, 1), 1);
        assert_eq!(run(&code, CHARACTER, READ | WRITE, 7, 1), 0);
        // Two entries together cover what neither covers alone.
        assert_eq!(run(&code, BLOCK, READ | WRITE, 8, 5), 1);
        assert_eq!(run(&code, BLOCK, READ, 9, 5), 0);
    }

    #[test]
    fn a_number_can_be_named_without_the_other() {
        let code = filter(json!([
            {"allow": true, "major": 9, "access": "r"},
            {"allow": true, "minor": 77, "access": "w"},
            {"allow": false, "type": "c", "major": 9, "minor": 77, "access": "r"},
        ]));
        for (kind, major, minor, expected) in [
            (BLOCK, 9, 1, READ),
            (BLOCK, 9, 77, READ | WRITE),
            (BLOCK, 8, 77, WRITE),
            (BLOCK, 8, 1, 0),
            (CHARACTER, 9, 77, WRITE),
            (CHARACTER, 9, 76, READ),
            (CHARACTER, 1, 77, WRITE),
            (CHARACTER, 136, 77, READ | WRITE),
        ] {
            for access in [READ, WRITE, READ | WRITE] {
                let allowed = i32::from(access & !expected == 0);
                assert_eq!(
                    run(&code, kind, access, major, minor),
                    allowed,
                    "{kind} {access} {major}:{minor}"
                );
            }
        }
    }

    #[test]
    fn an_entry_for_everything_allows_everything() {
        let code = filter(json!([{"allow": false}, {"allow": true, "type": "a", "access": "rwm"}]));
        assert_eq!(run(&code, BLOCK, ALL, 200, 200), 1);
        let shadowed = filter(json!([
            {"allow": true, "type": "c", "major": 9, "minor": 9, "access": "rwm"},
            {"allow": false},
        ]));
        assert_eq!(run(&shadowed, CHARACTER, READ, 9, 9), 0);
    }
}
