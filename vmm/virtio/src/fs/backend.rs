//! The vhost-user conversation with the server behind the device.
//!
//! The messages are those of the `vhost` crate. Its `Frontend` is not used: it waits for an answer
//! without an end, and a device must not hang on a server that is stuck or lies. Here every answer
//! has a deadline, and requests that depend on nothing are sent in one go before their answers are
//! collected, which is one change of context instead of one a message.
//!
//! Guest physical addresses stand where the protocol wants addresses of this process: they only
//! have to agree between SET_MEM_TABLE and SET_VRING_ADDR, and the server learns nothing of where
//! this process keeps its memory.
#![allow(unsafe_code)] // An EventFd lends its descriptor as a bare number only.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserHeaderFlag, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserU64, VhostUserVirtioFeatures,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::device::GuestRam;

/// How long the server may take for one exchange. A stop waits for what the server has in
/// flight, which may be a flush to a slow disk.
const PATIENCE: Duration = Duration::from_secs(10);
/// vhost-user, "Header": request, flags and size, 4 bytes each, in the machine's byte order.
const HEADER: usize = 12;
const VERSION: u32 = 1;

/// What the device needs of the protocol; a server that lacks any of it is refused.
const REQUIRED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// Why the server could not be brought to do something.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The socket did not take the message.
    #[error("cannot send {request:?}")]
    Send {
        /// The message.
        request: FrontendReq,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The socket cannot be read.
    #[error("cannot receive the answer to {request:?}")]
    Receive {
        /// The message that the answer belongs to.
        request: FrontendReq,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The server is gone.
    #[error("the server closed the connection before it answered {request:?}")]
    Closed {
        /// The message that has no answer.
        request: FrontendReq,
    },
    /// The server is stuck.
    #[error("no answer to {request:?} in time")]
    Timeout {
        /// The message that has no answer.
        request: FrontendReq,
    },
    /// The answer is not one to this request.
    #[error("malformed answer to {request:?}")]
    Malformed {
        /// The message.
        request: FrontendReq,
    },
    /// The server answered that it will not.
    #[error("the server refused {request:?}")]
    Refused {
        /// The message.
        request: FrontendReq,
    },
    /// The server cannot do what the device needs.
    #[error("the server lacks {what} {missing:#x}")]
    Features {
        /// Which kind of features.
        what: &'static str,
        /// The missing bits.
        missing: u64,
    },
    /// The server serves fewer queues than the device has.
    #[error("the server has {got} queues, the device {needed}")]
    Queues {
        /// The server's.
        got: u64,
        /// The device's.
        needed: usize,
    },
    /// A region of guest memory cannot be shared with another process.
    #[error("guest memory at {start:#x} is not backed by a file")]
    Memory {
        /// Where the region begins.
        start: u64,
    },
    /// Guest memory is in more pieces than a message can carry.
    #[error("guest memory has {count} regions, a server takes {MAX_ATTACHED_FD_ENTRIES}")]
    Regions {
        /// The number of regions.
        count: usize,
    },
    /// The server is gone, and nothing was asked of it.
    #[error("the server closed the connection")]
    Gone,
    /// An earlier exchange failed; what the server would answer now belongs to that one.
    #[error("the connection is out of step after an earlier failure")]
    Broken,
}

/// A ring as the server has to know it.
#[derive(Debug)]
pub(super) struct Ring<'a> {
    pub(super) index: u16,
    pub(super) queue: &'a Queue,
    pub(super) kick: &'a EventFd,
    pub(super) call: &'a EventFd,
}

/// The connection to the server.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) socket: UnixStream,
    /// How long one exchange may take.
    pub(super) patience: Duration,
    negotiated: bool,
    broken: bool,
}

