//! Who moves the packets of a pair in use: the kernel, if it can at the moment, or else the session itself.

use vmm_sys_util::epoll::EventSet;

use super::{Host, Mover, Session, Token};
use crate::net::vhost::{Part, QUEUES, VhostError};
use crate::{chain, warn_guest};

impl Session {
    /// Begins to use a pair.
    pub(super) fn take_up(&mut self, index: usize, host: &mut Host) {
        match self.wanted(index, host) {
            Mover::Nobody => return,
            Mover::Session => {}
            Mover::Kernel => match self.hand_over(index, host) {
                Ok(()) => return,
                Err(error) => {
                    warn_guest!(
                        "net: vhost-net does not move pair {index}: {}",
                        chain(&error)
                    );
                    self.settle();
                }
            },
        }
        self.watch_kicks(index, host);
        if let Some(pair) = self.pairs.get_mut(index) {
            pair.mover = Mover::Session;
            (pair.rx.readable, pair.rx.blocked) = (true, false);
            (pair.tx.writable, pair.tx.ready) = (true, true);
        }
        self.watch(index, host, Some(EventSet::IN | EventSet::OUT));
    }

    /// Ends the use of a pair, with no packet half-way.
    pub(super) fn leave(&mut self, index: usize, host: &mut Host) {
        let Some(pair) = self.pairs.get_mut(index) else {
            return;
        };
        match std::mem::replace(&mut pair.mover, Mover::Nobody) {
            Mover::Nobody => {}
            Mover::Session => {
                self.watch(index, host, None);
                for kick in self.kicks.iter().skip(QUEUES * index).take(QUEUES) {
                    // Of a queue that is not ready it was never watched.
                    let _ = host.poller.remove(kick);
                }
            }
            Mover::Kernel => {
                self.take_back(index, host);
                self.settle();
            }
        }
    }

    /// Follows a change of who is to move a pair's packets.
    pub(super) fn reconsider(&mut self, index: usize, host: &mut Host) {
        let mover = self.pairs.get(index).map(|pair| pair.mover);
        if mover != Some(self.wanted(index, host)) {
            self.leave(index, host);
            self.take_up(index, host);
        }
    }

    /// Takes from the kernel what it has until [`Session::reconsider`], so that the queues' states are exact.
    pub(in super::super) fn pause(&mut self, host: &mut Host) {
        for index in 0..self.in_use {
            if self.is_with_kernel(index) {
                self.leave(index, host);
            }
        }
    }

    /// Tells the kernel of guest memory that has become larger.
    pub(super) fn share_memory(&mut self, host: &mut Host) {
        for index in 0..self.in_use {
            if self.is_with_kernel(index)
                && let Some(vhost) = host.vhosts.get_mut(index)
                && let Err(error) = vhost.set_memory(&self.memory)
            {
                log::error!("net: vhost-net gets no more memory: {}", chain(&error));
                self.refuse(index);
                self.reconsider(index, host);
            }
        }
    }

    /// Who is to move a pair's packets now. What comes while the link is down has to be dropped, which the kernel does not do,
    /// and while the virtual machine stands still it must not go on.
    fn wanted(&self, index: usize, host: &Host) -> Mover {
        let refused = self.pairs.get(index).is_none_or(|pair| pair.refused);
        if refused || host.vhosts.get(index).is_none() || !host.flow.link_up {
            Mover::Session
        } else if host.flow.paused {
            Mover::Nobody
        } else {
            Mover::Kernel
        }
    }

    fn is_with_kernel(&self, index: usize) -> bool {
        let pair = self.pairs.get(index);
        pair.is_some_and(|pair| pair.mover == Mover::Kernel)
    }

    fn refuse(&mut self, index: usize) {
        if let Some(pair) = self.pairs.get_mut(index) {
            pair.refused = true;
        }
    }

    fn hand_over(&mut self, index: usize, host: &mut Host) -> Result<(), VhostError> {
        // Until it has not.
        self.refuse(index);
        let at = QUEUES * index;
        let (Some([rx, tx]), Some([rx_kick, tx_kick]), Some(vhost), Some(tap)) = (
            self.rings.get(at..at + QUEUES),
            self.kicks.get(at..at + QUEUES),
            host.vhosts.get_mut(index),
            host.taps.get(index),
        ) else {
            return Err(VhostError::Pair);
        };
        let parts = [(rx, rx_kick), (tx, tx_kick)].map(|(ring, kick)| Part {
            queue: ring.state(),
            kick,
        });
        let line = self.interrupt.line();
        let prepared = vhost.prepare(&self.memory, self.features, parts, line, &host.broken);
        if let Err(error) = prepared {
            // It may listen to a kick already; what it was not told yet it refuses to forget.
            let _ = vhost.stop();
            return Err(error);
        }
        // Before the kernel's first interrupt.
        self.interrupt.used_elsewhere(true);
        if let Err(error) = vhost.run(tap) {
            self.take_back(index, host);
            return Err(error);
        }
        if let Some(pair) = self.pairs.get_mut(index) {
            (pair.mover, pair.refused) = (Mover::Kernel, false);
        }
        Ok(())
    }

    /// Has the kernel give a pair back, and goes on where it was.
    fn take_back(&mut self, index: usize, host: &Host) {
        let Some(vhost) = host.vhosts.get(index) else {
            return;
        };
        match vhost.stop() {
            Ok(next) => {
                let rings = self.rings.iter_mut().skip(QUEUES * index);
                for (ring, next) in rings.zip(next) {
                    ring.go_to(next);
                }
            }
            Err(error) => {
                log::error!("net: pair {index} is not given back: {}", chain(&error));
                self.lost = true;
            }
        }
    }

    /// Has interrupts tell their cause where no pair is the kernel's any more. One of its last may still be on its way, and
    /// would tell none: another one follows.
    fn settle(&self) {
        if self.pairs.iter().any(|pair| pair.mover == Mover::Kernel) {
            return;
        }
        self.interrupt.used_elsewhere(false);
        if let Err(error) = self.interrupt.used_buffer() {
            log::error!("net: cannot raise an interrupt: {error}");
        }
    }

    fn watch_kicks(&self, index: usize, host: &Host) {
        let kicks = (0..).zip(&self.kicks).zip(&self.rings);
        for ((queue, kick), ring) in kicks.skip(QUEUES * index).take(QUEUES) {
            if ring.ready()
                && let Err(error) = host.poller.add(kick, Token::Queue(queue), EventSet::IN)
            {
                log::error!("net: cannot watch queue {queue}: {error}");
            }
        }
    }
}
