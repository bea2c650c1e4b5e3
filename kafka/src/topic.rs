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
