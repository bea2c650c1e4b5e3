//! What the admin port adds: `GET /status`, and commands to the aggregator that writes.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use service::admin::Health;
use tokio::sync::{mpsc, oneshot};

use crate::view::{Keys, NotAKey};

/// Commands that wait for the applier, at most.
const QUEUE: usize = 8;
/// How long a command waits until the applier takes it: it may be in the middle of a large
/// view transaction.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// How far the aggregator is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// `ready`, or why not.
    pub state: String,
    /// Does it hold the lock? A standby does not, and takes no commands.
    pub writes: bool,
    /// The view transaction made last.
    pub revision: Option<String>,
    /// Keys in quarantine.
    pub quarantined: Option<i64>,
    pub sources: Vec<Source>,
    /// The last computation of unified rows, if one was asked for since this writer took over.
    #[serde(default)]
    pub recompute: Option<Recompute>,
    /// How far the sweep is; none: it is not configured.
    #[serde(default)]
    pub sweep: Option<Sweep>,
}

/// How far the comparison in the background is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// When the round under way began, milliseconds since 1970.
    pub began_at_ms: i64,
    /// The table that is compared; none: it waits for the next round.
    pub table: Option<String>,
    /// Slices and rows compared in this round, rows found different, tables not compared.
    pub slices: u64,
    pub rows: u64,
    pub differences: u64,
    pub not_compared: u64,
    /// The first rows found different, at most a few: table, key, columns.
    #[serde(default)]
    pub found: Vec<String>,
    /// The last whole round.
    pub last: Option<Round>,
}

/// A whole round of the sweep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub began_at_ms: i64,
    pub ended_at_ms: i64,
    pub rows: u64,
    pub differences: u64,
    pub not_compared: u64,
    /// The first rows found different.
    #[serde(default)]
    pub found: Vec<String>,
}

/// The sweep as it said last. Clones share one.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedSweep(Arc<RwLock<Option<Sweep>>>);

impl SharedSweep {
    pub(crate) fn set(&self, sweep: Option<Sweep>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sweep;
    }

    fn get(&self) -> Option<Sweep> {
        let sweep = self.0.read();
        sweep.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How far it is in a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    pub source: String,
    /// Up to where it is served, `epoch:LSN`; none: it is being read for the first time.
    pub position: Option<String>,
    /// Are its topics read now?
    pub follows: bool,
    /// Did its events stop within a checkpoint? It stands aside until they go on.
    #[serde(default)]
    pub is_stalled: bool,
    /// A rebuild that is under way.
    pub rebuild: Option<Rebuild>,
    /// Tables that flooded the quarantine and stand still.
    #[serde(default)]
    pub suspended: Vec<Suspended>,
}

/// A table that stands still.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Suspended {
    /// `schema.table` in the source.
    pub table: String,
    /// Is it being read again?
    pub is_resumed: bool,
}

/// How far a rebuild is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rebuild {
    /// Events read since the process began or went on with it.
    pub events: u64,
    /// Offsets read since it began, of all partitions together, and how many there are up to the
    /// checkpoint that it reads, once that is known. Those of records that are gone count too.
    #[serde(default)]
    pub offsets_read: i64,
    #[serde(default)]
    pub offsets: Option<i64>,
}

/// A computation of unified rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recompute {
    /// Milliseconds since 1970; what names it.
    pub began_at_ms: i64,
    /// Of all rows, or of some that were named?
    pub is_all: bool,
    /// That were not what the mirrors say; none: it goes on.
    pub rows: Option<u64>,
}

/// The status as the applier said it last. Clones share one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<RwLock<Status>>);

impl Shared {
    pub(crate) fn set(&self, status: Status) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = status;
    }

    pub(crate) fn clear(&self) {
        self.set(Status::default());
    }

    fn get(&self) -> Status {
        let status = self.0.read();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A command, and where its answer goes.
#[derive(Debug)]
pub(crate) enum Command {
    /// Rebuild these sources; none named: all.
    Rebuild {
        sources: Vec<String>,
        taken: oneshot::Sender<Result<Vec<String>, Refused>>,
    },
    /// Compute these unified rows from the mirrors; none named: all.
    Recompute {
        keys: Option<Keys>,
        begun: oneshot::Sender<Result<Recompute, Refused>>,
    },
    /// Take a key out of quarantine; whether it was there.
    Discard {
        which: Discard,
        done: oneshot::Sender<bool>,
    },
    /// Read a suspended table again.
    Resume {
        which: Resume,
        done: oneshot::Sender<Result<(), Refused>>,
    },
}

/// A suspended table.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {
    pub(crate) source: String,
    /// `schema.table` in the source.
    pub(crate) table: String,
    /// The offset of a record of the checkpoint topic that covers its re-read; none: that begins.
    pub(crate) covered_by: Option<i64>,
}

/// A key in quarantine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Discard {
    pub(crate) source: String,
    /// `schema.table` in the source.
    pub(crate) table: String,
    pub(crate) key: String,
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{name} is not a source of this aggregator; name one of {known}")]
    UnknownSource { name: String, known: String },
    #[error("{0} is not a parameter of this command; it takes source=NAME")]
    UnknownParameter(String),
    #[error("this aggregator does not write the view: {0}; ask the one that does")]
    Standby(String),
    #[error("the key is not in quarantine")]
    NotInQuarantine,
    #[error("{0} is not suspended, or no longer being read again; see `aggregator status`")]
    NotSuspended(String),
    #[error("{0} is being rebuilt, which ends what is suspended of it if that is mended")]
    IsRebuilt(String),
    #[error(transparent)]
    NotAKey(#[from] NotAKey),
    #[error("the aggregator did not take the command in time; ask again")]
    Busy,
    #[error("commands are taken from this machine only; run the command where the aggregator runs")]
    NotLocal,
}

