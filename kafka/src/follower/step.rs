//! What a reader is told, and where it then stands.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Checkpoint, Offsets};

/// Where a reader stands: what commits with its data. The default begins with nothing.
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
    /// The full name, as in [`Standing::offsets`].
    pub topic: Arc<str>,
    /// `schema.table`, or [`super::QUARANTINE`].
    pub table: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub key: Bytes,
    /// None: a tombstone. It may come without the delete before it, and is a delete itself.
    pub value: Option<Bytes>,
    /// When the broker wrote it, milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// What a reader has to do next.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time exists, and it is taken apart at once"
)]
pub enum Step {
    /// A part of a checkpoint that is larger than `step_events_max` or `step_bytes_max`.
    Events(Vec<Event>),
    /// The last part of a checkpoint; with it the reader stands at `standing`.
    Checkpoint {
        record: Checkpoint,
        events: Vec<Event>,
        standing: Standing,
        record_offset: i64,
        /// When the broker wrote the record, milliseconds since 1970.
        record_time_ms: i64,
    },
    /// The events given since the last checkpoint are to be undone: they come again, for a
    /// newer one.
    TooOld,
    /// What this reader has not read may be gone: it must rebuild from nothing.
    Behind,
}
