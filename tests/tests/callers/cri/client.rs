//! A client of the container runtime interface: unary gRPC calls, which are HTTP/2 requests with one message each way.
//!
//! Every call makes a connection of its own: it is not this client that has to live through the end of a containerd.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;

/// gRPC's numbers of what a call can end with.
const UNKNOWN: u32 = 2;
const UNAVAILABLE: u32 = 14;

/// How long a call may take: a pod's start is a boot in an emulated machine, and others may boot beside it.
const LIMIT: Duration = Duration::from_secs(400);
/// Before a message: a byte that says whether it is compressed, and four of its length.
const PREFIX: usize = 5;

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}: {}", self.code, self.message)
    }
}

/// Calls a method of the runtime service.
pub(crate) fn call<A: Message>(
    socket: &str,
    method: &str,
    request: &impl Message,
) -> Result<A, Refusal> {
    // A connection that breaks, or was never there, is what gRPC calls unavailable.
    let broken = |error: anyhow::Error| Refusal {
        code: UNAVAILABLE,
        message: format!("{method}: {error:#}"),
    };
    let exchange = async {
        tokio::time::timeout(LIMIT, exchange(socket, method, request))
            .await
            .with_context(|| format!("no answer within {LIMIT:?}"))?
    };
    let answer = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(exchange));
    let body = answer.map_err(broken)??;
    A::parse_from_bytes(&body).map_err(|e| broken(e.into()))
}

/// The message of the answer; the inner error is the caller's.
async fn exchange(
    socket: &str,
    method: &str,
    request: &impl Message,
) -> anyhow::Result<Result<Vec<u8>, Refusal>> {
    let stream = UnixStream::connect(socket).await.context("connect")?;
    let (client, connection) = h2::client::handshake(stream).await?;
    // It ends with the call's runtime.
    tokio::spawn(connection);
    let head = Request::post(format!(
        "http://localhost/runtime.v1.RuntimeService/{method}"
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .body(())?;
    let (response, mut outgoing) = client.ready().await?.send_request(head, false)?;
    let message = request.write_to_bytes()?;
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len())?.to_be_bytes());
    bytes.extend(message);
    outgoing.send_data(Bytes::from(bytes), true)?;
    let response = response.await?;
    // A call that fails at once has its end in the head.
    if let Some(refusal) = refusal(response.headers()) {
        return Ok(Err(refusal));
    }
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let trailers = incoming.trailers().await?.context("no trailers")?;
    if let Some(refusal) = refusal(&trailers) {
        return Ok(Err(refusal));
    }
    ensure!(trailers.contains_key("grpc-status"), "no grpc-status");
    match body.get(..PREFIX) {
        Some([0, ..]) => Ok(Ok(body.split_off(PREFIX))),
        _ => bail!("the answer is no message"),
    }
}

/// What headers say of a call that has failed.
fn refusal(headers: &HeaderMap) -> Option<Refusal> {
    let text = |name| headers.get(name)?.to_str().ok();
    let code = text("grpc-status").filter(|code| *code != "0")?;
    Some(Refusal {
        code: code.parse().unwrap_or(UNKNOWN),
        message: percent_decoded(text("grpc-message").unwrap_or_default()),
    })
}

/// gRPC over HTTP/2: the message of a status is percent-encoded.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| first == b'%');
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
