//! A socket in the guest that plays by the rules and keeps the device to them.

use super::guest::{Guest, Packet, header};
use crate::vsock::packet::{Header, op};

#[derive(Debug)]
pub(super) struct GuestSocket {
    pub(super) ports: (u32, u32),
    buf_alloc: u32,
    /// Received and passed on to a process, which reads at once.
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    tx_cnt: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    pub(super) received: Vec<u8>,
    /// The flags of the last SHUTDOWN.
    pub(super) ended: u32,
}

impl GuestSocket {
    /// The socket of a stream that has just been established, by a packet of the device's with
    /// this buffer space.
    pub(super) fn new(ports: (u32, u32), buf_alloc: u32, peer_buf_alloc: u32) -> Self {
        Self {
            ports,
            buf_alloc,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc,
            peer_fwd_cnt: 0,
            received: Vec::new(),
            ended: 0,
        }
    }

    fn header(&mut self, op: u16) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        Header {
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..header(self.ports, op)
        }
    }

    pub(super) fn control(&mut self, guest: &mut Guest, op: u16, flags: u32) {
        let header = Header {
            flags,
            ..self.header(op)
        };
        assert!(guest.send(header, &[]));
    }

    /// Takes a packet of the device and answers it where it has to be.
    pub(super) fn receive(&mut self, guest: &mut Guest, packet: &Packet) {
        let header = packet.header;
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        assert!(self.tx_cnt.wrapping_sub(header.fwd_cnt) <= header.buf_alloc);
        match header.op {
            op::RW => {
                self.received.extend(&packet.payload);
                self.fwd_cnt = self.fwd_cnt.wrapping_add(header.len);
                let unseen = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
                assert!(unseen <= self.buf_alloc, "the device exceeds its credit");
                if unseen > self.buf_alloc / 2 {
                    self.control(guest, op::CREDIT_UPDATE, 0);
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.control(guest, op::CREDIT_UPDATE, 0),
            op::SHUTDOWN => self.ended = header.flags,
            _ => panic!("{packet:?}"),
        }
    }

    /// Sends as much of `bytes` as there is credit and space for, and returns how much.
    pub(super) fn send(&mut self, guest: &mut Guest, bytes: &[u8], cuts: &[u32]) -> usize {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        let free = self.peer_buf_alloc - in_flight;
        let len = bytes.len().min(free as usize).min(60 * 1024);
        let mut header = self.header(op::RW);
        header.len = u32::try_from(len).unwrap();
        if len == 0 || !guest.send_cut(header, &bytes[..len], cuts) {
            return 0;
        }
        self.tx_cnt = self.tx_cnt.wrapping_add(header.len);
        len
    }
}
