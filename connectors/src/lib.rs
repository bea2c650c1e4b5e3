//! One PostgreSQL database into Kafka, as it changes.
//!
//! The shape of the problem: the log is a complete history only from a place where somebody
//! listened, of values that it happens to resend, and it goes on while its reader dies. So the
//! connector keeps two numbers. `position`: everything committed up to there has been sent.
//! `reach`: the highest LSN whose effects may stand in the topics, because a read showed it or
//! a transaction is sent half. The topics equal the source at `position` exactly when `reach`
//! is not above it; only then a record is a checkpoint for readers ([`progress`]).
//!
//! ```text
//! snapshot ──▶┐
//!             ├─▶ encode ──▶ deliver ──▶ record (progress, epoch) ──▶ feedback to PostgreSQL
//! replication▶┘
//! ```
//!
//! A life ([`run`]) holds the source's advisory lock, its slot and the fenced producer; losing
//! any of them ends it, and the next one inherits the last record. Everything of a life happens
//! in one task, so what must not happen between two steps cannot. Only rows of table reads are
//! read and encoded by others, which that task waits for.
//!
//! Rejected: a connector framework with tasks and queues between the stages. It needs barriers
//! to say what one task has for free, and every queue is a place where events wait that a
//! zombie may still send.

#[cfg(feature = "bench")]
pub mod bench;
mod captured;
pub mod check;
pub mod command;
pub mod config;
mod deliver;
pub mod encode;
pub mod epoch;
mod error;
mod life;
pub mod plan;
pub mod progress;
mod quarantine;
mod readable;
pub mod replication;
pub mod run;
mod slot;
mod snapshot;
pub mod source;
pub mod status;
mod stream;
mod tally;
mod topics;
mod watch;
