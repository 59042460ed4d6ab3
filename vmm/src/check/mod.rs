//! Whether this machine's KVM can run guests, and at speed.
//!
//! There are machines whose `/dev/kvm` opens, creates VMs and then emulates every instruction of
//! a guest's kernel, a thousand times slower than a processor and without knowing all of them. No
//! ioctl tells. So small guests are run: a timed loop in ring 0, and instructions that every kernel
//! uses.

mod probe;

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use cloister_vmm_api::{Check, CheckReport};
use kvm_ioctls::{Cap, Kvm};

use self::probe::{Outcome, Program};
use crate::chain;
use crate::machine::KVM_API_VERSION;

/// The device.
const DEVICE: &str = "/dev/kvm";

/// What a VM cannot be run without.
const CAPABILITIES: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// How long a loop may take, and any other probe.
const PATIENCE: Duration = Duration::from_secs(2);
/// Iterations of the loop: 10 ms on a slow processor.
const ITERATIONS: u32 = 4_000_000;
/// Iterations a second below which ring 0 is taken to be emulated. Processors do a thousand million,
/// KVM under an emulated processor a hundred million, an instruction emulator half a million.
const SLOWEST: f64 = 3e6;

/// Tries everything, in order, up to the first thing without which the rest cannot be tried.
#[must_use]
pub fn run() -> CheckReport {
    let mut checks = Vec::new();
    run_checks(&mut checks);
    CheckReport {
        usable: checks.iter().all(|check| check.ok),
        checks,
    }
}

fn check(name: &str, outcome: Result<String, String>) -> Check {
    Check {
        name: name.into(),
        ok: outcome.is_ok(),
        detail: outcome.unwrap_or_else(|why| why),
    }
}

fn run_checks(checks: &mut Vec<Check>) {
    let file = match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => file,
        Err(error) => return checks.push(check("open /dev/kvm", Err(explain_open(&error)))),
    };
    checks.push(check("open /dev/kvm", Ok("it opens".into())));
    let kvm = adopt(file);

    let version = kvm.get_api_version();
    let outcome = if version == KVM_API_VERSION {
        Ok(format!("version {version}"))
    } else {
        Err(format!("version {version}, {KVM_API_VERSION} needed"))
    };
    checks.push(check("KVM interface", outcome));
    if version != KVM_API_VERSION {
        return;
    }

    let missing: Vec<_> = (CAPABILITIES.iter())
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    let outcome = if missing.is_empty() {
        Ok(format!("all {} needed are there", CAPABILITIES.len()))
    } else {
        Err(format!("missing: {}", missing.join(", ")))
    };
    checks.push(check("KVM capabilities", outcome));
    if !missing.is_empty() {
        return;
    }

    checks.push(check("ring 0 at speed", speed(&kvm)));
    checks.push(check("XSAVE", instruction(&kvm, Program::xsave())));
    checks.push(check("POPCNT", instruction(&kvm, Program::popcnt())));
}

#[expect(
    unsafe_code,
    reason = "KVM's descriptor can only be taken over as a number"
)]
fn adopt(file: File) -> Kvm {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is owned and given up here.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

/// Why the device does not open, and what helps.
fn explain_open(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no /dev/kvm: the processor's virtualisation is off or hidden, or the kernel's \
             KVM module is not loaded"
                .into()
        }
        io::ErrorKind::PermissionDenied => {
            "no permission to open /dev/kvm: run as root, or as a member of its group".into()
        }
        _ => format!("cannot open /dev/kvm: {error}"),
    }
}

/// Runs the loop and judges its speed.
fn speed(kvm: &Kvm) -> Result<String, String> {
    let emulated = |seen: String| {
        Err(format!(
            "{seen}: this KVM emulates the guest's kernel and cannot run guests at speed"
        ))
    };
    match probe::run(kvm, &Program::count_down(ITERATIONS), PATIENCE) {
        Ok(Outcome::Done { elapsed, .. }) => {
            let rate = f64::from(ITERATIONS) / elapsed.as_secs_f64().max(1e-6);
            let seen = format!("{:.1} million loop iterations a second", rate / 1e6);
            if rate < SLOWEST {
                emulated(seen)
            } else {
                Ok(seen)
            }
        }
        Ok(Outcome::TimedOut) => emulated(format!(
            "{ITERATIONS} loop iterations take more than {PATIENCE:?}"
        )),
        Ok(Outcome::Failed(exit)) => Err(format!("a loop in ring 0 does not run: {exit}")),
        Err(error) => Err(chain(&error)),
    }
}

/// Runs a program whose one purpose is an instruction.
fn instruction(kvm: &Kvm, program: Program) -> Result<String, String> {
    match probe::run(kvm, &program, PATIENCE) {
        Ok(Outcome::Done { value, .. }) if value == program.expected => Ok("it works".into()),
        Ok(Outcome::Done { value, .. }) => Err(format!(
            "it gives {value} instead of {}: this KVM cannot run a kernel",
            program.expected
        )),
        Ok(Outcome::TimedOut) => Err(format!("it takes more than {PATIENCE:?}")),
        Ok(Outcome::Failed(exit)) => Err(format!("it does not run: {exit}")),
        Err(error) => Err(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_the_device_does_not_open_is_told_apart() {
        let explain = |kind: io::ErrorKind| explain_open(&kind.into());
        assert!(explain(io::ErrorKind::NotFound).starts_with("there is no /dev/kvm"));
        assert!(explain(io::ErrorKind::PermissionDenied).starts_with("no permission"));
        assert!(explain(io::ErrorKind::TimedOut).starts_with("cannot open"));
    }

    #[test]
    fn the_report_ends_with_what_failed_or_with_success() {
        let report = run();
        assert!(!report.checks.is_empty());
        assert_eq!(report.usable, report.checks.iter().all(|check| check.ok));
        // Nothing is tried after the device or the interface has failed.
        let first_failure = report.checks.iter().position(|check| !check.ok);
        if let Some(at @ 0..3) = first_failure {
            assert_eq!(at + 1, report.checks.len());
        } else {
            assert_eq!(report.checks.len(), 6);
        }
    }
}
