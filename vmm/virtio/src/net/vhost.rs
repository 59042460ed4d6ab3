//! vhost-net: the host's kernel moves the packets of a queue pair.
//!
//! Whoever opens the taps may give a descriptor of `/dev/vhost-net` beside each. A pair in use is then handed over: a worker of
//! the kernel's, which is a thread of this process, takes what the driver announces and what the tap has, and raises the
//! interrupt, all without a system call or a wake-up of the device's own thread. The control queue stays here.
//!
//! The kernel reads and writes the rings where this process has mapped them, and checks no more than that an address is a
//! process's own. That a ring is in guest memory as a whole is checked here.
//!
//! Unsafe is needed for what the library behind this does not do: give a tap to a descriptor that it has not opened itself, and take
//! a kick back.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_SET_VRING_KICK, vhost_vring_file,
};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use crate::device::{GuestRam, SavedQueue};

/// include/uapi/linux/vhost.h, in the order in which they are used.
pub(super) const IOCTLS: &[u32] = &[
    0x8008_af00, // VHOST_GET_FEATURES
    0x0000_af01, // VHOST_SET_OWNER
    0x4008_af00, // VHOST_SET_FEATURES
    0x4008_af03, // VHOST_SET_MEM_TABLE
    0x4008_af10, // VHOST_SET_VRING_NUM
    0x4028_af11, // VHOST_SET_VRING_ADDR
    0x4008_af12, // VHOST_SET_VRING_BASE
    0x4008_af20, // VHOST_SET_VRING_KICK
    0x4008_af21, // VHOST_SET_VRING_CALL
    0x4008_af22, // VHOST_SET_VRING_ERR
    0x4008_af30, // VHOST_NET_SET_BACKEND
    0xc008_af12, // VHOST_GET_VRING_BASE
];

/// The features that are about the form of rings and packets. Of the others the kernel must not know: what is left to do on a
/// packet is between the driver and the tap.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1;

/// A pair's queues as the kernel numbers them: receive, transmit.
pub(super) const QUEUES: usize = 2;

/// What the kernel cannot be brought to do.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// It lacks features that this device offers to drivers.
    #[error("features {0:#x} are missing")]
    Features(u64),
    /// A ring is not in one piece of guest memory.
    #[error("queue {0} is not in one piece of memory")]
    Ring(usize),
    /// An operation failed.
    #[error("{0}")]
    Operation(&'static str, #[source] vhost::Error),
    /// A descriptor is not taken or not given back.
    #[error("{0}")]
    Descriptor(&'static str, #[source] io::Error),
    /// A region of guest memory is not mapped.
    #[error("a region of memory is not mapped")]
    Unmapped,
    /// There is no such pair.
    #[error("no such queue pair")]
    Pair,
}

/// What a pair's queue consists of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) queue: SavedQueue,
    pub(super) kick: &'a EventFd,
}

/// A descriptor of `/dev/vhost-net`, for one queue pair.
#[derive(Debug)]
pub struct Vhost {
    fd: File,
    /// This process owns it: there is a worker.
    owned: bool,
    /// As the kernel knows it.
    memory: Arc<GuestRam>,
}

impl Vhost {
    /// Takes over a descriptor that nobody owns yet.
    ///
    /// # Errors
    /// If it is none, or the kernel cannot do what the device offers to drivers.
    pub fn new(fd: OwnedFd) -> Result<Self, VhostError> {
        let vhost = Self {
            fd: fd.into(),
            owned: false,
            memory: Arc::default(),
        };
        let possible = done("VHOST_GET_FEATURES", vhost.get_features())?;
        match FEATURES & !possible {
            0 => {}
            missing => return Err(VhostError::Features(missing)),
        }
        Ok(vhost)
    }

