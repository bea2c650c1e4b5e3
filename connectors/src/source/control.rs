//! The control session: holds the advisory lock, and feels the source's pulse every second.
//!
//! The lock is the session's, and the session must prove that its process runs: the server
//! ends it when it has been idle for `lock_timeout_ms` (`idle_session_timeout`), so a leader
//! that is stopped or cut off loses the lock by the server's hand. What then stops a zombie
//! from writing is Kafka's fence; the lock keeps a standby from fencing a healthy leader.

use std::sync::Arc;
use std::time::Duration;

use kafka::Lsn;
use links::Endpoint;
use service::fault::in_force;
use tokio::sync::watch;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::session::{self, Session, SourceError, literal};
use super::snapshot::{Snapshot, Unsettled};
use crate::config::PostgresConfig;
use crate::encode::envelope::now_us;
use crate::epoch::Slot;

/// Between two tries for the lock.
const LOCK_RETRY: Duration = Duration::from_millis(250);

/// A slot that is given up is free once the server has ended its stream.
const DROP_TRIES: u32 = 100;
const DROP_RETRY: Duration = Duration::from_millis(100);

/// Can the slot `s` still be streamed from? `invalidation_reason` exists from version 17 on,
/// `conflicting` in 16.
const VALID: &str = "(coalesce(s.wal_status <> 'lost', true) \
                      AND to_jsonb(s) ->> 'invalidation_reason' IS NULL \
                      AND NOT coalesce((to_jsonb(s) ->> 'conflicting')::boolean, false))";

/// The source as a whole, a moment ago.
#[derive(Debug, Clone, Default)]
pub struct Pulse {
    /// Just before the rest was asked, microseconds since 1970.
    pub at_us: i64,
    pub snapshot: Snapshot,
    /// How far the WAL was flushed.
    pub flushed: Lsn,
    pub slot: SlotNow,
    /// How far our slot is confirmed, if there is one.
    pub confirmed: Option<Lsn>,
}

/// Our slot, a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SlotNow {
    /// There is none, or it is just being made.
    #[default]
    Absent,
    /// The source has invalidated it, for the reason that it names.
    Lost(String),
    Keeps(SlotWal),
}

/// WAL that a slot makes the source keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotWal {
    pub bytes: u64,
    /// `max_slot_wal_keep_size`; none: unlimited.
    pub source_bytes_max: Option<u64>,
}

/// The session; dropping it gives the lock back.
#[derive(Debug)]
pub struct Control {
    session: Arc<Session>,
    /// When the server that the session is with was started.
    started: String,
    pulse: watch::Receiver<Pulse>,
    lost: CancellationToken,
    _pinger: AbortOnDropHandle<()>,
}

/// What the server says of our slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    /// Who streams from it now.
    pub active_pid: Option<i32>,
    /// Can it still be streamed from?
    pub valid: bool,
    pub confirmed_flush: Lsn,
}

impl SlotRow {
    /// What the epoch is decided by.
    #[must_use]
    pub fn usable(&self) -> Option<Slot> {
        self.valid.then_some(Slot {
            confirmed_flush: self.confirmed_flush,
        })
    }
}

impl Control {
    /// Connects and waits for the lock of `slot`; `waiting` is called with the number of tries
    /// each time that somebody has it.
    ///
    /// # Errors
    /// Where the source cannot be reached, or the session is lost while it waits.
    pub async fn take_lock(
        endpoint: &Endpoint,
        postgres: &PostgresConfig,
        mut waiting: impl FnMut(u64),
    ) -> Result<Self, SourceError> {
        let timeout = Duration::from_millis(postgres.lock_timeout_ms);
        let settings = [("idle_session_timeout", format!("{}ms", timeout.as_millis()))];
        // An answer that takes longer comes to a session that has lost its lock.
        let session = Session::connect(endpoint, &settings).await?;
        let session = Arc::new(session.answering_within(timeout));
        if in_force("advisory_lock") {
            let sql = format!(
                "SELECT pg_try_advisory_lock(hashtextextended({}, 0))",
                literal(&format!("tributary slot {}", postgres.slot))
            );
            let mut tries = 0;
            while !is_true(&session.row("take the advisory lock", &sql).await?) {
                tries += 1;
                waiting(tries);
                tokio::time::sleep(LOCK_RETRY).await;
            }
        }
        let started = session.server_started().await?;
        let first = feel(&session, &postgres.slot).await?;
        let (sender, pulse) = watch::channel(first);
        let lost = CancellationToken::new();
        let slot = postgres.slot.clone();
        let pinger = ping(Arc::clone(&session), slot, timeout, sender, lost.clone());
        Ok(Self {
            session,
            started,
            pulse,
            lost,
            _pinger: AbortOnDropHandle::new(tokio::spawn(pinger)),
        })
    }

