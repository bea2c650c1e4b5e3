//! A source's checkpoint topic, read from its end.
//!
//! The newest record is wanted, not the first: so the last few offsets are read first, then
//! ever more before them until a record will do. Compaction leaves gaps and transactions leave
//! markers, so no number of offsets is sure to hold a record.

use std::sync::Arc;
use std::time::Duration;

use crate::checkpoint::Checkpoint;
use crate::config::KafkaConfig;
use crate::partition::{PartitionConsumer, PartitionReader, Read, Record};
use crate::topic;

use super::FollowerError;

/// Offsets that are looked at first; the next look takes in `GROWTH` times as many.
const FIRST_LOOK: i64 = 50;
const GROWTH: i64 = 8;
/// How often a topic that does not exist yet is looked for.
const TOPIC_WAIT: Duration = Duration::from_millis(200);

/// A record of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: i64,
    pub(super) time_ms: i64,
    pub(super) record: Checkpoint,
}

/// The topic is not what was read before.
#[derive(Debug)]
pub(super) struct Lost;

/// Reads the topic; at first behind the record that [`CheckpointLog::open`] found.
#[derive(Debug)]
pub(super) struct CheckpointLog {
    reader: PartitionReader,
}

impl CheckpointLog {
    /// Finds the newest record from offset `seen` on that `wanted` accepts. The log then goes on
    /// behind the last stable offset that there was.
    pub(super) async fn open(
        consumer: &PartitionConsumer,
        name: &Arc<str>,
        seen: i64,
        wanted: impl Fn(&Checkpoint) -> bool,
    ) -> Result<Result<(Self, Option<Found>), Lost>, FollowerError> {
        let (low, stable) = consumer.bounds(name, 0).await?;
        if seen > stable {
            return Ok(Err(Lost));
        }
        let floor = seen.max(low);
        let mut from = floor.max(stable - FIRST_LOOK);
        let mut end = stable;
        let mut reader = consumer.open_one(name, 0, Some(from), stable)?;
        loop {
            let mut newest = None;
            loop {
                match reader.next_below(end).await? {
                    Read::Record(record) => {
                        let found = Found::parse(name, &record)?;
                        if wanted(&found.record) {
                            newest = Some(found);
                        }
                    }
                    Read::Reached => break,
                    Read::Lost => return Ok(Err(Lost)),
                }
            }
            if newest.is_some() || from <= floor {
                if end < stable {
                    reader.seek(Some(stable)).await?;
                }
                return Ok(Ok((Self { reader }, newest)));
            }
            end = from;
            from = floor.max(stable - (stable - from).saturating_mul(GROWTH));
            reader.seek(Some(from)).await?;
        }
    }

    /// The next record, if it is here.
    pub(super) fn next_now(
        &mut self,
        name: &str,
    ) -> Result<Option<Result<Found, Lost>>, FollowerError> {
        let read = self.reader.next_now()?;
        Ok(match read {
            Some(Read::Record(record)) => Some(Ok(Found::parse(name, &record)?)),
            Some(Read::Lost) => Some(Err(Lost)),
            Some(Read::Reached) | None => None,
        })
    }

    /// Waits for the next record.
    pub(super) async fn next(&mut self, name: &str) -> Result<Result<Found, Lost>, FollowerError> {
        loop {
            match self.reader.next().await? {
                Read::Record(record) => return Ok(Ok(Found::parse(name, &record)?)),
                Read::Lost => return Ok(Err(Lost)),
                Read::Reached => {}
            }
        }
    }
}

impl Found {
    fn parse(topic: &str, record: &Record) -> Result<Self, FollowerError> {
        let checkpoint = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
            .map_err(|source| FollowerError::Record {
                topic: topic.to_owned(),
                offset: record.offset,
                source,
            })?;
        Ok(Self {
            offset: record.offset,
            time_ms: record.timestamp_ms,
            record: checkpoint,
        })
    }
}

/// Waits until a topic exists: a reader may be started before its source's connector.
pub(super) async fn wait_for(
    consumer: &PartitionConsumer,
    name: &str,
) -> Result<(), FollowerError> {
    let mut said = false;
    while consumer.partitions(name).await?.is_none() {
        if !said {
            said = true;
            tracing::info!(topic = name, "waiting for topic {name} to be created");
        }
        tokio::time::sleep(TOPIC_WAIT).await;
    }
    Ok(())
}

/// The very last record of a source's checkpoint topic, whole or not: where a successor goes on.
/// To be called once `Producer::connect` has ended what predecessors had open.
///
/// # Errors
/// Where the topic does not exist, cannot be read, or holds what is no checkpoint.
pub async fn last_record(
    config: &KafkaConfig,
    source: &str,
) -> Result<Option<Checkpoint>, FollowerError> {
    Ok(last(config, source).await?.map(|found| found.record))
}

/// Where that record stands in the topic.
///
/// # Errors
/// As [`last_record`].
pub async fn last_offset(config: &KafkaConfig, source: &str) -> Result<Option<i64>, FollowerError> {
    Ok(last(config, source).await?.map(|found| found.offset))
}

async fn last(config: &KafkaConfig, source: &str) -> Result<Option<Found>, FollowerError> {
    let name: Arc<str> = topic::checkpoint(config, source).into();
    let consumer = PartitionConsumer::new(config, &format!("{source}.successor"))?;
    match CheckpointLog::open(&consumer, &name, 0, |_| true).await? {
        Ok((log, found)) => {
            drop(log);
            Ok(found)
        }
        Err(Lost) => Err(FollowerError::Lost {
            topic: name.to_string(),
        }),
    }
}
