//! The connector on a real PostgreSQL and a real Kafka. See README.md beside this file.

mod harness;
mod replication;
mod streaming;
