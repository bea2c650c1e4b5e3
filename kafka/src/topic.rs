//! Names and settings of topics, their creation, and the check of what is already there.
//!
//! A topic's settings are part of the protocol: compaction may take away only what no reader
//! that keeps the rules still needs, and a broker's clock must stand in each record. So they are
//! checked at every start, and a deviation is refused with the command that mends it; nothing
//! that exists is changed from here, since it may be an operator's intent.

pub mod examine;

mod error;
mod standing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::{self, Quiet};
use crate::config::KafkaConfig;
use crate::ends::Isolation;

pub use error::TopicError;
pub use standing::shorter;

/// 7 days: what a reader may be behind, and how long tombstones stay, milliseconds.
pub const LATENESS_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Within this multiple of the lateness the log cleaner has run: 30 days for 7.
const CLEANED_AFTER: (i64, i64) = (30, 7);

/// Of a checkpoint topic the cleaner leaves the records of the last hour. A reader needs one
/// that is whole; only a source transaction that takes longer than this to send can leave a new
/// reader without one, and that reader waits for its end. At hundreds of records a second this
/// bounds the topic to about a gigabyte, where the tables' 7 days would be a hundred.
const CHECKPOINTS_KEPT_MS: i64 = 60 * 60 * 1000;
/// The cleaner leaves the newest segment alone, so that must be small in time and bytes.
const CHECKPOINT_SEGMENT_MS: i64 = 10 * 60 * 1000;
const CHECKPOINT_SEGMENT_BYTES: i64 = 64 << 20;

/// What is in quarantine is kept so long, where a new topic is made: somebody has to look at it,
/// and may be on holiday.
const QUARANTINED_KEPT_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// A topic's bound of a record, which `record_bytes_max` may not be above.
pub const RECORD_BYTES_MAX: &str = "max.message.bytes";

/// How long a new topic may take until each partition has a leader.
const LEADERS_WAIT_MAX: Duration = Duration::from_secs(30);
const LEADERS_WAIT: Duration = Duration::from_millis(20);

/// `<prefix><source>.<schema>.<table>`.
#[must_use]
pub fn table(config: &KafkaConfig, source: &str, schema: &str, table: &str) -> String {
    format!("{}{source}.{schema}.{table}", config.topic_prefix)
}

/// `<prefix><source>.checkpoint`.
#[must_use]
pub fn checkpoint(config: &KafkaConfig, source: &str) -> String {
    format!("{}{source}.checkpoint", config.topic_prefix)
}

/// `<prefix><source>.quarantine`.
#[must_use]
pub fn quarantine(config: &KafkaConfig, source: &str) -> String {
    format!("{}{source}.quarantine", config.topic_prefix)
}

/// `<prefix><source>.connector`: whoever calls itself so fences every older one.
#[must_use]
pub fn transactional_id(config: &KafkaConfig, source: &str) -> String {
    format!("{}{source}.connector", config.topic_prefix)
}

/// What a setting must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Must {
    Be(&'static str),
    BeAtLeast(i64),
    BeAtMost(i64),
}

impl Must {
    fn allows(&self, value: &str) -> bool {
        match self {
            Self::Be(wanted) => value == *wanted,
            Self::BeAtLeast(least) => value.parse::<i64>().is_ok_and(|value| value >= *least),
            Self::BeAtMost(most) => value.parse::<i64>().is_ok_and(|value| value <= *most),
        }
    }

    /// What a new topic gets.
    fn value(&self) -> String {
        match self {
            Self::Be(wanted) => (*wanted).to_owned(),
            Self::BeAtLeast(bound) | Self::BeAtMost(bound) => bound.to_string(),
        }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Be(wanted) => format!("must be {wanted}"),
            Self::BeAtLeast(least) => format!("must be at least {least}"),
            Self::BeAtMost(most) => format!("must be at most {most}"),
        }
    }
}

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Checkpoint,
    Quarantine,
}

