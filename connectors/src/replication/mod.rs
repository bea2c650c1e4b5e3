//! PostgreSQL's logical replication, received: a thin client of the streaming replication
//! protocol and a decoder of `pgoutput`.
//!
//! The shape of the problem: the server pushes as fast as it decodes, the consumer (Kafka)
//! stops and goes, and in between three things must hold. Memory stays bounded whatever the
//! size of a transaction. The server hears from us in time, or it ends the connection. And it
//! is told a position only when the consumer says so, because what is confirmed is never sent
//! again. So two tasks own the two directions of one socket:
//!
//! ```text
//!            ┌────────── reader task ─────────┐
//! socket ──▶ │ frames ▶ buffer bounded in bytes│ ──▶ ReplicationStream::next ──▶ decoder
//!            └────────────────────────────────┘
//! socket ◀── status task: its own timer, `Feedback::confirm`   (never behind the buffer)
//! ```
//!
//! A full buffer stops the reader, TCP stops the server, statuses go on. The buffer holds
//! chunks as they came from the socket and is decoded by the consumer, so there is no channel
//! operation and no allocation a row: a [`Tuple`] is a slice of the chunk it arrived in.
//!
//! Rejected: a general client in replication mode (tokio-postgres has none), libpq (a system
//! library for what is 40 bytes of framing), and the kept crate `pgwire-replication`; the
//! figures stand in `docs/adr/0002-a-thin-replication-client.md`.
//!
//! Sources of the formats: PostgreSQL's documentation, "Streaming Replication Protocol",
//! "Logical Streaming Replication Protocol" and "Logical Replication Message Formats".

mod authentication;
mod buffer;
mod client;
mod config;
mod decode;
mod error;
mod feedback;
mod frame;
mod message;
mod rest;
mod session;
mod stream;
mod transport;

pub use client::{CreatedSlot, ReplicationClient, SERVER_STARTED, SystemIdentity, TimelineSwitch};
pub use config::{ReplicationConfig, SESSION_SETTINGS};
pub use decode::{DecodeError, decode};
pub use error::{CommandError, ReplicationError, ServerError};
pub use feedback::Feedback;
pub use message::{
    Cell, Cells, OldRow, RawEvent, Relation, RelationColumn, ReplicaIdentity, ReplicationEvent,
    ReplicationMessage, Tuple,
};
pub use stream::ReplicationStream;
pub(crate) use transport::addresses;
