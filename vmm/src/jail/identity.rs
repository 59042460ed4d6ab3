//! An identity that can do nothing.

#![allow(unsafe_code)] // System calls without a safe wrapper.

use std::io;

use cloister_vmm_api::JailConfig;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::{Error, step};

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: i32) -> Result<(), Error> {
    let first = u32::try_from(first).unwrap_or_default();
    // SAFETY: nothing in this process owns a descriptor from `first` on yet.
    let closed = unsafe { libc::close_range(first, u32::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    Err(Error::Step {
        step: "close_range",
        source: io::Error::last_os_error(),
    })
}

/// Takes the identity of `config`, without any capability, for ever.
pub(super) fn drop_privileges(config: &JailConfig) -> Result<(), Error> {
    clear_bounding_set()?;
    let (uid, gid) = (Uid::from_raw(config.uid), Gid::from_raw(config.gid));
    step("setgroups", set_thread_groups(&[]))?;
    step("setresgid", set_thread_res_gid(gid, gid, gid))?;
    // Clears the effective, permitted and ambient sets.
    step("setresuid", set_thread_res_uid(uid, uid, uid))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step("capset", set_capabilities(None, none))?;
    step("PR_SET_NO_NEW_PRIVS", set_no_new_privs(true))?;
    step(
        "PR_SET_DUMPABLE",
        set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )
}

/// Drops every capability that the kernel knows from the bounding set.
fn clear_bounding_set() -> Result<(), Error> {
    for capability in 0_u64.. {
        // SAFETY: takes numbers only.
        let dropped =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0_u64, 0_u64, 0_u64) };
        if dropped == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        // capabilities(7): EINVAL past the last capability of this kernel.
        if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
            return Ok(());
        }
        return Err(Error::Step {
            step: "PR_CAPBSET_DROP",
            source: error,
        });
    }
    Ok(())
}
