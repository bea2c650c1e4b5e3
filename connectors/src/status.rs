//! What the outside sees of a connector: `/status`, metrics, health.
//!
//! The metrics stand in `names`, those of table reads in `reads`, of what was sent in `tally`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::{Json, Router, routing::get};
use kafka::{Checkpoint, Lsn};
use metrics::{counter, gauge};
use serde::Serialize;
use service::admin::Health;
use service::fault::in_force;

mod concern;
pub(crate) mod names;
mod reads;

use crate::command::Commands;
use crate::encode::envelope::now_us;
use crate::slot::GivenUp;
use crate::snapshot::waits::ReadsWait;
use crate::watch::Motion;
use concern::Concerns;
pub(crate) use concern::{Concern, Reminder, Worry};
use reads::{FailedRequest, TableStatus};

/// A read that has waited for less is not worth a word in `reason`.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// What a connector is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum State {
    /// Source or Kafka is not there yet, or was lost.
    #[serde(rename = "connecting")]
    Connecting,
    /// Another connector of this source leads.
    #[serde(rename = "waiting for lock")]
    WaitingForLock,
    /// Tables are read; until the first time is over, readers take no checkpoint.
    #[serde(rename = "reading")]
    Reading,
    /// The topics follow the source.
    #[serde(rename = "streaming")]
    Streaming,
    /// Nothing has moved for `stall_ms` that should; the reason says what.
    #[serde(rename = "stalled")]
    Stalled,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Connecting,
        Self::WaitingForLock,
        Self::Reading,
        Self::Streaming,
        Self::Stalled,
    ];

    /// As `/status` and the label of the metric have it.
    fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::WaitingForLock => "waiting for lock",
            Self::Reading => "reading",
            Self::Streaming => "streaming",
            Self::Stalled => "stalled",
        }
    }

    /// Why it is not ready in this state, where nothing better is known.
    fn sentence(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::WaitingForLock => "another connector of this source leads",
            Self::Reading => "tables are being read",
            Self::Streaming => "the first table read is not complete",
            Self::Stalled => "nothing moves",
        }
    }
}

/// The answer of `/status`.
#[derive(Debug, Clone, Serialize)]
struct Status {
    source: String,
    state: State,
    /// It does its work, or tries to, and somebody has to act before that ends.
    degraded: bool,
    /// Why it is not streaming, what it waits for, and what somebody has to act on.
    reason: Option<String>,
    epoch: Option<u64>,
    position: Option<Lsn>,
    reach: Option<Lsn>,
    wal_end: Option<Lsn>,
    lag_bytes: Option<u64>,
    committed_at_us: Option<i64>,
    current_at_us: Option<i64>,
    /// Is every table read, and compared where an epoch is new? Before, readers take no checkpoint.
    whole: bool,
    /// Changes that this process has sent to quarantine.
    quarantined: u64,
    slot: Option<SlotStatus>,
    tables: BTreeMap<String, TableStatus>,
    /// Reads by command that were given up lately.
    failed_requests: VecDeque<FailedRequest>,
}

/// What the slot makes the source keep.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SlotStatus {
    pub(crate) wal_bytes: u64,
    /// With more it is given up, or the source ends it.
    pub(crate) wal_bytes_max: Option<u64>,
    /// Why somebody should look.
    pub(crate) alarm: Option<String>,
    /// Why the log cannot be continued from it.
    pub(crate) lost: Option<String>,
}

/// Shared by the life, which writes it, and the admin port, which reads it.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    status: Arc<RwLock<Status>>,
    /// What the life says, over which the watch's stall stands.
    said: Arc<RwLock<Said>>,
    motion: Arc<Motion>,
    commands: Commands,
    health: Health,
}

#[derive(Debug)]
struct Said {
    state: State,
    reason: Option<String>,
    stall: Option<String>,
    concerns: Concerns,
    reads_wait: Option<ReadsWait>,
    /// Why this process dropped the slot, until it has made another.
    given_up: Option<GivenUp>,
    /// Since when this one answers for the topics: its start, or the end of another's lead.
    answers_since_us: i64,
}

impl Said {
    fn new() -> Self {
        Self {
            state: State::Connecting,
            reason: None,
            stall: None,
            concerns: Concerns::default(),
            reads_wait: None,
            given_up: None,
            answers_since_us: now_us(),
        }
    }

    /// State and reason as they are shown.
    fn shown(&self) -> (State, Option<String>) {
        let (state, first) = match &self.stall {
            Some(stall) => (State::Stalled, Some(stall)),
            None => (self.state, self.reason.as_ref()),
        };
        let mut reason: Option<String> = None;
        for part in first.into_iter().chain(self.concerns.sentences()) {
            match &mut reason {
                None => reason = Some(part.clone()),
                Some(reason) => {
                    reason.push_str("; ");
                    reason.push_str(part);
                }
            }
        }
        (state, reason)
    }
}