impl Kind {
    /// Its number of partitions; none: what the configuration says, and fixed by what is there.
    fn partitions(self) -> Option<i32> {
        match self {
            Self::Table => None,
            Self::Checkpoint | Self::Quarantine => Some(1),
        }
    }
}

/// The settings that a topic must have.
fn required(config: &KafkaConfig, kind: Kind) -> Vec<(&'static str, Must)> {
    let policy = match kind {
        Kind::Table | Kind::Checkpoint => "compact",
        Kind::Quarantine => "delete",
    };
    let mut settings = vec![
        ("cleanup.policy", Must::Be(policy)),
        ("message.timestamp.type", Must::Be("LogAppendTime")),
        ("unclean.leader.election.enable", Must::Be("false")),
        (
            "min.insync.replicas",
            Must::BeAtLeast(i64::from(config.min_insync_replicas())),
        ),
    ];
    if kind == Kind::Table {
        let lateness = config.lateness_max_ms;
        settings.extend([
            ("min.compaction.lag.ms", Must::BeAtLeast(lateness)),
            ("delete.retention.ms", Must::BeAtLeast(lateness)),
            (
                "max.compaction.lag.ms",
                Must::BeAtMost(lateness * CLEANED_AFTER.0 / CLEANED_AFTER.1),
            ),
        ]);
    }
    if kind != Kind::Checkpoint {
        let bytes_max = Must::BeAtLeast(i64::from(config.record_bytes_max));
        settings.push((RECORD_BYTES_MAX, bytes_max));
    }
    settings
}

/// What a new topic gets besides; an operator may choose otherwise.
fn suggested(config: &KafkaConfig, kind: Kind) -> Vec<(&'static str, i64)> {
    match kind {
        Kind::Table => vec![],
        Kind::Quarantine => vec![("retention.ms", QUARANTINED_KEPT_MS)],
        Kind::Checkpoint => vec![
            (
                "min.compaction.lag.ms",
                CHECKPOINTS_KEPT_MS.min(config.lateness_max_ms / 2),
            ),
            ("segment.ms", CHECKPOINT_SEGMENT_MS),
            ("segment.bytes", CHECKPOINT_SEGMENT_BYTES),
        ],
    }
}

