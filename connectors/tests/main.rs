//! The connector on a real PostgreSQL and a real Kafka. See README.md beside this file.

mod alterations;
mod check;
mod commands;
mod crashes;
mod definitions;
mod epochs;
mod failover;
mod gauges;
mod hanging;
mod harness;
mod holes;
mod late;
mod quarantine;
mod random;
mod reads;
mod replication;
mod silence;
mod spanning;
mod startup;
mod streaming;
mod takeover;
mod tls;
mod topics;
mod wal;
mod zombies;
