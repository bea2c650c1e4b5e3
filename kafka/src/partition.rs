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

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::Offset;
use tokio::time::Instant;

use crate::client::{self, Quiet};
use crate::config::KafkaConfig;

/// A record behind an end of partition normally comes at once; only after this long is the end
/// looked into.
const END_GRACE: Duration = Duration::from_millis(20);
/// Nothing came and no end was met: whatever the reason, looking into it costs little.
const SILENCE_GRACE: Duration = Duration::from_secs(5);
/// The longest pause between two looks.
const GRACE_MAX: Duration = Duration::from_secs(5);
/// Waiting this long for an offset that a checkpoint names is worth a warning.
const WAIT_WARNED: Duration = Duration::from_secs(10);

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

/// Reads one partition. To be dropped before its [`PartitionConsumer`].
pub(crate) struct PartitionReader {
    queue: StreamPartitionQueue<Quiet>,
    consumer: Arc<StreamConsumer<Quiet>>,
    patience: Duration,
    topic: Arc<str>,
    partition: i32,
    /// The offset to go on from; none: the first there is.
    next: Option<i64>,
    /// Came already, and is still to be given.
    peeked: Option<Record>,
    /// An end of partition came after the last record.
    at_end: bool,
    /// The last stable offset was at least this when the present reading began.
    stable: i64,
    /// The highest last stable offset that was ever heard of; it never falls.
    stable_known: i64,
}

impl std::fmt::Debug for PartitionReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionReader")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        let mut assignment = TopicPartitionList::with_capacity(1);
        assignment.add_partition(&self.topic, self.partition);
        if let Err(error) = self.consumer.incremental_unassign(&assignment) {
            tracing::debug!(%error, "cannot give {} back", self.topic);
        }
    }
}

/// What came from the queue.
enum Came {
    Record,
    End,
    Lost,
    /// Nothing that concerns the reader.
    Noise,
}

impl PartitionReader {
    /// The next record below `end`, or that there is none.
    pub(crate) async fn next_below(&mut self, end: i64) -> Result<Read, PartitionError> {
        let begun = Instant::now();
        let mut grace = END_GRACE;
        let mut warned = false;
        loop {
            if self.next.unwrap_or_default() >= end {
                return Ok(Read::Reached);
            }
            match self.peeked.take() {
                Some(record) if record.offset < end => {
                    self.next = Some(record.offset + 1);
                    return Ok(Read::Record(record));
                }
                later @ Some(_) => {
                    self.peeked = later;
                    return Ok(self.reached(end));
                }
                None => {}
            }
            let believe_end = self.stable >= end || !service::fault::in_force("end_reaches_offset");
            if self.at_end && believe_end {
                return Ok(self.reached(end));
            }
            let wait = if self.at_end { grace } else { SILENCE_GRACE };
            match tokio::time::timeout(wait, self.receive()).await {
                Ok(came) => match came? {
                    Came::Lost => return Ok(Read::Lost),
                    // Markers were written: the next look may already find the offset stable.
                    Came::End => grace = END_GRACE,
                    Came::Record | Came::Noise => {}
                },
                Err(_) => {
                    grace = (grace * 2).min(GRACE_MAX);
                    self.look_into_end(end).await?;
                    if !warned && begun.elapsed() >= WAIT_WARNED {
                        warned = true;
                        tracing::warn!(topic = %self.topic, partition = self.partition, end,
                            "still waiting for {} partition {} to reach offset {end}",
                            self.topic, self.partition);
                    }
                }
            }
        }
    }

    /// The next record, however long it takes.
    pub(crate) async fn next(&mut self) -> Result<Read, PartitionError> {
        loop {
            if let Some(record) = self.peeked.take() {
                self.next = Some(record.offset + 1);
                return Ok(Read::Record(record));
            }
            if let Came::Lost = self.receive().await? {
                return Ok(Read::Lost);
            }
        }
    }

    /// The next record, if it is here.
    pub(crate) fn next_now(&mut self) -> Result<Option<Read>, PartitionError> {
        loop {
            if let Some(record) = self.peeked.take() {
                self.next = Some(record.offset + 1);
                return Ok(Some(Read::Record(record)));
            }
            match self.receive().now_or_never().transpose()? {
                None => return Ok(None),
                Some(Came::Lost) => return Ok(Some(Read::Lost)),
                Some(Came::Record | Came::End | Came::Noise) => {}
            }
        }
    }

    /// Goes to another offset; none: the first there is.
    pub(crate) async fn seek(&mut self, next: Option<i64>) -> Result<(), PartitionError> {
        let (name, partition) = (self.topic.to_string(), self.partition);
        let doing = "go to another offset";
        // Answered once records of the old reading can no longer come from the queue.
        blocking(
            &self.consumer,
            doing,
            &self.topic,
            self.patience,
            move |consumer, patience| consumer.seek(&name, partition, start(next), patience),
        )
        .await?;
        self.next = next;
        self.peeked = None;
        self.at_end = false;
        self.stable = self.stable_known;
        Ok(())
    }

    fn reached(&mut self, end: i64) -> Read {
        self.next = Some(end);
        Read::Reached
    }

    /// An end was met, or nothing came, before `end`. If the partition is stable up to there, the
    /// reading begins anew: then its records or its end will come, and that end counts.
    async fn look_into_end(&mut self, end: i64) -> Result<(), PartitionError> {
        let (_, stable) =
            bounds(&self.consumer, &self.topic, self.partition, self.patience).await?;
        self.stable_known = self.stable_known.max(stable);
        if stable >= end {
            self.seek(self.next).await?;
        }
        Ok(())
    }

    /// Waits for the queue. The common queue, which holds no records, is served meanwhile.
    async fn receive(&mut self) -> Result<Came, PartitionError> {
        let came = tokio::select! {
            biased;
            came = self.queue.recv() => came,
            common = self.consumer.recv() => match common {
                Ok(_) => return Ok(Came::Noise),
                Err(error) => Err(error),
            },
        };
        match came {
            Ok(message) => {
                self.peeked = Some(Record::from(&message));
                self.at_end = false;
                Ok(Came::Record)
            }
            Err(KafkaError::PartitionEOF(_)) => {
                self.at_end = true;
                Ok(Came::End)
            }
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            )) => Ok(Came::Lost),
            Err(source) if is_passing(&source) => Ok(Came::Noise),
            Err(source) => Err(PartitionError {
                doing: "read",
                topic: self.topic.to_string(),
                source,
            }),
        }
    }
}

/// Does librdkafka go on by itself? It reports brokers that are away, and finds them again.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::NetworkException
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::NotLeaderForPartition
        )
    )
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
