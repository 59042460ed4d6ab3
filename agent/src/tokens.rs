//! Matches the connections to the stdio port with the calls that name them.
//!
//! A connection begins with a token; a call claims the connection with that token. Either may come
//! first. A connection that nobody claims, or that never says its token, is closed after
//! [`CLAIM_TIMEOUT`], and no more than [`MAX_UNCLAIMED`] of them are kept.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloister_protocol::TOKEN_LEN;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::socket::{Listener, Socket};

/// How long a connection waits for its claim, and a claim for its connection.
///
/// The two come over different connections, and where many machines start at once the later one may take its time.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(60);

/// The most connections that are kept without having been claimed.
const MAX_UNCLAIMED: usize = 64;

/// What names a connection.
pub(crate) type Token = [u8; TOKEN_LEN];

/// The connections that wait for a claim and the claims that wait for a connection.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many connections are accepted and not claimed, whether or not their token has come.
    unclaimed: usize,
    /// Connections that wait for a claim.
    connections: HashMap<Token, Unclaimed>,
    /// Claims that wait for a connection.
    claims: HashMap<Token, oneshot::Sender<Socket>>,
}

#[derive(Debug)]
struct Unclaimed {
    socket: Socket,
    /// Dropped with this value, which ends the task that watches the time.
    _claimed: oneshot::Sender<()>,
}

impl Tokens {
    /// Accepts connections for ever.
    pub(crate) async fn accept(self: Arc<Self>, listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(socket) => match Place::take(&self) {
                    Some(place) => drop(tokio::spawn(place.serve(socket))),
                    None => log::warn!("standard stream refused: {MAX_UNCLAIMED} wait for a claim"),
                },
                Err(e) => log::error!("cannot accept a standard stream: {e}"),
            }
        }
    }

    /// Waits for the connection with this token; `None` if it does not come in time.
    pub(crate) async fn claim(&self, token: Token) -> Option<Socket> {
        let receiver = {
            let mut state = self.lock();
            if let Some(unclaimed) = state.connections.remove(&token) {
                return Some(unclaimed.socket);
            }
            let (sender, receiver) = oneshot::channel();
            state.claims.insert(token, sender);
            receiver
        };
        let socket = timeout_at(deadline(), receiver).await;
        if socket.is_err() {
            self.lock().claims.remove(&token);
        }
        socket.ok()?.ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to be one of the unclaimed connections.
struct Place(Arc<Tokens>);

impl Place {
    fn take(tokens: &Arc<Tokens>) -> Option<Self> {
        let mut state = tokens.lock();
        if state.unclaimed >= MAX_UNCLAIMED {
            return None;
        }
        state.unclaimed += 1;
        drop(state);
        Some(Self(Arc::clone(tokens)))
    }

    /// Reads the token and keeps the connection until it is claimed or its time is up.
    async fn serve(self, socket: Socket) {
        let deadline = deadline();
        let token = match timeout_at(deadline, read_token(&socket)).await {
            Ok(Ok(token)) => token,
            Ok(Err(e)) => return log::warn!("standard stream closed: cannot read its token: {e}"),
            Err(_) => return log::warn!("standard stream closed: its token did not come in time"),
        };
        let claimed = {
            let mut state = self.0.lock();
            if let Some(claim) = state.claims.remove(&token) {
                if claim.send(socket).is_err() {
                    log::warn!("standard stream closed: its claim was given up");
                }
                return;
            }
            let (sender, receiver) = oneshot::channel();
            match state.connections.entry(token) {
                Entry::Occupied(_) => {
                    return log::warn!("standard stream closed: its token is taken");
                }
                Entry::Vacant(entry) => entry.insert(Unclaimed {
                    socket,
                    _claimed: sender,
                }),
            };
            receiver
        };
        if timeout_at(deadline, claimed).await.is_err() {
            self.0.lock().connections.remove(&token);
            log::warn!("standard stream closed: nobody claimed it in time");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().unclaimed -= 1;
    }
}

fn deadline() -> Instant {
    Instant::now() + CLAIM_TIMEOUT
}

async fn read_token(socket: &Socket) -> io::Result<Token> {
    let mut token = Token::default();
    let mut filled = 0;
    while let Some(rest) = token.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match socket.receive(rest).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => filled += received,
        }
    }
    Ok(token)
}

#[cfg(test)]
mod tests;
