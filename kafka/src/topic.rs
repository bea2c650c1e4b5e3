//! Names and settings of topics, their creation, and the check of what is already there.

use crate::config::KafkaConfig;

/// 7 days: what a reader may be behind, and how long tombstones stay, milliseconds.
pub const LATENESS_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// 30 days: after this the log cleaner has run, milliseconds.
pub const COMPACTION_LAG_MAX_MS: i64 = 30 * 24 * 60 * 60 * 1000;

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

/// `<prefix><source>.connector`: whoever calls itself so fences every older one.
#[must_use]
pub fn transactional_id(config: &KafkaConfig, source: &str) -> String {
    format!("{}{source}.connector", config.topic_prefix)
}

/// Creates and checks topics.
#[derive(Debug)]
pub struct Topics;

/// A topic cannot be used as it is, or Kafka cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    #[error("topics")]
    Placeholder,
}

impl Topics {
    pub fn connect(_config: &KafkaConfig) -> Result<Self, TopicError> {
        unimplemented!()
    }

    /// Creates what is missing and checks what is there. `tables` and `checkpoint` are full topic names.
    pub async fn ensure(&self, _tables: &[String], _checkpoint: &str) -> Result<(), TopicError> {
        unimplemented!()
    }

    pub async fn partitions(&self, _topic: &str) -> Result<i32, TopicError> {
        unimplemented!()
    }
}
