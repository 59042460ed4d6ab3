//! What virtiofsd uses of libcap-ng, on the system calls alone.
//!
//! The `capng` crate binds a C library. It is replaced for three reasons: linked statically it
//! cannot be without tricks, since the crate asks for the shared library; it reads `/proc`, which
//! the file server does not have; and it remembers a thread's capabilities from one call to the
//! next, although every change of the effective user, which is how virtiofsd creates files, changes
//! them behind its back.
//!
//! Here nothing is remembered but what [`update`] has collected for the next [`apply`]. Names and
//! types are those of the crate, as far as virtiofsd calls them.
#![forbid(unsafe_code)]

use std::cell::Cell;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The number of a capability, as in capabilities(7).
pub type Capability = u32;

/// `CAP_CHECKPOINT_RESTORE`.
const LAST: Capability = 40;

/// Why a capability could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not take the new sets.
    #[error("cannot set the capabilities of the thread")]
    ApplyCapabilities(#[source] rustix::io::Errno),
    /// There is no capability of this name.
    #[error("there is no capability named {0}")]
    GetCapabilityId(String),
    /// The kernel did not tell the current sets.
    #[error("cannot read the capabilities of the thread")]
    GetProcessCapabilities(#[source] rustix::io::Errno),
    /// There is no capability of this number.
    #[error("there is no capability {0}")]
    UpdateCapability(Capability),
}

/// What a call here comes to.
pub type Result<T> = std::result::Result<T, Error>;

/// One of a thread's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type(u8);

impl Type {
    /// What the kernel goes by.
    pub const EFFECTIVE: Self = Self(0);
    /// What can be made effective.
    pub const PERMITTED: Self = Self(1);
    /// What an executed program may keep.
    pub const INHERITABLE: Self = Self(2);
}

/// What to write with [`apply`] or empty with [`clear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set(());

impl Set {
    /// The three sets of [`Type`].
    pub const CAPS: Self = Self(());
    /// As [`Set::CAPS`]: the bounding set is not touched, since a process that cannot execute
    /// anything has no use for it.
    pub const BOTH: Self = Self(());
}

/// What to do with a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take it away.
    DROP,
    /// Give it.
    ADD,
}

/// One change to one set.
#[derive(Debug, Clone, Copy)]
pub struct CUpdate {
    /// What to do.
    pub action: Action,
    /// In which set.
    pub cap_type: Type,
    /// With which capability.
    pub capability: Capability,
}

thread_local! {
    /// The sets that the next [`apply`] writes.
    static PENDING: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
}

fn current() -> Result<CapabilitySets> {
    capabilities(None).map_err(Error::GetProcessCapabilities)
}

fn bit(capability: Capability) -> Result<CapabilitySet> {
    if capability > LAST {
        return Err(Error::UpdateCapability(capability));
    }
    Ok(CapabilitySet::from_bits_retain(1 << capability))
}

fn select(sets: &mut CapabilitySets, which: Type) -> &mut CapabilitySet {
    match which {
        Type::EFFECTIVE => &mut sets.effective,
        Type::PERMITTED => &mut sets.permitted,
        _ => &mut sets.inheritable,
    }
}

/// Starts from the thread's capabilities as they are now.
///
/// # Errors
/// [`Error::GetProcessCapabilities`].
pub fn get_caps_process() -> Result<()> {
    PENDING.set(Some(current()?));
    Ok(())
}

/// Starts from empty sets.
pub fn clear(_set: Set) {
    let none = CapabilitySet::empty();
    PENDING.set(Some(CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    }));
}

/// Collects changes for the next [`apply`], on top of the thread's capabilities as they are now.
///
/// # Errors
/// [`Error::UpdateCapability`] for a number that is none.
pub fn update(updates: Vec<CUpdate>) -> Result<()> {
    let mut sets = match PENDING.take() {
        Some(sets) => sets,
        None => current()?,
    };
    for update in updates {
        let capability = bit(update.capability)?;
        let wanted = update.action == Action::ADD;
        select(&mut sets, update.cap_type).set(capability, wanted);
    }
    PENDING.set(Some(sets));
    Ok(())
}

/// Makes what was collected the thread's capabilities.
///
/// # Errors
/// [`Error::ApplyCapabilities`] if that would exceed what the thread is permitted.
pub fn apply(_set: Set) -> Result<()> {
    match PENDING.take() {
        Some(sets) => set_capabilities(None, sets).map_err(Error::ApplyCapabilities),
        None => Ok(()),
    }
}

/// Whether the thread has a capability in one of its sets.
#[must_use]
pub fn have_capability(which: Type, capability: Capability) -> bool {
    match (current(), bit(capability)) {
        (Ok(mut sets), Ok(capability)) => select(&mut sets, which).contains(capability),
        _ => false,
    }
}

/// The number of a capability by its name without `CAP_`.
///
/// # Errors
/// [`Error::GetCapabilityId`] if there is none.
pub fn name_to_capability(name: &str) -> Result<Capability> {
    let mut names = CapabilitySet::all().iter_names();
    names
        .find(|(known, _)| *known == name)
        .map(|(_, capability)| capability.bits().trailing_zeros())
        .ok_or_else(|| Error::GetCapabilityId(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_kernel_s_numbers() {
        assert_eq!(name_to_capability("FSETID").unwrap(), 4);
        assert_eq!(name_to_capability("DAC_OVERRIDE").unwrap(), 1);
        let error = name_to_capability("LEVITATE").unwrap_err();
        assert_eq!(error.to_string(), "there is no capability named LEVITATE");
    }

    /// Runs on a thread of its own: capabilities are a thread's.
    #[test]
    fn a_dropped_capability_is_gone_until_it_is_added() {
        let fsetid = name_to_capability("FSETID").unwrap();
        if !have_capability(Type::PERMITTED, fsetid) {
            eprintln!("skipped: needs CAP_FSETID");
            return;
        }
        let change = |action| {
            let change = CUpdate {
                action,
                cap_type: Type::EFFECTIVE,
                capability: fsetid,
            };
            update(vec![change]).unwrap();
            apply(Set::CAPS).unwrap();
        };
        change(Action::DROP);
        assert!(!have_capability(Type::EFFECTIVE, fsetid));
        assert!(have_capability(Type::PERMITTED, fsetid));
        change(Action::ADD);
        assert!(have_capability(Type::EFFECTIVE, fsetid));
    }

    #[test]
    fn a_number_that_is_no_capability_is_refused() {
        for capability in [41, 64, 1000] {
            let change = CUpdate {
                action: Action::ADD,
                cap_type: Type::EFFECTIVE,
                capability,
            };
            assert!(matches!(
                update(vec![change]),
                Err(Error::UpdateCapability(number)) if number == capability
            ));
        }
    }
}
