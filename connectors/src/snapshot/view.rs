//! A snapshot of the source that shows everything sent so far.

use std::time::{Duration, Instant};

use kafka::{KafkaConfig, Lsn};
use service::fault::{self, in_force};

use super::waits::Since;
use crate::encode::envelope::now_us;
use crate::error::LifeError;
use crate::life::Life;
use crate::source::{Session, Snapshot, SourceError, session};

/// Between two tries for a snapshot that shows what must be shown: mostly a commit that becomes
/// visible at once ...
const SETTLE_RETRY: Duration = Duration::from_millis(2);
/// ... but a transaction that stays open is not asked about hundreds of times a second.
const SETTLE_RETRY_MAX: Duration = Duration::from_millis(250);
/// A kept view whose read is not flushed by then is ended, which has what it wrote flushed.
const VIEW_KEPT_UNFLUSHED: Duration = Duration::from_millis(200);
/// A read waits so long for the WAL before it begins; with commits it is flushed in no time.
const FLUSHED_SOON: Duration = Duration::from_millis(50);
/// Between two looks at how far the WAL is flushed.
const FLUSH_RETRY: Duration = Duration::from_millis(1);

/// An open REPEATABLE READ transaction.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) snapshot: Snapshot,
    pub(crate) opened: Instant,
    pub(crate) opened_us: i64,
    /// End of the WAL about when it was opened: where its rows are from, at least.
    pub(crate) lsn_before: Lsn,
}

/// Waiting for a snapshot that shows every transaction sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settling {
    since: Option<Since>,
}

impl Settling {
    pub(super) fn since(&self) -> Option<Since> {
        self.since
    }

    /// Until the next try: a tenth of how long it has taken so far, within bounds.
    pub(crate) fn pause(&self) -> Duration {
        self.since.map_or(SETTLE_RETRY, |since| {
            (since.elapsed() / 10).clamp(SETTLE_RETRY, SETTLE_RETRY_MAX)
        })
    }
}

impl View {
    pub(crate) async fn open(session: &Session) -> Result<Self, SourceError> {
        let doing = "open a read view";
        let opened_us = now_us();
        let row = session
            .row(
                doing,
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                 SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()",
            )
            .await?;
        Ok(Self {
            snapshot: session::get(doing, &row, 0)?,
            lsn_before: session::get(doing, &row, 1)?,
            opened: Instant::now(),
            opened_us,
        })
    }

    /// Ends the transaction. By COMMIT: reading may write WAL (pruned pages, hint bits), and a
    /// ROLLBACK leaves its last page unflushed for up to 15 s, which [`Life::count_read`] waits for.
    pub(crate) async fn close(session: &Session) -> Result<(), SourceError> {
        session.execute("end a read view", "COMMIT").await
    }

    /// Did the table get a new file since the snapshot? TRUNCATE and rewriting ALTER TABLEs are
    /// not MVCC-safe: an older snapshot finds such a table empty. `pg_class` is read as of the
    /// snapshot, the function answers as of now; the caller holds a lock on the table by having
    /// read it, so neither changes any more.
    pub(crate) fn moved_sql(table: u32) -> String {
        format!(
            "SELECT relfilenode IS DISTINCT FROM pg_relation_filenode(oid) \
             FROM pg_class WHERE oid = {table}"
        )
    }
}

/// How long an open Kafka transaction may wait for a read to be flushed: half of what Kafka
/// allows it, so that the rest is left for its record.
fn unflushed_max(kafka: &KafkaConfig) -> Duration {
    Duration::from_millis(u64::from(kafka.transaction_timeout_ms)) / 2
}

