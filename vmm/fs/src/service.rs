//! The requests: workers that take them from the rings and have the file system answer them.
//!
//! Workers wait in one epoll for the rings' kick descriptors, edge-triggered: each kick wakes one
//! of them, and nobody has to read the descriptor. A worker answers request after request until
//! its ring is empty, in the same thread, so that a guest with one request at a time is served
//! without a hand-over. When it takes a request and nobody is left to listen, or more requests are
//! waiting, it sees to a further worker, up to a limit; workers that exist are woken through a
//! descriptor of their own.
#![allow(unsafe_code)] // unshare(2): its effect on a thread is for the caller to judge.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use virtio_queue::{DescriptorChain, Error as QueueError};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::fuse::{InHeader, OutHeader};
use virtiofsd::server::Server;

use crate::ring::{Job, Memory, Ring};

/// hiprio, and as many request queues as the frontend may want.
pub const MAX_QUEUES: usize = 1 + 8;
/// The largest queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Enough for what a request puts on the stack.
const STACK_SIZE: usize = 512 * 1024;
/// The epoll token of the descriptor that wakes a worker for any ring.
const WAKE: u64 = u64::MAX;

/// Requests answered and refused.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests that were answered.
    pub requests: AtomicU64,
    /// Requests that broke the rules of the protocol, and were dropped.
    pub malformed: AtomicU64,
    /// Queues that broke the rules of virtio, and were left alone.
    pub broken_queues: AtomicU64,
}

/// What the session and the workers share.
pub struct Service<F: FileSystem + Send + Sync + 'static> {
    server: Server<F>,
    memory: RwLock<Option<Arc<Memory>>>,
    pub(crate) rings: Vec<Ring>,
    kicks: OwnedFd,
    wake: OwnedFd,
    limit: usize,
    workers: AtomicUsize,
    idle: AtomicUsize,
    metrics: Metrics,
}

impl<F: FileSystem + Send + Sync + 'static> std::fmt::Debug for Service<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("workers", &self.workers)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

