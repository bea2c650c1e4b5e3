//! What a failed comparison leaves to look at: every record of the keys that differ, as new readers
//! find them, committed and not.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use super::Rig;

const READ_WITHIN: Duration = Duration::from_secs(30);

/// In words: the rows that one side alone has, and the history of their keys.
pub(crate) async fn of_difference(
    rig: &Rig,
    table: &str,
    ours: &[Value],
    theirs: &[Value],
) -> Result<String> {
    let (mut text, mut ids) = (String::new(), BTreeSet::new());
    for (who, rows, others) in [("the topics", ours, theirs), ("the source", theirs, ours)] {
        for row in rows.iter().filter(|row| !others.contains(row)) {
            writeln!(text, "{who} alone: {row}")?;
            ids.extend(row["id"].as_i64());
        }
    }
    for isolation in ["read_committed", "read_uncommitted"] {
        let (bootstrap, topic) = (rig.bootstrap.clone(), rig.topic(table));
        let ids = ids.clone();
        let read = move || history(&bootstrap, &topic, isolation, &ids);
        text += &tokio::task::spawn_blocking(read).await??;
    }
    Ok(text)
}

fn history(bootstrap: &str, topic: &str, isolation: &str, ids: &BTreeSet<i64>) -> Result<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "evidence")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), READ_WITHIN)?;
    let found = metadata.topics().first().context("no topic")?;
    let (mut assignment, mut unread) = (TopicPartitionList::new(), BTreeSet::new());
    let mut text = String::new();
    for partition in found.partitions() {
        let (first, end) = consumer.fetch_watermarks(topic, partition.id(), READ_WITHIN)?;
        writeln!(
            text,
            "{isolation} {topic}/{}: {first} to {end}",
            partition.id()
        )?;
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        unread.insert(partition.id());
    }
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + READ_WITHIN;
    while !unread.is_empty() && Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                let key = String::from_utf8_lossy(message.key().unwrap_or_default());
                let id = serde_json::from_str::<Value>(&key).ok();
                let id = id.and_then(|key| key["id"].as_i64());
                if id.is_some_and(|id| ids.contains(&id)) {
                    let value = message.payload().map(String::from_utf8_lossy);
                    let place = format!("{}@{}", message.partition(), message.offset());
                    let value = value.as_deref().unwrap_or("(tombstone)");
                    writeln!(text, "  {place} {key} {value}")?;
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
            }
            Some(Err(error)) => writeln!(text, "  {error}")?,
            None => {}
        }
    }
    Ok(text)
}
