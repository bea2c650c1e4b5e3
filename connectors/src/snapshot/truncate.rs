//! TRUNCATE: one message without keys, so a reconciliation with an empty table.

use bytes::Bytes;
use kafka::follower::TopicScan;
use service::fault::in_force;

use super::live::{LIVE_KEYS_MAX, LiveKeys};
use crate::captured::Captured;
use crate::encode::envelope::Origin;
use crate::error::LifeError;
use crate::life::Life;
use crate::watch::Activity;

impl Life<'_> {
    /// Deletes every key that the table's topic has a row of, once: also where a predecessor has
    /// deleted some of them before it died.
    ///
    /// What was sent before is committed first, so that reading the topic up to our own offsets
    /// meets it. That is a record inside a source transaction: `reach` says so.
    pub(crate) async fn truncate(
        &mut self,
        captured: &Captured,
        origin: &Origin,
    ) -> Result<(), LifeError> {
        if !in_force("truncate_deletes") {
            return Ok(());
        }
        if in_force("truncate_commits_first") {
            self.record().await?;
        }
        let (table, mut rows) = (&captured.name, 0_u64);
        tracing::info!(
            table,
            "{table} was truncated; the rows in its topic are deleted"
        );
        for partition in 0..self.topics.partitions(&captured.topic).await? {
            // Before the first delete: those stand behind it.
            let end = self.progress.offset(&captured.topic, partition);
            let mut live = LiveKeys::at_most(LIVE_KEYS_MAX);
            loop {
                let mut pass = self.pass(captured, partition, end)?;
                while let Some(records) = self.next_of(&mut pass).await? {
                    for (key, has_value) in records {
                        live.see(&key, has_value || !in_force("deleted_once"));
                    }
                }
                if !live.is_empty() {
                    pass = self.pass(captured, partition, end)?;
                }
                while !live.is_empty()
                    && let Some(records) = self.next_of(&mut pass).await?
                {
                    for (key, _) in records {
                        if live.take(&key) {
                            self.delete_key(captured, key, origin).await?;
                            rows += 1;
                        }
                    }
                }
                if !live.next_share() {
                    break;
                }
            }
        }
        tracing::info!(table, rows, "{rows} rows of {table} are deleted");
        self.status.motion().begin(Activity::Streaming);
        Ok(())
    }

    /// A partition from its beginning to what we have sent.
    fn pass(&self, captured: &Captured, partition: i32, end: i64) -> Result<TopicScan, LifeError> {
        let (kafka, topic) = (&self.config.kafka, &captured.topic);
        Ok(TopicScan::new(kafka, topic, partition, 0, end)?)
    }

    /// The next records, none at the end. Between two such batches Kafka's transaction may end.
    async fn next_of(
        &mut self,
        pass: &mut TopicScan,
    ) -> Result<Option<Vec<(Bytes, bool)>>, LifeError> {
        self.record_if_full().await?;
        self.status.motion().begin(Activity::ReadingTopics);
        let (records, _) = pass.next_batch(self.config.reads.reconcile_keys).await?;
        Ok(Some(records).filter(|records| !records.is_empty()))
    }
}
