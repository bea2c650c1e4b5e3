//! One partition, read exactly up to an offset.
//!
//! That is less simple than it sounds. The last record below an offset may never come: log
//! compaction has taken it, or it is a transaction's marker, which is not delivered. And a
//! read-committed "end of partition" may come too early: while the markers of a transaction are
//! still being written, the end that a consumer sees (the last stable offset) lies before
//! records that are committed already. librdkafka does not say at which offset it met the end.
//! So an end counts only in a reading that began when the last stable offset was known to be at
//! or past the offset wanted; met in another one, the offset is asked for and, if it suffices,
//! the reading begins anew behind the last record that came.
//!
//! Each partition has a queue of its own, which librdkafka fills up to a bound and no further:
//! what lies behind the offset wanted waits there.

mod reader;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::Offset;

use crate::client::{self, Quiet};
use crate::config::KafkaConfig;

pub(crate) use reader::PartitionReader;

/// Reading failed. Whoever reads drops its reader and begins a new one where it stood.
#[derive(Debug, thiserror::Error)]
#[error("Kafka: cannot {doing} of {topic}")]
pub struct PartitionError {
    doing: &'static str,
    topic: String,
    #[source]
    source: KafkaError,
}

/// A record of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
    pub(crate) timestamp_ms: i64,
}

impl Record {
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl From<&BorrowedMessage<'_>> for Record {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        Self {
            offset: message.offset(),
            key: Bytes::copy_from_slice(message.key().unwrap_or_default()),
            value: message.payload().map(Bytes::copy_from_slice),
            timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        }
    }
}

/// What a reading up to an offset finds next.
#[derive(Debug)]
pub(crate) enum Read {
    Record(Record),
    /// Everything below the offset has been read.
    Reached,
    /// The offset to read from is no longer (or not yet) in the partition.
    Lost,
}

/// A consumer without a group whose partitions are added one by one.
pub(crate) struct PartitionConsumer {
    consumer: Option<Arc<StreamConsumer<Quiet>>>,
    patience: Duration,
}

impl std::fmt::Debug for PartitionConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionConsumer").finish_non_exhaustive()
    }
}

impl PartitionConsumer {
    pub(crate) fn new(config: &KafkaConfig, name: &str) -> Result<Self, PartitionError> {
        let isolation = if service::fault::in_force("read_committed") {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        let queue_bytes = u64::from(config.fetch_queue_kib) * 1024;
        let mut settings = client::settings(config);
        settings
            // Needed to assign partitions; nothing joins the group or commits to it.
            .set("group.id", format!("{}{name}", config.topic_prefix))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true")
            .set(
                "queued.max.messages.kbytes",
                config.fetch_queue_kib.to_string(),
            )
            .set(
                "fetch.message.max.bytes",
                queue_bytes.min(1 << 20).to_string(),
            )
            // A full queue is looked at again after this long (default: 1 s).
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "50")
            // A partition that is added waits until the request that is away has returned.
            .set("fetch.wait.max.ms", "100");
        let consumer = settings
            .create_with_context(Quiet)
            .map_err(|source| PartitionError {
                doing: "set up a reader",
                topic: name.to_owned(),
                source,
            })?;
        Ok(Self {
            consumer: Some(Arc::new(consumer)),
            patience: client::request_timeout(config),
        })
    }

    fn consumer(&self, topic: &str) -> Result<&Arc<StreamConsumer<Quiet>>, PartitionError> {
        self.consumer.as_ref().ok_or_else(|| PartitionError {
            doing: "go on reading",
            topic: topic.to_owned(),
            source: KafkaError::Canceled,
        })
    }

    /// How many partitions a topic has; none where it does not exist.
    pub(crate) async fn partitions(&self, topic: &str) -> Result<Option<i32>, PartitionError> {
        let name = topic.to_owned();
        let found = blocking(
            self.consumer(topic)?,
            "find the partitions",
            topic,
            self.patience,
            move |consumer, patience| {
                let metadata = consumer.fetch_metadata(Some(&name), patience)?;
                let found = metadata.topics().iter().find(|found| found.name() == name);
                Ok(found.map_or(0, |found| found.partitions().len()))
            },
        )
        .await?;
        Ok((found > 0).then(|| i32::try_from(found).unwrap_or(i32::MAX)))
    }

    /// The first offset of a partition, and its last stable one.
    pub(crate) async fn bounds(
        &self,
        topic: &str,
        partition: i32,
    ) -> Result<(i64, i64), PartitionError> {
        bounds(self.consumer(topic)?, topic, partition, self.patience).await
    }

