//! How anybody reads a source's topics: by checkpoints.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Checkpoint, KafkaConfig, Offsets};

/// Where a reader stands: what commits with its data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Per topic (full name) and partition the next offset.
    pub offsets: Offsets,
    /// The next offset of the checkpoint topic.
    pub seen: i64,
    /// When the checkpoint taken last was written, milliseconds since 1970; none: this reader
    /// begins now.
    pub since_ms: Option<i64>,
}

/// A record of a table's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub topic: Arc<str>,
    /// `schema.table`.
    pub table: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub key: Bytes,
    /// None: a tombstone.
    pub value: Option<Bytes>,
    pub timestamp_ms: i64,
}

#[derive(Debug)]
pub enum Step {
    /// A part of a checkpoint that is larger than `step_events_max` or `step_bytes_max`.
    Events(Vec<Event>),
    /// The last part of a checkpoint.
    Checkpoint {
        record: Checkpoint,
        events: Vec<Event>,
        standing: Standing,
        record_offset: i64,
        record_time_ms: i64,
    },
    /// The steps given since the last checkpoint are to be undone: they come again.
    TooOld,
    /// What this reader has not read may be gone: it must rebuild from nothing.
    Behind,
}

/// How much at once, and which tables.
#[derive(Debug, Clone)]
pub struct FollowerOptions {
    pub step_events_max: usize,
    pub step_bytes_max: usize,
    /// `schema.table`; none: all.
    pub tables: Option<Vec<String>>,
}

impl Default for FollowerOptions {
    fn default() -> Self {
        Self {
            step_events_max: 10_000,
            step_bytes_max: 16 << 20,
            tables: None,
        }
    }
}

/// After any of these the follower is to be dropped; a new one goes on from the last standing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowerError {
    #[error("follower")]
    Placeholder,
}

/// Reads a source's topics checkpoint by checkpoint.
#[derive(Debug)]
pub struct Follower;

impl Follower {
    pub fn new(
        _config: &KafkaConfig,
        _source: &str,
        _standing: Standing,
        _options: FollowerOptions,
    ) -> Result<Self, FollowerError> {
        unimplemented!()
    }

    /// Waits for the next step.
    pub async fn next(&mut self) -> Result<Step, FollowerError> {
        unimplemented!()
    }

    /// The youngest whole checkpoint, if it is young enough to be taken: its offset, its time in
    /// milliseconds since 1970, itself.
    pub async fn last_checkpoint(
        &mut self,
    ) -> Result<Option<(i64, i64, Checkpoint)>, FollowerError> {
        unimplemented!()
    }
}

/// The very last record of the source's checkpoint topic, whole or not: where a successor goes on.
pub async fn last_record(
    _config: &KafkaConfig,
    _source: &str,
) -> Result<Option<Checkpoint>, FollowerError> {
    unimplemented!()
}

/// Reads the keys of one partition, for the reconciliation.
#[derive(Debug)]
pub struct TopicScan;

impl TopicScan {
    /// From offset `next` up to `end`.
    pub fn new(
        _config: &KafkaConfig,
        _topic: &str,
        _partition: i32,
        _next: i64,
        _end: i64,
    ) -> Result<Self, FollowerError> {
        unimplemented!()
    }

    /// At most `max` records: key, and whether it has a value; the offset to go on from (at or
    /// past `end`: complete).
    pub async fn next_batch(
        &mut self,
        _max: usize,
    ) -> Result<(Vec<(Bytes, bool)>, i64), FollowerError> {
        unimplemented!()
    }
}
