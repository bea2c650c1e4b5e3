//! connectors
pub mod config;
pub mod encode;
pub mod epoch;
pub mod progress;
pub mod replication;
pub mod source;