impl Status {
    /// Nothing is known of the source and its topics.
    fn new(source: String) -> Self {
        Self {
            source,
            state: State::Connecting,
            degraded: false,
            reason: None,
            epoch: None,
            position: None,
            reach: None,
            wal_end: None,
            lag_bytes: None,
            committed_at_us: None,
            current_at_us: None,
            whole: false,
            quarantined: 0,
            slot: None,
            tables: BTreeMap::new(),
            failed_requests: VecDeque::new(),
        }
    }

    /// The source's WAL ends at `wal_end`, and the topics have what there is up to `position`.
    fn reaches(&mut self, wal_end: Lsn, position: Option<Lsn>) {
        self.wal_end = Some(wal_end);
        gauge!(names::WAL_END).set(precise(wal_end.0));
        let lag = position.map(|position| wal_end.0.saturating_sub(position.0));
        if let Some(bytes) = lag {
            gauge!(names::LAG).set(precise(bytes));
        }
        self.lag_bytes = lag;
    }
}

impl StatusBoard {
    /// Describes the metrics, too.
    #[must_use]
    pub fn new(source: &str, health: Health) -> Self {
        describe();
        Self {
            health,
            motion: Arc::default(),
            commands: Commands::default(),
            said: Arc::new(RwLock::new(Said::new())),
            status: Arc::new(RwLock::new(Status::new(source.to_owned()))),
        }
    }

    /// The routes `/status` and `/reads`.
    pub fn router(&self) -> Router {
        let board = self.clone();
        Router::new()
            .route(
                "/status",
                get(move || std::future::ready(Json(board.read().clone()))),
            )
            .merge(Commands::router(self.clone()))
    }

    /// The way of commands to the life.
    pub(crate) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// The state in words.
    pub(crate) fn sentence(&self) -> String {
        let status = self.read();
        let reason = status.reason.clone();
        reason.unwrap_or_else(|| status.state.sentence().to_owned())
    }

    /// A read by command is given up.
    pub(crate) fn request_failed(&self, id: u64, table: &str, reason: String) {
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        reads::fail(&mut status.failed_requests, id, table, reason);
    }

    /// What the life counts and the watch looks at.
    pub(crate) fn motion(&self) -> &Motion {
        &self.motion
    }

    /// The state changed; ready only once a record says so.
    pub(crate) fn set(&self, state: State, reason: Option<String>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        self.turn(&mut said, state, reason);
    }

