//! A device's `kick` descriptors and their place in the event loop.
//!
//! A device is activated and reset on a vCPU thread, but only the event thread may change what the
//! event loop watches, and a descriptor must leave the loop before it is closed: its number may
//! mean something else the next moment. [`Kicks`] is the hand-over between the two.
//!
//! ```text
//!   vCPU thread                     event thread
//!   activate(kicks) ──▶ pending ──wake──▶ watched ──event──▶ queue index
//!   reset()         ──▶ stale   ──wake──▶ unwatched, closed
//! ```

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::ActivateError;

/// The kick descriptors of one device.
#[derive(Debug)]
pub struct Kicks {
    /// Tells the event thread that `current` or `stale` have changed.
    wake: EventFd,
    /// Those of the active queues, each with its queue's index; watched once the event thread
    /// has seen `wake`.
    current: Vec<Kick>,
    /// Those that are still watched but whose queues are gone.
    stale: Vec<Kick>,
}

#[derive(Debug)]
struct Kick {
    index: usize,
    event: EventFd,
    watched: bool,
}

/// What an event means to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kicked {
    /// The device was activated or reset; every queue may have buffers.
    Changed,
    /// The driver announced buffers in the queue of this index.
    Queue(usize),
    /// A late event of a queue that is gone.
    Nothing,
    /// Not one of these descriptors.
    Foreign,
}

impl Kicks {
    /// Of an inactive device.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            current: Vec::new(),
            stale: Vec::new(),
        })
    }

    /// Watches for changes. For [`MutEventSubscriber::init`](event_manager::MutEventSubscriber).
    pub fn init(&self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.wake, EventSet::IN)) {
            log::error!("cannot watch for activation: {error}");
        }
    }

    /// Takes the kick descriptors of queues that have come into use, each with its queue's index.
    ///
    /// # Errors
    /// [`ActivateError::Signal`] if the event thread cannot be told.
    pub fn activate(
        &mut self,
        kicks: impl IntoIterator<Item = (usize, EventFd)>,
    ) -> Result<(), ActivateError> {
        self.retire();
        self.current = kicks
            .into_iter()
            .map(|(index, event)| Kick {
                index,
                event,
                watched: false,
            })
            .collect();
        self.wake.write(1).map_err(ActivateError::Signal)
    }

    /// Gives up the descriptors of queues that have gone out of use.
    pub fn reset(&mut self) {
        self.retire();
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot signal the event thread: {error}");
        }
    }

    fn retire(&mut self) {
        let watched = self.current.drain(..).filter(|kick| kick.watched);
        self.stale.extend(watched);
    }

    /// Sorts out an event. For [`MutEventSubscriber::process`](event_manager::MutEventSubscriber).
    pub fn process(&mut self, events: Events, ops: &mut EventOps) -> Kicked {
        let fd = events.fd();
        if fd == self.wake.as_raw_fd() {
            // Nothing to read means that an earlier event has brought the news already.
            let _ = self.wake.read();
            self.update(ops);
            return Kicked::Changed;
        }
        if let Some(kick) = self.current.iter().find(|k| k.event.as_raw_fd() == fd) {
            return match kick.event.read() {
                Ok(_) => Kicked::Queue(kick.index),
                Err(_) => Kicked::Nothing,
            };
        }
        if self.stale.iter().any(|k| k.event.as_raw_fd() == fd) {
            self.update(ops);
            return Kicked::Nothing;
        }
        Kicked::Foreign
    }

    fn update(&mut self, ops: &mut EventOps) {
        for kick in self.stale.drain(..) {
            if let Err(error) = ops.remove(Events::empty(&kick.event)) {
                log::error!("cannot stop watching a queue: {error}");
            }
        }
        for kick in self.current.iter_mut().filter(|kick| !kick.watched) {
            match ops.add(Events::new(&kick.event, EventSet::IN)) {
                Ok(()) => kick.watched = true,
                Err(error) => log::error!("cannot watch queue {}: {error}", kick.index),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

    use super::*;

    struct Recorder {
        kicks: Kicks,
        seen: Vec<Kicked>,
    }

    impl MutEventSubscriber for Recorder {
        fn process(&mut self, events: Events, ops: &mut EventOps) {
            let kicked = self.kicks.process(events, ops);
            self.seen.push(kicked);
        }

        fn init(&mut self, ops: &mut EventOps) {
            self.kicks.init(ops);
        }
    }

    fn event() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn kicks_follow_activation_and_reset() {
        let recorder = Arc::new(Mutex::new(Recorder {
            kicks: Kicks::new().unwrap(),
            seen: Vec::new(),
        }));
        let mut manager = EventManager::<Arc<Mutex<Recorder>>>::new().unwrap();
        manager.add_subscriber(recorder.clone());
        let seen = || std::mem::take(&mut recorder.lock().unwrap().seen);

        let kick = event();
        kick.write(1).unwrap();
        let clone = kick.try_clone().unwrap();
        recorder
            .lock()
            .unwrap()
            .kicks
            .activate([(3, clone)])
            .unwrap();
        manager.run_with_timeout(100).unwrap();
        assert_eq!(seen(), [Kicked::Changed]);
        manager.run_with_timeout(100).unwrap();
        assert_eq!(seen(), [Kicked::Queue(3)]);

        // A kick after the reset is swallowed, and the descriptor leaves the loop although its
        // twin stays open.
        recorder.lock().unwrap().kicks.reset();
        kick.write(1).unwrap();
        manager.run_with_timeout(100).unwrap();
        assert!(!seen().contains(&Kicked::Queue(3)));
        kick.write(1).unwrap();
        assert_eq!(manager.run_with_timeout(10).unwrap(), 0);

        let clone = kick.try_clone().unwrap();
        recorder
            .lock()
            .unwrap()
            .kicks
            .activate([(0, clone)])
            .unwrap();
        manager.run_with_timeout(100).unwrap();
        manager.run_with_timeout(100).unwrap();
        assert_eq!(seen(), [Kicked::Changed, Kicked::Queue(0)]);
    }

    #[test]
    fn a_reset_before_the_event_thread_ran_leaves_nothing() {
        let recorder = Arc::new(Mutex::new(Recorder {
            kicks: Kicks::new().unwrap(),
            seen: Vec::new(),
        }));
        let mut manager = EventManager::<Arc<Mutex<Recorder>>>::new().unwrap();
        manager.add_subscriber(recorder.clone());
        {
            let mut recorder = recorder.lock().unwrap();
            recorder.kicks.activate([(0, event())]).unwrap();
            recorder.kicks.reset();
        }
        manager.run_with_timeout(100).unwrap();
        assert_eq!(recorder.lock().unwrap().seen, [Kicked::Changed]);
        assert_eq!(manager.run_with_timeout(10).unwrap(), 0);
    }
}
