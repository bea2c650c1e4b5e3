//! What crosses Kafka: names and settings of topics, change events, checkpoints, and how both
//! are written (one fenced transactional producer a source) and read (by checkpoints).
//!
//! Knows no table and no SQL: a row is JSON to this crate.

pub mod checkpoint;
mod client;
pub mod config;
mod ends;
pub mod event;
pub mod follower;
pub mod lsn;
mod partition;
pub mod producer;
pub mod quarantine;
pub mod topic;

pub use checkpoint::{Checkpoint, Definition, Offsets, Position, TableState};
pub use config::KafkaConfig;
pub use lsn::Lsn;
