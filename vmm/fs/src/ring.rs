//! One virtqueue of the device, as the session configures it and the workers empty it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

/// The guest's memory, in the form that virtiofsd wants it: with a dirty bitmap that is never set
/// up.
pub type Memory = GuestMemoryMmap<BitmapMmapRegion>;

/// One virtqueue.
#[derive(Debug)]
pub(crate) struct Ring {
    state: Mutex<RingState>,
    /// Signalled when nothing is in flight any more.
    quiet: Condvar,
}

#[derive(Debug)]
pub(crate) struct RingState {
    pub(crate) queue: Queue,
    pub(crate) kick: Option<File>,
    pub(crate) call: Option<File>,
    /// vhost-user, "Ring states": a ring starts with its kick descriptor and stops with
    /// GET_VRING_BASE; while it is started it can be enabled and disabled.
    pub(crate) started: bool,
    pub(crate) enabled: bool,
    /// The driver broke the rules: the ring is not touched until it is stopped.
    broken: bool,
    /// Chains that have been taken and not been given back.
    in_flight: u32,
}

/// A request on its way through a worker.
pub(crate) struct Job {
    pub(crate) chain: DescriptorChain<Arc<Memory>>,
    pub(crate) memory: Arc<Memory>,
    /// Whether more requests were waiting when this one was taken.
    pub(crate) more: bool,
}

impl RingState {
    pub(crate) fn runs(&self) -> bool {
        self.started && self.enabled && !self.broken
    }
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            state: Mutex::new(RingState {
                queue: Queue::new(max_size)?,
                kick: None,
                call: None,
                started: false,
                enabled: false,
                broken: false,
                in_flight: 0,
            }),
            quiet: Condvar::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, RingState> {
        // A thread that panicked has ended the process: panic is abort in what we ship.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next request, if there is one. With `others` at work the driver is asked for a
    /// notification of the request after it, so that another worker can begin with that one.
    pub(crate) fn take(
        &self,
        memory: &Arc<Memory>,
        others: bool,
    ) -> Result<Option<Job>, QueueError> {
        let mut state = self.lock();
        while state.runs() {
            let next = state.queue.iter(memory.clone())?.next();
            let more = if others || next.is_none() {
                state.queue.enable_notification(&**memory)?
            } else {
                true
            };
            if let Some(chain) = next {
                state.in_flight += 1;
                return Ok(Some(Job {
                    chain,
                    memory: memory.clone(),
                    more,
                }));
            }
            if !more {
                break;
            }
        }
        Ok(None)
    }

    /// Gives a request back to the driver, with `written` bytes of answer.
    pub(crate) fn give_back(&self, job: Job, written: u32) -> Result<(), QueueError> {
        let mut state = self.lock();
        let head = job.chain.head_index();
        let result = match state.queue.add_used(&*job.memory, head, written) {
            Ok(()) => state.queue.needs_notification(&*job.memory),
            Err(error) => Err(error),
        };
        if let Ok(true) = result
            && let Some(call) = &mut state.call
            && let Err(error) = call.write(&1u64.to_ne_bytes())
            && error.kind() != io::ErrorKind::WouldBlock
        {
            log::error!("cannot signal a used buffer: {error}");
        }
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.quiet.notify_all();
        }
        result.map(drop)
    }

    /// Leaves the ring alone until it is stopped.
    pub(crate) fn give_up(&self) {
        self.lock().broken = true;
    }

    /// Stops the ring and waits until nothing is in flight. Returns the next entry of the
    /// available ring.
    pub(crate) fn stop(&self) -> u16 {
        let mut state = self.lock();
        state.started = false;
        while state.in_flight > 0 {
            state = self
                .quiet
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.broken = false;
        state.kick = None;
        state.call = None;
        state.queue.set_ready(false);
        state.queue.next_avail()
    }
}
