//! What the outside sees of a connector: `/status`, metrics, health.
//!
//! | metric | meaning |
//! |---|---|
//! | `connector_events_total` | records sent to tables' topics, tombstones included |
//! | `connector_quarantined_total{table,reason}` | changes that went to quarantine |
//! | `connector_records_total{whole}` | checkpoint records committed; `whole`: readers take it |
//! | `connector_commit_ms` | from a checkpoint record's sending to its commit |
//! | `connector_lives_total` | connections, each with lock, slot, and takeover |
//! | `connector_reads_total{kind}` | reads of the source: `chunk`, `hole`, `reconcile` |
//! | `connector_read_ms{kind}` | how long each took, waiting included |
//! | `connector_epoch` | the epoch, in seconds since 1970 when it began or one more than the last |
//! | `connector_position_bytes`, `connector_reach_bytes`, `connector_wal_end_bytes` | LSNs |
//! | `connector_lag_bytes` | WAL of the source behind the position |
//! | `connector_unconfirmed_bytes` | WAL between what PostgreSQL was told and the last record |
//! | `connector_current_at_seconds` | when the topics were last known to be all that the source had |
//! | `connector_unsettled_transactions` | sent, not yet known to be visible in the source |
//! | `connector_buffered_bytes` | received from the slot, not yet handled |
//! | `connector_unacknowledged_events` | sent to Kafka, not yet acknowledged |
//! | `connector_healthy` | 1: it streams, reads or stands by; 0: it is connecting or stalled |
//! | `connector_state{state}` | 1 for the state it is in, 0 for the others |
//! | `connector_lag_ms` | how old the topics are at most: since when they were last known current |
//! | `connector_stalled_seconds` | for how long nothing has moved that should, once that is long |
//! | `connector_stalls_total` | how often that began |
//! | `connector_slot_wal_bytes` | WAL that the slot makes the source keep |
//! | `connector_slot_wal_max_bytes` | with more the slot is given up, or the source ends it |
//! | `connector_slot_alarm` | 1: that share of it is kept at which the alarm comes |
//! | `connector_slots_given_up_total` | slots dropped because they kept too much |
//! | `connector_retries_total` | lives that ended in an error and are followed by another |
//!
//! Those of table reads stand in `reads`, those of what was sent in `tally`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use axum::{Json, Router, routing::get};
use kafka::{Checkpoint, Lsn};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use serde::Serialize;
use service::admin::Health;

mod reads;

use crate::command::Commands;
use crate::encode::envelope::now_us;
use crate::watch::Motion;
use reads::{FailedRequest, TableStatus};

