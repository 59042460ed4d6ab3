//! Streams that containerd connects to the shim, in place of FIFOs: `io_type = "streaming"` of its
//! CRI plugin.
//!
//! containerd opens a stream under a name first and tells the name when it creates the process; when
//! it was away it opens the same name again. Either side may come first:
//!
//! ```text
//!   containerd ──Stream(StreamInit id)──▶ connection ─┐
//!                                                     ├─ copy until the pipe ends, or the connection
//!   Create, Exec (…?streaming_id=id) ───▶ endpoint ───┘
//! ```
//!
//! An endpoint is a pipe, whose other end the process has. As with a FIFO, what is written while
//! nobody is connected waits in it. Whoever receives says how many bytes may come (`WindowUpdate`).
//! The end of a connection does not reach its streams, so that the next one of a name takes over.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use ttrpc::asynchronous::{
    SSReceiver, SSSender, ServerStream, Service, StreamHandler, StreamInner, TtrpcContext,
};

use super::callers::{Data, StreamInit, WindowUpdate};
use super::failure::Failure;

/// The service's name.
const SERVICE: &str = "containerd.services.streaming.v1.Streaming";
const STREAM_INIT: &str = "containerd.services.streaming.v1.StreamInit";
const DATA: &str = "containerd.types.transfer.Data";
const WINDOW_UPDATE: &str = "containerd.types.transfer.WindowUpdate";
/// The most bytes in one message.
const CHUNK: usize = 32 * 1024;
/// How many bytes of standard input may be on their way.
const WINDOW: i32 = 64 * 1024;
/// How long a stream may wait for its process.
const CLAIM_LIMIT: Duration = Duration::from_secs(120);
/// How many streams may wait.
const WAITING_MAX: usize = 1024;

/// The process' end of a stream is elsewhere; this is the shim's.
#[derive(Debug)]
enum Endpoint {
    /// What the process writes, and what of it could not be sent.
    Output {
        pipe: pipe::Receiver,
        unsent: Vec<u8>,
    },
    /// What the process reads; nothing when all of it has come.
    Input { pipe: Option<pipe::Sender> },
}

/// An endpoint that one connection at a time works on.
#[derive(Debug)]
struct Shared {
    endpoint: tokio::sync::Mutex<Endpoint>,
    /// How many connections there have been: the last one has it.
    turn: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    endpoints: HashMap<String, Arc<Shared>>,
    waiting: usize,
}

/// The streams of all processes, by name. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streaming {
    inner: Arc<Mutex<Inner>>,
    /// Told at each new endpoint.
    added: Arc<Notify>,
}

/// Keeps the name of a stream until it is dropped. Standard input ends with it; output goes on until
/// its pipe ends.
#[derive(Debug)]
pub(crate) struct Named {
    streaming: Streaming,
    id: String,
    is_input: bool,
}

impl Drop for Named {
    fn drop(&mut self) {
        let removed = self.streaming.lock().endpoints.remove(&self.id);
        if let Some(shared) = removed.filter(|_| self.is_input) {
            shared.turn.send_modify(|turn| *turn += 1);
        }
    }
}

impl Streaming {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Maps are whole between any two of their calls.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream for what a process writes: the end for it.
    pub(crate) fn output(&self, id: &str) -> io::Result<(OwnedFd, Named)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let endpoint = Endpoint::Output {
            pipe: pipe::Receiver::from_owned_fd(reader)?,
            unsent: Vec::new(),
        };
        Ok((writer, self.add(id, endpoint)?))
    }

    /// A stream for what a process reads: the end for it.
    pub(crate) fn input(&self, id: &str) -> io::Result<(OwnedFd, Named)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let endpoint = Endpoint::Input {
            pipe: Some(pipe::Sender::from_owned_fd(writer)?),
        };
        Ok((reader, self.add(id, endpoint)?))
    }

    fn add(&self, id: &str, endpoint: Endpoint) -> io::Result<Named> {
        let mut inner = self.lock();
        if inner.endpoints.contains_key(id) {
            return Err(io::Error::other("another process has this stream"));
        }
        let is_input = matches!(endpoint, Endpoint::Input { .. });
        let shared = Shared {
            endpoint: tokio::sync::Mutex::new(endpoint),
            turn: watch::Sender::new(0),
        };
        inner.endpoints.insert(id.to_owned(), Arc::new(shared));
        drop(inner);
        self.added.notify_waiters();
        Ok(Named {
            streaming: self.clone(),
            id: id.to_owned(),
            is_input,
        })
    }

    /// The endpoint of a name, when there is one.
    async fn claim(&self, id: &str) -> Result<Arc<Shared>, Failure> {
        {
            let mut inner = self.lock();
            if inner.waiting >= WAITING_MAX {
                let text = format!("stream {id}: {WAITING_MAX} others wait for their processes");
                return Err(Failure::precondition(text));
            }
            inner.waiting += 1;
        }
        let claim = async {
            loop {
                let added = self.added.notified();
                tokio::pin!(added);
                // From here on nothing is missed.
                added.as_mut().enable();
                let found = self.lock().endpoints.get(id).cloned();
                if let Some(endpoint) = found {
                    return endpoint;
                }
                added.await;
            }
        };
        let claimed = timeout(CLAIM_LIMIT, claim).await;
        self.lock().waiting -= 1;
        claimed.map_err(|_| Failure::not_found(format!("stream {id}: no process has it")))
    }

    /// The service under its name.
    pub(crate) fn services(&self) -> HashMap<String, Service> {
        let handler: Arc<dyn StreamHandler + Send + Sync> = Arc::new(self.clone());
        let service = Service {
            methods: HashMap::new(),
            streams: [("Stream".to_owned(), handler)].into(),
        };
        [(SERVICE.to_owned(), service)].into()
    }
}

