//! What containerd is told: over ttrpc, in order, and never at the cost of a task.
//!
//! containerd may be away, for an upgrade or for good. An event is tried a few times and then
//! dropped with a line in the log; those behind it wait.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::Client;

use super::timestamp;

/// The environment variable with containerd's ttrpc socket.
const ADDRESS: &str = "TTRPC_ADDRESS";
/// How many events may wait.
const QUEUE: usize = 2048;
/// How often one is tried.
const TRIES: u32 = 5;
/// How long containerd may take for one.
const LIMIT: Duration = Duration::from_secs(5);

/// Where events are left. Clones are of the same.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    queue: Option<mpsc::Sender<Envelope>>,
    namespace: String,
}

/// Sends what is left there.
pub(crate) struct Publisher {
    queue: mpsc::Receiver<Envelope>,
    address: String,
    client: Option<EventsClient>,
}

impl Events {
    /// Events of a namespace, and who sends them; nobody if containerd has given no address, as
    /// CRI-O does not.
    pub(crate) fn new(namespace: &str) -> (Self, Option<Publisher>) {
        let address = std::env::var(ADDRESS).unwrap_or_default();
        if address.is_empty() {
            let events = Self {
                queue: None,
                namespace: namespace.to_owned(),
            };
            return (events, None);
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let events = Self {
            queue: Some(sender),
            namespace: namespace.to_owned(),
        };
        let publisher = Publisher {
            queue,
            address,
            client: None,
        };
        (events, Some(publisher))
    }

    /// Whether there is anybody who takes them.
    pub(crate) fn are_taken(&self) -> bool {
        self.queue.is_some()
    }

    /// Leaves an event: `name` is its message's, `topic` its place.
    pub(crate) fn publish(&self, topic: &str, name: &str, event: &impl Message) {
        let Some(queue) = &self.queue else {
            return;
        };
        let any = Any {
            type_url: format!("containerd.events.{name}"),
            // Encoding fails for messages beyond 2 GiB alone.
            value: event.write_to_bytes().unwrap_or_default(),
            ..Any::default()
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        if queue.try_send(envelope).is_err() {
            log::warn!("event {topic} is dropped: {QUEUE} others wait for containerd");
        }
    }
}

impl Publisher {
    /// Sends events until everybody who could leave one is gone.
    pub(crate) async fn run(mut self) {
        while let Some(envelope) = self.queue.recv().await {
            let topic = envelope.topic.clone();
            let request = ForwardRequest {
                envelope: MessageField::some(envelope),
                ..ForwardRequest::default()
            };
            for tried in 1..=TRIES {
                match self.forward(&request).await {
                    Ok(()) => break,
                    Err(e) if tried == TRIES => log::error!("event {topic} is dropped: {e}"),
                    Err(e) => {
                        log::warn!("event {topic} is tried again: {e}");
                        self.client = None;
                        sleep(Duration::from_secs(tried.into())).await;
                    }
                }
            }
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> Result<(), ttrpc::Error> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let address = match self.address.contains("://") {
                    true => self.address.clone(),
                    false => format!("unix://{}", self.address),
                };
                let client = EventsClient::new(Client::connect(&address).await?);
                self.client = Some(client.clone());
                client
            }
        };
        match timeout(
            LIMIT,
            client.forward(ttrpc::context::Context::default(), request),
        )
        .await
        {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(ttrpc::Error::Others("containerd does not answer".into())),
        }
    }
}