/// Names of the metrics.
pub(crate) mod names {
    pub(crate) const EVENTS: &str = "connector_events_total";
    pub(crate) const ROWS: &str = "connector_rows_total";
    pub(crate) const BYTES: &str = "connector_bytes_total";
    pub(crate) const UNACKNOWLEDGED: &str = "connector_unacknowledged_events";
    pub(crate) const QUARANTINED: &str = "connector_quarantined_total";
    pub(crate) const RECORDS: &str = "connector_records_total";
    pub(crate) const COMMIT_MS: &str = "connector_commit_ms";
    pub(crate) const LIVES: &str = "connector_lives_total";
    pub(crate) const HANGING: &str = "connector_hanging_partitions_total";
    pub(crate) const READS: &str = "connector_reads_total";
    pub(crate) const READ_MS: &str = "connector_read_ms";
    pub(crate) const READ_ROWS: &str = "connector_read_rows_total";
    pub(crate) const READ_BYTES: &str = "connector_read_bytes_total";
    pub(crate) const READ_ROWS_LEFT: &str = "connector_read_rows_left";
    pub(crate) const REQUESTS: &str = "connector_read_requests";
    pub(crate) const REQUESTS_FAILED: &str = "connector_read_requests_failed_total";
    pub(crate) const EPOCH: &str = "connector_epoch";
    pub(crate) const POSITION: &str = "connector_position_bytes";
    pub(crate) const REACH: &str = "connector_reach_bytes";
    pub(crate) const WAL_END: &str = "connector_wal_end_bytes";
    pub(crate) const LAG: &str = "connector_lag_bytes";
    pub(crate) const UNCONFIRMED: &str = "connector_unconfirmed_bytes";
    pub(crate) const CURRENT_AT: &str = "connector_current_at_seconds";
    pub(crate) const UNSETTLED: &str = "connector_unsettled_transactions";
    pub(crate) const BUFFERED: &str = "connector_buffered_bytes";
    pub(crate) const HEALTHY: &str = "connector_healthy";
    pub(crate) const STATE: &str = "connector_state";
    pub(crate) const LAG_MS: &str = "connector_lag_ms";
    pub(crate) const STALLED: &str = "connector_stalled_seconds";
    pub(crate) const STALLS: &str = "connector_stalls_total";
    pub(crate) const SLOT_WAL: &str = "connector_slot_wal_bytes";
    pub(crate) const SLOT_WAL_MAX: &str = "connector_slot_wal_max_bytes";
    pub(crate) const SLOT_ALARM: &str = "connector_slot_alarm";
    pub(crate) const SLOTS_GIVEN_UP: &str = "connector_slots_given_up_total";
    pub(crate) const RETRIES: &str = "connector_retries_total";
}

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
    /// Why it is not streaming, or what it waits for.
    reason: Option<String>,
    epoch: Option<u64>,
    position: Option<Lsn>,
    reach: Option<Lsn>,
    wal_end: Option<Lsn>,
    lag_bytes: Option<u64>,
    committed_at_us: Option<i64>,
    current_at_us: Option<i64>,
    /// Has every table been read once? Before, readers take no checkpoint.
    whole: bool,
    /// Changes that this process has sent to quarantine.
    quarantined: u64,
    slot: Option<SlotStatus>,
    tables: BTreeMap<String, TableStatus>,
    /// Reads by command that were given up lately.
    failed_requests: VecDeque<FailedRequest>,
}

