//! Parts of one partition: its keys, for a reconciliation, and a single record.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::KafkaConfig;
use crate::partition::{PartitionConsumer, PartitionReader, Read};

use super::FollowerError;

/// Reads the keys of a partition between two offsets, in batches.
#[derive(Debug)]
pub struct TopicScan {
    /// Opened by the first batch. Stands before the consumer, so as to be dropped before it.
    reader: Option<PartitionReader>,
    consumer: PartitionConsumer,
    topic: Arc<str>,
    partition: i32,
    next: i64,
    end: i64,
}

impl TopicScan {
    /// From offset `next` up to `end`; what is committed there may still be getting its markers.
    ///
    /// # Errors
    /// Where the configuration is not one that a client can have.
    pub fn new(
        config: &KafkaConfig,
        topic: &str,
        partition: i32,
        next: i64,
        end: i64,
    ) -> Result<Self, FollowerError> {
        Ok(Self {
            reader: None,
            consumer: PartitionConsumer::new(config, "reconciliation")?,
            topic: topic.into(),
            partition,
            next,
            end,
        })
    }

    /// At most `max` records: the key, and whether there is a value. Besides the offset to go on
    /// from; at or past the end the scan is complete.
    ///
    /// # Errors
    /// Where the partition cannot be read.
    pub async fn next_batch(
        &mut self,
        max: usize,
    ) -> Result<(Vec<(Bytes, bool)>, i64), FollowerError> {
        let mut batch = Vec::new();
        if self.next >= self.end {
            return Ok((batch, self.next));
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            closed => {
                let (topic, partition) = (&self.topic, self.partition);
                // Asked first also because librdkafka looks for a partition whose leader it does
                // not know once a second only.
                let (_, stable) = self.consumer.bounds(topic, partition).await?;
                let next = (self.next > 0).then_some(self.next);
                closed.insert(self.consumer.open_one(topic, partition, next, stable)?)
            }
        };
        while batch.len() < max {
            match reader.next_below(self.end).await? {
                Read::Record(record) => {
                    self.next = record.offset + 1;
                    batch.push((record.key, record.value.is_some()));
                }
                Read::Reached => {
                    self.next = self.end;
                    break;
                }
                Read::Lost => {
                    return Err(FollowerError::Lost {
                        topic: self.topic.to_string(),
                    });
                }
            }
        }
        Ok((batch, self.next))
    }
}

/// The value of one record; none where the topic no longer has it, or it is a tombstone.
///
/// # Errors
/// Where the partition cannot be read.
pub async fn record(
    config: &KafkaConfig,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Option<Bytes>, FollowerError> {
    let consumer = PartitionConsumer::new(config, "record")?;
    let (_, stable) = consumer.bounds(topic, partition).await?;
    if offset >= stable {
        return Ok(None);
    }
    let mut reader = consumer.open_one(&topic.into(), partition, Some(offset), stable)?;
    let read = reader.next_below(offset + 1).await?;
    Ok(match read {
        Read::Record(record) => record.value,
        Read::Reached | Read::Lost => None,
    })
}