    /// Tells the kernel of a pair's queues and where they are on. `call` is to be signalled for the driver, `broken` if a queue
    /// is. Nothing moves yet.
    pub(super) fn prepare(
        &mut self,
        memory: &GuestRam,
        features: u64,
        parts: [Part<'_>; QUEUES],
        call: &EventFd,
        broken: &EventFd,
    ) -> Result<(), VhostError> {
        if !self.owned {
            // The kernel starts its worker.
            done("VHOST_SET_OWNER", self.set_owner())?;
            self.owned = true;
        }
        done("VHOST_SET_FEATURES", self.set_features(features & FEATURES))?;
        self.set_memory(memory)?;
        for (index, Part { queue, kick }) in parts.iter().enumerate() {
            if !in_one_piece(memory, queue) {
                return Err(VhostError::Ring(index));
            }
            let ring = VringConfigData {
                queue_max_size: queue.max_size,
                queue_size: queue.size,
                flags: 0,
                desc_table_addr: queue.desc_table,
                used_ring_addr: queue.used_ring,
                avail_ring_addr: queue.avail_ring,
                log_addr: None,
            };
            done("VHOST_SET_VRING_NUM", self.set_vring_num(index, queue.size))?;
            done(
                "VHOST_SET_VRING_BASE",
                self.set_vring_base(index, queue.next_avail),
            )?;
            done("VHOST_SET_VRING_ADDR", self.set_vring_addr(index, &ring))?;
            done("VHOST_SET_VRING_CALL", self.set_vring_call(index, call))?;
            done("VHOST_SET_VRING_ERR", self.set_vring_err(index, broken))?;
            // For what was announced before the kernel listened; it looks once it has the tap.
            kick.write(1)
                .map_err(|error| VhostError::Descriptor("kick", error))?;
            done("VHOST_SET_VRING_KICK", self.set_vring_kick(index, kick))?;
        }
        Ok(())
    }

    /// Has the kernel move the packets between the queues and `tap`. If it refuses, [`Vhost::stop`] is due.
    pub(super) fn run(&self, tap: &Tap) -> Result<(), VhostError> {
        (0..QUEUES).try_for_each(|index| self.set_tap(index, Some(tap)))
    }

    /// Ends that, with no packet half-way. Returns the next entry of each available ring.
    pub(super) fn stop(&self) -> Result<[u16; QUEUES], VhostError> {
        for index in 0..QUEUES {
            self.set_tap(index, None)?;
            self.forget_kick(index)?;
        }
        let mut next = [0; QUEUES];
        for (index, next) in next.iter_mut().enumerate() {
            let base = done("VHOST_GET_VRING_BASE", self.get_vring_base(index))?;
            // The upper half is of packed rings.
            *next = u16::try_from(base & 0xffff).unwrap_or_default();
        }
        Ok(next)
    }

    /// Takes guest memory, which the kernel may use at the moment and which has only become larger then.
    pub(super) fn set_memory(&mut self, memory: &GuestRam) -> Result<(), VhostError> {
        self.memory = Arc::new(memory.clone());
        let regions = memory.iter().map(|region| {
            let address = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| VhostError::Unmapped)?;
            Ok(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: address.expose_provenance() as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
        });
        let regions = regions.collect::<Result<Vec<_>, VhostError>>()?;
        done("VHOST_SET_MEM_TABLE", self.set_mem_table(&regions)).map(drop)
    }

    fn set_tap(&self, index: usize, tap: Option<&Tap>) -> Result<(), VhostError> {
        let fd = tap.map_or(-1, AsRawFd::as_raw_fd);
        let operation = VHOST_NET_SET_BACKEND();
        self.set_file("VHOST_NET_SET_BACKEND", operation, index, fd)
    }

    /// Makes the kernel listen to a queue's kick no longer.
    fn forget_kick(&self, index: usize) -> Result<(), VhostError> {
        let operation = VHOST_SET_VRING_KICK();
        self.set_file("VHOST_SET_VRING_KICK", operation, index, -1)
    }

    fn set_file(
        &self,
        name: &'static str,
        operation: libc::c_ulong,
        index: usize,
        fd: RawFd,
    ) -> Result<(), VhostError> {
        let file = vhost_vring_file {
            // Of two.
            index: u32::from(index != 0),
            fd,
        };
        // SAFETY: both operations that come here read a `struct vhost_vring_file`, which `file` is.
        let result = unsafe { vmm_sys_util::ioctl::ioctl_with_ref(&self.fd, operation, &file) };
        if result < 0 {
            return Err(VhostError::Descriptor(name, io::Error::last_os_error()));
        }
        Ok(())
    }
}

impl VhostKernBackend for Vhost {
    type AS = Arc<GuestRam>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

impl AsRawFd for Vhost {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Whether each ring of a queue is in one region of guest memory, and thus where this process has mapped its beginning.
fn in_one_piece(memory: &GuestRam, queue: &SavedQueue) -> bool {
    let size = u64::from(queue.size);
    // virtio-v1.3 §2.7.5, §2.7.6, §2.7.8, with the event index behind each ring.
    let rings = [
        (queue.desc_table, 16 * size),
        (queue.avail_ring, 6 + 2 * size),
        (queue.used_ring, 6 + 8 * size),
    ];
    rings.into_iter().all(|(address, length)| {
        memory
            .to_region_addr(GuestAddress(address))
            .is_some_and(|(region, offset)| region.len() - offset.0 >= length)
    })
}

fn done<T>(operation: &'static str, result: vhost::Result<T>) -> Result<T, VhostError> {
    result.map_err(|error| VhostError::Operation(operation, error))
}

#[cfg(test)]
mod tests {
    use vhost::vhost_kern::vhost_binding::*;