impl AsFd for Backend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Backend {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            patience: PATIENCE,
            negotiated: false,
            broken: false,
        }
    }

    /// Whether nothing more is to be expected from the server.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Gives up on the server.
    pub(super) fn abandon(&mut self) {
        self.broken = true;
    }

    /// Hands guest memory and the rings to the server and lets it run.
    pub(super) fn start(
        &mut self,
        features: u64,
        memory: &GuestRam,
        queues: usize,
        rings: &[Ring<'_>],
    ) -> Result<(), BackendError> {
        self.exchange(|conversation| {
            if !conversation.backend.negotiated {
                conversation.negotiate(features, queues)?;
            }
            let features = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
            conversation.order(
                FrontendReq::SET_FEATURES,
                VhostUserU64::new(features).as_slice(),
                &[],
            )?;
            conversation.share(memory)?;
            for ring in rings {
                conversation.start_ring(ring)?;
            }
            conversation.settle()
        })
    }

    /// Has the server use `memory` from now on, in place of what it has.
    pub(super) fn share(&mut self, memory: &GuestRam) -> Result<(), BackendError> {
        self.exchange(|conversation| {
            conversation.share(memory)?;
            conversation.settle()
        })
    }

    /// Stops the rings and returns where each has come to in its available ring. The server has
    /// nothing in flight afterwards.
    pub(super) fn stop(&mut self, rings: &[u16]) -> Result<Vec<u16>, BackendError> {
        self.exchange(|conversation| {
            for &index in rings {
                let disabled = VhostUserVringState::new(index.into(), 0);
                conversation.order(FrontendReq::SET_VRING_ENABLE, disabled.as_slice(), &[])?;
            }
            conversation.settle()?;
            let request = FrontendReq::GET_VRING_BASE;
            for &index in rings {
                let body = VhostUserVringState::new(index.into(), 0);
                conversation.send(request, body.as_slice(), &[], false)?;
            }
            let mut bases = Vec::with_capacity(rings.len());
            for &index in rings {
                let mut answer = VhostUserVringState::default();
                conversation.receive(request, answer.as_mut_slice())?;
                let base = u16::try_from(answer.num);
                match base {
                    Ok(base) if { answer.index } == u32::from(index) => bases.push(base),
                    _ => return Err(BackendError::Malformed { request }),
                }
            }
            Ok(bases)
        })
    }

    /// Makes the server forget the driver's session.
    pub(super) fn reset(&mut self) -> Result<(), BackendError> {
        self.exchange(|conversation| {
            conversation.order(FrontendReq::RESET_DEVICE, &[], &[])?;
            conversation.settle()
        })
    }

    fn exchange<T>(
        &mut self,
        talk: impl FnOnce(&mut Conversation<'_>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if self.broken {
            return Err(BackendError::Broken);
        }
        let deadline = Instant::now() + self.patience;
        let mut conversation = Conversation {
            backend: self,
            deadline,
            unsettled: Vec::new(),
        };
        let outcome = talk(&mut conversation);
        if outcome.is_err() {
            self.broken = true;
        }
        outcome
    }
}

/// Messages that belong together, with one deadline.
struct Conversation<'a> {
    backend: &'a mut Backend,
    deadline: Instant,
    /// Orders whose acknowledgement has not been read, in the order they were given.
    unsettled: Vec<FrontendReq>,
}