    /// Another try: until it succeeds, why the last one failed stays said.
    pub(crate) fn connecting(&self) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if said.state == State::Connecting {
            self.show(&said);
        } else {
            self.turn(&mut said, State::Connecting, None);
        }
    }

    fn turn(&self, said: &mut Said, state: State, reason: Option<String>) {
        let stood_by = said.state == State::WaitingForLock;
        (said.state, said.reason) = (state, reason);
        let stands_by = state == State::WaitingForLock;
        if stands_by || state == State::Connecting {
            // Its reads ended with the life, and so did what they waited for.
            said.reads_wait = None;
            said.concerns.forget(Concern::ReadWaits);
        }
        if stands_by && !stood_by && in_force("standby_says_nothing") {
            self.stand_by(said);
        }
        if stood_by && !stands_by {
            said.answers_since_us = now_us();
        }
        self.show(said);
    }

    /// Another one leads: what this one knows of topics and slot is of when it led itself.
    fn stand_by(&self, said: &mut Said) {
        said.concerns.forget(Concern::SlotWal);
        said.concerns.forget(Concern::SlotLost);
        said.given_up = None;
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        reads::stand_by(status.tables.keys());
        let fresh = Status::new(status.source.clone());
        *status = Status {
            quarantined: status.quarantined,
            failed_requests: std::mem::take(&mut status.failed_requests),
            ..fresh
        };
        names::stand_by();
    }

    /// Nothing moves that should, or it moves again.
    pub(crate) fn stalled(&self, sentence: Option<String>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if said.stall != sentence {
            said.stall = sentence;
            self.show(&said);
        }
    }

    /// Something that somebody has to act on lasts, or is over.
    pub(crate) fn concern(&self, concern: Concern, worry: Option<Worry>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if said.concerns.set(concern, worry) {
            self.show(&said);
        }
    }

    /// It is of no meaning any more, without being over.
    pub(crate) fn concern_forgotten(&self, concern: Concern) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        said.concerns.forget(concern);
        self.show(&said);
    }

    fn show(&self, said: &Said) {
        let (state, reason) = said.shown();
        let ready = matches!(state, State::Streaming | State::Reading) && self.read().whole;
        if ready {
            self.health.ready();
        } else {
            let reason = reason.clone();
            self.health
                .not_ready(reason.unwrap_or_else(|| state.sentence().to_owned()));
        }
        let healthy = !matches!(state, State::Connecting | State::Stalled);
        let degraded = said.concerns.is_grave();
        gauge!(names::HEALTHY).set(if healthy { 1.0 } else { 0.0 });
        gauge!(names::DEGRADED).set(if degraded { 1.0 } else { 0.0 });
        for one in State::ALL {
            gauge!(names::STATE, "state" => one.name()).set(if one == state { 1.0 } else { 0.0 });
        }
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        (status.state, status.reason, status.degraded) = (state, reason, degraded);
    }

    /// What the slot keeps was looked at.
    pub(crate) fn slot(&self, slot: SlotStatus) {
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        status.slot = Some(slot);
    }

    /// The slot is dropped by this process, or there is another.
    pub(crate) fn slot_given_up(&self, why: Option<GivenUp>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        said.given_up = why;
    }

    /// Why this process dropped the slot that is gone.
    pub(crate) fn given_up(&self) -> Option<GivenUp> {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        said.given_up
    }

    /// Has a slot been seen, by this life or one before?
    pub(crate) fn knows_a_slot(&self) -> bool {
        self.read().slot.is_some()
    }

    /// The source's pulse: its WAL ends at `wal_end`. Comes while Kafka is away, too, so lag is
    /// told by how far the last record was; before the first one by how far the slot is `confirmed`.
    pub(crate) fn felt(&self, wal_end: Lsn, confirmed: Option<Lsn>) {
        if !in_force("lag_is_felt") {
            return;
        }
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        let from = status.position.or(confirmed);
        status.reaches(wal_end, from);
    }

    /// What a table read waits for; none: reads go on, or there is none.
    pub(crate) fn reads_wait(&self, waits: Option<ReadsWait>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        said.reads_wait = waits;
    }

    /// What grows by itself, each second. What lasts for `stall` is somebody's to end.
    pub(crate) fn tick(&self, stall: Duration) {
        self.tell_age();
        self.tell_waits(stall);
    }

    fn tell_waits(&self, stall: Duration) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        let waits = said.reads_wait.as_ref();
        let lasts = waits.map_or(Duration::ZERO, |waits| waits.since.elapsed());
        gauge!(names::READ_WAITING).set(lasts.as_secs_f64());
        let worry = waits
            .filter(|_| lasts >= NOTICEABLE && in_force("read_waits_said"))
            .map(|waits| Worry {
                sentence: waits.sentence(),
                grave: lasts >= stall,
            });
        if said.concerns.set(Concern::ReadWaits, worry) {
            self.show(&said);
        }
    }

    fn tell_age(&self) {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        if said.state == State::WaitingForLock && in_force("standby_says_nothing") {
            return;
        }
        let since_us = self.read().current_at_us.unwrap_or(said.answers_since_us);
        let age_us = now_us().saturating_sub(since_us).max(0);
        gauge!(names::LAG_MS).set(precise(age_us.unsigned_abs()) / 1e3);
    }

    /// A change went to quarantine.
    pub(crate) fn quarantined(&self, table: &str, reason: &'static str) {
        counter!(names::QUARANTINED, "table" => table.to_owned(), "reason" => reason).increment(1);
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        status.quarantined += 1;
    }

    /// A record was committed.
    pub(crate) fn recorded(&self, record: &Checkpoint) {
        let whole = record.is_whole();
        let reading = reads::is_reading(record);
        reads::measure(record);
        counter!(names::RECORDS, "whole" => if whole { "true" } else { "false" }).increment(1);
        gauge!(names::EPOCH).set(precise(record.epoch));
        gauge!(names::POSITION).set(precise(record.position.0));
        gauge!(names::REACH).set(precise(record.reach.0));
        if let Some(at_us) = record.current_at_us {
            gauge!(names::CURRENT_AT).set(precise(at_us.unsigned_abs()) / 1e6);
        }
        {
            let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
            status.epoch = Some(record.epoch);
            status.position = Some(record.position);
            status.reach = Some(record.reach);
            status.reaches(record.wal_end, Some(record.position));
            status.committed_at_us = record.committed_at_us;
            status.current_at_us = record.current_at_us;
            status.whole = record
                .tables
                .values()
                .all(|table| !table.columns.is_empty());
            gauge!(names::WHOLE).set(if status.whole { 1.0 } else { 0.0 });
            status.tables = record
                .tables
                .iter()
                .map(|(name, table)| (name.clone(), TableStatus::new(table)))
                .collect();
        }
        let state = if reading {
            State::Reading
        } else {
            State::Streaming
        };
        self.motion.readers_wait(reading && !self.read().whole);
        self.set(state, None);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Status> {
        self.status.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gauges are floats: exact below 2^53, which no LSN of practice passes.
#[expect(clippy::cast_precision_loss, reason = "said above")]
pub(crate) fn precise(value: u64) -> f64 {
    value as f64
}

/// Says what each metric is.
pub fn describe() {
    kafka::producer::describe();
    names::describe();
    reads::describe();
    crate::tally::describe();
}
