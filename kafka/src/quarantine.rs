//! A record of `<source>.quarantine`: a change of which no event could be made, or no whole one.
//!
//! It is written in the Kafka transaction of the changes around it, so it stands there exactly
//! once, and the checkpoint that covers the change names its offset. A row that does not fit into
//! one record is cut: its parts follow each other.

use serde::{Deserialize, Serialize};

use crate::event::Op;
use crate::lsn::Lsn;

/// Why no event could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its event is larger than a record may be.
    TooLarge,
    /// A value is no text in UTF-8, which JSON needs.
    NotUtf8,
    /// The source did not tell its key.
    NoKey,
}

impl Reason {
    /// As in the record, and as a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::NoKey => "no_key",
        }
    }
}

/// What the table's topic got instead of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    /// Nothing: the row keeps its last state there.
    Nothing,
    /// The event without `before` (of a delete: with the key only); the row is right.
    WithoutBefore,
}

/// A record's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// `schema.table`.
    pub table: String,
    pub op: Op,
    /// As the key in the table's topic; null where that is what cannot be told.
    pub key: Option<serde_json::Value>,
    pub reason: Reason,
    /// The reason as a sentence; quotes no value.
    pub detail: String,
    pub sent: Sent,
    /// The change's place in the WAL; of a read, the WAL's end when its snapshot was taken.
    pub lsn: Lsn,
    /// The source's transaction; of a read: null.
    pub xid: Option<u32>,
    /// When it committed (of a read: when it was read), microseconds since 1970.
    pub ts_us: i64,
    /// The columns that `raw` has, in its order.
    pub columns: Vec<String>,
    /// Bytes of the whole row in the form of `raw`.
    pub bytes: u64,
    /// Which part this is, from 0, of how many.
    pub part: u32,
    pub parts: u32,
    /// Is the row larger than what is kept of it?
    pub cut: bool,
    /// Base64 of this part of the row, which is `TupleData` of PostgreSQL's logical replication
    /// message formats: the number of columns (2 bytes), then for each `n` (null), `u` (not told)
    /// or `t`, the length (4 bytes) and so many bytes of PostgreSQL's text. Big-endian.
    pub raw: String,
}
