//! TRUNCATE: one message without keys, so a reconciliation with an empty table.

use kafka::follower::TopicScan;
use service::fault::in_force;

use super::reconcile::valued;
use crate::captured::Captured;
use crate::encode::envelope::Origin;
use crate::error::LifeError;
use crate::life::Life;

impl Life<'_> {
    /// Deletes every key that the table's topic ever held a value of.
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
        for partition in 0..self.topics.partitions(&captured.topic).await? {
            let end = self.progress.offset(&captured.topic, partition);
            let mut scan = TopicScan::new(&self.config.kafka, &captured.topic, partition, 0, end)?;
            let mut next = 0;
            while next < end {
                let (records, after) = scan.next_batch(self.config.reads.reconcile_keys).await?;
                next = after;
                for json in valued(records) {
                    self.delete_key(captured, json, origin).await?;
                }
                self.record_if_full().await?;
            }
        }
        Ok(())
    }
}
