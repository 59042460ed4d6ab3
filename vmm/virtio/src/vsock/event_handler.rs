//! The event thread's side of the device.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::device::Vsock;

impl MutEventSubscriber for Vsock {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.event_source() {
            self.serve();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new_raw(self.event_source(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("vsock: cannot watch for events: {error}");
        }
    }
}