/// Why a service cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The process is out of descriptors.
    #[error("cannot make an event descriptor")]
    Event(#[source] Errno),
    /// A queue cannot be made.
    #[error("cannot make a queue")]
    Queue(#[source] QueueError),
    /// A worker cannot be started.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
}

impl<F: FileSystem + Send + Sync + 'static> Service<F> {
    /// A service of `files` with at most `limit` workers, none of which is running yet.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn new(files: F, limit: usize) -> Result<Arc<Self>, ServiceError> {
        let kicks = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(ServiceError::Event)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(ServiceError::Event)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&kicks, &wake, epoll::EventData::new_u64(WAKE), edge)
            .map_err(ServiceError::Event)?;
        let rings = (0..MAX_QUEUES)
            .map(|_| Ring::new(MAX_QUEUE_SIZE))
            .collect::<Result<_, _>>()
            .map_err(ServiceError::Queue)?;
        Ok(Arc::new(Self {
            server: Server::new(files),
            memory: RwLock::new(None),
            rings,
            kicks,
            wake,
            limit: limit.max(1),
            workers: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            metrics: Metrics::default(),
        }))
    }

    /// What has been done so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Forgets every file that the driver has looked up or opened.
    pub(crate) fn forget_session(&self) {
        self.server.destroy();
    }

    pub(crate) fn set_memory(&self, memory: Memory) {
        let mut current = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::new(memory));
    }

    pub(crate) fn memory(&self) -> Option<Arc<Memory>> {
        self.memory
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Listens to a ring's kick descriptor.
    pub(crate) fn watch(self: &Arc<Self>, index: usize, kick: &File) -> Result<(), ServiceError> {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let token = epoll::EventData::new_u64(index as u64);
        match epoll::add(&self.kicks, kick, token, edge) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(ServiceError::Event(errno)),
        }
        if self.workers.load(Ordering::SeqCst) == 0 {
            self.start_worker()?;
        }
        Ok(())
    }

    /// Stops listening to a ring's kick descriptor.
    pub(crate) fn unwatch(&self, kick: &File) {
        // One that was never enabled is not there.
        let _ = epoll::delete(&self.kicks, kick);
    }

    /// Starts one more worker, unless there are enough.
    fn start_worker(self: &Arc<Self>) -> Result<(), ServiceError> {
        let admitted = self
            .workers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count < self.limit).then_some(count + 1)
            });
        if admitted.is_err() {
            return Ok(());
        }
        let service = self.clone();
        let started = thread::Builder::new()
            .name("worker".into())
            .stack_size(STACK_SIZE)
            .spawn(move || service.work());
        if let Err(error) = started {
            self.workers.fetch_sub(1, Ordering::SeqCst);
            return Err(ServiceError::Worker(error));
        }
        Ok(())
    }

    /// The life of a worker.
    fn work(self: Arc<Self>) {
        // SAFETY: the file system changes the working directory and the umask of a thread for the
        // length of a call; nothing else depends on the two being shared.
        let own = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) };
        if let Err(error) = own {
            log::error!("a worker cannot have a working directory of its own: {error}");
            self.workers.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let mut events = Vec::with_capacity(1);
        // What was waiting when it was decided to start this worker.
        self.rings.iter().for_each(|ring| self.empty(ring));
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            let waited = epoll::wait(&self.kicks, spare_capacity(&mut events), None);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => log::error!("cannot wait for requests: {error}"),
            }
            for event in events.drain(..) {
                let token = event.data.u64();
                match usize::try_from(token)
                    .ok()
                    .and_then(|index| self.rings.get(index))
                {
                    Some(ring) => self.empty(ring),
                    None => self.rings.iter().for_each(|ring| self.empty(ring)),
                }
            }
        }
    }

    /// Answers requests until the ring has no more.
    fn empty(self: &Arc<Self>, ring: &Ring) {
        let outcome = loop {
            let Some(memory) = self.memory() else {
                break Ok(());
            };
            match ring.take(&memory, self.limit > 1) {
                Ok(Some(job)) => {
                    if self.limit > 1 {
                        self.see_to_others(job.more);
                    }
                    let written = self.answer(&job);
                    if let Err(error) = ring.give_back(job, written) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = outcome {
            ring.give_up();
            self.metrics.broken_queues.fetch_add(1, Ordering::Relaxed);
            log::warn!("a queue breaks the rules and is left alone: {error}");
        }
    }

    /// Before a worker is busy: makes sure that somebody listens, and that waiting requests are
    /// taken care of.
    fn see_to_others(self: &Arc<Self>, more: bool) {
        if self.idle.load(Ordering::SeqCst) == 0 {
            if let Err(error) = self.start_worker() {
                log::error!("{}", crate::run::chain(&error));
            }
        } else if more {
            // Full means that somebody is being woken already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Answers one request and returns the length of the answer.
    fn answer(&self, job: &Job) -> u32 {
        let answered = answer(&self.server, &job.memory, &job.chain);
        let counter = match answered {
            Ok(_) => &self.metrics.requests,
            Err(_) => &self.metrics.malformed,
        };
        let count = counter.fetch_add(1, Ordering::Relaxed);
        match answered {
            Ok(written) => written,
            Err(error) => {
                // One line a power of two: a guest cannot fill the log.
                if (count + 1).is_power_of_two() {
                    log::warn!("malformed request, number {}: {error}", count + 1);
                }
                0
            }
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A buffer is not in guest memory.
    #[error("{0}")]
    Buffers(virtiofsd::descriptor_utils::Error),
    /// There is no room for the answer that every such request has.
    #[error("opcode {opcode} with {writable} writable bytes")]
    Room {
        /// The kind of request.
        opcode: u32,
        /// Room for the answer.
        writable: usize,
    },
    /// The header is cut short.
    #[error("no header: {0}")]
    Header(io::Error),
    /// The rest of the request does not hold.
    #[error("{0}")]
    Body(virtiofsd::Error),
}

/// Requests that have no answer: FORGET, BATCH_FORGET, INTERRUPT.
const SILENT: [u32; 3] = [2, 42, 36];

/// Has `server` answer one request, the descriptor chain `chain` in `memory`. Returns the length of
/// the answer.
///
/// # Errors
/// If the request cannot be answered at all. One that is understood and fails has an answer.
pub fn answer<F: FileSystem + Sync>(
    server: &Server<F>,
    memory: &Memory,
    chain: &DescriptorChain<Arc<Memory>>,
) -> Result<u32, RequestError> {
    let reader = Reader::new(memory, chain.clone()).map_err(RequestError::Buffers)?;
    let writer = Writer::new(memory, chain.clone()).map_err(RequestError::Buffers)?;
    let header: InHeader = reader.clone().read_obj().map_err(RequestError::Header)?;
    // The library takes the room for an answer's header for granted.
    let writable = writer.available_bytes();
    let opcode = header.opcode;
    if writable < size_of::<OutHeader>() && !SILENT.contains(&opcode) {
        return Err(RequestError::Room { opcode, writable });
    }
    let written = server
        .handle_message(reader, writer, None::<&mut ()>)
        .map_err(RequestError::Body)?;
    // At most what the writer holds, which a chain's length bounds.
    Ok(u32::try_from(written).unwrap_or_default())
}
