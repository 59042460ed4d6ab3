//! System call filters (config-linux.md#seccomp), compiled to one classic BPF program.
//!
//! One program and not a stack of them: the kernel takes the strictest verdict of a stack, so a profile
//! whose default is stricter than one of its rules has no equivalent there. The program first tells the
//! ABI, then finds the system call in a binary search over ranges of numbers with the same
//! verdict, then tests arguments. What the profile leaves open is decided as libseccomp and runc do:
//!
//! - names that do not exist on the ABI are passed over;
//! - of several rules for a system call, those with conditions come first, in their order;
//! - several conditions on the same argument are alternatives;
//! - with a restrictive default action, a system call newer than all those that the profile names
//!   fails with ENOSYS, so that a C library falls back to the older one;
//! - the ABI of i386 is filtered if the profile lists it and ends the process otherwise. That of
//!   x32 answers ENOSYS, as by a kernel without it.

mod compile;
mod table;

#[cfg(test)]
mod tests;

use crate::config::{Seccomp, SyscallRule};
use crate::error::{Context, Failure};
use crate::sys;
use compile::{Abi, Program};

/// BPF_MAXINSNS
const MAX_INSTRUCTIONS: usize = 4096;

/// EPERM
const DEFAULT_ERRNO: u16 = 1;

/// A compiled filter.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Compiles a profile.
    pub(crate) fn compile(profile: &Seccomp) -> Result<Self, Failure> {
        let default = verdict(
            "defaultAction",
            &profile.default_action,
            profile.default_errno_ret,
        )?;
        let restrictive = !matches!(
            profile.default_action.as_str(),
            "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE"
        );
        let mut abis = vec![Abi::X86_64];
        if profile
            .architectures
            .iter()
            .any(|arch| arch == "SCMP_ARCH_X86")
        {
            abis.push(Abi::I386);
        }
        let rules = profile
            .syscalls
            .iter()
            .map(Rule::parse)
            .collect::<Result<Vec<_>, _>>()?;
        let program = Program::new(default, restrictive, &abis, &rules).assemble();
        if program.len() > MAX_INSTRUCTIONS {
            return Err(Failure::invalid(format!(
                "linux.seccomp: the filter has {} instructions, the kernel takes {}",
                program.len(),
                MAX_INSTRUCTIONS
            )));
        }
        Ok(Filter {
            program,
            flags: flags(profile),
        })
    }

    /// Installs the filter on this process.
    pub(crate) fn load(&self) -> Result<(), Failure> {
        sys::seccomp(&self.program, self.flags).doing(|| "linux.seccomp: load the filter")
    }
}

fn flags(profile: &Seccomp) -> libc::c_ulong {
    let Some(names) = &profile.flags else {
        // What runc takes if the profile does not say.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    names.iter().fold(0, |flags, name| {
        flags
            | match name.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => libc::SECCOMP_FILTER_FLAG_TSYNC,
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                _ => 0,
            }
    })
}

/// An entry of `syscalls`, ready to be compiled.
#[derive(Debug)]
struct Rule<'a> {
    names: &'a [String],
    verdict: u32,
    /// Alternatives, each a list of conditions that all have to hold. An empty list always does.
    alternatives: Vec<Vec<Condition>>,
}

impl<'a> Rule<'a> {
    fn parse(rule: &'a SyscallRule) -> Result<Self, Failure> {
        let conditions = rule
            .args
            .iter()
            .map(|arg| {
                Ok(Condition {
                    index: arg.index,
                    operator: Operator::parse(&arg.op)?,
                    value: arg.value,
                    value_two: arg.value_two,
                })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let repeated = conditions.iter().enumerate().any(|(position, condition)| {
            conditions
                .iter()
                .take(position)
                .any(|other| other.index == condition.index)
        });
        let alternatives = if repeated {
            conditions
                .into_iter()
                .map(|condition| vec![condition])
                .collect()
        } else {
            vec![conditions]
        };
        Ok(Rule {
            names: &rule.names,
            verdict: verdict("syscalls.action", &rule.action, rule.errno_ret)?,
            alternatives,
        })
    }
}

/// A comparison of an argument (config-linux.md#seccomp, `args`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    index: u32,
    operator: Operator,
    value: u64,
    value_two: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// `argument & value == value_two`
    MaskedEq,
}

impl Operator {
    fn parse(name: &str) -> Result<Self, Failure> {
        match name {
            "SCMP_CMP_EQ" => Ok(Operator::Eq),
            "SCMP_CMP_NE" => Ok(Operator::Ne),
            "SCMP_CMP_LT" => Ok(Operator::Lt),
            "SCMP_CMP_LE" => Ok(Operator::Le),
            "SCMP_CMP_GT" => Ok(Operator::Gt),
            "SCMP_CMP_GE" => Ok(Operator::Ge),
            "SCMP_CMP_MASKED_EQ" => Ok(Operator::MaskedEq),
            _ => Err(Failure::invalid(format!(
                "linux.seccomp.syscalls.args.op: unknown {name:?}"
            ))),
        }
    }
}

/// The filter's return value for an action.
fn verdict(field: &str, action: &str, errno: Option<u16>) -> Result<u32, Failure> {
    // "The default for errno is EPERM" (config-linux.md#seccomp).
    let errno = u32::from(errno.unwrap_or(DEFAULT_ERRNO));
    match action {
        "SCMP_ACT_ALLOW" => Ok(libc::SECCOMP_RET_ALLOW),
        "SCMP_ACT_ERRNO" => Ok(libc::SECCOMP_RET_ERRNO | errno),
        // libseccomp's SCMP_ACT_KILL is SCMP_ACT_KILL_THREAD.
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(libc::SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(libc::SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_LOG" => Ok(libc::SECCOMP_RET_LOG),
        "SCMP_ACT_TRACE" => Ok(libc::SECCOMP_RET_TRACE | errno),
        "SCMP_ACT_TRAP" => Ok(libc::SECCOMP_RET_TRAP),
        _ => Err(Failure::invalid(format!(
            "linux.seccomp.{field}: unknown {action:?}"
        ))),
    }
}
