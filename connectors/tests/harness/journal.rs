//! Everything that stands in a source's topics, in order, and what a reader of it knows.
//!
//! A reader of its own, on rdkafka alone: it sees what any consumer sees, headers included, and
//! tells the state at *every* whole checkpoint, where the product's reader may skip some.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kafka::quarantine::Quarantined;
use kafka::{Checkpoint, Lsn};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A record of a table's topic.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) value: Option<Value>,
    /// The value as it stands there.
    pub(crate) text: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

/// A row: its JSON.
pub(crate) type Row = Value;

/// Table → key → row.
pub(crate) type Tables = BTreeMap<String, BTreeMap<String, Row>>;

/// What stands in the topics, read committed.
pub(crate) struct Journal {
    consumer: BaseConsumer,
    prefix: String,
    topics: Vec<String>,
    checkpoint_topic: String,
    quarantine_topic: String,
    assigned: bool,
    /// By topic and partition where to go on.
    next: BTreeMap<(String, i32), i64>,
    pub(crate) records: Vec<Record>,
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// What could not be sent.
    pub(crate) quarantined: Vec<Quarantined>,
}

impl Journal {
    pub(super) fn new(bootstrap: &str, prefix: &str, tables: &[String]) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "journal")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // The default goes to the newest record without a word: what was skipped looks lost.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "20")
            .create()?;
        let prefix = format!("{prefix}shop.");
        Ok(Self {
            consumer,
            topics: tables.iter().map(|t| format!("{prefix}{t}")).collect(),
            checkpoint_topic: format!("{prefix}checkpoint"),
            quarantine_topic: format!("{prefix}quarantine"),
            prefix,
            assigned: false,
            next: BTreeMap::new(),
            records: Vec::new(),
            checkpoints: Vec::new(),
            quarantined: Vec::new(),
        })
    }

    /// Reads until `seen`.
    pub(crate) async fn until(&mut self, what: &str, seen: impl Fn(&Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            self.read_on()?;
            if seen(self) {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "waited in vain: {what}; {} records, last checkpoint {:#?}",
                    self.records.len(),
                    self.checkpoints.last()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reads until a whole checkpoint is at or past `lsn`, and every event that it covers.
    pub(crate) async fn until_position(&mut self, lsn: Lsn) -> Result<()> {
        self.until(&format!("a whole checkpoint at {lsn}"), |journal| {
            journal.checkpoints.last().is_some_and(|last| {
                last.is_whole() && last.position >= lsn && journal.has_read_to(last)
            })
        })
        .await
    }

    /// Partitions come each at their own pace: is every event read that a checkpoint covers?
    fn has_read_to(&self, checkpoint: &Checkpoint) -> bool {
        let ours = |topic: &&String| self.topics.contains(topic);
        checkpoint
            .offsets
            .iter()
            .filter(|(topic, _)| ours(topic))
            .flat_map(|(topic, partitions)| partitions.iter().map(move |end| (topic, end)))
            .all(|(topic, (partition, end))| {
                let newest = self.records.iter().rev();
                newest
                    .filter(|record| record.topic == *topic && record.partition == *partition)
                    .map(|record| record.offset + 1)
                    .next()
                    >= Some(*end)
            })
    }

    fn read_on(&mut self) -> Result<()> {
        if !self.assigned && !self.assign()? {
            return Ok(());
        }
        while let Some(message) = self.consumer.poll(Duration::from_millis(10)) {
            let message = match message {
                Ok(message) => message.detach(),
                Err(KafkaError::PartitionEOF(_)) => continue,
                // A broker that is away or busy: the client goes on by itself, and whoever waits
                // here gives up in time.
                Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::OperationTimedOut,
                )) => continue,
                // A broker that has just come back may not know where its log ends. If the log
                // is shorter for good, whoever waits here gives up in time.
                Err(KafkaError::MessageConsumption(
                    code @ (RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation),
                )) => {
                    println!("the journal goes on where it was: {code}");
                    self.assign()?;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let place = (message.topic().to_owned(), message.partition());
            self.next.insert(place, message.offset() + 1);
            let value = message.payload();
            if message.topic() == self.checkpoint_topic {
                let record = value.context("a checkpoint without a value")?;
                self.checkpoints.push(serde_json::from_slice(record)?);
                continue;
            }
            if message.topic() == self.quarantine_topic {
                let record = value.context("quarantined without a value")?;
                self.quarantined.push(serde_json::from_slice(record)?);
                continue;
            }
            let headers = message.headers().map(|headers| {
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), text(header.value)))
                    .collect()
            });
            self.records.push(Record {
                topic: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
                key: text(message.key()),
                text: value.map(|value| text(Some(value))),
                value: value.map(serde_json::from_slice).transpose()?,
                headers: headers.unwrap_or_default(),
            });
        }
        Ok(())
    }

    fn assign(&mut self) -> Result<bool> {
        let metadata = self.consumer.fetch_metadata(None, PATIENCE)?;
        let mut all = TopicPartitionList::new();
        for name in self
            .topics
            .iter()
            .chain([&self.checkpoint_topic, &self.quarantine_topic])
        {
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            let Some(topic) = topic.filter(|topic| !topic.partitions().is_empty()) else {
                return Ok(false);
            };
            for partition in topic.partitions() {
                let next = self.next.get(&(name.clone(), partition.id()));
                let next = next.map_or(Offset::Beginning, |next| Offset::Offset(*next));
                all.add_partition_offset(name, partition.id(), next)?;
            }
        }
        self.consumer.assign(&all)?;
        self.assigned = true;
        Ok(true)
    }

    /// The tables as a reader has them who has read everything.
    pub(crate) fn tables(&self) -> Tables {
        self.tables_below(|_| true)
    }

    /// The tables at a checkpoint: read to its offsets and no further.
    pub(crate) fn tables_at(&self, checkpoint: &Checkpoint) -> Tables {
        self.tables_below(|record| {
            let partitions = checkpoint.offsets.get(&record.topic);
            let end = partitions.and_then(|ends| ends.get(&record.partition));
            end.is_some_and(|end| record.offset < *end)
        })
    }

    /// Every whole checkpoint with the tables at it.
    pub(crate) fn history(&self) -> impl Iterator<Item = (&Checkpoint, Tables)> {
        self.checkpoints
            .iter()
            .filter(|checkpoint| checkpoint.is_whole())
            .map(|checkpoint| (checkpoint, self.tables_at(checkpoint)))
    }

    fn tables_below(&self, covered: impl Fn(&Record) -> bool) -> Tables {
        let mut tables = Tables::new();
        for topic in &self.topics {
            tables.insert(self.table(topic), BTreeMap::new());
        }
        for record in self.records.iter().filter(|record| covered(record)) {
            let rows = tables.entry(self.table(&record.topic)).or_default();
            let after = record.value.as_ref().map(|value| &value["after"]);
            match after {
                Some(after) if !after.is_null() => {
                    rows.insert(record.key.clone(), after.clone());
                }
                _ => _ = rows.remove(&record.key),
            }
        }
        tables
    }

    /// Records of a table (`public.name`).
    pub(crate) fn of(&self, table: &str) -> Vec<&Record> {
        let topic = format!("{}{table}", self.prefix);
        self.records
            .iter()
            .filter(|record| record.topic == topic)
            .collect()
    }

    /// How many events of a kind (`c`, `u`, `d`, `r`) a key has.
    pub(crate) fn count(&self, table: &str, key: &str, op: &str) -> usize {
        self.of(table)
            .iter()
            .filter(|record| record.key == key)
            .filter(|record| record.value.as_ref().is_some_and(|value| value["op"] == op))
            .count()
    }

    fn table(&self, topic: &str) -> String {
        topic.strip_prefix(&self.prefix).unwrap_or(topic).to_owned()
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