/// What the slot makes the source keep.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SlotStatus {
    pub(crate) wal_bytes: u64,
    /// With more it is given up, or the source ends it.
    pub(crate) wal_bytes_max: Option<u64>,
    /// Why somebody should look.
    pub(crate) alarm: Option<String>,
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
            said: Arc::new(RwLock::new(Said {
                state: State::Connecting,
                reason: None,
                stall: None,
            })),
            status: Arc::new(RwLock::new(Status {
                source: source.to_owned(),
                state: State::Connecting,
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
            })),
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
        (said.state, said.reason) = (state, reason);
        self.show(&said);
    }

    /// Another try: until it succeeds, why the last one failed stays said.
    pub(crate) fn connecting(&self) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if said.state != State::Connecting {
            (said.state, said.reason) = (State::Connecting, None);
        }
        self.show(&said);
    }

    /// Nothing moves that should, or it moves again.
    pub(crate) fn stalled(&self, sentence: Option<String>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if said.stall != sentence {
            said.stall = sentence;
            self.show(&said);
        }
    }

    fn show(&self, said: &Said) {
        let (state, reason) = match &said.stall {
            Some(stall) => (State::Stalled, Some(stall.clone())),
            None => (said.state, said.reason.clone()),
        };
        let ready = matches!(state, State::Streaming | State::Reading) && self.read().whole;
        if ready {
            self.health.ready();
        } else {
            let reason = reason.clone();
            self.health
                .not_ready(reason.unwrap_or_else(|| state.sentence().to_owned()));
        }
        let healthy = !matches!(state, State::Connecting | State::Stalled);
        gauge!(names::HEALTHY).set(if healthy { 1.0 } else { 0.0 });
        for one in State::ALL {
            gauge!(names::STATE, "state" => one.name()).set(if one == state { 1.0 } else { 0.0 });
        }
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        (status.state, status.reason) = (state, reason);
    }

    /// What the slot keeps was looked at.
    pub(crate) fn slot(&self, slot: SlotStatus) {
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        status.slot = Some(slot);
    }

    /// What grows by itself, each second.
    pub(crate) fn tick(&self) {
        if let Some(at_us) = self.read().current_at_us {
            let age_us = now_us().saturating_sub(at_us).max(0);
            gauge!(names::LAG_MS).set(precise(age_us.unsigned_abs()) / 1e3);
        }
    }

    /// A change went to quarantine.
    pub(crate) fn quarantined(&self, table: &str, reason: &'static str) {
        counter!(names::QUARANTINED, "table" => table.to_owned(), "reason" => reason).increment(1);
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        status.quarantined += 1;
    }

    /// A record was committed.
    pub(crate) fn recorded(&self, record: &Checkpoint, waits_for: Option<String>) {
        let whole = record.is_whole();
        let reading = reads::is_reading(record);
        reads::measure(record);
        let lag = record.wal_end.0.saturating_sub(record.position.0);
        counter!(names::RECORDS, "whole" => if whole { "true" } else { "false" }).increment(1);
        gauge!(names::EPOCH).set(precise(record.epoch));
        gauge!(names::POSITION).set(precise(record.position.0));
        gauge!(names::REACH).set(precise(record.reach.0));
        gauge!(names::WAL_END).set(precise(record.wal_end.0));
        gauge!(names::LAG).set(precise(lag));
        if let Some(at_us) = record.current_at_us {
            gauge!(names::CURRENT_AT).set(precise(at_us.unsigned_abs()) / 1e6);
        }
        {
            let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
            status.epoch = Some(record.epoch);
            status.position = Some(record.position);
            status.reach = Some(record.reach);
            status.wal_end = Some(record.wal_end);
            status.lag_bytes = Some(lag);
            status.committed_at_us = record.committed_at_us;
            status.current_at_us = record.current_at_us;
            status.whole = record
                .tables
                .values()
                .all(|table| !table.columns.is_empty());
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
        self.set(state, waits_for);
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
    reads::describe();
    crate::tally::describe();
    describe_counter!(names::EVENTS, Unit::Count, "records sent to tables' topics");
    describe_counter!(
        names::QUARANTINED,
        Unit::Count,
        "changes that went to quarantine"
    );
    describe_counter!(names::RECORDS, Unit::Count, "checkpoint records committed");
    describe_counter!(names::LIVES, Unit::Count, "takeovers begun");
    describe_counter!(
        names::HANGING,
        Unit::Count,
        "partitions in which Kafka had left a transaction without an end, ended at a takeover"
    );
    describe_counter!(names::READS, Unit::Count, "reads of the source");
    describe_histogram!(names::COMMIT_MS, Unit::Milliseconds, "commit of a record");
    describe_histogram!(names::READ_MS, Unit::Milliseconds, "a read of the source");
    describe_gauge!(names::EPOCH, "the epoch");
    describe_gauge!(names::POSITION, Unit::Bytes, "LSN of the position");
    describe_gauge!(names::REACH, Unit::Bytes, "LSN that the topics reach");
    describe_gauge!(names::WAL_END, Unit::Bytes, "LSN of the source's WAL end");
    describe_gauge!(names::LAG, Unit::Bytes, "WAL behind the position");
    describe_gauge!(
        names::UNCONFIRMED,
        Unit::Bytes,
        "WAL between the position that PostgreSQL was told and that of the last record"
    );
    describe_gauge!(names::CURRENT_AT, Unit::Seconds, "when last known current");
    describe_gauge!(
        names::UNSETTLED,
        Unit::Count,
        "sent, not known to be visible"
    );
    describe_gauge!(names::BUFFERED, Unit::Bytes, "received and not yet handled");
    describe_gauge!(
        names::UNACKNOWLEDGED,
        Unit::Count,
        "sent to Kafka and not yet acknowledged"
    );
    describe_gauge!(names::HEALTHY, "1: streams, reads or stands by");
    describe_gauge!(names::STATE, "1 for the state it is in");
    describe_gauge!(
        names::LAG_MS,
        Unit::Milliseconds,
        "since last known current"
    );
    describe_gauge!(names::STALLED, Unit::Seconds, "nothing moves that should");
    describe_counter!(names::STALLS, Unit::Count, "stalls begun");
    describe_gauge!(names::SLOT_WAL, Unit::Bytes, "WAL kept by the slot");
    describe_gauge!(names::SLOT_WAL_MAX, Unit::Bytes, "WAL it may keep");
    describe_gauge!(names::SLOT_ALARM, "1: too much of it is kept");
    describe_counter!(names::SLOTS_GIVEN_UP, Unit::Count, "slots given up");
    describe_counter!(names::RETRIES, Unit::Count, "lives that ended in an error");
}