    /// Cancelled once the session is lost, and the lock with it.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// What is needed to give the slot up once the life is over.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold(Arc::clone(&self.session))
    }

    /// Fails where another session's server was `started` at another time, so is another.
    ///
    /// # Errors
    /// In that case.
    pub fn is_same_server(&self, started: &str) -> Result<(), SourceError> {
        if self.started == started {
            Ok(())
        } else {
            Err(SourceError::OtherServer)
        }
    }

    /// Ends the stream of a predecessor, who has lost the lock; a stranger's is left alone.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn end_stream(&self, slot: &str) -> Result<(), SourceError> {
        end_stream(&self.session, slot).await
    }

    /// The last pulse, changed about once a second.
    #[must_use]
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.clone()
    }

    /// Every transaction that runs now.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn running(&self) -> Result<Unsettled, SourceError> {
        let doing = "ask which transactions run";
        // `age` counts from an id to the next one to be given; 3 is the first normal id.
        let sql = "SELECT pg_current_snapshot(), age('3'::xid)";
        let row = self.session.row(doing, sql).await?;
        let snapshot: Snapshot = session::get(doing, &row, 0)?;
        let age: i32 = session::get(doing, &row, 1)?;
        let next_xid = snapshot.widen(3_u32.wrapping_add_signed(age));
        Ok(Unsettled::predecessors(&snapshot, next_xid))
    }

    /// How far the WAL is flushed now.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn flushed(&self) -> Result<Lsn, SourceError> {
        let doing = "ask how far the WAL is flushed";
        let row = self
            .session
            .row(doing, "SELECT pg_current_wal_flush_lsn()")
            .await?;
        session::get(doing, &row, 0)
    }

    /// Where the next WAL record goes now.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn inserted(&self) -> Result<Lsn, SourceError> {
        let doing = "ask how far the WAL is written";
        let sql = "SELECT pg_current_wal_insert_lsn()";
        let row = self.session.row(doing, sql).await?;
        session::get(doing, &row, 0)
    }

    /// The slot as it is now; none: there is no such slot.
    ///
    /// # Errors
    /// Where the session is lost.
    pub async fn slot(&self, slot: &str) -> Result<Option<SlotRow>, SourceError> {
        let doing = "look at the replication slot";
        let sql = format!(
            "SELECT s.active_pid, s.confirmed_flush_lsn, {VALID} \
             FROM pg_replication_slots s WHERE s.slot_name = {}",
            literal(slot)
        );
        let Some(row) = self.session.rows(doing, &sql).await?.into_iter().next() else {
            return Ok(None);
        };
        let confirmed_flush: Option<Lsn> = session::get(doing, &row, 1).ok();
        Ok(Some(SlotRow {
            active_pid: session::get(doing, &row, 0).ok(),
            valid: confirmed_flush.is_some() && session::text(&row, 2) == Some("t"),
            confirmed_flush: confirmed_flush.unwrap_or_default(),
        }))
    }
}

/// The session of a lock, beyond the life that took it.
#[derive(Debug)]
pub struct Hold(Arc<Session>);

impl Hold {
    /// Drops the slot, ending our own stream from it.
    ///
    /// # Errors
    /// Where the session is lost, or somebody else goes on streaming from it.
    pub async fn drop_slot(&self, slot: &str) -> Result<(), SourceError> {
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {}",
            literal(slot)
        );
        let mut tries = 0;
        loop {
            end_stream(&self.0, slot).await?;
            match self.0.rows("give the replication slot up", &sql).await {
                Ok(_) => return Ok(()),
                Err(error)
                    if error.sql_state() == Some(&SqlState::OBJECT_IN_USE)
                        && tries < DROP_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(DROP_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn end_stream(session: &Session, slot: &str) -> Result<(), SourceError> {
    // Of our own role no privilege is needed; a stranger has another role or another name.
    let sql = format!(
        "SELECT pg_terminate_backend(a.pid) FROM pg_replication_slots s \
         JOIN pg_stat_activity a ON a.pid = s.active_pid \
         WHERE s.slot_name = {0} AND a.usename = current_user AND a.application_name = {0}",
        literal(slot)
    );
    session.execute("end a predecessor's stream", &sql).await
}

async fn feel(session: &Session, slot: &str) -> Result<Pulse, SourceError> {
    let doing = "feel the source's pulse";
    let at_us = now_us();
    let sql = format!(
        "SELECT pg_current_snapshot(), pg_current_wal_flush_lsn(), s.restart_lsn, \
             pg_size_bytes(current_setting('max_slot_wal_keep_size')), s.confirmed_flush_lsn, \
             CASE WHEN NOT {VALID} \
                 THEN coalesce(to_jsonb(s) ->> 'invalidation_reason', s.wal_status, '?') END \
         FROM (SELECT) one LEFT JOIN pg_replication_slots s ON s.slot_name = {}",
        literal(slot)
    );
    let row = session.row(doing, &sql).await?;
    let flushed: Lsn = session::get(doing, &row, 1)?;
    let restart: Option<Lsn> = session::get(doing, &row, 2).ok();
    let slot = match (session::text(&row, 5), restart) {
        (Some(why), _) => SlotNow::Lost(why.to_owned()),
        (None, None) => SlotNow::Absent,
        (None, Some(restart)) => SlotNow::Keeps(SlotWal {
            bytes: flushed.0.saturating_sub(restart.0),
            // -1: unlimited.
            source_bytes_max: session::get::<u64>(doing, &row, 3).ok(),
        }),
    };
    Ok(Pulse {
        at_us,
        snapshot: session::get(doing, &row, 0)?,
        flushed,
        slot,
        confirmed: session::get(doing, &row, 4).ok(),
    })
}

async fn ping(
    session: Arc<Session>,
    slot: String,
    timeout: Duration,
    pulse: watch::Sender<Pulse>,
    lost: CancellationToken,
) {
    let _lost = lost.drop_guard();
    loop {
        tokio::time::sleep(timeout / 5).await;
        match feel(&session, &slot).await {
            Ok(felt) => _ = pulse.send_replace(felt),
            Err(error) => return tracing::warn!(%error, "the control session is lost: {error}"),
        }
    }
}

fn is_true(row: &tokio_postgres::SimpleQueryRow) -> bool {
    session::text(row, 0) == Some("t")
}
