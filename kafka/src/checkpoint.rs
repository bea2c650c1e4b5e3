//! A record of `<source>.checkpoint`: how far the topics of a source are.
//!
//! Two numbers carry its honesty. `position`: everything committed in the source up to there
//! has been sent. `reach`: the highest LSN whose effects may stand in the topics, because a
//! read showed it or a transaction is sent half. The topics equal the source at `position`
//! exactly when `reach` is not above it; else the record marks progress, for the next writer.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

mod read;

pub use read::{KeyRange, Read, RunningRead};

/// Per topic and partition the offset after the last event.
pub type Offsets = BTreeMap<String, BTreeMap<i32, i64>>;

/// The one key of a checkpoint topic's records.
pub const KEY: &str = "checkpoint";

/// Where a reader stands in a source: positions compare by epoch, then by LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The source's epoch: grows whenever its log could not be continued.
    pub epoch: u64,
    /// Everything committed up to here is contained.
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.lsn)
    }
}

/// What the last record of every Kafka transaction says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Grows when the log could not be continued: the Unix second it began, or the last plus 1.
    pub epoch: u64,
    /// PostgreSQL's system identifier of the source.
    pub system_identifier: String,
    /// The source's timeline.
    pub timeline: u32,
    /// Everything committed up to here has been sent.
    pub position: Lsn,
    /// The highest LSN whose effects the topics may hold.
    pub reach: Lsn,
    /// The transaction of which only a part has been sent. None: there is none, or an older
    /// version wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_sent: Option<HalfSent>,
    /// Commit time of the last transaction sent, microseconds since 1970; none yet: null.
    pub committed_at_us: Option<i64>,
    /// When `position` was last known to be all that the source had, microseconds since 1970.
    pub current_at_us: Option<i64>,
    /// End of the source's WAL, as the source said last.
    pub wal_end: Lsn,
    /// Per topic and partition the offset after the last event that this record covers.
    pub offsets: Offsets,
    /// Likewise of `<source>.quarantine`, apart because no row stands there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quarantine: BTreeMap<i32, i64>,
    /// Per table (`schema.name`) what the topics know of it.
    pub tables: BTreeMap<String, TableState>,
}

/// How much of a transaction of the source the topics have. The next writer goes on behind it.
///
/// Changes are the messages INSERT, UPDATE, DELETE and TRUNCATE of the output plugin, protocol
/// version 1, in the order in which they come, whatever became of each: an event, two, none. Of
/// the same log PostgreSQL makes the same messages again, whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfSent {
    /// Where its commit record begins, as BEGIN says: which transaction it is.
    pub commit_lsn: Lsn,
    /// Its id, without the upper half.
    pub xid: u32,
    /// So many of its changes have been sent, from the first on.
    pub changes: u64,
    /// LSN of the last of them, by which the next writer knows the place again.
    pub change_lsn: Lsn,
}

/// What the topics know of one table, and how far its reads are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// The columns known of every row; empty: not even which rows there are.
    pub columns: Vec<String>,
    /// The columns that will be known once the table read is complete.
    pub target: Vec<String>,
    /// Of each target column its type in the source: id and modifier. Empty: not known, an older
    /// version wrote this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<(u32, i32)>,
    /// Which table the rows are of. None: not known, an older version wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
    /// The table read and the comparison begin once the position is here.
    #[serde(default, skip_serializing_if = "Lsn::is_zero")]
    pub not_before: Lsn,
    /// Where the table read goes on.
    pub read: Read,
    /// Per partition of the table's topic what is still to be compared with the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reconcile: BTreeMap<i32, Reconcile>,
    /// Reads that somebody asked for and that are not complete, in the order of asking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<ReadRequest>,
    /// Over how many partitions the keys are spread; 0: an older version wrote the record.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub partitions: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_unknown(partitions: &i32) -> bool {
    *partitions == 0
}

/// A read of a table, or of those of its rows that fulfil a condition, by command. It stands
/// here so that it survives whoever took the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Grows with every request of a source.
    pub id: u64,
    /// SQL over the table's columns; none: every row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Rows read in a second at most; none: as many as the configuration allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_second_max: Option<u32>,
    pub requested_at_us: i64,
    /// How far it is.
    pub read: Read,
    /// Per partition which keys are still to be compared with the source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reconcile: BTreeMap<i32, Reconcile>,
}

/// What tells a table of the source from another under its name, and from itself before its rows
/// changed without a word in the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Id of the publication's entry for it: another one, and it was not published for a while.
    pub published: u32,
    /// The columns of its records' key in order, each with the form that its values have there.
    pub key: Vec<(String, String)>,
    /// `pg_class.relfilenode`: changes with every rewrite, by VACUUM FULL too.
    pub file_node: u32,
    /// Fingerprint of its columns' entries in `pg_attribute`: changes with every ALTER of one.
    pub attributes: String,
}

/// Offsets of a partition that are still to be compared with the source: `next` to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    pub next: i64,
    pub end: i64,
}

impl Checkpoint {
    /// May readers take it? Only if no effect beyond `position` stands in the topics and every
    /// table has been read once. While a new epoch reads tables, none has columns.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.reach <= self.position && self.tables.values().all(|table| !table.columns.is_empty())
    }

    /// The position that a reader has once it has read up to `offsets`.
    #[must_use]
    pub fn at(&self) -> Position {
        Position {
            epoch: self.epoch,
            lsn: self.position,
        }
    }
}
