//! The host's side: descriptors of a tap interface.
//!
//! Unsafe is needed since the kernel has to be given addresses of memory that the guest can change
//! at any moment, of which there can thus be no Rust slice, and for operations without a wrapper.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::HEADER_LEN;
use crate::chain::Segment;

/// The most pieces that the kernel takes at once (UIO_MAXIOV), less one for the device's own buffer.
pub(super) const MAX_PIECES: usize = 1023;

/// include/uapi/linux/if_tun.h.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETSNDBUF: u32 = 0x4004_54d4;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const IFF_TAP: u32 = 0x0002;
const IFF_MULTI_QUEUE: u32 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;

/// The operations on taps.
pub(super) const IOCTLS: &[u32] = &[
    TUNSETOFFLOAD,
    TUNGETIFF,
    TUNSETSNDBUF,
    TUNSETVNETHDRSZ,
    TUNSETQUEUE,
];

/// `struct ifreq`: a name, and a union of which only the flags are used.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Ifreq {
    name: [u8; 16],
    flags: u16,
    rest: [u16; 11],
}

/// Why a descriptor cannot be used as a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is none, or has no interface.
    #[error("not a descriptor of a tap interface")]
    Foreign(#[source] io::Error),
    /// It was opened in a way that the device cannot use.
    #[error("opened with flags {0:#x}, without {1}")]
    Flags(u32, &'static str),
    /// An operation on it failed.
    #[error("{0}")]
    Operation(&'static str, #[source] io::Error),
}

/// A descriptor of a tap interface, one of its queues.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// None of what stands in for a tap.
    interface: Option<[u8; 16]>,
}

impl Tap {
    /// Takes over a descriptor that was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and with
    /// `IFF_MULTI_QUEUE` if it is one of several.
    ///
    /// # Errors
    /// If it is not such a descriptor.
    pub fn new(fd: OwnedFd, one_of_several: bool) -> Result<Self, TapError> {
        let mut request = Ifreq::default();
        // SAFETY: the kernel writes a `struct ifreq`, which `request` has the size and layout of.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF.into(), &raw mut request) };
        if result < 0 {
            return Err(TapError::Foreign(io::Error::last_os_error()));
        }
        let flags = u32::from(request.flags);
        let mut needed = vec![
            (IFF_TAP, "IFF_TAP"),
            (IFF_NO_PI, "IFF_NO_PI"),
            (IFF_VNET_HDR, "IFF_VNET_HDR"),
        ];
        if one_of_several {
            needed.push((IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE"));
        }
        for (flag, name) in needed {
            if flags & flag == 0 {
                return Err(TapError::Flags(flags, name));
            }
        }
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|errno| TapError::Operation("FIONBIO", errno.into()))?;
        let tap = Self {
            fd,
            interface: Some(request.name),
        };
        let length = libc::c_int::try_from(HEADER_LEN).unwrap_or_default();
        for (name, operation, value) in [
            ("TUNSETVNETHDRSZ", TUNSETVNETHDRSZ, length),
            // Any limit makes vhost-net give the tap one packet at a time. Those that it gathers it looks at itself, and takes
            // one that is malformed from the queue again and again.
            ("TUNSETSNDBUF", TUNSETSNDBUF, libc::c_int::MAX - 1),
        ] {
            // SAFETY: the kernel reads an int.
            let result =
                unsafe { libc::ioctl(tap.as_raw_fd(), operation.into(), &raw const value) };
            done(name, result)?;
        }
        Ok(tap)
    }

    /// A non-blocking descriptor that carries packets as a tap does, and whose other end belongs to
    /// a test: of a `SOCK_SEQPACKET` pair.
    ///
    /// # Errors
    /// If it cannot be made non-blocking.
    pub fn stand_in(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd,
            interface: None,
        })
    }

    /// Whether both are of one interface.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        self.interface == other.interface
    }

    /// Tells which packets the interface may hand out unfinished: flags of
    /// [`tun`](super::offload::tun).
    pub(super) fn set_offload(&self, flags: u32) -> Result<(), TapError> {
        if self.interface.is_none() {
            return Ok(());
        }
        // SAFETY: takes a number.
        let result = unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                TUNSETOFFLOAD.into(),
                libc::c_ulong::from(flags),
            )
        };
        done("TUNSETOFFLOAD", result)
    }

    /// Makes the interface use this queue or not. To leave a queue unread would not do: the
    /// interface would go on to spread packets over it.
    pub(super) fn set_attached(&self, attached: bool) -> Result<(), TapError> {
        if self.interface.is_none() {
            return Ok(());
        }
        let request = Ifreq {
            flags: if attached {
                IFF_ATTACH_QUEUE
            } else {
                IFF_DETACH_QUEUE
            },
            ..Ifreq::default()
        };
        // SAFETY: the kernel reads a `struct ifreq`, which `request` has the size and layout of.
        let result =
            unsafe { libc::ioctl(self.as_raw_fd(), TUNSETQUEUE.into(), &raw const request) };
        done("TUNSETQUEUE", result)
    }

    /// Reads a packet into `pieces`, and what they cannot hold into `rest`. Returns its length,
    /// which is that of all of them if it was cut.
    pub(super) fn receive(&self, pieces: &mut Pieces<'_>, rest: &mut [u8]) -> io::Result<usize> {
        let count = pieces.pieces.len();
        pieces.pieces.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
        let length = libc::c_int::try_from(pieces.pieces.len()).unwrap_or(libc::c_int::MAX);
        let result = retried(|| {
            // SAFETY: `pieces` names `length` initialised pieces. The last is `rest`, which is
            // borrowed for this call; the others are inside of guest memory that stays mapped for
            // their lifetime: writing there is what guest memory is for, and no Rust reference to
            // it exists.
            unsafe { libc::readv(self.as_raw_fd(), pieces.pieces.as_ptr(), length) }
        });
        pieces.pieces.truncate(count);
        result
    }

    /// Writes the packet in `pieces`.
    pub(super) fn send(&self, pieces: &Pieces<'_>) -> io::Result<usize> {
        let length = libc::c_int::try_from(pieces.pieces.len()).unwrap_or(libc::c_int::MAX);
        retried(|| {
            // SAFETY: `pieces` names `length` initialised pieces inside of guest memory that stays
            // mapped for their lifetime; they are only read.
            unsafe { libc::writev(self.as_raw_fd(), pieces.pieces.as_ptr(), length) }
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Pieces of guest memory in the form the kernel takes them.
pub(super) struct Pieces<'m> {
    pieces: Vec<libc::iovec>,
    /// The segments that the pieces were made of keep their memory mapped for this long.
    memory: PhantomData<Segment<'m>>,
}

impl<'m> Pieces<'m> {
    pub(super) fn new() -> Self {
        Self {
            pieces: Vec::new(),
            memory: PhantomData,
        }
    }

    /// Puts `segments` in the place of what there was, at most [`MAX_PIECES`] of them.
    pub(super) fn set<'a>(&mut self, segments: impl Iterator<Item = &'a Segment<'m>>)
    where
        'm: 'a,
    {
        self.pieces.clear();
        let segments = segments.take(MAX_PIECES).map(|segment| libc::iovec {
            iov_base: segment.ptr_guard_mut().as_ptr().cast(),
            iov_len: segment.len(),
        });
        self.pieces.extend(segments);
    }
}

fn done(operation: &'static str, result: libc::c_int) -> Result<(), TapError> {
    if result < 0 {
        return Err(TapError::Operation(operation, io::Error::last_os_error()));
    }
    Ok(())
}

fn retried(mut operation: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(operation()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_structure() {
        // include/uapi/linux/if.h.
        assert_eq!(size_of::<Ifreq>(), 40);
        assert_eq!(std::mem::offset_of!(Ifreq, flags), 16);
        assert_eq!(size_of::<libc::ifreq>(), 40);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Tap::new(file.into(), false).unwrap_err();
        assert!(matches!(error, TapError::Foreign(_)), "{error}");
    }
}
