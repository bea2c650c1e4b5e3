//! Reads of the source: what the log leaves out.
//!
//! The first snapshot, a table added or altered, a value that PostgreSQL did not resend, and
//! the question which keys still exist. All of them are one operation, [`view::View`]: a
//! REPEATABLE READ snapshot that shows every transaction sent so far, and an LSN taken after
//! the read that the stream must pass before a record is a checkpoint again (`reach`).
//!
//! The stream stands still between a snapshot and the sending of what it showed: the one task
//! of a life does both. A table is read in chunks ([`chunk`]); several workers read slices of
//! several tables and ranges in the snapshot of one chunk, and the life's task sends what they
//! hand over (docs/adr/0006). No snapshot is held for long on the source. Rejected: one
//! exported snapshot for the whole first read, which holds back the source's VACUUM for as
//! long as its largest table takes and starts over with every crash.

pub(crate) mod chunk;
pub(crate) mod holes;
mod live;
mod pace;
pub(crate) mod readers;
pub(crate) mod reconcile;
mod rows;
mod sql;
pub(crate) mod truncate;
pub(crate) mod view;
pub(crate) mod waits;
mod worker;