#[async_trait]
impl StreamHandler for Streaming {
    async fn handler(
        &self,
        _: TtrpcContext,
        stream: StreamInner,
    ) -> ttrpc::Result<Option<ttrpc::Response>> {
        let mut stream = ServerStream::<Any, Any>::new(stream);
        let mut first = stream.recv().await?;
        // Go's client opens a stream without the flag that there is no message yet: the library makes one up.
        if first.as_ref().is_some_and(|any| *any == Any::default()) {
            first = stream.recv().await?;
        }
        let Some(first) = first else {
            return Ok(None);
        };
        let init: StreamInit = unpack(&first, STREAM_INIT)?;
        // It is there: whatever comes back says so.
        stream.send(&Any::default()).await?;
        let shared = self.claim(&init.id).await?;
        shared.turn.send_modify(|turn| *turn += 1);
        let mut turn = shared.turn.subscribe();
        let (sender, receiver) = stream.split();
        let copy = async {
            match &mut *shared.endpoint.lock().await {
                Endpoint::Output { pipe, unsent } => send(pipe, unsent, &sender, receiver).await,
                Endpoint::Input { pipe } => receive(pipe, &sender, receiver).await,
            }
        };
        tokio::select! {
            result = copy => {
                if let Err(e) = result {
                    log::warn!("stream {}: {e}", init.id);
                }
            }
            _ = turn.changed() => {}
        }
        Ok(None)
    }
}

/// Sends what comes out of a pipe, until that ends or nobody receives it any more.
async fn send(
    pipe: &mut pipe::Receiver,
    unsent: &mut Vec<u8>,
    sender: &SSSender<Any>,
    mut receiver: SSReceiver<Any>,
) -> ttrpc::Result<()> {
    let mut window = 0_usize;
    let mut buffer = vec![0; CHUNK];
    loop {
        if !unsent.is_empty() && window > 0 {
            let count = window.min(unsent.len());
            let data = Data {
                data: unsent.get(..count).unwrap_or_default().to_vec(),
                ..Data::default()
            };
            // Until it is sent it is for whoever connects next.
            sender.send(&pack(&data, DATA)).await?;
            unsent.drain(..count);
            window -= count;
            continue;
        }
        let room = window.min(CHUNK);
        tokio::select! {
            update = receiver.recv() => {
                let Some(update) = update? else {
                    return Ok(());
                };
                let update: WindowUpdate = unpack(&update, WINDOW_UPDATE)?;
                window = window.saturating_add(usize::try_from(update.update).unwrap_or(0));
            }
            read = pipe.read(buffer.get_mut(..room).unwrap_or_default()), if room > 0 => {
                match read {
                    Ok(0) => return Ok(()),
                    Ok(n) => unsent.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                    Err(e) => return Err(ttrpc::Error::Others(e.to_string())),
                }
            }
        }
    }
}

/// Puts what is received into a pipe, and closes that when the sender has no more or the process
/// reads no more.
async fn receive(
    input: &mut Option<pipe::Sender>,
    sender: &SSSender<Any>,
    mut receiver: SSReceiver<Any>,
) -> ttrpc::Result<()> {
    let mut granted = WINDOW;
    while let Some(pipe) = input {
        if granted > 0 {
            let update = WindowUpdate {
                update: granted,
                ..WindowUpdate::default()
            };
            sender.send(&pack(&update, WINDOW_UPDATE)).await?;
        }
        let Some(data) = receiver.recv().await? else {
            *input = None;
            break;
        };
        let data: Data = unpack(&data, DATA)?;
        if pipe.write_all(&data.data).await.is_err() {
            *input = None;
        }
        granted = i32::try_from(data.data.len()).unwrap_or(i32::MAX);
    }
    Ok(())
}