impl Conversation<'_> {
    fn negotiate(&mut self, features: u64, queues: usize) -> Result<(), BackendError> {
        self.send(FrontendReq::GET_FEATURES, &[], &[], false)?;
        self.send(FrontendReq::SET_OWNER, &[], &[], false)?;
        let offered = self.receive_u64(FrontendReq::GET_FEATURES)?;
        let needed = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        require("virtio features", needed, offered)?;

        self.send(FrontendReq::GET_PROTOCOL_FEATURES, &[], &[], false)?;
        let offered = self.receive_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
        require("protocol features", REQUIRED.bits(), offered)?;
        let accepted = VhostUserU64::new(REQUIRED.bits());
        let request = FrontendReq::SET_PROTOCOL_FEATURES;
        self.send(request, accepted.as_slice(), &[], false)?;

        self.send(FrontendReq::GET_QUEUE_NUM, &[], &[], false)?;
        let got = self.receive_u64(FrontendReq::GET_QUEUE_NUM)?;
        if got < queues as u64 {
            return Err(BackendError::Queues {
                got,
                needed: queues,
            });
        }
        self.backend.negotiated = true;
        Ok(())
    }

    fn share(&mut self, memory: &GuestRam) -> Result<(), BackendError> {
        let count = memory.num_regions();
        if count > MAX_ATTACHED_FD_ENTRIES {
            return Err(BackendError::Regions { count });
        }
        // At most MAX_ATTACHED_FD_ENTRIES.
        let regions = u32::try_from(count).unwrap_or_default();
        let mut body = VhostUserMemory::new(regions).as_slice().to_vec();
        let mut fds = Vec::with_capacity(count);
        for region in memory.iter() {
            let start = region.start_addr().0;
            let file = region.file_offset().ok_or(BackendError::Memory { start })?;
            let region = VhostUserMemoryRegion::new(start, region.len(), start, file.start());
            body.extend_from_slice(region.as_slice());
            fds.push(file.file().as_fd());
        }
        self.order(FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    fn start_ring(&mut self, ring: &Ring<'_>) -> Result<(), BackendError> {
        let index = u32::from(ring.index);
        let state = |num: u16| VhostUserVringState::new(index, num.into());
        let address = VhostUserVringAddr::new(
            index,
            VhostUserVringAddrFlags::empty(),
            ring.queue.desc_table(),
            ring.queue.used_ring(),
            ring.queue.avail_ring(),
            0,
        );
        let vring = VhostUserU64::new(index.into());
        self.order(
            FrontendReq::SET_VRING_NUM,
            state(ring.queue.size()).as_slice(),
            &[],
        )?;
        self.order(FrontendReq::SET_VRING_ADDR, address.as_slice(), &[])?;
        self.order(
            FrontendReq::SET_VRING_BASE,
            state(ring.queue.next_avail()).as_slice(),
            &[],
        )?;
        let call = borrow(ring.call);
        self.order(FrontendReq::SET_VRING_CALL, vring.as_slice(), &[call])?;
        let kick = borrow(ring.kick);
        self.order(FrontendReq::SET_VRING_KICK, vring.as_slice(), &[kick])?;
        self.order(FrontendReq::SET_VRING_ENABLE, state(1).as_slice(), &[])
    }

    /// Sends a request whose only answer is whether it was carried out.
    fn order(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), BackendError> {
        self.send(request, body, fds, true)?;
        self.unsettled.push(request);
        Ok(())
    }

    /// Reads the answers to every order.
    fn settle(&mut self) -> Result<(), BackendError> {
        for request in std::mem::take(&mut self.unsettled) {
            if self.receive_u64(request)? != 0 {
                return Err(BackendError::Refused { request });
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        acknowledge: bool,
    ) -> Result<(), BackendError> {
        let failed = |source| BackendError::Send { request, source };
        let flags = if acknowledge {
            VERSION | VhostUserHeaderFlag::NEED_REPLY.bits()
        } else {
            VERSION
        };
        // A body is at most a memory table.
        let size = u32::try_from(body.len()).map_err(|_| failed(Errno::MSGSIZE))?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        for word in [u32::from(request), flags, size] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);

        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(failed(Errno::MSGSIZE));
        }
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let data = [IoSlice::new(&message)];
            match sendmsg(&self.backend.socket, &data, &mut control, flags) {
                Ok(sent) if sent == message.len() => return Ok(()),
                // The socket holds hundreds of messages; a server that has left so many unread
                // is stuck.
                Ok(_) => return Err(failed(Errno::AGAIN)),
                Err(Errno::INTR) => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }

    fn receive_u64(&mut self, request: FrontendReq) -> Result<u64, BackendError> {
        let mut answer = VhostUserU64::default();
        self.receive(request, answer.as_mut_slice())?;
        Ok(answer.value)
    }

    /// Reads the answer to `request`, whose body must be exactly as long as `body`.
    fn receive(&mut self, request: FrontendReq, body: &mut [u8]) -> Result<(), BackendError> {
        let mut header = [0; HEADER];
        self.read(request, &mut header)?;
        let mut words = header.chunks_exact(4).map(|word| {
            let word = <[u8; 4]>::try_from(word).unwrap_or_default();
            u32::from_ne_bytes(word)
        });
        let code = words.next();
        let flags = words.next().unwrap_or_default();
        let size = words.next();
        let known = VERSION | VhostUserHeaderFlag::REPLY.bits();
        let flags_hold = flags & !VhostUserHeaderFlag::NEED_REPLY.bits() == known;
        if code != Some(request.into()) || !flags_hold || size != u32::try_from(body.len()).ok() {
            return Err(BackendError::Malformed { request });
        }
        self.read(request, body)
    }

    fn read(&mut self, request: FrontendReq, mut buffer: &mut [u8]) -> Result<(), BackendError> {
        let failed = |source| BackendError::Receive { request, source };
        while !buffer.is_empty() {
            // No answer carries descriptors: without room for them the kernel drops any.
            let mut control = RecvAncillaryBuffer::default();
            let mut data = [IoSliceMut::new(buffer)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.backend.socket, &mut data, &mut control, flags) {
                Ok(received) if received.bytes == 0 => {
                    return Err(BackendError::Closed { request });
                }
                Ok(received) => {
                    buffer = buffer.get_mut(received.bytes..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(request)?,
                Err(Errno::CONNRESET) => return Err(BackendError::Closed { request }),
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    fn wait(&self, request: FrontendReq) -> Result<(), BackendError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(BackendError::Timeout { request });
            }
            // A few seconds.
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.backend.socket, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(source) => return Err(BackendError::Receive { request, source }),
            }
        }
    }
}

fn require(what: &'static str, needed: u64, offered: u64) -> Result<(), BackendError> {
    match needed & !offered {
        0 => Ok(()),
        missing => Err(BackendError::Features { what, missing }),
    }
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns the descriptor and is borrowed for as long as the result.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
