//! System calls for a process's scheduling and personality, which rustix does not offer.
#![allow(
    unsafe_code,
    reason = "raw system calls; everything exported here is safe to call"
)]

use std::io;

use libc::{c_int, c_long};

use super::check;

/// The first version of struct sched_attr (sched_setattr(2)).
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct SchedAttr {
    /// Set by [`sched_setattr`].
    pub(crate) size: u32,
    /// SCHED_OTHER and so on.
    pub(crate) policy: u32,
    /// SCHED_FLAG_RESET_ON_FORK and so on.
    pub(crate) flags: u64,
    /// For SCHED_OTHER, SCHED_BATCH and SCHED_IDLE.
    pub(crate) nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub(crate) priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds, as the next two.
    pub(crate) runtime: u64,
    /// Counted from the start of the period.
    pub(crate) deadline: u64,
    /// 0 is the deadline.
    pub(crate) period: u64,
}

/// Sets the scheduling of this thread.
pub(crate) fn sched_setattr(attr: SchedAttr) -> io::Result<()> {
    let attr = SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).map_err(io::Error::other)?,
        ..attr
    };
    // SAFETY: `attr` is a struct sched_attr of the size it says.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attr), 0) })?;
    Ok(())
}

/// Sets the I/O priority of this process, of a class (1 to 3) and a level (0 to 7).
pub(crate) fn ioprio_set(class: u8, level: u8) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    const IOPRIO_CLASS_SHIFT: c_int = 13;
    let priority = c_int::from(class) << IOPRIO_CLASS_SHIFT | c_int::from(level);
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })?;
    Ok(())
}

/// Sets the execution domain, without flags.
pub(crate) fn personality(domain: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_personality, c_long::from(domain)) })?;
    Ok(())
}