    /// The offset of the first record with a time from `time_ms` (since 1970) on; none: there is
    /// no such record.
    pub(crate) async fn offset_after(
        &self,
        topic: &str,
        partition: i32,
        time_ms: i64,
    ) -> Result<Option<i64>, PartitionError> {
        let name = topic.to_owned();
        let doing = "ask for the offset of a time";
        blocking(
            self.consumer(topic)?,
            doing,
            topic,
            self.patience,
            move |consumer, patience| {
                let mut times = TopicPartitionList::with_capacity(1);
                times.add_partition_offset(&name, partition, Offset::Offset(time_ms))?;
                let found = consumer.offsets_for_times(times, patience)?;
                let offset = found.elements().first().map(|one| one.offset());
                Ok(match offset {
                    Some(Offset::Offset(offset)) => Some(offset),
                    _ => None,
                })
            },
        )
        .await
    }

    /// Begins to fetch partitions, all with one request; each from its offset, or, without one,
    /// from the first that there is. The readers come in the same order.
    pub(crate) fn open(
        &self,
        partitions: &[(Arc<str>, i32, Option<i64>)],
    ) -> Result<Vec<PartitionReader>, PartitionError> {
        let mut assignment = TopicPartitionList::with_capacity(partitions.len());
        let mut readers = Vec::with_capacity(partitions.len());
        for (topic, partition, next) in partitions {
            let error = |source| PartitionError {
                doing: "begin to read a partition",
                topic: topic.to_string(),
                source,
            };
            let consumer = self.consumer(topic)?;
            // Before the assignment, so that no record can go to the common queue.
            let queue = consumer
                .split_partition_queue(topic, *partition)
                .ok_or_else(|| error(KafkaError::NoMessageReceived))?;
            assignment
                .add_partition_offset(topic, *partition, start(*next))
                .map_err(error)?;
            readers.push(PartitionReader {
                queue,
                consumer: Arc::clone(consumer),
                patience: self.patience,
                topic: Arc::clone(topic),
                partition: *partition,
                next: *next,
                peeked: None,
                at_end: false,
                stable: 0,
                stable_known: 0,
            });
        }
        if let Some((topic, ..)) = partitions.first() {
            self.consumer(topic)?
                .incremental_assign(&assignment)
                .map_err(|source| PartitionError {
                    doing: "begin to read partitions, among them one",
                    topic: topic.to_string(),
                    source,
                })?;
        }
        Ok(readers)
    }

    /// [`PartitionConsumer::open`] for one partition whose last stable offset is known already
    /// (0: not); an end that is met counts up to there.
    pub(crate) fn open_one(
        &self,
        topic: &Arc<str>,
        partition: i32,
        next: Option<i64>,
        stable: i64,
    ) -> Result<PartitionReader, PartitionError> {
        let mut readers = self.open(&[(Arc::clone(topic), partition, next)])?;
        let mut reader = readers.pop().ok_or_else(|| PartitionError {
            doing: "begin to read a partition",
            topic: topic.to_string(),
            source: KafkaError::NoMessageReceived,
        })?;
        reader.stable = stable;
        reader.stable_known = stable;
        Ok(reader)
    }
}

impl Drop for PartitionConsumer {
    fn drop(&mut self) {
        // Leaving takes librdkafka some time: not on this thread.
        let Some(consumer) = self.consumer.take() else {
            return;
        };
        let ended = std::thread::Builder::new()
            .name("kafka-consumer-end".to_owned())
            .spawn(move || drop(consumer));
        if let Err(error) = ended {
            tracing::warn!(%error, "no thread to end a consumer on");
        }
    }
}

fn start(next: Option<i64>) -> Offset {
    next.map_or(Offset::Beginning, Offset::Offset)
}

async fn bounds(
    consumer: &Arc<StreamConsumer<Quiet>>,
    topic: &str,
    partition: i32,
    patience: Duration,
) -> Result<(i64, i64), PartitionError> {
    let name = topic.to_owned();
    let doing = "ask for the last stable offset";
    blocking(
        consumer,
        doing,
        topic,
        patience,
        move |consumer, patience| consumer.fetch_watermarks(&name, partition, patience),
    )
    .await
}

async fn blocking<T: Send + 'static>(
    consumer: &Arc<StreamConsumer<Quiet>>,
    doing: &'static str,
    topic: &str,
    patience: Duration,
    call: impl FnOnce(&StreamConsumer<Quiet>, Duration) -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, PartitionError> {
    let consumer = Arc::clone(consumer);
    tokio::task::spawn_blocking(move || call(&consumer, patience))
        .await
        .unwrap_or(Err(KafkaError::Canceled))
        .map_err(|source| PartitionError {
            doing,
            topic: topic.to_owned(),
            source,
        })
}
