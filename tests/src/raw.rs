//! The records of topics as they lie there, committed or not, without checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::stack::Stack;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

/// How long the broker may take for one answer, and a partition to come to its end.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// What a reader is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    Committed,
    /// Also what was aborted, and what is open.
    Uncommitted,
}

/// A record.
#[derive(Debug, Clone)]
pub struct Record {
    /// Without the stack's prefix.
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    /// None: a tombstone.
    pub value: Option<Value>,
    pub headers: Vec<(String, String)>,
    /// When the broker wrote it, milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// Everything in a topic (named without prefix) up to its end now, partition by partition.
///
/// # Errors
/// Where the topic is not there or a record is not JSON.
pub async fn records(stack: &Stack, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
    let (bootstrap, prefix) = (
        stack.bootstrap().to_owned(),
        stack.topic_prefix().to_owned(),
    );
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || read(&bootstrap, &prefix, &topic, isolation)).await?
}

/// Per partition of a topic (named without prefix) the offset after its last record or marker,
/// whoever wrote it.
///
/// # Errors
/// Where the topic is not there.
pub async fn ends(stack: &Stack, topic: &str) -> Result<BTreeMap<i32, i64>> {
    let bootstrap = stack.bootstrap().to_owned();
    let name = format!("{}{topic}", stack.topic_prefix());
    tokio::task::spawn_blocking(move || {
        let consumer = consumer(&bootstrap, Isolation::Uncommitted)?;
        partitions(&consumer, &name)?
            .into_iter()
            .map(|partition| {
                let (_, end) = consumer.fetch_watermarks(&name, partition, ANSWERED_WITHIN)?;
                Ok((partition, end))
            })
            .collect()
    })
    .await?
}

fn consumer(bootstrap: &str, isolation: Isolation) -> Result<BaseConsumer> {
    let isolation = match isolation {
        Isolation::Committed => "read_committed",
        Isolation::Uncommitted => "read_uncommitted",
    };
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "tests-raw")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .context("cannot make a consumer")
}

fn partitions(consumer: &BaseConsumer, name: &str) -> Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(name), ANSWERED_WITHIN)?;
    let topic = metadata
        .topics()
        .iter()
        .find(|topic| topic.name() == name && !topic.partitions().is_empty())
        .with_context(|| format!("there is no topic {name}"))?;
    Ok(topic
        .partitions()
        .iter()
        .map(|partition| partition.id())
        .collect())
}

fn read(bootstrap: &str, prefix: &str, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
    let consumer = consumer(bootstrap, isolation)?;
    let name = format!("{prefix}{topic}");
    let mut assignment = TopicPartitionList::new();
    let mut unread: BTreeSet<i32> = BTreeSet::new();
    for partition in partitions(&consumer, &name)? {
        assignment.add_partition_offset(&name, partition, Offset::Beginning)?;
        unread.insert(partition);
    }
    consumer.assign(&assignment)?;
    let mut records = Vec::new();
    let deadline = Instant::now() + ANSWERED_WITHIN;
    while !unread.is_empty() {
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => records.push(record(&message, topic)?),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
            }
            Some(Err(error)) => return Err(error).with_context(|| format!("reading {name}")),
            None if Instant::now() > deadline => bail!("{name} does not end in {unread:?}"),
            None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

fn record(message: &BorrowedMessage<'_>, topic: &str) -> Result<Record> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|header| {
                let value = header.value.map(text).unwrap_or_default();
                (header.key.to_owned(), value)
            })
            .collect()
    });
    Ok(Record {
        topic: topic.to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text).unwrap_or_default(),
        value: message.payload().map(serde_json::from_slice).transpose()?,
        headers,
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
    })
}
