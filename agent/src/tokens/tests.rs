use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;

struct Stdio {
    tokens: Arc<Tokens>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Stdio {
    fn listen() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdio");
        let listener = UnixListener::bind(&path).unwrap();
        let tokens = Arc::new(Tokens::default());
        let accept = Arc::clone(&tokens).accept(Listener::new(listener.into()).unwrap());
        tokio::spawn(accept);
        Self {
            tokens,
            path,
            _directory: directory,
        }
    }

    fn connect(&self, first: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(first).unwrap();
        stream
    }
}

/// Whether the agent has closed its end.
fn is_closed(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!((&*stream).read(&mut [0]), Ok(0) | Err(_))
        && rustix::net::send(stream, &[], rustix::net::SendFlags::NOSIGNAL).is_err()
}

/// Lets the other tasks do what they can.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_claim_finds_the_connection_that_came_first() {
    let stdio = Stdio::listen();
    let mut host = stdio.connect(&[7; TOKEN_LEN]);
    host.write_all(b"data").unwrap();
    settle().await;
    let socket = stdio.tokens.claim([7; TOKEN_LEN]).await.unwrap();
    let mut data = [0; 4];
    let received = socket.receive(&mut data).await.unwrap();
    assert_eq!(data.get(..received), Some(b"data".as_slice()));
}

#[tokio::test]
async fn a_claim_waits_for_its_connection_even_if_the_token_comes_in_pieces() {
    let stdio = Stdio::listen();
    let tokens = Arc::clone(&stdio.tokens);
    let claim = tokio::spawn(async move { tokens.claim([7; TOKEN_LEN]).await });
    settle().await;
    let _other = stdio.connect(&[8; TOKEN_LEN]);
    let mut host = stdio.connect(&[7; 9]);
    settle().await;
    assert!(!claim.is_finished());
    host.write_all(&[7; 7]).unwrap();
    assert!(claim.await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_claimed_in_time_is_closed() {
    let stdio = Stdio::listen();
    let whole = stdio.connect(&[7; TOKEN_LEN]);
    let partial = stdio.connect(&[7; 3]);
    settle().await;
    assert!(!is_closed(&whole) && !is_closed(&partial));
    tokio::time::sleep(CLAIM_TIMEOUT + Duration::from_millis(1)).await;
    settle().await;
    assert!(is_closed(&whole) && is_closed(&partial));
    assert!(stdio.tokens.claim([7; TOKEN_LEN]).await.is_none());
    let state = stdio.tokens.lock();
    assert_eq!(state.unclaimed, 0);
    assert!(state.connections.is_empty() && state.claims.is_empty());
}

#[tokio::test]
async fn a_second_connection_with_a_waiting_token_is_closed() {
    let stdio = Stdio::listen();
    let first = stdio.connect(&[7; TOKEN_LEN]);
    settle().await;
    let second = stdio.connect(&[7; TOKEN_LEN]);
    settle().await;
    assert!(is_closed(&second) && !is_closed(&first));
}

#[tokio::test]
async fn unclaimed_connections_are_bounded() {
    let stdio = Stdio::listen();
    let mut kept = Vec::new();
    for number in 0..MAX_UNCLAIMED {
        let token = [u8::try_from(number).unwrap(); TOKEN_LEN];
        kept.push(stdio.connect(&token));
        settle().await;
    }
    let surplus = stdio.connect(&[0xff; TOKEN_LEN]);
    settle().await;
    assert!(is_closed(&surplus));
    assert!(kept.iter().all(|stream| !is_closed(stream)));

    assert!(stdio.tokens.claim([0; TOKEN_LEN]).await.is_some());
    settle().await;
    let next = stdio.connect(&[0xff; TOKEN_LEN]);
    settle().await;
    assert!(!is_closed(&next));
}