fn pack(message: &impl Message, name: &str) -> Any {
    Any {
        type_url: name.into(),
        // Encoding fails for messages beyond 2 GiB alone.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

fn unpack<M: Message>(any: &Any, name: &str) -> Result<M, Failure> {
    if !any.type_url.ends_with(name) {
        let text = format!("a stream is to carry {name}, not {:?}", any.type_url);
        return Err(Failure::invalid(text));
    }
    M::parse_from_bytes(&any.value).map_err(|e| Failure::invalid(format!("malformed {name}: {e}")))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::path::Path;

    use ttrpc::asynchronous::transport::Listener;
    use ttrpc::asynchronous::{Client, ClientStream, Server};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn serve(streaming: &Streaming, socket: &Path) -> Server {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(streaming.services());
        server.start().await.unwrap();
        server
    }

    /// What containerd does to open a stream.
    async fn open(socket: &Path, id: &str) -> (Client, ClientStream<Any, Any>) {
        let client = Client::connect(&format!("unix://{}", socket.display())).await;
        let client = client.unwrap();
        let request = ttrpc::Request {
            service: SERVICE.into(),
            method: "Stream".into(),
            ..ttrpc::Request::default()
        };
        let stream = client.new_stream(request, true, true).await.unwrap();
        let mut stream = ClientStream::new(stream);
        let init = StreamInit {
            id: id.into(),
            ..StreamInit::default()
        };
        // What the library makes of the opening by Go's client.
        stream.send(&Any::default()).await.unwrap();
        stream.send(&pack(&init, STREAM_INIT)).await.unwrap();
        stream.recv().await.unwrap();
        (client, stream)
    }

    async fn grant(stream: &ClientStream<Any, Any>, bytes: i32) {
        let update = WindowUpdate {
            update: bytes,
            ..WindowUpdate::default()
        };
        stream.send(&pack(&update, WINDOW_UPDATE)).await.unwrap();
    }

    async fn data(stream: &mut ClientStream<Any, Any>) -> Vec<u8> {
        let any = timeout(LIMIT, stream.recv()).await.unwrap().unwrap();
        unpack::<Data>(&any, DATA).unwrap().data
    }

    #[tokio::test]
    async fn output_comes_as_it_is_asked_for_and_survives_a_lost_connection() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let streaming = Streaming::default();
        let _server = serve(&streaming, &socket).await;
        // The stream comes first, as from containerd.
        let (client, mut stream) = open(&socket, "out").await;
        let (writer, named) = streaming.output("out").unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"0123456789").unwrap();
        grant(&stream, 4).await;
        assert_eq!(data(&mut stream).await, b"0123");
        drop((client, stream));
        let (_client, mut stream) = open(&socket, "out").await;
        grant(&stream, 100).await;
        assert_eq!(data(&mut stream).await, b"456789");
        writer.write_all(b"end").unwrap();
        drop(writer);
        assert_eq!(data(&mut stream).await, b"end");
        timeout(LIMIT, stream.recv()).await.unwrap().unwrap_err();
        assert!(streaming.output("out").is_err());
        drop(named);
        streaming.output("out").unwrap();
    }

    #[tokio::test]
    async fn input_arrives_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let streaming = Streaming::default();
        let _server = serve(&streaming, &socket).await;
        let (reader, _named) = streaming.input("in").unwrap();
        let (_client, mut stream) = open(&socket, "in").await;
        let window = timeout(LIMIT, stream.recv()).await.unwrap().unwrap();
        let window: WindowUpdate = unpack(&window, WINDOW_UPDATE).unwrap();
        assert_eq!(window.update, WINDOW);
        let data = Data {
            data: b"hello".to_vec(),
            ..Data::default()
        };
        stream.send(&pack(&data, DATA)).await.unwrap();
        stream.close_send().await.unwrap();
        let read = tokio::task::spawn_blocking(|| {
            let mut text = String::new();
            File::from(reader).read_to_string(&mut text).map(|_| text)
        });
        assert_eq!(
            timeout(LIMIT, read).await.unwrap().unwrap().unwrap(),
            "hello"
        );
    }

    #[tokio::test]
    async fn what_is_no_stream_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let streaming = Streaming::default();
        let _server = serve(&streaming, &socket).await;
        let (_writer, _named) = streaming.output("out").unwrap();
        let (_client, mut stream) = open(&socket, "out").await;
        let wrong = pack(&Data::default(), DATA);
        stream.send(&wrong).await.unwrap();
        // The stream ends, and the shim goes on.
        timeout(LIMIT, stream.recv()).await.unwrap().unwrap_err();
        let (_client, mut stream) = open(&socket, "out").await;
        drop(_writer);
        grant(&stream, 1).await;
        timeout(LIMIT, stream.recv()).await.unwrap().unwrap_err();
    }
}
