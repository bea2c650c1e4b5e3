//! The loop of a life: messages of the log, records, and in between reads.
//!
//! One task does everything, so "nothing is streamed between a read's snapshot and its sending"
//! and "no event after its record" hold by construction. A record is written when no message is
//! waiting, or under load every few milliseconds: records coalesce, and an idle source's commit
//! is recorded at once.

mod alteration;
mod relation;
mod transaction;

use std::time::{Duration, Instant};

use metrics::gauge;
use service::fault::{self, in_force};
use tokio_util::sync::CancellationToken;

use crate::error::LifeError;
use crate::life::{Life, quarantine_topic};
use crate::replication::{ReplicationEvent, ReplicationMessage};
use crate::status::names;
use crate::watch::Activity;

pub(crate) use transaction::Transaction;

/// A read that the source was in the way of comes again after this.
const READ_RETRY: Duration = Duration::from_millis(10);
/// Under load the next record begins after so many times what the last one took.
const RECORD_PACE: u32 = 9;
/// While the position is behind a read or a look, a keepalive is asked for this often.
const KEEPALIVE_RETRY: Duration = Duration::from_millis(20);

impl Life<'_> {
    /// Streams until something is lost, or until `shutdown`.
    pub(crate) async fn follow(&mut self, shutdown: &CancellationToken) -> Result<(), LifeError> {
        loop {
            if shutdown.is_cancelled() && !self.progress.in_transaction() {
                return self.record_if_any().await;
            }
            if !self.progress.in_transaction()
                && let Some(asked) = self.orders.try_next()
            {
                self.obey(asked).await?;
            }
            if self.progress.wants_read() && Instant::now() >= self.read_again_at {
                self.status.motion().begin(Activity::ReadingTables);
                self.read_some().await?;
                self.status.motion().begin(Activity::Streaming);
            }
            if self.is_look_due() {
                self.look(None).await?;
            }
            let event = match self.stream.try_next()? {
                Some(event) => event,
                None => match self.wait(shutdown).await? {
                    Some(event) => event,
                    None => continue,
                },
            };
            self.handle(event).await?;
            self.record_under_load().await?;
        }
    }

    /// Nothing is waiting: a record if one is due, else the next message or the next deadline.
    async fn wait(
        &mut self,
        shutdown: &CancellationToken,
    ) -> Result<Option<ReplicationEvent>, LifeError> {
        if self.is_record_due() {
            self.record().await?;
            return Ok(None);
        }
        let deadline = tokio::time::Instant::from_std(self.deadline());
        let flushed = self.pulse.borrow().flushed;
        let motion = self.status.motion();
        motion.round(self.feedback.received(), flushed);
        let mut asked = None;
        let between = !self.progress.in_transaction();
        tokio::select! {
            event = self.stream.next() => return Ok(Some(event?)),
            Some(command) = self.orders.next(), if between => asked = Some(command),
            () = tokio::time::sleep_until(deadline) => {}
            // An error means that the control session is lost, which ends the life elsewhere.
            Ok(()) = self.pulse.changed() => self.feel(),
            () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
        }
        if let Some(command) = asked {
            self.obey(command).await?;
        }
        self.pass_view().await?;
        if self.progress.waits_for_log() && !self.progress.in_transaction() {
            self.feedback.request_keepalive();
        }
        Ok(None)
    }

    async fn handle(&mut self, event: ReplicationEvent) -> Result<(), LifeError> {
        let lsn = event.wal_start;
        if !matches!(event.message, ReplicationMessage::Keepalive { .. }) {
            self.status.motion().handled();
        }
        let change = event.message.is_change();
        if change && self.passes_over(lsn).await? {
            return Ok(());
        }
        match event.message {
            ReplicationMessage::Begin {
                final_lsn,
                commit_time_us,
                xid,
            } => self.begin(final_lsn, commit_time_us, xid).await,
            ReplicationMessage::Commit {
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => self.commit(commit_lsn, end_lsn, commit_time_us).await,
            ReplicationMessage::Keepalive { wal_end, .. } => {
                self.progress.keepalive(wal_end);
                self.pass_view().await
            }
            ReplicationMessage::Relation(relation) => self.relation(relation).await,
            ReplicationMessage::Insert { relation, new } => self.insert(lsn, relation, new).await,
            ReplicationMessage::Update { relation, old, new } => {
                self.update(lsn, relation, old, new).await
            }
            ReplicationMessage::Delete { relation, old } => self.delete(lsn, relation, old).await,
            ReplicationMessage::Truncate { relations, .. } => {
                self.truncate_all(lsn, &relations).await
            }
            ReplicationMessage::Type { .. }
            | ReplicationMessage::Origin { .. }
            | ReplicationMessage::Message { .. } => Ok(()),
        }?;
        if change {
            self.progress.change_sent(lsn);
        }
        Ok(())
    }

    /// The source's pulse, about once a second.
    fn feel(&mut self) {
        let pulse = self.pulse.borrow_and_update();
        self.unsettled.settle(&pulse.snapshot);
        self.progress.current(pulse.flushed, pulse.at_us);
        gauge!(names::UNSETTLED).set(f64::from(
            u32::try_from(self.unsettled.len()).unwrap_or(u32::MAX),
        ));
        let buffered = u32::try_from(self.stream.buffered_bytes()).unwrap_or(u32::MAX);
        gauge!(names::BUFFERED).set(f64::from(buffered));
        let unacknowledged = u32::try_from(self.delivery.unacknowledged()).unwrap_or(u32::MAX);
        gauge!(names::UNACKNOWLEDGED).set(f64::from(unacknowledged));
    }

    pub(crate) fn step_back(&mut self) {
        self.read_again_at = Instant::now() + READ_RETRY.max(self.settling.pause());
    }

    // -- records -------------------------------------------------------------------------

    /// Ends the Kafka transaction with how far the topics are; then tells PostgreSQL.
    pub(crate) async fn record(&mut self) -> Result<(), LifeError> {
        if self.pulse.has_changed().unwrap_or(false) {
            self.feel();
        }
        self.status.motion().begin(Activity::Recording);
        let begun = Instant::now();
        let (mut offsets, quarantine) = self.delivery.delivered().await?;
        self.progress.delivered(&offsets);
        self.progress.quarantined(quarantine.clone());
        let record = self.progress.record();
        if !in_force("feedback_after_commit") {
            self.feedback.confirm(record.position);
        }
        fault::point("connector.before_commit").await;
        let ends = self.delivery.commit(&record).await?;
        if !quarantine.is_empty() {
            offsets.insert(quarantine_topic(self.config), quarantine);
        }
        self.held.extend(&offsets);
        for (table, reason) in self.delivery.take_quarantined() {
            self.status.quarantined(&table, reason);
        }
        fault::point("connector.after_commit").await;
        if in_force("confirm_readable") {
            self.readable.committed(record.position, &ends);
        } else {
            self.feedback.confirm(record.position);
        }
        fault::point("connector.after_confirm").await;
        self.recorded_at = Instant::now();
        self.record_took = begun.elapsed();
        self.recorded = record.position;
        self.status.recorded(&record);
        self.status.motion().begin(Activity::Streaming);
        Ok(())
    }

    /// A record if any event has been sent since the last.
    pub(crate) async fn record_if_any(&mut self) -> Result<(), LifeError> {
        if self.delivery.events() > 0 {
            self.record().await?;
        }
        Ok(())
    }

    /// A record if the Kafka transaction is as large as it may become. Comes with every change
    /// and batch, so it also holds a kept view to its bounds while a transaction streams on.
    pub(crate) async fn record_if_full(&mut self) -> Result<(), LifeError> {
        self.pass_view().await?;
        let limits = &self.config.stream;
        if self.delivery.events() >= limits.kafka_transaction_events_max
            || self.delivery.bytes() >= limits.kafka_transaction_bytes_max
        {
            self.record().await?;
        }
        self.record_if_old().await
    }

    /// A record if the Kafka transaction is as old as it may become.
    pub(crate) async fn record_if_old(&mut self) -> Result<(), LifeError> {
        if self.is_old() {
            self.record().await?;
        }
        Ok(())
    }

    async fn record_under_load(&mut self) -> Result<(), LifeError> {
        let due = self.recorded_at.elapsed() >= self.record_every()
            && !self.progress.in_transaction()
            && self.progress.is_even()
            && (self.delivery.events() > 0 || self.progress.is_uncovered());
        if due {
            return self.record().await;
        }
        self.record_if_full().await
    }

    /// With no message waiting: is there something to be recorded now?
    fn is_record_due(&self) -> bool {
        if self.is_old() {
            return true;
        }
        if self.progress.in_transaction() {
            return false;
        }
        let even = self.progress.is_even();
        let idle = self.recorded_at.elapsed();
        (even && self.delivery.events() > 0)
            || self.progress.covers_a_read()
            || (even && self.progress.position() > self.recorded && idle >= self.idle_after())
            || idle >= self.heartbeat()
    }

    /// When [`Life::is_record_due`] may next be true without a message.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        let mut deadline = self.recorded_at + self.heartbeat();
        if self.progress.in_transaction() {
            // Nothing is due before the server says more, or the Kafka transaction is old.
            deadline = now + self.heartbeat();
        } else if self.progress.waits_for_log() {
            deadline = deadline.min(now + KEEPALIVE_RETRY);
        } else if self.progress.position() > self.recorded {
            deadline = deadline.min(self.recorded_at + self.idle_after());
        }
        if !self.progress.in_transaction() {
            deadline = deadline.min(self.look_at);
        }
        if self.delivery.events() > 0 {
            let left = self.transaction_max().saturating_sub(self.delivery.age());
            deadline = deadline.min(now + left);
        }
        if self.progress.wants_read() {
            deadline = deadline.min(self.read_again_at);
        }
        if let Some(view) = self.view_deadline() {
            deadline = deadline.min(view);
        }
        deadline.max(now)
    }

    fn is_old(&self) -> bool {
        self.delivery.events() > 0 && self.delivery.age() >= self.transaction_max()
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.config.stream.heartbeat_ms)
    }

    fn idle_after(&self) -> Duration {
        Duration::from_millis(self.config.stream.idle_record_ms)
    }

    /// While a record is made nothing is sent, so one that takes long makes the next one wait.
    fn record_every(&self) -> Duration {
        let most = self.transaction_max() / 4;
        Duration::from_millis(self.config.stream.record_ms)
            .max((self.record_took * RECORD_PACE).min(most))
    }

    fn transaction_max(&self) -> Duration {
        Duration::from_millis(self.config.stream.kafka_transaction_ms_max)
    }
}
