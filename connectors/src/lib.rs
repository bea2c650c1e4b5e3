//! connectors
pub mod replication;
