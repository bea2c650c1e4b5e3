//! Partitions read as they are written, what is open and aborted too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::topic_partition_list::Offset;

use super::HangingError;
use crate::checkpoint::Offsets;
use crate::client::{self, Quiet};
use crate::config::KafkaConfig;
use crate::ends::{Isolation, consumer, ends};

/// Topic and partition.
pub(super) type Place = (String, i32);

/// A partition that is stable only up to a transaction without its marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) stable: i64,
    pub(super) written: i64,
}

/// Two clients, since each has one isolation level. All but [`Log::ask`] wait.
pub(super) struct Log {
    committed: BaseConsumer<Quiet>,
    written: BaseConsumer<Quiet>,
    patience: Duration,
}

impl Log {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, HangingError> {
        let client = |isolation| {
            consumer(config, isolation).map_err(|source| HangingError::Kafka {
                doing: "set up a reader",
                source,
            })
        };
        Ok(Self {
            committed: client(Isolation::ReadCommitted)?,
            written: client(Isolation::ReadUncommitted)?,
            patience: client::request_timeout(config),
        })
    }

    /// Runs `look` on a thread where waiting is allowed.
    pub(super) async fn ask<T: Send + 'static>(
        self,
        look: impl FnOnce(&Self) -> Result<T, HangingError> + Send + 'static,
    ) -> Result<(Self, T), HangingError> {
        let looked = tokio::task::spawn_blocking(move || {
            let found = look(&self);
            (self, found)
        });
        let (log, found) = looked.await.map_err(|_| HangingError::Kafka {
            doing: "read the ends",
            source: KafkaError::Canceled,
        })?;
        Ok((log, found?))
    }

    /// The partitions of these topics that are not stable up to their end. A topic that does not
    /// exist has none.
    pub(super) fn gaps(&self, topics: &[String]) -> Result<BTreeMap<Place, Gap>, HangingError> {
        let metadata = self
            .written
            .fetch_metadata(None, self.patience)
            .map_err(|source| HangingError::Kafka {
                doing: "find the partitions",
                source,
            })?;
        let found = metadata.topics().iter();
        let found = found.filter(|found| topics.iter().any(|topic| topic == found.name()));
        let partitions = found.map(|topic| {
            let ids = topic
                .partitions()
                .iter()
                .map(|partition| (partition.id(), 0));
            (topic.name().to_owned(), ids.collect())
        });
        self.gaps_of(&partitions.collect())
    }

    fn gaps_of(&self, partitions: &Offsets) -> Result<BTreeMap<Place, Gap>, HangingError> {
        let ends = |consumer| {
            ends(consumer, partitions, self.patience).map_err(|source| HangingError::Kafka {
                doing: "ask for the ends",
                source,
            })
        };
        let (stable, written) = (ends(&self.committed)?, ends(&self.written)?);
        let mut gaps = BTreeMap::new();
        for (topic, ends) in written {
            for (partition, written) in ends {
                let stable = stable.get(&topic).and_then(|ends| ends.get(&partition));
                let stable = stable.copied().unwrap_or_default();
                if stable < written {
                    gaps.insert((topic.clone(), partition), Gap { stable, written });
                }
            }
        }
        Ok(gaps)
    }

    /// Those of `places` where something hangs.
    pub(super) fn still_hanging<'a>(
        &self,
        places: impl Iterator<Item = &'a Place>,
    ) -> Result<BTreeMap<Place, Gap>, HangingError> {
        let mut partitions = Offsets::new();
        for (topic, partition) in places {
            let ends = partitions.entry(topic.clone()).or_default();
            ends.insert(*partition, 0);
        }
        self.gaps_of(&partitions)
    }

    /// The first record of a partition from `from` on, below `below`, whatever becomes of its
    /// transaction.
    pub(super) fn first(
        &self,
        place: &Place,
        from: i64,
        below: i64,
    ) -> Result<Option<OwnedMessage>, HangingError> {
        self.read(&self.written, place, from, below)
    }

    /// Is there a record at `offset`, below the last stable one, that was aborted?
    pub(super) fn is_aborted(&self, place: &Place, offset: i64) -> Result<bool, HangingError> {
        let at = |consumer| self.read(consumer, place, offset, offset + 1);
        Ok(at(&self.written)?.is_some() && at(&self.committed)?.is_none())
    }

    fn read(
        &self,
        consumer: &BaseConsumer<Quiet>,
        place: &Place,
        from: i64,
        below: i64,
    ) -> Result<Option<OwnedMessage>, HangingError> {
        if from >= below {
            return Ok(None);
        }
        self.try_read(consumer, place, from, below)
            .map_err(|source| HangingError::Kafka {
                doing: "read what hangs",
                source,
            })
    }

    fn try_read(
        &self,
        consumer: &BaseConsumer<Quiet>,
        (topic, partition): &Place,
        from: i64,
        below: i64,
    ) -> KafkaResult<Option<OwnedMessage>> {
        let mut assignment = TopicPartitionList::with_capacity(1);
        assignment.add_partition_offset(topic, *partition, Offset::Offset(from.max(0)))?;
        consumer.assign(&assignment)?;
        let deadline = Instant::now() + self.patience;
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match consumer.poll(left) {
                Some(Ok(message)) if message.offset() < from => {}
                Some(Ok(message)) if message.offset() < below => break Some(message.detach()),
                // `below` was at or before the end when this began: nothing is left out.
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => break None,
                Some(Err(KafkaError::MessageConsumption(code))) if is_gone(code) => break None,
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(KafkaError::MessageConsumption(
                        RDKafkaErrorCode::OperationTimedOut,
                    ));
                }
            }
        };
        consumer.unassign()?;
        Ok(found)
    }
}

/// The log begins behind the offset.
fn is_gone(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange
    )
}