/// What the applier takes commands from, and says its status to.
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Command>,
    pub(crate) status: Shared,
    pub(crate) sweep: SharedSweep,
}

impl Commands {
    /// The next command; waits for ever where none can come any more.
    pub(crate) async fn next(&mut self) -> Command {
        match self.receiver.recv().await {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }
}

#[derive(Debug, Clone)]
struct Admin {
    commands: mpsc::Sender<Command>,
    status: Shared,
    sweep: SharedSweep,
    health: Health,
}

/// The routes for the admin port, and what they lead to.
pub fn routes(health: &Health) -> (Router, Commands) {
    let (commands, receiver) = mpsc::channel(QUEUE);
    let (status, sweep) = (Shared::default(), SharedSweep::default());
    let admin = Admin {
        commands,
        status: status.clone(),
        sweep: sweep.clone(),
        health: health.clone(),
    };
    let router = Router::new()
        .route("/status", get(show))
        .route("/rebuild", post(rebuild))
        .route("/recompute", post(recompute))
        .route("/recompute/rows", post(recompute_rows))
        .route("/quarantine/discard", post(discard))
        .route("/quarantine/resume", post(resume))
        .route("/verified", post(verified))
        .with_state(admin);
    let commands = Commands {
        receiver,
        status,
        sweep,
    };
    (router, commands)
}

async fn show(State(admin): State<Admin>) -> Json<Status> {
    let state = admin.health.reason();
    Json(Status {
        state: state.unwrap_or_else(|| "ready".to_owned()),
        sweep: admin.sweep.get(),
        ..admin.status.get()
    })
}

/// What a comparison with the sources found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) differences: u64,
    pub(crate) not_compared: u64,
}

/// Shows in the metrics what a comparison found, and when.
async fn verified(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(outcome): Json<Outcome>,
) -> Response {
    if !peer.ip().is_loopback() {
        return Refused::NotLocal.into_response();
    }
    crate::telemetry::verified(outcome.differences, outcome.not_compared);
    StatusCode::NO_CONTENT.into_response()
}

/// `source=NAME`, any number of times; none: all.
type RebuildQuery = Vec<(String, String)>;

async fn rebuild(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(query): Query<RebuildQuery>,
) -> Response {
    #[derive(Serialize)]
    struct Body {
        rebuilds: Vec<String>,
    }
    match admin.rebuild(peer, query).await {
        Ok(rebuilds) => (StatusCode::ACCEPTED, Json(Body { rebuilds })).into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn recompute(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
) -> Response {
    begun(admin.recompute(peer, None).await)
}

async fn recompute_rows(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(keys): Json<Keys>,
) -> Response {
    begun(admin.recompute(peer, Some(keys)).await)
}

fn begun(recompute: Result<Recompute, Refused>) -> Response {
    match recompute {
        Ok(recompute) => (StatusCode::ACCEPTED, Json(recompute)).into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn discard(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(which): Json<Discard>,
) -> Response {
    let (done, answer) = oneshot::channel();
    let command = Command::Discard { which, done };
    match admin.ask(peer, command, answer).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => Refused::NotInQuarantine.into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn resume(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(which): Json<Resume>,
) -> Response {
    let (done, answer) = oneshot::channel();
    let command = Command::Resume { which, done };
    match admin
        .ask(peer, command, answer)
        .await
        .and_then(|taken| taken)
    {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => refused.into_response(),
    }
}

impl Admin {
    async fn rebuild(&self, peer: SocketAddr, query: RebuildQuery) -> Result<Vec<String>, Refused> {
        let mut sources = Vec::new();
        for (name, value) in query {
            if name != "source" {
                return Err(Refused::UnknownParameter(name));
            }
            sources.push(value);
        }
        let (taken, answer) = oneshot::channel();
        let command = Command::Rebuild { sources, taken };
        self.ask(peer, command, answer).await?
    }

    /// Where all are being computed already that is the answer, too: not twice for who asks twice.
    async fn recompute(&self, peer: SocketAddr, keys: Option<Keys>) -> Result<Recompute, Refused> {
        let going_on = self.status.get().recompute;
        let going_on = going_on.filter(|now| now.rows.is_none() && now.is_all && keys.is_none());
        if let Some(going_on) = going_on.filter(|_| peer.ip().is_loopback()) {
            return Ok(going_on);
        }
        let (begun, answer) = oneshot::channel();
        let command = Command::Recompute { keys, begun };
        self.ask(peer, command, answer).await?
    }

    /// Gives a command to the applier, and waits for its answer.
    async fn ask<T>(
        &self,
        peer: SocketAddr,
        command: Command,
        answer: oneshot::Receiver<T>,
    ) -> Result<T, Refused> {
        if !peer.ip().is_loopback() {
            return Err(Refused::NotLocal);
        }
        if !self.status.get().writes {
            let why = self.health.reason().unwrap_or_default();
            return Err(Refused::Standby(why));
        }
        let asked = async {
            let sent = self.commands.send(command).await;
            sent.map_err(|_| Refused::Busy)?;
            answer.await.map_err(|_| Refused::Busy)
        };
        tokio::time::timeout(TAKEN_WITHIN, asked)
            .await
            .unwrap_or(Err(Refused::Busy))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        let status = match self {
            Self::UnknownSource { .. } | Self::UnknownParameter(_) | Self::NotAKey(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Standby(_) | Self::IsRebuilt(_) => StatusCode::CONFLICT,
            Self::NotInQuarantine | Self::NotSuspended(_) => StatusCode::NOT_FOUND,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotLocal => StatusCode::FORBIDDEN,
        };
        let error = self.to_string();
        (status, Json(Body { error })).into_response()
    }
}
