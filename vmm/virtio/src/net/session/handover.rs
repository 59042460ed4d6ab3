//! Who moves the packets of a pair in use: the kernel, if it can at the moment, or else the session itself.

use vmm_sys_util::epoll::EventSet;

use super::{Host, Session, Token};
use crate::net::vhost::{Part, QUEUES, Vhost, VhostError};
use crate::{chain, warn_guest};

impl Host {
    /// Whether there is a kernel to move a pair's packets now. What comes while the link is down has to be dropped, and while
    /// the virtual machine stands still nothing may move: neither is in the kernel's power.
    fn hands_over(&self, index: usize) -> bool {
        self.flow.link_up && !self.flow.paused && self.vhosts.get(index).is_some()
    }
}

impl Session {
    /// Begins to use a pair.
    pub(super) fn take_up(&mut self, index: usize, host: &mut Host) {
        if self.wants_handover(index, host) {
            match self.hand_over(index, host) {
                Ok(()) => return,
                Err(error) => {
                    warn_guest!(
                        "net: vhost-net does not move pair {index}: {}",
                        chain(&error)
                    );
                    if let Some(pair) = self.pairs.get_mut(index) {
                        pair.refused = true;
                    }
                }
            }
        }
        self.watch_kicks(index, host);
        if let Some(pair) = self.pairs.get_mut(index) {
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
        if !std::mem::take(&mut pair.handed) {
            self.watch(index, host, None);
            for kick in self.kicks.iter().skip(QUEUES * index).take(QUEUES) {
                // One that was never watched is no error.
                let _ = host.poller.remove(kick);
            }
            return;
        }
        match host.vhosts.get(index).map(Vhost::stop) {
            Some(Ok(next)) => {
                let rings = self.rings.iter_mut().skip(QUEUES * index);
                for (ring, next) in rings.zip(next) {
                    ring.go_to(next);
                }
            }
            // The kernel refuses this of what is no vhost-net alone.
            Some(Err(error)) => {
                log::error!("net: pair {index} is not given back: {}", chain(&error));
            }
            None => {}
        }
        if !self.pairs.iter().any(|pair| pair.handed) {
            self.interrupt.used_elsewhere(false);
        }
    }

    /// Follows a change of who can move a pair's packets.
    pub(super) fn reconsider(&mut self, index: usize, host: &mut Host) {
        let handed = self.pairs.get(index).is_some_and(|pair| pair.handed);
        if handed != self.wants_handover(index, host) {
            self.leave(index, host);
            self.take_up(index, host);
            // An interrupt of the kernel's may be on its way that nothing tells the cause of any more.
            self.announce();
        }
    }

    /// Takes every pair back until [`Session::reconsider`], so that the queues' states are exact.
    pub(in super::super) fn pause(&mut self, host: &mut Host) {
        for index in 0..self.in_use {
            if self.pairs.get(index).is_some_and(|pair| pair.handed) {
                self.leave(index, host);
                self.announce();
            }
        }
    }

    /// Tells the kernel of guest memory that has become larger.
    pub(super) fn share_memory(&mut self, host: &mut Host) {
        for index in 0..self.in_use {
            let Some(pair) = self.pairs.get_mut(index).filter(|pair| pair.handed) else {
                continue;
            };
            let Some(vhost) = host.vhosts.get_mut(index) else {
                continue;
            };
            if let Err(error) = vhost.set_memory(&self.memory) {
                log::error!("net: vhost-net gets no more memory: {}", chain(&error));
                pair.refused = true;
                self.reconsider(index, host);
            }
        }
    }

    /// Whether the kernel is to move a pair's packets.
    fn wants_handover(&self, index: usize, host: &Host) -> bool {
        host.hands_over(index) && self.pairs.get(index).is_some_and(|pair| !pair.refused)
    }

    fn hand_over(&mut self, index: usize, host: &mut Host) -> Result<(), VhostError> {
        let at = QUEUES * index;
        let (Some([rx, tx]), Some([rx_kick, tx_kick]), Some(pair), Some(vhost), Some(tap)) = (
            self.rings.get(at..at + QUEUES),
            self.kicks.get(at..at + QUEUES),
            self.pairs.get_mut(index),
            host.vhosts.get_mut(index),
            host.taps.get(index),
        ) else {
            return Ok(());
        };
        let parts = [(rx, rx_kick), (tx, tx_kick)].map(|(ring, kick)| Part {
            queue: ring.state(),
            kick,
        });
        // Before the kernel's first interrupt.
        self.interrupt.used_elsewhere(true);
        let line = self.interrupt.line();
        vhost.start(&self.memory, self.features, parts, tap, line, &host.broken)?;
        pair.handed = true;
        Ok(())
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

    /// Tells the driver that buffers may have been used.
    fn announce(&self) {
        if let Err(error) = self.interrupt.used_buffer() {
            log::error!("net: cannot raise an interrupt: {error}");
        }
    }
}
