//! What a replication stream says, message by message.

use std::fmt;

use bytes::{Buf, Bytes};
use kafka::Lsn;

/// A message with its place in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationEvent {
    /// Where the change stands in the WAL; of BEGIN the transaction's first record, of COMMIT
    /// its end, of a keepalive the server's position.
    pub wal_start: Lsn,
    /// The server's position as it sent this; `pgoutput` repeats `wal_start` here.
    pub wal_end: Lsn,
    /// The server's clock as it sent this, microseconds since 1970.
    pub sent_at_us: i64,
    pub message: ReplicationMessage,
}

/// A message as it came: a keepalive, or the output plugin's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawEvent {
    /// `XLogData`; `data` is one message of the output plugin.
    Data {
        wal_start: Lsn,
        wal_end: Lsn,
        sent_at_us: i64,
        data: Bytes,
    },
    Keepalive {
        wal_end: Lsn,
        sent_at_us: i64,
        reply_requested: bool,
    },
}

/// The messages of `pgoutput`, protocol version 1, and the keepalive between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record begins: [`ReplicationMessage::Commit`]'s `commit_lsn`.
        final_lsn: Lsn,
        /// Microseconds since 1970.
        commit_time_us: i64,
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// Where the commit record begins.
        commit_lsn: Lsn,
        /// Where it ends: what `pg_current_wal_lsn()` told its writer, and what to confirm.
        end_lsn: Lsn,
        /// Microseconds since 1970.
        commit_time_us: i64,
    },
    /// A table's columns, before its first change in this session and after each alteration.
    Relation(Relation),
    /// A type that is not built in.
    Type {
        oid: u32,
        schema: String,
        name: String,
    },
    /// The transaction came to the source from elsewhere.
    Origin {
        commit_lsn: Lsn,
        name: String,
    },
    /// Written by `pg_logical_emit_message`.
    Message {
        transactional: bool,
        lsn: Lsn,
        prefix: String,
        content: Bytes,
    },
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        /// What the replica identity tells; none: the key did not change.
        old: Option<OldRow>,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: OldRow,
    },
    Truncate {
        relations: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    /// Everything up to `wal_end` has been sent, or is no concern of this stream.
    Keepalive {
        wal_end: Lsn,
        /// Already answered by the status task when the consumer sees it.
        reply_requested: bool,
    },
}

impl ReplicationMessage {
    /// Does it change rows? What [`kafka::checkpoint::HalfSent`] counts.
    pub(crate) fn is_change(&self) -> bool {
        match self {
            Self::Insert { .. }
            | Self::Update { .. }
            | Self::Delete { .. }
            | Self::Truncate { .. } => true,
            Self::Begin { .. }
            | Self::Commit { .. }
            | Self::Relation(_)
            | Self::Type { .. }
            | Self::Origin { .. }
            | Self::Message { .. }
            | Self::Keepalive { .. } => false,
        }
    }
}

/// A table as the following changes describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<RelationColumn>,
}

/// One published column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`: precision, length and the like; -1 where there is none.
    pub type_modifier: i32,
    /// Part of the replica identity.
    pub key: bool,
}

/// What of an old row the source logs (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a unique index.
    Index,
}

/// What an UPDATE or DELETE says of the row before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// Only the key columns; the others are null, whatever they were.
    Key(Tuple),
    /// The whole row.
    Full(Tuple),
}

impl OldRow {
    /// The cells, whichever kind it is.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// A row, one cell a column in the order of its [`Relation`]. It is a slice of the chunk that
/// came from the socket, so a clone is cheap, but a kept one keeps its chunk (256 KiB, or the
/// one row that is larger).
#[derive(Clone, PartialEq, Eq)]
pub struct Tuple {
    columns: u16,
    unchanged: bool,
    /// Well-formed cells, exactly `columns` of them: the decoder has walked over them.
    cells: Bytes,
}

/// One value of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// A TOAST value that the change left as it was; the server does not resend it.
    Unchanged,
    /// PostgreSQL's text form, in UTF-8 (unless the database is `SQL_ASCII`: then any bytes).
    Text(&'a [u8]),
    /// PostgreSQL's binary form; only where the stream was started so.
    Binary(&'a [u8]),
}

impl Tuple {
    /// `cells` must be what the decoder has walked over.
    pub(super) fn walked(columns: u16, unchanged: bool, cells: Bytes) -> Self {
        Self {
            columns,
            unchanged,
            cells,
        }
    }

    /// How many columns.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Of all its cells.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.cells.len()
    }

    /// Does any cell lack its value ([`Cell::Unchanged`])?
    #[must_use]
    pub fn has_unchanged(&self) -> bool {
        self.unchanged
    }

    /// The cells in order.
    #[must_use]
    pub fn cells(&self) -> Cells<'_> {
        Cells { rest: &self.cells }
    }

    /// The cell of one column; walks over those before it.
    #[must_use]
    pub fn cell(&self, column: usize) -> Option<Cell<'_>> {
        self.cells().nth(column)
    }
}

impl fmt::Debug for Tuple {
    /// The shape only: a row's values never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuple")
            .field("columns", &self.columns)
            .field("unchanged", &self.unchanged)
            .field("bytes", &self.cells.len())
            .finish()
    }
}

/// Walks over the cells of a [`Tuple`].
#[derive(Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl fmt::Debug for Cells<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cells({} bytes left)", self.rest.len())
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let kind = self.rest.try_get_u8().ok()?;
        match kind {
            b'n' => Some(Cell::Null),
            b'u' => Some(Cell::Unchanged),
            _ => {
                let len = usize::try_from(self.rest.try_get_u32().ok()?).ok()?;
                let (value, rest) = self.rest.split_at_checked(len)?;
                self.rest = rest;
                Some(if kind == b't' {
                    Cell::Text(value)
                } else {
                    Cell::Binary(value)
                })
            }
        }
    }
}
