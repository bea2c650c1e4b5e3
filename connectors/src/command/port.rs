//! The way of a command from the admin port to the life.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use service::fault::in_force;
use tokio::sync::{mpsc, oneshot};

use super::{Asked, ReadOrder, Refusal, Reply};
use crate::progress::RequestError;
use crate::status::StatusBoard;

/// Commands that wait for the life.
const WAITING_MAX: usize = 16;
/// How long a command waits for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Whom commands go to: the life that leads, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commands(Arc<RwLock<Option<mpsc::Sender<Asked>>>>);

/// The life's end. Dropped, commands are refused.
#[derive(Debug)]
pub(crate) struct Orders {
    commands: Commands,
    asked: mpsc::Receiver<Asked>,
}

impl Commands {
    /// From now on commands go to whoever holds the result.
    pub(crate) fn lead(&self) -> Orders {
        let (sender, asked) = mpsc::channel(WAITING_MAX);
        self.set(Some(sender));
        Orders {
            commands: self.clone(),
            asked,
        }
    }

    /// The routes `/reads` and `/epochs`.
    pub(crate) fn router(board: StatusBoard) -> Router {
        Router::new()
            .route("/reads", post(reads))
            .route("/epochs", post(epochs))
            .with_state(board)
    }

    fn set(&self, to: Option<mpsc::Sender<Asked>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn leader(&self) -> Option<mpsc::Sender<Asked>> {
        let to = self.0.read().unwrap_or_else(PoisonError::into_inner);
        to.clone()
    }
}

impl Orders {
    /// The next command.
    pub(crate) async fn next(&mut self) -> Option<Asked> {
        self.asked.recv().await
    }

    /// A command that waits, if there is one.
    pub(crate) fn try_next(&mut self) -> Option<Asked> {
        self.asked.try_recv().ok()
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.commands.set(None);
    }
}

/// `POST /reads`: 202 and a [`super::ReadAccepted`], or the sentence why not.
async fn reads(
    State(board): State<StatusBoard>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(order): Json<ReadOrder>,
) -> Response {
    let asked = |reply| Asked::Read { order, reply };
    answer(&board, peer, &headers, asked).await
}

/// `POST /epochs`, without a body: 202 and a [`super::EpochEnds`], or the sentence why not.
async fn epochs(
    State(board): State<StatusBoard>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    answer(&board, peer, &headers, |reply| Asked::Epoch { reply }).await
}

async fn answer<T: Serialize>(
    board: &StatusBoard,
    peer: SocketAddr,
    headers: &HeaderMap,
    asked: impl FnOnce(Reply<T>) -> Asked,
) -> Response {
    let accepted = match local(peer, headers) {
        Ok(()) => ask(board, asked).await,
        Err(refusal) => Err(refusal),
    };
    match accepted {
        Ok(accepted) => (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        Err(refusal) => {
            tracing::warn!(reason = %refusal, "a command is refused: {refusal}");
            let body = serde_json::json!({ "error": refusal.to_string() });
            (refusal.status(), Json(body)).into_response()
        }
    }
}

async fn ask<T>(board: &StatusBoard, asked: impl FnOnce(Reply<T>) -> Asked) -> Result<T, Refusal> {
    let leader = board.commands().leader();
    let leader = leader.ok_or_else(|| Refusal::NotLeading(board.sentence()))?;
    let (reply, answer) = oneshot::channel();
    leader.try_send(asked(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Refusal::Request(RequestError::TooMany),
        mpsc::error::TrySendError::Closed(_) => Refusal::NotLeading(board.sentence()),
    })?;
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Refusal::Lost),
        Err(_) => Err(Refusal::Late(ANSWER_MAX.as_secs())),
    }
}

/// Is it somebody on this machine who asks? The peer must be, and the name by which it was
/// called: a web page can make a browser on this machine call us by a name of its own.
fn local(peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    if !in_force("commands_from_loopback") {
        return Ok(());
    }
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    });
    let is_local_name = name.is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        let address = address.parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
    });
    if !peer.ip().to_canonical().is_loopback() {
        return Err(Refusal::NotLocal(peer.ip().to_string()));
    }
    if !is_local_name {
        return Err(Refusal::NotLocal(format!("host {}", host.unwrap_or("?"))));
    }
    Ok(())
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotLocal(_) => StatusCode::FORBIDDEN,
            Self::NotLeading(_) => StatusCode::CONFLICT,
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Lost | Self::Locked => StatusCode::SERVICE_UNAVAILABLE,
            Self::Request(RequestError::UnknownTable(_)) => StatusCode::NOT_FOUND,
            Self::Request(RequestError::TooMany) => StatusCode::TOO_MANY_REQUESTS,
            Self::Condition(_) | Self::NotOfTheKey | Self::NoRows => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_local(peer: &str, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        local(peer.parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn commands_come_from_this_machine() {
        for (peer, host) in [
            ("127.0.0.1:5000", "127.0.0.1:9100"),
            ("127.0.0.1:5000", "localhost"),
            ("127.0.0.1:5000", "localhost:9100"),
            ("[::1]:5000", "[::1]:9100"),
            ("[::ffff:127.0.0.1]:5000", "127.0.0.1:9100"),
        ] {
            assert!(is_local(peer, host), "{peer} {host}");
        }
        for (peer, host) in [
            ("10.0.0.7:5000", "127.0.0.1:9100"),
            ("[2001:db8::1]:5000", "[::1]:9100"),
            ("127.0.0.1:5000", "evil.example:9100"),
            ("127.0.0.1:5000", "127.0.0.1.evil.example"),
            ("127.0.0.1:5000", "10.0.0.7:9100"),
        ] {
            assert!(!is_local(peer, host), "{peer} {host}");
        }
    }
}