impl Life<'_> {
    /// A view that shows every transaction sent so far, and each that ran when the slot was
    /// taken; none yet: step back and come again.
    pub(crate) async fn try_view(&mut self, session: &Session) -> Result<Option<View>, LifeError> {
        // Only where a test has switched the rule off is an LSN of before the read of use.
        let too_early = if in_force("lsn_after_read") {
            None
        } else {
            let lsn = self.control.inserted().await?;
            tracing::debug!("the LSN of a read is taken before it");
            fault::point("connector.before_snapshot").await;
            Some(lsn)
        };
        let mut view = View::open(session).await?;
        view.lsn_before = too_early.unwrap_or(view.lsn_before);
        if self.unsettled.settle(&view.snapshot) || !in_force("snapshot_shows_sent") {
            if std::mem::take(&mut self.settling).since.is_some() {
                self.tell_waits();
            }
            return Ok(Some(view));
        }
        View::close(session).await?;
        self.settling.since.get_or_insert_with(Since::now);
        self.tell_waits();
        Ok(None)
    }

    /// As [`Life::try_view`], waiting. The stream stands still meanwhile, Kafka's transaction
    /// does not: it is ended in time.
    pub(crate) async fn settled_view(&mut self, session: &Session) -> Result<View, LifeError> {
        loop {
            if let Some(view) = self.try_view(session).await? {
                return Ok(view);
            }
            self.record_if_old().await?;
            tokio::time::sleep(self.settling.pause()).await;
        }
    }

    /// The LSN of a read that has just been made in `view`: the WAL's insert position, because
    /// what it showed may not be flushed yet. Call it before the view is closed.
    pub(crate) async fn lsn_of_read(
        &self,
        session: &Session,
        view: &View,
    ) -> Result<Lsn, LifeError> {
        if !in_force("lsn_after_read") {
            return Ok(view.lsn_before);
        }
        let doing = "take the LSN of a read";
        let row = session
            .row(doing, "SELECT pg_current_wal_insert_lsn()")
            .await?;
        let lsn = session::get(doing, &row, 0)?;
        Ok(self.wal.border(lsn))
    }

    /// Is what a view of now shows flushed, or soon? Where an open transaction wrote last, its WAL
    /// may stay in memory for many seconds: a read that begins then would hold the stream up for
    /// as long, so it comes again later.
    pub(super) async fn is_flushed(&mut self) -> Result<bool, LifeError> {
        if !in_force("read_begins_flushed") {
            return Ok(true);
        }
        // What was not flushed the last time: the end that there is now, under load never is.
        if let Some((lsn, _)) = self.readers.unflushed {
            if self.control.flushed().await? < lsn {
                return Ok(false);
            }
            self.readers.unflushed = None;
            return Ok(true);
        }
        let begun = Instant::now();
        let lsn = self.wal.border(self.control.inserted().await?);
        while self.control.flushed().await? < lsn {
            if begun.elapsed() > FLUSHED_SOON {
                self.readers.unflushed = Some((lsn, Since::now()));
                return Ok(false);
            }
            tokio::time::sleep(FLUSH_RETRY).await;
        }
        Ok(true)
    }

    /// A read counts once the WAL is flushed to its LSN: what a crash of the server takes back
    /// must not stand in the topics.
    ///
    /// A server that does not flush is not waited for until Kafka ends the open transaction:
    /// that would look as if somebody else wrote.
    pub(crate) async fn count_read(&mut self, lsn: Lsn) -> Result<(), LifeError> {
        let begun = Instant::now();
        let limit = unflushed_max(&self.config.kafka).saturating_sub(self.delivery.age());
        while in_force("read_is_flushed") && self.control.flushed().await? < lsn {
            if in_force("unflushed_bounded") && begun.elapsed() > limit {
                return Err(LifeError::NotFlushed {
                    lsn,
                    waited_ms: begun.elapsed().as_millis(),
                });
            }
            if begun.elapsed() > VIEW_KEPT_UNFLUSHED {
                self.drop_view().await?;
            }
            self.feedback.request_keepalive();
            tokio::time::sleep(FLUSH_RETRY).await;
        }
        self.progress.read_up_to(lsn);
        if !self.progress.is_even() {
            // An idle source says nothing by itself for a while.
            self.feedback.request_keepalive();
        }
        Ok(())
    }
}