/// One sentence per deviation, with the command that mends it.
fn deviations(
    config: &KafkaConfig,
    topic: &str,
    required: &[(&'static str, Must)],
    value_of: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    required
        .iter()
        .filter_map(|(name, must)| {
            let value = value_of(name).unwrap_or_else(|| "unset".to_owned());
            (!must.allows(&value)).then(|| {
                let or = if *name == RECORD_BYTES_MAX {
                    ", or set record_bytes_max under [kafka] to what it takes: larger events then \
                     go to quarantine"
                } else {
                    ""
                };
                format!(
                    "topic {topic}: {name} is {value}, {}; mend it with `kafka-configs.sh \
                     --bootstrap-server {} --alter --entity-type topics --entity-name {topic} \
                     --add-config {name}={}`{or}",
                    must.sentence(),
                    config.bootstrap,
                    must.value()
                )
            })
        })
        .collect()
}

/// Partitions and copies of a topic that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    partitions: i32,
    /// Of the partition that has the fewest.
    replicas: i32,
}

fn layout_deviations(config: &KafkaConfig, topic: &str, kind: Kind, layout: Layout) -> Vec<String> {
    let mut sentences = Vec::new();
    if layout.replicas < config.replication_factor {
        sentences.push(format!(
            "topic {topic}: a partition has {} copies, must have at least {}; mend it with \
             `kafka-reassign-partitions.sh`, or set replication_factor under [kafka]",
            layout.replicas, config.replication_factor
        ));
    }
    if kind == Kind::Checkpoint && layout.partitions != 1 {
        sentences.push(format!(
            "topic {topic} has {} partitions, must have 1; delete it while the connector is \
             stopped: the next start makes it anew and reads all tables again",
            layout.partitions
        ));
    }
    sentences
}

/// Creates and checks topics. Clones share one client.
#[derive(Clone)]
pub struct Topics {
    admin: Arc<AdminClient<Quiet>>,
    /// Asks for ends; it reads nothing.
    ends: Arc<BaseConsumer<Quiet>>,
    config: KafkaConfig,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topics")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Topics {
    /// Does not connect yet.
    ///
    /// # Errors
    /// Where the configuration is not one that a client can have.
    pub fn connect(config: &KafkaConfig) -> Result<Self, TopicError> {
        let error = |source| TopicError::Client {
            bootstrap: config.bootstrap.clone(),
            source,
        };
        let admin = client::settings(config).create_with_context(Quiet);
        let ends = crate::ends::consumer(config, Isolation::ReadCommitted);
        Ok(Self {
            admin: Arc::new(admin.map_err(error)?),
            ends: Arc::new(ends.map_err(error)?),
            config: config.clone(),
        })
    }

    /// Creates what is missing and checks what is there. Names are full topic names.
    ///
    /// # Errors
    /// [`TopicError::Wrong`] lists every deviation of every topic; others tell of the first
    /// thing that Kafka refused.
    pub async fn ensure(&self, tables: &[String], checkpoint: &str) -> Result<(), TopicError> {
        let tables = tables.iter().map(|table| (table.as_str(), Kind::Table));
        self.ensure_all(tables.chain([(checkpoint, Kind::Checkpoint)]))
            .await
    }

    /// Likewise for a source's quarantine.
    ///
    /// # Errors
    /// As [`Topics::ensure`].
    pub async fn ensure_quarantine(&self, topic: &str) -> Result<(), TopicError> {
        self.ensure_all([(topic, Kind::Quarantine)].into_iter())
            .await
    }

    async fn ensure_all<'t>(
        &self,
        topics: impl Iterator<Item = (&'t str, Kind)>,
    ) -> Result<(), TopicError> {
        let mut sentences = Vec::new();
        for (topic, kind) in topics {
            let settings = match self.describe(topic).await? {
                Some(settings) => settings,
                None => {
                    self.create(topic, kind).await?;
                    self.describe_new(topic).await?
                }
            };
            sentences.extend(deviations(
                &self.config,
                topic,
                &required(&self.config, kind),
                |name| settings.get(name).and_then(|entry| entry.value.clone()),
            ));
            let layout = self.layout(topic).await?;
            sentences.extend(layout_deviations(&self.config, topic, kind, layout));
        }
        if sentences.is_empty() {
            Ok(())
        } else {
            Err(TopicError::Wrong(sentences))
        }
    }

    /// How many partitions a topic that exists has.
    ///
    /// # Errors
    /// Where it does not exist or Kafka does not answer.
    pub async fn partitions(&self, topic: &str) -> Result<i32, TopicError> {
        if self.describe(topic).await?.is_none() {
            return Err(TopicError::Missing {
                topic: topic.to_owned(),
            });
        }
        Ok(self.layout(topic).await?.partitions)
    }

    /// Per partition of a topic the offset after everything that is committed or aborted.
    ///
    /// # Errors
    /// Where it does not exist or Kafka does not answer.
    pub async fn ends(&self, topic: &str) -> Result<BTreeMap<i32, i64>, TopicError> {
        let partitions = self.partitions(topic).await?;
        let (admin, name) = (Arc::clone(&self.admin), topic.to_owned());
        let timeout = client::request_timeout(&self.config);
        tokio::task::spawn_blocking(move || {
            (0..partitions)
                .map(|partition| {
                    let bounds = admin.inner().fetch_watermarks(&name, partition, timeout);
                    bounds.map(|(_, end)| (partition, end))
                })
                .collect()
        })
        .await
        .unwrap_or(Err(KafkaError::Canceled))
        .map_err(self.ask_error(topic))
    }

    fn options(&self) -> AdminOptions {
        let timeout = client::request_timeout(&self.config);
        AdminOptions::new()
            .request_timeout(Some(timeout))
            .operation_timeout(Some(timeout))
    }

    fn ask_error(&self, topic: &str) -> impl FnOnce(KafkaError) -> TopicError {
        let topic = topic.to_owned();
        |source| TopicError::Ask { topic, source }
    }

    /// A topic's settings; none where it does not exist, or may not be described: rdkafka keeps
    /// the reason to itself and gives no entries.
    async fn describe(&self, topic: &str) -> Result<Option<ConfigResource>, TopicError> {
        let mut answers = self
            .admin
            .describe_configs([&ResourceSpecifier::Topic(topic)], &self.options())
            .await
            .map_err(self.ask_error(topic))?;
        match answers.pop() {
            Some(Ok(settings)) if !settings.entries.is_empty() => Ok(Some(settings)),
            Some(Ok(_)) | None | Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(None),
            Some(Err(code)) => Err(TopicError::Describe {
                topic: topic.to_owned(),
                code: Some(code),
            }),
        }
    }

    /// The settings of a topic that was just created; the broker asked may hear of it last.
    async fn describe_new(&self, topic: &str) -> Result<ConfigResource, TopicError> {
        let deadline = tokio::time::Instant::now() + LEADERS_WAIT_MAX;
        loop {
            if let Some(settings) = self.describe(topic).await? {
                return Ok(settings);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(TopicError::Describe {
                    topic: topic.to_owned(),
                    code: None,
                });
            }
            tokio::time::sleep(LEADERS_WAIT).await;
        }
    }

    async fn create(&self, topic: &str, kind: Kind) -> Result<(), TopicError> {
        let mut settings: Vec<(&str, String)> = required(&self.config, kind)
            .into_iter()
            .map(|(name, must)| (name, must.value()))
            .collect();
        let suggested = suggested(&self.config, kind);
        settings.extend(
            suggested
                .into_iter()
                .map(|(name, value)| (name, value.to_string())),
        );
        let partitions = kind.partitions().unwrap_or(self.config.partitions);
        let mut new = NewTopic::new(
            topic,
            partitions,
            TopicReplication::Fixed(self.config.replication_factor),
        );
        for (name, value) in &settings {
            new = new.set(name, value);
        }
        let answers = self
            .admin
            .create_topics([&new], &self.options())
            .await
            .map_err(self.ask_error(topic))?;
        for answer in answers {
            match answer {
                Ok(_) => tracing::info!(topic, partitions, "created topic {topic}"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    return Err(TopicError::Create {
                        topic: topic.to_owned(),
                        replication_factor: self.config.replication_factor,
                        code,
                    });
                }
            }
        }
        Ok(())
    }

    /// Waits until every partition has a leader.
    async fn layout(&self, topic: &str) -> Result<Layout, TopicError> {
        let deadline = tokio::time::Instant::now() + LEADERS_WAIT_MAX;
        loop {
            if let Some(layout) = self.layout_now(topic).await? {
                return Ok(layout);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(TopicError::NoLeader {
                    topic: topic.to_owned(),
                });
            }
            tokio::time::sleep(LEADERS_WAIT).await;
        }
    }

    async fn layout_now(&self, topic: &str) -> Result<Option<Layout>, TopicError> {
        let (admin, name) = (Arc::clone(&self.admin), topic.to_owned());
        let timeout = client::request_timeout(&self.config);
        let metadata =
            tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(Some(&name), timeout))
                .await
                .unwrap_or(Err(KafkaError::Canceled))
                .map_err(self.ask_error(topic))?;
        let partitions = metadata
            .topics()
            .iter()
            .find(|found| found.name() == topic)
            .map(|found| found.partitions())
            .unwrap_or_default();
        let led = !partitions.is_empty() && partitions.iter().all(|one| one.leader() >= 0);
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        Ok(led.then(|| Layout {
            partitions: count(partitions.len()),
            replicas: partitions
                .iter()
                .map(|one| count(one.replicas().len()))
                .min()
                .unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests;
