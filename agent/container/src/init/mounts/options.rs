//! The options of a mount (config.md#linux-mount-options).

use std::io;
use std::os::fd::OwnedFd;

use cloister_spec::{AccessTime, Attribute, MountOption, Propagation, mount_option};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::sys::{MountAttr, mount_setattr};

/// MOUNT_ATTR__ATIME: the attributes that exclude each other.
const ACCESS_TIME_MASK: u64 = 0x70;
const NO_SYM_FOLLOW: u64 = 0x20_0000;

/// MS_PRIVATE
pub(super) const PRIVATE: u64 = MountPropagationFlags::PRIVATE.bits() as u64;

/// What the options of one mount come to.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) attr: MountAttr,
    pub(super) recursive: MountAttr,
    pub(super) propagation: Vec<(u64, bool)>,
    pub(super) superblock: Vec<&'static str>,
    pub(super) data: Vec<String>,
    pub(super) copy_up: bool,
    pub(super) no_follow: bool,
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed = Options::default();
        for text in options {
            match mount_option(text) {
                None => parsed.data.push(text.clone()),
                Some(MountOption::Attribute {
                    attribute,
                    set,
                    recursive,
                }) => {
                    let bit = attribute_bit(attribute);
                    let attr = parsed.attr(recursive);
                    // The last word counts.
                    (attr.set, attr.clear) = if set {
                        (attr.set | bit, attr.clear & !bit)
                    } else {
                        (attr.set & !bit, attr.clear | bit)
                    };
                }
                Some(MountOption::AccessTime { mode, recursive }) => {
                    let attr = parsed.attr(recursive);
                    attr.clear |= ACCESS_TIME_MASK;
                    attr.set = attr.set & !ACCESS_TIME_MASK | access_time_bits(mode);
                }
                Some(MountOption::Propagation {
                    propagation,
                    recursive,
                }) => {
                    parsed
                        .propagation
                        .push((propagation_bits(propagation), recursive));
                }
                Some(MountOption::Superblock(flag)) => parsed.superblock.push(flag),
                Some(MountOption::CopyUp) => parsed.copy_up = true,
                Some(MountOption::NoFollow) => parsed.no_follow = true,
                Some(
                    MountOption::Bind { .. }
                    | MountOption::Remount
                    | MountOption::IdMap { .. }
                    | MountOption::Nothing
                    | MountOption::Refused(_),
                ) => {}
            }
        }
        parsed
    }

    pub(super) fn attr(&mut self, recursive: bool) -> &mut MountAttr {
        if recursive {
            &mut self.recursive
        } else {
            &mut self.attr
        }
    }

    /// Gives a detached or attached mount its attributes.
    pub(super) fn apply(&self, mount: &OwnedFd) -> io::Result<()> {
        if self.recursive != MountAttr::default() {
            mount_setattr(mount, &self.recursive, true)?;
        }
        if self.attr != MountAttr::default() {
            mount_setattr(mount, &self.attr, false)?;
        }
        Ok(())
    }

    pub(super) fn apply_propagation(&self, mount: &OwnedFd) -> io::Result<()> {
        for (propagation, recursive) in &self.propagation {
            mount_setattr(mount, &MountAttr::propagation(*propagation), *recursive)?;
        }
        Ok(())
    }
}

pub(super) fn attribute_bit(attribute: Attribute) -> u64 {
    let flag = match attribute {
        Attribute::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Attribute::NoSuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
        Attribute::NoDev => MountAttrFlags::MOUNT_ATTR_NODEV,
        Attribute::NoExec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        Attribute::NoDirAtime => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        Attribute::NoSymFollow => return NO_SYM_FOLLOW,
    };
    u64::from(flag.bits())
}

pub(super) fn access_time_bits(mode: AccessTime) -> u64 {
    let flag = match mode {
        AccessTime::Relative => MountAttrFlags::MOUNT_ATTR_RELATIME,
        AccessTime::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
        AccessTime::Strict => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
    };
    u64::from(flag.bits())
}

pub(super) fn propagation_bits(propagation: Propagation) -> u64 {
    let flag = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    u64::from(flag.bits())
}

/// The attribute for `linux.rootfsPropagation`, and whether it is recursive.
pub(crate) fn root_propagation(name: &str) -> Option<(u64, bool)> {
    match mount_option(name) {
        Some(MountOption::Propagation {
            propagation,
            recursive,
        }) => Some((propagation_bits(propagation), recursive)),
        _ => None,
    }
}
