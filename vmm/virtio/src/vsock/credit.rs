//! Flow control: virtio-v1.3 §5.10.6.3.
//!
//! Each side tells the other how many bytes it can hold (`buf_alloc`) and how many it has passed on
//! since the connection began (`fwd_cnt`). A sender that has sent `tx_cnt` bytes may thus send
//! another `buf_alloc - (tx_cnt - fwd_cnt)`. The counters are free-running and wrap.

use super::packet::Header;

/// Both directions of a connection's flow control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credit {
    /// Bytes the device holds for the host at most.
    buf_alloc: u32,
    /// Bytes received from the guest.
    rx_cnt: u32,
    /// Bytes of these that the host has taken.
    fwd_cnt: u32,
    /// The `fwd_cnt` that the guest was told last.
    told_fwd_cnt: u32,
    /// Bytes sent to the guest.
    tx_cnt: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
}

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

impl Credit {
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// Takes what a packet says of the guest's buffer.
    pub(super) fn learn(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
    }

    /// Puts the device's side into a packet for the guest.
    pub(super) fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = self.buf_alloc;
        header.fwd_cnt = self.fwd_cnt;
        self.told_fwd_cnt = self.fwd_cnt;
    }

    /// How many bytes the guest may be sent. Nothing, if its counters make no sense: a guest that
    /// claims to have consumed what was never sent, or takes back space that is in use, only stops
    /// its own stream.
    pub(super) fn peer_free(&self) -> u32 {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// Counts bytes sent to the guest.
    pub(super) fn sent(&mut self, len: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
    }

    /// Counts bytes received from the guest.
    pub(super) fn received(&mut self, len: u32) -> Result<(), Overrun> {
        let held = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        if len > self.buf_alloc.saturating_sub(held) {
            return Err(Overrun);
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        Ok(())
    }

    /// Counts bytes that the host has taken.
    pub(super) fn forwarded(&mut self, len: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(len);
    }

    /// Whether the guest should be told that there is space again: what it believes to be free is
    /// down to a quarter, and the news is worth a packet. Once everything is forwarded the second
    /// follows from the first, so a guest is never left without credit.
    pub(super) fn update_due(&self) -> bool {
        let quarter = self.buf_alloc / 4;
        let believed_held = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        let news = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        self.buf_alloc.saturating_sub(believed_held) <= quarter && news >= quarter.max(1)
    }

    /// The most bytes the device holds.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn a_lying_guest_gets_nothing() {
        let mut credit = Credit::new(100);
        credit.learn(&peer(64, 0));
        assert_eq!(credit.peer_free(), 64);
        credit.sent(64);
        assert_eq!(credit.peer_free(), 0);
        // Space in use is taken back.
        credit.learn(&peer(10, 0));
        assert_eq!(credit.peer_free(), 0);
        // More is acknowledged than was sent.
        credit.learn(&peer(64, 65));
        assert_eq!(credit.peer_free(), 0);
        credit.learn(&peer(64, 64));
        assert_eq!(credit.peer_free(), 64);
    }

    #[test]
    fn an_overrun_is_seen_and_not_counted() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.received(101), Err(Overrun));
        assert_eq!(credit.received(u32::MAX), Err(Overrun));
        assert_eq!(credit.received(60), Ok(()));
        assert_eq!(credit.received(41), Err(Overrun));
        assert_eq!(credit.received(40), Ok(()));
        credit.forwarded(1);
        assert_eq!(credit.received(2), Err(Overrun));
        assert_eq!(credit.received(1), Ok(()));
    }

    /// Two ends that play by the rules, `peer_*` being those of the guest.
    struct Pair {
        device: Credit,
        guest: Credit,
    }

    impl Pair {
        /// Ends whose counters are `start` bytes into the stream.
        fn new(start: u32, device: u32, guest: u32) -> Self {
            let at = |buf_alloc| Credit {
                rx_cnt: start,
                fwd_cnt: start,
                told_fwd_cnt: start,
                tx_cnt: start,
                peer_fwd_cnt: start,
                ..Credit::new(buf_alloc)
            };
            let mut pair = Self {
                device: at(device),
                guest: at(guest),
            };
            pair.tell_guest();
            pair
        }

        fn tell_guest(&mut self) {
            let mut header = Header::default();
            self.device.tell(&mut header);
            self.guest.learn(&header);
        }
    }

    proptest! {
        #[test]
        fn credit_is_exact_across_the_wrap(
            start in prop_oneof![Just(0), (u32::MAX - 5000)..=u32::MAX, any::<u32>()],
            buf_alloc in 1u32..4096,
            steps in prop::collection::vec((0u32..2048, 0u32..2048), 1..64),
        ) {
            let mut pair = Pair::new(start, buf_alloc, 0);
            let mut held = 0u32;
            for (send, take) in steps {
                let free = pair.guest.peer_free();
                prop_assert_eq!(pair.device.clone().received(free), Ok(()));
                let send = send.min(free);
                pair.guest.sent(send);
                prop_assert_eq!(pair.device.received(send), Ok(()));
                held += send;
                prop_assert!(held <= buf_alloc);
                prop_assert_eq!(
                    pair.device.clone().received(buf_alloc - held + 1),
                    Err(Overrun)
                );
                let take = take.min(held);
                pair.device.forwarded(take);
                held -= take;
                if pair.device.update_due() {
                    pair.tell_guest();
                    prop_assert_eq!(pair.guest.peer_free(), buf_alloc - held);
                }
                // A guest whose bytes have all been taken can go on.
                if held == 0 {
                    prop_assert!(pair.guest.peer_free() > 0);
                }
            }
        }

        #[test]
        fn nothing_overflows(
            buf_alloc in any::<u32>(),
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..64),
        ) {
            let mut credit = Credit::new(buf_alloc);
            for (a, b, c) in steps {
                credit.learn(&peer(a, b));
                prop_assert!(credit.peer_free() <= a);
                credit.sent(c.min(credit.peer_free()));
                let _ = credit.received(c);
                credit.forwarded(b);
                let _ = credit.update_due();
            }
        }
    }
}