    use super::*;

    #[test]
    fn the_operations_have_their_numbers() {
        let numbers = [
            VHOST_GET_FEATURES(),
            VHOST_SET_OWNER(),
            VHOST_SET_FEATURES(),
            VHOST_SET_MEM_TABLE(),
            VHOST_SET_VRING_NUM(),
            VHOST_SET_VRING_ADDR(),
            VHOST_SET_VRING_BASE(),
            VHOST_SET_VRING_KICK(),
            VHOST_SET_VRING_CALL(),
            VHOST_SET_VRING_ERR(),
            VHOST_NET_SET_BACKEND(),
            VHOST_GET_VRING_BASE(),
        ];
        let numbers = numbers.map(|number| u32::try_from(number).unwrap());
        assert_eq!(numbers, IOCTLS);
    }

    #[test]
    fn what_is_no_vhost_is_refused() {
        let error = Vhost::new(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert!(
            matches!(error, VhostError::Operation("VHOST_GET_FEATURES", _)),
            "{error}"
        );
    }

    #[test]
    fn a_ring_must_be_in_one_piece() {
        let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
        let memory = GuestRam::from_ranges(&ranges).unwrap();
        let queue = SavedQueue {
            max_size: 16,
            size: 16,
            ready: true,
            event_idx: true,
            next_avail: 0,
            next_used: 0,
            desc_table: 0,
            avail_ring: 0x400,
            used_ring: 0x800,
        };
        assert!(in_one_piece(&memory, &queue));
        let last = SavedQueue {
            desc_table: 0x1000 - 256,
            avail_ring: 0x1000 - 38,
            used_ring: 0x2000 - 134,
            ..queue
        };
        assert!(in_one_piece(&memory, &last));
        for across in [
            SavedQueue {
                desc_table: 0x1000 - 240,
                ..queue
            },
            SavedQueue {
                avail_ring: 0x1000 - 36,
                ..queue
            },
            SavedQueue {
                used_ring: 0x2000 - 132,
                ..queue
            },
            SavedQueue {
                used_ring: u64::MAX,
                ..queue
            },
        ] {
            assert!(!in_one_piece(&memory, &across), "{across:?}");
        }
    }
}
