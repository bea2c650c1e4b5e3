//! Where partitions end, asked of all of them at once.

use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::Offset;

use crate::checkpoint::Offsets;
use crate::client::{self, Quiet};
use crate::config::KafkaConfig;

/// Which records count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Up to the last stable offset, without those of aborted transactions.
    ReadCommitted,
    /// All that is written, of open and aborted transactions too.
    ReadUncommitted,
}

impl Isolation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read_committed",
            Self::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// A client that joins no group. Its calls wait.
pub(crate) fn consumer(
    config: &KafkaConfig,
    isolation: Isolation,
) -> KafkaResult<BaseConsumer<Quiet>> {
    client::settings(config)
        // Needed to assign partitions; nothing is committed to it.
        .set("group.id", format!("{}ends", config.topic_prefix))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", isolation.name())
        .set("enable.partition.eof", "true")
        .create_with_context(Quiet)
}

/// The end of each partition of `partitions` (its offsets do not matter), as the consumer's
/// isolation has it: one request to each leader.
pub(crate) fn ends(
    consumer: &BaseConsumer<Quiet>,
    partitions: &Offsets,
    timeout: Duration,
) -> KafkaResult<Offsets> {
    let mut asked = TopicPartitionList::new();
    for (topic, partitions) in partitions {
        for partition in partitions.keys() {
            // Where a time is asked for, the end is that of now.
            asked.add_partition_offset(topic, *partition, Offset::End)?;
        }
    }
    let mut ends = Offsets::new();
    if asked.count() == 0 {
        return Ok(ends);
    }
    for found in consumer.offsets_for_times(asked, timeout)?.elements() {
        found.error()?;
        let Offset::Offset(end) = found.offset() else {
            return Err(KafkaError::OffsetFetch(
                rdkafka::error::RDKafkaErrorCode::OffsetNotAvailable,
            ));
        };
        let partitions = ends.entry(found.topic().to_owned()).or_default();
        partitions.insert(found.partition(), end);
    }
    Ok(ends)
}
