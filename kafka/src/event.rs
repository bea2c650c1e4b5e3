//! A change event: Debezium's envelope as its JSON converter writes it without schema.
//!
//! Field order is Debezium's. Source of the format: Debezium's documentation of its
//! PostgreSQL connector, "Data change events".

use serde::{Deserialize, Serialize};

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    #[serde(rename = "c")]
    Create,
    #[serde(rename = "u")]
    Update,
    #[serde(rename = "d")]
    Delete,
    /// Seen by a table read.
    #[serde(rename = "r")]
    Read,
}

/// The value of a record of a table's topic. `Row` is whatever the reader wants a row to be;
/// the writer uses already encoded JSON. A record without a value is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<Row> {
    /// The row before, as far as the table's replica identity tells it.
    pub before: Option<Row>,
    /// The row after; none for a delete.
    pub after: Option<Row>,
    pub source: Source,
    /// Always null: transaction metadata stands in the checkpoints.
    pub transaction: Option<()>,
    pub op: Op,
    /// When the connector made this event, milliseconds since 1970.
    pub ts_ms: Option<i64>,
    pub ts_us: Option<i64>,
    pub ts_ns: Option<i64>,
}

/// Where a change came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub version: String,
    /// Always `postgresql`.
    pub connector: String,
    /// The logical name of the source, the first part of its topics.
    pub name: String,
    /// Commit time in the source (of a read: when it was read), milliseconds since 1970.
    pub ts_ms: i64,
    /// `"true"` and its like in a table read, else `"false"`: a string, as Debezium's.
    pub snapshot: String,
    pub db: String,
    /// A JSON array as a string: the last commit's LSN and this event's, decimal.
    pub sequence: String,
    pub ts_us: i64,
    pub ts_ns: i64,
    pub schema: String,
    pub table: String,
    #[serde(rename = "txId")]
    pub tx_id: Option<i64>,
    pub lsn: Option<i64>,
    pub xmin: Option<i64>,
}
