//! The vhost-user side: what the VMM tells about guest memory and the rings.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use virtiofsd::filesystem::FileSystem;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::ring::{Ring, RingState};
use crate::service::{MAX_QUEUES, Service};

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// The state of one connection.
#[derive(Debug)]
pub struct Session<F: FileSystem + Send + Sync + 'static> {
    service: Arc<Service<F>>,
    /// Where the frontend's addresses are in guest memory.
    mappings: Vec<Mapping>,
    features: u64,
}

#[derive(Debug)]
struct Mapping {
    user_address: u64,
    size: u64,
    guest_address: u64,
}

impl<F: FileSystem + Send + Sync + 'static> Session<F> {
    /// A connection that nothing has been said on.
    #[must_use]
    pub fn new(service: Arc<Service<F>>) -> Self {
        Self {
            service,
            mappings: Vec::new(),
            features: 0,
        }
    }

    fn ring(&self, index: u32) -> Result<&Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.service.rings.get(index).ok_or(Error::InvalidParam)
    }

    /// The ring to configure: it must stand still.
    fn stopped(&self, index: u32) -> Result<std::sync::MutexGuard<'_, RingState>> {
        let state = self.ring(index)?.lock();
        if state.started {
            return Err(Error::InvalidOperation("the ring is started"));
        }
        Ok(state)
    }

    fn guest_address(&self, user_address: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = user_address.checked_sub(mapping.user_address)?;
                let address = mapping.guest_address.checked_add(offset)?;
                (offset < mapping.size).then_some(GuestAddress(address))
            })
            .ok_or(Error::InvalidParam)
    }

    /// Brings the ring and what the workers listen to into line.
    fn update(&self, index: u32) -> Result<()> {
        let position = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        let state = self.ring(index)?.lock();
        let Some(kick) = &state.kick else {
            return Ok(());
        };
        if state.runs() {
            self.service.watch(position, kick).map_err(refused)
        } else {
            self.service.unwatch(kick);
            Ok(())
        }
    }
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

fn queue_error(_: virtio_queue::Error) -> Error {
    Error::InvalidParam
}

impl<F: FileSystem + Send + Sync + 'static> VhostUserBackendReqHandlerMut for Session<F> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for (index, ring) in (0..).zip(&self.service.rings) {
            ring.lock().enabled = false;
            self.update(index)?;
        }
        self.features = 0;
        self.service.forget_session();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for ring in &self.service.rings {
            ring.lock().queue.set_event_idx(event_idx);
        }
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut mappings = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            let guest_address = region.guest_phys_addr;
            let mapping = region.mmap_region(file)?;
            let region_mapping = GuestRegionMmap::new(mapping, GuestAddress(guest_address))
                .ok_or(Error::InvalidParam)?;
            mapped.push(region_mapping);
            mappings.push(Mapping {
                user_address: region.user_addr,
                size: region.memory_size,
                guest_address,
            });
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(refused)?;
        self.service.set_memory(memory);
        self.mappings = mappings;
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.stopped(index)?
            .queue
            .try_set_size(size)
            .map_err(queue_error)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let descriptor = self.guest_address(descriptor)?;
        let used = self.guest_address(used)?;
        let available = self.guest_address(available)?;
        let memory = self.service.memory().ok_or(Error::InvalidParam)?;
        let queue = &mut self.stopped(index)?.queue;
        queue
            .try_set_desc_table_address(descriptor)
            .map_err(queue_error)?;
        queue.try_set_used_ring_address(used).map_err(queue_error)?;
        queue
            .try_set_avail_ring_address(available)
            .map_err(queue_error)?;
        let next = queue
            .used_idx(&*memory, std::sync::atomic::Ordering::Relaxed)
            .map_err(queue_error)?;
        queue.set_next_used(next.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.stopped(index)?.queue.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        if let Some(kick) = &ring.lock().kick {
            self.service.unwatch(kick);
        }
        Ok(VhostUserVringState::new(index, ring.stop().into()))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> Result<()> {
        // Without a descriptor the ring would have to be polled.
        let kick = kick.ok_or(Error::IncorrectFds)?;
        let memory = self.service.memory().ok_or(Error::InvalidParam)?;
        {
            let mut state = self.stopped(index.into())?;
            state.queue.set_ready(true);
            if !state.queue.is_valid(&*memory) {
                state.queue.set_ready(false);
                return Err(Error::InvalidParam);
            }
            state.kick = Some(kick);
            state.started = true;
            // Without the protocol features a ring is enabled from the start.
            if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                state.enabled = true;
            }
        }
        self.update(index.into())
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> Result<()> {
        self.ring(index.into())?.lock().call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _err: Option<File>) -> Result<()> {
        self.ring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !PROTOCOL_FEATURES.bits() {
            0 => Ok(()),
            _ => Err(Error::InvalidParam),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(MAX_QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.lock().enabled = enable;
        self.update(index)
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(unsupported())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(unsupported())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(unsupported())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(unsupported())
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(unsupported())
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(unsupported())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(unsupported())
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        Err(unsupported())
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(unsupported())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(unsupported())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(unsupported())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(unsupported())
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(unsupported())
    }
}

/// None of these were offered as protocol features.
fn unsupported() -> Error {
    Error::InvalidOperation("not offered")
}
