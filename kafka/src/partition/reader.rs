//! Reads one partition up to an offset, and no further.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::stream_consumer::StreamPartitionQueue;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::time::Instant;

use super::{PartitionError, Read, Record, blocking, bounds, start};
use crate::client::Quiet;

/// A record behind an end of partition normally comes at once; only after this long is the end
/// looked into.
const END_GRACE: Duration = Duration::from_millis(20);
/// Nothing came and no end was met: whatever the reason, looking into it costs little.
const SILENCE_GRACE: Duration = Duration::from_secs(5);
/// The longest pause between two looks.
const GRACE_MAX: Duration = Duration::from_secs(5);
/// Waiting this long for an offset that a checkpoint names is worth a warning.
const WAIT_WARNED: Duration = Duration::from_secs(10);

/// Reads one partition. To be dropped before its [`PartitionConsumer`].
pub(crate) struct PartitionReader {
    pub(super) queue: StreamPartitionQueue<Quiet>,
    pub(super) consumer: Arc<StreamConsumer<Quiet>>,
    pub(super) patience: Duration,
    pub(super) topic: Arc<str>,
    pub(super) partition: i32,
    /// The offset to go on from; none: the first there is.
    pub(super) next: Option<i64>,
    /// Came already, and is still to be given.
    pub(super) peeked: Option<Record>,
    /// An end of partition came after the last record.
    pub(super) at_end: bool,
    /// The last stable offset was at least this when the present reading began.
    pub(super) stable: i64,
    /// The highest last stable offset that was ever heard of; it never falls.
    pub(super) stable_known: i64,
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
